"""The page of users_app.py over plain HTTP, and what it leaves in files and in Redis."""

import datetime
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid as uuids
import zipfile
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import segno
import self_signed
from conftest import free_port, until
from programs import Folder, Outside, listens
from visitor import ALERT, Visitor, files

from rendezvous.admin import authority, certificate
from rendezvous.store import options as local
from rendezvous.wire import codes

EMPTY = 'Add your first hidden server'


@pytest.fixture
def uuid():
    return str(uuids.uuid4())


def test_it_listens_on_loopback_only(page):
    port = urlsplit(page.url).port
    assert listens(port)
    assert not listens(port, '127.8.9.1')
    assert not listens(port, '::1')


def test_without_a_uuid_a_random_one_is_made(page):
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
    assert re.fullmatch('[0-9]{8}', codes.totp(entry['authParams']).now())
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


def test_no_entry_is_made_if_its_files_cannot_be_written(folder):
    page = Visitor(folder)
    (folder.path / 'entries').write_text('no folder')
    sentence = page.refusal(page.create(), 500)
    assert sentence == f'cannot write {folder.path}/entries: File exists'
    (folder.path / 'registrar.crt').unlink()
    sentence = page.refusal(page.create(), 500)
    assert sentence.endswith(
        '/registrar.crt: .venv/bin/python make_cert.py makes it, or set it in local.py'
    )
    assert folder.redis('KEYS', '*') == ['log']
    assert 'Traceback' not in page.program.said()


def test_uuid_that_has_an_entry_is_not_overwritten(page, uuid):
    page.made(uuid, 'first')
    before = page.folder.redis('GET', uuid), files(page.folder, uuid)
    for again in (uuid, uuid.upper()):
        sentence = page.refusal(page.create(again, 'second'))
        assert sentence.startswith(f'there is already an entry {uuid}: ')
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
    assert page.refusal(response).startswith(f'{typed.lower()!r} is not a UUID ')
    assert '<b>' not in response.text
    assert page.folder.redis('DBSIZE') == 0


def test_keys_that_are_no_entries_are_left_alone_and_not_listed(page, uuid):
    keys = 'kitchen', 'a-b-c-d-e', f'{uuid}0', f'x{uuid}', b'\xff-\xfe-\xff-\xff-\xff'
    for key in keys:
        page.folder.redis('SET', key, 'mine')
    page.folder.redis('HSET', uuid, 'field', 'mine')
    upper = 'ABCDEF01' + uuid[8:].upper()
    page.folder.redis('SET', upper, 'mine')
    page.read_again()
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
    page.read_again()
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
    page.read_again()
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
    sentence = 'a label must not contain control characters or invisible characters'
    if len(label) > 100:
        sentence = 'a label has at most 100 characters, not 101'
    assert page.refusal(page.create(label=label)) == sentence
    assert page.folder.redis('DBSIZE') == 0


JOINED = '👨\u200d💻\xa0\u0645\u06cc\u200c\u062e\u3000x'


@pytest.mark.parametrize('label', ['x' * 100, '厨房 🍳', JOINED, "Bob's; $(date) \\ %s"])
def test_label_may_be_anything_else(page, label):
    uuid = page.made(label=f' {label} ')
    assert page.listed()[uuid] == label


def test_get_changes_nothing(page):
    uuid = page.made()
    for path, instead in {url(uuid) + '/delete': url(uuid), '/entries': '/'}.items():
        response = page.ask('GET', path)  # as who reloads what a refused form answered
        assert (response.status_code, response.url) == (200, page.url + instead)
    assert uuid in page.listed()


