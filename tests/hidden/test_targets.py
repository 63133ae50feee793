"""Local servers behind TLS and at Unix sockets, and what an administrator may write for them."""

import socket
import ssl
from contextlib import suppress

import pytest
from conftest import OK, Peer, cut_off
from gevent.event import AsyncResult, Event
from gevent.pool import Pool
from gevent.server import StreamServer
from hiding import (
    HEAD_ENDS,
    MEGABYTE,
    asked,
    deaf,
    hello,
    said,
    says,
    speak_at_once,
    until_waiting,
)

from rendezvous.admin import certificate
from rendezvous.hidden import local_server
from rendezvous.hidden.target import Target, target
from rendezvous.wire.programs import Mistake


@pytest.mark.parametrize(
    ('text', 'means', 'name'),
    [
        ('127.0.0.1:8000', Target('127.0.0.1', 8000), '127.0.0.1:8000'),
        ('http://box:8000', Target('box', 8000), 'box:8000'),
        ('http://box/', Target('box', 80), 'box:80'),
        ('[::1]:8000', Target('::1', 8000), '[::1]:8000'),
        ('https://box', Target('box', 443, is_tls=True), 'https://box:443'),
        ('https://[::1]', Target('::1', 443, is_tls=True), 'https://[::1]:443'),
        ('https://[::1]:8443/', Target('::1', 8443, is_tls=True), 'https://[::1]:8443'),
        ('unix:/run/app.sock', Target('', 0, '/run/app.sock'), 'unix:/run/app.sock'),
    ],
)
def test_target_is_an_address_a_url_or_a_path(text, means, name):
    assert target(text) == means
    assert str(means) == name


NO_TARGETS = (
    *('localhost', '8000', '', ':8000', '127.0.0.1:', '127.0.0.1:0', 'x:65536', 'x:http', 'a b:1'),
    *('ftp://x:21', 'http://', 'https://:443', 'http://x:80/path', 'http://user@x:80', 'http:/x'),
    *('https://x:1:http://', 'unix:', 'unix:app.sock', '/run/app.sock', 'x:1/', '//x:1'),
)


@pytest.mark.parametrize('text', NO_TARGETS)
def test_target_that_is_none_is_a_sentence_with_examples(text):
    with pytest.raises(Mistake) as caught:
        target(text)
    examples = '127.0.0.1:8000, https://127.0.0.1:8443 or unix:/run/app.sock'
    assert str(caught.value) == f'{text!r} is no local server: write it as {examples}'


def test_unix_socket_needs_a_system_that_has_them(monkeypatch):
    monkeypatch.delattr(socket, 'AF_UNIX')
    with pytest.raises(Mistake, match='no Unix sockets on this system: use HOST:PORT'):
        target('unix:/run/app.sock')


# TLS


def by_tls(near, **how) -> Target:
    return Target('127.0.0.1', near.port, is_tls=True, **how)


@pytest.fixture
def trusts(monkeypatch, pair):
    """The system trusts the certificate of strangers."""
    monkeypatch.setenv('SSL_CERT_FILE', pair['crt_file'])


def test_local_server_behind_tls_is_verified_and_answers(
    server, uuid, hide, stranger, connect, trusts
):
    hide(server, by_tls(stranger(hello)))
    until_waiting(server, uuid, 2)
    for _ in range(3):
        assert asked(connect, server, uuid).answer().body == b'hello'


def test_self_signed_one_is_taken_where_one_says_so(server, uuid, hide, stranger, connect):
    hide(server, by_tls(stranger(hello), is_insecure=True))
    until_waiting(server, uuid, 2)
    assert asked(connect, server, uuid).answer().body == b'hello'


def refused_visit(server, uuid, hide, connect, caplog, near: Target) -> str:
    """Why the local server is not connected to, by the log; the visitor has got a 502."""
    hide(server, near)
    until_waiting(server, uuid, 2)
    assert asked(connect, server, uuid).answer().status == 502
    (sentence,) = said(caplog)
    begin = f'cannot connect to the local server {near}: '
    assert sentence.startswith(begin)
    return sentence.removeprefix(begin)


def test_certificate_that_is_not_trusted_is_said(server, uuid, hide, stranger, connect, caplog):
    why = refused_visit(server, uuid, hide, connect, caplog, by_tls(stranger(hello)))
    assert why.startswith('its certificate is not the one it should be (self-signed certificate')
    assert why.endswith('); --insecure takes any certificate')


def test_certificate_of_another_name_is_said(
    server, uuid, hide, listen, connect, caplog, monkeypatch, tmp_path
):
    files = tmp_path / 'key', tmp_path / 'crt'
    certificate.write_pair('example.com', *files)
    monkeypatch.setenv('SSL_CERT_FILE', str(files[1]))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files[1], files[0])
    near = by_tls(listen(hello, context=context))
    why = refused_visit(server, uuid, hide, connect, caplog, near)
    assert why.startswith('its certificate is not the one it should be (IP address mismatch')


