"""Visits through the gateway of --forwarded, on real connections: turns, tunnels and endings."""

import hashlib
from contextlib import suppress

import gevent
import pytest
from conftest import DEADLINE_SECONDS, Peer, cut_off, get
from gevent.event import AsyncResult, Event
from hiding import HEAD_ENDS, MEGABYTE, said, until_waiting
from test_gateway import ASK, CHUNKED, SWITCH, answer, request
from test_turns import TURN_SECONDS, Turns

from rendezvous.hidden import gateway
from rendezvous.wire import addresses

VISITOR = addresses.Peer('192.0.2.7', 4711)
GARBAGE = b'no HTTP\r\n\r\n'
UPGRADE = request(*ASK)


@pytest.fixture
def joined(visit, listen):
    """The local server's end of a visit and the mobile client's; no request has come."""
    joining, over = AsyncResult(), Event()

    def handle(peer):
        joining.set(peer)
        over.wait(DEADLINE_SECONDS)

    mobile = visit(listen(handle).port)
    yield joining.get(timeout=DEADLINE_SECONDS), mobile
    over.set()


def hear(near: Peer) -> str:
    """The head of a request that comes to the local server."""
    head = near.until(HEAD_ENDS).decode()
    assert head.count('X-Forwarded-For: 192.0.2.7\r\n') == 1
    return head


HELLO = answer('Content-Length: 5', body=b'hello')


def hello(near: Peer, count: int = 1) -> None:
    for _ in range(count):
        hear(near)
        near.send(HELLO)


# Turns


def test_each_request_of_a_kept_connection_is_told_who_asks(joined):
    near, mobile = joined
    for number in range(3):
        mobile.send(request('X-Forwarded-For: 127.0.0.1', line=f'GET /{number} HTTP/1.1'))
        head = hear(near)
        assert head.startswith(f'GET /{number} HTTP/1.1\r\n')
        assert '127.0.0.1' not in head
        near.send(HELLO)
        assert mobile.answer().body == b'hello'


def test_refusal_comes_after_the_answers_before_it(joined, caplog):
    caplog.set_level('INFO')
    near, mobile = joined
    mobile.send(request() * 2 + GARBAGE)
    hear(near)
    hear(near)
    near.send(HELLO[:-2])
    assert mobile.receive(len(HELLO) - 2) == HELLO[:-2]
    near.send(HELLO[-2:] + HELLO)
    assert mobile.receive(2 + len(HELLO)) == HELLO[-2:] + HELLO
    assert mobile.answer().status == 400
    assert mobile.rest() == b''
    (line,) = said(caplog)
    assert line.startswith('refused a request of 192.0.2.7:4711: the request line is not: ')


def test_refusal_never_gets_into_the_middle_of_an_answer(joined):
    near, mobile = joined
    mobile.send(request() + GARBAGE)
    hear(near)
    near.send(HELLO[:-1])
    assert mobile.receive(len(HELLO) - 1) == HELLO[:-1]
    with cut_off():
        mobile.rest()
    assert near.rest() == b''


def test_bad_chunk_is_refused_while_its_request_has_no_answer(joined):
    near, mobile = joined
    mobile.send(CHUNKED + b'3\r\nabc\r\nx\r\n')
    hear(near)
    assert near.receive(8) == b'3\r\nabc\r\n'
    assert mobile.answer().status == 400
    assert mobile.rest() == b''
    assert near.rest() == b''


def test_bad_chunk_waits_for_the_answer_before_its_request(joined):
    near, mobile = joined
    mobile.send(request() + CHUNKED + b'x\r\n')
    hear(near)
    near.send(HELLO)
    assert mobile.answer().body == b'hello'
    assert mobile.answer().status == 400


def test_other_host_gets_a_421_after_the_answer_before_it(joined):
    near, mobile = joined
    mobile.send(request() + b'HEAD / HTTP/1.1\r\nHost: cellar.example.com\r\n\r\n')
    hello(near)
    assert mobile.answer().body == b'hello'
    assert mobile.answer(to='HEAD').status == 421
    assert mobile.rest() == b''
    assert near.rest() == b''


