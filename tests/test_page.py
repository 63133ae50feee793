"""The page of users_app.py over plain HTTP, and what it leaves in files and in Redis."""

import json
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid as uuids
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import until
from programs import Folder, Outside, listens
from visitor import Visitor

import auth


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    with Folder(tmp_path_factory.mktemp('page')) as folder:
        folder.pair()
        page = Visitor(folder)
        yield page
        assert 'Traceback' not in page.program.said()


@pytest.fixture
def page(running):
    """One page for all tests, without entries at the start of each."""
    yield running
    running.folder.redis('FLUSHALL')


@pytest.fixture
def folder(tmp_path):
    with Folder(tmp_path) as folder:
        folder.pair()
        yield folder


@pytest.fixture
def uuid():
    return str(uuids.uuid4())


def files(folder, uuid: str) -> dict[str, str]:
    return {file.name: file.read_text() for file in (folder.path / 'entries').glob(f'*{uuid}*')}


def test_it_listens_on_loopback_alone(page):
    port = urlsplit(page.url).port
    assert listens(port)
    assert not listens(port, '127.8.9.1')
    assert not listens(port, '::1')


def test_uuid_is_made_up_where_none_is_typed_in(page):
    first, second = page.made(), page.made(' ')
    assert first != second
    assert all(uuids.UUID(each).version == 4 for each in (first, second))
    assert page.listed()[first] == ''


@pytest.mark.parametrize('change', [str.lower, str.upper, str.title, ' {} '.format])
def test_uuid_may_be_typed_in_in_any_case(page, uuid, change):
    assert page.made(change(uuid), 'typed in') == uuid
    assert page.listed()[uuid] == 'typed in'
    assert page.folder.redis('EXISTS', uuid)


def test_redis_holds_what_section_5_says(page):
    uuid = page.made(label='Küche')
    entry = json.loads(page.folder.redis('GET', uuid))
    secret = entry['authParams']['base32']
    assert re.fullmatch('[A-Z2-7]{64}', secret)
    url, created = entry.pop('authURL'), entry.pop('created')
    assert abs(time.time() - created) < 60
    assert entry == {
        'uuid': uuid,
        'authParams': {
            'protocol': 'totp',
            'algorithm': 'sha1',
            'length': 40,
            'step': 30,
            'digits': 8,
            'base32': secret,
            'name': uuid,
            'issuer': '127.0.0.1',
        },
        'labels': ['Küche'],
    }
    assert url.startswith('otpauth://totp/')
    query = parse_qs(urlsplit(url).query)
    assert (query['secret'], query['digits']) == ([secret], ['8'])
    assert page.folder.redis('TTL', uuid) == -1


def test_secrets_differ_and_the_page_shows_none(page):
    entries = [json.loads(page.folder.redis('GET', page.made())) for _ in range(2)]
    first, second = (entry['authParams']['base32'] for entry in entries)
    assert first != second
    for path in ('/', f'/entries/{entries[0]["uuid"]}', f'/entries/{entries[0]["uuid"]}?secret'):
        assert first not in page.ask('GET', path).text


def test_files_hold_what_a_hidden_server_needs(page):
    uuid = page.made(label='kitchen')
    found = files(page.folder, uuid)
    entry = json.loads(found[f'{uuid}.json'])
    assert entry == {
        'authParams': json.loads(page.folder.redis('GET', uuid))['authParams'],
        'uuid': [uuid],
        'labels': ['kitchen'],
        'server': {
            'hostname': '127.0.0.1',
            'port': 0,
            'ca': (page.folder.path / 'registrar.crt').read_text(),
        },
    }
    assert re.fullmatch('[0-9]{8}', auth.totp(entry['authParams']).now())
    assert found == {
        f'{uuid}.json': found[f'{uuid}.json'],
        f'{uuid}.js': f'exports.params = {found[f"{uuid}.json"].rstrip()};\n',
    }


def test_files_are_for_their_owner_alone(page):
    uuid = page.made()
    entries = page.folder.path / 'entries'
    modes = {file.name: file.stat().st_mode & 0o777 for file in entries.glob(f'{uuid}*')}
    assert modes == {f'{uuid}.js': 0o600, f'{uuid}.json': 0o600}
    assert entries.stat().st_mode & 0o777 == 0o700


def test_page_says_where_the_file_is(page):
    uuid = page.made(label='kitchen')
    file = page.folder.path / 'entries' / f'{uuid}.json'
    assert f'<code>{file}</code>' in page.ask('GET', f'/entries/{uuid}').text
    file.unlink()
    assert str(file) not in page.ask('GET', f'/entries/{uuid}').text


