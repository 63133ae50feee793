"""What workers write of hidden servers and of themselves, as the page reads it."""

import json
import math
import shutil
import subprocess
import sys
import time
import uuid as uuids
from contextlib import contextmanager

import pytest
from conftest import ROOT, until
from told import ABOUT, ADDRESS, WRONG, Told, everywhere, keys_of, working

from rendezvous.store import keys, presence, state, upkeep
from rendezvous.store.entries import Entries, StoreDown
from rendezvous.store.options import DEFAULTS
from rendezvous.store.state import DISABLED, NEVER, OFFLINE, ONLINE, REFUSED, Hour, Why

OURS = keys.SERVERS, keys.HEARD, keys.OUTAGES, keys.GONE, keys.of('hours', keys.ALL)


@pytest.fixture(params=['redis', 'cluster'])
def options(request, redis_options):
    """Where Redis is: all of it is told alike in one Redis and in a cluster."""
    is_cluster = request.param == 'cluster'
    return request.getfixturevalue('redis_cluster') if is_cluster else redis_options


@pytest.fixture
def entries(options):
    entries = Entries(DEFAULTS | options)
    yield entries
    entries.close()


@pytest.fixture(autouse=True)
def alone(entries):
    """No worker of another test is heard of."""
    entries.ask(lambda redis: redis.delete(*OURS))


@pytest.fixture
def at_once(monkeypatch):
    """Each batch is as after a long time."""
    monkeypatch.setattr(presence, 'PATIENCE_SECONDS', 0)
    monkeypatch.setattr(presence, 'HEARTBEAT_SECONDS', 0)
    monkeypatch.setattr(presence, 'OUTAGE_SECONDS', 0)


@pytest.fixture
def work(entries):
    """Starts workers; at the end they are killed."""
    with working(entries) as work:
        yield work


def known(entries, uuid: str) -> state.Known:
    found = state.known_of(entries, state.server(entries), uuid)
    of_all = state.known(entries, state.server(entries), [uuid]).get(uuid, state.Known())
    assert of_all == found
    return found


def scripts_run(entries) -> tuple[int, float]:
    """How many since `config_resetstat`, and how many microseconds they took."""
    found = [
        each.get('cmdstat_evalsha', {}) for each in everywhere(entries, 'INFO', 'commandstats')
    ]
    return sum(each.get('calls', 0) for each in found), sum(each.get('usec', 0) for each in found)


def states(entries, uuid: str) -> list[str]:
    """All its changes of state, the oldest first; the times never go back."""
    (changes, _) = state.past(entries, [uuid], 0, 0)[uuid]
    assert sorted(changes, key=lambda change: change.at) == changes
    return [change.state for change in changes]


def forge(entries, uuid: str, **record) -> None:
    """Changes its record, as if time had passed."""

    def write(redis) -> None:
        before = json.loads(redis.get(f'state:{{{uuid}}}') or '{}')
        redis.set(f'state:{{{uuid}}}', json.dumps(before | record))

    entries.ask(write)


def test_hidden_server_is_never_seen_then_online_then_offline(entries, uuid, work, at_once):
    worker, began = work(), time.time()
    worker.write()
    assert known(entries, uuid) == state.Known(NEVER)
    worker.online(uuid)
    found = known(entries, uuid)
    assert (found.state, found.waiting, found.address) == (ONLINE, 1, ADDRESS)
    assert began - 0.001 <= found.since <= found.first <= time.time() + 0.001
    worker.write()
    gone = known(entries, uuid)
    assert (gone.state, gone.first) == (OFFLINE, found.first)
    assert found.since <= gone.since <= time.time()
    assert states(entries, uuid) == [ONLINE, OFFLINE]
    worker.online(uuid)
    assert known(entries, uuid).since >= gone.since
    assert known(entries, uuid).first == found.first
    assert states(entries, uuid) == [ONLINE, OFFLINE, ONLINE]


def test_hidden_server_that_comes_back_at_once_was_never_offline(entries, uuid, work):
    """As it does after each rendezvous."""
    worker = work()
    worker.online(uuid)
    since = known(entries, uuid).since
    for _ in range(3):
        worker.write()
        worker.online(uuid)
    assert states(entries, uuid) == [ONLINE]
    assert known(entries, uuid).since == since


def test_hidden_server_that_came_and_left_since_the_last_batch_was_here(
    entries, uuid, work, at_once
):
    worker, before = work(), time.time()
    worker.presence.note_online(uuid, ADDRESS)
    worker.write()
    found = known(entries, uuid)
    assert (found.state, found.address) == (OFFLINE, ADDRESS)
    assert before - 0.001 <= found.since <= found.first <= time.time() + 0.001
    worker.presence.note_online(uuid, ADDRESS)
    worker.write()
    assert known(entries, uuid).since > found.since
    assert states(entries, uuid) == [OFFLINE]