def test_head_that_drips_gets_a_408(joined, monkeypatch):
    monkeypatch.setattr(gateway, 'HEAD_SECONDS', 0.2)
    near, mobile = joined
    mobile.send(request())
    hello(near)
    assert mobile.answer().body == b'hello'

    def drip():
        while True:
            mobile.send(b'a')
            gevent.sleep(0.02)

    dripping = gevent.spawn(drip)
    assert mobile.answer().status == 408
    dripping.kill()


def test_pause_between_two_requests_may_last(joined, monkeypatch):
    monkeypatch.setattr(gateway, 'HEAD_SECONDS', 0)
    near, mobile = joined
    for _ in range(2):
        mobile.send(request())
        hello(near)
        assert mobile.answer().body == b'hello'


def test_requests_without_an_answer_are_not_read_without_end(joined):
    near, mobile = joined
    mobile.send(request() * (gateway.MOST_DUE + 50))
    for _ in range(gateway.MOST_DUE):
        hear(near)
    near.send(HELLO)
    assert mobile.answer().body == b'hello'
    hear(near)
    for _ in range(50):
        near.send(HELLO)
    for _ in range(49):
        hear(near)


def test_interim_answers_pass(joined):
    near, mobile = joined
    for _ in range(2):
        mobile.send(request('Expect: 100-continue', 'Content-Length: 2', line='POST / HTTP/1.1'))
        assert 'Expect: 100-continue\r\n' in hear(near)
        near.send(answer(line='HTTP/1.1 100 Continue'))
        assert mobile.answer().status == 100
        mobile.send(b'hi')
        assert near.receive(2) == b'hi'
        near.send(HELLO)
        assert mobile.answer().body == b'hello'
    mobile.send(GARBAGE)
    assert mobile.answer().status == 400


@pytest.mark.parametrize('how', ['close', 'reset'])
def test_answer_to_a_body_that_still_comes_arrives(joined, how):
    """A 413; the local server reads no more."""
    near, mobile = joined
    size = 64 * len(MEGABYTE)

    def send() -> bool:
        """Whether all was taken."""
        with suppress(OSError):
            mobile.send(request(f'Content-Length: {size}', line='POST / HTTP/1.1'))
            for _ in range(64):
                mobile.send(MEGABYTE)
            return True
        return False

    sending = gevent.spawn(send)
    hear(near)
    near.send(answer('Content-Length: 3', line='HTTP/1.1 413 Too Large', body=b'big'))
    assert mobile.answer() == (413, {'Content-Length': '3'}, b'big')
    getattr(near, how)()
    assert not sending.get(timeout=DEADLINE_SECONDS)


def test_answer_without_a_length_arrives_whole_and_ends_the_connection(joined):
    near, mobile = joined
    octets = answer() + MEGABYTE + SWITCH
    mobile.send(request())
    hear(near)
    near.send(octets[:1000])
    assert mobile.receive(1000) == octets[:1000]
    mobile.send(request() + GARBAGE)  # nobody will answer that
    near.send(octets[1000:])
    near.close()
    assert mobile.rest() == octets[1000:]


def test_answer_that_the_local_server_cuts_off_never_looks_whole(joined):
    near, mobile = joined
    mobile.send(request())
    hear(near)
    octets = answer('Content-Length: 2000000') + MEGABYTE
    near.send(octets)
    assert mobile.receive(len(octets)) == octets
    near.reset()
    with cut_off():
        mobile.rest()


def test_mobile_client_that_closes_ends_the_local_connection(joined):
    near, mobile = joined
    mobile.send(request('Content-Length: 5', line='POST / HTTP/1.1', body=b'wo'))
    mobile.close()
    hear(near)
    assert near.rest() == b'wo'


