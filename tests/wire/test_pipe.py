"""The pipe and its endings: section 3, in both directions, with octets counted."""

import gc
import hashlib
import os
import re
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress

import gevent
import pytest
from conftest import (
    DEADLINE_SECONDS,
    code,
    connect_request,
    cut_off,
    get,
    until,
)

from rendezvous.wire import sockets
from rendezvous.wire.pipe import ANSWERED_SECONDS

HEAD = b'HTTP/1.1 200 OK\r\n\r\n'
MEGABYTE = os.urandom(1024 * 1024)


@pytest.fixture(params=[True, False], ids=['TLS', 'plain'])
def tls(request):
    return request.param


@pytest.fixture
def server(tls, start):
    return start() if tls else start(key_file=None)


@pytest.fixture
def joined(server, join):
    return join(server, 'POST')


def test_octets_go_both_ways_at_the_same_time(joined):
    sending = [gevent.spawn(peer.send, MEGABYTE * 4) for peer in joined]
    for peer in joined:
        assert peer.receive(len(MEGABYTE) * 4) == MEGABYTE * 4
    gevent.joinall(sending, raise_error=True)


def segments_sent(sock) -> int:
    """How many this socket has sent: `tcpi_segs_out` of Linux's struct tcp_info."""
    return struct.unpack_from('=I', sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 140), 136)[
        0
    ]


def octets_arrived(sock) -> int:
    """How many nobody has read yet, with those of TLS."""
    with suppress(BlockingIOError):
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        return len(gevent.socket.socket.recv(sock, 1000, flags))
    return 0


@pytest.mark.parametrize('direction', ['to the hidden server', 'to the mobile client'])
def test_small_messages_do_not_wait_for_company(joined, direction):
    """With Nagle's algorithm the second one comes only when the first one is acknowledged.

    The receiver, a conversation being on, delays that for 40 ms; so the second one is here first,
    unless the machine stood still for so long. Once is enough.
    """
    sender, receiver = joined if direction == 'to the mobile client' else joined[::-1]

    def second_comes_before_an_acknowledgement() -> bool:
        receiver.send(b'your turn')
        sender.receive(9)
        receiver.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        before = segments_sent(receiver.sock)
        sender.send(b'1')
        first = until(lambda: octets_arrived(receiver.sock), 'the first one is here')
        sender.send(b'2')
        until(lambda: octets_arrived(receiver.sock) > first, 'the second one is here')
        acknowledged = segments_sent(receiver.sock) > before
        assert receiver.receive(2) == b'12'
        return not acknowledged

    until(second_comes_before_an_acknowledgement, 'a second message is not held back')


def test_hidden_server_closes_and_its_last_words_arrive_whole(joined):
    """More than all buffers hold, to a mobile client that reads only afterwards."""
    hidden, mobile = joined
    words = HEAD + MEGABYTE * 16

    def answer():
        hidden.send(words)
        hidden.close()

    answering = gevent.spawn(answer)
    gevent.sleep(0.05)
    assert mobile.rest() == words
    answering.get()


def test_mobile_client_closes_and_its_last_words_arrive_whole(joined):
    hidden, mobile = joined

    def ask():
        mobile.send(MEGABYTE * 16)
        mobile.close()

    asking = gevent.spawn(ask)
    gevent.sleep(0.05)
    assert hidden.rest() == MEGABYTE * 16
    asking.get()


def test_body_framed_by_close_is_not_taken_for_cut_off(tls, joined):
    """TLS says that this was all: the client complains about an EOF without a close_notify."""
    hidden, mobile = joined
    if tls:
        mobile.sock.suppress_ragged_eofs = False
    hidden.send(HEAD + MEGABYTE)
    hidden.close()
    assert mobile.rest() == HEAD + MEGABYTE


