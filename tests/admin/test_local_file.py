"""Whether the page notices that local.py says something else than when it was started."""

import os

import pytest

from rendezvous.admin import local_file
from rendezvous.admin.local_file import CHANGED, LocalFile
from rendezvous.store import options as local


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'local.py'


@pytest.fixture
def write(path, monkeypatch):
    """Writes the file, and gives what the page, that was started with the first one, says."""
    monkeypatch.setattr(local_file, 'LOOK_SECONDS', 0)
    started = []

    def write(**options) -> str:
        path.write_text(f'options = {options!r}\n')
        path.chmod(0o600)
        started[:] = started or [LocalFile(local.load(path), path)]
        return started[0].notice()

    return write


def test_only_what_the_page_uses_counts(write):
    assert write(rendezvous_host='192.0.2.1') == ''
    assert write(rendezvous_host='192.0.2.1', max_waiting=16, drain=3, workers=2) == ''
    assert write(rendezvous_host='192.0.2.1', rendezvous_port=8899) == ''  # the default
    assert write(rendezvous_host='192.0.2.2') == CHANGED
    assert write(rendezvous_host='192.0.2.1', names_domain='a.example') == CHANGED
    assert write(rendezvous_host='192.0.2.1') == ''


def test_mistake_is_told_and_no_secret(write, path):
    token = 'a' * 40
    assert write(metrics_token=token) == ''
    said = write(metrics_token=token[:10])
    assert said.startswith('local.py has changed since this page was started, and has a mistake: ')
    assert token[:10] not in said
    path.chmod(0o644)
    assert token not in write(metrics_token=token)


def test_file_that_is_gone_or_changed_before_the_first_look_is_noticed(path, monkeypatch):
    monkeypatch.setattr(local_file, 'LOOK_SECONDS', 0)
    path.write_text('options = {"rendezvous_port": 1}\n')
    page = LocalFile(local.DEFAULTS, path)
    assert page.notice() == CHANGED
    path.unlink()
    assert 'there is no local.py' in page.notice()


def test_file_is_looked_at_once_a_second_and_read_when_it_has_changed(path, monkeypatch):
    path.write_text('options = {}\n')
    page = LocalFile(local.DEFAULTS, path)
    assert page.notice() == ''
    path.write_text('options = {"rendezvous_port": 1}\n')
    assert page.notice() == ''  # a second has not passed
    monkeypatch.setattr(local_file, 'LOOK_SECONDS', 0)
    assert page.notice() == CHANGED
    at = os.stat(path).st_mtime_ns
    path.write_text('options = {"rendezvous_port": 8899}\n')  # by whatever clock
    os.utime(path, ns=(at, at))
    assert page.notice() == ''
