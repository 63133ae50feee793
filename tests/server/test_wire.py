"""The wire: section 4. TLS, certificates and their renewal, strangers, stopping."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import gevent
import pytest
from conftest import Peer, client_context, cut_off, get, until

from rendezvous.admin import atomic, certificate
from rendezvous.admin import entry_files as files
from rendezvous.server import dialogue
from rendezvous.store import options as local
from rendezvous.wire import sockets


def hello(server, cafile, **attributes) -> ssl.SSLSocket:
    """A TLS connection of a client with these attributes of its context."""
    context = client_context(cafile)
    for name, value in attributes.items():
        setattr(context, name, value)
    sock = socket.create_connection(('127.0.0.1', server.port))
    try:
        return context.wrap_socket(sock, server_hostname='127.0.0.1')
    except BaseException:
        sock.close()
        raise


@pytest.mark.parametrize('version', [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken(server, pair, version):
    with hello(server, pair['crt_file'], maximum_version=version) as sock:
        assert sock.version() == version.name.replace('_', '.')
        assert sock.cipher()[0].startswith(('TLS_', 'ECDHE-ECDSA-'))
        assert sock.compression() is None


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_older_tls_is_refused(server, pair, caplog):
    caplog.set_level('INFO')
    old = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        hello(server, pair['crt_file'], minimum_version=old, maximum_version=old)
    assert 'Traceback' not in caplog.text


def test_alpn_is_http_1_1(server, pair):
    context = ssl.create_default_context(cafile=pair['crt_file'])
    context.set_alpn_protocols(['h2', 'http/1.1'])
    with socket.create_connection(('127.0.0.1', server.port)) as sock:
        tls = context.wrap_socket(sock, server_hostname='127.0.0.1')
        assert tls.selected_alpn_protocol() == 'http/1.1'
        tls.close()


def test_suites_of_tls_1_2_are_those_that_mozilla_calls_intermediate(server, pair):
    context, accepted = ssl.create_default_context(cafile=pair['crt_file']), set()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers('ALL:COMPLEMENTOFALL:@SECLEVEL=0')
    for name in {cipher['name'] for cipher in context.get_ciphers()}:
        with suppress(ssl.SSLError):  # those of TLS 1.3 cannot be set
            context.set_ciphers(f'{name}:@SECLEVEL=0')
            with socket.create_connection(('127.0.0.1', server.port)) as sock:
                context.wrap_socket(sock, server_hostname='127.0.0.1').close()
            accepted.add(name)
    suites = 'AES128-GCM-SHA256', 'AES256-GCM-SHA384', 'CHACHA20-POLY1305'
    assert accepted == {f'ECDHE-ECDSA-{suite}' for suite in suites}


@pytest.mark.parametrize('version', [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_ticket_is_sent(server, pair, version):
    with hello(server, pair['crt_file'], maximum_version=version) as sock:
        peer = Peer(sock)
        peer.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
        assert peer.answer().status == 401
        assert not sock.session.has_ticket


OP_ALLOW_CLIENT_RENEGOTIATION = 1 << 8  # without it OpenSSL 3 refuses by itself


@pytest.mark.skipif(not shutil.which('openssl'), reason='openssl is not installed')
def test_renegotiation_is_refused(server, pair):
    server.rendezvous.context.options |= OP_ALLOW_CLIENT_RENEGOTIATION
    command = ['openssl', 's_client', '-tls1_2', '-connect', f'127.0.0.1:{server.port}']
    ran = subprocess.run(command, input=b'R\n', capture_output=True, timeout=30)
    assert b'RENEGOTIATING' in ran.stdout + ran.stderr
    assert b'no renegotiation' in ran.stderr


HOSTILE_NAME = '\x1b[2J\x07\r\n2026-11-23 10:00:00,000 INFO forged'


@pytest.mark.parametrize('what', ['name of the server', 'protocol'])
def test_names_in_a_client_hello_do_not_reach_the_log(server, caplog, what):
    """A hello is not signed: ours holds what OpenSSL would not have let us write."""
    caplog.set_level('INFO')
    harmless = 'a' * len(HOSTILE_NAME)
    context = ssl.create_default_context()
    context.set_alpn_protocols([harmless] if what == 'protocol' else ['http/1.1'])
    outgoing = ssl.MemoryBIO()
    name = harmless if what == 'name of the server' else 'x'
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    octets = outgoing.read()
    assert harmless.encode() in octets
    with socket.create_connection(('127.0.0.1', server.port)) as sock:
        sock.sendall(octets.replace(harmless.encode(), HOSTILE_NAME.encode()))
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1000):
            pass
    until(lambda: caplog.messages, 'it is logged')
    (message,) = caplog.messages
    assert re.fullmatch(r'127\.0\.0\.1:\d+ lost: TLS: [a-z0-9 ]+', message)


STRANGERS = {
    'plain HTTP': b'GET / HTTP/1.1\r\nHost: x\r\n\r\n',
    'garbage': os.urandom(200).replace(b'\x16', b'x'),
    'half a handshake': b'\x16\x03\x01\x02\x00\x01\x00',
    'SSH': b'SSH-2.0-OpenSSH_9.2\r\n',
}


@pytest.mark.parametrize('octets', STRANGERS.values(), ids=STRANGERS)
def test_stranger_on_the_tls_port_is_one_line_in_the_log(server, octets, caplog, capfd):
    caplog.set_level('INFO')
    with socket.create_connection(('127.0.0.1', server.port)) as sock:
        sock.sendall(octets)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1000):
            pass
    until(lambda: not server.connections, 'its handler ends')
    assert len(caplog.messages) == 1
    assert 'Traceback' not in caplog.text + capfd.readouterr().err


def test_port_scan_is_one_line_in_the_log(server, caplog, capfd):
    caplog.set_level('INFO')
    Peer(socket.create_connection(('127.0.0.1', server.port))).reset()
    until(lambda: caplog.messages, 'it is logged')
    until(lambda: not server.connections, 'its handler ends')
    assert len(caplog.messages) == 1
    assert 'Traceback' not in caplog.text + capfd.readouterr().err


def test_silent_clients_stop_nobody_and_are_closed(server, connect, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(dialogue, 'HANDSHAKE_SECONDS', 0.5)
        silent = [socket.create_connection(('127.0.0.1', server.port)) for _ in range(50)]
        until(lambda: len(server.connections) == 50, 'they are waited for')
    mobile = connect(server)
    mobile.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    assert mobile.answer().status == 401
    for sock in silent:
        assert sock.recv(1) == b''
        sock.close()


def test_tls_octets_on_a_plain_port_get_400(start, connect):
    server = start(key_file=None)
    peer = connect(server)
    peer.send(STRANGERS['half a handshake'])
    assert peer.answer().status == 400


def shown(server) -> str:
    """The certificate that the server shows, in PEM."""
    attributes = {'check_hostname': False, 'verify_mode': ssl.CERT_NONE}
    with hello(server, None, **attributes) as sock:
        return ssl.DER_cert_to_PEM_cert(sock.getpeercert(binary_form=True))


def renew(pair) -> None:
    """A new pair in place of the old one."""
    certificate.write_pair('127.0.0.1', Path(pair['key_file']), Path(pair['crt_file']))


@pytest.fixture
def own_pair(pair, tmp_path):
    """A copy of the pair that a test may change."""
    own = {name: str(tmp_path / os.path.basename(file)) for name, file in pair.items()}
    renew(own)
    return own


def test_renewed_certificate_is_read_and_no_connection_dropped(start, own_pair):
    server = start(**own_pair)
    before = shown(server)
    with hello(server, own_pair['crt_file']) as old:
        renew(own_pair)
        server.reload()
        peer = Peer(old)
        peer.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
        assert peer.answer().status == 401
    hello(server, own_pair['crt_file']).close()
    assert shown(server) != before


def test_text_in_any_encoding_may_stand_before_the_certificate(start, own_pair, caplog):
    caplog.set_level('INFO')
    server = start(**own_pair)
    crt_file = Path(own_pair['crt_file'])
    pem = crt_file.read_bytes()
    atomic.write(crt_file, b'O=B\xfccher\n' + pem, 0o444)
    server.reload()
    assert caplog.messages == ['read key and certificate again']
    hello(server, own_pair['crt_file']).close()
    start(**own_pair)
    assert files.how_to_reach(local.DEFAULTS | own_pair)['ca'].endswith(pem.decode())


def test_request_of_a_client_with_nagle_is_not_held_up_by_a_delayed_ack(server, pair):
    """The client's last words of the handshake are acknowledged at once, not after 40 ms."""

    def seconds_to_ack() -> float:
        with hello(server, pair['crt_file']) as sock:
            began = time.monotonic()
            until(lambda: not sockets.tcp_info(sock).segments_unacked, 'it is acknowledged')
            return time.monotonic() - began

    until(lambda: seconds_to_ack() < 0.03, 'it is acknowledged at once')  # once is enough


