"""How entries are changed in Redis: whole or not at all, and the servers are told."""

import json
import time
import uuid as uuids
from contextlib import closing
from functools import partial

import gevent
import pytest
from conftest import until

from rendezvous.store import embedded, entry_json, keys, saving
from rendezvous.store.entries import CHANGES, Entries, StoreDown
from rendezvous.store.options import DEFAULTS


@pytest.fixture(params=['one', 'cluster'])
def redis_options(request, redis_options):
    """Of one Redis, and of a cluster."""
    is_one = request.param == 'one'
    return redis_options if is_one else request.getfixturevalue('redis_cluster')


@pytest.fixture
def told(entries):
    """The UUIDs that the servers are told."""
    found = []

    def listen(subscription) -> None:
        for message in subscription.listen():
            if message['type'] == 'message':
                found.append(message['data'])

    with entries.ask(lambda redis: redis.pubsub()) as subscription:
        subscription.subscribe(CHANGES)
        subscription.get_message(timeout=5)
        listening = gevent.spawn(listen, subscription)
        yield found
        listening.kill()


@pytest.mark.parametrize(
    ('host', 'where'),
    [
        (None, '{data}'),
        ('192.0.2.5', 'Redis at 192.0.2.5:6379'),
        ('2001:db8::5', 'Redis at [2001:db8::5]:6379'),
    ],
)
def test_it_is_said_where_the_entries_are(monkeypatch, tmp_path, host, where):
    monkeypatch.setattr(embedded, 'DATA', tmp_path)
    with closing(Entries(DEFAULTS | {'redis_host': host})) as entries:
        assert entries.where() == f'the entries are in {where}'.format(data=tmp_path)


def test_all_are_told_of_each_change(entries, uuid, told):
    assert saving.save(entries, uuid, labels=['attic']).before
    assert saving.save(entries, uuid, note='behind the door').before
    assert entries.disable(uuid)
    assert entries.enable(uuid)
    assert entries.rekey(uuid)
    assert entries.delete(uuid)
    assert entries.add(uuid, [])
    until(lambda: len(told) >= 7, 'they are told')
    entries.ask(lambda redis: redis.publish(CHANGES, 'the end'))
    until(lambda: 'the end' in told, 'they are told in order')
    assert told == [uuid] * 7 + ['the end']


def test_there_is_nothing_to_change_where_there_is_no_entry(entries, uuid):
    entries.delete(uuid)
    changes = entries.disable, entries.enable, entries.rekey, entries.delete
    assert not any(change(uuid) for change in changes)
    assert not saving.save(entries, uuid, labels=['attic']).before
    assert entries.get(uuid) is None


def test_changes_at_the_same_time_lose_nothing(entries, uuid):
    """Each reads the entry, changes a part of it and writes it back."""
    before, save = entries.get(uuid)['authParams']['base32'], partial(saving.save, entries)
    changes = [
        gevent.spawn(change, uuid, *more)
        for number in range(10)
        for change, *more in [(save, [f'{number}']), (entries.rekey,), (entries.disable,)]
    ]
    gevent.joinall(changes, timeout=20, raise_error=True)
    entry = entries.get(uuid)
    assert entry['labels'][0].isdigit()
    assert entry['disabled']
    secrets = [each.value['authParams']['base32'] for each in changes[1::3]]
    assert entry['authParams']['base32'] in secrets
    assert before not in secrets


def test_entry_is_disabled_since_the_first_time_and_enabled_since_the_last(entries, uuid):
    entries.disable(uuid)
    since = entries.get(uuid)['disabled']
    assert abs(time.time() - since) < 60
    entries.disable(uuid)
    assert entries.get(uuid)['disabled'] == since
    assert [entry['disabled'] for entry in entries.all() if entry['uuid'] == uuid] == [since]
    entries.enable(uuid)
    entry = entries.get(uuid)
    assert 'disabled' not in entry
    assert since <= entry['enabled'] <= time.time()
    entries.enable(uuid)
    assert entries.get(uuid) == entry


@pytest.mark.parametrize(('given', 'digits'), [(6, 6), (8, 8), (None, 6), ('9', 8)])
def test_new_secret_has_codes_of_as_many_digits_as_the_old_one(entries, uuid, given, digits):
    """An entry of node-rendezvous does not say how many: they are six."""
    entry = entries.get(uuid) | {'disabled': 1.0, 'qrcodeURL': 'https://chart.example/?secret'}
    entry['authParams']['digits'] = given
    if given is None:
        del entry['authParams']['digits']
    entries.ask(lambda redis: redis.set(uuid, json.dumps(entry)))
    made = entries.rekey(uuid)
    assert made == entries.get(uuid)
    assert made['authParams']['digits'] == digits
    assert f'digits={digits}' in made['authURL']
    assert made['authParams']['base32'] in made['authURL']
    assert made['authParams']['base32'] != entry['authParams']['base32']
    assert {made[name] == entry[name] for name in ('labels', 'created', 'disabled')} == {True}
    assert 'qrcodeURL' not in made
    assert entries.rekey(uuid, 7)['authParams']['digits'] == 7


@pytest.mark.parametrize('value', ['no json', '[]', '{"authParams": 1, "uuid": "../x"}'])
def test_new_secret_mends_an_entry_that_makes_no_sense(entries, uuid, value):
    entries.ask(lambda redis: redis.set(uuid, value))
    assert entry_json.is_sound(entries.rekey(uuid))
    assert entries.get(uuid)['uuid'] == uuid


