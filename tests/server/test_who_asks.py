"""A hidden server that wants it is told who asks: a PROXY line before the first head."""

import logging
import socket

import pytest
from conftest import OK, Peer, code, connect_request, get, until
from test_proxy_line import IPV4, IPV6, LINE4, LINE6, binary, block

from rendezvous.server import meeting
from rendezvous.wire import proxy_line

HEAD = b'GET / HTTP/1.1\r\nHost: x\r\n\r\n'
UNKNOWN = b'PROXY UNKNOWN\r\n'
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi'


@pytest.fixture
def asking(connect, entries):
    """Makes registrations that ask for the line."""

    def asking(server, uuid: str, *fields: str, before: bytes = b'') -> Peer:
        peer, head = connect(server), connect_request(uuid, code(entries, uuid))
        lines = '\r\n'.join(['', *(fields or ['Proxy-Protocol: 1']), '', ''])
        peer.send(before + head.replace(b'\r\n\r\n', lines.encode()))
        assert peer.receive(len(OK)) == OK
        return peer

    return asking


@pytest.fixture
def workers(start, tmp_path):
    (tmp_path / 'w').mkdir()
    return [start(meeting_place=tmp_path / 'w' / name) for name in '12']


def line_of(mobile: Peer) -> bytes:
    """The line that says who this client is."""
    (host, port), (reached, at) = mobile.sock.getsockname(), mobile.sock.getpeername()
    return f'PROXY TCP4 {host} {reached} {port} {at}\r\n'.encode()


def test_line_comes_in_one_piece_with_the_head(server, asking, connect, uuid):
    hidden, mobile = asking(server, uuid), connect(server)
    mobile.send(get(uuid) + b'body')
    assert hidden.sock.recv(65536) == line_of(mobile) + HEAD + b'body'
    mobile.send(HEAD)
    assert hidden.receive(len(HEAD)) == HEAD, 'what comes later has none'
    hidden.send(ANSWER)
    assert mobile.answer().body == b'hi'


@pytest.mark.parametrize('field', ['X: 1', 'Proxy-Protocol: 2', 'Proxy-Protocol: '])
def test_hidden_server_that_does_not_ask_gets_what_it_always_got(
    server, asking, connect, uuid, field
):
    hidden, mobile = asking(server, uuid, field), connect(server)
    mobile.send(get(uuid))
    assert hidden.sock.recv(65536) == HEAD


def test_line_is_not_counted_as_the_mobile_clients(server, asking, connect, uuid, caplog):
    caplog.set_level(logging.INFO)
    hidden, mobile = asking(server, uuid), connect(server)
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    hidden.close()
    assert mobile.rest() == b''
    until(lambda: f'; {len(HEAD)} octets from the mobile client, 0 from' in caplog.text, 'closed')


@pytest.mark.parametrize(
    ('header', 'line'),
    [
        (LINE4, LINE4),
        (LINE6, LINE6),
        (binary(0x21, 0x11, block(IPV4)), LINE4),
        (binary(0x21, 0x21, block(IPV6)), LINE6),
        (b'PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 5000 443\r\n', LINE4),
        (b'PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 5000 443\r\n', UNKNOWN),
        (b'PROXY UNKNOWN ::1 ::1 1 2\r\n', UNKNOWN),
        (binary(0x20, 0x11, block(IPV4)), UNKNOWN),
    ],
)
def test_line_says_what_the_proxy_in_front_says(start, asking, connect, uuid, header, line):
    server = start(key_file=None, proxy_protocol=True)
    hidden, mobile = asking(server, uuid, before=LINE4), connect(server)
    mobile.send(header + get(uuid))
    assert hidden.receive(len(line + HEAD)) == line + HEAD


def test_nobody_is_known_behind_something_that_terminates_tls_and_does_not_say(
    start, asking, connect, uuid
):
    """Its own address would let everybody in where the local server trusts this machine."""
    server = start(key_file=None)
    hidden, mobile = asking(server, uuid), connect(server)
    mobile.send(get(uuid))
    assert hidden.receive(len(UNKNOWN + HEAD)) == UNKNOWN + HEAD


def test_client_by_ipv6_has_its_own_address(start, asking, connect, uuid):
    server = start(listen_host='::')
    hidden, mobile = asking(server, uuid), connect(server)
    mobile.send(get(uuid))
    assert hidden.until(HEAD) == line_of(mobile) + HEAD, 'IPv4 on a socket for both'
    hidden, mobile = asking(server, uuid), connect(server, '::1')
    mobile.send(get(uuid))
    (_, port, *_), (_, at, *_) = mobile.sock.getsockname(), mobile.sock.getpeername()
    assert hidden.until(HEAD) == f'PROXY TCP6 ::1 ::1 {port} {at}\r\n'.encode() + HEAD