@pytest.mark.parametrize('octets', [b'', b'no PEM', None, 'a folder'])
def test_bad_pair_is_logged_and_the_old_one_stays(start, own_pair, octets, caplog):
    server = start(**own_pair)
    with open(own_pair['crt_file'], 'rb') as file:
        old = file.read().decode().partition('-----END CERTIFICATE-----\n')
    os.remove(own_pair['crt_file'])
    if octets == 'a folder':
        os.mkdir(own_pair['crt_file'])
    elif octets is not None:
        with open(own_pair['crt_file'], 'wb') as file:
            file.write(octets)
    server.reload()
    assert 'the old key and certificate stay' in caplog.text
    assert shown(server) == old[0] + old[1]


def test_ipv4_client_of_an_ipv6_socket_is_logged_as_ipv4(start, caplog):
    """As one that listens on every address sees it."""
    caplog.set_level('INFO')
    server = start(key_file=None)
    with socket.create_server(('127.0.0.1', 0)) as listener:
        peer = Peer(socket.create_connection(listener.getsockname()))
        accepted, (address, port) = listener.accept()
    peer.send(b'\n')
    peer.shut_sending()
    server.rendezvous.handle(accepted, (f'::ffff:{address}', port, 0, 0))
    peer.close()
    assert f'{address}:{port} refused' in caplog.text
    assert '::ffff' not in caplog.text


