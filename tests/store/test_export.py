"""An entry that is kept elsewhere and put back, and a copy of the whole embedded store."""

import json
import os
import shutil
import time
import uuid as uuids
from contextlib import closing
from pathlib import Path

import gevent
import pytest
from conftest import until

from rendezvous.store import embedded, export, names, saving, state
from rendezvous.store.entries import CHANGES, Entries
from rendezvous.store.options import DEFAULTS
from rendezvous.store.presence import Presence
from rendezvous.store.state import Why
from rendezvous.wire.programs import Mistake

ENDED = {'at': 1e9, 'address': '192.0.2.1', 'seconds': 1.0, 'sent': 5, 'received': 7, 'how': 'x'}


@pytest.fixture(params=['one', 'cluster'])
def redis_options(request, redis_options):
    """Of one Redis, and of a cluster."""
    is_one = request.param == 'one'
    return redis_options if is_one else request.getfixturevalue('redis_cluster')


@pytest.fixture
def busy(entries, uuid):
    """The UUID of an entry with a past."""
    told = Presence(entries)
    told.note_online(uuid, '192.0.2.1')
    told.note_rendezvous(uuid, **ENDED)
    told.write({uuid: (1, 0)})
    told.note_refusal(uuid, '192.0.2.1', Why('wrong'))
    told.write({})
    saving.save(entries, uuid, note='in the attic\nbehind the door')
    entries.disable(uuid)
    assert names.give(entries, uuid, f'n-{uuid[:8]}')
    return uuid


def past(entries, uuid: str) -> tuple:
    of, now = state.server(entries), time.time()
    hours = state.past(entries, [uuid], now - 86400, now)
    history = state.history(entries, uuid)
    known = state.known_of(entries, of, uuid)
    return entries.get(uuid), names.of(entries, uuid), hours, history, known


def test_entry_is_put_back_with_its_secret_and_its_past(entries, busy):
    before, kept = past(entries, busy), export.whole(entries, busy)
    (changes, hours), history = before[2][busy], before[3]
    assert [each.state for each in changes] == ['online', 'disabled']
    assert len(history) == 1
    assert sum(hour.visits for hour in hours) == 1
    entries.delete(busy)
    assert export.whole(entries, busy) is None
    assert past(entries, busy) != before
    text = json.dumps(kept)
    assert '\n' not in text
    with entries.ask(lambda redis: redis.pubsub()) as subscription:
        subscription.subscribe(CHANGES)
        subscription.get_message(timeout=5)
        assert export.put_back(entries, json.loads(text))
        assert subscription.get_message(timeout=5)['data'] == busy
    assert past(entries, busy) == before
    assert export.whole(entries, busy) == kept


def test_entry_that_is_there_stays_as_it_is(entries, busy):
    kept = export.whole(entries, busy)
    assert export.put_back(entries, kept)  # as where the first answer was lost
    saving.save(entries, busy, labels=['attic'])
    before = past(entries, busy)
    assert not export.put_back(entries, kept)
    assert past(entries, busy) == before


def test_name_that_another_entry_has_by_now_is_left_out(entries, busy):
    kept, other = export.whole(entries, busy), str(uuids.uuid4())
    entries.delete(busy)
    entries.add(other, [])
    assert names.give(entries, other, kept['name'])
    assert export.put_back(entries, kept)
    assert names.of(entries, busy) == ''
    assert names.of(entries, other) == kept['name']
    entries.delete(busy)
    entries.delete(other)
    assert export.put_back(entries, kept)
    assert names.of(entries, busy) == kept['name']


UUID = str(uuids.uuid4())
WRONG = [
    *(None, [], 'x', {}, {'uuid': 1}, {'uuid': UUID}, {'uuid': UUID, 'entry': {}}),
    *({'uuid': UUID.upper(), 'entry': '{}'}, {'uuid': UUID, 'entry': 'x' * 100_000}),
    {'uuid': '../x', 'entry': '{}'},
]


