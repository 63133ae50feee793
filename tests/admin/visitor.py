"""A client of the page over plain HTTP, without JavaScript; it may send what no browser sends."""

import re
from html import unescape

import pytest
import requests
from conftest import DEADLINE_SECONDS
from programs import Folder, Program

ROW = re.compile('href="/entries/(.*?)">(?:<bdi>(.*)</bdi>|<i>without a label</i>)</a>')
ALERT = re.compile('<p class="[^"]*error"[^>]* role="alert">(.*?)</p>')
TOKEN = re.compile('name="token" value="(.*?)"')
NOBODY = '00000000-0000-0000-0000-000000000000'
LINK = re.compile(r'(http://\S+)/login\?code=(\S+)\n')


def link(program: Program) -> tuple[str, str]:
    """Where the page is, and the code that opens it now."""
    program.until_it_says(LINK.pattern)
    return LINK.findall(program.said())[-1]


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    """A page for all tests of a module."""
    with Folder(tmp_path_factory.mktemp('page'), page_host='page.example') as folder:
        folder.pair()
        page = Visitor(folder)
        yield page
        assert 'Traceback' not in page.program.said()


@pytest.fixture
def page(running):
    """The page, without entries at the start of each test."""
    yield running
    running.folder.redis('FLUSHALL')
    running.read_again()


@pytest.fixture
def anonymous(page):
    """Sends requests without the cookie."""

    def ask(method: str, path: str, **more) -> requests.Response:
        return requests.request(method, page.url + path, timeout=DEADLINE_SECONDS, **more)

    return ask


def files(folder: Folder, uuid: str) -> dict[str, str]:
    """The files of an entry: content by name."""
    return {file.name: file.read_text() for file in (folder.path / 'entries').glob(f'*{uuid}*')}


class Visitor:
    """An administrator who has logged in."""

    def __init__(self, folder: Folder, *arguments: str):
        self.folder, self.program = folder, folder.start('users_app.py', '--port', '0', *arguments)
        self.url, code = link(self.program)
        self.cookies, self.token = requests.cookies.RequestsCookieJar(), ''
        self.log_in(code)

    def log_in(self, code: str) -> requests.Response:
        response = self.ask('POST', '/login', data={'code': code})
        if found := TOKEN.search(response.text):
            self.token = found[1]
        return response

    def ask(self, method: str, path: str = '/', **more) -> requests.Response:
        """The answer, after all redirections."""
        with requests.Session() as session:
            session.trust_env = False  # no proxy
            session.cookies = self.cookies
            return session.request(method, self.url + path, timeout=DEADLINE_SECONDS, **more)

    def send(self, path: str, headers: dict | None = None, **fields) -> requests.Response:
        """Sends a form."""
        return self.ask('POST', path, data={'token': self.token} | fields, headers=headers)

    def create(self, uuid: str = '', label: str = '', **more) -> requests.Response:
        return self.send('/entries', uuid=uuid, label=label, **more)

    def made(self, uuid: str = '', label: str = '', **more) -> str:
        """The UUID of an entry that it made."""
        response = self.create(uuid, label, **more)
        assert [each.status_code for each in response.history] == [303], response.text
        return re.search('/entries/(.*)\\?done=create', response.url)[1]

    def change(self, uuid: str, what: str, **fields) -> requests.Response:
        return self.send(f'/entries/{uuid}/{what}', **fields)

    def listed(self) -> dict[str, str]:
        """The entries: label by UUID."""
        response = self.ask('GET')
        assert response.status_code == 200
        return {uuid: unescape(label) for uuid, label in ROW.findall(response.text)}

    def read_again(self) -> None:
        """The next page shows what was written into Redis by the test itself."""
        self.folder.redis('PUBLISH', 'entries', '')  # some changes may have been missed
        self.change(NOBODY, 'enable')  # after a form the page looks anew, even after a vain one

    def refusal(self, response: requests.Response, status: int = 400) -> str:
        """The sentence with which it refused."""
        assert response.status_code == status
        return unescape(ALERT.search(response.text)[1])