NO_TLS = {
    'plain HTTP': (
        says(b'HTTP/1.1 400 Bad Request\r\n\r\n'),
        'it speaks no TLS: write http:// before it',
    ),
    'silence': (deaf, 'no answer to the TLS handshake: does it speak TLS?'),
    'an end': (lambda peer: None, 'TLS: hung up during the handshake'),
}


@pytest.mark.parametrize(('handle', 'why'), NO_TLS.values(), ids=NO_TLS)
def test_server_without_tls_is_said(
    server, uuid, hide, listen, connect, caplog, monkeypatch, handle, why
):
    monkeypatch.setattr(local_server, 'HANDSHAKE_SECONDS', 0.3)

    def without_tls(peer):
        peer.receive(5)  # of a handshake's record
        handle(peer)

    near = by_tls(listen(without_tls))
    assert refused_visit(server, uuid, hide, connect, caplog, near) == why


@pytest.fixture
def joined(server, uuid, hide, stranger, connect, trusts):
    """The end of a local server behind TLS and that of a mobile client; the head has come."""
    joining, over = AsyncResult(), Event()

    def handle(peer):
        peer.until(HEAD_ENDS)
        joining.set(peer)
        over.wait()

    hide(server, by_tls(stranger(handle)))
    until_waiting(server, uuid, 2)
    mobile = asked(connect, server, uuid)
    mobile.sock.suppress_ragged_eofs = False  # an end without a close_notify is an error
    yield joining.get(timeout=5), mobile
    over.set()


def test_both_directions_at_once_arrive_whole_through_tls(joined):
    speak_at_once(joined)


def test_answer_that_ends_with_a_close_notify_is_whole(joined):
    near, mobile = joined
    near.send(OK + MEGABYTE)
    near.close_notify()
    near.close()
    assert mobile.rest() == OK + MEGABYTE


@pytest.mark.parametrize('end', ['close', 'reset'])
def test_answer_that_ends_without_a_close_notify_is_cut_off(joined, end):
    near, mobile = joined
    near.send(OK + MEGABYTE)
    assert mobile.receive(len(OK) + len(MEGABYTE)) == OK + MEGABYTE
    getattr(near, end)()
    with cut_off():
        mobile.rest()


def test_mobile_client_that_closes_says_goodbye_to_the_local_server(joined):
    near, mobile = joined
    mobile.send(b'words')
    mobile.close()
    assert near.rest() == b'words'  # which raises where there is no close_notify


# Unix sockets


@pytest.fixture
def at_path(start, tmp_path):
    """Starts local servers at a Unix socket; gives what they are called."""
    servers = []

    def at_path(handle) -> Target:
        def serve(sock, _) -> None:
            with sock, suppress(OSError, AssertionError):
                handle(Peer(sock))

        path = tmp_path / 'app.sock'
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()
        servers.append(StreamServer(listening, serve, spawn=Pool(None)))
        servers[-1].start()
        return target(f'unix:{path}')

    yield at_path
    for server in servers:
        server.stop(timeout=0)


def test_local_server_at_a_unix_socket_answers(server, uuid, hide, at_path, connect, caplog):
    def answer(peer):
        peer.until(HEAD_ENDS)
        peer.send(OK + MEGABYTE * 4)

    hide(server, at_path(answer))
    until_waiting(server, uuid, 2)
    for _ in range(3):
        assert asked(connect, server, uuid).rest() == OK + MEGABYTE * 4
    assert not said(caplog)


def test_mobile_client_that_closes_ends_the_connection_to_a_unix_socket(
    server, uuid, hide, at_path, connect
):
    heard = AsyncResult()
    hide(server, at_path(lambda peer: heard.set(peer.rest())))
    until_waiting(server, uuid, 2)
    mobile = asked(connect, server, uuid)
    mobile.close()
    assert heard.get(timeout=5).endswith(HEAD_ENDS)


@pytest.mark.parametrize(
    ('name', 'says'), [('none', 'No such file or directory'), ('long' * 30, 'path too long')]
)
def test_unix_socket_that_is_not_there_is_a_502(
    server, uuid, hide, connect, caplog, tmp_path, name, says
):
    why = refused_visit(server, uuid, hide, connect, caplog, target(f'unix:{tmp_path}/{name}'))
    assert says in why


def test_unix_socket_with_a_full_queue_is_waited_for(
    server, uuid, hide, connect, tmp_path, monkeypatch, caplog
):
    path = str(tmp_path / 'full.sock')
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(path)
        listening.listen(0)
        first.connect(path)
        near = target(f'unix:{path}')
        hide(server, near)
        until_waiting(server, uuid, 2)
        mobile = asked(connect, server, uuid)
        until_waiting(server, uuid, 2)
        listening.accept()[0].close()
        second, _ = listening.accept()
        with second:
            hello(Peer(second))
        assert mobile.answer().body == b'hello'