@pytest.mark.parametrize('is_chunked', [True, False])
def test_large_bodies_go_both_ways_at_once(joined, is_chunked):
    """More than all buffers hold: so a slow reader slows the writer."""
    near, mobile = joined
    octets = b'%x\r\n%s\r\n' % (len(MEGABYTE), MEGABYTE) * 16 if is_chunked else MEGABYTE * 16
    framing = 'Transfer-Encoding: chunked' if is_chunked else f'Content-Length: {len(octets)}'
    ending = b'0\r\n\r\n' if is_chunked else b''
    asking = request(framing, line='POST / HTTP/1.1', body=octets + ending)
    speaking = [gevent.spawn(mobile.send, asking)]
    hear(near)  # an answer that comes before its request is nobody's
    speaking.append(gevent.spawn(near.send, answer(framing, body=octets + ending) + HELLO))
    gevent.sleep(0.05)  # the buffers are full
    mobile.until(HEAD_ENDS)
    for peer in joined:
        assert hashlib.sha256(peer.receive(len(octets))).digest() == hashlib.sha256(octets).digest()
        assert peer.receive(len(ending)) == ending
    gevent.joinall(speaking, raise_error=True)


TINY = b'1\r\nx\r\n' * 50_000
FIELDS = [f'A{number}: b' for number in range(400)]
NEW_FIELDS = [[f'{"_" * 120}{at}-{number}: b' for number in range(480)] for at in range(20)]
LONG_FIELDS = [f'{"-" * 60_000}{number}: b' for number in range(20)]
STREAMS = {  # what the mobile client sends, what the local server sends, and what arrives
    'requests': (request(*FIELDS) * 90, b'', 90),
    'new names': (b''.join(request(*each) for each in NEW_FIELDS), b'', len(NEW_FIELDS)),
    'long names': (b''.join(request(each) for each in LONG_FIELDS), b'', len(LONG_FIELDS)),
    'chunks': (CHUNKED + TINY, b'', len(TINY)),
    'chunks of an answer': (request(), answer('Transfer-Encoding: chunked') + TINY, len(TINY)),
}


@pytest.mark.parametrize('stream', STREAMS)
def test_no_stream_keeps_the_hub(joined, stream):
    (near, mobile), (sent, answered, size) = joined, STREAMS[stream]
    with Turns() as turns:
        speaking = [gevent.spawn(mobile.send, sent)]
        near.until(HEAD_ENDS)  # an answer that comes before its request is nobody's
        speaking.append(gevent.spawn(near.send, answered))
        if not stream.startswith('chunks'):
            for _ in range(size - 1):
                near.until(HEAD_ENDS)
        elif answered:
            mobile.until(HEAD_ENDS)
            mobile.receive(size)
        else:
            near.receive(size)
    gevent.joinall(speaking, raise_error=True)
    assert turns.longest < TURN_SECONDS


# Tunnels


def upgraded(near: Peer) -> None:
    head = hear(near)
    assert 'Upgrade: websocket\r\n' in head
    assert 'Connection: upgrade\r\n' in head


def test_websocket_on_a_kept_connection(joined):
    near, mobile = joined
    mobile.send(request())
    hello(near)
    assert mobile.answer().body == b'hello'
    mobile.send(UPGRADE)
    upgraded(near)
    near.send(SWITCH + b'\x81\x02hi')
    assert mobile.receive(len(SWITCH) + 4) == SWITCH + b'\x81\x02hi'
    for octets in (b'\x81\x02ho', GARBAGE, UPGRADE, CHUNKED):
        mobile.send(octets)
        assert near.receive(len(octets)) == octets
        near.send(octets)
        assert mobile.receive(len(octets)) == octets
    near.close()
    assert mobile.rest() == b''


def test_tunnel_is_as_fast_as_a_pipe_and_whole(joined):
    near, mobile = joined
    mobile.send(UPGRADE)
    upgraded(near)
    near.send(SWITCH)
    assert mobile.receive(len(SWITCH)) == SWITCH
    speaking = [gevent.spawn(peer.send, MEGABYTE * 8) for peer in joined]
    for peer in joined:
        assert peer.receive(len(MEGABYTE) * 8) == MEGABYTE * 8
    gevent.joinall(speaking, raise_error=True)


def test_refused_upgrade_is_http_again(joined):
    near, mobile = joined
    behind = request('X-Real-IP: 127.0.0.1', line='GET /behind HTTP/1.1')
    mobile.send(UPGRADE + behind)
    upgraded(near)
    near.send(HELLO)
    assert mobile.answer().body == b'hello'
    assert 'Real' not in hear(near)
    near.send(HELLO)
    assert mobile.answer().body == b'hello'
    mobile.send(GARBAGE)
    assert mobile.answer().status == 400


