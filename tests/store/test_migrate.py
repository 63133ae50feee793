"""What older versions wrote, in keys of other names, is found by this one."""

import json
import time
import uuid as uuids

import gevent
import pytest
from conftest import until

from rendezvous.store import keys, presence, state, upkeep
from rendezvous.store.entries import scan
from rendezvous.store.presence import Presence
from rendezvous.store.state import NEVER, OFFLINE, ONLINE, REFUSED, Hour, Why

NOW = int(time.time())
DAY, HOUR = NOW // 86_400, NOW % 86_400 // 3600
WHY = ['former', 0, True, '']
RECORD = {'state': REFUSED, 'since': NOW - 60.0, 'seen': NOW - 600.0, 'address': '192.0.2.1'}
RECORD |= {'first': 1e9, 'refused': NOW - 60.0, 'why': WHY, 'until': NOW + 900.0}
ROW = {'at': 1.0, 'address': '192.0.2.7', 'seconds': 1.0, 'sent': 1, 'received': 2, 'how': 'x'}
OLD_WORKER = '0123456789abcdef'


@pytest.fixture(autouse=True)
def empty(entries):
    entries.ask(lambda redis: redis.flushall())
    yield
    entries.ask(lambda redis: redis.flushall())


def write_old(redis, uuid: str, **record) -> None:
    """All that an older version kept of an entry."""
    redis.hset('states', uuid, json.dumps(RECORD | record))
    redis.rpush(f'changes:{uuid}', f'{NOW - 900} {ONLINE}', f'{NOW - 600} {OFFLINE}')
    redis.rpush(f'rendezvous:{uuid}', json.dumps(ROW | {'at': 2.0}), json.dumps(ROW))
    redis.hset(f'hours:{uuid}', DAY, f'{HOUR} 1 2 3 4')
    refused = {'why': WHY, 'first': NOW - 60.0, 'last': NOW - 60.0, 'count': 3, 'until': 0}
    redis.hset(f'refusals:{uuid}', 'former 192.0.2.1', json.dumps(refused))
    redis.expire(f'refusals:{uuid}', 1000)
    redis.hset(f'guesses:{uuid.replace("-", "")}', 'used_up', NOW - 5)


def write_old_of_all(redis) -> None:
    redis.hset('hours:all', DAY, f'{HOUR} 1 2 3 4')
    redis.set('heard', json.dumps({'at': NOW - 300.0, 'node': 'attic'}))
    redis.rpush('outages', f'{NOW - 900} {NOW - 800}', f'{NOW - 2000} {NOW - 1900}')
    redis.hset('guesses:addresses', '192.0.2.9', '{}')
    redis.zadd('guesses:latest', {'192.0.2.9': NOW})
    redis.hset('guesses:nobody', 'strangers', 'x')


def old_keys(entries) -> set[str]:
    """Those that have no slot of their own, but for a new worker's and the entries'."""
    found = entries.ask(lambda redis: scan(redis, '*'))
    return {key for key in found if '{' not in key} - {keys.SERVERS, *entries.uuids()}


def this_hour(entries, uuid: str) -> Hour:
    return state.past(entries, [uuid], NOW, NOW)[uuid][1][0]


def known(entries, uuid: str) -> state.Known:
    return state.known_of(entries, state.server(entries), uuid)


def record(entries, uuid: str) -> dict:
    return json.loads(entries.ask(lambda redis: redis.get(keys.of(keys.STATE, uuid))))


def test_all_that_an_older_version_kept_is_brought_over(entries, uuid):
    entries.ask(lambda redis: write_old(redis, uuid))
    entries.ask(write_old_of_all)
    Presence(entries).write({})
    assert record(entries, uuid) == RECORD
    (changes, _) = state.past(entries, [uuid], NOW - 1000, NOW)[uuid]
    assert [tuple(each) for each in changes] == [(NOW - 900, ONLINE), (NOW - 600, OFFLINE)]
    assert [each.at for each in state.history(entries, uuid)] == [2, 1]
    assert this_hour(entries, uuid) == this_hour(entries, state.ALL) == Hour(1, 2, 3, 4)
    (refused,) = state.refusals(entries, uuid)
    assert (refused.why, refused.count) == (Why('former'), 3)
    assert 0 < entries.ask(lambda redis: redis.ttl(keys.of('refusals', uuid))) <= 1000
    assert entries.used_up(uuid) == NOW - 5
    first, second, third = state.server(entries).outages
    assert (first, second) == ((NOW - 2000, NOW - 1900), (NOW - 900, NOW - 800))
    assert third[0] == NOW - 300  # since it was heard of the last time
    assert entries.ask(lambda redis: redis.hlen(keys.ADDRESSES)) == 1
    assert entries.ask(lambda redis: redis.zcard(keys.LATEST)) == 1
    assert old_keys(entries) == set()


