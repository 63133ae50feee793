"""The page of users_app.py over plain HTTP, and what it leaves in files and in Redis."""

import json
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid as uuids
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from conftest import until
from programs import Folder, Outside, listens

import auth

ROW = re.compile(r'<tr><td>(.*)<td><code>(.*)</code>')
ALERT = re.compile(r'<p role="alert">(.*)</p>')


class Page:
    """The page of a users_app.py, seen by a browser."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.program, self.url = folder.page()

    def ask(self, method: str, path: str = '/', **more) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False  # no proxy
            return session.request(method, self.url + path, timeout=10, **more)

    def create(self, uuid: str = '', label: str = '', **more) -> requests.Response:
        return self.ask('POST', '/entries', data={'uuid': uuid, 'label': label}, **more)

    def made(self, uuid: str = '', label: str = '') -> str:
        """The UUID of an entry that it made."""
        response = self.create(uuid, label)
        assert [each.status_code for each in response.history] == [303], response.text
        return re.search('<h2>Made (.*)</h2>', response.text)[1]

    def delete(self, uuid: str) -> requests.Response:
        return self.ask('POST', f'/entries/{uuid}/delete')

    def listed(self) -> dict[str, str]:
        """The entries: label by UUID."""
        response = self.ask('GET')
        assert response.status_code == 200
        return {uuid: unescape(label) for label, uuid in ROW.findall(response.text)}

    def refusal(self, response: requests.Response, status: int = 400) -> str:
        """The sentence with which it refused."""
        assert response.status_code == status
        return unescape(ALERT.search(response.text)[1])


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    with Folder(tmp_path_factory.mktemp('page')) as folder:
        folder.pair()
        page = Page(folder)
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


def test_it_says_where_the_page_is_and_listens_on_loopback_alone(page):
    assert page.program.said() == f'The page is at {page.url}\n'
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
    assert first not in page.ask('GET', f'/?made={entries[0]["uuid"]}').text


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


def test_page_says_where_the_files_are(page):
    response = page.create(label='kitchen')
    named = re.findall('<code>(/.*?)</code>', response.text)
    uuid = re.search('<h2>Made (.*)</h2>', response.text)[1]
    assert named == [f'{page.folder.path}/entries/{uuid}.{suffix}' for suffix in ('json', 'js')]


@pytest.mark.skipif(not shutil.which('node'), reason='there is no Node.js here')
def test_node_requires_the_js_file(page):
    uuid = page.made(label='厨房 " </script>')
    file = page.folder.path / 'entries' / uuid
    program = 'console.log(JSON.stringify(require(process.argv[1])))'
    ran = subprocess.run(['node', '-e', program, f'{file}.js'], capture_output=True, timeout=15)
    assert json.loads(ran.stdout) == {'params': json.loads(file.with_suffix('.json').read_text())}


def test_where_the_files_can_not_be_made_no_entry_is_made(folder):
    page = Page(folder)
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
    assert page.delete(uuid).ok
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
    assert page.delete(uuid).ok
    assert uuid not in page.listed()


def test_delete_removes_key_and_files_and_no_others(page):
    goes, stays = page.made(), page.made()
    assert page.delete(goes.upper()).ok
    assert files(page.folder, goes) == {}
    assert not page.folder.redis('EXISTS', goes)
    assert len(files(page.folder, stays)) == 2
    assert page.folder.redis('EXISTS', stays)
    for gone in (goes, 'kitchen'):
        assert page.refusal(page.delete(gone)) == f'there is no entry {gone!r}'


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
    response = page.ask('GET')
    assert '<script' not in response.text
    assert '<img' not in response.text
    assert page.listed()[uuid] == label
    policy = response.headers['Content-Security-Policy']
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert 'unsafe' not in policy


def test_html_in_the_address_is_inert(page):
    assert '<script' not in page.ask('GET', '/?made=<script>alert(1)</script>').text


@pytest.mark.parametrize('label', ['x' * 101, 'a\nb', 'a\x1b[2J', 'a\0', 'a\u202eb', 'a\u200b'])
def test_label_that_is_long_or_unprintable_is_refused(page, label):
    sentence = page.refusal(page.create(label=label))
    assert sentence == 'a label has at most 100 characters, all of them printable'
    assert page.folder.redis('DBSIZE') == 0


@pytest.mark.parametrize('label', ['x' * 100, '厨房 🍳', "Bob's; $(date) \\ %s"])
def test_label_may_be_anything_else(page, label):
    uuid = page.made(label=f' {label} ')
    assert page.listed()[uuid] == label


@pytest.mark.parametrize(
    'origin',
    ['http://evil.example', 'null', 'https://{host}', 'http://127.0.0.1:1', 'http://{host}.'],
)
def test_foreign_origin_is_refused(page, origin):
    uuid = page.made()
    headers = {'Origin': origin.format(host=urlsplit(page.url).netloc)}
    for path in ('/entries', f'/entries/{uuid}/delete'):
        assert page.ask('POST', path, headers=headers).status_code == 403
    assert page.folder.redis('KEYS', '*') == [uuid]


@pytest.mark.parametrize(
    'host', ['evil.example', 'evil.example:{port}', '127.0.0.1.evil.example:{port}', '192.0.2.1']
)
def test_foreign_host_is_refused(page, host):
    uuid = page.made()
    host = host.format(port=urlsplit(page.url).port)
    for method, path in [
        ('GET', '/'),
        ('GET', '/static/style.css'),
        ('POST', '/entries'),
        ('POST', f'/entries/{uuid}/delete'),
    ]:
        headers = {'Host': host, 'Origin': f'http://{host}'}
        assert page.ask(method, path, headers=headers).status_code == 403
    assert page.folder.redis('KEYS', '*') == [uuid]


def test_own_origin_is_welcome_by_either_name(page):
    port = urlsplit(page.url).port
    for name in ('127.0.0.1', 'localhost'):
        headers = {'Host': f'{name}:{port}', 'Origin': f'http://{name}:{port}'}
        response = page.create(headers=headers, allow_redirects=False)
        assert response.status_code == 303


def test_get_changes_nothing(page):
    uuid = page.made()
    assert page.ask('GET', f'/entries/{uuid}/delete').status_code == 405
    assert page.ask('GET', '/entries').status_code == 405
    assert uuid in page.listed()


def test_page_is_kept_in_no_cache_and_has_its_style(page):
    assert page.ask('GET').headers['Cache-Control'] == 'no-store'
    assert page.ask('GET', '/static/style.css').headers['Content-Type'].startswith('text/css')


def test_port_in_use_is_one_sentence(folder):
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        sentence = folder.run('users_app.py', '--port', str(port)).sentence()
    why = 'Address already in use; --port N takes another'
    assert sentence == f'can not listen on port {port}: {why}'
    folder.until_nothing_runs()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_from_none_to_one_and_back_until_a_signal_ends_it_with_status_0(folder, number):
    page = Page(folder)
    assert 'There are none yet.' in page.ask('GET').text
    with socket.create_connection(('127.0.0.1', urlsplit(page.url).port)):  # a browser keeps one
        made = page.made(label='kitchen')
        assert 'There are none yet.' not in page.ask('GET').text
        assert page.listed() == {made: 'kitchen'}
        response = page.delete(made)
        assert [each.status_code for each in response.history] == [303]
        assert 'There are none yet.' in response.text
        assert len(folder.stores()) == 1
        assert page.program.end(number) == 0
    assert page.program.said() == f'The page is at {page.url}\n'
    assert folder.pids() == []


def test_page_says_that_redis_is_down_and_works_when_it_is_back(folder, tmp_path, uuid):
    with Outside(tmp_path, folder.options['redis_port']) as redis:
        page = Page(folder)
        page.made(uuid)
        redis.stop()
        for response in (
            page.ask('GET'),
            page.create(),
            page.create('malformed'),
            page.delete(uuid),
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
