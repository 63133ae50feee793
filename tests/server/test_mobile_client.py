"""A mobile client asks: section 2, on real connections."""

import gc
import json
import re
import socket
import time
import uuid as uuids
import weakref

import gevent
import pytest
from conftest import OK, Peer, code, connect_request, get, until

from rendezvous.server import dialogue
from rendezvous.server.accepted import Connection
from rendezvous.server.registry import Registration, Registry
from rendezvous.wire import addresses

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi'
REQUEST = b'GET / HTTP/1.1\r\nHost: x\r\n\r\n'  # what arrives of get(uuid)


@pytest.fixture
def waiter(register, connect, uuid):
    """Makes a mobile client that waits, since the hidden server was here a moment ago."""

    def waiter(server) -> Peer:
        register(server, uuid).close()
        until(lambda: server.rendezvous.registry.count(uuid) == 0, 'it is forgotten')
        mobile = connect(server)
        mobile.send(get(uuid))
        until(lambda: server.rendezvous.registry.wanted(), 'it waits')
        return mobile

    return waiter


def joined(hidden: Peer, mobile: Peer, octets: bytes) -> bytes:
    """What of `octets` comes out at the hidden server, up to the end of the head."""
    mobile.send(octets)
    return hidden.until(b'\r\n\r\n')


def test_challenge_is_fresh_each_time(server, connect):
    mobile, seen = connect(server), set()
    for _ in range(2):
        mobile.send(REQUEST)
        challenge = mobile.answer().fields['WWW-Authenticate']
        form = 'Digest realm="rendezvous", qop="auth, auth-int", nonce="(.+)", opaque="(.+)"'
        seen |= set(re.fullmatch(form, challenge).groups())
    assert len(seen) == 4


