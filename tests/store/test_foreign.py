"""What other programs wrote under our keys breaks neither the page, nor the shell, nor a server."""

import json
import time
import uuid as uuids

import pytest
from click.testing import CliRunner
from conftest import connect_request
from programs import Folder
from visitor import ALERT, Visitor

from rendezvous.admin import entry_files as files
from rendezvous.admin import shell as users_app
from rendezvous.store import embedded as store
from rendezvous.store import keys, state
from rendezvous.store import options as local
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import LATEST

# As JSON has them; each stands where a text, a number or a list should.
ODD = {
    '400 digits': '1' * 400,
    '5000 digits': '1' * 5000,
    'minus 400 digits': '-' + '1' * 400,
    'more than any float': '1e999',
    'less than any float': '-1e999',
    'not a number': 'NaN',
    'next to nothing': '5e-324',
    'half': '7.5',
    'year 9999': '253402300799.9999',
    'true': 'true',
    'null': 'null',
    'half a letter': '"\\ud800"',
    'escape': '"\\u001b[2J\\u0000<script>"',
    'long text': '"' + 'x' * 10_000 + '"',
    'far too long a text': '"' + 'x' * 100_000 + '"',
    'list': '[[1], {}, "x", null, "\\udfff"]',
    'object': '{"at": {}, "base32": []}',
    'deep': '[' * 900 + ']' * 900,
    'deeper': '{"a":' * 20_000 + '1' + '}' * 20_000,
    'no end': '[' * 100_000,
}
ENTRY = {
    'labels': '["kitchen"]',
    'created': '1.0',
    'disabled': 'null',
    'more': '1',
    'authURL': '"otpauth://"',
    'authParams': '{"base32": "' + 'A' * 64 + '"}',
}
WORKER = '0123456789abcdef'
PARAMETERS = {'base32': f'"{"A" * 64}"', 'digits': '8', 'step': '30', 'algorithm': '"sha1"'}
WHY = '["wrong", 0, true, ""]'
RENDEZVOUS = {'at': '1.0', 'address': '"192.0.2.1"', 'seconds': '1.0', 'sent': '1'}
RENDEZVOUS |= {'received': '1', 'how': '"closed"'}
TIMES = dict.fromkeys(['since', 'first', 'seen', 'refused', 'until'], '1.0')
RECORD = {'state': '"refused"', 'address': '"192.0.2.1"', 'why': WHY, **TIMES}
REFUSAL = {'why': WHY, 'first': '1.0', 'last': '1.0', 'count': '1', 'until': '1.0'}
ABOUT = dict.fromkeys(['at', 'number', 'workers', 'pid', 'since', 'connections', 'most'], '1')
ABOUT |= {'memory': '1', 'node': '"attic"', 'version': '"1.0"', 'counters': '{"handshakes": 1}'}


def text(fields: dict[str, str]) -> str:
    return '{' + ', '.join(f'"{name}": {value}' for name, value in fields.items()) + '}'


def each_with(fields: dict[str, str], odd: str) -> list[str]:
    """The objects of which one field is odd; and the odd thing in the place of all."""
    return [text(fields | {name: odd}) for name in fields] + [odd]


def values(odd: str) -> list[str]:
    """Entries."""
    entries = each_with(ENTRY, odd)
    return entries + [text(ENTRY | {'authParams': each}) for each in each_with(PARAMETERS, odd)]


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    with Folder(tmp_path_factory.mktemp('foreign')) as folder:
        folder.pair()
        folder.set(crt_file=str(folder.path / 'registrar.crt'))
        yield Visitor(folder)


@pytest.fixture
def shell(page, monkeypatch):
    load = local.load
    monkeypatch.setattr(local, 'load', lambda: load(page.folder.path / 'local.py'))
    monkeypatch.setattr(files, 'FILES', page.folder.path / 'entries')
    monkeypatch.setattr(store, 'DATA', page.folder.path / 'data')

    def shell(*arguments: str) -> str:
        ran = CliRunner().invoke(users_app.cli, arguments)
        assert ran.exit_code == 0, ran
        return ran.stdout

    yield shell
    page.folder.redis('FLUSHALL')


