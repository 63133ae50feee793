"""`users_app.py check`, `status` and `log`, with each state brought about by the real programs."""

import json
import re
import signal
import socket
import time

import pytest
import requests
from conftest import DEADLINE_SECONDS, until
from programs import Folder, Ran
from shells import on_terminal, worker
from visitor import link

from rendezvous.wire.programs import VERSION


def check(folder: Folder, *arguments: str) -> Ran:
    """What `check` says: its status goes with what it prints."""
    ran = folder.run('users_app.py', 'check', *arguments)
    assert (ran.status, ran.stderr) == (1 if ran.stdout else 0, ''), ran
    return ran


def until_it_says(folder: Folder, pattern: str, *arguments: str) -> None:
    """It says that, in one line."""
    until(
        lambda: re.fullmatch(f'{pattern}\n', check(folder, *arguments).stdout),
        f'check says {pattern}',
    )


@pytest.mark.deadline(120)
def test_check_tells_what_is_not_well_in_a_line_each(folder):
    server, port = folder.serve()
    folder.set(rendezvous_port=port)
    kitchen, camera = folder.add('kitchen')['uuid'][0], folder.add('camera')['uuid'][0]
    garage = folder.add('garage')['uuid'][0]
    assert check(folder).stdout == ''  # none of them was seen yet
    assert check(folder, 'garage').stdout == f'{garage}  never seen  garage\n'
    assert check(folder, '--offline-for', '1h', 'garage').stdout == ''

    here = folder.start('hidden.py', f'entries/{kitchen}.json', '127.0.0.1:9')
    here.until_it_says('registered')
    until(lambda: not check(folder, 'kitchen').stdout, 'it is online')

    twin = folder.start('hidden.py', f'entries/{kitchen}.json', '127.0.0.1:9')
    twins = 'Two machines use its file'
    until_it_says(folder, rf'{kitchen}  online since \d\d:\d\d  {twins}  kitchen')
    assert check(folder, '--offline-for', '1d', 'kitchen').status == 1
    assert check(folder, 'camera', 'garage').stdout.count(twins) == 0
    twin.end()

    def is_over() -> bool:
        folder.redis('DEL', f'refusals:{{{kitchen}}}')  # as if 2.5 minutes had passed
        return not check(folder, 'kitchen').stdout

    until(is_over, 'it is over')

    old = folder.path / 'old.json'
    old.write_text((folder.path / 'entries' / f'{camera}.json').read_text())
    assert folder.run('users_app.py', 'rekey', '--yes', 'camera').status == 0
    there = folder.start('hidden.py', old.name, '127.0.0.1:9')
    why = 'Old secret: it needs the new file'
    until_it_says(folder, rf'{camera}  refused \d+ s ago  {why}  camera')
    assert check(folder, '--offline-for', '1d').status == 1  # it does not mend itself
    assert folder.run('users_app.py', 'disable', '--yes', 'camera').status == 0
    assert check(folder).stdout == ''
    there.end()

    here.end()
    until_it_says(folder, rf'{kitchen}  offline since \d\d:\d\d  kitchen')
    assert check(folder, '--offline-for', '10m').stdout == ''
    assert check(folder, 'camera').stdout == ''

    server.end(signal.SIGKILL)
    down = r'the rendezvous server is not running: down since .*; it was process \d+ on '
    until_it_says(folder, down + re.escape(socket.gethostname()))
    assert check(folder, '--offline-for', '10m').stdout == ''
    folder.serve()[0].end(signal.SIGTERM)
    until_it_says(folder, 'the rendezvous server is not running: stopped since .*')


def test_check_says_on_a_terminal_that_all_is_well(shell):
    shell.says('add', 'kitchen')
    with worker(shell.folder, {shell.listed()[0]['uuid']: '4 0'}):
        ran = on_terminal(shell.folder, 'check')
    assert (ran.status, ran.stdout) == (0, 'all is well: 1 online\n')


@pytest.mark.parametrize('wrong', ['10', 'm', '1w', '-1m', '1.5h', '\u0661m', ''])
def test_check_takes_only_lengths_of_time(shell, wrong):
    ran = shell.run('check', '--offline-for', wrong)
    assert (ran.status, ran.stdout) == (2, '')
    assert ran.stderr.endswith('is not a time like 90s, 10m, 2h or 1d\n')


def test_check_of_what_is_no_entry_and_of_a_store_that_is_down(folder):
    ran = folder.run('users_app.py', 'check', 'kitchen')
    assert (ran.status, ran.stdout, len(ran.stderr.splitlines())) == (1, '', 1)
    folder.set(redis_host='127.0.0.1', redis_port=1)
    for command in ('check', 'status', 'list', 'log', 'show', 'export', 'backup'):
        arguments = {'show': ['x'], 'backup': ['x']}.get(command, [])
        sentence = folder.run('users_app.py', command, *arguments).sentence()
        assert sentence.startswith('Redis does not answer (')
    (folder.path / 'local.py').unlink()
    assert folder.run('users_app.py', 'check').sentence().startswith('there is no local.py')