@pytest.mark.parametrize('part', [b'', HEAD + b'half of it'])
def test_answer_that_is_cut_off_is_taken_for_cut_off(part, tls, joined):
    """TLS ends without a close_notify, and without TLS an RST says so."""
    hidden, mobile = joined
    if tls:
        mobile.sock.suppress_ragged_eofs = False
    if part:
        hidden.send(part)
        mobile.receive(len(part))
    hidden.reset()
    with cut_off() if tls else pytest.raises(ConnectionResetError):
        mobile.rest()


def test_answer_that_ends_while_the_mobile_client_sends_is_whole(tls, joined):
    hidden, mobile = joined
    if not tls:
        pytest.skip('without TLS nothing tells the one from the other')
    mobile.sock.suppress_ragged_eofs = False
    mobile.send(b'x')  # both are there before the server gets to read any
    hidden.send(HEAD + b'whole')
    hidden.close_notify()
    assert mobile.rest() == HEAD + b'whole'


def test_tls_close_notify_shuts_a_side_as_well_as_a_bare_fin(tls, joined):
    hidden, mobile = joined
    if tls:
        mobile.close_notify()
    mobile.shut_sending()
    gevent.sleep(0.05)
    hidden.send(HEAD + b'answer')
    hidden.close()
    assert mobile.rest() == HEAD + b'answer'


def test_hidden_server_hears_close_notify_too(tls, joined):
    hidden, mobile = joined
    if tls:
        hidden.sock.suppress_ragged_eofs = False
    mobile.send(b'words')
    mobile.close()
    assert hidden.rest() == b'words'


def test_mobile_client_shuts_its_sending_side_and_gets_its_answer_whole(joined):
    hidden, mobile = joined
    mobile.send(b'body')
    mobile.shut_sending()
    assert hidden.receive(4) == b'body'
    hidden.send(HEAD + MEGABYTE)
    hidden.close()
    assert mobile.rest() == HEAD + MEGABYTE


def test_answer_behind_a_shut_sending_side_may_pause_for_less_than_drain(joined):
    hidden, mobile = joined
    mobile.shut_sending()
    for _ in range(3):
        gevent.sleep(0.15)  # drain is 0.3 s here
        hidden.send(b'part')
    assert mobile.receive(12) == b'partpartpart'
    began = time.monotonic()
    assert mobile.rest() == b''
    assert 0.2 < time.monotonic() - began < 5
    assert hidden.rest() == b''


def test_answer_in_bursts_behind_a_shut_sending_side_arrives_whole(start, join):
    hidden, mobile = join(start(drain=5))
    mobile.shut_sending()
    for start_ in range(0, len(MEGABYTE), 2**18):
        hidden.send(MEGABYTE[start_ : start_ + 2**18])
        gevent.sleep(0.8)
    assert mobile.rest() == MEGABYTE


def test_hidden_server_that_owes_an_answer_has_all_of_drain(start, join):
    hidden, mobile = join(start(drain=60))
    hidden.send(b'100 continue')
    assert mobile.receive(12) == b'100 continue'
    mobile.send(b'body')
    mobile.shut_sending()
    assert hidden.receive(4) == b'body'
    gevent.sleep(1.5 * ANSWERED_SECONDS)
    hidden.send(MEGABYTE)
    assert mobile.receive(len(MEGABYTE)) == MEGABYTE
    hidden.close()


def test_visit_ends_soon_behind_its_answer_and_its_time_is_that_of_its_octets(
    start, join, monkeypatch, caplog
):
    """Nearly all clients that shut their sending side have closed; local servers keep it open."""
    caplog.set_level('INFO')
    monkeypatch.setattr('rendezvous.wire.pipe.ANSWERED_SECONDS', 3)
    hidden, mobile = join(start(drain=300))
    hidden.send(HEAD)
    assert mobile.receive(len(HEAD)) == HEAD
    mobile.close()
    assert hidden.rest() == b''
    until(lambda: 'closed after' in caplog.text, 'it is logged')
    assert float(re.search(r'closed after ([0-9.]+) s: mobile client closed', caplog.text)[1]) < 3


