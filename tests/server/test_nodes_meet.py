"""Several nodes: a hidden server with the one, its mobile client with another one."""

import functools
import hashlib
import json
import logging
import math
import os
import random
import signal
import socket
import uuid as uuids
from contextlib import ExitStack

import gevent
import pytest
from asking import open_pipes
from conftest import OK, Peer, client_context, code, connect_request, cut_off, free_port, get, until
from faults import Relay
from programs import Folder, Outside
from three import free_ports

from rendezvous.server import membership
from rendezvous.server import nodes as server_nodes
from rendezvous.server.registry import Held, Others
from rendezvous.store import keys, questions, state
from rendezvous.wire import codes
from rendezvous.wire.http_head import Refusal
from rendezvous.wire.sockets import Socket

HELLO = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello'
SECRET = 'a secret of these tests, of 32 and more'


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    """It takes half a second to make, and is the same each time; and nodes find each other soon."""
    monkeypatch.setattr(membership, 'contexts', certificate)
    monkeypatch.setattr(server_nodes, 'LOOK_SECONDS', 0.1)


certificate = functools.cache(membership.contexts)


@pytest.fixture
def node(start, tmp_path_factory):
    """Starts workers of nodes, each on an address of its own."""
    places = {}

    def node(number: int, which: str = '1/1', **options):
        host = f'127.0.0.{number}'
        if host not in places:
            places[host] = tmp_path_factory.mktemp('node'), free_ports((host,), 4)
        place, port = places[host]
        given = {'node_host': host, 'node_port': port, 'node_secret': SECRET} | options
        path = place / which.partition('/')[0]
        return start(meeting_place=path, which=which, **{'rendezvous_wait': 30} | given)

    return node


def name_of(worker) -> str:
    return worker.rendezvous.presence.name


def until_linked(*workers) -> None:
    """Each has links to all those of other nodes."""

    def far(one):
        return {
            name_of(each) for each in workers if each.options.node_host != one.options.node_host
        }

    def has(one) -> bool:
        seconds = one.rendezvous.nodes.workers()
        return all(seconds.get(name, 9) < 9 for name in far(one))

    until(lambda: all(has(each) for each in workers), 'all have links')


@pytest.fixture
def nodes(node):
    """Two nodes of one worker each."""
    workers = [node(2), node(3)]
    until_linked(*workers)
    return workers


@pytest.fixture
def behind(node, entries, monkeypatch):
    """A node that others reach by a relay alone, if they start after it."""
    monkeypatch.setattr('rendezvous.store.presence.HEARTBEAT_SECONDS', 0.1)
    far = node(1)
    relay = Relay((far.options.node_host, far.options.node_port))
    far.rendezvous.options |= {'node_port': relay.port}
    presence = far.rendezvous.presence

    def address() -> str:
        about = entries.ask(lambda redis: redis.hget(presence.key, 'about'))
        return json.loads(about or '{}').get('address', '')

    until(lambda: address().endswith(f':{relay.port}'), 'it says so')
    yield far, relay
    relay.stop()


@pytest.fixture
def new_nodes(node):
    """Two that began only now: each hidden server may have been there a moment ago."""
    workers = [node(2, is_new=True), node(3, is_new=True)]
    until_linked(*workers)
    return workers


@pytest.fixture
def hint(entries, uuid):
    """Has Redis say of a worker how many registrations and pipes it has; None: nothing."""
    key = keys.of(keys.PLACES, uuid)

    def hint(worker, value: str) -> None:
        entries.ask(lambda redis: redis.hset(key, name_of(worker), value))

    return hint


@pytest.fixture
def hinted(register, entries):
    """Makes registrations of which Redis knows."""

    def hinted(worker, uuid: str):
        hidden, key = register(worker, uuid), keys.of(keys.PLACES, uuid)
        until(lambda: entries.ask(lambda redis: redis.hexists(key, name_of(worker))), 'it knows')
        return hidden

    return hinted


