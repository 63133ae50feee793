"""Label, note and host name of an entry: all that a form says, or nothing."""

import json
import uuid as uuids

import gevent
import pytest

from rendezvous.store import entry_json, names, saving
from rendezvous.store.entries import CHANGES
from rendezvous.store.keys import NAMES


def kept(entries, uuid: str) -> tuple[list[str], str, str]:
    """Labels, note and host name."""
    entry = entries.get(uuid)
    return entry['labels'], entry.get('note', ''), names.of(entries, uuid)


def test_all_three_are_saved_at_once(entries, two):
    uuid, _ = two
    before = entries.get(uuid)
    saved = saving.save(entries, uuid, ['Attic'], 'under the roof\nleft', True)
    assert (saved.before, saved.name, saved.former, saved.why) == (before, 'attic', '', '')
    assert kept(entries, uuid) == (['Attic'], 'under the roof\nleft', 'attic')
    after = entries.get(uuid)
    assert after.pop('note')
    assert after.pop('saved')
    assert after == before | {'labels': ['Attic']}  # and nothing else


def test_what_is_not_given_stays(entries, two):
    uuid, _ = two
    saving.save(entries, uuid, ['attic'], 'a note', True)
    for given in ({}, {'note': 'a note'}, {'labels': ['attic']}, {'named': True}):
        assert not saving.save(entries, uuid, **given).why
        assert kept(entries, uuid) == (['attic'], 'a note', 'attic')
    saving.save(entries, uuid, note='')
    assert 'note' not in entries.get(uuid)
    assert saving.save(entries, uuid, named=False).former == 'attic'
    assert kept(entries, uuid) == (['attic'], '', '')


def test_host_name_goes_with_the_label(entries, two):
    uuid, _ = two
    saving.save(entries, uuid, named=True)
    saved = saving.save(entries, uuid, ['attic'])
    assert (saved.name, saved.former) == ('attic', 'kitchen')
    assert names.known(entries) == {'attic': uuid}


@pytest.mark.parametrize(
    ('labels', 'why'),
    [
        (['kitchen'], 'kitchen is the host name of the entry {other}: choose another label'),
        (['in the attic'], "'in the attic' cannot be a host name: a name has 1 to 63 characters"),
        ([], 'an entry without a label has no host name: give it a label'),
    ],
)
@pytest.mark.parametrize('former', ['', 'attic'])
def test_nothing_at_all_is_saved_where_the_name_cannot_be_had(entries, two, labels, why, former):
    uuid, other = two
    saving.save(entries, other, named=True)
    saving.save(entries, uuid, ['attic'], 'a note', bool(former))
    saved = saving.save(entries, uuid, labels, 'another note', True)
    assert saved.why.startswith(why.format(other=other))
    assert saved.why.endswith(', or first switch off its host name attic') is bool(former)
    assert kept(entries, uuid) == (['attic'], 'a note', former)
    assert names.of(entries, other) == 'kitchen'


def test_two_that_want_one_name_at_the_same_moment_do_not_both_get_it(entries, two):
    for _ in range(20):
        saving.save(entries, two[0], named=False)
        saving.save(entries, two[1], named=False)
        running = [gevent.spawn(saving.save, entries, uuid, named=True) for uuid in two]
        saved = [each.get() for each in running]
        assert sorted(each.name for each in saved) == ['', 'kitchen']
        assert sorted(names.of(entries, uuid) for uuid in two) == ['', 'kitchen']


def test_change_of_another_program_at_the_same_moment_is_kept(entries, two):
    uuid, _ = two
    running = [gevent.spawn(saving.save, entries, uuid, note=str(count)) for count in range(10)]
    running += [gevent.spawn(entries.disable, uuid), gevent.spawn(entries.rekey, uuid)]
    before = entries.get(uuid)['authParams']
    gevent.joinall(running, raise_error=True)
    entry = entries.get(uuid)
    assert entry['disabled']
    assert entry['authParams'] != before
    assert entry['note'] in map(str, range(10))


def test_name_of_a_deleted_entry_is_free(entries, two):
    uuid, _ = two
    entries.ask(lambda redis: redis.hset(NAMES, 'kitchen', str(uuids.uuid4())))
    assert saving.save(entries, uuid, named=True).name == 'kitchen'


def test_where_there_is_no_entry_nothing_is_made(entries):
    uuid = str(uuids.uuid4())
    assert saving.save(entries, uuid, ['attic'], 'a note', True).before is None
    assert entries.ask(lambda redis: redis.exists(uuid, NAMES)) == 0


def test_entry_that_makes_no_sense_can_be_given_a_label(entries, two):
    uuid, _ = two
    for value in ('no json', '[]', '{"labels": 7, "note": [1]}'):
        entries.ask(lambda redis, text=value: redis.set(uuid, text))
        assert not saving.save(entries, uuid, ['attic'], 'a note').why
        assert kept(entries, uuid) == (['attic'], 'a note', '')


def test_key_of_another_program_is_left_alone(entries, two):
    uuid, _ = two
    entries.ask(lambda redis: redis.set(NAMES, 'mine'))
    assert 'another program uses the key' in saving.save(entries, uuid, note='x', named=True).why
    assert not saving.save(entries, uuid, ['attic'], 'a note').why
    assert kept(entries, uuid) == (['attic'], 'a note', '')
    assert entries.ask(lambda redis: redis.get(NAMES)) == 'mine'


def test_all_are_told(entries, two):
    with entries.ask(lambda redis: redis.pubsub()) as subscription:
        subscription.subscribe(CHANGES)
        subscription.get_message(timeout=5)
        saving.save(entries, two[0], note='a note')
        assert subscription.get_message(timeout=5)['data'] == two[0]


def test_note_is_shown_and_the_value_in_redis_stays_json(entries, two):
    uuid, _ = two
    saving.save(entries, uuid, note='Küche\n<b>')
    assert entries.shown(uuid)['note'] == 'Küche\n<b>'
    value = entries.ask(lambda redis: redis.get(uuid))
    assert entry_json.read(value) == json.loads(value)
