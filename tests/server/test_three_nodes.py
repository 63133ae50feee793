"""Three nodes under faults: whom they hit is told, everybody else is served, by whichever node."""

import os
import re
import signal
import time
from collections import Counter
from contextlib import contextmanager

import gevent
import pytest
from checked import Mobile, Origin, Outcome, Request, ask, numbers
from conftest import until
from gevent.pool import Pool
from programs import Outside
from three import Node, Three, frozen

from rendezvous.store import keys

LARGE_BYTES = 4_000_000
ELSEWHERE_SECONDS = 6  # three times what it may take until a mobile client is served elsewhere
CLIENTS = 6


def answer(text: str) -> bytes:
    return f'HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}'.encode()


def until_known(three: Three, uuid: str, *waiting: tuple[Node, int]) -> None:
    """So many registrations wait on these nodes, by Redis, and none elsewhere."""
    expected = {node.host: count for node, count in waiting}
    until(lambda: three.hints(uuid) == expected, f'registrations wait: {expected}')


def crossed(node: Node, uuid: str) -> Counter[str]:
    """From which other nodes mobile clients there have got that hidden server, by its log."""
    return Counter(re.findall(rf'rendezvous with {uuid}, on node (\S+)', node.log()))


def good(outcome: Outcome, seconds: float = ELSEWHERE_SECONDS) -> bool:
    return outcome.saw == 'good' and outcome.ended - outcome.began < seconds


class Load:
    """Mobile clients that ask without a pause, on new connections and on kept ones."""

    def __init__(self, nodes: list[Node], uuids: list[str]):
        self._over = False
        self.outcomes: list[tuple[Node, Outcome]] = []
        turns = [(nodes[each % len(nodes)], uuids[each % len(uuids)]) for each in range(CLIENTS)]
        self._greenlets = [gevent.spawn(self._ask, *turn, each) for each, turn in enumerate(turns)]

    def _ask(self, node: Node, uuid: str, number: int) -> None:
        while not self._over:
            mobile, saw = Mobile(node, uuid, seconds=30), 'good'
            for _ in range(1 + number % 3):
                if saw == 'good':
                    up, down = (3000, 300_000) if number % 2 else (300_000, 1000)
                    outcome = mobile.ask(Request(f'r{next(numbers)}', up, down))
                    self.outcomes.append((node, outcome))
                    saw = outcome.saw
            mobile.close()
            gevent.sleep(0.02)

    def until_more(self, count: int = 3 * CLIENTS) -> None:
        enough = len(self.outcomes) + count
        until(lambda: len(self.outcomes) >= enough, f'{count} more requests')

    def stop(self) -> list[tuple[Node, Outcome]]:
        """Those that failed; all requests come to an end."""
        self._over = True
        gevent.joinall(self._greenlets, raise_error=True)
        assert not [each for _, each in self.outcomes if each.saw.startswith('WRONG')]
        return [(node, each) for node, each in self.outcomes if each.saw != 'good']


@pytest.mark.deadline(120)
def test_every_pairing_inside_and_across(three):
    """A hidden server on each of the nodes, a mobile client on each: small and large, both ways."""
    for holder in three.nodes:
        uuid, origin = three.add(), Origin()
        hiding = three.hide(uuid, origin, holder.host)
        until_known(three, uuid, (holder, 4))
        for node in three.nodes:
            mobile = Mobile(node, uuid)
            for up, down in ((10, 1000), (LARGE_BYTES, LARGE_BYTES)):
                assert mobile.ask(Request(f'r{next(numbers)}', up, down)).saw == 'good'
            mobile.close()
            if node is holder:
                assert not crossed(node, uuid)
            else:  # the log is written a moment later
                until(lambda n=node, u=uuid: crossed(n, u), 'it is in the log')
                assert crossed(node, uuid) == {holder.host: 1}
        assert not origin.wrong
        assert hiding.end() == 0