@pytest.mark.parametrize(('hidden_at', 'mobile_at'), [(0, 1), (1, 0)])
def test_mobile_client_gets_the_hidden_server_of_another_node(
    nodes, hinted, connect, uuid, hidden_at, mobile_at, caplog
):
    caplog.set_level(logging.INFO)
    hidden, mobile = hinted(nodes[hidden_at], uuid), connect(nodes[mobile_at])
    mobile.send(get(uuid, '/path', 'POST', 'Content-Length: 4') + b'body')
    head = hidden.until(b'\r\n\r\n')
    assert head == b'POST /path HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n'
    assert hidden.receive(4) == b'body'
    hidden.send(HELLO)
    assert mobile.answer().body == b'hello'
    mobile.send(b'more')
    assert hidden.receive(4) == b'more'
    hidden.close()
    assert mobile.rest() == b''
    until(lambda: 'closed after' in caplog.text, 'it is in the log')
    lines = [line for line in caplog.messages if 'rendezvous with' in line]
    assert len({line.split()[0] for line in lines}) == 1  # one search finds both nodes' lines
    ends = {line.partition(uuid)[2] for line in lines}
    assert ends == {f', on node 127.0.0.{hidden_at + 2}', ', from another node'}
    counters = [each.rendezvous.counters.crossed for each in nodes]
    assert counters == [mobile_at == 0, mobile_at == 1]