@pytest.mark.skipif(not shutil.which('node'), reason='there is no Node.js here')
def test_node_requires_the_js_file(page):
    uuid = page.made(label='厨房 " </script>')
    file = page.folder.path / 'entries' / uuid
    program = 'console.log(JSON.stringify(require(process.argv[1])))'
    ran = subprocess.run(['node', '-e', program, f'{file}.js'], capture_output=True, timeout=15)
    assert json.loads(ran.stdout) == {'params': json.loads(file.with_suffix('.json').read_text())}


def test_where_the_files_can_not_be_made_no_entry_is_made(folder):
    page = Visitor(folder)
    (folder.path / 'entries').write_text('no folder')
    sentence = page.refusal(page.create(), 500)
    assert sentence == f'can not write {folder.path}/entries: File exists'
    (folder.path / 'registrar.crt').unlink()
    sentence = page.refusal(page.create(), 500)
    assert sentence.endswith('/registrar.crt: python make_cert.py makes it')
    assert folder.redis('DBSIZE') == 0
    assert 'Traceback' not in page.program.said()


def test_uuid_that_has_an_entry_is_not_overwritten(page, uuid):
    page.made(uuid, 'first')
    before = page.folder.redis('GET', uuid), files(page.folder, uuid)
    for again in (uuid, uuid.upper()):
        sentence = page.refusal(page.create(again, 'second'))
        assert sentence.startswith(f'{uuid} has an entry already: ')
    assert (page.folder.redis('GET', uuid), files(page.folder, uuid)) == before


@pytest.mark.parametrize(
    'malformed',
    [
        'kitchen',
        '{uuid}0',
        '{{{uuid}}}',
        '{bare}',
        '../{uuid}',
        '{uuid}\0',
        '{uuid}/../x',
        '\N{FULLWIDTH DIGIT ZERO}0000000-0000-0000-0000-000000000000',
        '<b>{uuid}</b>',
    ],
)
def test_malformed_uuid_is_refused_with_a_sentence(page, uuid, malformed):
    typed = malformed.format(uuid=uuid, bare=uuid.replace('-', ''))
    response = page.create(typed)
    assert page.refusal(response).startswith(f'{typed.lower()!r} is no UUID, like ')
    assert '<b>' not in response.text
    assert page.folder.redis('DBSIZE') == 0


def test_keys_that_are_no_entries_are_left_alone_and_not_listed(page, uuid):
    keys = 'kitchen', 'a-b-c-d-e', f'{uuid}0', f'x{uuid}', b'\xff-\xfe-\xff-\xff-\xff'
    for key in keys:
        page.folder.redis('SET', key, 'mine')
    page.folder.redis('HSET', uuid, 'field', 'mine')
    upper = 'ABCDEF01' + uuid[8:].upper()
    page.folder.redis('SET', upper, 'mine')
    shown = page.listed()
    assert not {*map(str, keys), uuid, upper} & set(shown)
    assert not [each for each in shown if '\N{REPLACEMENT CHARACTER}' in each]
    assert not page.create(uuid).ok
    assert page.folder.redis('MGET', *keys, upper) == ['mine'] * (len(keys) + 1)
    assert page.folder.redis('HGETALL', uuid) in (['field', 'mine'], {'field': 'mine'})


def test_entry_of_the_first_implementation_is_listed_and_survives(page, uuid):
    entry = {
        'uuid': uuid,
        'authURL': f'otpauth://totp/{uuid}?secret=GEZDGNBVGY3TQOJQ',
        'qrcodeURL': 'https://chart.example/chart?chl=otpauth%3A%2F%2Ftotp',
        'authParams': {
            'protocol': 'totp',
            'algorithm': 'sha1',
            'length': 40,
            'step': 30,
            'base32': 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ',
            'name': uuid,
            'issuer': 'rendezvous',
        },
        'labels': ['attic', 'old'],
    }
    value = json.dumps(entry)
    page.folder.redis('SET', uuid, value)
    assert page.listed()[uuid] == 'attic, old'
    page.refusal(page.create(uuid))
    assert page.folder.redis('GET', uuid) == value
    assert page.change(uuid, 'delete').ok
    assert not page.folder.redis('EXISTS', uuid)


@pytest.mark.parametrize(
    ('value', 'shown'),
    [
        ('no json', ''),
        ('[]', ''),
        ('[' * 100_000, ''),
        ('{}', ''),
        ('{"labels": null}', ''),
        ('{"labels": "attic"}', ''),
        ('{"labels": [1, null, "attic"]}', '1, None, attic'),
        ('{"labels": ["\\ud800 \\u001b[2J"], "uuid": "other"}', '\ufffd \ufffd[2J'),
    ],
)
def test_entry_that_makes_no_sense_is_listed_and_can_be_deleted(page, uuid, value, shown):
    page.folder.redis('SET', uuid, value)
    assert page.listed()[uuid] == shown
    assert page.change(uuid, 'delete').ok
    assert uuid not in page.listed()


