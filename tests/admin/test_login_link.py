"""How the shell gets a login link of a page that runs as a service: over a socket in data/."""

import os
import socket
import subprocess
import sys
from contextlib import closing

import pytest
from conftest import ROOT

from rendezvous.admin import login_link
from rendezvous.admin.actions import Unable
from rendezvous.store import embedded
from rendezvous.wire.programs import Mistake


@pytest.fixture
def data(monkeypatch, tmp_path):
    """A folder for the data whose path is too long for a socket."""
    folder = tmp_path / ('x' * 120)
    folder.mkdir()
    monkeypatch.setattr(embedded, 'DATA', folder / 'data')
    return folder / 'data'


def test_each_link_is_a_fresh_one_and_the_latest_page_gives_it(data):
    made = []

    def make(page: str) -> str:
        made.append(f'{page} {len(made)}')
        return made[-1]

    with closing(login_link.listen(lambda: make('first'))) as first:
        assert [login_link.make_link() for _ in range(3)] == made
        os.utime(data / os.listdir(data)[0], (1, 1))
        with closing(login_link.listen(lambda: make('second'))):
            assert login_link.make_link() == 'second 3'
        assert login_link.make_link() == 'first 4'
        assert first.started
    assert os.listdir(data) == []


def test_socket_is_for_the_user_of_the_folder_alone(data):
    with closing(login_link.listen(lambda: 'link')):
        (name,) = os.listdir(data)
        assert (data / name).stat().st_mode & 0o777 == 0o600
        assert data.stat().st_mode & 0o777 == 0o700


def test_where_no_page_runs_that_is_said_and_nothing_is_made(data):
    with pytest.raises(Unable, match='no page runs in this folder: '):
        login_link.make_link()
    assert not data.exists()


def test_socket_of_a_page_that_was_killed_is_removed(data):
    data.mkdir()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(f'{login_link._folder()}/page-0123456789abcdef.sock')
    (data / 'page-file.sock').write_text('')
    (data / 'store.sock').write_text('')
    with pytest.raises(Unable):
        login_link.make_link()
    with closing(login_link.listen(lambda: 'link')):
        assert login_link.make_link() == 'link'
    assert 'page-0123456789abcdef.sock' not in os.listdir(data)
    assert 'store.sock' in os.listdir(data)


def test_page_that_does_not_answer_is_passed_over(data, monkeypatch):
    monkeypatch.setattr(login_link, 'ANSWER_SECONDS', 0.1)
    data.mkdir()
    with closing(login_link.listen(lambda: 'link')), socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f'{login_link._folder()}/page-0123456789abcdef.sock')
        silent.listen()
        for name in os.listdir(data):
            silent_one = '0123456789abcdef' in name
            os.utime(data / name, (2, 2) if silent_one else (1, 1))
        assert login_link.make_link() == 'link'


def test_one_who_connects_and_leaves_disturbs_nobody(data):
    with closing(login_link.listen(lambda: 'x' * 1_000_000)):
        (name,) = os.listdir(data)
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(f'{login_link._folder()}/{name}')
        assert login_link.make_link() == 'x' * 1_000_000


def test_folder_that_cannot_be_used_is_one_sentence(data):
    data.write_text('no folder')
    with pytest.raises(Mistake, match=r'cannot use .*data'):
        login_link.listen(lambda: 'link')
    with pytest.raises(Mistake, match=r'cannot use .*data'):
        login_link.make_link()


def test_shell_needs_no_flask_for_it():
    program = 'import sys, rendezvous.admin.login_link; sys.exit("flask" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', program], cwd=ROOT, timeout=30).returncode == 0
