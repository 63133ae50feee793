"""How entries are changed in Redis: whole or not at all, and the servers are told."""

import json
import time
from contextlib import closing

import gevent
import pytest
from conftest import until

from rendezvous.store import embedded, entry_json
from rendezvous.store.entries import CHANGES, Entries
from rendezvous.store.options import DEFAULTS


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
    assert entries.rename(uuid, ['attic'])
    assert entries.note(uuid, 'behind the door')
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
    assert not entries.rename(uuid, ['attic'])
    assert entries.get(uuid) is None


def test_changes_at_the_same_time_lose_nothing(entries, uuid):
    """Each reads the entry, changes a part of it and writes it back."""
    before = entries.get(uuid)['authParams']['base32']
    changes = [
        gevent.spawn(change, uuid, *more)
        for number in range(10)
        for change, *more in [(entries.rename, [f'{number}']), (entries.rekey,), (entries.disable,)]
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
    assert [entry['disabled'] for entry in entries.all() if entry['uuid'] == uuid] == [True]
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
    keys = f'seen:{uuid}', f'rendezvous:{uuid}'
    entries.ask(lambda redis: redis.mset(dict.fromkeys(keys, 'x')))
    entries.delete(uuid)
    assert not entries.ask(lambda redis: redis.exists(*keys))
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
        ({'disabled': 1.0}, {'disabled': True}),
        ({'disabled': None}, {'disabled': False}),
    ],
)
def test_what_can_be_shown_of_an_entry_that_anybody_wrote(entry, shown):
    nothing = {'labels': [], 'created': None, 'disabled': False}
    assert entry_json.summary(entry) == nothing | shown