def test_answer_that_another_node_cuts_off_is_known_as_such(nodes, hinted, connect, entries, uuid):
    hidden, mobile = hinted(nodes[0], uuid), connect(nodes[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    hidden.send(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello')
    mobile.until(b'hello')
    hidden.reset()
    (kept,) = until(lambda: state.history(entries, uuid), 'it is noted')
    assert kept.how == 'hidden server or its node reset'


def test_answer_to_a_head_request_crosses(nodes, hinted, connect, uuid):
    hidden, mobile = hinted(nodes[0], uuid), connect(nodes[1])
    mobile.send(get(uuid, '/', 'HEAD'))
    hidden.until(b'\r\n\r\n')
    hidden.send(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n')
    hidden.close()
    assert mobile.answer('HEAD').status == 200
    assert mobile.rest() == b''


def test_large_bodies_cross_both_ways_at_once(nodes, hinted, connect, uuid):
    hidden, mobile = hinted(nodes[0], uuid), connect(nodes[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    blocks = [hashlib.sha256(b'%d' % number).digest() * 4096 for number in range(128)]
    octets = b''.join(blocks)  # 16 MB, of which no two blocks are the same
    sending = [gevent.spawn(peer.send, octets) for peer in (hidden, mobile)]
    came = [gevent.spawn(peer.receive, len(octets)) for peer in (hidden, mobile)]
    gevent.joinall(sending + came, timeout=60, raise_error=True)
    digests = {hashlib.sha256(each.value).hexdigest() for each in came}
    assert digests == {hashlib.sha256(octets).hexdigest()}


@pytest.mark.parametrize('end', ['reset', 'close', 'node'])
def test_answer_that_is_cut_off_looks_so_behind_a_link(nodes, hinted, connect, uuid, end):
    hidden, mobile = hinted(nodes[0], uuid), connect(nodes[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    hidden.send(b'HTTP/1.1 200 OK\r\n\r\nhalf')
    mobile.until(b'half')
    mobile.sock.suppress_ragged_eofs = False
    if end == 'close':
        hidden.close()
        assert mobile.rest() == b''
        return
    if end == 'node':
        nodes[0].rendezvous.nodes.stop()
    else:
        hidden.reset()
    with cut_off():
        mobile.rest()


def test_change_of_the_entry_ends_a_pipe_that_crosses(nodes, hinted, connect, entries, uuid):
    hidden, mobile = hinted(nodes[0], uuid), connect(nodes[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    entries.disable(uuid)
    mobile.sock.suppress_ragged_eofs = False
    with cut_off():
        mobile.rest()
    assert hidden.rest() == b''


def test_slow_reader_slows_the_writer_behind_a_link(nodes, hinted, connect, uuid):
    hidden, mobile = hinted(nodes[0], uuid), connect(nodes[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    octets = b'x' * 100 * 2**20
    sending = gevent.spawn(hidden.send, octets)
    sending.join(timeout=2)  # in which so much would have gone several times
    assert not sending.ready()
    mobile.receive(len(octets))
    sending.get(timeout=30)


def test_answer_is_delivered_to_a_client_that_has_shut_its_sending_side(
    nodes, hinted, connect, uuid
):
    hidden, mobile = hinted(nodes[0], uuid), connect(nodes[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    mobile.shut_sending()
    hidden.send(HELLO)
    hidden.close()
    assert mobile.answer().body == b'hello'


def test_own_registration_is_taken_first(nodes, hinted, connect, uuid):
    hinted(nodes[0], uuid)
    own, mobile = hinted(nodes[1], uuid), connect(nodes[1])
    mobile.send(get(uuid))
    own.until(b'\r\n\r\n')
    assert nodes[0].rendezvous.registry.count(uuid) == 1


def test_registration_of_the_own_machine_is_taken_before_that_of_another_node(
    node, hinted, connect, uuid
):
    neighbour, far, asked = node(1, '1/2'), node(2), node(1, '2/2')
    until_linked(neighbour, far, asked)
    hinted(far, uuid)
    hidden, mobile = hinted(neighbour, uuid), connect(asked)
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    assert far.rendezvous.registry.count(uuid) == 1


def test_hidden_server_that_is_nowhere_is_absent_at_once(nodes, connect, uuid):
    mobile = connect(nodes[0])
    mobile.send(get(uuid))
    assert mobile.answer().status == 503


def test_mobile_client_that_waits_gets_the_next_registration_of_another_node(
    new_nodes, register, connect, uuid
):
    first, second = new_nodes
    mobile = connect(second)
    mobile.send(get(uuid))
    until(lambda: second.rendezvous.registry.wanted(), 'it waits')
    hidden = register(first, uuid)
    hidden.until(b'\r\n\r\n')
    hidden.send(HELLO)
    assert mobile.answer().body == b'hello'


def test_mobile_client_that_leaves_while_it_waits_gets_no_registration(
    new_nodes, register, connect, uuid
):
    first, second = new_nodes
    mobile = connect(second)
    mobile.send(get(uuid))
    until(lambda: second.rendezvous.registry.wanted(), 'it waits')
    mobile.close()
    until(lambda: not second.rendezvous.registry.wanted(), 'and has left')
    until(lambda: not first.rendezvous.registry.wanted(), 'which the other node knows')
    register(first, uuid)
    assert first.rendezvous.registry.count(uuid) == 1


def test_mobile_clients_of_two_nodes_get_registrations_in_the_order_in_which_they_came(
    new_nodes, register, connect, uuid, hint
):
    first, second = new_nodes
    hint(first, '0 0')
    mobiles = []
    for number, worker in enumerate([second, first, second]):
        mobiles.append(connect(worker))
        mobiles[-1].send(get(uuid, f'/{number}'))
        until(
            lambda count=number + 1: first.rendezvous.registry.wanted() == {uuid: count},
            'it has a place in the queue of the first node',
        )
    for number, mobile in enumerate(mobiles):
        hidden = register(first, uuid)
        assert hidden.until(b'\r\n\r\n').startswith(b'GET /%d ' % number)
        hidden.send(HELLO)
        assert mobile.answer().body == b'hello'


def test_second_node_that_has_one_for_a_mobile_client_keeps_it(node, register, connect, uuid, hint):
    """Two expect the hidden server, and it comes to both."""
    workers = [node(number, is_new=True) for number in (1, 2, 3)]
    until_linked(*workers)
    asked, *others = workers
    for other in others:
        hint(other, '0 0')
    mobile = connect(asked)
    mobile.send(get(uuid))
    for other in others:
        until(lambda each=other: each.rendezvous.registry.wanted(), 'it has the question')
    heads = [gevent.spawn(register(other, uuid).until, b'\r\n\r\n') for other in others]
    gevent.joinall(heads, count=1, timeout=30)
    until(
        lambda: sum(other.rendezvous.registry.count(uuid) for other in others) == 1,
        'one waits on',
    )
    until(lambda: not any(other.rendezvous.registry.wanted() for other in others), 'no questions')
    assert sum(bool(head.value) for head in heads) == 1
    gevent.killall(heads)


def test_registration_that_comes_with_that_of_another_worker_is_not_lost(
    server, register, connect, uuid
):
    """Of two that come in the same moment one goes to the mobile client, the other waits on."""
    registry, sock = server.rendezvous.registry, connect(server).sock
    hidden = register(server, uuid)
    own, results = registry.claim(uuid, 0, sock), []

    class Expecting(Others):
        def __init__(self, uuid: str, result):
            results.append(result)

        def is_expected(self) -> bool:
            return True

    claiming = gevent.spawn(registry.claim, uuid, 30, sock, Expecting)
    until(lambda: results, 'a mobile client waits')
    near, far = socket.socketpair()
    with near, far:
        elsewhere = Held(Socket(near))
        results[0].set(elsewhere)
        registry.unclaim(own)
        assert claiming.get(timeout=30) is elsewhere
    assert registry.waiting() == [own]
    hidden.close()


def test_yes_that_comes_too_late_is_not_taken(server, connect, uuid):
    """The worker that says it would keep its registration for nobody."""
    registry, results = server.rendezvous.registry, []

    class Expecting(Others):
        def __init__(self, uuid: str, result):
            results.append(result)

        def is_expected(self) -> bool:
            return True

    with pytest.raises(Refusal):
        registry.claim(uuid, 0, connect(server).sock, Expecting)
    assert results[0].ready(), 'a Question looks at that'


@pytest.mark.parametrize('next_at', [0, 1])
def test_dead_registration_of_another_node_costs_the_mobile_client_nothing(
    new_nodes, hinted, register, connect, uuid, next_at
):
    """It has left without a word; the next one is with the one node or the other."""
    first, second = new_nodes
    hinted(first, uuid).vanish()
    mobile = connect(second)
    mobile.send(get(uuid, '/again'))
    until(lambda: second.rendezvous.registry.wanted(), 'it waits for the next one')
    hidden = register(new_nodes[next_at], uuid)
    assert hidden.until(b'\r\n\r\n').startswith(b'GET /again ')
    hidden.send(HELLO)
    assert mobile.answer().body == b'hello'


def test_request_is_not_sent_again_where_nobody_knows_what_became_of_it(
    behind, nodes, hinted, connect, uuid
):
    """The link broke behind the request."""
    far, relay = behind
    until_linked(*nodes, far)
    hidden, mobile = hinted(far, uuid), connect(nodes[0])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    hinted(nodes[1], uuid)
    for link in relay.links:
        link.cut()
    mobile.sock.suppress_ragged_eofs = False
    with cut_off():
        mobile.rest()
    assert nodes[1].rendezvous.registry.count(uuid) == 1


def test_node_that_is_split_away_is_done_without(behind, nodes, hinted, connect, uuid):
    """It says nothing: the mobile client gets the next registration on another node, and those
    that come later do not wait for it.
    """
    far, relay = behind
    until_linked(*nodes, far)
    hinted(far, uuid)
    asked, other = nodes
    hidden, mobile = hinted(far, uuid), connect(asked)
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')  # so it is the one to ask
    hidden.close()
    relay.flows.clear()
    relay.hold()
    mobile = connect(asked)
    mobile.send(get(uuid))
    until(lambda: asked.rendezvous.nodes.workers()[name_of(far)] == math.inf, 'it is silent')
    for _ in range(2):
        hidden = hinted(other, uuid)
        hidden.until(b'\r\n\r\n')
        hidden.send(HELLO)
        assert mobile.answer().body == b'hello'
        mobile = connect(asked)
        mobile.send(get(uuid))
    mobile.close()
    relay.flows.set()
    for link in relay.links:
        link.flows.set()
    until_linked(*nodes, far)
    # A question that was held may have reserved it for a moment.
    until(lambda: far.rendezvous.registry.count(uuid) == 1, 'its registration waits')


def test_hidden_server_is_told_who_asks_on_another_node(nodes, connect, entries, uuid):
    hidden, mobile = connect(nodes[0]), connect(nodes[1])
    head = connect_request(uuid, code(entries, uuid))
    hidden.send(head.replace(b'\r\n\r\n', b'\r\nProxy-Protocol: 1\r\n\r\n'))
    assert hidden.receive(len(OK)) == OK
    mobile.send(get(uuid))
    (host, port), (reached, at) = mobile.sock.getsockname(), mobile.sock.getpeername()
    assert hidden.until(b'\r\n') == f'PROXY TCP4 {host} {reached} {port} {at}\r\n'.encode()
    assert hidden.until(b'\r\n\r\n') == b'GET / HTTP/1.1\r\nHost: x\r\n\r\n'


def test_pipes_of_an_address_are_counted_where_they_cross(node, hinted, connect, uuid):
    workers = [node(number, max_pipes_per_address=1) for number in (1, 2)]
    until_linked(*workers)
    hidden, mobile = hinted(workers[0], uuid), connect(workers[1])
    hinted(workers[0], uuid)
    mobile.send(get(uuid))
    until(lambda: workers[0].rendezvous.registry.count(uuid) == 1, 'it has one')
    more = connect(workers[1])
    more.send(get(uuid))
    assert more.answer().status == 429
    hidden.close()


def test_pipe_that_crosses_is_shown_and_ended_once(nodes, hinted, connect, entries, uuid):
    hidden, mobile = hinted(nodes[0], uuid), connect(nodes[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    (pipe,) = open_pipes(entries, uuid, *nodes)
    assert pipe.worker == name_of(nodes[1])
    assert questions.end_pipe(entries, pipe.worker, pipe.id)
    mobile.sock.suppress_ragged_eofs = False
    with cut_off():
        mobile.rest()
    assert hidden.rest() == b''
    until(lambda: state.history(entries, uuid), 'it is noted')
    for worker in nodes:
        worker.rendezvous.presence.write(worker.rendezvous.registry.counts())
    assert len(state.history(entries, uuid)) == 1


@pytest.mark.deadline(120)
def test_two_hundred_mobile_clients_on_three_nodes_get_one_registration_each(
    node, register, connect, entries, two
):
    """The registrations come to nodes at random, of two hidden servers."""
    workers = [node(number, is_new=True, rendezvous_wait=60) for number in (1, 2, 3)]
    until_linked(*workers)
    heads, chance = [], random.Random(1)

    def live(worker, uuid: str) -> None:
        hidden = register(worker, uuid)
        heads.append(hidden.until(b'\r\n\r\n'))
        hidden.send(HELLO)
        hidden.close()

    def visit(number: int) -> bytes:
        mobile = connect(workers[number % 3])
        mobile.send(get(two[number % 2], f'/{number}'))
        return mobile.answer().body

    visits = [gevent.spawn(visit, number) for number in range(200)]
    until(lambda: sum(map(total, workers)) >= 100, 'many wait')
    lives = [gevent.spawn(live, chance.choice(workers), two[number % 2]) for number in range(200)]
    gevent.joinall(visits + lives, timeout=100, raise_error=True)
    assert {visit.value for visit in visits} == {b'hello'}
    assert sorted(int(head.split()[1][1:]) for head in heads) == list(range(200))


def total(worker) -> int:
    """The mobile clients that wait."""
    return sum(worker.rendezvous.registry.wanted().values())


@pytest.fixture
def outside(tmp_path_factory):
    """A Redis of the test's own."""
    with Outside(tmp_path_factory.mktemp('outside'), free_port(), 'secret') as outside:
        yield outside


@pytest.mark.parametrize('what', ['frozen', 'killed', 'flushed'])
def test_registration_on_another_node_is_met_without_redis(node, outside, connect, what):
    workers = [node(number, **outside.options) for number in (2, 3)]
    until_linked(*workers)
    asked, other = workers
    entries, uuid = other.entries, str(uuids.uuid4())
    entries.add(uuid, ['kitchen'])
    hidden = connect(other)
    hidden.send(connect_request(uuid, code(entries, uuid)))
    assert hidden.receive(len(OK)) == OK
    if what == 'flushed':
        entries.ask(lambda redis: redis.flushall())
    elif what == 'killed':
        outside.stop()
    else:
        outside.freeze()
    mobile = connect(asked)
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    hidden.send(HELLO)
    assert mobile.answer().body == b'hello'
    outside.thaw()


@pytest.fixture
def settled(monkeypatch):
    """Hints are complete as soon as they are there."""
    monkeypatch.setattr('rendezvous.server.crossing.COMPLETE_SECONDS', 0)


def until_complete(*workers) -> None:
    for worker in workers:
        presence = worker.rendezvous.presence
        until(lambda each=presence: each.complete_since < math.inf, 'it has written')


def calls(entries, *names: str) -> int:
    """How often Redis was asked these."""
    stats = entries.ask(lambda redis: redis.info('commandstats'))
    return sum(stats.get(f'cmdstat_{name}', {'calls': 0})['calls'] for name in names)


def test_uuid_that_nobody_knows_is_asked_of_redis_once_and_of_no_other_node(
    node, settled, connect, entries
):
    """The other node has begun only now, and would expect any hidden server."""
    asked, other = node(2), node(3, is_new=True)
    until_linked(asked, other)
    until_complete(asked)
    before = calls(entries, 'hgetall')
    for _ in range(3):
        mobile = connect(asked)
        mobile.send(get(str(uuids.uuid4())))
        assert mobile.answer().status == 503
    assert calls(entries, 'hgetall') - before == 3


def test_hint_that_was_right_is_used_for_a_moment(
    nodes, settled, hinted, register, connect, entries, uuid, monkeypatch
):
    """A browser loads a page by many requests; one is wrong and costs no more than a question."""
    monkeypatch.setattr('rendezvous.server.crossing.RIGHT_SECONDS', 60)
    asked, other = nodes
    until_complete(asked, other)
    hiddens = [hinted(other, uuid) for _ in range(3)]
    before = calls(entries, 'hgetall')
    for hidden in reversed(hiddens):
        mobile = connect(asked)
        mobile.send(get(uuid))
        hidden.until(b'\r\n\r\n')
    assert calls(entries, 'hgetall') - before == 1
    mobile = connect(asked)
    mobile.send(get(uuid))
    until(lambda: asked.rendezvous.registry.wanted(), 'it waits')
    hidden = register(asked, uuid)
    hidden.until(b'\r\n\r\n')


def test_server_that_is_no_node_asks_redis_for_no_place(server, connect, entries):
    before = calls(entries, 'hgetall')
    mobile = connect(server)
    mobile.send(get(str(uuids.uuid4())))
    assert mobile.answer().status == 503
    assert calls(entries, 'hgetall') == before


def test_wrong_hint_costs_nothing_and_is_taken_back(nodes, settled, connect, entries, uuid, hint):
    asked, other = nodes
    until_complete(asked, other)
    hint(other, '3 0')
    mobile = connect(asked)
    mobile.send(get(uuid))
    assert mobile.answer().status == 503
    key = keys.of(keys.PLACES, uuid)
    until(lambda: not entries.ask(lambda redis: redis.exists(key)), 'it is gone')


def test_registration_that_comes_while_a_wrong_hint_is_taken_back_keeps_its_own(
    nodes, settled, register, connect, entries, uuid, hint
):
    asked, other = nodes
    until_complete(asked, other)
    hint(other, '3 0')
    mobile = connect(asked)
    mobile.send(get(uuid))
    assert mobile.answer().status == 503
    register(other, uuid)
    key = keys.of(keys.PLACES, uuid)
    said = lambda: entries.ask(lambda redis: redis.hget(key, name_of(other)))  # noqa: E731
    until(lambda: said() == '1 0', 'it is right')
    mobile = connect(asked)
    mobile.send(get(uuid))
    until(lambda: not other.rendezvous.registry.count(uuid), 'it has a visitor')


def test_hidden_server_of_a_node_that_has_died_is_waited_for(
    nodes, settled, register, connect, entries, uuid
):
    """Redis still names the worker; the hidden server comes to another node."""
    asked, other = nodes
    until_complete(asked, other)
    place = keys.of(keys.PLACES, uuid)
    entries.ask(lambda redis: redis.hset(place, '0123456789abcdef', '1 0'))
    mobile = connect(asked)
    mobile.send(get(uuid))
    until(lambda: asked.rendezvous.registry.wanted(), 'it waits')
    hidden = register(other, uuid)
    hidden.until(b'\r\n\r\n')
    hidden.send(HELLO)
    assert mobile.answer().body == b'hello'


def test_nearest_node_is_asked_first(node, hinted, connect, uuid):
    """By the time that a link takes."""
    near, far, asked = node(1), node(2), node(3)
    until_linked(near, far, asked)
    hinted(far, uuid)
    hidden = hinted(near, uuid)
    asked.rendezvous.nodes._far[name_of(far)].seconds = 0.2
    mobile = connect(asked)
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    assert far.rendezvous.registry.count(uuid) == 1


@pytest.fixture
def programs(tmp_path, outside):
    """Three nodes as real programs of one worker each: their folders and ports."""
    with ExitStack() as stack:
        found = []
        for number in (1, 2, 3):
            more = {'node_host': f'127.0.0.{number}', 'node_port': free_port(), 'workers': 1}
            folder = Folder(tmp_path / str(number), **outside.options, **more)
            folder.pair()
            found.append(stack.enter_context(folder))
        ports = [folder.serve()[1] for folder in found]
        yield list(zip(found, ports, strict=True))


@pytest.mark.deadline(180)
@pytest.mark.parametrize('number', [signal.SIGSTOP, signal.SIGKILL])
def test_node_that_is_frozen_or_killed_costs_the_others_nothing(programs, number):
    """Its registrations and those of another node are known to Redis, as it falls."""
    (asked, asked_port), (fallen, fallen_port), (_, other_port) = programs
    entry = asked.add()
    uuid = entry['uuid'][0]

    def connect(folder: Folder, port: int) -> Peer:
        sock = socket.create_connection(('127.0.0.1', port))
        context = client_context(str(folder.path / 'registrar.crt'))
        return Peer(context.wrap_socket(sock, server_hostname='127.0.0.1'))

    def register(folder: Folder, port: int) -> Peer:
        hidden = connect(folder, port)
        hidden.send(connect_request(uuid, codes.totp(entry['authParams']).now()))
        assert hidden.receive(len(OK)) == OK
        return hidden

    waiting = [register(fallen, fallen_port) for _ in range(3)]
    waiting += [register(programs[2][0], other_port) for _ in range(3)]
    place = keys.of(keys.PLACES, uuid)
    until(lambda: asked.redis('HLEN', place) == 2, 'both nodes are hinted')
    for pid in fallen.pids():
        os.kill(pid, number)
    for hidden in waiting[:2:-1]:
        mobile = connect(asked, asked_port)
        mobile.send(get(uuid))
        with gevent.Timeout(6, AssertionError('it takes longer than 2 s, three times')):
            hidden.until(b'\r\n\r\n')
        hidden.send(HELLO)
        assert mobile.answer().body == b'hello'
        mobile.close()
    for hidden in waiting:
        hidden.close()