@pytest.fixture
def its_entries(shell, page):
    entries = Entries(local.DEFAULTS | page.folder.options)
    yield entries
    entries.close()


def write(redis, odd: str) -> list[str]:
    """All kinds of keys with it, of one UUID each; the UUIDs."""
    found = {str(uuids.uuid4()): value for value in values(odd)}
    now, today = time.time(), str(int(time.time() // state.DAY_SECONDS))
    for number, (uuid, value) in enumerate(found.items()):
        redis.set(uuid, value)
        records = each_with(RECORD, odd)
        redis.set(f'state:{{{uuid}}}', records[number % len(records)])
        redis.rpush(f'rendezvous:{{{uuid}}}', *each_with(RENDEZVOUS, odd))
        redis.rpush(
            f'changes:{{{uuid}}}', '1 online', odd, f'{odd} online', f'2 {odd}', f'{now} offline'
        )
        redis.hset(f'hours:{{{uuid}}}', today, f'{odd} 1 1 1 1\n1 {odd} 1 1 1\n2 1 1 1 1\n{odd}')
        refusals = {f'{kind} {odd[:100]}': row for kind, row in enumerate(each_with(REFUSAL, odd))}
        redis.hset(f'refusals:{{{uuid}}}', mapping=refusals)
        redis.hset(f'at:{{{uuid}}}', WORKER, f'{odd} 1' if number % 2 else odd)
    abouts = each_with(ABOUT, odd)
    redis.hset(keys.live(WORKER), state.ABOUT, abouts[len(odd) % len(abouts)])
    redis.zadd(keys.SERVERS, {WORKER: now})
    redis.set(keys.HEARD, abouts[len(odd) % len(abouts)])
    redis.rpush(keys.OUTAGES, odd, f'{odd} 1', f'1 {odd}', '1 2')
    return list(found)


def looks(page, shell, uuids: list[str]) -> None:
    assert page.ask('GET').status_code == 200
    assert {each['uuid'] for each in json.loads(shell('list', '--json'))} == set(uuids)
    shell('list')
    for number, uuid in enumerate(uuids):
        assert page.ask('GET', f'/entries/{uuid}').status_code == 200
        for response in (page.change(uuid, 'secret'), page.ask('GET', f'/entries/{uuid}.json')):
            assert response.ok or ALERT.search(response.text)
        if number == 4:  # with an odd authURL
            assert uuid in shell('show', '--secret', uuid)
            shell('disable', '--yes', uuid)
    assert 'Traceback' not in page.program.said()


@pytest.mark.deadline(90)
@pytest.mark.parametrize('odd', ODD.values(), ids=ODD)
def test_odd_values_are_shown_as_nothing(page, shell, its_entries, odd):
    written = its_entries.ask(lambda redis: write(redis, odd))
    with its_entries.ask(lambda redis: redis.pubsub()) as subscription:
        subscription.subscribe(state.channel(WORKER))
        subscription.get_message(timeout=5)
        looks(page, shell, written)
    assert all(each.last < LATEST for each in state.refusals(its_entries, written[0]))


def test_keys_of_another_kind_are_shown_as_nothing(page, shell):
    uuid, nobody = str(uuids.uuid4()), str(uuids.uuid4())
    page.folder.redis('SET', uuid, text(ENTRY))
    page.folder.redis('HSET', nobody, 'x', 'y')
    page.folder.redis('SET', keys.live(WORKER), 'x')
    for kind in ('rendezvous', 'refusals', 'changes', 'hours', 'at'):
        page.folder.redis('SET', keys.of(kind, uuid), 'x')
    for name in (keys.SERVERS, keys.HEARD, keys.OUTAGES, keys.of(keys.STATE, uuid)):
        page.folder.redis('HSET', name, uuid, 'x')
    looks(page, shell, [uuid])


def test_server_refuses_codes_for_entries_with_odd_values(start, connect, entries):
    server = start()
    for odd in ODD.values():
        for value in values(odd):
            uuid = str(uuids.uuid4())
            entries.ask(lambda redis, uuid=uuid, value=value: redis.set(uuid, value))
            peer = connect(server)
            peer.send(connect_request(uuid, '00000000'))
            assert peer.answer().status in (401, 429)
            entries.delete(uuid)
