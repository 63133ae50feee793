"""A TLS connection of ours and its client, without a server between them."""

import os
import socket
import ssl
from contextlib import contextmanager, suppress

import blast
import gevent
import pytest
from conftest import client_context, until

from rendezvous.wire import sockets


@pytest.fixture
def context(pair):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # the client would have to read them
    context.load_cert_chain(pair['crt_file'], pair['key_file'])
    return context


@contextmanager
def connected(pair):
    """Our end of a connection that nobody serves, and its client's; neither has said a word."""
    how = {'server_hostname': '127.0.0.1', 'do_handshake_on_connect': False}
    with (
        socket.create_server(('127.0.0.1', 0)) as listener,
        socket.create_connection(listener.getsockname()) as far,
        client_context(pair['crt_file']).wrap_socket(far, **how) as far,
        listener.accept()[0] as near,
    ):
        yield near, far


@contextmanager
def joined(context, pair):
    """The same, and both have shaken hands."""
    with connected(pair) as (raw, far):
        near = sockets.TLSSocket(context, raw)
        shake_hands(near, far)
        yield near, far


def shake_hands(near: sockets.TLSSocket, far: ssl.SSLSocket) -> None:
    gevent.joinall([gevent.spawn(each.do_handshake) for each in (near, far)], raise_error=True)


@pytest.fixture
def both_ends(context, pair):
    with joined(context, pair) as ends:
        yield ends


@pytest.fixture
def others(context, pair):
    """Of another connection."""
    with joined(context, pair) as ends:
        yield ends


def both_ways(near: sockets.TLSSocket, far: ssl.SSLSocket) -> None:
    """Octets come through as they were sent."""
    far.sendall(b'words')
    assert near.receive() == b'words'
    near.send(b'answer')
    assert far.recv(100) == b'answer'


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
def test_octets_that_were_read_before_go_first(context, pair, count):
    with connected(pair) as (raw, far):
        shaking = gevent.spawn(far.do_handshake)
        near = sockets.TLSSocket(context, raw, came=raw.recv(count))
        near.do_handshake()
        shaking.get()
        both_ways(near, far)


def test_octets_that_came_with_the_handshake_are_there_until_they_are_read(context, pair):
    """hidden.py sends its CONNECT so, and may send nothing behind it until the answer has come."""
    raw, far = socket.socketpair()
    with raw, far:
        client = sockets.TLSSocket(client_context(pair['crt_file']), far, '127.0.0.1')
        speaking = gevent.spawn(client.do_handshake, b'words')
        near = sockets.TLSSocket(context, raw)
        near.do_handshake()
        speaking.get()
        assert near.has_octets()
        assert near.receive() == b'words'
        assert not near.has_octets()


BAD_RECORD = b'\x17\x03\x03\x00\x20' + b'x' * 32


def send_raw(far: ssl.SSLSocket, octets: bytes) -> None:
    """Below TLS."""
    gevent.socket.socket.send(far, octets)  # its sendall calls the send of TLS


def test_octets_before_a_bad_record_come_all_the_same(both_ends):
    """Though OpenSSL is given both at once: an answer may be whole when its sender breaks down."""
    near, far = both_ends
    far.sendall(b'answer')
    send_raw(far, BAD_RECORD)
    until(lambda: len(near.raw.recv(1000, socket.MSG_PEEK)) > len(BAD_RECORD), 'both have come')
    assert near.receive() == b'answer'
    for _ in range(2):
        with pytest.raises(OSError, match='broken'):
            near.receive()


def test_bad_record_does_not_reach_another_connection(both_ends, others):
    """All share the memory from which OpenSSL reads: what it left there has to go."""
    near, far = both_ends
    send_raw(far, BAD_RECORD * 3)
    with pytest.raises(ssl.SSLError):
        near.receive()
    both_ways(*others)
    leaving = gevent.spawn(sockets.close_gracefully, near)
    with pytest.raises(ssl.SSLError, match=r'(?i)alert|bad record'):
        far.recv(1)
    far.close()
    leaving.get()


def test_octets_behind_a_close_notify_do_not_reach_another_connection(both_ends, others):
    near, far = both_ends
    far.sendall(b'words')
    far.settimeout(0.0)
    with pytest.raises(ssl.SSLWantReadError):
        far.unwrap()
    send_raw(far, BAD_RECORD)
    assert near.receive() == b'words'
    assert near.receive() == b''
    assert near.has_said_goodbye
    both_ways(*others)