def test_port_in_use_is_one_sentence(folder):
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        ran = folder.run('users_app.py', '--port', str(port))
    why = 'Address already in use; choose another --port or --host'
    assert ran == (1, '', f'Error: cannot listen on port {port} of 127.0.0.1: {why}\n')
    folder.until_nothing_runs()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_from_none_to_one_and_back_until_a_signal_ends_it_with_status_0(folder, number):
    page = Visitor(folder)
    assert EMPTY in page.ask('GET').text
    with socket.create_connection(('127.0.0.1', urlsplit(page.url).port)):  # a browser keeps one
        made = page.made(label='kitchen')
        assert EMPTY not in page.ask('GET').text
        assert page.listed() == {made: 'kitchen'}
        response = page.change(made, 'delete')
        assert [each.status_code for each in response.history] == [303]
        assert EMPTY in response.text
        assert len(folder.stores()) == 1
        assert page.program.end(number) == 0
    assert len(page.program.said().splitlines()) == 2  # the links
    assert folder.pids() == []


def test_page_says_that_redis_is_down_and_works_when_it_is_back(folder, tmp_path, uuid):
    with Outside(tmp_path, free_port()) as redis:
        folder.set(**redis.options)
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
            assert EMPTY not in response.text
        assert files(folder, uuid).keys() == {f'{uuid}.js', f'{uuid}.json'}
        assert len(list((folder.path / 'entries').iterdir())) == 2
        redis.start()
        made = until(lambda: page.made(), 'it makes entries again')
        assert page.listed() == {made: ''}
        assert page.program.end() == 0
        assert 'Traceback' not in page.program.said()


def text(response) -> str:
    """What can be read of an answer, less the white space."""
    shown = re.sub(
        r'<[^>]*>', ' ', re.sub('<(form|header).*?</\\1>', '', response.text, flags=re.S)
    )
    return ' '.join(unescape(shown).split())


FOREIGN = """for number = ARGV[1], ARGV[1] + 9999 do
  local hex = string.format('%08x00004000800000000000%04x', number, number % 65536)
  local uuid = string.gsub(hex, '(%x%x%x%x%x%x%x%x)(%x%x%x%x)(%x%x%x%x)(%x%x%x%x)', '%1-%2-%3-%4-')
  redis.call('SET', string.gsub(KEYS[number % #KEYS + 1], '{}', number % 2 == 1 and hex or uuid), 1)
end"""
SHAPES = 'guesses:{}', 'wrong:{}', 'wrong:{}:192.0.2.1', 'right:{}:2001:db8:0:1::/64', 'seen:{}:x'


@pytest.mark.deadline(60)
def test_other_keys_are_not_fetched(page):
    uuid = page.made(label='kitchen')
    for start in range(0, 200_000, 10_000):
        page.folder.redis('EVAL', FOREIGN, len(SHAPES), *SHAPES, start)
    assert page.folder.redis('DBSIZE') == 200_002  # with the log of what was done
    page.ask('GET')
    for path in ('/', url(uuid)):
        before = page.folder.redis('INFO', 'stats')['total_net_output_bytes']
        assert 'kitchen' in page.ask('GET', path).text
        told = page.folder.redis('INFO', 'stats')['total_net_output_bytes'] - before
        assert told < 100_000  # each key has some 60 octets


def url(uuid: str) -> str:
    return f'/entries/{uuid}'


def test_rename_keeps_the_secret(page):
    uuid = page.made(label='kitchen')
    before = json.loads(page.folder.redis('GET', uuid))
    assert 'It is saved.' in text(page.change(uuid, 'save', label='garage'))
    assert page.listed() == {uuid: 'garage'}
    assert json.loads(page.folder.redis('GET', uuid)) == before | {'labels': ['garage']}
    response = page.change(uuid, 'save', label='x' * 101)
    assert page.refusal(response) == 'a label has at most 100 characters, not 101'
    assert f'value="{"x" * 101}"' in response.text  # what was typed in is not lost
    assert page.listed() == {uuid: 'garage'}


def test_disable_and_enable(page):
    uuid = page.made()
    assert 'Disabled since' in text(page.change(uuid, 'disable'))
    assert json.loads(page.folder.redis('GET', uuid))['disabled']
    assert 'Never seen: it has not registered yet' in text(page.change(uuid, 'enable'))
    assert 'disabled' not in json.loads(page.folder.redis('GET', uuid))


