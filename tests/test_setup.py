"""bin/setup.sh, with a python3 that makes a .venv whose pip installs nothing: it takes no time."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from programs import ENDS_SECONDS

PYTHON = f"""\
[ "$1 $2" = '-m venv' ] || exec '{sys.executable}' "$@"
'{sys.executable}' -m venv --without-pip "$3"
cd "$3"/lib/python3*/site-packages
echo 'import sys; sys.exit("missing" in open(sys.argv[-1]).read())' >pip.py
"""
APT = 'apt install python3'
INSTALLING = 'bin/setup.sh: installing what requirements.txt lists\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'a folder' / 'bin').mkdir(parents=True)
    shutil.copy(ROOT / 'bin' / 'setup.sh', tmp_path / 'a folder' / 'bin')
    (tmp_path / 'a folder' / 'requirements.txt').write_text('flask\n')
    return tmp_path / 'a folder'


@pytest.fixture
def set_up(folder):
    """Runs it, with a script for python3, in what is the PATH then."""
    programs = folder.with_name('bin')
    programs.mkdir()
    for name in ('cat', 'cmp', 'dirname', 'rm'):
        (programs / name).symlink_to(shutil.which(name))

    def set_up(folder: Path, python: str = PYTHON) -> subprocess.CompletedProcess:
        if python:
            (programs / 'python3').write_text(f'#!/bin/sh\n{python}')
            (programs / 'python3').chmod(0o755)
        return subprocess.run(
            ['/bin/sh', folder / 'bin' / 'setup.sh'],
            env={'PATH': str(programs)},
            capture_output=True,
            text=True,
            timeout=ENDS_SECONDS,
        )

    return set_up


def test_venv_is_made_again_for_another_python_and_another_folder(folder, set_up):
    def is_made_again(folder: Path) -> bool:
        """Whether it makes .venv, which is no more to be made then."""
        mark = folder / '.venv' / 'mark'
        mark.touch()
        again = set_up(folder)
        made = not mark.exists()
        assert (again.returncode, again.stderr) == (0, INSTALLING if made else '')
        subprocess.run([folder / '.venv/bin/python', '-c', ''], check=True)
        once_more = set_up(folder)
        assert (once_more.returncode, once_more.stderr) == (0, '')
        return made

    assert set_up(folder).returncode == 0
    assert not is_made_again(folder)

    folder = folder.rename(folder.with_name('moved'))
    assert is_made_again(folder)

    (folder / '.venv/bin/python').unlink()
    (folder / '.venv/bin/python').symlink_to('/nowhere/python3')
    assert is_made_again(folder)

    made_for = folder / '.venv' / 'made_for'
    made_for.write_text(made_for.read_text().replace(' 3 ', ' 2 '))
    assert is_made_again(folder)


def test_new_list_is_installed_in_the_venv_that_there_is(folder, set_up):
    set_up(folder)
    (folder / '.venv' / 'mark').touch()
    (folder / 'requirements.txt').write_text('gevent\n')
    assert set_up(folder).stderr == INSTALLING
    assert set_up(folder).stderr == ''
    assert (folder / '.venv' / 'mark').exists()


def test_failure_to_install_is_told_and_the_next_run_tries_again(folder, set_up):
    (folder / 'requirements.txt').write_text('missing\n')
    for _ in range(2):
        ran = set_up(folder)
        assert ran.returncode == 1
        assert ran.stderr.endswith('bin/setup.sh: could not install what requirements.txt lists\n')


@pytest.mark.parametrize(
    ('python', 'sentence'),
    [
        ('', f'Python 3.11 or newer is needed: {APT}'),
        ('exit 1', f'Python 3.11 or newer is needed: {APT}'),
        (f'[ "$2" != venv ] || exit 1\n{PYTHON}', f'python3 -m venv does not work: {APT}-venv'),
    ],
    ids=['missing', 'too old', 'without venv'],
)
def test_what_is_missing_is_one_sentence(folder, set_up, python, sentence):
    ran = set_up(folder, python)
    assert (ran.returncode, ran.stderr) == (os.EX_CONFIG, f'bin/setup.sh: {sentence}\n')