def test_it_is_offline_since_it_left_and_not_since_that_is_told(entries, uuid, work, monkeypatch):
    worker = work()
    worker.online(uuid)
    worker.write()
    left = time.time()
    assert states(entries, uuid) == [ONLINE]
    later = time.monotonic() + presence.PATIENCE_SECONDS + 1
    monkeypatch.setattr(time, 'monotonic', lambda: later)
    worker.write()
    assert states(entries, uuid) == [ONLINE, OFFLINE]
    assert abs(known(entries, uuid).since - left) < 0.5


def test_hidden_server_that_another_worker_has_is_online(entries, uuid, work, at_once):
    here, there = work(number=1), work(number=2)
    here.online(uuid)
    there.online(uuid)
    assert known(entries, uuid).waiting == 2
    here.write()
    assert known(entries, uuid).state == ONLINE
    assert states(entries, uuid) == [ONLINE]
    there.write()
    assert states(entries, uuid) == [ONLINE, OFFLINE]


def test_refused_then_online_then_refused_again(entries, uuid, work, at_once):
    worker = work()
    worker.refuse(uuid, WRONG)
    found = known(entries, uuid)
    assert (found.state, found.why, found.address) == (REFUSED, WRONG, ADDRESS)
    assert found.first is None
    since = found.since
    worker.refuse(uuid, Why('clock', -3660.0))
    found = known(entries, uuid)
    assert (found.why, found.since) == (Why('clock', -3660.0), since)
    assert found.refused > since
    worker.online(uuid)
    assert known(entries, uuid).state == ONLINE
    worker.write()
    worker.refuse(uuid, Why('former'))
    assert states(entries, uuid) == [REFUSED, ONLINE, OFFLINE, REFUSED]


def test_one_that_is_refused_as_soon_as_it_has_left_is_refused_since_then(
    entries, uuid, work, monkeypatch
):
    """As with a new secret, of which its machine does not know yet."""
    worker = work()
    worker.online(uuid)
    worker.write()
    worker.refuse(uuid, Why('former'))
    assert (known(entries, uuid).state, known(entries, uuid).why) == (REFUSED, Why('former'))
    assert states(entries, uuid) == [ONLINE]
    later = time.monotonic() + presence.PATIENCE_SECONDS + 1
    monkeypatch.setattr(time, 'monotonic', lambda: later)
    worker.write()
    assert states(entries, uuid) == [ONLINE, OFFLINE, REFUSED]
    found = known(entries, uuid)
    assert found.state == REFUSED
    assert abs(found.since - found.refused) < 0.002


def test_stranger_that_is_refused_while_it_is_away_for_a_moment_makes_nobody_refused(
    entries, uuid, work
):
    worker = work()
    worker.online(uuid)
    worker.write()
    worker.refuse(uuid, WRONG)
    worker.online(uuid)
    assert known(entries, uuid).state == ONLINE
    assert states(entries, uuid) == [ONLINE]


def test_refusal_of_another_machine_makes_nobody_refused_who_is_online(
    entries, uuid, work, at_once
):
    here, there = work(), work()
    here.online(uuid)
    there.refuse(uuid, WRONG)
    found = known(entries, uuid)
    assert (found.state, found.refused, found.why) == (ONLINE, None, None)
    (refused,) = state.refusals(entries, uuid)
    assert (refused.why, refused.address, refused.count) == (WRONG, ADDRESS, 1)


def test_two_machines_with_one_file_are_told_and_refuse_nobody(entries, uuid, work, at_once):
    worker = work()
    worker.refuse(uuid, Why('twins', other='192.0.2.9'))
    assert known(entries, uuid).state == NEVER
    (twins,) = state.refusals(entries, uuid)
    assert (twins.why.other, twins.address) == ('192.0.2.9', ADDRESS)


def test_refusal_says_nothing_after_a_while(entries, uuid, work, at_once):
    """It is the end of the bar, too, and of what is told."""
    worker = work()
    worker.refuse(uuid, WRONG)
    long_ago = time.time() - state.REFUSED_SECONDS - 10
    forge(entries, uuid, refused=long_ago, since=long_ago - 60)
    entries.ask(lambda redis: redis.lset(f'changes:{{{uuid}}}', 0, f'{long_ago - 60} {REFUSED}'))
    assert known(entries, uuid)[:2] == (NEVER, None)
    assert states(entries, uuid) == [REFUSED, NEVER]
    forge(entries, uuid, first=1.0)
    assert states(entries, uuid) == [REFUSED, OFFLINE]
    assert known(entries, uuid)[:2] == (OFFLINE, long_ago)
    worker.refuse(uuid, WRONG)
    (changes, _) = state.past(entries, [uuid], 0, 0)[uuid]
    assert [each.state for each in changes] == [REFUSED, OFFLINE, REFUSED]
    assert abs(changes[1].at - long_ago) < 0.01


def test_rationed_is_refused_until_it_may_try_again(entries, uuid, work, at_once):
    worker = work()
    worker.refuse(uuid, Why('address'), until=time.time() + 900)
    forge(entries, uuid, refused=time.time() - 600)
    assert known(entries, uuid).state == REFUSED