def test_visit_takes_up_to_the_last_octet_that_its_mobile_client_gets(joined, caplog):
    """One that reads slowly has it later; what is idle behind that is a connection, no visit."""
    caplog.set_level('INFO')
    hidden, mobile = joined
    sending = gevent.spawn(hidden.send, MEGABYTE * 16)
    gevent.sleep(1)
    assert mobile.receive(len(MEGABYTE) * 16) == MEGABYTE * 16
    sending.get()
    gevent.sleep(1.5)
    hidden.close()
    assert mobile.rest() == b''
    until(lambda: 'closed after' in caplog.text, 'it is logged')
    assert 1 <= float(re.search(r'closed after ([0-9.]+) s: ', caplog.text)[1]) < 2.4


def test_slow_reader_behind_a_shut_sending_side_is_not_taken_for_silence(joined):
    hidden, mobile = joined
    mobile.shut_sending()
    sending = gevent.spawn(hidden.send, MEGABYTE * 16)
    gevent.sleep(1)  # over three times drain
    assert mobile.receive(len(MEGABYTE) * 16) == MEGABYTE * 16
    sending.get()
    hidden.close()


def test_mobile_client_that_is_gone_ends_an_endless_answer(joined):
    hidden, mobile = joined

    def stream():
        while True:
            hidden.send(b'data: x\n\n')
            gevent.sleep(0.01)

    streaming = gevent.spawn(stream)
    mobile.receive(9)
    mobile.close()
    assert hidden.rest() == b''
    streaming.kill()


def test_endless_answer_ends_with_its_viewer(joined, monkeypatch):
    """Only an RST tells a peer that only sends to stop. We do not wait until it is silent."""
    monkeypatch.setattr(sockets, 'LINGER_SECONDS', 300)
    hidden, mobile = joined

    def stream():
        while True:
            hidden.send(b'a frame')
            gevent.sleep(0.01)

    streaming = gevent.spawn(stream)
    assert mobile.receive(7) == b'a frame'
    mobile.close()
    with pytest.raises(OSError, match=r'(?i)reset|broken pipe|eof'):
        streaming.get(timeout=DEADLINE_SECONDS)


@pytest.mark.parametrize('_', range(5))
def test_reset_that_a_write_meets_first_cuts_the_answer_off(tls, joined, _):
    """The mobile client is still sending when the hidden server is reset."""
    hidden, mobile = joined
    if tls:
        mobile.sock.suppress_ragged_eofs = False

    def send() -> None:
        while True:
            mobile.send(b'x' * 1000)
            gevent.sleep(0)

    sending = gevent.spawn(send)
    hidden.receive(1000)
    hidden.send(HEAD + b'half of it')
    mobile.receive(len(HEAD + b'half of it'))
    hidden.reset()
    with cut_off() if tls else pytest.raises(ConnectionResetError):
        mobile.rest()
        sending.get()  # without TLS the system tells either of the two
    sending.kill()


@pytest.mark.parametrize('which', ['hidden', 'mobile'])
def test_reset_on_one_side_ends_the_other(joined, which):
    hidden, mobile = joined
    leaving, staying = (hidden, mobile) if which == 'hidden' else (mobile, hidden)
    leaving.send(b'words')
    assert staying.receive(5) == b'words'
    leaving.reset()
    with suppress(ConnectionResetError):  # of an answer that was cut off, without TLS
        assert staying.rest() == b''


CHILD = """
import socket, ssl, sys, time
port, cafile, first, second = sys.argv[1:]
sock = socket.create_connection(('127.0.0.1', int(port)))
if cafile:
    context = ssl.create_default_context(cafile=cafile)
    sock = context.wrap_socket(sock, server_hostname='127.0.0.1')
sock.sendall(first.encode())
print(sock.recv(1000), flush=True)
if second:
    print(sock.recv(1000), flush=True)
    sock.sendall(second.encode())
time.sleep(60)
"""