def test_delete_forgets_who_was_here_and_leaves_a_key_of_another_type_alone(entries, uuid):
    kinds = *keys.HISTORY_OF, keys.STATE, keys.GUESSES
    kept = [keys.of(kind, uuid) for kind in kinds]
    entries.ask(lambda redis: redis.mset(dict.fromkeys(kept, 'x')))
    entries.delete(uuid)
    assert not entries.ask(lambda redis: redis.exists(*kept))
    entries.ask(lambda redis: redis.hset(uuid, 'mine', 'x'))
    assert entries.get(uuid) is None
    assert not entries.disable(uuid)
    assert entries.ask(lambda redis: redis.hgetall(uuid)) == {'mine': 'x'}


@pytest.mark.parametrize(
    ('entry', 'shown'),
    [
        ({'labels': ['\x1b[2J\0\u202e\u2066x']}, {'labels': ['\ufffd[2J\ufffd\ufffd\ufffdx']}),
        ({'labels': [[['x']], {}, 1, None]}, {'labels': ['', '', '1', 'None']}),
        ({'created': '1'}, {'created': None}),
        ({'created': 1e300}, {'created': None}),
        ({'created': float('nan')}, {'created': None}),
        ({'created': True}, {'created': None}),
        ({'created': 1}, {'created': 1.0}),
        ({'disabled': 5.5}, {'disabled': 5.5}),
        ({'disabled': True}, {'disabled': 1.0}),
        ({'disabled': 'x'}, {'disabled': 1.0}),
        ({'disabled': 0}, {'disabled': None}),
        ({'disabled': None}, {'disabled': None}),
        ({'note': 'attic\r\nbehind\x1bit \n'}, {'note': 'attic\nbehind\ufffdit'}),
        ({'note': 'x' * 500}, {'note': 'x' * 400}),
        ({'note': ['x']}, {'note': ''}),
    ],
)
def test_what_can_be_shown_of_an_entry_that_anybody_wrote(entry, shown):
    nothing = {'labels': [], 'note': '', 'created': None, 'disabled': None}
    assert entry_json.summary(entry) == nothing | shown


LONG = 'kitchen 1' + '0' * 5000  # more digits than a number of Python's may have
SORTED = ['attic', 'Émile', 'garage', 'Kitchen 2', 'kitchen 10', LONG, 'zoo', '']


def test_labels_are_sorted_as_people_do(entries):
    """Whatever their case and their numbers; those without a label come last."""
    made = {str(uuids.uuid4()): label for label in SORTED[::-1]}
    for uuid, label in made.items():
        entries.add(uuid, [label] if label else [])
    listed = [made[each['uuid']] for each in entries.all() if each['uuid'] in made]
    assert listed == SORTED
    for uuid in made:
        entries.delete(uuid)


def test_entries_of_the_same_label_are_sorted_by_uuid(entries):
    made = [str(uuids.uuid4()) for _ in range(5)]
    for uuid in made:
        entries.add(uuid, ['kitchen'])
    listed = [each['uuid'] for each in entries.all() if each['uuid'] in made]
    assert listed == sorted(made)
    for uuid in made:
        entries.delete(uuid)


def test_what_has_changed_is_read_anew_and_what_has_not_is_not_parsed(entries, uuid, monkeypatch):
    other, nobody = str(uuids.uuid4()), str(uuids.uuid4())
    entries.add(other, ['attic'])
    assert {uuid, other} <= set(entries.uuids())
    assert [each['labels'] for each in entries.some([uuid, nobody, other])] == [
        ['kitchen'],
        ['attic'],
    ]
    entries.ask(lambda redis: redis.set(other, '{"labels": ["cellar"]}'))
    parsed, read = [], entry_json.read
    monkeypatch.setattr(entry_json, 'read', lambda value: parsed.append(value) or read(value))
    found = entries.some([uuid, other])
    assert [each['labels'] for each in found] == [['kitchen'], ['cellar']]
    assert parsed == ['{"labels": ["cellar"]}']
    found[0]['state'] = 'mine'
    assert 'state' not in entries.some([uuid])[0]
    entries.delete(other)
    assert other not in entries.uuids()
    assert entries.some([other]) == []
    assert other not in entries._shown


def test_note_is_kept_until_it_is_taken_away(entries, uuid):
    assert saving.save(entries, uuid, note='in the attic\nbehind the door').before
    assert entries.shown(uuid)['note'] == 'in the attic\nbehind the door'
    assert saving.save(entries, uuid, note='').before
    assert 'note' not in entries.get(uuid)
    assert not saving.save(entries, str(uuids.uuid4()), note='x').before


def test_messages_on_other_channels_come_with_the_changes(entries, uuid):
    """And what may have been missed is told once, when the connection was lost."""
    changes, found = entries.changes('mine'), []
    listening = gevent.spawn(lambda: [found.append(each) for each in changes])
    until(lambda: found, 'it has subscribed')
    entries.ask(lambda redis: redis.publish('mine', 'hello'))
    saving.save(entries, uuid, labels=['attic'])
    until(lambda: len(found) == 3, 'they are told')
    assert found == [(CHANGES, ''), ('mine', 'hello'), (CHANGES, uuid)]

    def kill(redis) -> None:
        to = {'target_nodes': redis.get_nodes()} if entries.is_cluster else {}
        redis.execute_command('CLIENT KILL', 'TYPE', 'pubsub', **to)

    entries.ask(kill)
    until(lambda: len(found) == 4, 'it has subscribed again')
    assert found[3] == (CHANGES, '')
    listening.kill()
    changes.close()


def test_questions_without_an_answer_are_counted(entries):
    with closing(Entries(DEFAULTS | {'redis_host': '127.0.0.1', 'redis_port': 1})) as lost:
        for count in (1, 2):
            with pytest.raises(StoreDown):
                lost.get('x')
            assert lost.errors == count
    assert entries.errors == 0