def test_status_tells_how_the_server_is(folder):
    said = facts(folder)
    assert said['server'] == 'it never ran: bin/run.sh starts it'
    assert said['entries'] == 'none yet'
    assert 'workers' not in said
    assert said['certificate'].endswith('by an authority of its own')
    before = time.time()
    server, port = folder.serve()
    folder.set(rendezvous_port=port)
    uuid = folder.add('kitchen')['uuid'][0]
    folder.add('garage')
    folder.start('hidden.py', f'entries/{uuid}.json', '127.0.0.1:9').until_it_says('registered')
    until(lambda: facts(folder)['entries'] == '1 online, 1 never seen', 'it is online')
    said = facts(folder)
    assert said['address'] == f'127.0.0.1:{port}'
    assert re.fullmatch(rf'up since \d\d:\d\d \(\d+ s\), version {VERSION}', said['server'])
    assert re.fullmatch(r'(\d+) of \1 on 1 machine, \d+ MB of memory', said['workers'])
    assert re.fullmatch(r'\d+ of 4,000', said['connections'])
    assert said['store'] == f'the entries are in {folder.path}/data'
    assert said['last 24 h'] == '0 down, 0 up, 0 rendezvous, 0 failed'
    known = json.loads(folder.run('users_app.py', 'status', '--json').stdout)
    assert before - 5 < known['since'] < time.time()
    assert known['up'] is True
    assert known['entries']['online'] == 1
    assert {worker['node'] for worker in known['workers']} == {socket.gethostname()}
    assert known['certificate']['end'] > time.time()
    server.end(signal.SIGKILL)
    until(lambda: facts(folder)['server'].startswith('down since '), 'it is down')
    known = json.loads(folder.run('users_app.py', 'status', '--json').stdout)
    assert (known['up'], known['workers']) == (False, [])


def facts(folder: Folder) -> dict[str, str]:
    """What `status` says, by what it is about."""
    ran = folder.run('users_app.py', 'status')
    assert (ran.status, ran.stderr) == (0, '')
    assert max(map(len, ran.stdout.splitlines())) <= 80 + len(str(folder.path))
    pairs = (line.partition(':') for line in ran.stdout.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def test_log_tells_who_got_a_secret(shell, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shell.says('add', 'kitchen')
    (kitchen,) = (each['uuid'] for each in shell.listed())
    shell.says('show', 'kitchen')
    shell.says('show', '--secret', 'kitchen')
    shell.says('show', '--secret', '--json', 'kitchen')
    shell.says('pack', 'kitchen')
    shell.says('backup', 'copy')
    rows = json.loads(shell.says('log', '--json'))
    assert [(row['what'], row['uuid'], row['label'], row['detail']) for row in rows[:-1]] == [
        ('backup made', '', '', 'copy'),
        ('file given out', kitchen, 'kitchen', 'kitchen.pyz'),
        ('secret shown', kitchen, 'kitchen', ''),
        ('secret shown', kitchen, 'kitchen', ''),
    ]


def test_log_tells_what_was_done_by_whom_and_when(shell, monkeypatch):
    monkeypatch.setenv('SUDO_USER', 'alice')
    ran = shell.run('log')
    assert ran == (0, '', 'nothing was done yet\n')
    shell.says('add', 'kitchen')
    shell.says('add', 'garage')
    kitchen = shell.listed()[1]['uuid']
    shell.says('rename', 'kitchen', 'Küche')
    shell.says('rekey', '--yes', kitchen)
    shell.says('delete', '--yes', kitchen)
    head, *lines = shell.says('log').splitlines()
    assert head.split() == ['WHEN', 'WHO', 'WHAT', 'UUID', 'LABEL']
    assert [re.split('  +', line)[1:] for line in lines[:3]] == [
        ['shell, alice', 'deleted', kitchen[:8], 'Küche'],
        ['shell, alice', 'new secret', kitchen[:8], 'Küche'],
        ['shell, alice', 'renamed', kitchen[:8], 'Küche; from kitchen'],
    ]
    assert [line.split()[3] for line in lines] == ['deleted', 'new', 'renamed', 'made', 'made']
    assert len(shell.says('log', '-n', '2').splitlines()) == 3
    assert 'garage' not in shell.says('log', kitchen)  # it is deleted, and its UUID is whole
    (made,) = json.loads(shell.says('log', '--json', 'garage'))
    assert (made['what'], made['who'], made['label']) == ('made', 'shell, alice', 'garage')
    for wrong in '0', '2001':
        assert shell.run('log', '-n', wrong).status == 2
    assert shell.refuses('log', 'nobody').startswith('no entry has the label')


def test_log_fits_the_terminal(shell):
    shell.says('add', 'x' * 100)
    lines = on_terminal(shell.folder, 'log').stdout.splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80


def test_link_is_of_the_page_that_runs(folder):
    sentence = 'no page runs in this folder: start users_app.py, or its service'
    assert folder.run('users_app.py', 'link') == (1, '', f'Error: {sentence}\n')
    page = folder.start('users_app.py', '--port', '0')
    url, first = link(page)
    ran = folder.run('users_app.py', 'link')
    assert (ran.status, ran.stderr) == (0, '')
    code = re.fullmatch(rf'{url}/login\?code=(\S+)\n', ran.stdout)[1]
    assert code != first
    with requests.Session() as browser:
        answer = browser.post(f'{url}/login', {'code': code}, timeout=DEADLINE_SECONDS)
        assert answer.status_code == 200