def test_failed_handshake_does_not_reach_another_connection(context, pair, others):
    with connected(pair) as (raw, far):
        near = sockets.TLSSocket(context, raw)
        send_raw(far, b'GET / HTTP/1.1\r\n\r\n')
        with pytest.raises(ssl.SSLError):
            near.do_handshake()
        both_ways(*others)


@pytest.mark.parametrize('size', [1, 100, 16384])
def test_octets_come_whole_through_records_of_each_size(both_ends, size):
    """More records, and more octets, than OpenSSL is given at a time; and parts of records."""
    near, far = both_ends
    words = os.urandom(min(size * 2000, 2**22))

    def send() -> None:
        for start in range(0, len(words), size):
            far.sendall(words[start : start + size])
        far.close()

    sending, came = gevent.spawn(send), b''
    while octets := near.receive():
        came += octets
    assert came == words
    sending.get()


def test_records_that_come_octet_by_octet_arrive(context, pair):
    """From the handshake on."""
    raw, slow = socket.socketpair()
    fast, far = socket.socketpair()

    def drip() -> None:
        while octet := fast.recv(1):
            slow.sendall(octet)
            gevent.sleep(0)

    def answer() -> None:
        while octets := slow.recv(65536):
            fast.sendall(octets)

    how = {'server_hostname': '127.0.0.1', 'do_handshake_on_connect': False}
    with raw, slow, fast, client_context(pair['crt_file']).wrap_socket(far, **how) as far:
        passing = gevent.spawn(drip), gevent.spawn(answer)
        near = sockets.TLSSocket(context, raw)
        shake_hands(near, far)
        both_ways(near, far)
        gevent.killall(passing)


def test_what_waits_for_a_slow_reader_stays_what_it_was(both_ends):
    """A pipe sends from a buffer that the next pipe fills while the reader is slow."""
    near, far = both_ends
    buffer, much = bytearray(b'x' * 2**16), b'x' * 2**24  # more than the kernel takes
    sending = [gevent.spawn(near.send, octets) for octets in (much, memoryview(buffer))]
    gevent.sleep(0)  # both wait
    buffer[:] = b'y' * len(buffer)
    count = 0
    while count < len(much) + len(buffer):
        came = far.recv(65536)
        assert came == b'x' * len(came)
        count += len(came)
    gevent.joinall(sending, raise_error=True)


@pytest.mark.parametrize('how', ['timeout', 'kill'])
def test_record_that_was_interrupted_goes_on_before_the_next_one(both_ends, how):
    near, far = both_ends
    much = os.urandom(2**24)  # more than the kernel takes
    near.settimeout(0.05 if how == 'timeout' else None)
    sending = gevent.spawn(near.send, much)
    until(lambda: not near.is_whole, 'a part is sent')
    if how == 'kill':
        sending.kill(sockets.Ended)
    else:
        with pytest.raises(TimeoutError):
            sending.get()
    near.settimeout(None)
    going_on, came = gevent.spawn(near.send, b'last'), b''
    while len(came) < len(much) + len(b'last'):
        came += far.recv(65536)
    assert came == much + b'last'
    going_on.get()
    assert near.is_whole


def test_closed_socket_cannot_be_read(both_ends):
    """Another connection may have the number of its descriptor."""
    near, far = both_ends
    far.sendall(b'words')
    assert near.receive() == b'words'
    waiting = gevent.spawn(near.receive)  # from now on there is a watcher
    far.sendall(b'words')
    assert waiting.get() == b'words'
    near.close()
    with pytest.raises(OSError, match='descriptor'), gevent.Timeout(10):
        near.receive()


def test_peer_that_makes_us_answer_and_reads_nothing_fills_no_memory(
    context, pair, others, monkeypatch
):
    """Each KeyUpdate may ask for one of ours (RFC 8446 section 4.6.3)."""
    monkeypatch.setattr(blast, 'KEY_UPDATES', 2000)
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port = listener.getsockname()[1]
        connecting = gevent.spawn(blast.Client, port, pair['crt_file'])
        with listener.accept()[0] as raw:
            near = sockets.TLSSocket(context, raw)
            near.do_handshake()
            with connecting.get().sock as far:
                much = b'x' * 2**24  # more than the kernel takes
                busy = [gevent.spawn(near.send, much), gevent.spawn(near.receive)]
                busy.append(gevent.spawn(far.sendall, connecting.value.key_updates(1)))
                until(lambda: near._encrypted, 'it has answers to send')
                for _ in range(200):  # in each turn it may read another 32
                    both_ways(*others)
                assert len(near._encrypted) < 2 * sockets.RECORD_BYTES
                gevent.killall(busy)