@pytest.fixture
def child(server, tls, pair):
    """Starts a client in a process of its own; what it got is on its standard output."""
    children = []

    def child(first: bytes, second: bytes = b'') -> subprocess.Popen:
        cafile = pair['crt_file'] if tls else ''
        command = [sys.executable, '-c', CHILD, str(server.port), cafile, first, second]
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        return children[-1]

    yield child
    for each in children:
        each.kill()
        each.communicate()


def test_kill_9_of_the_hidden_server_ends_the_mobile_client(server, connect, entries, uuid, child):
    hidden = child(connect_request(uuid, code(entries, uuid)), b'words')
    assert b'200 OK' in hidden.stdout.readline()
    mobile = connect(server)
    mobile.send(get(uuid))
    assert mobile.receive(5) == b'words'
    hidden.kill()
    assert mobile.rest() == b''


def test_kill_9_of_the_mobile_client_ends_the_hidden_server(server, register, uuid, child):
    hidden = register(server, uuid)
    mobile = child(get(uuid))
    hidden.until(b'\r\n\r\n')
    hidden.send(b'words')
    assert b'words' in mobile.stdout.readline()
    mobile.kill()
    assert hidden.rest() == b''


def test_mobile_clients_that_give_up_a_download_are_no_failures(
    server, register, uuid, child, caplog
):
    """One greenlet may be blocked in writing to the socket that the other one closes."""

    def stream(peer) -> None:
        with suppress(OSError):
            peer.send(MEGABYTE * 16)

    for _ in range(5):
        hidden, mobile = register(server, uuid), child(get(uuid))
        hidden.until(b'\r\n\r\n')
        sending = gevent.spawn(stream, hidden)
        assert mobile.stdout.readline()
        gevent.sleep(0.05)  # until the buffers are full
        mobile.kill()
        with suppress(OSError):
            hidden.rest()
        sending.kill()
        hidden.close()
    until(lambda: not server.connections, 'every handler ends')
    assert 'Traceback' not in caplog.text


def test_early_answer_to_a_large_upload_arrives(joined):
    """The hidden server answers 413 and closes; the mobile client is still sending."""
    hidden, mobile = joined
    answer = b'HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'
    sent = gevent.spawn(mobile.send, MEGABYTE * 16)
    hidden.receive(1000)
    hidden.send(answer)
    hidden.shut_sending()
    assert mobile.until(b'\r\n\r\n') == answer
    sent.kill()


def test_both_ends_at_the_same_moment(server, join):
    """Whichever end is noticed first, each end's handler closes its own socket, once."""
    for end in ('close', 'reset', 'shut_sending') * 20:
        hidden, mobile = join(server)
        getattr(hidden, end)()
        getattr(mobile, end)()
    until(lambda: not server.rendezvous.registry.counts(), 'every pipe ends')


def test_stopped_reader_holds_no_more_than_the_buffers(joined):
    """... and costs the pipe beside it nothing."""
    hidden, _ = joined
    sent = 0

    def fill():
        nonlocal sent
        while True:
            sent += hidden.sock.send(MEGABYTE)

    filling = gevent.spawn(fill)
    before = -1
    while sent != before:
        before = sent
        gevent.sleep(0.2)
    assert len(MEGABYTE) < sent < 32 * len(MEGABYTE)  # the kernel's, of four sockets
    filling.kill()


def test_one_pipe_at_full_speed_lets_the_others_run(server, join):
    (hidden, mobile), (other_hidden, other_mobile) = join(server), join(server)
    sums = hashlib.sha256(), hashlib.sha256()

    def send():
        for _ in range(64):
            sums[0].update(MEGABYTE)
            hidden.send(MEGABYTE)
        hidden.close()

    def read():
        while octets := mobile.sock.recv(65536):
            sums[1].update(octets)

    streaming = [gevent.spawn(send), gevent.spawn(read)]
    waits = []
    while any(streaming):
        began = time.monotonic()
        other_mobile.send(b'ping')
        other_hidden.receive(4)
        waits.append(time.monotonic() - began)
    gevent.joinall(streaming, raise_error=True)
    assert sums[0].digest() == sums[1].digest()
    assert max(waits) < 1


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(sockets, 'USER_TIMEOUT_SECONDS', 1)
    monkeypatch.setattr(sockets, 'WATCH_SECONDS', 0.1)