def test_disabled_stays_disabled_whatever_workers_say(entries, uuid, work, at_once):
    worker = work()
    worker.online(uuid)
    entries.disable(uuid)
    since = entries.shown(uuid)['disabled']
    assert known(entries, uuid).disabled(since)[:2] == (DISABLED, since)
    entries.disable(uuid)
    worker.write()
    worker.refuse(uuid, Why('disabled'))
    worker.refuse(uuid, WRONG)
    assert states(entries, uuid) == [ONLINE, DISABLED]
    entries.enable(uuid)
    entries.enable(uuid)
    assert known(entries, uuid).state == OFFLINE
    assert states(entries, uuid) == [ONLINE, DISABLED, OFFLINE]
    worker.online(uuid)
    assert states(entries, uuid) == [ONLINE, DISABLED, OFFLINE, ONLINE]


def test_entry_that_another_program_enabled_goes_online(entries, uuid, work, at_once):
    entries.disable(uuid)
    entry = entries.get(uuid)
    del entry['disabled']
    entries.ask(lambda redis: redis.set(uuid, json.dumps(entry)))
    work().online(uuid)
    assert states(entries, uuid) == [DISABLED, ONLINE]


def test_disabled_before_it_was_ever_seen_is_never_seen_when_enabled(entries, uuid):
    entries.disable(uuid)
    entries.enable(uuid)
    assert known(entries, uuid).state == NEVER
    assert states(entries, uuid) == [DISABLED, NEVER]


def test_worker_says_who_it_is(entries, work):
    before = time.time()
    first, second = work(number=2), work(number=1, node='attic')
    for worker in (first, second):
        worker.write()
    server = state.server(entries)
    assert [each.name for each in server.workers] == [second.name, first.name]
    told = server.workers[1]
    assert before <= told.at <= time.time()
    assert told[2:12] == ('attic', 2, *list(ABOUT.values())[2:])
    assert (told.host, told.address, told.draining, told.waiting) == ('', '', 0, 0)
    assert abs(told.ahead) < 2
    assert (server.heard.node, server.heard.pid, server.heard.stopped) == ('attic', 77, False)
    assert (server.down_since, server.outages) == (None, [])


def test_worker_signs_when_nobody_is_registered(entries, work, monkeypatch):
    worker = work()
    worker.write()
    (before,) = state.server(entries).workers
    worker.write()
    assert state.server(entries).workers == [before]
    later = time.monotonic() + presence.HEARTBEAT_SECONDS + 1
    monkeypatch.setattr(time, 'monotonic', lambda: later)
    worker.write()
    assert state.server(entries).workers[0].at > before.at


def test_worker_tells_of_its_node(entries, work):
    about = {'host': 'vps1', 'address': '192.0.2.1:8900', 'draining': 12.5}
    about |= {'waiting': 3, 'pipes': 2, 'links': 4}
    work(**about, not_reached=['0' * 16]).write()
    (told,) = state.server(entries).workers
    assert about.items() <= told._asdict().items()
    assert told.not_reached == ('0' * 16,)


@pytest.mark.parametrize('seconds', [-90, 90])
def test_clock_that_differs_from_that_of_redis_is_known(entries, work, monkeypatch, seconds):
    worker, ours = work(), time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, 'time', lambda: ours() + seconds)
        worker.write()
    (told,) = state.server(entries).workers
    assert abs(told.ahead - seconds) < 5


def gone(entries) -> list[tuple[str, bool]]:
    return [(each.node, each.stopped) for each in state.server(entries).gone]


def test_node_that_was_killed_is_told_until_it_is_there_again(entries, work, at_once, monkeypatch):
    here, there, other = work(node='here'), work(node='there'), work(node='there')
    for worker in (here, there, other):
        worker.write()
    there.kill()
    assert gone(entries) == []  # its other worker lives
    other.kill()
    assert gone(entries) == [('there', False)]
    monkeypatch.setattr(presence, 'MISSED_SECONDS', -1)
    here.presence._look_around()
    assert not entries.ask(lambda redis: redis.exists(there.presence.key, other.presence.key))
    assert gone(entries) == [('there', False)]
    again = work(node='there')
    again.write()
    assert gone(entries) == []
    again.presence.stop()
    again.kill()
    assert gone(entries) == []  # somebody has stopped it
    with monkeypatch.context() as patch:
        patch.setattr(state, 'GONE_SECONDS', 0)
        here.kill()
        assert gone(entries) == []  # so long ago that it says nothing


def test_node_that_was_stopped_is_not_told_for_a_worker_that_had_died_before(
    entries, work, at_once, monkeypatch
):
    here, there, other = work(node='here'), work(node='there'), work(node='there')
    for worker in (here, there, other):
        worker.write()
    there.kill()
    other.presence.stop()
    other.kill()
    monkeypatch.setattr(presence, 'MISSED_SECONDS', -1)
    here.presence._look_around()
    assert not entries.ask(lambda redis: redis.exists(there.presence.key))
    assert gone(entries) == []


