"""A page, a rendezvous server and a browser that has logged in, for the tests of one module."""

import json
import re
import socket
import ssl
from contextlib import suppress
from urllib.parse import urlsplit

import gevent
import pytest
from browser import Browser
from conftest import Peer, free_port, until
from gevent.server import StreamServer
from programs import Folder, Program
from visitor import link

from rendezvous.store.entries import CHANGES

NEW = 'New hidden server'


class Story:
    def __init__(self, folder: Folder, browser: Browser):
        self.folder, self.browser = folder, browser
        self.server, self.port = folder.serve()
        self.program = folder.start('users_app.py', '--port', '0')
        self.url, _ = link(self.program)
        self.log_in()

    def log_in(self) -> None:
        url, code = link(self.program)
        self.browser.visit(f'{url}/login?code={code}')
        self.browser.click('Log in')
        self.browser.until_it_says('Log out')

    def clear(self) -> None:
        """Deletes all but what the workers tell of themselves; the table is shown."""
        keys = self.folder.redis('KEYS', '*')
        if gone := [key for key in keys if not re.match('servers|heard|live:|batch:|at:', key)]:
            self.folder.redis('DEL', *gone)
        for key in gone:
            self.folder.redis('PUBLISH', CHANGES, key)

        def is_empty() -> bool:
            self.browser.visit(self.url)
            return 'Add your first hidden server' in self.browser.text

        until(is_empty, 'the page has found out')

    def visit(self, uuid: str) -> None:
        self.browser.visit(f'{self.url}/entries/{uuid}')

    def create(self, label: str) -> str:
        """The UUID of an entry; its own page is shown."""
        browser = self.browser
        browser.visit(self.url)
        if browser.run('return document.querySelector("details.new")?.open === false'):
            browser.click(NEW)
        browser.type('Label', label)
        browser.click('Create')
        browser.until_it_says('Never seen')
        return urlsplit(browser.url).path.rpartition('/')[2]

    def state(self, label: str) -> str:
        """What the table, which is shown, says of the entry."""
        script = """return [...document.querySelectorAll('tbody tr')].find(
            row => row.querySelector('bdi')?.textContent == arguments[0]
        )?.querySelector('.state').dataset.state"""
        return self.browser.run(script, label)

    def until_it_is(self, label: str, state: str) -> None:
        until(lambda: self.state(label) == state, f'{label} is {state}, not {self.state(label)}')

    def hidden(self, uuid: str, port: int) -> Program:
        """A hidden.py that has registered, with the file that it got."""
        program = self.folder.start('hidden.py', f'entries/{uuid}.json', f'127.0.0.1:{port}')
        program.until_it_says('registered at')
        return program

    def mobile_client(self) -> Peer:
        context = ssl.create_default_context(cafile=self.folder.path / 'registrar.crt')
        sock = socket.create_connection(('127.0.0.1', self.port))
        return Peer(context.wrap_socket(sock, server_hostname='127.0.0.1'))

    def labels(self) -> list[str]:
        keys = self.folder.redis('KEYS', '*-*-*-*-*')
        keys = [key for key in keys if re.fullmatch('[0-9a-f-]{36}', key)]
        return [json.loads(self.folder.redis('GET', key))['labels'][0] for key in keys]


@pytest.fixture(scope='module')
def whole_story(tmp_path_factory):
    path = tmp_path_factory.mktemp('browser')
    browser = Browser(path, 'MAP *.example 127.0.0.1')
    try:
        options = {'rendezvous_port': free_port(), 'names_domain': 'rendezvous.localhost'}
        with Folder(path, **options) as folder:
            folder.pair()
            script = folder.path / 'rendezvous/admin/static/page.js'
            faster = script.read_text().replace('= 2000;', '= 300;')  # so that tests wait less
            script.write_text(faster)
            story = Story(folder, browser)
            yield story
            assert 'Traceback' not in story.program.said()
    finally:
        browser.close()


@pytest.fixture
def story(whole_story):
    """One for all tests, on the table, without entries at the start of each."""
    whole_story.clear()
    whole_story.browser.look(1000, 800)
    whole_story.browser.complaints()
    yield whole_story
    assert whole_story.browser.complaints() == []  # what the policy forbids, too


@pytest.fixture
def download():
    """The port of a local HTTP server whose only answer never ends."""

    def answer(sock, _) -> None:
        with suppress(OSError):
            sock.recv(65536)
            sock.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
            while True:
                sock.sendall(b'x' * 1000)
                gevent.sleep(0.01)

    local_server = StreamServer(('127.0.0.1', 0), answer)
    local_server.start()
    yield local_server.server_port
    local_server.stop()