def test_new_secret_takes_the_place_of_the_old_one(page):
    uuid = page.made()
    before = files(page.folder, uuid)
    assert 'The entry has a new secret' in text(page.change(uuid, 'rekey'))
    after = files(page.folder, uuid)
    assert before[f'{uuid}.json'] != after[f'{uuid}.json']
    secret = json.loads(page.folder.redis('GET', uuid))['authParams']['base32']
    assert secret in after[f'{uuid}.json']
    assert secret in page.change(uuid, 'secret').text


@pytest.mark.parametrize(
    ('what', 'sentence'),
    [
        ('disable', 'cannot register until you enable it again'),
        ('rekey', 'The old secret and its files stop working at once'),
        ('delete', 'gone for ever'),
    ],
)
def test_page_says_beforehand_what_will_end(page, what, sentence):
    response = page.ask('GET', url(page.made()))
    form = re.search(f'<details id="act-{what}">.*?</details>', response.text, re.S)[0]
    assert form.index('<summary') < form.index(sentence) < form.index('<button')


def test_downloads_are_the_files(page):
    uuid = page.made(label='Küche')
    for name, content in files(page.folder, uuid).items():
        response = page.ask('GET', f'/entries/{name}')
        assert response.text == content
        assert response.headers['Content-Disposition'] == f'attachment; filename={name}'
    for file in (page.folder.path / 'entries').glob('*'):
        file.unlink()  # made on another machine
    assert json.loads(page.ask('GET', f'{url(uuid)}.json').text)['uuid'] == [uuid]
    answer = page.ask('GET', f'{url(uuid)}.pyz')
    assert answer.headers['Content-Disposition'] == 'attachment; filename=Kuche.pyz'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        document = json.loads(archive.read('rendezvous/hidden/entry.json'))
    assert document == json.loads(page.ask('GET', f'{url(uuid)}.json').text)
    answer = page.ask('GET', '/registrar.crt')
    assert answer.text == (page.folder.path / 'registrar.crt').read_text()
    assert answer.headers['Content-Disposition'] == 'attachment; filename=registrar.crt'
    answer = page.ask('GET', '/registrar-ca.crt')
    assert answer.text == (page.folder.path / 'registrar-ca.crt').read_text()
    assert answer.headers['Content-Type'] == 'application/x-x509-ca-cert'


def test_page_says_which_certificate_is_for_whom(folder):
    def shown(uuid: str) -> list[str]:
        said = text(page.ask('GET', url(uuid)))
        return [each for each in ('registrar.crt', 'registrar-ca.crt', '--force') if each in said]

    page = Visitor(folder)
    uuid = page.made()
    assert shown(uuid) == ['registrar.crt', 'registrar-ca.crt']
    self_signed.write(folder.path)
    assert shown(uuid) == ['registrar.crt', '--force']
    assert page.ask('GET', '/registrar-ca.crt').status_code == 404
    self_signed.write(folder.path, issuer='public')
    assert shown(uuid) == []


def test_secret_is_shown_only_on_request_with_a_qr_code(page):
    uuid = page.made(label='Küche')
    parameters = json.loads(page.folder.redis('GET', uuid))['authParams']
    for path in ('', '?secret', '?secret=1', '/secret'):
        assert parameters['base32'] not in page.ask('GET', url(uuid) + path).text
    response = page.change(uuid, 'secret')
    assert f'Secret, in base32 {parameters["base32"]} Copy Codes 8 digits' in text(response)
    assert parameters['base32'] not in response.url
    query = f'secret={parameters["base32"]}&issuer=127.0.0.1&digits=8'
    assert qr_code(f'otpauth://totp/127.0.0.1:K%C3%BCche?{query}') in response.text


