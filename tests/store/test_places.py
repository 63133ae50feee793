"""Who has a hidden server, as Redis says it: it is never left there, and never missing for long."""

import math
import time
import uuid as uuids
from functools import partial

import gevent
import pytest
from conftest import until
from told import ADDRESS, WRONG, everywhere, keys_of, working

from rendezvous.store import batches, keys, presence, scripts, state, upkeep
from rendezvous.store.entries import Entries, StoreDown, scan
from rendezvous.store.options import DEFAULTS
from rendezvous.store.state import OFFLINE, ONLINE, Hour


@pytest.fixture(params=['redis', 'cluster'])
def entries(request, redis_options):
    is_cluster = request.param == 'cluster'
    options = request.getfixturevalue('redis_cluster') if is_cluster else redis_options
    entries = Entries(DEFAULTS | options)
    everywhere(entries, 'FLUSHALL')
    yield entries
    everywhere(entries, 'FLUSHALL')
    entries.close()


@pytest.fixture
def at_once(monkeypatch):
    """Each batch is as after a long time, and a worker that does not listen is dead."""
    for name in ('PATIENCE_SECONDS', 'HEARTBEAT_SECONDS', 'OUTAGE_SECONDS', 'MISSED_SECONDS'):
        monkeypatch.setattr(presence, name, 0)


@pytest.fixture
def work(entries):
    with working(entries) as work:
        yield work


def places(entries, uuid: str) -> dict[str, str]:
    return entries.ask(lambda redis: redis.hgetall(keys.of(keys.PLACES, uuid)))


def listed(entries, worker) -> set[str]:
    """The UUIDs in the hash of a worker."""
    fields = entries.ask(lambda redis: redis.hkeys(keys.live(worker.name)))
    return {*fields} - {state.ABOUT}


def states(entries, uuid: str) -> list[str]:
    (changes, _) = state.past(entries, [uuid], 0, 0)[uuid]
    return [each.state for each in changes]


def later(monkeypatch) -> None:
    """A hidden server that has left is not expected any more."""
    then = time.monotonic() + presence.PATIENCE_SECONDS + 1
    monkeypatch.setattr(time, 'monotonic', lambda: then)


def test_place_that_a_full_redis_does_not_take_is_written_later(entries, uuid, work):
    first, second = work(), work()
    first.write(uuid)

    def limit(octets: int, redis) -> None:
        there = {'target_nodes': redis.get_node_from_key(uuid)} if entries.is_cluster else {}
        redis.config_set('maxmemory', octets, **there)

    entries.ask(partial(limit, 1))
    try:
        with pytest.raises(StoreDown):
            second.presence.write({uuid: (2, 0)})
    finally:
        entries.ask(partial(limit, 0))
    second.presence.write({uuid: (2, 0)})
    assert places(entries, uuid)[second.name] == '2 0'


