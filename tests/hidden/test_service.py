"""The systemd unit that --service prints, for a user and for the system."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ENDS_SECONDS

from rendezvous.hidden import service
from rendezvous.wire.programs import Mistake

PYTHON = '/usr/bin/env'  # a program that is there, outside of /home and /root
TARGET = '127.0.0.1:8000'

needs_systemd = pytest.mark.skipif(
    not shutil.which('systemd-analyze'), reason='systemd-analyze is missing'
)


@pytest.fixture
def python(monkeypatch):
    monkeypatch.setattr(sys, 'executable', PYTHON)


@pytest.fixture(params=[0, 1000], ids=['root', 'a user'])
def user(request, monkeypatch):
    """Who asks for the unit."""
    monkeypatch.setattr(os, 'geteuid', lambda: request.param)
    return request.param


def command(unit: str) -> str:
    return re.search('^ExecStart=(.*)$', unit, re.M)[1]


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        ['systemd-analyze', *arguments], capture_output=True, text=True, timeout=50
    )


def test_hidden_py_prints_the_unit_of_its_command_line(run_hidden, stranger):
    """... and registers nowhere."""
    near = stranger(lambda peer: None)
    program = run_hidden(near, None, '--registrations', '2', '--service')
    status, said = program.process.wait(timeout=ENDS_SECONDS), program.said()
    if not os.geteuid() and os.path.realpath(sys.executable).startswith(service.HOMES):
        assert (status, said.count('\n')) == (os.EX_CONFIG, 1)
    else:
        assert (status, said[:13]) == (0, '# Save it as ')
    assert near.tries == []


@needs_systemd
@pytest.mark.parametrize(
    'arguments', [['kitchen.pyz'], ['hidden.py', 'a "nasty" %i $HOME;\\.json']]
)
def test_systemd_understands_it(user, python, tmp_path, monkeypatch, arguments):
    monkeypatch.setenv('XDG_RUNTIME_DIR', str(tmp_path))
    entry = Path(arguments[1]) if len(arguments) > 1 else None
    unit = service.unit([*arguments, TARGET, '--service', '--registrations=2'], entry)
    name = re.search(r'(rendezvous-\w+)\.service', unit)[1]
    file = tmp_path / f'{name}.service'
    file.write_text(unit)
    whose = '--user' if user else '--system'
    ran = analyze('verify', '--man=no', whose, file)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, '', '')
    if not user:
        ran = analyze('security', '--offline=yes', '--threshold=20', file)
        assert ran.returncode == 0, ran.stdout


def test_system_gives_its_user_a_copy_of_the_secret(monkeypatch, python):
    monkeypatch.setattr(os, 'geteuid', lambda: 0)
    unit = service.unit(['my kitchen.pyz', TARGET, '--service'], None)
    copy = '${CREDENTIALS_DIRECTORY}/rendezvous-my-kitchen'
    assert command(unit) == f'{PYTHON} {copy} {TARGET}'
    assert f'LoadCredential=rendezvous-my-kitchen:{Path.cwd()}/my kitchen.pyz\n' in unit
    unit = service.unit(['/srv/hidden.py', './ID.json', TARGET], Path('ID.json'))
    assert (
        command(unit)
        == f'{PYTHON} /srv/hidden.py ${{CREDENTIALS_DIRECTORY}}/rendezvous-hidden {TARGET}'
    )
    assert f'LoadCredential=rendezvous-hidden:{Path.cwd()}/ID.json\n' in unit


def test_own_unit_names_the_file(monkeypatch, python):
    monkeypatch.setattr(os, 'geteuid', lambda: 1000)
    unit = service.unit(['/srv/100%.pyz', TARGET, '--service'], None)
    assert command(unit) == f'{PYTHON} "/srv/100%%.pyz" {TARGET}'
    assert unit.startswith('# Save it as ~/.config/systemd/user/rendezvous-100.service. Then:\n')


@pytest.mark.parametrize(
    ('word', 'written'),
    [
        (TARGET, TARGET),
        ('a b', '"a b"'),
        ('', '""'),
        ('%h', '"%%h"'),
        ('$HOME', '"$$HOME"'),
        ('"\\', '"\\"\\\\"'),
        (';', '";"'),
        ('unix:/run/küche', '"unix:/run/küche"'),
    ],
)
def test_word_is_taken_as_it_is(word, written):
    assert service.quoted(word) == written


@pytest.mark.parametrize('word', ['a\nExecStartPre=/bin/true', '\udcff', '\t'])
def test_word_that_no_unit_can_hold_is_a_mistake(word):
    with pytest.raises(Mistake, match='cannot be in a unit'):
        service.quoted(word)


def test_what_cannot_be_a_service_is_a_mistake(monkeypatch, python):
    monkeypatch.setattr(os, 'geteuid', lambda: 0)
    for program, python in (('/home/me/hidden.py', PYTHON), ('/srv/hidden.py', '/root/python3')):
        monkeypatch.setattr(sys, 'executable', python)
        with pytest.raises(Mistake, match='is in a home folder'):
            service.unit([program, '/home/me/ID.json', TARGET], Path('/home/me/ID.json'))
    monkeypatch.setattr(os.path, 'realpath', lambda path: path.replace('/home/me/.venv', '/usr'))
    monkeypatch.setattr(sys, 'executable', '/home/me/.venv/bin/python')
    with pytest.raises(Mistake, match=r'/home/me/\.venv/bin/python is in a home'):
        service.unit(['/srv/hidden.py', '/srv/ID.json', TARGET], Path('/srv/ID.json'))
    monkeypatch.setattr(sys, 'platform', 'darwin')
    with pytest.raises(Mistake, match='only Linux'):
        service.unit(['kitchen.pyz', TARGET], None)