@pytest.mark.parametrize('value', ['no json', '{}', '{"authParams": {"base32": "!"}}'])
def test_entry_without_a_sound_secret_gets_a_new_one(page, uuid, value):
    page.folder.redis('SET', uuid, value)
    assert page.ask('GET', url(uuid)).ok
    for response in (
        page.change(uuid, 'secret'),
        *(page.ask('GET', f'{url(uuid)}.{suffix}') for suffix in ('json', 'pyz')),
    ):
        assert not response.ok
        assert ALERT.search(response.text)
    assert page.change(uuid, 'rekey').ok
    assert page.change(uuid, 'secret').ok


@pytest.mark.parametrize('label', ['x' * 10_000, '\u202edrow\u200f', '</title><b>', 'a\0b'])
def test_label_that_somebody_else_wrote_breaks_nothing(page, uuid, label):
    entry = json.loads(page.folder.redis('GET', page.made()))
    page.folder.redis('SET', uuid, json.dumps(entry | {'uuid': uuid, 'labels': [label]}))
    page.read_again()
    shown = label.replace('\0', '\ufffd').replace('\u202e', '\ufffd').replace('\u200f', '\ufffd')
    assert page.listed()[uuid] == shown
    for response in (page.ask('GET', url(uuid)), page.change(uuid, 'secret')):
        assert response.ok
        assert '<b>' not in response.text
        assert re.search('<h1.*?<bdi>(.*)</bdi></h1>', response.text)


def ours(folder, monkeypatch, ends: int, signed: int = 397) -> None:
    """The authority ends so many days from now, and the certificate so many after its begin."""
    for name, days in (('VALID', signed), ('BACKDATED', 300), ('AUTHORITY_VALID', ends + 0.1)):
        monkeypatch.setattr(authority, name, datetime.timedelta(days=days))
    folder.pair()


NEW_PAIR = '.venv/bin/python make_cert.py --force makes a new one'


NEXT = '.venv/bin/python make_cert.py --renew makes the next one, or says why not.'


@pytest.mark.parametrize(
    ('issuer', 'begins', 'days', 'sentence'),
    [
        ('127.0.0.1', -300, 31, ''),
        ('127.0.0.1', -300, 29, 'The certificate ends on {:%Y-%m-%d}: ' + NEW_PAIR),
        ('127.0.0.1', -300, -1, 'The certificate ended on {:%Y-%m-%d}: ' + NEW_PAIR),
        ('public', -68, 22, 'The certificate ends on {:%Y-%m-%d}: renew it.'),
        ('public', -3, 3, ''),  # one for a few days alone
    ],
)
def test_end_of_the_certificate_is_told_before_it_comes(folder, issuer, begins, days, sentence):
    self_signed.write(folder.path, begins=begins, ends=days + 0.1, issuer=issuer)
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days + 0.1)
    notice = certificate.notice(local.DEFAULTS | {'crt_file': str(folder.path / 'registrar.crt')})
    assert notice.startswith(sentence.format(end))
    assert bool(notice) == bool(sentence)


@pytest.mark.parametrize(
    ('ends', 'signed', 'sentence'),
    [
        (2000, 331, ''),
        (2000, 329, f'The certificate ends on .*: {NEXT}'),
        (2000, 299, f'The certificate ended on .*: {NEXT}'),
        (29, 397, f'The authority of the certificate ends on .*: {NEW_PAIR}'),
        (-1, 397, f'The authority of the certificate ended on .*: {NEW_PAIR}'),
    ],
)
def test_end_of_the_authority_is_told_too(folder, monkeypatch, ends, signed, sentence):
    ours(folder, monkeypatch, ends, signed)
    notice = certificate.notice(local.DEFAULTS | {'crt_file': str(folder.path / 'registrar.crt')})
    assert re.match(sentence, notice)
    assert bool(notice) == bool(sentence)