def test_killed_worker_is_gone_at_once(entries, uuid, work):
    here, there = work(), work()
    here.online(uuid)
    there.write()
    here.kill()
    assert [each.name for each in state.server(entries).workers] == [there.name]
    assert known(entries, uuid).waiting == 0

    def is_offline() -> bool:
        return state.known_of(entries, state.server(entries), uuid).state == OFFLINE

    until(is_offline, 'it has not come to another worker')
    assert known(entries, uuid).since <= time.time()
    there.kill()
    server = state.server(entries)
    assert (server.workers, server.down_since) == ([], server.heard.at)


def test_one_that_changes_workers_is_online_all_the_time(entries, uuid, work):
    """What it left is told at once, and that it is elsewhere a second later."""
    here, there = work(), work()
    here.online(uuid)
    there.write()
    here.presence.note_online(uuid, ADDRESS)
    here.presence.stop()
    left = known(entries, uuid)
    assert (left.state, left.waiting) == (ONLINE, 0)
    there.online(uuid)
    assert known(entries, uuid)[:3] == (ONLINE, left.since, 1)


def test_worker_that_hangs_is_gone_after_a_while(entries, uuid, work, monkeypatch):
    worker = work()
    worker.online(uuid)
    monkeypatch.setattr(state, 'AGE_SECONDS', 0.2)
    until(lambda: not state.server(entries).workers, 'it has given no sign for so long')
    assert known(entries, uuid).state == OFFLINE


def test_other_workers_tell_what_a_killed_one_had(entries, uuid, work, at_once, monkeypatch):
    other = str(uuids.uuid4())
    entries.add(other, [])
    here, there = work(), work()
    here.online(uuid, other)
    there.online(other)
    here.kill()
    monkeypatch.setattr(presence, 'MISSED_SECONDS', 0)
    there.presence._look_around()
    assert entries.ask(lambda redis: redis.exists(here.presence.key)) == 0
    there.write(other)
    assert states(entries, uuid) == [ONLINE, OFFLINE]
    assert states(entries, other) == [ONLINE]
    entries.delete(other)


def test_names_of_others_are_left_alone(entries, work, at_once, monkeypatch):
    worker = work()
    worker.write()

    def write(redis) -> None:
        redis.zadd('servers', {'mine': 1, 'x' * 16: time.time()})
        redis.set('live:mine', 'x')

    entries.ask(write)
    worker.presence._look_around()
    assert [each.name for each in state.server(entries).workers] == [worker.name]
    assert entries.ask(lambda redis: redis.zscore('servers', 'mine')) == 1
    assert entries.ask(lambda redis: redis.delete('live:mine')) == 1


