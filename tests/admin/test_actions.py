"""What is done with an entry, by whichever door: what may be typed, and what is noted."""

import uuid as uuids

import pytest
from asking import follows
from conftest import cut_off, until

from rendezvous.admin import actions, entry_files
from rendezvous.admin.actions import Unable, Who
from rendezvous.store import action_log, names, questions, state
from rendezvous.store import options as local

ALICE = Who('shell', 'alice')


@pytest.fixture
def options(redis_options, pair):
    return local.DEFAULTS | redis_options | pair | {'names_domain': 'names.example'}


@pytest.fixture(autouse=True)
def _files(monkeypatch, tmp_path):
    monkeypatch.setattr(entry_files, 'FILES', tmp_path / 'entries')


@pytest.fixture
def make(entries, options):
    """Makes entries, which are deleted at the end, by their labels."""
    made = []

    def make(label: str, uuid: str = '') -> str:
        made.append(actions.create(entries, options, uuid, label, 8, ALICE).name)
        return made[-1]

    yield make
    for uuid in made:
        entries.delete(uuid)


def logged(entries, uuid: str) -> list[tuple[str, str, str, str]]:
    """What the log has of an entry, the oldest first."""
    found = reversed(action_log.last(entries, uuid=uuid))
    return [(each.what, each.label, each.who, each.detail) for each in found]


def test_each_change_is_noted_with_who_did_it_and_no_secret_is(entries, options, make):
    uuid = make('kitchen')
    session = Who('page', 'session 3f2a')
    actions.rename(entries, options, uuid, 'attic', ALICE)
    actions.note(entries, options, uuid, 'the password is swordfish', ALICE)
    actions.name_on(entries, options, uuid, session)
    actions.save(entries, options, uuid, ALICE, label='loft', note='', named=True)
    actions.name_off(entries, options, uuid, session)
    actions.disable(entries, uuid, ALICE)
    actions.enable(entries, uuid, ALICE)
    actions.clear(entries, uuid, session)
    actions.rekey(entries, options, uuid, ALICE)
    secret = entries.get(uuid)['authParams']['base32']
    actions.remove(entries, uuid, ALICE)
    assert logged(entries, uuid) == [
        ('made', 'kitchen', 'shell, alice', ''),
        ('renamed', 'attic', 'shell, alice', 'from kitchen'),
        ('notes', 'attic', 'shell, alice', ''),
        ('host name on', 'attic', 'page, session 3f2a', 'attic'),
        ('renamed', 'loft', 'shell, alice', 'from attic'),
        ('notes', 'loft', 'shell, alice', ''),
        ('host name on', 'loft', 'shell, alice', 'loft'),
        ('host name off', 'loft', 'page, session 3f2a', 'loft'),
        ('disabled', 'loft', 'shell, alice', ''),
        ('enabled', 'loft', 'shell, alice', ''),
        ('wrong codes cleared', 'loft', 'page, session 3f2a', ''),
        ('new secret', 'loft', 'shell, alice', ''),
        ('deleted', 'loft', 'shell, alice', ''),
    ]
    text = ' '.join(entries.ask(lambda redis: redis.lrange(action_log.LOG, 0, -1)))
    assert secret not in text
    assert 'swordfish' not in text


def test_what_changes_nothing_or_cannot_be_done_is_not_noted(entries, options, make):
    uuid = make('kitchen')
    actions.save(entries, options, uuid, ALICE, label='kitchen', note='', named=False)
    for refused in ('x' * 101, 'a\nb'):
        with pytest.raises(Unable):
            actions.rename(entries, options, uuid, refused, ALICE)
    missing = str(uuids.uuid4())
    for act in (actions.disable, actions.enable, actions.clear, actions.remove):
        with pytest.raises(Unable, match=f'there is no entry {missing}'):
            act(entries, missing, ALICE)
    assert [what for what, *_ in logged(entries, uuid)] == ['made']
    assert logged(entries, missing) == []


@pytest.mark.parametrize(
    ('typed', 'kept'),
    [
        ('  beside the oven \r\n second line  ', 'beside the oven\n second line'),
        ('x' * 400, 'x' * 400),
        ('Küche 🍳 \N{ZERO WIDTH JOINER}', 'Küche 🍳'),
        ('a\tb', 'a b'),
        (' \r\n ', ''),
    ],
)
def test_notes_are_kept_as_typed_but_for_white_space_at_the_ends(
    entries, options, make, typed, kept
):
    uuid = make('kitchen')
    actions.note(entries, options, uuid, typed, ALICE)
    assert entries.get(uuid).get('note', '') == kept
    assert entries.shown(uuid)['note'] == kept