def test_end_of_the_certificate_is_said_on_top(folder):
    self_signed.write(folder.path, begins=-300, ends=29)
    page = Visitor(folder)
    for response in (page.ask('GET'), page.ask('GET', url(page.made()))):
        above, _, below = response.text.partition('<p class="banner" role="note">The certificate')
        assert '<main ' in above
        assert '<table' not in above
        assert below


def test_commands_are_complete(folder):
    folder.set(rendezvous_host='2001:db8::1', rendezvous_port=443)
    page = Visitor(folder)
    uuid = page.made()
    shown = re.sub('</?a[^>]*>', '', page.ask('GET', url(uuid)).text)
    codes = [unescape(each) for each in re.findall('<code>(.*?)</code>', shown)]
    for command in (
        f'python3 {uuid}.pyz 127.0.0.1:8000',
        f'.venv/bin/python hidden.py {uuid}.json 127.0.0.1:8000',
        f"require('./{uuid}').params",
        'https://[2001:db8::1]/',
        f'https://[2001:db8::1]/?rendezvous={uuid}',
        f'curl --cacert registrar.crt --digest -u {uuid}:x https://[2001:db8::1]/',
    ):
        assert command in codes
    folder.set(key_file=None)
    page.program.end()
    page = Visitor(folder)
    uuid = page.made()
    shown = unescape(page.ask('GET', url(uuid)).text)
    assert f'<code>curl --digest -u {uuid}:x https://[2001:db8::1]/</code>' in shown
    assert 'registrar.crt' not in shown
    assert page.ask('GET', '/registrar.crt').status_code == 404
    assert page.ask('GET', '/registrar-ca.crt').status_code == 404


@pytest.fixture(scope='module')
def named(tmp_path_factory):
    """A page for the tests of host names."""
    domain = {'names_domain': 'rendezvous.example.com', 'rendezvous_port': 443}
    with Folder(tmp_path_factory.mktemp('named'), **domain) as folder:
        folder.pair()
        page = Visitor(folder)
        yield page
        assert 'Traceback' not in page.program.said()


def qr_code(address: str) -> str:
    return segno.make(address, micro=False).svg_inline(omitsize=True, light='#fff')


def link_to(address: str) -> str:
    return f'<a href="{address}" target="_blank" rel="noopener">{address}</a>'


def test_address_is_a_link_and_a_qr_code(page):
    shown = page.ask('GET', url(page.made())).text
    assert link_to('https://127.0.0.1:0/') in shown
    assert qr_code('https://127.0.0.1:0/') in shown
    assert 'User name; any password will do' in shown


def test_with_names_the_uuid_is_in_the_address(named):
    uuid = named.made()
    shown, address = named.ask('GET', url(uuid)).text, f'https://{uuid}.rendezvous.example.com/'
    assert link_to(address) in shown
    assert qr_code(address) in shown
    assert f'<code>curl --cacert registrar.crt {address}</code>' in shown
    assert 'ser name' not in shown
    assert json.loads(files(named.folder, uuid)[f'{uuid}.json'])['server']['url'] == address


def test_label_is_switched_on_as_a_host_name_and_off(named):
    uuid = named.made(label='Kitchen')
    shown = ' '.join(shown_at(named, uuid).split())
    assert 'kitchen.rendezvous.example.com: a label can be guessed, and a UUID cannot' in shown
    address, own = (f'https://{name}.rendezvous.example.com/' for name in ('kitchen', uuid))
    shown = named.change(uuid, 'save', named='1').text
    assert 'who guesses it reaches the hidden server.' in shown
    assert qr_code(address) in shown
    assert link_to(address) in shown
    assert link_to(own) in shown
    shown = named.change(uuid, 'save', named='0').text
    assert 'Its label is no host name any more.' in shown
    assert qr_code(own) in shown
    assert address not in shown


