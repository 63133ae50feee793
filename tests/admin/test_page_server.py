"""The HTTP server of the page: clients that are slow, many or wrong."""

import re
import resource
import socket
from contextlib import ExitStack, closing, suppress
from urllib.parse import urlsplit

import gevent
import pytest
from conftest import Peer
from visitor import Visitor


def test_too_many_header_fields_are_a_400_and_not_logged(page, anonymous):
    before = page.program.said()
    headers = {f'X-{number}': 'y' for number in range(150)}
    assert anonymous('GET', '/', headers=headers).status_code == 400
    assert page.program.said() == before


@pytest.fixture
def soon(folder):
    """A page whose deadlines come soon."""
    server = folder.path / 'rendezvous/admin/page_server.py'
    shorter = re.sub('(?m)^(SILENT|REQUEST)_SECONDS = .*', r'\1_SECONDS = 1', server.read_text())
    server.write_text(shorter)
    page = Visitor(folder)
    yield page
    assert 'Traceback' not in page.program.said()


@pytest.fixture
def connect():
    """Makes bare connections to a page."""
    with ExitStack() as opened:

        def connect(page) -> Peer:
            address = '127.0.0.1', urlsplit(page.url).port
            return opened.enter_context(closing(Peer(socket.create_connection(address))))

        yield connect


def asks(page, more: str = '') -> bytes:
    """A request of somebody who has logged in."""
    cookie = '; '.join(f'{name}={value}' for name, value in page.cookies.items())
    host = urlsplit(page.url).netloc
    return f'GET / HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n{more}\r\n'.encode()


def test_unfinished_heads_keep_nobody_out(page, connect):
    pid, files = page.program.pid, resource.RLIMIT_NOFILE
    before, (soft, hard) = resource.prlimit(pid, files), resource.getrlimit(files)
    resource.setrlimit(files, (min(4096, hard), hard))  # for our ends of them
    resource.prlimit(pid, files, (256, before[1]))  # what macOS gives
    try:
        kept = connect(page)
        kept.send(asks(page))
        assert kept.answer().status == 200
        for number in range(1100):
            connect(page).send(b'GET / HTTP/1.1\r\nHost: x\r\n'[: number % 28])
            if number % 100 == 99:
                kept.send(asks(page))
                assert kept.answer().status == 200
                assert page.ask('GET').status_code == 200
        assert page.made(label='kitchen') in page.listed()
        assert 'Error' not in page.program.said()
    finally:
        resource.prlimit(pid, files, before)
        resource.setrlimit(files, (soft, hard))


def test_request_of_a_session_is_answered_however_many_others_come(page, connect):
    busy = [connect(page) for _ in range(3)]
    page.folder.redis('CLIENT', 'PAUSE', '1500')
    for each in busy:
        each.send(asks(page))
    others = [connect(page) for _ in range(300)]
    assert others[0].rest() == b''  # its place was needed
    for each in busy:
        assert each.answer().status == 200


@pytest.mark.parametrize(
    'begun',
    [
        b'G',
        b'GET / HTTP/1.1\r\nX: ',
        b'POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999\r\n\r\ncode=',
        b'POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n'
        b'Content-Length: 999\r\n\r\ncode=',
    ],
)
def test_head_and_body_have_a_deadline_however_slowly_they_drip(soon, connect, begun):
    silent, dripping = connect(soon), connect(soon)
    for each in (silent, dripping):
        each.send(begun)

    def drip() -> None:
        with suppress(OSError):
            while True:
                dripping.send(b'x')
                gevent.sleep(0.05)

    drips = gevent.spawn(drip)  # until it is refused
    for each in (silent, dripping):
        assert each.until(b'\r\n\r\n').startswith(b'HTTP/1.1 408 Request Timeout\r\n')
    assert silent.rest() == b''
    drips.join()


def test_connection_without_a_request_is_closed(soon, connect):
    silent, kept = connect(soon), connect(soon)
    kept.send(asks(soon))
    assert kept.answer().status == 200
    assert (silent.rest(), kept.rest()) == (b'', b'')


def test_client_that_does_not_read_is_reset(soon, connect):
    peer = connect(soon)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    style = b'GET /static/style.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'

    def ask() -> None:
        while True:
            peer.send(style * 100)

    with pytest.raises(ConnectionError):
        ask()
    assert soon.ask('GET').ok


@pytest.mark.parametrize('field', ['Content-Length: 100000000000', 'Transfer-Encoding: chunked'])
def test_connection_closes_after_an_unread_body(page, connect, field):
    peer = connect(page)
    peer.send(f'POST /entries HTTP/1.1\r\nHost: 127.0.0.1\r\n{field}\r\n\r\n'.encode())
    assert peer.answer().status in (411, 413)
    assert peer.rest() == b''


def test_answer_arrives_although_the_body_is_not_read(page, connect):
    field = 'Content-Length: 5000000\r\n'
    anonymous = f'POST /entries HTTP/1.1\r\nHost: 127.0.0.1\r\n{field}\r\n'.encode()
    posts = asks(page, field).replace(b'GET /', b'POST /entries')
    # A GET has no form: nobody looks at its body.
    for head, status in ((anonymous, 413), (posts, 413), (asks(page, field), 200)):
        peer = connect(page)
        peer.send(head + b'x' * 5_000_000)
        assert peer.answer().status == status


def test_body_that_waits_for_100_continue_is_read(page, connect):
    body = f'token={page.token}&label=x'.encode()
    peer, more = connect(page), f'Content-Length: {len(body)}\r\nExpect: 100-continue\r\n'
    more += 'Content-Type: application/x-www-form-urlencoded\r\n'
    peer.send(asks(page, more).replace(b'GET /', b'POST /entries'))
    assert peer.until(b'\r\n\r\n') == b'HTTP/1.1 100 Continue\r\n\r\n'
    peer.send(body)
    assert peer.until(b'\r\n').startswith(b'HTTP/1.1 303 ')


def test_large_head_is_refused(page, connect):
    peer = connect(page)
    line = b'X: ' + b'x' * 60_000 + b'\r\n'
    peer.send(b'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n' + line)
    peer.send(line)
    assert peer.until(b'\r\n').startswith(b'HTTP/1.1 400 ')


def test_reset_by_the_client_is_not_logged(page, connect):
    before = page.program.said()
    cut = b'GET / HTTP/1\r\n', b'GET / HTTP/1.1\r\nX', asks(page, 'Content-Length: 9\r\n')
    for sent in (*cut, asks(page) * 20):
        peer = connect(page)
        peer.send(sent)
        peer.reset()
    assert page.ask('GET').ok
    assert page.program.said() == before