@pytest.mark.parametrize('typed', ['x' * 401, 'a\x7fb', 'a\0', 'a\x1b[2J', 'a\u202eb', 'a\u2028b'])
def test_notes_that_are_long_or_unprintable_are_refused(entries, options, make, typed):
    uuid = make('kitchen')
    sentence = 'notes must not contain control characters or invisible characters'
    if len(typed) > 400:
        sentence = 'notes have at most 400 characters, not 401'
    with pytest.raises(Unable, match=sentence):
        actions.note(entries, options, uuid, typed, ALICE)
    assert 'note' not in entries.get(uuid)


def test_label_and_host_name_in_the_files_are_those_in_redis(entries, options, make):
    uuid = make('kitchen')
    actions.save(entries, options, uuid, ALICE, label='attic', named=True)
    assert '"attic"' in (entry_files.FILES / f'{uuid}.json').read_text()
    with pytest.raises(Unable, match="'in the attic' cannot be a host name: "):
        actions.rename(entries, options, uuid, 'in the attic', ALICE)
    assert '"attic"' in (entry_files.FILES / f'{uuid}.json').read_text()
    assert names.of(entries, uuid) == 'attic'


def test_entry_is_found_by_its_uuid_the_beginning_of_it_or_its_label(entries, make):
    first = make('Kitchen 2', 'dead0000-0000-4000-8000-000000000001')
    second = make('dead', 'beef0000-0000-4000-8000-000000000002')
    for text in (first, first.upper(), f' {first}\n', 'DEAD0', 'dead0000-0', 'kitchen 2'):
        assert actions.find_by(entries, text)['uuid'] == first
    assert actions.find_by(entries, first)['authParams']
    for text in ('beef', 'dead', 'Dead'):  # a label before the beginning of a UUID
        assert actions.find_by(entries, text)['uuid'] == second


def test_who_is_meant_by_two_or_by_none_is_said_in_a_sentence(entries, make):
    uuids = [f'fade0000-0000-4000-8000-00000000000{number}' for number in range(7)]
    for uuid in uuids:
        make('twin', uuid)
    for text in ('twin', 'TWIN', 'fade'):
        with pytest.raises(Unable) as raised:
            actions.find_by(entries, text)
        sentence = raised.value.message
        assert sentence.startswith(f'{text!r} may be fade0000-0000-4000-8000-00000000000')
        assert sentence.count('(twin)') == 5
        assert sentence.endswith(' and 2 more: give more of the UUID')
    assert actions.find_by(entries, uuids[3])['uuid'] == uuids[3]
    for text in ('fad', 'nobody', 'fade1', '%s', '\x1b[2J', 'x' * 1000):
        with pytest.raises(Unable, match='no entry has the label') as raised:
            actions.find_by(entries, text)
        assert raised.value.message.isprintable()
        assert len(raised.value.message) < 300
    for text in ('', ' \n'):
        with pytest.raises(Unable, match='give the UUID of an entry'):
            actions.find_by(entries, text)
    with pytest.raises(Unable, match='there is no entry'):
        actions.find_by(entries, str(uuids[0])[:-1] + 'f')


def test_entry_that_makes_no_sense_is_found(entries, uuid):
    entries.ask(lambda redis: redis.set(uuid, 'no json'))
    assert actions.find_by(entries, uuid[:13]) == {'uuid': uuid}


def test_log_that_cannot_be_written_stops_nobody(entries, uuid, caplog):
    entries.ask(lambda redis: redis.delete(action_log.LOG))
    entries.ask(lambda redis: redis.set(action_log.LOG, 'mine'))
    actions.disable(entries, uuid, ALICE)
    assert entries.get(uuid)['disabled']
    entries.ask(lambda redis: redis.delete(action_log.LOG))


def test_one_open_connection_is_ended_and_noted_with_whose_it_was(server, join, entries, uuid):
    hidden, mobile = join(server)
    hidden.send(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf')
    mobile.until(b'half')
    follows(entries, server)
    until(lambda: state.server(entries).workers, 'the worker has signed')
    (pipe,) = questions.open_pipes(entries, state.server(entries), uuid)
    other = str(uuids.uuid4())
    entries.add(other, [])
    with pytest.raises(Unable, match='that connection is over already'):
        actions.end_pipe(entries, other, pipe.worker, pipe.id, ALICE)  # it is another's
    actions.end_pipe(entries, uuid, pipe.worker, pipe.id, ALICE)
    mobile.sock.suppress_ragged_eofs = False
    with cut_off():
        mobile.rest()
    assert logged(entries, uuid) == [
        ('connection ended', 'kitchen', 'shell, alice', 'of 127.0.0.1')
    ]
    entries.delete(other)


def test_pipe_that_is_over_is_said_to_be(entries, uuid):
    with pytest.raises(Unable, match='that connection is over already'):
        actions.end_pipe(entries, uuid, '0123456789abcdef', '7', ALICE)
    assert logged(entries, uuid) == []
