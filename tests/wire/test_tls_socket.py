"""A TLS connection of ours and its client, without a server between them."""

import socket
import ssl
from contextlib import suppress

import gevent
import pytest
from conftest import client_context

from rendezvous.wire import sockets


@pytest.fixture
def context(pair):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # the client would have to read them
    context.load_cert_chain(pair['crt_file'], pair['key_file'])
    return context


@pytest.fixture
def connection(pair):
    """Our end of a connection that nobody serves, and its client's; neither has said a word."""
    how = {'server_hostname': '127.0.0.1', 'do_handshake_on_connect': False}
    with (
        socket.create_server(('127.0.0.1', 0)) as listener,
        socket.create_connection(listener.getsockname()) as far,
        client_context(pair['crt_file']).wrap_socket(far, **how) as far,
        listener.accept()[0] as near,
    ):
        yield near, far


def shake_hands(near: sockets.TLSSocket, far: ssl.SSLSocket) -> None:
    gevent.joinall([gevent.spawn(each.do_handshake) for each in (near, far)], raise_error=True)


@pytest.fixture
def both_ends(context, connection):
    near, far = connection
    near = sockets.TLSSocket(context, near)
    shake_hands(near, far)
    return near, far


def test_whole_answer_into_a_full_buffer_gets_its_close_notify(both_ends):
    """As soon as there is room for it: the buffer is filled below TLS, and read off there."""
    near, far = both_ends
    far.suppress_ragged_eofs = False
    near.settimeout(0.0)
    filled, before = 0, -1
    while filled > before:  # the kernel moves some of it on meanwhile
        before = filled
        gevent.sleep(0.02)
        with suppress(BlockingIOError):
            while True:
                filled += near.raw.send(b'x' * 65536)
    near.settimeout(None)
    leaving = gevent.spawn(sockets.close_gracefully, near)
    gevent.sleep(0.02)  # it is at it
    while filled:
        filled -= len(gevent.socket.socket.recv(far, filled))
    assert far.recv(1) == b''  # or it raises
    far.close()
    leaving.get()


@pytest.mark.parametrize('count', [1, 5, 100, 16384])
def test_octets_that_were_read_before_go_first(context, connection, count):
    raw, far = connection
    shaking = gevent.spawn(far.do_handshake)
    near = sockets.TLSSocket(context, raw, came=raw.recv(count))
    near.do_handshake()
    shaking.get()
    far.sendall(b'words')
    assert near.recv(100) == b'words'
    near.send(b'answer')
    assert far.recv(100) == b'answer'
