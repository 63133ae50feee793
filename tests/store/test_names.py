"""The names that are switched on: which may be one, whose it is, and what happens to it."""

import json
import time
import uuid as uuids

import gevent
import pytest

from rendezvous.store import names
from rendezvous.store.keys import NAMES
from rendezvous.wire.programs import Mistake


@pytest.fixture(params=['one', 'cluster'])
def redis_options(request, redis_options):
    """Of one Redis, and of a cluster."""
    is_one = request.param == 'one'
    return redis_options if is_one else request.getfixturevalue('redis_cluster')


@pytest.mark.parametrize(
    'label', ['kitchen', 'Kitchen', 'KITCHEN-2', 'a', '7', '1-1', 'a--b', 'xn--kche-0ra', 'x' * 63]
)
def test_label_of_a_host_name_is_a_name_in_lower_case(label):
    assert names.checked(label) == label.lower()


@pytest.mark.parametrize(
    'label',
    [
        '',
        '-',
        '-a',
        'a-',
        'my kitchen',
        'a.b',
        'a_b',
        'küche',
        '\u212aitchen',
        'x' * 64,
        'a\n',
        '*',
    ],
)
def test_other_label_is_none_and_a_sentence_says_what_one_is(label):
    with pytest.raises(Mistake, match=r'^a name has 1 to 63 characters: .*; rename the entry, '):
        names.checked(label)


@pytest.mark.parametrize('change', [str.lower, str.upper])
def test_uuid_is_no_label(change):
    with pytest.raises(Mistake, match='a UUID is a name by itself'):
        names.checked(change(str(uuids.uuid4())))


def test_name_is_switched_on_changed_and_off(entries, two):
    uuid = two[0]
    assert (names.of(entries, uuid), names.known(entries)) == ('', {})
    assert names.give(entries, uuid, 'kitchen')
    assert names.give(entries, uuid, 'kitchen')  # where the first answer was lost
    assert (names.of(entries, uuid), names.known(entries)) == ('kitchen', {'kitchen': uuid})
    assert names.give(entries, uuid, 'attic')
    assert (names.of(entries, uuid), names.known(entries)) == ('attic', {'attic': uuid})
    off(entries, uuid)
    off(entries, uuid)
    assert (names.of(entries, uuid), names.known(entries)) == ('', {})
    assert entries.ask(lambda redis: redis.exists(NAMES)) == 0


def off(entries, uuid: str) -> None:
    assert names.put(entries, uuid, names.read(entries, uuid), names.plain(''))


def test_name_of_another_entry_stays_its_own(entries, two):
    names.give(entries, two[0], 'kitchen')
    names.give(entries, two[1], 'attic')
    assert not names.give(entries, two[1], 'kitchen')
    assert names.known(entries) == {'kitchen': two[0], 'attic': two[1]}


def test_one_of_many_at_once_gets_the_name(entries, two):
    tries = [gevent.spawn(names.give, entries, two[count % 2], 'kitchen') for count in range(40)]
    gevent.joinall(tries, raise_error=True)
    (holder,) = names.known(entries).values()
    assert [each.value for each in tries] == [holder == two[n % 2] for n in range(40)]


def test_names_change_hands_at_once_and_nobody_has_anothers(entries, two):
    """Whatever is given to whom: both ways of the hash fit each other, and nothing else is left."""
    wanted = [(uuid, name) for uuid in two for name in ('kitchen', 'attic', 'cellar')]
    for _ in range(5):
        giving = [gevent.spawn(names.give, entries, *each) for each in wanted]
        gevent.joinall(giving, raise_error=True)
        held = {uuid: names.of(entries, uuid) for uuid in two}
        assert all(held.values())
        both = held | {name: uuid for uuid, name in held.items()}
        assert entries.ask(lambda redis: redis.hgetall(NAMES)) == both
        assert len(both) == 4


def test_name_that_an_entry_got_back_while_its_field_was_read_is_given_back(entries, two):
    names.give(entries, two[0], 'attic')
    # The name was another one's in the moment in which it was looked up.
    assert names.put(entries, two[0], names.Field('attic'), names.plain('cellar'))
    assert names.give(entries, two[1], 'attic')
    assert names.known(entries) == {'cellar': two[0], 'attic': two[1]}


def test_deleted_entry_gives_its_name_back(entries, two):
    names.give(entries, two[0], 'kitchen')
    assert entries.delete(two[0])
    assert entries.ask(lambda redis: redis.hgetall(NAMES)) == {}
    assert names.give(entries, two[1], 'kitchen')


def test_name_of_an_entry_that_another_program_deleted_is_free(entries, two):
    first, second = two
    assert names.give(entries, first, 'kitchen')
    entry = entries.get(first)
    entries.ask(lambda redis: redis.delete(first))
    assert names.give(entries, second, 'kitchen')
    assert entries.insert(first, entry)  # from a backup: the name is another one's now
    assert names.of(entries, first) == ''
    off(entries, first)
    assert names.known(entries) == {'kitchen': second}
    assert not names.give(entries, first, 'kitchen')
    off(entries, second)
    assert names.give(entries, first, 'kitchen')


def test_what_another_program_wrote_into_the_hash_is_no_name(entries, two):
    uuid = two[0]
    names.give(entries, uuid, 'kitchen')
    odd = {'attic': 'x', 'hall': '', 'cellar': json.dumps(two), uuid.upper(): uuid, two[1]: 'attic'}
    entries.ask(lambda redis: redis.hset(NAMES, mapping=odd))
    assert names.known(entries) == {'kitchen': uuid}
    assert names.of(entries, two[1]) == ''
    entries.ask(lambda redis: redis.set('x', 'mine'))
    for name in ('attic', 'hall', 'cellar'):
        assert names.give(entries, two[1], name)
        assert names.of(entries, two[1]) == name
    off(entries, two[1])
    entries.ask(lambda redis: redis.delete('x'))
    for text in ('kitchen', 'attic hall', 'kitchen attic x', '- - -', 'a b c d', uuid, ' '):
        entries.ask(lambda redis, text=text: redis.hset(NAMES, two[1], text))
        assert names.of(entries, two[1]) == ''
        assert names.known(entries) == {'kitchen': uuid}


def test_key_of_another_program_stays_as_it_is(entries, two):
    entries.ask(lambda redis: redis.rpush(NAMES, 'Ada'))
    assert (names.of(entries, two[0]), names.known(entries)) == ('', {})
    with pytest.raises(names.Unfit, match='another program uses the key'):
        names.give(entries, two[0], 'kitchen')
    assert entries.delete(two[0])
    assert entries.ask(lambda redis: redis.lrange(NAMES, 0, -1)) == ['Ada']


def test_others_get_their_turn_while_many_names_are_read(entries, two):
    many = {f'name-{number}': str(uuids.uuid4()) for number in range(10_000)}
    both = many | {uuid: name for name, uuid in many.items()}
    entries.ask(lambda redis: redis.hset(NAMES, mapping=both))
    longest, over = 0.0, False

    def look() -> None:
        nonlocal longest
        while not over:
            began = time.thread_time()
            gevent.sleep(0)
            longest = max(longest, time.thread_time() - began)

    looking = gevent.spawn(look)
    began = time.thread_time()
    assert names.known(entries) == many
    took, over = time.thread_time() - began, True
    looking.join()
    assert longest < took / 8  # some 7 ms of 600