def test_paused_reader_that_acknowledges_is_not_given_up(impatient, joined):
    """TCP_USER_TIMEOUT counts a closed window; the watch turns it off, and on again."""
    hidden, mobile = joined
    sending = gevent.spawn(hidden.send, MEGABYTE * 16)
    gevent.sleep(3)
    assert mobile.receive(len(MEGABYTE) * 16) == MEGABYTE * 16
    sending.get()


def test_log_tells_octets_each_way_and_how_it_ended(joined, caplog):
    caplog.set_level('INFO')
    hidden, mobile = joined
    mobile.send(b'abc')
    hidden.receive(3)
    hidden.send(b'12345')
    hidden.close()
    assert mobile.rest() == b'12345'
    until(lambda: 'closed after' in caplog.text, 'it is logged')
    asked = len(b'POST / HTTP/1.1\r\nHost: x\r\n\r\n') + 3
    assert 'hidden server closed' in caplog.text
    assert f'{asked} octets from the mobile client, 5 from' in caplog.text


def test_client_that_sends_all_before_it_reads_gets_its_refusal(server, connect):
    """Many clients do so with a large body; nginx's lingering_close is for them, too."""
    peer = connect(server)
    peer.send(b'CONNECT x:443 HTTP/1.1\r\n\r\n')
    for _ in range(80):
        peer.send(MEGABYTE)
    assert peer.answer().status == 403


def test_client_that_is_silent_after_its_refusal_is_closed(server, connect, monkeypatch):
    monkeypatch.setattr(sockets, 'LINGER_SECONDS', 0.2)
    peer = connect(server)
    peer.send(b'CONNECT x:443 HTTP/1.1\r\n\r\n')
    assert peer.answer().status == 403
    assert peer.rest() == b''
    until(lambda: not server.connections, 'its handler ends')


def test_visits_leave_nothing_for_the_garbage_collector(server, join, connect, uuid):
    """It runs once a minute: until then each visit would hold 70 KB."""

    def count() -> int:
        kinds = 'Pipe', 'Registration', 'TLSSocket'
        return sum(type(each).__name__ in kinds for each in gc.get_objects())

    gc.collect()
    before = count()
    gc.disable()
    try:
        for end in ('hidden', 'mobile', 'unanswered'):
            hidden, mobile = join(server)
            if end != 'unanswered':
                hidden.send(HEAD)
                mobile.receive(len(HEAD))
            first, second = (hidden, mobile) if end == 'hidden' else (mobile, hidden)
            first.close()
            assert second.rest() == b''
            second.close()
            until(lambda: not server.connections, 'its handlers end')
        waiter = connect(server)
        waiter.send(get(uuid))
        assert waiter.answer().status == 503
        waiter.close()
        until(lambda: not server.connections, 'its handler ends')
        assert count() == before
    finally:
        gc.enable()


def test_reset_closes_also_where_its_place_is_needed(monkeypatch):
    """It waits a moment for what was sent; when that is ended, the socket must be closed, too."""
    monkeypatch.setattr(sockets, 'is_acknowledged', lambda _: False)
    monkeypatch.setattr(sockets, 'MOMENT_SECONDS', 300)
    near, far = socket.socketpair()
    resetting = gevent.spawn(sockets.reset, near)
    gevent.sleep(0)
    resetting.kill(sockets.Ended, timeout=DEADLINE_SECONDS)
    assert near.fileno() == -1
    assert resetting.value is None  # nothing was raised
    far.close()