def test_delete_removes_key_and_files_and_no_others(page):
    goes, stays = page.made(), page.made()
    assert page.change(goes.upper(), 'delete').ok
    assert files(page.folder, goes) == {}
    assert not page.folder.redis('EXISTS', goes)
    assert len(files(page.folder, stays)) == 2
    assert page.folder.redis('EXISTS', stays)
    sentence = f'There is no entry {goes}.'
    assert page.refusal(page.change(goes, 'delete'), 404) == sentence
    assert page.refusal(page.ask('GET', f'/entries/{goes}'), 404) == sentence


def test_uuid_that_was_deleted_may_be_made_again_with_another_secret(page, uuid):
    page.made(uuid)
    before = files(page.folder, uuid)
    page.folder.redis('DEL', uuid)  # elsewhere: the files stay
    page.made(uuid)
    after = files(page.folder, uuid)
    assert before.keys() == after.keys()
    assert before[f'{uuid}.json'] != after[f'{uuid}.json']


def test_html_in_a_label_is_inert(page):
    label = """<script>alert(1)</script><img src=x onerror='alert(2)'>"&amp;{{ 7 * 7 }}"""
    uuid = page.made(label=label)
    for text in (page.ask('GET').text, page.ask('GET', f'/entries/{uuid}').text):
        assert '<script>' not in text
        assert '<img' not in text
        assert '{{ 7 * 7 }}' in text
    assert '<script>' not in page.change(uuid, 'secret').text
    assert page.listed()[uuid] == label


def test_html_in_the_address_is_inert(page):
    for path in ('/?q=', '/?done=', '/?page=', '/login?code=', '/entries/'):
        assert '<script>' not in page.ask('GET', f'{path}"><script>alert(1)</script>').text


@pytest.mark.parametrize('label', ['x' * 101, 'a\nb', 'a\x1b[2J', 'a\0', 'a\u202eb', 'a\u200b'])
def test_label_that_is_long_or_unprintable_is_refused(page, label):
    sentence = page.refusal(page.create(label=label))
    assert sentence == 'a label has at most 100 characters, all of them printable'
    assert page.folder.redis('DBSIZE') == 0


@pytest.mark.parametrize('label', ['x' * 100, '厨房 🍳', "Bob's; $(date) \\ %s"])
def test_label_may_be_anything_else(page, label):
    uuid = page.made(label=f' {label} ')
    assert page.listed()[uuid] == label


def test_get_changes_nothing(page):
    uuid = page.made()
    assert page.ask('GET', f'/entries/{uuid}/delete').status_code == 405
    assert page.ask('GET', '/entries').status_code == 405
    assert uuid in page.listed()


def test_port_in_use_is_one_sentence(folder):
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        sentence = folder.run('users_app.py', '--port', str(port)).sentence()
    why = 'Address already in use; --port N takes another'
    assert sentence == f'can not listen on port {port} of 127.0.0.1: {why}'
    folder.until_nothing_runs()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_from_none_to_one_and_back_until_a_signal_ends_it_with_status_0(folder, number):
    page = Visitor(folder)
    assert 'There are none yet' in page.ask('GET').text
    with socket.create_connection(('127.0.0.1', urlsplit(page.url).port)):  # a browser keeps one
        made = page.made(label='kitchen')
        assert 'There are none yet' not in page.ask('GET').text
        assert page.listed() == {made: 'kitchen'}
        response = page.change(made, 'delete')
        assert [each.status_code for each in response.history] == [303]
        assert 'There are none yet' in response.text
        assert len(folder.stores()) == 1
        assert page.program.end(number) == 0
    assert len(page.program.said().splitlines()) == 2  # the links
    assert folder.pids() == []


def test_page_says_that_redis_is_down_and_works_when_it_is_back(folder, tmp_path, uuid):
    with Outside(tmp_path, folder.options['redis_port']) as redis:
        page = Visitor(folder)
        page.made(uuid)
        redis.stop()
        for response in (
            page.ask('GET'),
            page.create(),
            page.create('malformed'),
            page.change(uuid, 'delete'),
        ):
            sentence = page.refusal(response, 503)
            assert re.match(r'Redis does not answer \(.*\): start it, or set redis_host', sentence)
            assert 'There are none yet' not in response.text
        assert files(folder, uuid).keys() == {f'{uuid}.js', f'{uuid}.json'}
        assert len(list((folder.path / 'entries').iterdir())) == 2
        redis.start()
        made = until(lambda: page.made(), 'it makes entries again')
        assert page.listed() == {made: ''}
        assert page.program.end() == 0
        assert 'Traceback' not in page.program.said()
