"""The commands of users_app.py, the files that it writes and what it keeps in Redis."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
import self_signed
from conftest import ROOT, until
from programs import ENDS_SECONDS, Folder
from shells import on_terminal, worker
from visitor import files

from rendezvous.admin import command as commands
from rendezvous.admin import entry_files as hidden_files
from rendezvous.admin import shell as users_app
from rendezvous.admin import words
from rendezvous.store import rations
from rendezvous.store.options import DEFAULTS
from rendezvous.wire.programs import VERSION, Mistake


@pytest.fixture
def folder(shell, shell_folder):
    return shell_folder


@contextmanager
def names(folder: Folder) -> Iterator[None]:
    """Each hidden server has a host name meanwhile."""
    folder.set(names_domain='rendezvous.example.com')
    try:
        yield
    finally:
        folder.set(names_domain=None)


@pytest.fixture
def uuid():
    return str(uuids.uuid4())


def test_entry_is_made_listed_and_deleted(folder, uuid):
    ran = folder.run('users_app.py', 'add', '--uuid', uuid.upper(), 'garden shed')
    assert (ran.status, ran.stderr) == (0, '')
    for suffix in ('json', 'js'):
        assert f'{folder.path}/entries/{uuid}.{suffix}  for' in ran.stdout
    address = 'https://127.0.0.1:8899/  for mobile clients, with any password and the user name '
    assert f'{address}{uuid}\n' in ran.stdout
    assert ran.stdout.endswith(f'the entries are in {folder.path}/data\n')
    assert len(files(folder, uuid)) == 2
    assert json.loads(files(folder, uuid)[f'{uuid}.json'])['labels'] == ['garden shed']
    assert folder.listed() == {uuid: 'garden shed'}
    ran = folder.run('users_app.py', 'delete', '--yes', uuid.upper())
    assert (ran.status, ran.stdout) == (0, f'deleted {uuid}\n')
    assert files(folder, uuid) == {}
    assert folder.listed() == {}


@pytest.mark.parametrize(('arguments', 'digits'), [((), 8), (('--digits', '6'), 6)])
def test_codes_have_8_digits_or_6_if_asked_for(shell, uuid, arguments, digits):
    shell.says('add', '--uuid', uuid, *arguments)
    assert shell.stored(uuid)['authParams']['digits'] == digits
    assert shell.stored(uuid)['authURL'].endswith(f'&digits={digits}')
    assert shell.file(uuid)['authParams'] == shell.stored(uuid)['authParams']


def test_new_label_is_in_redis_and_in_the_files_and_the_secret_stays(folder, shell, uuid):
    shell.says('add', '--uuid', uuid, 'kitchen')
    before, written = shell.stored(uuid), shell.file(uuid)
    assert shell.says('rename', uuid.upper(), ' Küche ') == f'renamed {uuid}\n'
    assert shell.stored(uuid) == before | {'labels': ['Küche']}
    assert shell.file(uuid) == written | {'labels': ['Küche']}
    shell.says('rename', uuid, '')
    assert shell.stored(uuid)['labels'] == []


def test_entry_is_disabled_and_enabled(folder, shell, uuid):
    shell.says('add', '--uuid', uuid)
    assert shell.says('disable', '--yes', uuid) == f'disabled {uuid}\n'
    (listed,) = json.loads(shell.says('list', '--json'))
    assert (listed['disabled'], listed['state']) == (True, 'disabled')
    assert shell.says('enable', uuid) == f'enabled {uuid}\n'
    (listed,) = json.loads(shell.says('list', '--json'))
    assert (listed['disabled'], listed['state']) == (False, 'never seen')


def test_new_secret_is_in_redis_and_in_the_files(folder, shell, uuid):
    shell.says('add', '--uuid', uuid, '--digits', '6', 'kitchen')
    before = shell.file(uuid)
    said = shell.says('rekey', '--yes', uuid)
    assert f'the old secret of {uuid} does not work any more\n' in said
    assert f'{folder.path}/entries/{uuid}.json  for' in said
    after = shell.file(uuid)
    assert after['authParams'] == shell.stored(uuid)['authParams']
    old, new = before['authParams'].pop('base32'), after['authParams'].pop('base32')
    assert after == before
    assert new != old
    assert new not in said
    assert old not in str(files(folder, uuid))
    assert new in files(folder, uuid)[f'{uuid}.js']
    shell.says('rekey', '--yes', '--digits', '8', uuid)
    assert shell.file(uuid)['authParams']['digits'] == 8


def test_pack_makes_one_file_for_its_owner_alone(shell, uuid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shell.says('add', '--uuid', uuid, 'the Küche!')
    said = shell.says('pack', uuid.upper())
    assert '\n    python3 the-Kuche.pyz 127.0.0.1:8000\n' in said
    made = tmp_path / 'the-Kuche.pyz'
    assert made.stat().st_mode & 0o777 == 0o600
    assert shell.stored(uuid)['authParams']['base32'] not in said
    shell.says('rename', uuid, '厨房')
    assert f'made {uuid}.pyz, ' in shell.says('pack', uuid)
    shell.says('pack', uuid, '-o', 'a name.pyz')
    assert {file.name for file in tmp_path.glob('*.pyz')} == {
        *(made.name, f'{uuid}.pyz', 'a name.pyz')
    }
    for wrong, why in (('no/x.pyz', 'No such file or directory'), ('/', 'it is no regular file')):
        ran = shell.run('pack', uuid, '-o', wrong)
        assert (ran.status, ran.stdout) == (1, '')
        assert re.fullmatch(f'Error: cannot write {wrong}: {why}\n', ran.stderr)


def test_commands_that_add_tells_are_for_the_folder_where_they_are_read(
    folder, shell, uuid, monkeypatch, tmp_path
):
    monkeypatch.setattr(commands, 'HERE', folder.path)
    for here in (folder.path, tmp_path):
        monkeypatch.chdir(here)
        said = shell.says('add', '--uuid', uuid)
        (command,) = re.findall('  for: (.*)$', said, re.M)
        python, program, file, _ = shlex.split(command)
        assert Path(python).samefile(folder.path / '.venv/bin/python')
        assert Path(program).samefile(folder.path / 'hidden.py')
        assert Path(file).samefile(folder.path / 'entries' / f'{uuid}.json')
        assert Path(file).is_absolute() == (here == tmp_path)
        shell.says('delete', '--yes', uuid)


def test_error_says_that_the_new_secret_was_not_written(folder, shell, uuid):
    shell.says('add', '--uuid', uuid)
    before, file = shell.stored(uuid), folder.path / 'entries' / f'{uuid}.json'
    file.unlink()
    file.mkdir()
    with pytest.raises(
        Mistake, match=r'; the secret is new, but is not in the files: rekey the entry again$'
    ):
        shell.run('rekey', '--yes', uuid)
    file.rmdir()
    assert shell.stored(uuid) != before


def test_error_names_the_files_that_were_not_deleted(folder, shell, uuid):
    shell.says('add', '--uuid', uuid)
    file = folder.path / 'entries' / f'{uuid}.json'
    file.unlink()
    file.mkdir()
    with pytest.raises(Mistake, match=f'cannot delete {file}: .* but not its files: delete them'):
        shell.run('delete', '--yes', uuid)
    assert not folder.redis('EXISTS', uuid)
    file.rmdir()


def test_refusal_is_one_sentence(folder, shell, uuid):
    shell.says('add', '--uuid', uuid)
    before = folder.redis('GET', uuid), files(folder, uuid)
    unknown = str(uuids.uuid4())
    label = 'a label must not contain control characters or invisible characters'
    no_entry = r'no UUID begins so \(with 4 characters or more\): users_app.py list shows .*'
    like = 'is not a UUID like .*; without one, a new one is made'
    said = {
        ('add', '--uuid', 'kitchen'): f"'kitchen' {like}",
        ('add', '\udcff'): label,  # so Python has an octet that is no UTF-8
        ('add', 'x' * 10_000): 'a label has at most 100 characters, not 10000',
        ('rename', uuid, 'a\u202eb'): label,
        ('rename', unknown, 'x'): f'there is no entry {unknown}',
        ('show', 'kitchen'): f"no entry has the label 'kitchen', and {no_entry}",
        ('show', '../\x1b[2J' + 'x' * 10_000): rf"no entry .* '../.x1b\[2Jx{{43}}', and {no_entry}",
        ('enable', unknown): f'there is no entry {unknown}',
        ('disable', '--yes', unknown): f'there is no entry {unknown}',
        ('rekey', '--yes', unknown): f'there is no entry {unknown}',
        ('delete', '--yes', unknown): f'there is no entry {unknown}',
        ('add', '--uuid', uuid.upper()): f'there is already an entry {uuid}: .*',
    }
    for arguments, sentence in said.items():
        ran = shell.run(*arguments)
        assert (ran.status, ran.stdout) == (1, '')
        assert re.fullmatch(f'Error: {sentence}\n', ran.stderr)
    assert (folder.redis('GET', uuid), files(folder, uuid)) == before


def test_entry_is_found_by_its_uuid_the_beginning_of_it_or_its_label(shell, uuid):
    shell.says('add', '--uuid', uuid, 'the Küche')
    shell.says('add', 'the garage')
    for text in (uuid, uuid.upper(), uuid[:8], uuid[:4].upper(), 'the Küche', ' THE KÜCHE '):
        assert json.loads(shell.says('show', '--json', text))['uuid'] == uuid
    for command in (['note', 'x'], ['rename', 'the Küche'], ['enable'], ['disable', '--yes']):
        name, *more = command
        assert uuid in shell.says(name, 'the küche', *more)
    assert [each['state'] for each in shell.listed()] == ['never seen', 'disabled']


def test_label_of_two_entries_is_refused_with_the_candidates(shell):
    two = sorted(str(uuids.uuid4()) for _ in range(2))
    for each in two:
        shell.says('add', '--uuid', each, 'kitchen')
    for arguments in (['show', 'Kitchen'], ['delete', '--yes', 'kitchen'], ['check', 'kitchen']):
        sentence = shell.refuses(*arguments)
        assert all(f'{each} (kitchen)' in sentence for each in two)
    assert len(shell.listed()) == 2


def test_several_entries_are_changed_by_one_command(folder, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    three = [str(uuids.uuid4()) for _ in range(3)]
    for each, label in zip(three, ('kitchen', 'kitchen', 'garage'), strict=True):
        shell.says('add', '--uuid', each, label)
    secrets = {each: shell.file(each)['authParams']['base32'] for each in three}
    assert shell.refuses('disable', '--yes', *three, 'nobody').startswith('no entry has the label')
    assert {entry['state'] for entry in shell.listed()} == {'never seen'}
    said = shell.says('disable', '--yes', *three, three[0].upper())
    assert said.splitlines() == [f'disabled {each}' for each in three]
    assert {entry['state'] for entry in shell.listed()} == {'disabled'}
    assert shell.says('enable', *three).count('enabled') == 3
    shell.says('rekey', '--yes', *three)
    assert all(shell.file(each)['authParams']['base32'] != secrets[each] for each in three)
    shell.says('pack', *three)
    packed = {'kitchen.pyz', f'kitchen-{three[1][:8]}.pyz', 'garage.pyz'}
    assert {file.name for file in tmp_path.glob('*')} == packed
    assert shell.run('pack', '-o', 'x', *three).status == 2
    with names(folder):
        ran = shell.run('name', *three)
        assert ran.status == 1
        assert ran.stdout.count('its address is now') == 2
        taken = f'kitchen is the host name of the entry {three[0]}: choose another label'
        assert ran.stderr == f'Error: {taken}\nError: 2 of 3 done\n'
    ran = on_terminal(folder, 'delete', *three, typed='y\n')
    assert 'Delete these 3 and their secrets? [y/N]: ' in ran.stdout
    assert shell.listed() == []


def test_note_of_a_line_or_two(shell, uuid):
    shell.says('add', '--uuid', uuid, 'kitchen')
    assert shell.says('note', 'kitchen', ' behind the boiler\nask Alice ') == f'noted {uuid}\n'
    assert shell.stored(uuid)['note'] == 'behind the boiler\nask Alice'
    for wrong, why in (('x' * 401, 'notes have at most 400'), ('\x1b', 'notes must not contain')):
        assert shell.refuses('note', uuid, wrong).startswith(why)
    assert shell.listed()[0]['note'] == 'behind the boiler\nask Alice'
    assert shell.says('note', uuid, '') == f'the note of {uuid} is gone\n'
    assert 'note:' not in shell.says('show', uuid)


def test_wrong_usage_is_status_2_and_needs_neither_store_nor_local_py(tmp_path):
    with Folder(tmp_path) as folder:
        (folder.path / 'local.py').unlink()
        ran = folder.run('users_app.py', 'show')
        assert (ran.status, ran.stdout) == (2, '')
        assert ran.stderr.endswith("Error: Missing argument 'ENTRY'.\n")
        assert folder.run('users_app.py', 'delete', '--help').status == 0
        sentence = folder.run('users_app.py', 'list').sentence()
        assert sentence.startswith('there is no local.py')
        assert not (folder.path / 'data').exists()


def test_change_that_ends_connections_asks_on_a_terminal(folder, shell, uuid):
    shell.says('add', '--uuid', uuid, 'kitchen')
    before = folder.redis('GET', uuid), files(folder, uuid)
    ends = 'waiting registrations: 4, open pipes: 1; they end within two seconds: '
    for command, typed in [
        ('disable', 'n\n'),
        ('rekey', '\n'),
        ('delete', 'n\n'),
        ('delete', '\4'),
    ]:
        with worker(folder, {uuid: '4 1'}):
            ran = on_terminal(folder, command, uuid, typed=typed)
        assert ran.status == 1
        assert f'{ends}{uuid} kitchen\n' in ran.stdout
        assert re.search(r'\? \[y/N\]: .*Aborted!\n$', ran.stdout, re.S)
    assert (folder.redis('GET', uuid), files(folder, uuid)) == before
    ran = on_terminal(folder, 'delete', uuid, typed='y\n')
    assert (ran.status, folder.redis('GET', uuid)) == (0, None)
    assert ran.stdout.endswith(f'deleted {uuid}\n')


def test_without_a_terminal_it_needs_yes(folder, shell, uuid):
    shell.says('add', '--uuid', uuid, 'kitchen')
    before = folder.redis('GET', uuid)
    for command in ('delete', 'disable', 'rekey'):
        ran = shell.run(command, uuid)
        assert (ran.status, ran.stdout) == (2, '')
        assert ran.stderr.endswith('no terminal to ask on: confirm with --yes\n')
    assert folder.redis('GET', uuid) == before
    ran = shell.run('disable', '--yes', uuid)
    assert ran.stderr.endswith(f'they end within two seconds: {uuid} kitchen\n')


LONG_AGO = 3 * 86400 + 60  # seconds


@pytest.fixture
def five(folder, shell) -> Iterator[dict[str, str]]:
    """UUIDs of five entries by the state in which they are."""
    states = 'disabled', 'never seen', 'offline', 'online', 'refused'
    found = dict(zip(states, sorted(str(uuids.uuid4()) for _ in states), strict=True))
    for state, uuid in found.items():
        shell.says('add', '--uuid', uuid, f'the {state} one')
    shell.says('disable', '--yes', found['disabled'])
    now = time.time()
    past = {'first': now - LONG_AGO, 'since': now - LONG_AGO}
    shell.knows(found['offline'], state='offline', address='2001:db8::1', **past)
    shell.knows(found['online'], state='online', address='192.0.2.1', **past)
    refused = {'refused': now - 20, 'address': '192.0.2.2', 'why': ['clock', 3660, True, '']}
    shell.knows(found['refused'], state='refused', **past | refused)
    one, other = {found['online']: '4 0'}, {found['online']: '2 1'}
    with worker(folder, one), worker(folder, other):
        yield found


def test_list_is_a_table_and_json_for_programs(folder, shell, five):
    head, *lines = shell.says('list').splitlines()
    assert head.split() == ['UUID', 'STATE', 'WAITING', 'OPEN', 'ADDRESS', 'WHY', 'LABEL']
    then = words.Clock().at(time.time() - LONG_AGO)
    cells = [re.split('  +', line) for line in lines]
    assert re.fullmatch(r'disabled since \d\d:\d\d', cells[0].pop(1))
    assert re.fullmatch('refused [2-5][0-9] s ago', cells[4].pop(1))
    refused = 'Clock 61 minutes ahead'
    assert cells == [
        [five['disabled'], '0', '0', 'the disabled one'],
        [five['never seen'], 'never seen', '0', '0', 'the never seen one'],
        [five['offline'], f'offline since {then}', '0', '0', '2001:db8::1', 'the offline one'],
        [five['online'], f'online since {then}', '6', '1', '192.0.2.1', 'the online one'],
        [five['refused'], '0', '0', '192.0.2.2', refused, 'the refused one'],
    ]
    assert {line.index('the ') for line in lines} == {head.index('LABEL')}
    listed = shell.listed()
    assert {entry['state']: entry['uuid'] for entry in listed} == five
    assert (listed[3]['waiting'], listed[3]['pipes'], listed[3]['address']) == (6, 1, '192.0.2.1')
    assert [entry['disabled'] for entry in listed] == [True, *[False] * 4]
    assert listed[1]['since'] is listed[1]['why'] is None
    assert listed[4]['why'] == {
        **{'kind': 'clock', 'seconds': 3660, 'sure': True, 'other': ''},
        'text': refused,
    }
    for entry in listed:
        assert abs(time.time() - entry['created']) < 60


def test_list_shows_those_in_the_states_asked_for(shell, five):
    for state, uuid in five.items():
        (listed,) = shell.listed(f'--{state.replace(" ", "-")}')
        assert listed['uuid'] == uuid
    listed = shell.listed('--refused', '--offline')
    assert [entry['state'] for entry in listed] == ['offline', 'refused']
    assert len(shell.says('list', '--never-seen').splitlines()) == 2
    shell.says('delete', '--yes', five['refused'], five['offline'])
    ran = shell.run('list', '--refused', '--offline')
    assert ran == (0, '', 'none of the 3 entries is refused or offline\n')
    assert shell.listed('--refused') == []


def test_list_is_sorted_as_people_do_or_by_what_is_asked_for(shell, folder, five):
    for uuid, label in zip(five.values(), ('b 10', 'B 2', 'a', 'C', '\u00c4'), strict=True):
        shell.says('rename', uuid, label)
    more = str(uuids.uuid4())
    shell.says('add', '--uuid', more)

    def order(*options: str) -> list[str]:
        return [', '.join(entry['labels']) for entry in shell.listed(*options)]

    assert order() == order('--sort', 'name') == ['a', '\u00c4', 'B 2', 'b 10', 'C', '']
    with worker(folder, {more: '7 0', five['offline']: '1 2'}):
        assert order('--sort', 'waiting')[:3] == ['', 'C', 'a']
        assert order('--sort', 'open')[:3] == ['a', 'C', '\u00c4']
    assert order('--sort', 'state') == ['C', '\u00c4', 'a', 'b 10', 'B 2', '']
    assert order('--sort', 'seen')[0] == 'C'
    assert order('--sort', 'seen')[-2:] == ['B 2', '']
    assert shell.run('list', '--sort', 'x').status == 2


def test_entry_without_a_label_has_no_spaces_where_it_would_be(shell):
    shell.says('add')
    assert shell.says('list').endswith('  never seen  0        0\n')


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in 'WF' else 1 for letter in line)


@pytest.mark.parametrize('width', [80, 160])
def test_list_fits_the_terminal(folder, shell, five, width):
    long = ['厨房🍳' * 33, 'x' * 100, '\u05d0\u05d1 1 ' * 20]
    for label, uuid in zip(long, five.values(), strict=False):
        shell.says('rename', uuid, label)
    lines = on_terminal(folder, 'list', columns=width).stdout.splitlines()
    assert len(lines) == (13 if width == 80 else 6)
    assert max(map(columns, lines)) <= width
    assert sum(line.strip() == 'Clock 61 minutes ahead' for line in lines) == (width == 80)
    assert sum(line.endswith('\u2026') for line in lines) == 3
    assert sum(line.endswith('  the online one') for line in lines) == 1


def test_list_of_nothing_says_how_to_make_one(folder, shell):
    ran = shell.run('list')
    assert (ran.status, ran.stdout) == (0, '')
    assert ran.stderr == 'there are no entries yet: users_app.py add LABEL makes one\n'


def test_label_of_joiners_alone_is_none(shell, uuid):
    shell.says('add', '--uuid', uuid, ' \u200d ')
    assert shell.stored(uuid)['labels'] == []


def test_labels_that_others_wrote_are_harmless(folder, shell, uuid):
    labels = ['\x1b[2J\x1b]0;x\7\x9b1m', '\u202e\u2067\u200f', 'a\nb\r\0\x7f\u2028', 'x' * 10_000]
    folder.redis('SET', uuid, json.dumps({'labels': labels, 'authURL': '\x1b[2J', 'created': {}}))
    shell.knows(uuid, state='offline', since=1, first=1, address='\x1b[2J')
    folder.redis('LPUSH', 'log', json.dumps({'when': 1, 'who': '\x1b[2J', 'label': '\x07'}))
    for arguments in (
        ['list'],
        ['show', uuid],
        ['show', '--secret', uuid],
        ['list', '--json'],
        ['log'],
    ):
        said = shell.says(*arguments)
        assert all(letter.isprintable() for letter in said.replace('\n', '')), said
        assert '--json' in arguments or max(map(len, said.splitlines())) < 250
    ran = shell.run('disable', '--yes', uuid)
    assert ran.stderr.replace('\n', '').isprintable()
    assert shell.stored(uuid)['labels'] == labels


def test_list_works_on_a_terminal_without_the_letters_of_a_label(folder, shell, monkeypatch):
    shell.says('add', '厨房')
    monkeypatch.setenv('PYTHONIOENCODING', 'latin-1')
    assert folder.run('users_app.py', 'list').stdout.endswith('  ??\n')


def test_commands_work_without_standard_output_and_input(folder, uuid):
    without = 'sh', '-c', 'exec "$@" <&- >&-', 'sh'
    ran = folder.run('users_app.py', 'add', '--uuid', uuid, under=without)
    assert ran == (0, '', '')
    assert folder.run('users_app.py', 'list', under=without) == (0, '', '')
    assert folder.run('users_app.py', 'delete', uuid, under=without).status == 2


def test_show_tells_all_but_the_secret(folder, shell, uuid):
    shell.says('add', '--uuid', uuid, 'kitchen')
    shell.knows(uuid, state='offline', since=1e9, first=1e8, address='192.0.2.1')
    rendezvous = {'at': 1e9, 'address': '198.51.100.7', 'seconds': 1.5, 'sent': 900}
    rendezvous |= {'received': 2_500_000, 'how': 'hidden server closed'}
    folder.redis('LPUSH', f'rendezvous:{{{uuid}}}', json.dumps(rendezvous))
    shell.says('note', uuid, 'behind the boiler\nask Alice')
    said = shell.says('show', uuid.upper())
    then = words.Clock().at(1e9)
    for line in (
        f'UUID:       {uuid}',
        'label:      kitchen',
        'note:       behind the boiler',
        '            ask Alice',
        f'state:      offline since {then}; waiting registrations: 0, open pipes: 0',
        'address:    192.0.2.1',
        'codes:      8 digits',
        f'files:      {folder.path}/entries/{uuid}.json and .js',
        f'    .venv/bin/python users_app.py pack {uuid}',
        '    python3 kitchen.pyz 127.0.0.1:8000',
        f'    curl --cacert registrar.crt --digest -u {uuid}:x https://127.0.0.1:8899/',
    ):
        assert f'{line}\n' in said
    columns = '1.5 s  900 B  2.5 MB  198.51.100.7  finished by hidden server'
    assert f'    {then}  {columns}\n' in said
    secret = shell.stored(uuid)['authParams']['base32']
    assert secret not in said
    said = shell.says('show', '--secret', uuid)
    assert f'secret:     {secret}\n' in said
    assert shell.stored(uuid)['authURL'] in said
    for file in (folder.path / 'entries').glob(f'{uuid}.*'):
        file.unlink()
    assert 'files:      not here: download them from the page; ' in shell.says('show', uuid)


def test_show_for_programs_has_the_secret_only_if_it_is_asked_for(folder, shell, uuid):
    shell.says('add', '--uuid', uuid, 'kitchen')
    shell.says('note', uuid, 'behind the boiler')
    now = time.time()
    shell.knows(uuid, state='online', since=now - 60, first=now - 3600, address='192.0.2.1')
    folder.redis('RPUSH', f'changes:{{{uuid}}}', f'{now - 3600} online', f'{now - 90} offline')
    folder.redis('RPUSH', f'changes:{{{uuid}}}', f'{now - 60} online')
    day, hour = divmod(int(now // 3600), 24)
    folder.redis('HSET', f'hours:{{{uuid}}}', day, f'{hour} 5 70 2 1')
    refused = {'why': ['former', 0, True, ''], 'first': now - 90, 'last': now - 80, 'count': 3}
    folder.redis('HSET', f'refusals:{{{uuid}}}', 'former 192.0.2.7', json.dumps(refused))
    twins = refused | {'why': ['twins', 0, True, '192.0.2.8'], 'last': now - 1000}
    folder.redis('HSET', f'refusals:{{{uuid}}}', 'twins 192.0.2.1', json.dumps(twins))
    for before, address in (60, '192.0.2.3'), (3000, '192.0.2.4'), (90, '192.0.2.5'):
        past = {'at': now - before, 'address': address, 'seconds': 1, 'sent': 1, 'received': 1}
        folder.redis('RPUSH', f'rendezvous:{{{uuid}}}', json.dumps(past | {'how': 'closed'}))
    with worker(folder, {uuid: '4 0'}):
        said = shell.says('show', '--json', 'kitchen')
        text = shell.says('show', 'kitchen')
        with_secret = json.loads(shell.says('show', '--json', '--secret', uuid[:8]))
    secret, found = shell.stored(uuid)['authParams']['base32'], json.loads(said)
    assert secret not in said
    assert with_secret['secret'] == secret
    assert (found['state'], found['waiting'], found['note']) == ('online', 4, 'behind the boiler')
    assert [change['state'] for change in found['changes']] == ['online', 'offline', 'online']
    assert 6 * 24 < len(found['hours']) <= 7 * 24 + 2
    hour = {'at': now // 3600 * 3600, 'up': 5, 'down': 70, 'visits': 2, 'failures': 1}
    assert found['hours'][-1] == hour
    refusal, _ = found['refusals']
    assert (refusal['address'], refusal['count']) == ('192.0.2.7', 3)
    assert refusal['why']['text'] == 'Old secret: it needs the new file'
    assert '    online 99 % of it; offline once, 30 s\n' in text
    assert '    2 rendezvous: 70 B down, 5 B up\n' in text
    assert '    1 mobile client failed\n' in text
    connections = text.partition('the last connections:')[2]
    assert re.findall(r'192\.0\.2\.\d', connections) == ['192.0.2.3', '192.0.2.5', '192.0.2.4']
    assert re.search('^    Old secret.*  3  .*  192.0.2.7$', text, re.M)
    assert 'Two machines' not in text  # nobody was refused, and it is over


def test_show_says_what_to_do_about_one_that_is_offline(folder, shell, uuid):
    shell.says('add', '--uuid', uuid, 'kitchen')
    shell.knows(uuid, state='offline', since=1e9, first=1e8)
    sentence = f'It has not tried to register since {words.Clock().at(1e9)}. '
    with worker(folder, {}):
        reason = shell.says('show', uuid).partition('what is wrong, and what to do:')[2]
    assert reason.startswith(f'\n    {sentence}')
    assert '\n    ' + '    python3 kitchen.pyz 127.0.0.1:8000\n' in reason
    assert sentence not in shell.says('show', uuid)  # the server is down: that is the reason


def test_with_names_the_uuid_is_in_the_address(folder, shell, uuid):
    with names(folder):
        address = f'https://{uuid}.rendezvous.example.com:8899/'
        assert f'{address}  for mobile clients\n' in shell.says('add', '--uuid', uuid, 'kitchen')
        assert shell.file(uuid)['server']['url'] == address
        for line in 'on the phone:', f'    {address}', f'    curl --cacert registrar.crt {address}':
            assert f'{line}\n' in shell.says('show', uuid)
    shell.says('rename', uuid, 'kitchen')
    assert 'url' not in shell.file(uuid)['server']


def test_label_is_switched_on_as_a_host_name_and_off(folder, shell, uuid):
    with names(folder):
        shell.says('add', '--uuid', uuid, 'Kitchen')
        said = shell.says('name', uuid.upper())
        address = 'https://kitchen.rendezvous.example.com:8899/'
        assert said.startswith(f'its address is now {address}\n')
        assert 'Whoever guesses it reaches the hidden server, which must ask' in said
        assert shell.says('list').endswith(f'  Kitchen  {address}\n')
        (listed,) = shell.listed()
        assert (listed['name'], listed['url']) == ('kitchen', address)
        said = shell.says('show', uuid)
        assert 'host name:  kitchen\n' in said
        assert f'curl --cacert registrar.crt {address}\n' in said
        assert f'    https://{uuid}.rendezvous.example.com:8899/\n' in said
        assert uuid in shell.says('name', '--off', uuid)
        (listed,) = shell.listed()
        assert listed['url'] == f'https://{uuid}.rendezvous.example.com:8899/'
        assert listed['name'] == ''
        assert 'host name:  -\n' in shell.says('show', uuid)
        shell.says('name', uuid)
    (listed,) = shell.listed()
    assert (listed['name'], listed['url']) == ('', 'https://127.0.0.1:8899/')


def test_host_name_follows_the_label_until_the_entry_is_deleted(folder, shell, uuid):
    with names(folder):
        shell.says('add', '--uuid', uuid, 'kitchen')
        shell.says('name', uuid)
        said = shell.says('rename', uuid, 'Garage')
        assert said.endswith('its address is now https://garage.rendezvous.example.com:8899/\n')
        assert [entry['name'] for entry in shell.listed()] == ['garage']
        shell.says('delete', '--yes', uuid)
        for label in ('kitchen', 'garage'):
            other = str(uuids.uuid4())
            shell.says('add', '--uuid', other, label)
            shell.says('name', other)
        assert [entry['name'] for entry in shell.listed()] == ['garage', 'kitchen']


def test_host_name_that_cannot_be_is_refused_and_nothing_changes(folder, shell, uuid):
    other, nameless, unknown = (str(uuids.uuid4()) for _ in range(3))
    no_domain = 'there are no host names yet: set names_domain in local.py'
    for each, label in {uuid: 'kitchen', other: 'KITCHEN', nameless: ''}.items():
        shell.says('add', '--uuid', each, label)
    assert shell.run('name', uuid).stderr == f'Error: {no_domain}\n'
    with names(folder):
        shell.says('name', uuid)
        before = shell.listed(), files(folder, uuid)
        taken = f'kitchen is the host name of the entry {uuid}: choose another label'
        none = 'an entry without a label has no host name: give it a label'
        off = 'or first switch off its host name kitchen'
        what = 'a name has 1 to 63 characters: a to z, 0 to 9, and hyphens between them; .*'
        for arguments, sentence in {
            ('name', other): taken,
            ('name', nameless): none,
            ('name', unknown): f'there is no entry {unknown}',
            ('name', '--off', unknown): f'there is no entry {unknown}',
            ('rename', uuid, ''): f'{none}, {off}',
            ('rename', uuid, 'garden shed'): f"'garden shed' cannot be a host name: {what}, {off}",
        }.items():
            ran = shell.run(*arguments)
            assert (ran.status, ran.stdout) == (1, '')
            assert re.fullmatch(f'Error: {sentence}\n', ran.stderr)
        assert (shell.listed(), files(folder, uuid)) == before
        shell.says('rename', other, 'garage')
        shell.says('name', other)
        ran = shell.run('rename', other, 'Kitchen')
        assert ran.stderr == f'Error: {taken}, or first switch off its host name garage\n'
        assert shell.stored(other)['labels'] == ['garage']


@pytest.mark.skipif(not shutil.which('curl'), reason='curl is not installed')
def test_commands_that_show_tells_work_until_there_is_a_new_secret(tmp_path, uuid):
    with Folder(tmp_path) as folder:
        folder.pair()
        _, port = folder.serve()
        folder.set(rendezvous_port=port)
        near = folder.start('-u', '-m', 'http.server', '--bind', '127.0.0.1', '0')
        near_port = near.until_it_says(r'port (\d+)')[1]
        folder.add('--uuid', uuid)
        said = folder.run('users_app.py', 'show', uuid).stdout
        commands = map(shlex.split, re.findall('^    (.*)', said, re.M))
        (_, *packing), (_, *hidden, _), _, curl = commands
        assert folder.run(*packing).status == 0
        hiding = folder.start(*hidden, f'127.0.0.1:{near_port}')
        hiding.until_it_says('registered')
        ran = subprocess.run([*curl, '-sS', '--noproxy', '*'], cwd=folder.path, capture_output=True)
        assert (ran.returncode, ran.stderr) == (0, b'')
        assert b'Directory listing' in ran.stdout
        until(lambda: folder.redis('EXISTS', f'rendezvous:{{{uuid}}}'), 'the rendezvous is told')
        said = folder.run('users_app.py', 'show', uuid).stdout
        assert re.search('^state:      online ', said, re.M)
        assert re.search('  127.0.0.1  finished by ', said)
        assert folder.run('users_app.py', 'rekey', '--yes', uuid).status == 0
        hiding.until_it_says('not registered .* 401')


IMPORTED = 'aaaaaaaa-0000-4000-8000-00000000000'


def nedis_entry(label: str) -> str:
    parameters = {'protocol': 'totp', 'algorithm': 'sha1', 'length': 40, 'step': 30}
    parameters |= {'base32': 'GEZDGNBVGY3TQOJQ' * 4}
    return json.dumps({'uuid': 'x', 'authParams': parameters, 'labels': [label]})


def test_import_takes_the_entries_of_node_rendezvous_and_overwrites_none(folder, shell, tmp_path):
    first, second, third = (f'{IMPORTED}{number}' for number in (1, 2, 3))
    shell.says('add', '--uuid', second, 'mine')
    before, file = folder.redis('GET', second), tmp_path / 'nedis.db'
    value = nedis_entry('kitchen')
    file.write_text(
        f'set {first} {json.dumps(nedis_entry("old"))}\n'
        f'set {second} {json.dumps(value)}\r\n'
        f'*3\r\n$3\r\nset\r\n$36\r\n{first}\r\n${len(value)}\r\n{value}\r\n'
        f'hset {first} x y\n'
        f'set {third} {{}}\n'
    )
    ran = shell.run('import', str(file))
    assert (ran.status, ran.stdout) == (0, f'imported {first}\n')
    assert ran.stderr.splitlines() == [
        'skipped line 1: line 3 replaces it',
        f'skipped line 2: there is already an entry {second}',
        'skipped line 10: it is neither SET KEY VALUE nor DEL',
        f'skipped line 11: the value of {third} is not an entry',
    ]
    assert folder.redis('GET', second) == before
    assert shell.stored(first) == json.loads(value)
    assert [entry['labels'] for entry in shell.listed()] == [['kitchen'], ['mine']]
    again = shell.run('import', str(file))
    assert (again.status, again.stdout) == (0, '')
    assert f'skipped line 3: there is already an entry {first}\n' in again.stderr
    said = shell.says('show', first)
    assert 'codes:      6 digits\n' in said


@pytest.mark.parametrize(
    ('octets', 'sentence'),
    [
        (b'\x7fELF"\0\xff\n' * 1000, '{file} holds no Redis commands from line 1 on'),
        (b'*3\r\n', '{file} holds no Redis commands from line 1 on'),
        (b'x' * (1 << 24) + b'x', '{file} is larger than 16 MiB: it is not a nedis.db'),
        (None, 'cannot read {file}: No such file or directory'),
    ],
)
def test_file_that_is_not_a_nedis_db_is_refused(folder, shell, tmp_path, octets, sentence):
    file = tmp_path / 'nedis.db'
    if octets is not None:
        file.write_bytes(octets)
    ran = shell.run('import', str(file))
    assert ran == (1, '', f'Error: {sentence.format(file=file)}\n')
    assert shell.listed() == []


def test_many_skipped_lines_are_counted(folder, shell, tmp_path):
    file = tmp_path / 'README.md'
    file.write_text('words, and no commands\n' * 1000)
    ran = shell.run('import', str(file))
    lines = ran.stderr.splitlines()
    assert (ran.status, ran.stdout, len(lines)) == (0, '', 21)
    assert lines[-1] == 'skipped 980 more'


def test_commands_start_without_flask():
    """It takes 0.2 s to import."""
    program = 'import sys, rendezvous.admin.shell; sys.exit("flask" in sys.modules)'
    subprocess.run([sys.executable, '-c', program], cwd=ROOT, timeout=ENDS_SECONDS, check=True)


@pytest.mark.parametrize('port', ['65536', '-1', 'x'])
def test_impossible_port_is_refused(port):
    with pytest.raises(click.BadParameter):
        users_app.cli.main([f'--port={port}'], standalone_mode=False)


def test_certificate_of_an_authority_is_not_in_the_files(tmp_path):
    crt_file = tmp_path / 'public.crt'
    crt_file.write_bytes(self_signed.pair(issuer='an authority')[1])
    options = DEFAULTS | {'crt_file': str(crt_file), 'rendezvous_host': 'rendezvous.example'}
    assert hidden_files.how_to_reach(options) == {'hostname': 'rendezvous.example', 'port': 8899}


def test_with_plain_http_no_certificate_is_in_the_files():
    server = {'hostname': '127.0.0.1', 'port': 8899}
    assert hidden_files.how_to_reach(DEFAULTS | {'key_file': None, 'crt_file': 'none'}) == server


def test_entry_that_is_no_json_can_be_deleted(folder, shell, uuid):
    folder.redis('SET', uuid, 'not json')
    assert f'UUID:       {uuid}' in shell.says('show', uuid)
    assert shell.says('delete', '--yes', uuid) == f'deleted {uuid}\n'
    assert folder.redis('EXISTS', uuid) == 0


@pytest.mark.parametrize('command', ['enable', 'rekey', 'delete'])
def test_wrong_codes_are_cleared(folder, shell, uuid, command):
    other = str(uuids.uuid4())
    shell.says('add', '--uuid', uuid)
    for each in (uuid, other):
        folder.redis('HSET', rations.record(each), 'used_up', 1)
    shell.says(command, *(['--yes'] if command != 'enable' else []), uuid)
    assert folder.redis('HKEYS', rations.record(uuid)) == ([] if command == 'delete' else ['since'])
    assert folder.redis('HKEYS', rations.record(other)) == ['used_up']


@pytest.mark.parametrize('module', ['gevent', 'click', 'redis', 'flask'])
def test_ctrl_c_is_no_traceback_however_early(tmp_path, module):
    with Folder(tmp_path) as folder:
        # What is imported from beside the program tells where it is, and stays there.
        stays = f"print('now', flush=True)\nimport time\ntime.sleep({ENDS_SECONDS})\n"
        (folder.path / f'{module}.py').write_text(stays)
        program = folder.start('users_app.py', '--port', '0')
        program.until_it_says('now\n')
        assert program.end(signal.SIGINT) == -signal.SIGINT
        assert program.said() == 'now\n'


def test_closed_pipe_is_no_traceback(folder, shell):
    shell.says('add')
    for number in range(300):
        folder.redis('SET', str(uuids.UUID(int=number)), json.dumps({'labels': ['x' * 100]}))
    for command in ('list', 'list --json', '--help', 'log', 'status'):
        text = f'.venv/bin/python users_app.py {command} | true'
        ran = folder.run('-c', IN_SHELL, text)
        assert (ran.status, ran.stdout, ran.stderr) == (0, '', '')


IN_SHELL = 'import subprocess, sys; sys.exit(subprocess.run(sys.argv[1], shell=True).returncode)'


def test_device_is_not_replaced_by_a_file(shell):
    shell.says('add', 'kitchen')
    for command in (['pack', 'kitchen', '-o'], ['export', '--out']):
        sentence = shell.refuses(*command, '/dev/null')
        assert sentence == 'cannot write /dev/null: it is no regular file'
    assert Path('/dev/null').is_char_device()


def test_version_is_told(folder):
    assert folder.run('users_app.py', '--version') == (0, f'{VERSION}\n', '')


@pytest.mark.parametrize('command', [['list'], ['--help'], ['show', '{uuid}']])
def test_output_on_a_full_disk_is_one_sentence(folder, shell, uuid, command):
    shell.says('add', '--uuid', uuid)
    arguments = [argument.format(uuid=uuid) for argument in command]
    with open('/dev/full', 'w') as full:
        ran = subprocess.run(
            [sys.executable, 'users_app.py', *arguments],
            cwd=folder.path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
        )
    sentence = 'users_app.py: No space left on device\n'
    assert (ran.returncode, ran.stderr) == (os.EX_IOERR, sentence)


def test_page_on_a_network_always_asks_for_a_login(shell):
    for host in ('0.0.0.0', '::', '192.0.2.1'):
        ran = shell.run('--port', '0', '--host', host, '--no-login')
        assert (ran.status, ran.stdout) == (2, '')
        assert 'Error: --no-login needs a loopback --host' in ran.stderr


def test_label_that_other_entries_have_is_told(shell):
    said = 'this label: commands need the UUID then.'
    assert said not in shell.says('add', 'kitchen')
    assert f'1 other entry has {said}' in shell.says('add', 'Kitchen')
    assert f'2 other entries have {said}' in shell.says('add', 'kitchen')
    for label in ('attic', '', ''):
        assert said not in shell.says('add', label)


@pytest.mark.parametrize(
    'option', [{'page_url': 'https://admin.example.com/'}, {'page_host': 'admin.example.com'}]
)
def test_page_that_a_proxy_hands_on_always_asks_for_a_login(shell, option):
    before = shell.folder.options
    shell.folder.set(**option)
    ran = shell.run('--port', '0', '--no-login')
    shell.folder.options = before
    shell.folder.set()
    assert (ran.status, ran.stdout) == (2, '')
    assert 'Error: --no-login needs a local.py without page_url and page_host' in ran.stderr


def test_options_of_the_page_with_a_command_are_refused(shell):
    for options in (['--port', '1'], ['--port', '8893'], ['--host', '::1'], ['--no-login']):
        assert shell.run(*options, 'list').status == 2
    assert shell.run('--host', '').status == 2