@pytest.mark.deadline(120)
def test_200_mobile_clients_get_200_registrations_of_the_other_nodes(three):
    """Of four hidden servers; each head comes to exactly one registration, and of the right one."""
    uuids = [three.add() for _ in range(4)]  # for one alone no more than a hundred may wait
    for uuid in uuids:
        three.register(three.nodes[0], uuid).close()
        state = keys.of(keys.STATE, uuid)
        until(lambda key=state: three.entries.ask(lambda r: r.exists(key)), 'it is expected')
    asking = Pool(None)

    def visit(number: int) -> str:
        mobile = three.ask(three.nodes[number % 3], uuids[number % 4], f'/{number}')
        text = mobile.answer().body.decode()
        mobile.close()
        return text

    def live(number: int) -> int:
        hidden = three.register(three.nodes[(number + 1) % 3], uuids[number % 4])
        target = hidden.until(b'\r\n\r\n').decode().split()[1]
        hidden.send(answer(f'{target} {number % 4}'))
        assert hidden.rest() == b''  # and no second one
        return int(target[1:])

    visits = [asking.spawn(visit, number) for number in range(200)]
    gevent.sleep(0)
    lives = [asking.spawn(live, number) for number in range(200)]
    gevent.joinall([*visits, *lives], timeout=100, raise_error=True)
    assert [each.value for each in visits] == [f'/{number} {number % 4}' for number in range(200)]
    assert sorted(each.value for each in lives) == list(range(200))


@pytest.mark.deadline(120)
def test_killed_node_takes_only_its_own_pipes_with_it(three):
    """Its hidden servers are found where they register next, and Redis has nothing of it."""
    killed, *others = three.nodes
    uuids, origins = [three.add() for _ in range(2)], [Origin(), Origin()]
    for uuid, origin in zip(uuids, origins, strict=True):
        three.hide(uuid, origin)
    load = Load(three.nodes, uuids)
    load.until_more()
    killed.kill()
    at = time.monotonic()
    for node in others:
        for uuid in uuids:
            assert good(ask(node, uuid, seconds=30))
    load.until_more()
    bad = load.stop()
    held = ' '.join(node.log() for node in others)
    for node, outcome in bad:
        was_held_there = re.search(
            rf':{outcome.port} rendezvous with \S+, on node {killed.host}\n', held
        )
        assert node is killed or (was_held_there and outcome.began < at), outcome
    until(lambda: not three.left_in_redis(), 'nothing is left in Redis', 50)
    killed.serve()
    three.until_all_serve()
    assert not any(origin.wrong for origin in origins)


@pytest.mark.parametrize('what', ['worker', 'node'])
def test_frozen_holder_costs_a_mobile_client_two_seconds_at_most(three, what):
    """Both others have a registration; the next mobile clients do not pay again."""
    holder, other, asked = three.nodes
    uuid = three.add()
    hiding = [three.hide(uuid, Origin(), node.host) for node in (holder, other)]
    until_known(three, uuid, (holder, 4), (other, 4))
    with frozen(*(holder.pids() if what == 'node' else holder.workers()[:1])):
        outcomes = [ask(asked, uuid, seconds=30) for _ in range(8)]
    took = [outcome.ended - outcome.began for outcome in outcomes]
    assert all(map(good, outcomes)), took
    assert sorted(took)[-3] < 1, took
    assert [each.end() for each in hiding] == [0, 0]


def test_mobile_client_of_a_frozen_holder_gets_what_registers_elsewhere(three):
    """All its registrations are there; it waits for the next one, which another node has."""
    holder, other, asked = three.nodes
    uuid = three.add()
    hidden = [three.register(holder, uuid) for _ in range(2)]
    until_known(three, uuid, (holder, 2))
    with frozen(*holder.pids()):
        mobile = three.ask(asked, uuid, '/first')
        later = three.register(other, uuid)
        began = time.monotonic()
        assert later.until(b'\r\n\r\n').startswith(b'GET /first ')
        assert time.monotonic() - began < ELSEWHERE_SECONDS
        later.send(answer('there'))
        assert mobile.answer().body == b'there'
    for peer in (*hidden, mobile, later):
        peer.close()


@pytest.mark.deadline(120)
def test_new_version_of_a_node_costs_no_request(three):
    renewed = three.nodes[1]
    uuids = [three.add() for _ in range(2)]
    for uuid in uuids:
        three.hide(uuid, Origin())
    load, before = Load(three.nodes, uuids), renewed.workers()
    load.until_more()
    os.kill(renewed.parent, signal.SIGUSR2)
    until(lambda: not {*before} & {*renewed.workers()}, 'the old workers have ended', 60)
    load.until_more()
    assert load.stop() == []


# The network between them