def test_hidden_server_that_comes_while_a_batch_is_written_has_not_left(
    entries, uuid, work, monkeypatch
):
    worker, has_lost = work(), batches.has_lost
    worker.write()

    def comes(*arguments) -> bool:  # Redis is asked before the batch is made
        worker.presence.note_online(uuid, ADDRESS)
        return has_lost(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(batches, 'has_lost', comes)
        worker.write()
    worker.write(uuid)
    assert states(entries, uuid) == [ONLINE]


def test_worker_that_was_left_is_known_while_it_is_expected_back(entries, uuid, work, monkeypatch):
    worker = work()
    worker.presence.note_online(uuid, ADDRESS)
    worker.presence.write({uuid: (3, 1)})
    assert (places(entries, uuid), listed(entries, worker)) == ({worker.name: '3 1'}, {uuid})
    worker.write()
    assert (places(entries, uuid), listed(entries, worker)) == ({worker.name: '0 0'}, {uuid})
    worker.write(uuid)
    assert places(entries, uuid) == {worker.name: '1 0'}
    worker.write()
    later(monkeypatch)
    worker.write()
    assert (places(entries, uuid), listed(entries, worker)) == ({}, set())
    assert states(entries, uuid) == [ONLINE, OFFLINE]


@pytest.mark.parametrize('how', ['stops', 'is killed'])
def test_nothing_is_left_of_workers_that_are_gone(entries, uuid, work, at_once, how):
    last, other = work(), str(uuids.uuid4())  # one of an entry that does not exist any more
    first = work()
    for worker in (first, last):
        worker.online(uuid, other)
    for worker in (first, last):
        worker.presence.stop() if how == 'stops' else worker.kill()
    new = work()
    for _ in range(2):
        new.write()
        new.presence._look_around()
        new.write()
    assert places(entries, uuid) == places(entries, other) == {}
    assert keys_of(entries, other) == set()
    assert entries.ask(lambda redis: scan(redis, 'live:*')) == {new.presence.key}
    assert entries.ask(lambda redis: redis.zrange(keys.SERVERS, 0, -1)) == [new.name]
    assert states(entries, uuid) == [ONLINE, OFFLINE]


def test_who_buries_and_ends_in_the_midst_leaves_it_to_others(entries, uuid, work, at_once):
    here, there = work(), work()
    here.online(uuid)
    there.write()
    here.kill()
    entries.ask(lambda redis: redis.delete(keys.of(keys.PLACES, uuid), here.presence.key))
    there.presence._look_around()
    assert entries.ask(lambda redis: redis.zrange(keys.SERVERS, 0, -1)) == [there.name]


@pytest.mark.parametrize('count', [1, 300])
def test_places_are_there_again_soon_after_a_flush(entries, work, monkeypatch, count):
    """Those of entries that are not there again, too; and nothing has to change for it."""
    monkeypatch.setattr(presence, 'HEARTBEAT_SECONDS', 1000)
    worker, made = work(), [str(uuids.uuid4()) for _ in range(count)]
    running = gevent.spawn(worker.presence.run, lambda: dict.fromkeys(made, (1, 0)))
    until(lambda: all(places(entries, each) for each in made), 'they are written')
    until(lambda: worker.presence.complete_since < math.inf, 'it knows of that')
    since = worker.presence.complete_since
    everywhere(entries, 'FLUSHALL')
    until(lambda: all(places(entries, each) for each in made), 'they are written again')
    assert listed(entries, worker) == {*made}
    until(lambda: since < worker.presence.complete_since < math.inf, 'it knows of that')
    running.kill()


def test_who_comes_after_a_quiet_time_is_told_at_once(entries, work, monkeypatch):
    """And who comes next, not before the usual time is over."""
    monkeypatch.setattr(presence, 'WRITE_SECONDS', 2)
    worker, (first, second) = work(), (str(uuids.uuid4()) for _ in range(2))
    counts: presence.Counts = {}
    looked: list[float] = []
    monkeypatch.setattr(worker.presence, '_look_around', lambda: looked.append(time.monotonic()))

    def come(uuid: str) -> None:
        counts[uuid] = (1, 0)
        worker.presence.note_online(uuid, ADDRESS)
        until(lambda: places(entries, uuid), 'it is known')

    running = gevent.spawn(worker.presence.run, lambda: dict(counts))
    until(lambda: len(looked) == 2, 'nothing was new')
    come(first)
    come(second)
    until(lambda: len(looked) == 4, 'that is over')
    assert looked[2] - looked[1] < 2 <= looked[3] - looked[2]
    running.kill()


def test_what_was_written_last_and_got_lost_is_written_again(entries, uuid, work):
    """As by a primary that was killed before its replica had it."""
    worker, others = work(), [str(uuids.uuid4()) for _ in range(20)]
    worker.online(*others)
    before = entries.ask(lambda redis: redis.get(keys.batch(worker.name)))
    worker.online(*others, uuid)

    def lose(redis) -> None:
        redis.hdel(keys.of(keys.PLACES, uuid), worker.name)
        redis.hdel(worker.presence.key, uuid)
        if not entries.is_cluster:  # there the key is of another part, which has lost nothing
            redis.set(keys.batch(worker.name), before)

    entries.ask(lose)
    assert worker.presence.complete_since < math.inf
    worker.write(uuid, *others)
    assert places(entries, uuid) == {worker.name: '1 0'}
    assert listed(entries, worker) == {uuid, *others}


def test_what_had_gone_and_is_there_again_goes_again(entries, uuid, work, at_once):
    worker = work()
    worker.online(uuid)
    worker.write()
    assert places(entries, uuid) == {}

    def lose(redis) -> None:
        redis.hset(keys.of(keys.PLACES, uuid), worker.name, '1 0')
        redis.hset(worker.presence.key, uuid, '')
        redis.set(keys.batch(worker.name), '1')

    entries.ask(lose)
    for _ in range(2):
        worker.write()
    assert (places(entries, uuid), listed(entries, worker)) == ({}, set())


def test_worker_that_others_ask_in_vain_removes_its_place(entries, uuid, work, at_once):
    worker, other = work(), str(uuids.uuid4())
    worker.online(other)
    entries.ask(lambda redis: redis.hset(keys.of(keys.PLACES, uuid), worker.name, '1 0'))
    worker.presence.note_absent(uuid)
    worker.presence.note_absent(other)  # it has come meanwhile
    for _ in range(presence.ABSENT + 10):
        worker.presence.note_absent(str(uuids.uuid4()))
    assert len(worker.presence._lost) == presence.ABSENT
    worker.write(other)
    assert places(entries, uuid) == {}
    assert places(entries, other) == {worker.name: '1 0'}


def test_place_of_a_worker_that_nobody_knows_is_removed_where_it_is_met(
    entries, uuid, work, at_once
):
    here, there, left = work(), work(), 'f' * 16
    here.online(uuid)
    there.online(uuid)
    there.kill()  # it is known, and will be buried
    entries.ask(lambda redis: redis.hset(keys.of(keys.PLACES, uuid), left, '1 0'))
    here.write()
    assert places(entries, uuid) == {there.name: '1 0'}
    assert states(entries, uuid) == [ONLINE, OFFLINE]


@pytest.mark.parametrize('script', [scripts.WRITE, scripts.SIGN, scripts.WRITE_HOURS])
def test_batch_that_is_cut_off_in_the_midst_counts_once(
    entries, uuid, work, at_once, monkeypatch, script
):
    """Whatever of it is written already; the answer was lost."""
    if entries.is_cluster == (script == scripts.WRITE):
        pytest.skip('the other kind of Redis needs it')
    worker, other, run = work(), str(uuids.uuid4()), entries.run
    entries.add(other, [])
    worker.online(uuid, other)
    ended = {'at': time.time(), 'address': ADDRESS, 'seconds': 1.0, 'how': 'closed'}
    for each in (uuid, other):
        worker.presence.note_rendezvous(each, sent=2**51 + 1, received=3, **ended)
        worker.presence.note_refusal(each, ADDRESS, WRONG)

    def lose(asked, *arguments, **more):
        answer = run(asked, *arguments, **more)
        if asked == script:
            raise StoreDown('the answer was lost')
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(entries, 'run', lose)
        for _ in range(2):
            with pytest.raises(StoreDown):
                worker.write(uuid, other)
    worker.write(uuid, other)
    now = time.time()
    for each, times in ((uuid, 1), (other, 1), (state.ALL, 2)):
        hours = state.past(entries, [each], now - 3600, now)[each][1]
        up = times * (2**51 + 1)  # the last digit, too
        assert [each for each in hours if any(each)] == [Hour(up, times * 3, times, 0)]
    for each in (uuid, other):
        assert len(state.history(entries, each)) == 1
        assert [each.count for each in state.refusals(entries, each)] == [1]


def test_bad_part_of_a_cluster_costs_no_batch_of_the_rest_twice(
    entries, uuid, work, at_once, monkeypatch
):
    """Some UUIDs are written, others are not."""
    if not entries.is_cluster:
        pytest.skip('it has no parts')
    worker, made, run_all = work(), [uuid, *(str(uuids.uuid4()) for _ in range(9))], entries.run_all
    for each in made[1:]:
        entries.add(each, [])
    for each in made:
        worker.presence.note_failure(each, is_known=True)

    def some(script, calls):
        run_all(script, calls[: len(calls) // 2])
        raise StoreDown('a part does not answer')

    with monkeypatch.context() as patch:
        patch.setattr(entries, 'run_all', some)
        with pytest.raises(StoreDown):
            worker.write()
    worker.write()
    now = time.time()
    found = state.past(entries, [*made, state.ALL], now - 3600, now)
    failures = {each: sum(hour.failures for hour in hours) for each, (_, hours) in found.items()}
    assert failures == dict.fromkeys(made, 1) | {state.ALL: 10}


def test_part_of_a_cluster_that_was_flushed_is_noticed(entries, work):
    if not entries.is_cluster:
        pytest.skip('it has no parts')
    worker, made = work(), [str(uuids.uuid4()) for _ in range(60)]
    worker.online(*made)
    nodes = {batches.node(entries, each) for each in made}
    assert len(nodes) == 3
    of_worker = entries.ask(lambda cluster: cluster.get_node_from_key(worker.presence.key).name)
    flushed = (nodes - {of_worker}).pop()

    def flush(cluster) -> None:
        (node,) = (each for each in cluster.get_primaries() if each.name == flushed)
        cluster.execute_command('FLUSHALL', target_nodes=node)

    entries.ask(flush)
    worker.write(*made)
    assert all(places(entries, each) for each in made)


def test_strangers_of_a_worker_that_signed_meanwhile_are_left(entries, uuid, work):
    there = work()
    there.online(uuid)
    upkeep.forget_strangers(entries, [(uuid, there.name), (uuid, 'f' * 16)])
    assert places(entries, uuid) == {there.name: '1 0'}