@pytest.mark.parametrize('kept', WRONG)
def test_what_cannot_be_put_back_is_refused_in_a_sentence(entries, kept):
    with pytest.raises(ValueError, match=r'^(it|[0-9a-f-]{36}) has no '):
        export.put_back(entries, kept)


def test_odd_parts_are_left_out(entries):
    odd = ['x', 1, None, [], {'x': 1}, 'x' * 9999, '\ud800']
    hours = {'1': 'x', '4': '\udfff', 'x': 'x', '2': 5, '-1': 'x', '3': '1 2 3 4 5'}
    kept = {'uuid': UUID, 'entry': 'x', 'name': 'a b', 'state': 5, 'more': 1}
    assert export.put_back(entries, kept | {'changes': odd, 'rendezvous': 7, 'hours': hours})
    whole = export.whole(entries, UUID)
    assert whole == {
        **{'uuid': UUID, 'entry': 'x', 'name': '', 'state': '', 'changes': ['x']},
        **{'rendezvous': [], 'hours': {'1': 'x', '3': '1 2 3 4 5'}},
    }
    entries.delete(UUID)


def test_keys_of_another_kind_are_no_part_of_it(entries, uuid):
    def write(redis) -> None:
        for name in ('changes', 'rendezvous', 'hours'):
            redis.set(f'{name}:{uuid}', 'x')

    entries.ask(write)
    kept = export.whole(entries, uuid)
    assert (kept['changes'], kept['rendezvous'], kept['hours']) == ([], [], {})
    entries.ask(lambda redis: redis.delete(uuid))
    assert export.put_back(entries, kept)
    assert export.whole(entries, uuid) == kept


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The embedded store of this process, in a folder of its own."""
    monkeypatch.setattr(embedded, 'DATA', tmp_path / 'data')
    with closing(Entries(DEFAULTS)) as entries:
        yield entries


def backup(entries: Entries, file: Path) -> None:
    with export.backup(entries) as copy:
        file.write_bytes(copy.read())


def test_backup_holds_all_that_was_acknowledged_before_it(store, tmp_path, monkeypatch):
    """It is made while others write, and a store of another folder starts with it."""
    made, file = [], tmp_path / 'backup.rdb'

    def write() -> None:
        while True:
            uuid = str(uuids.uuid4())
            store.add(uuid, ['kitchen'])
            made.append(uuid)

    writing = gevent.spawn(write)
    until(lambda: len(made) > 50, 'some are there')
    before = list(made)
    backup(store, file)
    assert len(made) > len(before)
    assert sorted(os.listdir(tmp_path)) == ['backup.rdb', 'data']
    assert 'dump.rdb' not in os.listdir(embedded.DATA)
    backup(store, file)
    writing.kill()
    (tmp_path / 'fresh').mkdir(mode=0o700)
    shutil.copy(file, tmp_path / 'fresh' / 'appendonly.aof')
    monkeypatch.setattr(embedded, 'DATA', tmp_path / 'fresh')
    with closing(Entries(DEFAULTS)) as fresh:
        assert set(before) <= set(fresh.uuids()) <= set(made)
        fresh.add(UUID, [])
    with closing(Entries(DEFAULTS)) as again:
        assert again.get(UUID)
        assert again.get(before[0]) == store.get(before[0])


def test_backups_at_the_same_time_are_whole(store, tmp_path):
    store.add(UUID, [])
    files = [tmp_path / f'{number}.rdb' for number in range(3)]
    gevent.joinall([gevent.spawn(backup, store, each) for each in files], raise_error=True)
    for file in files:
        assert UUID.encode() in file.read_bytes()


def test_copy_that_the_store_cannot_write_is_told_in_a_sentence(store, tmp_path):
    store.add(UUID, [])
    (embedded.DATA / export.DUMP).mkdir()
    with pytest.raises(Mistake, match=r'cannot write .*dump.rdb: see .*valkey.log'):
        backup(store, tmp_path / 'x')


def test_another_redis_is_not_copied(entries, tmp_path):
    with pytest.raises(Mistake, match=r'the entries are in .*127.0.0.1:.*redis-cli --rdb'):
        backup(entries, tmp_path / 'x')