def test_pipelined_requests_stay_in_step(server, register, connect, uuid):
    hidden, mobile = register(server, uuid), connect(server)
    mobile.send(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc' + get(uuid))
    assert mobile.answer().status == 401
    assert hidden.until(b'\r\n\r\n') == REQUEST


def test_401_arrives_though_a_large_upload_goes_on(server, connect):
    mobile = connect(server)
    mobile.send(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n')
    for _ in range(40):
        mobile.send(b'a' * 65536)
    assert mobile.answer().status == 401


def test_unknown_and_offline_get_the_same_answer_at_once(server, connect, uuid):
    answers = []
    for each in (uuid, str(uuids.uuid4())):
        mobile = connect(server)
        mobile.send(get(each))
        answers.append(mobile.answer())
        answers[-1].fields.pop('Date')  # the seconds go on
        assert mobile.rest() == b''
    assert answers[0] == answers[1]
    assert answers[0].status == 503
    assert int(answers[0].fields['Retry-After']) > 0
    assert json.loads(answers[0].body)['error']['permanent'] is False


def test_mobile_client_waits_for_a_hidden_server_that_was_here(start, register, connect, uuid):
    server = start(rendezvous_wait=60)
    register(server, uuid).close()
    until(lambda: server.rendezvous.registry.count(uuid) == 0, 'it is forgotten')
    mobile = connect(server)
    mobile.send(get(uuid))
    until(lambda: server.rendezvous.registry.wanted(), 'the mobile client waits')
    hidden = register(server, uuid)
    assert hidden.until(b'\r\n\r\n') == REQUEST
    hidden.send(ANSWER)
    assert mobile.answer().body == b'hi'


def test_wait_ends_with_503(start, register, connect, uuid):
    server = start(rendezvous_wait=0.2)
    register(server, uuid).close()
    mobile = connect(server)
    mobile.send(get(uuid))
    began = time.monotonic()
    assert mobile.answer().status == 503
    assert time.monotonic() - began < 5


def test_mobile_clients_that_wait_are_served_in_turn(start, register, connect, uuid):
    server = start(rendezvous_wait=60)
    register(server, uuid).close()
    mobiles = []
    for number in range(5):
        mobiles.append(connect(server))
        mobiles[-1].send(get(uuid, f'/{number}'))
        until(
            lambda n=number: server.rendezvous.registry.wanted().get(uuid, 0) == n + 1,
            'it waits',
        )
    for number in range(5):
        assert register(server, uuid).until(b'\r\n').startswith(b'GET /%d ' % number)


def test_registration_that_hangs_up_as_it_is_taken_is_not_the_last_word(
    start, register, connect, uuid
):
    """One is handed over and gone before the mobile client wakes; another one comes in between."""
    server = start(rendezvous_wait=60)
    waiting = server.rendezvous.registry
    register(server, uuid).close()
    hidden = register(server, uuid)
    until(lambda: waiting.count(uuid) == 1, 'the first is forgotten')
    (living,) = waiting._registrations.pop(uuid)
    mobile = connect(server)
    mobile.send(get(uuid))
    until(lambda: waiting.wanted(), 'the mobile client waits')
    gone = Registration(uuid, 0, Connection(None, addresses.Peer('', 0)))
    waiting.add(gone)
    waiting.remove(gone)
    waiting.add(living)
    assert hidden.until(b'\r\n\r\n') == REQUEST


def test_turn_of_a_mobile_client_whose_registration_hung_up_is_not_lost(
    start, register, connect, uuid
):
    """It stays before one that came later."""
    server = start(rendezvous_wait=60)
    waiting = server.rendezvous.registry
    register(server, uuid).close()
    until(lambda: not waiting.count(uuid), 'it is forgotten')

    def wait(count: int) -> None:
        until(lambda: waiting.wanted().get(uuid, 0) == count, f'{count} wait')

    for number, target in enumerate(('/first', '/second'), 1):
        connect(server).send(get(uuid, target))
        wait(number)
    gone = Registration(uuid, 0, Connection(None, addresses.Peer('', 0)))
    waiting.add(gone)
    waiting.remove(gone)
    wait(2)
    for target in (b'/first', b'/second'):
        assert register(server, uuid).until(b'\r\n').split()[1] == target


class Name(str):
    """A UUID of which it can be told whether anybody has it still."""


def test_those_who_were_here_long_ago_are_forgotten(monkeypatch):
    monkeypatch.setattr('rendezvous.server.registry.RECENT_SECONDS', 0)
    waiting, kept = Registry(32), weakref.WeakSet()
    for number in range(1000):
        name = Name(number)
        kept.add(name)
        waiting.remove(Registration(name, 0, Connection(None, addresses.Peer('', 0))))
    gc.collect()
    assert len(kept) < 10


def test_only_so_many_mobile_clients_wait(start, register, connect, uuid, monkeypatch):
    monkeypatch.setattr('rendezvous.server.registry.MAX_MOBILE_CLIENTS', 2)
    server = start(rendezvous_wait=60)
    register(server, uuid).close()
    until(lambda: server.rendezvous.registry.count(uuid) == 0, 'it is forgotten')
    mobiles = [connect(server) for _ in range(2)]
    for mobile in mobiles:
        mobile.send(get(uuid))
    until(lambda: server.rendezvous.registry.wanted().get(uuid, 0) == 2, 'two wait')
    third = connect(server)
    third.send(get(uuid))
    assert third.answer().status == 503
    for mobile in mobiles:
        mobile.close()
    for _ in mobiles:
        register(server, uuid)


@pytest.mark.parametrize('end', [Peer.close, Peer.reset, Peer.close_notify, Peer.shut_sending])
@pytest.mark.parametrize('body', [0, 10_000])
def test_mobile_client_that_hangs_up_gives_its_turn_to_another(
    start, register, connect, uuid, monkeypatch, end, body
):
    """At once, though nobody reads what it has sent."""
    monkeypatch.setattr('rendezvous.server.registry.MAX_MOBILE_CLIENTS', 1)
    server = start(rendezvous_wait=60)
    register(server, uuid).close()
    until(lambda: server.rendezvous.registry.count(uuid) == 0, 'it is forgotten')
    gone, waiting = connect(server), server.rendezvous.registry
    gone.send(get(uuid, '/gone', 'POST', f'Content-Length: {body}') + body * b'x')
    until(lambda: waiting.wanted(), 'it waits')
    end(gone)
    if end is Peer.close_notify:  # what follows it, sooner or later
        gone.shut_sending()
    until(lambda: not waiting.wanted(), 'it waits no more')
    other = connect(server)
    other.send(get(uuid, '/other'))
    until(lambda: waiting.wanted(), 'the other one waits')
    assert register(server, uuid).until(b'\r\n').startswith(b'GET /other ')


def test_request_of_one_that_waited_does_not_come_in_the_same_read_as_the_200(
    start, waiter, connect, entries, uuid, monkeypatch
):
    """Old hidden servers lose it then."""
    monkeypatch.setattr('rendezvous.server.registry.HAND_OVER_SECONDS', 1)
    server = start(rendezvous_wait=60)
    waiter(server)
    hidden = connect(server)
    hidden.send(connect_request(uuid, code(entries, uuid)))
    assert hidden.sock.recv(65536) == OK
    assert hidden.until(b'\r\n\r\n') == REQUEST


def test_hidden_server_that_loses_nothing_gets_the_request_of_one_that_waited_at_once(
    start, waiter, connect, entries, uuid, monkeypatch
):
    """Else four registrations could serve no more than 80 requests a second."""
    monkeypatch.setattr('rendezvous.server.registry.HAND_OVER_SECONDS', 3600)
    server = start(rendezvous_wait=60)
    waiter(server)
    hidden = connect(server)
    request = connect_request(uuid, code(entries, uuid))
    hidden.send(request.removesuffix(b'\r\n') + b'Instance: 1\r\n\r\n')
    assert hidden.until(b'\r\n\r\n') == OK
    assert hidden.until(b'\r\n\r\n') == REQUEST


def test_revocation_finds_a_registration_that_is_just_handed_over(
    start, waiter, entries, register, uuid, monkeypatch
):
    monkeypatch.setattr('rendezvous.server.registry.HAND_OVER_SECONDS', 3)
    server = start(rendezvous_wait=60)
    mobile = waiter(server)
    hidden = register(server, uuid)
    entries.disable(uuid)
    assert hidden.rest() == b''
    mobile.close()


def test_mobile_client_that_waits_when_the_server_stops_is_told_to_come_again(start, waiter):
    server = start(rendezvous_wait=60)
    mobile = waiter(server)
    stopping = gevent.spawn(server.stop)
    answer = mobile.answer()
    assert (answer.status, answer.fields['Retry-After']) == (503, '5')
    mobile.close()
    stopping.get()


@pytest.mark.parametrize('method', ['GET', 'HEAD', 'POST'])
def test_plain_http_on_the_tls_port_is_sent_to_https(server, method):
    peer = Peer(socket.create_connection(('127.0.0.1', server.port)))
    peer.send(f'{method} /a?b=c HTTP/1.1\r\nHost: example.com:8899\r\n\r\n'.encode())
    answer = peer.answer(to=method)
    assert answer.status == 308
    assert answer.fields['Location'] == 'https://example.com:8899/a?b=c'
    assert peer.rest() == b''
    peer.close()


def test_plain_http_for_no_host_is_sent_nowhere(server):
    peer = Peer(socket.create_connection(('127.0.0.1', server.port)))
    peer.send(b'GET //example.com/ HTTP/1.1\r\nHost: \r\n\r\n')
    assert peer.answer().status == 400
    peer.close()


def test_one_that_pipes_counts_as_here(start, register, connect, uuid, monkeypatch):
    monkeypatch.setattr('rendezvous.server.registry.RECENT_SECONDS', 0)
    server = start(rendezvous_wait=60)
    hidden, mobile, waiter = register(server, uuid), connect(server), connect(server)
    joined(hidden, mobile, get(uuid))
    waiter.send(get(uuid))
    until(lambda: server.rendezvous.registry.wanted(), 'the second mobile client waits')
    assert register(server, uuid).until(b'\r\n\r\n') == REQUEST


def test_one_that_was_here_long_ago_is_not_waited_for(start, register, connect, uuid, monkeypatch):
    monkeypatch.setattr('rendezvous.server.registry.RECENT_SECONDS', 0)
    server = start(rendezvous_wait=60)
    register(server, uuid).close()
    until(lambda: server.rendezvous.registry.count(uuid) == 0, 'it is forgotten')
    mobile = connect(server)
    mobile.send(get(uuid))
    assert mobile.answer().status == 503


@pytest.mark.parametrize('how', ['close', 'reset'])
def test_mobile_client_that_left_while_it_waited_is_not_served(start, register, connect, uuid, how):
    server = start(rendezvous_wait=60)
    waiting = server.rendezvous.registry
    register(server, uuid).close()
    until(lambda: not waiting.count(uuid), 'it is forgotten')
    gone, other = connect(server), connect(server)
    for mobile, target in ((gone, '/gone'), (other, '/other')):
        count = waiting.wanted().get(uuid, 0)
        mobile.send(get(uuid, target, 'POST'))
        until(lambda c=count: waiting.wanted().get(uuid, 0) > c, 'it waits')
    getattr(gone, how)()
    assert register(server, uuid).until(b'\r\n\r\n').startswith(b'POST /other ')


def test_mobile_client_that_shut_its_sending_side_is_not_kept_waiting(
    start, register, connect, uuid
):
    """Nobody can tell it from one that has left."""
    server = start(rendezvous_wait=60)
    register(server, uuid).close()
    until(lambda: not server.rendezvous.registry.count(uuid), 'it is forgotten')
    mobile = connect(server)
    mobile.send(get(uuid))
    until(lambda: server.rendezvous.registry.wanted(), 'it waits')
    mobile.shut_sending()
    assert mobile.answer().status == 503
    assert not server.rendezvous.registry.wanted()


@pytest.mark.parametrize('records', [[b''], [b'and more'], [b'', b'x' * 9999, b'and more']])
def test_dead_registration_costs_the_mobile_client_nothing(
    server, register, connect, uuid, records
):
    living = register(server, uuid)
    for _ in range(3):
        register(server, uuid).vanish()
    mobile, (first, *others) = connect(server), records
    mobile.send(get(uuid, '/', 'POST') + first)
    for octets in others:  # before the server gets to read any
        mobile.send(octets)
    assert living.until(b'\r\n\r\n').startswith(b'POST / ')
    body = b''.join(records)
    assert living.receive(len(body)) == body
    living.send(ANSWER)
    assert mobile.answer().body == b'hi'


@pytest.mark.parametrize(
    'end', [Peer.shut_sending, Peer.close_notify, lambda peer: peer.send(b'x')]
)
def test_registration_that_has_ended_is_passed_over_before_anybody_noticed(
    server, register, uuid, end
):
    register(server, uuid)
    waiting = server.rendezvous.registry
    (living,) = waiting.all(uuid)
    end(register(server, uuid))
    assert waiting.count(uuid) == 2  # no yield since then
    assert waiting.claim(uuid, 0, living.sock) is living
    waiting.unclaim(living)
    until(lambda: waiting.count(uuid) == 1, 'the other one is forgotten')


def test_next_one_is_waited_for_where_the_only_one_has_just_ended(server, register, uuid):
    waiting = server.rendezvous.registry
    register(server, uuid).shut_sending()
    sock, other = socket.socketpair()
    with sock, other:
        taking = gevent.spawn(waiting.claim, uuid, 5, sock)
        gevent.sleep(0)
        assert waiting.count(uuid) == 1  # nobody has noticed
        register(server, uuid)
        waiting.unclaim(taking.get())
    assert waiting.count(uuid) == 1


def test_head_is_refused_without_a_body(server, connect, uuid):
    mobile = connect(server)
    mobile.send(get(uuid, method='HEAD'))
    line, *fields = mobile.rest().decode().split('\r\n')
    assert line == 'HTTP/1.1 503 Service Unavailable'
    assert fields[-2:] == ['', '']
    assert any(field.startswith('Content-Length: ') for field in fields)


def test_registrations_that_died_in_silence_are_not_tried_one_after_the_other(
    server, register, connect, uuid, monkeypatch
):
    """Each would take a minute: the first one that did is the last."""
    monkeypatch.setattr('rendezvous.server.connection.RETRY_SECONDS', 0)
    for _ in range(2):
        register(server, uuid).vanish()
    mobile = connect(server)
    mobile.send(get(uuid))
    assert mobile.answer().status == 503
    assert server.rendezvous.registry.count(uuid) == 1


def test_dead_registration_costs_nothing_where_nothing_drains(start, register, connect, uuid):
    server = start(drain=0)
    living = register(server, uuid)
    register(server, uuid).vanish()
    mobile = connect(server)
    mobile.send(get(uuid))
    assert living.until(b'\r\n\r\n') == REQUEST


def test_request_that_was_taken_is_not_sent_twice(server, register, connect, uuid):
    second, first = register(server, uuid), register(server, uuid)
    mobile = connect(server)
    joined(first, mobile, get(uuid, method='POST'))
    first.close()
    assert mobile.rest() == b''
    second.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        second.sock.recv(1)


def test_head_has_so_many_seconds_however_it_drips(server, connect, monkeypatch):
    monkeypatch.setattr(dialogue, 'HEAD_SECONDS', 0.2)
    mobile = connect(server)
    octets = iter(b'GET / HTTP/1.1\r\nHost: ' + b'x' * 1000)

    def drip():
        for octet in octets:
            mobile.send(bytes([octet]))
            gevent.sleep(0.01)

    dripping = gevent.spawn(drip)
    assert mobile.answer().status == 408
    dripping.kill()


def test_body_has_so_many_seconds(server, connect, monkeypatch):
    monkeypatch.setattr(dialogue, 'HEAD_SECONDS', 0.1)
    mobile = connect(server)
    mobile.send(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab')
    assert mobile.answer().status == 408


def test_idle_connection_is_closed_silently(server, connect, monkeypatch):
    monkeypatch.setattr(dialogue, 'IDLE_SECONDS', 0.1)
    assert connect(server).rest() == b''
    mobile = connect(server)
    mobile.send(REQUEST)
    assert mobile.answer().status == 401
    assert mobile.rest() == b''
