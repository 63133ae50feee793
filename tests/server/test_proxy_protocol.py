"""A proxy in front: its header says who asks; without one nobody is served."""

import itertools
import logging
import re
import shutil
import socket
import ssl
import subprocess
import sys

import gevent
import pytest
from conftest import OK, Peer, client_context, code, connect_request, get, until
from programs import Folder
from test_limits import is_served
from test_proxy_line import BAD, IPV4, IPV6, LINE4, LINE6, TLVS, binary, block

from rendezvous.server import listening
from rendezvous.store import keys, presence, rations, state
from rendezvous.wire import proxy_line
from rendezvous.wire.addresses import Peer as Address

LOCAL = binary(0x20, 0x00, b'')  # what HAProxy sends when it looks whether the server is there
REFUSED = 'have the proxy in front send one (HAProxy: send-proxy-v2)'
WRONG = '0' * 8  # but once in a hundred million times


@pytest.fixture
def plain(start):
    """A server for plain HTTP behind a proxy."""
    return lambda **options: start(key_file=None, proxy_protocol=True, **options)


@pytest.fixture
def come(start):
    """Makes connections that begin with these octets, as a proxy does."""
    socks = []

    def come(server, header: bytes = LINE4) -> Peer:
        sock = socket.create_connection(('127.0.0.1', server.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socks.append(sock)
        sock.sendall(header)
        return Peer(sock)

    yield come
    for sock in socks:
        sock.close()


@pytest.fixture
def encrypt(pair):
    """Begins TLS on a connection."""
    context = client_context(pair['crt_file'])

    def encrypt(peer: Peer) -> Peer:
        return Peer(context.wrap_socket(peer.sock.dup(), server_hostname='127.0.0.1'))

    return encrypt


def header_of(host: str, port: int = 5000) -> bytes:
    return proxy_line.line(Address(host, port), Address('198.51.100.1', 443))


def is_closed(peer: Peer) -> bool:
    """Whether there is an end without a word."""
    try:
        return peer.rest() == b''
    except ConnectionResetError:  # it had sent what nobody read
        return True


HEADERS = {
    'version 1': (LINE4, IPV4),
    'version 1, IPv6': (LINE6, IPV6),
    'version 2': (binary(0x21, 0x11, block(IPV4)), IPV4),
    'version 2, IPv6, more fields': (binary(0x21, 0x21, block(IPV6) + TLVS), IPV6),
}


@pytest.mark.parametrize('is_tls', [True, False], ids=['TLS', 'plain'])
@pytest.mark.parametrize(('header', 'peer'), HEADERS.values(), ids=HEADERS)
def test_log_and_page_have_the_address_that_the_proxy_says(
    start, come, encrypt, entries, uuid, caplog, monkeypatch, is_tls, header, peer
):
    monkeypatch.setattr(presence, 'WRITE_SECONDS', 0.02)
    caplog.set_level(logging.INFO)
    server = start(proxy_protocol=True, **({} if is_tls else {'key_file': None}))
    ends = [come(server, header) for _ in range(2)]
    hidden, mobile = [encrypt(end) for end in ends] if is_tls else ends
    hidden.send(connect_request(uuid, code(entries, uuid)))
    assert hidden.receive(len(OK)) == OK
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    hidden.close()
    ends[0].close()
    assert mobile.rest() == b''
    mobile.close()
    (kept,) = until(lambda: state.history(entries, uuid), 'it is on the page')
    assert kept.address == peer.host
    known = until(
        lambda: state.known(entries, state.server(entries), [uuid]), 'the next batch has it'
    )
    assert known[uuid].address == peer.host
    until(lambda: 'closed after' in caplog.text, 'it is in the log')
    assert {line.split()[0] for line in caplog.messages if uuid in line} == {str(peer)}


def test_header_may_come_octet_by_octet(start, come, encrypt):
    server = start(proxy_protocol=True)
    for header, _ in HEADERS.values():
        peer = come(server, b'')
        for at in range(len(header)):
            peer.send(header[at : at + 1])
            gevent.sleep(0)  # the server has its turn
        tls = encrypt(peer)
        assert is_served(tls)
        tls.close()


@pytest.mark.parametrize('octets', BAD)
def test_connection_without_a_good_header_is_closed_and_said(plain, come, octets, caplog):
    assert is_closed(come(plain(), octets))
    (line,) = caplog.messages
    assert REFUSED in line
    assert re.match(r'127\.0\.0\.1:\d+ (does not begin|sends) ', line)
    assert line.isprintable()


def test_tls_without_a_header_is_told_so_once_a_second(start, come, encrypt, caplog):
    server = start(proxy_protocol=True)
    for _ in range(20):
        with pytest.raises((OSError, ssl.SSLError)):
            encrypt(come(server, b''))
    assert 1 <= len(caplog.messages) < 20
    assert REFUSED in caplog.text
    assert is_served(encrypt(come(server)))


def test_header_that_does_not_come_is_waited_for_as_a_handshake_is(
    plain, come, caplog, monkeypatch
):
    monkeypatch.setattr('rendezvous.server.dialogue.HANDSHAKE_SECONDS', 0.1)
    server = plain()
    assert is_closed(come(server, LINE4[:20]))
    assert 'sends no whole PROXY header' in caplog.text
    peer = come(server, LINE4[:20])
    peer.shut_sending()
    assert is_closed(peer)


def test_looks_whether_the_server_is_there_are_not_in_the_log(
    start, come, encrypt, entries, uuid, caplog
):
    """Each second: a connection and nothing, or LOCAL and some of a handshake, or all of it."""
    caplog.set_level(logging.INFO)
    server = start(proxy_protocol=True)
    for header, is_reset in itertools.product((b'', LOCAL, b'PROXY UNKNOWN\r\n'), (True, False)):
        peer = come(server, header)
        (peer.reset if is_reset else peer.close)()
    for _ in range(2):
        peer = come(server, LOCAL)
        tls = encrypt(peer)
        peer.close()
        tls.reset()
    peer = come(server, LOCAL + b'\x16\3\1')
    peer.close()
    until(lambda: not server.connections, 'they have ended')
    assert caplog.messages == []


def test_who_has_no_address_has_that_of_the_proxy(plain, come, entries, uuid, caplog):
    caplog.set_level(logging.INFO)
    server = plain()
    for header in (LOCAL, b'PROXY UNKNOWN ::1 ::1 1 2\r\n', binary(0x21, 0x31, b'\0' * 216)):
        peer = come(server, header)
        peer.send(connect_request(uuid, code(entries, uuid)))
        assert peer.receive(len(OK)) == OK
    lines = [line for line in caplog.messages if 'registered' in line]
    assert len(lines) == 3
    assert all(line.startswith('127.0.0.1:') for line in lines)


@pytest.mark.parametrize(
    'header', [LINE4, b'PROXY UNKNOWN\r\n', LOCAL, binary(0x21, 0x11, block(IPV4))]
)
def test_header_that_the_server_does_not_expect_is_named(server, come, header, caplog):
    caplog.set_level(logging.INFO)
    assert is_closed(come(server, header))
    said = 'sends a PROXY header: closed; set proxy_protocol to True in local.py (once)'
    (warning,) = [each for each in caplog.records if said in each.getMessage()]
    assert warning.levelno == logging.WARNING


def test_plain_http_behind_the_header_is_sent_to_https(start, come):
    peer = come(start(proxy_protocol=True))
    peer.send(b'GET /x HTTP/1.1\r\nHost: x\r\n\r\n')
    answer = peer.answer()
    assert (answer.status, answer.fields['Location']) == (308, 'https://x/x')


def test_one_address_has_its_connections_and_others_theirs(plain, come):
    server = plain(max_connections_per_address=3)
    peers = [come(server, header_of('192.0.2.7', port)) for port in range(3)]
    assert all(is_served(peer) for peer in peers)
    mapped = b'PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 5000 443\r\n'
    assert not is_served(come(server, mapped))
    assert is_served(come(server, header_of('192.0.2.8')))
    peers[0].close()
    until(lambda: len(server.connections) == 3, 'it has left')
    assert [is_served(come(server, mapped)) for _ in range(2)] == [True, False]


def test_address_that_has_its_connections_takes_no_place_of_others(plain, come):
    """Nobody is evicted for a connection whose address is not known yet."""
    server = plain(max_connections=8, max_connections_per_address=4)
    others = [come(server, header_of(f'192.0.2.{number}')) for number in range(4)]
    own = [come(server) for _ in range(4)]
    assert all(is_served(peer) for peer in others + own)
    assert not any(is_served(come(server, header_of('192.0.2.7'))) for _ in range(20))
    assert all(is_served(peer) for peer in others)


def test_those_who_send_half_a_header_stop_nobody(plain, come, entries, uuid, caplog):
    server = plain(max_connections=8)
    hidden = come(server, header_of('192.0.2.1'))
    hidden.send(connect_request(uuid, code(entries, uuid)))
    assert hidden.receive(len(OK)) == OK
    silent = [come(server, LINE4[:20]) for _ in range(500)]
    mobile = come(server)
    mobile.send(get(uuid))
    assert hidden.until(b'\r\n\r\n').startswith(b'GET / ')
    hidden.send(b'still here')
    assert mobile.receive(10) == b'still here'
    assert is_closed(silent[0])
    most = listening.HEADERLESS + 3  # both of the pipe, and the one that is evicted now
    until(lambda: len(server.connections) <= most, 'only so many wait for their header')
    assert f'{listening.HEADERLESS} connections have sent no PROXY header' in caplog.text
    assert len([line for line in caplog.messages if 'no PROXY header' in line]) < 20


def test_wrong_codes_count_for_the_address_that_the_proxy_says(plain, come, entries, uuid):
    """Also where the proxy terminates TLS: without the header all would have one address."""
    server = plain()
    entries.ask(lambda redis: redis.delete(keys.ADDRESSES, keys.LATEST, rations.NOBODY))

    def guess(tried: str, host: str) -> int:
        peer = come(server, header_of(host))
        peer.send(connect_request(uuid, tried))
        return peer.answer().status

    assert guess(code(entries, uuid), '192.0.2.9') == 200
    statuses = [guess(WRONG, '192.0.2.7') for _ in range(11)]
    assert statuses == [401] * 10 + [429], 'ration 2'
    assert guess(code(entries, uuid), '192.0.2.8') == 200
    statuses = {guess(WRONG, f'198.18.0.{number}') for number in range(50)}
    assert statuses == {401}
    assert guess(code(entries, uuid), '198.18.1.1') == 401, 'ration 3'
    assert guess(code(entries, uuid), '192.0.2.9') == 200, 'a friend'


def test_server_counts_by_address_and_keeps_descriptors_for_headers(tmp_path):
    with Folder(tmp_path, key_file=None, proxy_protocol=True, workers=1) as folder:
        limit = 'import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300)); '
        serve = f'os.execv({sys.executable!r}, [{sys.executable!r}, "server.py"])'
        _, port = folder.serve('-c', limit + serve)
        log = folder.log()
        assert 'max_connections is 136, for 300 descriptors' in log
        assert 'not counted by address' not in log
        with socket.create_connection(('127.0.0.1', port)) as sock:
            sock.sendall(LINE4 + b'x\r\n\r\n')
            assert Peer(sock).answer().status == 400
        until(lambda: '192.0.2.7:5000 refused: 400' in folder.log(), 'it is in the log')


HAPROXY = """
global
    maxconn 2000  # it refuses a descriptor of a larger number, too
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen front
    bind {bind}
    server rendezvous 127.0.0.1:{port} {how}
"""


@pytest.fixture
def haproxy(tmp_path):
    """HAProxy in front of a server, which it is told to speak to so; gives its address."""
    processes = []

    def haproxy(server, how: str, family) -> tuple:
        file = tmp_path / f'{len(processes)}.cfg'
        host = '::1' if family == socket.AF_INET6 else '127.0.0.1'
        with socket.create_server((host, 0), family=family) as sock:
            bind = f'fd@{sock.fileno()}'
            file.write_text(HAPROXY.format(bind=bind, port=server.port, how=how))
            command = ['haproxy', '-db', '-q', '-f', file]
            processes.append(subprocess.Popen(command, pass_fds=[sock.fileno()]))
            return sock.getsockname()[:2]

    yield haproxy
    for process in processes:
        process.kill()
        process.wait()


HOWS = [
    'send-proxy',
    'send-proxy-v2',
    'send-proxy-v2 proxy-v2-options crc32c,unique-id',
    'send-proxy-v2 check check-ssl verify none inter 50ms',
    'send-proxy check inter 50ms',
]


@pytest.mark.skipif(not shutil.which('haproxy'), reason='haproxy is missing')
@pytest.mark.parametrize('family', [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize('how', HOWS)
def test_haproxy_says_who_asks(start, haproxy, encrypt, entries, uuid, caplog, how, family):
    server = start(proxy_protocol=True)
    caplog.set_level(logging.INFO)
    address = haproxy(server, how, family)
    ends = [socket.create_connection(address) for _ in range(2)]
    hosts = [Address(*end.getsockname()[:2]) for end in ends]
    hidden, mobile = (encrypt(Peer(end)) for end in ends)
    hidden.send(connect_request(uuid, code(entries, uuid)))
    assert hidden.receive(len(OK)) == OK
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    if 'check' in how:
        gevent.sleep(0.15)  # some looks more
    for end in (hidden, mobile, *ends):
        end.close()
    until(lambda: 'closed after' in caplog.text, 'it is in the log')
    assert {line.split()[0] for line in caplog.messages} == set(map(str, hosts))
    assert not re.search('refused|lost', caplog.text)