def test_stop_ends_those_who_wait_and_lets_pipes_finish(start, register, connect, uuid):
    server = start()
    waiting, hidden, mobile = register(server, uuid), register(server, uuid), connect(server)
    for peer in (waiting, mobile):
        peer.sock.suppress_ragged_eofs = False
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    stopping = gevent.spawn(server.stop)
    assert waiting.rest() == b''
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.1', server._server.address[1])).close()
    hidden.send(b'the whole answer')
    hidden.close()
    assert mobile.rest() == b'the whole answer'
    mobile.close()
    waiting.close()
    stopping.get()


@pytest.mark.parametrize('draining', [False, True])
def test_stop_ends_pipes_that_do_not_finish_and_does_not_make_them_look_whole(
    start, register, connect, uuid, draining
):
    server = start(drain=30)
    hidden, mobile = register(server, uuid), connect(server)
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    if draining:
        mobile.shut_sending()
    stopping = gevent.spawn(server.stop, seconds=0.1)
    for peer in (hidden, mobile):
        peer.sock.suppress_ragged_eofs = False
    assert hidden.rest() == b''
    with cut_off():
        mobile.rest()
    hidden.close()
    mobile.close()
    stopping.get()


def test_dead_peer_of_any_connection_is_noticed(server, connect):
    """Each connection inherits what is set on the listening socket."""
    connect(server)
    (connection,) = until(lambda: server.connections, 'it is accepted')
    assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    names = 'TCP_KEEPIDLE', 'TCP_USER_TIMEOUT', 'TCP_NODELAY'
    found = [
        connection.sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names
    ]
    assert found == [30, 60_000, 1]