def test_host_name_follows_the_label(named):
    uuid, other = named.made(label='garage'), named.made(label='barn')
    assert (
        link_to('https://garage.rendezvous.example.com/')
        in named.change(uuid, 'save', named='1').text
    )
    sentence = named.refusal(named.change(uuid, 'save', label='garden shed'))
    assert "'garden shed' cannot be a host name: " in sentence
    assert named.listed()[uuid] == 'garage'
    response = named.change(uuid, 'save', label='Shed')
    assert 'Its host name has changed: the old address leads nowhere now.' in text(response)
    assert link_to('https://shed.rendezvous.example.com/') in response.text
    named.change(other, 'save', label='shed')
    sentence = f'shed is the host name of the entry {uuid}: choose another label'
    assert named.refusal(named.change(other, 'save', named='1')) == sentence


def test_host_name_needs_a_label_and_a_domain(page, named):
    sentence = 'an entry without a label has no host name: give it a label'
    assert named.refusal(named.change(named.made(), 'save', named='1')) == sentence
    uuid = page.made(label='kitchen')
    assert 'name="named"' not in shown_at(page, uuid)
    sentence = 'there are no host names yet: set names_domain in local.py'
    assert page.refusal(page.change(uuid, 'save', named='1')) == sentence


def shown_at(page: Visitor, uuid: str) -> str:
    return page.ask('GET', url(uuid)).text


def test_page_says_that_local_py_has_changed_since_it_was_started(folder):
    page = Visitor(folder)
    uuid, before = page.made(label='kitchen'), dict(folder.options)
    notice = 'local.py has changed since this page was started'

    def outdated(path: str = '/') -> str:
        found = re.findall('id="outdated" role="note">(.*?)<', page.ask('GET', path).text)
        return unescape(''.join(found))

    assert outdated() == ''
    folder.set(rendezvous_port=8443)
    until(outdated, 'the page says so')
    for path in ('/', url(uuid), '/log', '/nothing'):
        assert outdated(path) == f'{notice}: start users_app.py again.'
    assert notice not in requests.get(page.url, timeout=20).text  # to a stranger
    (folder.path / 'local.py').write_text('options = {"rendezvous_prot": 1}\n')
    mistake = f"{notice}, and has a mistake: local.py: there is no option 'rendezvous_prot'"
    until(lambda: outdated().startswith(mistake), 'the page says that it makes no sense')
    folder.options = before
    folder.set()
    until(lambda: not outdated(), 'all is well again')


FAULT = """
from gevent import monkey
monkey.patch_all()
from rendezvous.admin import index_page, shell
def view(*_):
    raise ValueError('this is the fault')
index_page.Index.view = view
shell.cli(['--port', '0', '--no-login'])
"""


def test_fault_of_the_page_is_a_sentence_there_and_a_traceback_in_its_output(folder):
    program = folder.start('-c', FAULT)
    url = program.until_it_says(r'The page is at (\S+)')[1]
    response = requests.get(url, timeout=20)
    assert response.status_code == 500
    sentence = 'This is a fault of the page. The output of users_app.py says more.'
    assert ALERT.findall(response.text) == [sentence]
    said = program.until_it_says('ValueError: this is the fault')
    assert 'Traceback' in said.string


def test_host_name_that_somebody_else_wrote_breaks_nothing(named):
    uuid, name = named.made(label='kitchen'), '<b>\u202e' * 1000
    named.folder.redis('HSET', 'names', name, uuid, uuid, name)
    named.read_again()
    for response in (named.ask('GET'), named.ask('GET', url(uuid))):
        assert response.ok
        assert '\u202e' not in response.text
    assert named.change(uuid, 'delete').ok


def test_secret_that_is_too_long_for_a_qr_code_is_shown_without_one(page):
    uuid = page.made()
    entry = json.loads(page.folder.redis('GET', uuid))
    entry['authParams']['base32'] = 'A' * 4000
    page.folder.redis('SET', uuid, json.dumps(entry))
    response = page.change(uuid, 'secret')
    assert response.ok
    assert 'A' * 4000 in response.text
    assert 'QR' not in response.text