AN_HOUR_OFF = """
import json, sys, time
from rendezvous.store.entries import Entries
from rendezvous.store.options import DEFAULTS
from rendezvous.store.presence import Presence

options, uuid = json.loads(sys.argv[1]), sys.argv[2]
entries = Entries(DEFAULTS | options)
worker = Presence(entries)
changes = entries.changes(worker.channel)
next(changes)
worker.note_online(uuid, '192.0.2.1')
worker.write({uuid: (1, 0)})
print(worker.name, time.time(), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not shutil.which('faketime'), reason='there is no faketime here')
@pytest.mark.parametrize('ahead', ['-1h', '+1h'])
def test_worker_of_a_machine_with_another_clock_lives(entries, options, uuid, work, at_once, ahead):
    here, other = work(), json.dumps(options)
    here.write()
    arguments = ['faketime', '-f', ahead, sys.executable, '-c', AN_HOUR_OFF, other, uuid]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        assert process.stdin
        name, its_time = process.stdout.readline().split()
        assert abs(float(its_time) - time.time()) > 3000
        here.presence._look_around()
        here.write()
        assert {each.name for each in state.server(entries).workers} == {here.name, name}
        assert known(entries, uuid).state == ONLINE
        assert states(entries, uuid) == [ONLINE]
        process.stdin.close()
    work().write()
    assert len(state.server(entries).outages) == 0


def test_worker_that_lost_redis_for_a_moment_is_not_buried(entries, uuid, work):
    """It is not subscribed then, but it has given a sign within the last seconds."""
    here, there = work(), work()
    here.online(uuid)
    here.kill()
    there.write()
    there.presence._look_around()
    assert entries.ask(lambda redis: redis.exists(here.presence.key)) == 1


@pytest.mark.parametrize('is_early', [False, True])
@pytest.mark.parametrize('later', [-1, 5])
def test_time_without_any_worker_is_an_outage(entries, uuid, work, at_once, later, is_early):
    """What was online before, and comes back after it, was offline meanwhile.

    It may have been seen after the last sign, which is up to ten seconds old when all are killed.
    """
    first = work()
    first.online(uuid)
    first.kill()
    heard = time.time() - 300
    entries.ask(lambda redis: redis.set(keys.HEARD, json.dumps({'at': heard})))
    lost = max(heard, heard + later)
    forge(entries, uuid, seen=heard + later, since=heard - 1)
    entries.ask(lambda redis: redis.lset(f'changes:{{{uuid}}}', 0, f'{heard - 1} {ONLINE}'))
    assert state.server(entries).outages == []
    second = work()
    second.write()
    ((began, ended),) = state.server(entries).outages
    assert abs(began - heard) < 0.001
    assert 299 < ended - began < 310
    assert known(entries, uuid)[:2] == (OFFLINE, pytest.approx(lost, abs=0.001))
    if is_early:  # it comes while the first batch is written, which has no counts of it
        second.presence.note_online(uuid, ADDRESS)
        second.write()
    second.online(uuid)
    assert known(entries, uuid).state == ONLINE
    (changes, _) = state.past(entries, [uuid], 0, 0)[uuid]
    assert [each.state for each in changes] == [ONLINE, OFFLINE, ONLINE]
    assert changes[1].at == pytest.approx(lost, abs=0.001)


def test_what_does_not_come_back_after_an_outage_is_told(entries, uuid, work, at_once):
    first = work()
    first.online(uuid)
    first.kill()
    second = work()
    second.write()
    second.presence._look_around()
    second.presence._look_around()
    second.write()
    assert states(entries, uuid) == [ONLINE, OFFLINE]
    assert known(entries, uuid).since == state.server(entries).outages[0][0]


def test_worker_that_starts_while_another_lives_makes_no_outage(entries, work, at_once):
    """As with an upgrade."""
    old = work()
    old.write()
    new = work()
    new.write()
    old.presence.stop()
    server = state.server(entries)
    assert (server.outages, [each.name for each in server.workers]) == ([], [new.name])
    assert not server.heard.stopped
    new.presence.stop()
    server = state.server(entries)
    assert (server.workers, server.heard.stopped) == ([], True)
    assert server.down_since == server.heard.at
    assert entries.ask(lambda redis: redis.exists(new.presence.key)) == 0
    third = work()
    third.write()
    assert len(state.server(entries).outages) == 1
    assert not state.server(entries).heard.stopped


def test_outages_are_bounded(entries, work, at_once):
    now = time.time()
    texts = [f'{now - number:.0f} {now - number:.0f}' for number in range(1, 2000)]
    entries.ask(lambda redis: redis.rpush(keys.OUTAGES, *texts))
    entries.ask(lambda redis: redis.rpush(keys.OUTAGES, '5 6', '3 4'))
    entries.ask(lambda redis: redis.set(keys.HEARD, json.dumps({'at': now - 0.5})))
    work().write()
    assert len(state.server(entries).outages) == 1000
    entries.ask(lambda redis: redis.delete(keys.OUTAGES, 'servers'))
    entries.ask(lambda redis: redis.rpush(keys.OUTAGES, '5 6', '3 4'))
    entries.ask(lambda redis: redis.set(keys.HEARD, json.dumps({'at': now - 0.5})))
    work().write()
    assert len(state.server(entries).outages) == 1


def test_many_outages_keep_redis_no_longer_busy(entries, work, at_once):
    made = [str(uuids.uuid4()) for _ in range(presence.BATCH)]
    for each in made:
        entries.add(each, [])
    before = time.time() - 3600
    rows = [f'{before - 10 * number} {before - 10 * number + 5}' for number in range(1000)]

    def seconds() -> float:
        """What Redis takes to write that all of them are with a new worker."""
        worker = work()
        worker.write()
        everywhere(entries, 'CONFIG RESETSTAT')
        worker.online(*made)
        found = scripts_run(entries)[1]
        entries.ask(lambda redis: redis.delete(worker.presence.key))
        return found

    try:
        seconds()
        without = min(seconds() for _ in range(3))
        entries.ask(lambda redis: redis.delete(keys.OUTAGES))
        entries.ask(lambda redis: redis.rpush(keys.OUTAGES, *rows))
        assert min(seconds() for _ in range(3)) < 10 * without
    finally:
        for each in made:
            entries.delete(each)


def test_frozen_worker_that_goes_on_makes_up_for_it(entries, uuid, work, at_once):
    """Its hash has expired meanwhile; nobody else was there."""
    worker = work()
    worker.online(uuid)
    entries.ask(lambda redis: redis.delete(worker.presence.key))
    entries.ask(lambda redis: redis.set(keys.HEARD, json.dumps({'at': time.time() - 300})))
    worker.presence.note_online(uuid, ADDRESS)
    worker.write(uuid)
    ((began, ended),) = state.server(entries).outages
    assert 299 < ended - began < 310
    assert known(entries, uuid).state == ONLINE


@pytest.mark.parametrize('rows', [6, 7000])
def test_changes_are_trimmed(entries, uuid, work, at_once, rows):
    """400 days of them, and never more than so many; the last one before those days stays."""
    now, day = time.time(), state.DAY_SECONDS
    ages = [500, 450, 410, 390, 2, 1] if rows == 6 else [1] * rows
    texts = [f'{now - age * day:.3f} {OFFLINE}' for age in ages]
    entries.ask(lambda redis: redis.rpush(f'changes:{{{uuid}}}', *texts))
    work().online(uuid)
    kept = entries.ask(lambda redis: redis.lrange(f'changes:{{{uuid}}}', 0, -1))
    assert len(kept) == (5 if rows == 6 else state.CHANGES)
    assert kept[0] == texts[2 if rows == 6 else rows - state.CHANGES + 1]


def test_past_begins_with_the_last_change_before_it(entries, uuid):
    texts = [f'{number * 10}.000 {ONLINE if number % 2 else OFFLINE}' for number in range(1, 400)]
    entries.ask(lambda redis: redis.rpush(f'changes:{{{uuid}}}', *texts))
    for start, count in ((3985, 2), (2005, 200), (15, 399), (5, 399), (0, 399)):
        (changes, _) = state.past(entries, [uuid], start, start)[uuid]
        assert len(changes) == count
        assert changes[-1].at == 3990


def this_hour(entries, uuid: str) -> Hour:
    now = time.time()
    hours = [each for each in state.past(entries, [uuid], now - 3600, now)[uuid][1] if any(each)]
    return Hour(*map(sum, zip(*hours, strict=True))) if hours else Hour()


def rendezvous(told: Told, uuid: str, sent: int, received: int, **more) -> None:
    ended = {'at': time.time(), 'address': ADDRESS, 'seconds': 1.0, 'how': 'closed'}
    told.presence.note_rendezvous(uuid, sent=sent, received=received, **ended, **more)


def test_hours_add_up_what_all_workers_tell(entries, uuid, work, at_once):
    here, there = work(), work()
    for _ in range(2):
        rendezvous(here, uuid, 10, 2**40)
        here.write()
        rendezvous(there, uuid, 1, 1)
        there.presence.note_failure(uuid)
        there.presence.note_failure(str(uuids.uuid4()))
        there.write()
    expected = Hour(22, 2 * 2**40 + 2, 4, 2)
    assert this_hour(entries, uuid) == this_hour(entries, state.ALL) == expected
    octets = state.octets_since(entries, [uuid, state.ALL, 'x'], time.time() - 3600)
    assert octets == {uuid: expected[:2], state.ALL: expected[:2], 'x': (0, 0)}


def test_worker_that_ends_counts_what_it_has_not_yet(entries, uuid, work):
    worker = work()
    rendezvous(worker, uuid, 3, 4)
    worker.write()
    rendezvous(worker, uuid, 30, 40)
    worker.presence.note_failure(uuid)
    worker.presence.stop()
    assert this_hour(entries, uuid) == Hour(33, 44, 2, 1)


def test_octets_of_a_long_pipe_count_as_they_go_and_once(entries, uuid, work, at_once):
    worker = work()
    for _ in range(3):
        worker.presence.note_octets(uuid, 10, 100)
        worker.write()
    assert this_hour(entries, uuid) == Hour(30, 300, 0, 0)
    rendezvous(worker, uuid, 35, 1000, counted=(30, 300))
    worker.write()
    assert this_hour(entries, uuid) == Hour(35, 1000, 1, 0)
    assert state.history(entries, uuid)[0].received == 1000


def test_hours_are_dropped_after_400_days(entries, uuid, work, at_once):
    today = int(time.time() // state.DAY_SECONDS)
    line = '5 1 2 3 4'
    days = {str(today - 401): line, str(today - 399): line, 'x': line, str(today - 1): 'x\n' + line}
    entries.ask(lambda redis: redis.hset(f'hours:{{{uuid}}}', mapping=days))
    worker = work()
    rendezvous(worker, uuid, 1, 1)
    worker.write()
    kept = entries.ask(lambda redis: redis.hkeys(f'hours:{{{uuid}}}'))
    assert {int(day) for day in kept} == {today - 399, today - 1, today}
    start = (today - 1) * state.DAY_SECONDS
    hours = state.past(entries, [uuid], start, start + 23 * 3600)[uuid][1]
    assert [hour for hour in hours if any(hour)] == [Hour(1, 2, 3, 4)]
    assert hours[5] == Hour(1, 2, 3, 4)
    assert len(hours) == 24


def test_failures_alone_write_nothing(entries, work):
    """Anybody may ask for any UUID."""
    worker = work()
    worker.write()
    everywhere(entries, 'CONFIG RESETSTAT')
    worker.presence.note_failure(str(uuids.uuid4()))
    worker.presence._hours_at = -math.inf
    worker.write()
    # The first ones do, as heartbeats do.
    worker.presence.note_failure(str(uuids.uuid4()))
    worker.write()
    assert scripts_run(entries)[0] <= (3 if entries.is_cluster else 1)


def test_refusals_are_merged_by_kind_and_address(entries, uuid, work, at_once):
    worker, before = work(), time.time()
    for _ in range(3):
        worker.presence.note_refusal(uuid, ADDRESS, Why('clock', 30.0, False))
    worker.presence.note_refusal(uuid, '192.0.2.2', WRONG)
    worker.write()
    worker.refuse(uuid, Why('clock', 60.0), until=time.time() + 100)
    newest, other = state.refusals(entries, uuid)
    assert (newest.why, newest.address, newest.count) == (Why('clock', 60.0), ADDRESS, 4)
    assert before - 0.001 <= newest.first <= other.first <= newest.last <= time.time() + 0.001
    assert newest.until > time.time()
    assert (other.why, other.address, other.count, other.until) == (WRONG, '192.0.2.2', 1, 0)
    assert 0 < entries.ask(lambda redis: redis.ttl(f'refusals:{{{uuid}}}')) <= state.DAY_SECONDS
    entries.delete(uuid)
    assert state.refusals(entries, uuid) == []


def test_last_twenty_refusals_are_kept(entries, uuid, work, at_once):
    worker = work()
    for number in range(50):
        worker.presence.note_refusal(uuid, f'192.0.2.{number}', WRONG)
        worker.write()
    found = state.refusals(entries, uuid)
    hosts = [int(each.address.rpartition('.')[2]) for each in found]
    assert hosts == list(range(49, 29, -1))


@pytest.mark.parametrize('at_a_time', [1, 50])
def test_refusals_that_anybody_can_get_push_out_no_others(entries, uuid, work, at_once, at_a_time):
    worker, former = work(), Why('former')
    worker.presence.note_refusal(uuid, ADDRESS, former)
    for number in range(50):
        worker.presence.note_refusal(uuid, f'198.51.100.{number}', WRONG)
        if (number + 1) % at_a_time == 0:
            worker.write()
    found = state.refusals(entries, uuid)
    assert len(found) == 20
    assert [each.address for each in found if each.why == former] == [ADDRESS]
    assert '198.51.100.49' in [each.address for each in found]


def test_nothing_is_written_of_an_entry_that_does_not_exist(entries, work, at_once):
    worker, nobody = work(), str(uuids.uuid4())
    worker.presence.note_online(nobody, ADDRESS)
    worker.presence.note_refusal(nobody, ADDRESS, WRONG)
    worker.presence.note_failure(nobody)
    rendezvous(worker, nobody, 1, 1)
    worker.write(nobody)
    worker.write()
    assert keys_of(entries, nobody) == set()


def test_nothing_is_left_of_a_deleted_entry(entries, uuid, work, at_once):
    worker = work()
    worker.online(uuid)
    rendezvous(worker, uuid, 1, 1)
    worker.write()
    worker.refuse(uuid, WRONG)
    entries.disable(uuid)
    assert len(keys_of(entries, uuid)) == 6
    entries.delete(uuid)
    assert keys_of(entries, uuid) == set()


def test_clearing_lets_it_try_again(entries, uuid, work, at_once):
    """The rations of the addresses that were refused are cleared, and the workers are told."""
    worker = work()
    worker.presence.note_refusal(uuid, '2001:db8:0:1::7', Why('address'), time.time() + 900)
    worker.presence.note_refusal(uuid, ADDRESS, WRONG)
    worker.write()
    place = '2001:db8:0:1::/64'
    for _ in range(25):
        entries.count_try(uuid, place, 'wrong', True, time.time())
    assert entries.count_try(uuid, place, 'right', True, time.time()).ration == 2
    entries.ask(lambda redis: redis.hset(f'refusals:{{{uuid}}}', 'address x', '{}'))
    changes = entries.changes('tries')
    with worker.subscription:
        worker.subscription.subscribe('tries')
        worker.subscription.get_message(timeout=5)
        entries.clear_wrong_codes(uuid)
        message = worker.subscription.get_message(timeout=5)
    changes.close()
    assert message['data'] == place
    assert entries.count_try(uuid, place, 'right', True, time.time()).ration == 0
    assert [each.why for each in state.refusals(entries, uuid)] == [WRONG]
    assert 'until' not in entries.ask(lambda redis: redis.get(keys.of(keys.STATE, uuid)))


FOREIGN = [
    *('x', '[]', '{}', '1', 'null', '{"state": 1, "since": "x", "why": [[[]]], "seen": {}}'),
    '{"state": "online", "since": 1e999, "first": -1, "why": {"a": 1e999}, "until": [1]}',
    '{"state": "refused", "since": 1, "refused": NaN, "why": [1e999, 1, 1, 1], "address": []}',
    '{"state": "mine", "since": 5, "first": true, "seen": 4e300}',
    '[' * 2000,
]


@pytest.mark.parametrize('value', FOREIGN)
def test_foreign_record_costs_the_entry_its_past_alone(entries, uuid, work, at_once, value):
    other = str(uuids.uuid4())
    entries.add(other, [])
    worker = work()
    entries.ask(lambda redis: redis.set(f'state:{{{uuid}}}', value))
    known(entries, uuid)
    states(entries, uuid)
    worker.refuse(uuid, WRONG)
    assert known(entries, uuid).state == REFUSED
    entries.ask(lambda redis: redis.set(f'state:{{{uuid}}}', value))
    worker.online(uuid, other)
    assert {known(entries, each).state for each in (uuid, other)} == {ONLINE}
    entries.ask(lambda redis: redis.set(f'state:{{{uuid}}}', value))
    entries.disable(uuid)
    entries.enable(uuid)
    entries.delete(other)


KINDS = 'changes', 'hours', 'refusals', 'rendezvous', 'state', 'at'
KEYS = [*(keys.of(kind, 'UUID') for kind in KINDS), *OURS]


@pytest.mark.parametrize('kind', ['string', 'list', 'hash', 'zset'])
@pytest.mark.parametrize('key', KEYS)
def test_key_of_another_kind_costs_nobody_else_anything(entries, uuid, work, at_once, key, kind):
    other, key = str(uuids.uuid4()), key.replace('UUID', uuid)
    entries.add(other, [])
    write = {
        'string': lambda redis: redis.set(key, 'x'),
        'list': lambda redis: redis.rpush(key, 'x', '{}'),
        'hash': lambda redis: redis.hset(key, mapping={'x': 'y', uuid: '{', 'address x': '['}),
        'zset': lambda redis: redis.zadd(key, {'x': 1, '0' * 16: time.time()}),
    }
    entries.ask(write[kind])
    here, there = work(), work()
    for uuids_now in ([uuid, other], []):
        for each in (uuid, other):
            here.presence.note_failure(each)
            rendezvous(here, each, 1, 1)
            there.presence.note_refusal(each, ADDRESS, WRONG)
        here.online(*uuids_now)
        there.write()
        here.presence._look_around()
    server = state.server(entries)
    state.known(entries, server, [uuid, other])
    for each in (uuid, other):
        known(entries, each)
        state.past(entries, [each, state.ALL], time.time() - 86400, time.time())
        state.refusals(entries, each)
        state.history(entries, each)
    if key != 'hours:{all}':
        assert len(states(entries, other)) >= 2
    assert len(state.history(entries, other)) == 2
    assert this_hour(entries, other).visits == 2
    assert len(state.refusals(entries, other)) == 1
    entries.disable(uuid)
    entries.enable(uuid)
    entries.clear_wrong_codes(uuid)
    here.presence.stop()
    entries.delete(other)
    entries.delete(uuid)
    entries.ask(lambda redis: redis.delete(key))


LIVES = [
    'x',
    '[]',
    '{"at": "x", "counters": {"a": "b", "c": 1}}',
    '{"number": 1e300}',
    '{"pid": -1}',
]


@pytest.mark.parametrize('value', LIVES)
def test_what_anybody_says_of_itself_is_read_as_it_can_be(entries, uuid, work, value):
    worker = work()
    worker.online(uuid)
    entries.ask(lambda redis: redis.hset(worker.presence.key, 'about', value))
    entries.ask(lambda redis: redis.hset(worker.presence.key, 'nobody', value))
    entries.ask(lambda redis: redis.set(keys.HEARD, value))
    server = state.server(entries)
    assert len(server.workers) == (value[0] == '{')
    state.known(entries, server, [uuid])
    assert upkeep.bury(entries, worker.name).keys() == {uuid, 'nobody'}


@contextmanager
def without(entries, *commands: str):
    """A Redis whose administrator has taken commands away from us."""
    taken = [f'-{command}' for command in commands]
    everywhere(entries, 'ACL SETUSER', 'default', *taken)
    try:
        yield
    finally:
        everywhere(entries, 'ACL SETUSER', 'default', '+@all')


@pytest.mark.parametrize('taken', [('pubsub',), ('pubsub', 'time')])
def test_without_the_permission_to_count_subscribers_workers_age_out(
    entries, uuid, work, at_once, monkeypatch, taken
):
    worker = work()
    with without(entries, *taken):
        worker.online(uuid)
        worker.presence._look_around()
        worker.kill = lambda: None
        worker.subscription.close()
        assert known(entries, uuid).state == ONLINE
        monkeypatch.setattr(state, 'AGE_SECONDS', 0.1)
        until(lambda: not state.server(entries).workers, 'it has aged out')


def test_redis_that_is_down_loses_nothing(entries, uuid, work, monkeypatch):
    worker = work()
    worker.write()

    def down(*_):
        raise StoreDown('for a while')

    worker.presence._hours_at = -math.inf
    with monkeypatch.context() as patch:
        patch.setattr(entries, 'run', down)
        for number in range(3):
            rendezvous(worker, uuid, 1, 1)
            worker.presence.note_refusal(uuid, f'192.0.2.{number}', WRONG)
            with pytest.raises(StoreDown):
                worker.write(uuid)
    worker.write(uuid)
    worker.presence._hours_at = -math.inf
    worker.write(uuid)
    assert len(state.history(entries, uuid)) == 3
    assert len(state.refusals(entries, uuid)) == 3
    assert this_hour(entries, uuid) == Hour(3, 3, 3, 0)
    assert known(entries, uuid).state == ONLINE