@pytest.mark.parametrize('asks', [(True, False), (False, True), (True, True)])
def test_each_registration_that_is_tried_gets_what_it_asked_for(
    server, asking, register, connect, uuid, asks
):
    """The request is kept for the next one, and the line is no part of it."""
    first, second = (asking if each else register for each in asks)
    living = second(server, uuid)
    first(server, uuid).vanish()
    mobile = connect(server)
    mobile.send(get(uuid))
    expected = (line_of(mobile) if asks[1] else b'') + HEAD
    assert living.receive(len(expected)) == expected
    mobile.send(b'more')
    assert living.receive(4) == b'more'
    living.send(ANSWER)
    assert mobile.answer().body == b'hi'


def test_request_behind_a_line_that_was_acknowledged_is_not_sent_twice(
    server, asking, connect, uuid
):
    """Nobody can tell whether it was the line alone: TLS has both in one record."""
    second, first = asking(server, uuid), asking(server, uuid)
    mobile = connect(server)
    mobile.send(get(uuid, method='POST'))
    first.receive(len(line_of(mobile)))
    first.reset()
    mobile.sock.suppress_ragged_eofs = True
    assert mobile.rest() == b''
    assert server.rendezvous.registry.count(uuid) == 1
    second.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        second.sock.recv(1)


@pytest.mark.parametrize('asks', [True, False])
def test_line_comes_from_another_worker_too(workers, asking, register, connect, uuid, asks):
    hidden = (asking if asks else register)(workers[0], uuid)
    mobile = connect(workers[1])
    mobile.send(get(uuid))
    expected = (line_of(mobile) if asks else b'') + HEAD
    assert hidden.receive(len(expected)) == expected
    hidden.send(ANSWER)
    assert mobile.answer().body == b'hi'


@pytest.mark.parametrize('asks', [(True, False), (False, True)])
def test_each_that_is_tried_at_another_worker_gets_what_it_asked_for(
    workers, asking, register, connect, uuid, asks
):
    first, second = (asking if each else register for each in asks)
    living = second(workers[0], uuid)
    first(workers[0], uuid).vanish()
    mobile = connect(workers[1])
    mobile.send(get(uuid))
    expected = (line_of(mobile) if asks[1] else b'') + HEAD
    assert living.receive(len(expected)) == expected


@pytest.mark.parametrize(
    ('addresses', 'line'),
    [
        ('192.0.2.7 5000 198.51.100.1 443', LINE4),
        ('2001:db8::7 5000 2001:db8::1 443', LINE6),
        ('192.0.2.7 5000', UNKNOWN),  # of a worker of the version before, or of an unknown client
    ],
)
def test_question_of_another_worker_says_who_asks(workers, asking, uuid, tmp_path, addresses, line):
    hidden = asking(workers[0], uuid)
    with socket.socket(socket.AF_UNIX) as colleague:
        colleague.connect(str(tmp_path / 'w' / '1'))
        colleague.sendall(f'{uuid} 0 {addresses}\n'.encode())
        assert colleague.recv(1) == meeting.YES
        colleague.sendall(HEAD)
        assert hidden.receive(len(line + HEAD)) == line + HEAD


@pytest.mark.parametrize(
    'question', ['192.0.2.7 5000 198.51.100.1', '192.0.2.7 x', '192.0.2.7 1 198.51.100.1 x']
)
def test_question_that_is_malformed_takes_no_registration(
    workers, asking, connect, uuid, tmp_path, question
):
    asking(workers[0], uuid)
    with socket.socket(socket.AF_UNIX) as colleague:
        colleague.connect(str(tmp_path / 'w' / '1'))
        colleague.sendall(f'{uuid} 0 {question}\n'.encode())
        assert colleague.recv(1) == b''
    assert workers[0].rendezvous.registry.count(uuid) == 1


@pytest.mark.parametrize(
    'octets',
    [
        LINE4 + HEAD,
        LINE6 + HEAD,
        UNKNOWN + HEAD,
        b'\r\n' + LINE4 + HEAD,
        LINE4[:-2] + b'\n' + HEAD,
        LINE4[:-2] + b' HTTP/1.1\r\n' + HEAD,
        binary(0x21, 0x11, block(IPV4)) + HEAD,
    ],
)
def test_no_client_can_begin_with_a_line(server, asking, connect, uuid, octets):
    hidden, mobile = asking(server, uuid), connect(server)
    mobile.send(octets.replace(HEAD, get(uuid)))
    assert mobile.answer().status == 400
    assert server.rendezvous.registry.count(uuid) == 1
    hidden.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        hidden.sock.recv(1)


@pytest.mark.parametrize('target', ['UNKNOWN', 'TCP4', '/'])
def test_request_that_looks_like_a_line_comes_behind_the_line(
    server, asking, connect, uuid, target
):
    """`PROXY UNKNOWN HTTP/1.1` is a line of PROXY protocol as well, for readers that are lax."""
    hidden, mobile = asking(server, uuid), connect(server)
    mobile.send(get(uuid, target, 'PROXY'))
    head, line = HEAD.replace(b'GET /', b'PROXY ' + target.encode()), line_of(mobile)
    assert hidden.receive(len(line + head)) == line + head
    found = proxy_line.split(line + head)
    assert (found[0].host, found[1]) == (mobile.sock.getsockname()[0], head)
    assert proxy_line.split(head) == (None, head), 'of a server that sends no line'
