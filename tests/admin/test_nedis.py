"""What is read of a nedis.db, in both forms that Redis commands have."""

import json
import uuid as uuids

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rendezvous.admin import nedis
from rendezvous.admin.nedis import Unreadable, commands, find

FIRST, SECOND = 'aaaaaaaa-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000002'


def entry(label: str = 'kitchen', **authorization) -> str:
    parameters = {'protocol': 'totp', 'algorithm': 'sha1', 'length': 40, 'step': 30}
    parameters |= {'base32': 'GEZDGNBVGY3TQOJQ' * 4} | authorization
    return json.dumps({'uuid': 'x', 'authParams': parameters, 'labels': [label]})


def array(*words) -> bytes:
    """A command as nedis wrote it."""
    encoded = [word if isinstance(word, bytes) else word.encode() for word in words]
    bulks = b''.join(b'$%d\r\n%b\r\n' % (len(word), word) for word in encoded)
    return b'*%d\r\n' % len(encoded) + bulks


def quoted(octets: bytes) -> bytes:
    return b'"' + b''.join(b'\\x%02x' % octet for octet in octets) + b'"'


def labels(octets: bytes) -> dict[str, str]:
    return {uuid: entry['labels'][0] for uuid, (_, entry) in find(octets).entries.items()}


words = st.lists(st.binary(), min_size=1)


@settings(deadline=None)  # other work on the machine is no fault of it
@given(st.lists(words))
def test_commands_are_read_as_they_were_written_in_either_form(written):
    arrays = b''.join(array(*each) for each in written)
    assert [words for _, words in commands(arrays)] == written
    lines = b''.join(b' '.join(map(quoted, each)) + b'\r\n' for each in written)
    expected = list(enumerate(written, 1))
    assert list(commands(lines)) == expected


@settings(deadline=None)  # other work on the machine is no fault of it
@given(st.binary() | st.lists(words).map(lambda all: b''.join(array(*each) for each in all)[:-1]))
def test_anything_is_read_or_is_unreadable_from_a_line_on(octets):
    find(octets)


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        (b'set a b', [b'set', b'a', b'b']),
        (b'  set\ta  "b c"  ', [b'set', b'a', b'b c']),
        (rb'set a "\x41\"\\\n\q"', [b'set', b'a', b'A"\\\nq']),
        (rb"set a 'b \'\n'", [b'set', b'a', rb"b '\n"]),
        (b'set a ""', [b'set', b'a', b'']),
        (b"set '' b", [b'set', b'', b'b']),
    ],
)
def test_line_has_the_words_that_redis_finds_in_it(line, words, entries):
    assert list(commands(line)) == [(1, words)]
    assert list(commands(b'\n \r\n' + line + b'\n')) == [(3, words)]


@pytest.mark.parametrize(
    'rest',
    [
        b'set a "b',
        b"set a 'b",
        b'set a "b"c',
        b'*x\r\n',
        b'*2\n',
        b'*2\r\n$3\r\nDEL\r\n',
        b'*1\r\n$4\r\nDEL\r\n',
        b'*1\r\n$3\r\nDELx\r\n',
        b'*999999\r\n$999999999\r\n',
        array('SET', FIRST, entry())[:-1],
    ],
)
def test_entries_before_an_unreadable_line_are_found(rest):
    octets = array('set', FIRST, entry()) + rest
    found = find(octets)
    assert found.unreadable == 8
    assert found.entries.keys() == {FIRST}
    with pytest.raises(Unreadable):
        list(commands(octets))


def test_last_command_for_a_key_counts():
    octets = b''.join(
        [
            array('set', FIRST, entry('old')),
            array('SET', SECOND, entry('second')),
            array('Set', FIRST, entry('new')),
        ]
    )
    assert labels(octets) == {FIRST: 'new', SECOND: 'second'}
    assert find(octets).skipped == [(1, 'line 15 replaces it')]
    octets += array('del', FIRST, 'other')
    assert labels(octets) == {SECOND: 'second'}
    assert find(octets).skipped == [(1, 'line 15 replaces it'), (15, 'line 22 deletes it')]
    assert labels(octets + array('set', FIRST, entry('again'))).keys() == {FIRST, SECOND}
    assert labels(octets + array('set', SECOND, 'no entry')) == {}
    assert labels(octets + array('set', FIRST, SECOND)) == {SECOND: 'second'}  # a value is no key


@pytest.mark.parametrize(
    'command',
    [
        ['hset', FIRST, 'labels', 'x'],
        ['set', FIRST, entry(), 'NX'],
        ['set', FIRST],
        ['flushall'],
        ['select', '0'],
        ['\x1b[2J'],
    ],
)
def test_other_commands_are_skipped(command):
    found = find(array(*command))
    assert (found.entries, found.unreadable) == ({}, None)
    assert found.skipped == [(1, 'it is neither SET KEY VALUE nor DEL')]


@pytest.mark.parametrize('key', ['kitchen', FIRST.upper(), f'{FIRST}0', b'\xff', ''])
def test_keys_that_are_not_uuids_are_skipped(key):
    found = find(array('set', key, entry()))
    assert (found.entries, found.skipped) == ({}, [(1, 'its key is not a UUID in lower case')])


@pytest.mark.parametrize(
    'value',
    [
        '',
        'null',
        '[]',
        '{}',
        '[' * 100_000,
        b'{"labels": "\xff"}',
        '{"authParams": []}',
        entry(base32='!'),
        entry(base32=''),
        entry(base32=None),
        entry(digits=5),
        entry(digits='6'),
        entry(algorithm='md5'),
        entry(step=0),
        entry(step='x'),
        entry(step=1e-320),
    ],
)
def test_values_without_a_usable_secret_are_skipped(value):
    found = find(array('set', FIRST, value))
    left = [(1, f'the value of {FIRST} is not an entry')]
    assert (found.entries, found.skipped) == ({}, left)


def test_time_grows_only_with_the_size():
    """Not more than a time that grows with their number: the test has a deadline."""
    value = entry('x' * 10_000)
    octets = b''.join(array('set', str(uuids.UUID(int=number)), value) for number in range(1000))
    assert len(find(octets).entries) == 1000
    for hostile in (b'"', b'a ', b'\\', b'*1\r\n', b'\n', b'"\\', b"a'", b' \t'):
        nedis.find(hostile * (1_000_000 // len(hostile)))