def test_what_an_older_version_still_writes_is_put_together(entries, uuid):
    """It runs until the last of its connections has ended."""
    entries.ask(lambda redis: write_old(redis, uuid))
    entries.ask(write_old_of_all)
    upkeep.migrate(entries)

    def write_more(redis) -> None:
        redis.rpush(f'changes:{uuid}', f'{NOW - 700} {ONLINE}')
        redis.lpush(f'rendezvous:{uuid}', json.dumps(ROW | {'at': 1.5}))
        redis.hset(f'hours:{uuid}', DAY, f'{HOUR} 10 20 30 40\n{(HOUR + 1) % 24} 1 1 1 1')
        redis.hset('hours:all', DAY, f'{HOUR} 10 20 30 40')
        redis.hset('states', uuid, json.dumps({'state': OFFLINE, 'since': 5.0, 'seen': NOW + 1.0}))
        redis.lpush('outages', f'{NOW - 1500} {NOW - 1400}')
        redis.set('heard', json.dumps({'at': NOW - 400.0}))
        redis.hset(f'guesses:{uuid.replace("-", "")}', 'used_up', NOW - 1)

    entries.ask(write_more)
    for _ in range(2):
        upkeep.migrate(entries)
    (changes, _) = state.past(entries, [uuid], NOW - 1000, NOW)[uuid]
    assert [each.at for each in changes] == [NOW - 900, NOW - 700, NOW - 600]
    assert [each.at for each in state.history(entries, uuid)] == [2, 1.5, 1]
    assert this_hour(entries, uuid) == this_hour(entries, state.ALL) == Hour(11, 22, 33, 44)
    assert record(entries, uuid) == RECORD | {'seen': NOW + 1.0}
    assert [NOW - began for began, _ in state.server(entries).outages] == [2000, 1500, 900]
    assert json.loads(entries.ask(lambda redis: redis.get(keys.HEARD)))['at'] == NOW - 300
    assert entries.used_up(uuid) == NOW - 5
    assert old_keys(entries) == set()


def test_older_worker_that_ends_later_does_not_tell_that_a_hidden_server_has_left(entries, uuid):
    """It has come to a worker of this version before its last registration there ended."""
    entries.ask(lambda redis: write_old(redis, uuid, state=ONLINE, since=NOW - 500.0))
    entries.ask(lambda redis: redis.rpush(f'changes:{uuid}', f'{NOW - 500} {ONLINE}'))
    worker = Presence(entries)
    worker.write({uuid: (1, 0)})

    def write_more(redis) -> None:
        redis.hset('states', uuid, json.dumps({'state': OFFLINE, 'since': NOW + 1.0}))
        redis.rpush(f'changes:{uuid}', f'{NOW - 400} {OFFLINE}', f'{NOW - 390} {ONLINE}')
        redis.rpush(f'changes:{uuid}', f'{NOW + 1} {OFFLINE}')

    entries.ask(write_more)
    upkeep.migrate(entries)
    (changes, _) = state.past(entries, [uuid], NOW - 550, NOW)[uuid]
    assert [each.state for each in changes] == [OFFLINE, ONLINE, OFFLINE, ONLINE]
    assert record(entries, uuid)['state'] == ONLINE
    assert old_keys(entries) == set()


def test_nor_does_it_where_that_has_left_by_now(entries, uuid):
    entries.ask(lambda redis: write_old(redis, uuid, state=ONLINE, since=NOW - 500.0))
    entries.ask(lambda redis: redis.rpush(f'changes:{uuid}', f'{NOW - 500} {ONLINE}'))
    upkeep.migrate(entries)

    def write_more(redis) -> None:
        redis.rpush(f'changes:{uuid}', f'{NOW - 400} {OFFLINE}', f'{NOW - 390} {ONLINE}')
        redis.rpush(f'changes:{uuid}', f'{NOW - 300} {OFFLINE}')
        redis.rpush(keys.of('changes', uuid), f'{NOW - 200} {OFFLINE}')
        told = json.dumps({'state': OFFLINE, 'since': NOW - 200.0})
        redis.set(keys.of(keys.STATE, uuid), told)

    entries.ask(write_more)
    upkeep.migrate(entries)
    (changes, _) = state.past(entries, [uuid], NOW - 550, NOW)[uuid]
    assert [each.state for each in changes] == [OFFLINE, ONLINE, OFFLINE, ONLINE, OFFLINE]
    assert changes[-1].at == NOW - 200


