"""Label, note and host name of an entry: all that a form says, or nothing."""

import json
import uuid as uuids
from contextlib import closing

import gevent
import pytest
from gevent.event import Event

from rendezvous.store import entry_json, names, saving
from rendezvous.store.entries import CHANGES, Entries
from rendezvous.store.keys import NAMES
from rendezvous.store.options import DEFAULTS


@pytest.fixture(params=['one', 'cluster'])
def redis_options(request, redis_options):
    """Of one Redis, and of a cluster."""
    is_one = request.param == 'one'
    return redis_options if is_one else request.getfixturevalue('redis_cluster')


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


class Killed(BaseException):
    """This process ends here, and does nothing more."""


def killed_before(monkeypatch, entries, number: int, *wish) -> bool:
    """Saves until so many questions were asked; whether there were more to ask."""
    left, ask = [None] * number, entries._ask

    def asked(*args, **kwargs):
        if not left:
            raise Killed
        left.pop()
        return ask(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(entries, '_ask', asked)
        try:
            saving.save(entries, *wish)
        except Killed:
            return True
    return False


def shown(entries, uuid: str) -> tuple:
    """As all see it, by all ways to look."""
    known = {uuid: name for name, uuid in names.known(entries).items()}
    found = kept(entries, uuid)
    assert known.get(uuid, '') == found[2]
    return found


WISHES = [  # what it is before, what is wished, what it becomes
    ((['attic'], 'above', True), (['cellar'], 'below', None), (['cellar'], 'below', 'cellar')),
    ((['attic'], 'above', True), (['cellar'], 'below', False), (['cellar'], 'below', '')),
    ((['attic'], 'above', False), (['cellar'], 'below', True), (['cellar'], 'below', 'cellar')),
    ((['attic'], 'above', False), (None, 'below', True), (['attic'], 'below', 'attic')),
    ((['attic'], 'above', True), (None, 'below', False), (['attic'], 'below', '')),
    ((['attic'], 'above', False), (['cellar'], 'below', False), (['cellar'], 'below', '')),
]


@pytest.mark.parametrize(('first', 'wish', 'after'), WISHES)
def test_who_is_killed_in_between_leaves_all_or_nothing(
    entries, two, monkeypatch, first, wish, after
):
    """Wherever it ends; and the next one goes on from there, also one who wants that name."""
    monkeypatch.setattr(saving, 'PLAN_SECONDS', 0.01)
    uuid, other = two
    before = (*first[:2], 'attic' if first[2] else '')
    number, seen, is_killed = 0, [], True
    while is_killed:
        saving.save(entries, uuid, *first)
        assert shown(entries, uuid) == before
        is_killed = killed_before(monkeypatch, entries, number, uuid, *wish)
        seen.append(shown(entries, uuid))
        entries.disable(uuid)  # another change in between, which shows nothing
        entries.enable(uuid)
        assert shown(entries, uuid) == seen[-1]
        free = [name for name in ('attic', 'cellar') if name != seen[-1][2]]
        for name in free if number % 2 else ():
            assert saving.save(entries, other, [name], '', True).name == name
            assert saving.save(entries, other, named=False).name == ''
            assert shown(entries, uuid) == seen[-1]
        assert saving.save(entries, uuid, *wish).why == ''
        assert shown(entries, uuid) == after
        number += 1
    assert number > 3
    assert seen == sorted(seen, key=lambda each: each == after)  # all old ones come first
    assert set(map(str, seen)) == {str(before), str(after)}
    fields = {uuid: after[2], after[2]: uuid} if after[2] else {}
    assert entries.ask(lambda redis: redis.hgetall(NAMES)) == fields


@pytest.mark.parametrize('note', ['', 'a note'])
def test_who_is_slow_does_not_write_over_what_was_saved_meanwhile(
    entries, two, redis_options, note
):
    """It has planned to rename, and stops before the entry is written; then it goes on."""
    (uuid, _), may_go_on, stopped = two, Event(), Event()
    with closing(Entries(DEFAULTS | redis_options)) as slow:
        replace = slow.replace

        def replace_later(*args):
            stopped.set()
            may_go_on.wait()
            return replace(*args)

        slow.replace = replace_later
        renaming = gevent.spawn(saving.save, slow, uuid, ['attic'], None, True)
        stopped.wait()
        assert names.read(entries, uuid).then == 'attic'
        assert not note or saving.save(entries, uuid, note=note).before
        assert shown(entries, uuid) == (['kitchen'], note, '')
        assert saving.save(entries, two[1], ['attic'], None, True).name == 'attic'
        may_go_on.set()
        assert renaming.get().why.startswith(f'attic is the host name of the entry {two[1]}')
    assert shown(entries, uuid) == (['kitchen'], note, '')
    assert shown(entries, two[1]) == (['attic'], '', 'attic')


def test_of_many_that_rename_at_once_each_finds_the_names_right(entries, two):
    """A host name is the label of its entry, nobody has another's, and nothing is left over."""
    wishes = [
        (uuid, [label], f'{label} {number}', named)
        for number in range(4)
        for uuid in two
        for label in ('attic', 'cellar')
        for named in (True, False, None)
    ]
    saved = [gevent.spawn(saving.save, entries, *wish) for wish in wishes]
    while not all(each.ready() for each in saved):
        known = names.known(entries)
        assert len(set(known.values())) == len(known) <= 2
        gevent.sleep(0.01)
    gevent.joinall(saved, raise_error=True)
    found = {uuid: kept(entries, uuid) for uuid in two}
    for labels, note, name in found.values():
        assert note.split()[0] == labels[0]
        assert name in ('', labels[0])
    held = {uuid: name for uuid, (_, _, name) in found.items() if name}
    fields = held | {name: uuid for uuid, name in held.items()}
    assert entries.ask(lambda redis: redis.hgetall(NAMES)) == fields


def test_nothing_is_left_in_the_names_of_an_entry_that_is_deleted_meanwhile(entries, two):
    uuid, _ = two
    for _ in range(20):
        entries.delete(uuid)
        entries.add(uuid, ['kitchen'])
        changes = (saving.save, entries, uuid, ['attic'], None, True), (entries.delete, uuid)
        gevent.joinall([gevent.spawn(*change) for change in changes], raise_error=True)
        assert entries.get(uuid) is None
        assert saving.save(entries, uuid, note='x').before is None
        assert names.of(entries, uuid) == ''
        assert saving.save(entries, two[1], ['attic'], None, True).name == 'attic'
        saving.save(entries, two[1], named=False)
