"""`users_app.py check`, `status` and `log`, with each state brought about by the real programs."""

import re
import signal
import socket

import pytest
from conftest import until
from programs import Folder, Ran
from shells import on_terminal, worker


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