def test_many_that_start_at_once_bring_all_over_once(entries):
    made = [str(uuids.uuid4()) for _ in range(300)]

    def write(redis) -> None:
        for each in made:
            redis.set(each, '{}')
            write_old(redis, each)
            redis.hset(keys.of('hours', each), DAY, f'{HOUR} 10 20 30 40')
            redis.rpush(keys.of('changes', each), f'{NOW - 500} {ONLINE}')

    entries.ask(write)
    entries.ask(write_old_of_all)
    workers = [Presence(entries) for _ in range(4)]
    gevent.joinall([gevent.spawn(each.write, {}) for each in workers], raise_error=True)
    for each in made:
        assert this_hour(entries, each) == Hour(11, 22, 33, 44)
        assert len(state.past(entries, [each], NOW - 1000, NOW)[each][0]) == 3
    assert this_hour(entries, state.ALL) == Hour(1, 2, 3, 4)
    assert len(state.server(entries).outages) == 3
    assert old_keys(entries) == set()


def test_hidden_server_of_an_older_worker_is_not_lost_before_that_ends(entries, uuid, monkeypatch):
    monkeypatch.setattr(presence, 'PATIENCE_SECONDS', 0)
    monkeypatch.setattr(presence, 'HEARTBEAT_SECONDS', 0)
    monkeypatch.setattr(presence, 'MISSED_SECONDS', 0)
    online = {'state': ONLINE, 'seen': NOW - 5.0, 'since': NOW - 600.0}
    subscription = entries.ask(lambda redis: redis.pubsub())
    subscription.subscribe(f'live:{OLD_WORKER}')
    subscription.get_message(timeout=5)

    def write(redis) -> None:
        write_old(redis, uuid, **online)
        redis.zadd('servers', {OLD_WORKER: time.time()})
        redis.hset(f'live:{OLD_WORKER}', mapping={'about': '{}', uuid: '1 0'})

    entries.ask(write)
    worker = Presence(entries)
    for _ in range(3):
        worker.write({})
        worker._look_around()
    assert record(entries, uuid)['state'] == ONLINE
    assert state.server(entries).outages == []
    entries.ask(lambda redis: redis.hset(f'hours:{uuid}', DAY, f'{HOUR} 1 0 0 0'))  # its last
    entries.ask(lambda redis: redis.delete(f'live:{OLD_WORKER}'))
    subscription.close()

    def has_ended() -> bool:
        worker.write({})
        worker._look_around()
        return record(entries, uuid)['state'] == OFFLINE

    until(has_ended, 'what it had is told')
    assert this_hour(entries, uuid) == Hour(2, 2, 3, 4)
    assert old_keys(entries) == set()


def test_what_versions_before_1_0_wrote_is_brought_over_once(entries, uuid):
    other, third, nobody = (str(uuids.uuid4()) for _ in range(3))
    seen = json.dumps({'at': 1e9, 'address': '192.0.2.1'})
    for each in (other, third):
        entries.add(each, [])

    def write(redis) -> None:
        redis.mset({f'seen:{each}': seen for each in (uuid, nobody)})
        redis.set(f'seen:{other}', 'x')
        redis.lpush(f'refused:{uuid}', 'x')
        redis.lpush(f'refused:{third}', 'x')
        redis.set('seen:config', seen)

    entries.ask(write)
    Presence(entries).write({})
    found = known(entries, uuid)
    assert (found.state, found.since, found.first, found.address) == (
        OFFLINE,
        1e9,
        1e9,
        '192.0.2.1',
    )
    (changes, _) = state.past(entries, [uuid], 0, 0)[uuid]
    assert [each.state for each in changes] == [OFFLINE]
    assert {known(entries, each).state for each in (other, third)} == {NEVER}
    left = entries.ask(lambda redis: {*redis.keys('seen:*'), *redis.keys('refused:*')})
    assert left == {'seen:config', f'seen:{nobody}'}
    entries.ask(lambda redis: redis.delete(*left))
    for each in (other, third):
        entries.delete(each)