def test_split_costs_a_mobile_client_two_seconds_at_most(three, networks):
    """Both see Redis, which names the one that cannot be reached, too."""
    holder, other, asked = three.nodes
    uuid = three.add()
    hiding = [three.hide(uuid, Origin(), node.host) for node in (holder, other)]
    until_known(three, uuid, (holder, 4), (other, 4))
    networks.split(holder.host, asked.host)
    outcomes = [ask(asked, uuid, seconds=30) for _ in range(8)]
    networks.mend(holder.host, asked.host)
    took = [outcome.ended - outcome.began for outcome in outcomes]
    assert all(map(good, outcomes)), took
    assert sorted(took)[-3] < 1, took
    assert [each.end() for each in hiding] == [0, 0]


def test_behind_a_split_is_served_what_registers_elsewhere(three, networks):
    holder, other, asked = three.nodes
    uuid = three.add()
    hidden = three.register(holder, uuid)
    until_known(three, uuid, (holder, 1))
    networks.split(holder.host, asked.host)
    mobile = three.ask(asked, uuid, '/first')
    later = three.register(other, uuid)
    assert later.until(b'\r\n\r\n').startswith(b'GET /first ')
    networks.mend(holder.host, asked.host)
    later.send(answer('there'))
    assert mobile.answer().body == b'there'
    until_known(three, uuid, (holder, 1))  # nobody has it
    for peer in (hidden, mobile, later):
        peer.close()


def test_pipe_that_crosses_outlives_a_split(three, networks):
    holder, _, asked = three.nodes
    uuid, origin = three.add(), Origin()
    hiding = three.hide(uuid, origin, holder.host)
    until_known(three, uuid, (holder, 4))
    origin.flows.clear()
    visit = gevent.spawn(ask, asked, uuid, 1000, LARGE_BYTES)
    until(lambda: origin.open, 'it is under way')
    networks.split(holder.host, asked.host)
    origin.flows.set()
    visit.join(timeout=2)  # in which all would have come
    assert not visit.ready()
    networks.mend(holder.host, asked.host)
    assert visit.get().saw == 'good'
    assert hiding.end() == 0


# Redis


@pytest.mark.parametrize('what', ['killed', 'frozen'])
def test_nodes_meet_without_redis(three, what):
    """All that waits is met; what has been remembered for long enough cannot register anew."""
    holder, other, asked = three.nodes
    uuid = three.add()
    hiding = three.hide(uuid, Origin(), holder.host)
    until_known(three, uuid, (holder, 4))
    three.until_linked()  # by Redis they learn of each other
    with frozen(three.redis.process.pid) if what == 'frozen' else killed(three.redis):
        outcomes = [ask(node, uuid, seconds=30) for node in (other, asked) for _ in 'ab']
    assert all(map(good, outcomes)), outcomes
    three.until_all_serve()
    until_known(three, uuid, (holder, 4))
    assert good(ask(asked, uuid))
    assert hiding.end() == 0


@contextmanager
def killed(redis: Outside):
    redis.stop()
    try:
        yield
    finally:
        redis.start()


def test_redis_that_has_lost_everything_but_the_entries_costs_no_request(three):
    uuids = [three.add() for _ in range(2)]
    for uuid, node in zip(uuids, three.nodes, strict=False):
        three.hide(uuid, Origin(), node.host)
        until_known(three, uuid, (node, 4))
    load = Load(three.nodes, uuids)
    load.until_more()

    def flush(redis) -> None:
        kept = redis.mget(uuids)
        with redis.pipeline(transaction=True) as commands:
            commands.flushall().mset(dict(zip(uuids, kept, strict=True))).execute()

    for _ in range(3):
        three.entries.ask(flush)
        load.until_more()
    assert load.stop() == []
    three.until_all_serve()
    for uuid, node in zip(uuids, three.nodes, strict=False):
        until_known(three, uuid, (node, 4))


@pytest.mark.deadline(120)
def test_fail_over_of_redis_costs_no_request(sentinels, tmp_path):
    """The primary is killed; the Sentinels promote its replica."""
    with Three(tmp_path, sentinels.options) as three:
        uuid = three.add()
        hiding = three.hide(uuid, Origin())
        load = Load(three.nodes, [uuid])
        load.until_more()
        before = sentinels.primary()
        next(node for node in sentinels.nodes if node.port == before).kill()
        load.until_more()
        sentinels.until_moved(before)
        load.until_more()
        assert load.stop() == []
        three.until_all_serve()
        hiding.end()
        three.hide(uuid, Origin())  # which Redis has to admit
        assert all(good(ask(node, uuid)) for node in three.nodes)