def test_what_comes_early_waits_for_the_101(joined):
    near, mobile = joined
    mobile.send(UPGRADE + b'early')
    upgraded(near)
    near.send(answer(line='HTTP/1.1 103 Early Hints') + SWITCH)
    mobile.receive(len(answer(line='HTTP/1.1 103 Early Hints') + SWITCH))
    assert near.receive(5) == b'early'


def test_what_comes_early_does_not_wait_for_ever(joined, monkeypatch):
    monkeypatch.setattr(gateway, 'DUE_SECONDS', 0.1)
    near, mobile = joined
    mobile.send(UPGRADE + b'early')
    upgraded(near)
    assert near.rest() == b''
    with cut_off():
        mobile.rest()


@pytest.mark.parametrize('framing', ['length', 'chunks'])
def test_look_alike_of_a_101_in_a_body_opens_no_tunnel(joined, framing):
    near, mobile = joined
    smuggled = request('X-Forwarded-For: 127.0.0.1', line='GET /smuggled HTTP/1.1')
    mobile.send(request(line='GET /file HTTP/1.1') + UPGRADE + smuggled)
    hear(near)
    upgraded(near)
    file = {
        'length': answer(f'Content-Length: {len(SWITCH)}', body=SWITCH),
        'chunks': answer('Transfer-Encoding: chunked', body=b'%x\r\n' % len(SWITCH) + SWITCH),
    }[framing]
    near.send(file)
    assert mobile.receive(len(file)) == file
    if framing == 'chunks':
        near.send(b'\r\n0\r\n\r\n')
    near.send(HELLO)  # the Upgrade is refused
    assert 'GET /smuggled' in hear(near)


def test_look_alike_of_a_101_behind_a_head_opens_no_tunnel(joined):
    near, mobile = joined
    mobile.send(request(line='HEAD /file HTTP/1.1') + UPGRADE)
    hear(near)
    assert 'pgrade' not in hear(near)
    near.send(answer(f'Content-Length: {len(SWITCH)}', body=SWITCH))  # as waitress and cheroot do
    mobile.until(HEAD_ENDS)
    assert mobile.receive(len(SWITCH)) == SWITCH
    mobile.send(request('X-Forwarded-For: 127.0.0.1', line='GET /smuggled HTTP/1.1'))
    mobile.close()
    assert near.rest() == b''


def test_101_without_an_upgrade_opens_no_tunnel(joined):
    near, mobile = joined
    mobile.send(request('Upgrade: h2c', 'Connection: Upgrade, HTTP2-Settings'))
    assert 'pgrade' not in hear(near)
    near.send(SWITCH)
    assert mobile.receive(len(SWITCH)) == SWITCH
    mobile.send(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')
    mobile.close()
    assert near.rest() == b''


# The program


def test_program_forwards_where_it_is_told_to(server, uuid, run_hidden, listen, connect):
    heads = []

    def handle(peer):
        while True:
            heads.append(peer.until(HEAD_ENDS).decode())
            peer.send(HELLO)

    run_hidden(server, listen(handle), '--host', 'localhost:8000')
    until_waiting(server, uuid, 4)
    mobile = connect(server)
    for _ in range(2):
        mobile.send(get(uuid))
        assert mobile.answer().body == b'hello'
    mobile.send(GARBAGE)
    assert mobile.answer().status == 400
    assert heads[0] == heads[1]
    assert 'Host: localhost:8000\r\n' in heads[0]
    assert 'X-Forwarded-Proto: https\r\n' in heads[0]
    assert 'Authorization' not in heads[0]


@pytest.mark.parametrize('host', ['http://kitchen', 'a\r\nb'])
def test_host_that_is_none_is_a_mistake(server, run_hidden, host):
    program = run_hidden(server, None, '--host', host)
    assert program.process.wait(timeout=DEADLINE_SECONDS) != 0
    assert program.said().startswith(f'hidden.py: --host {host!r} is not NAME or NAME:PORT')
