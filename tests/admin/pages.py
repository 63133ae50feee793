"""The page, served in the process of the test over a store of the tests' own."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape

import requests

from rendezvous.admin.page import create_app
from rendezvous.admin.page_server import Server
from rendezvous.store.entries import Entries
from rendezvous.store.options import Options


class Page:
    """What a browser sees of it, after all redirections."""

    def __init__(self, entries: Entries, url: str):
        self.entries, self.url = entries, url

    def get(self, path: str = '/', **fields: str) -> requests.Response:
        """The answer; `fields` are of the head, with _ for each hyphen."""
        with requests.Session() as session:
            session.trust_env = False  # no proxy
            head = {name.replace('_', '-'): value for name, value in fields.items()}
            return session.get(self.url + path, headers=head, timeout=25)

    def ask(self, path: str = '/') -> str:
        response = self.get(path)
        assert response.status_code == 200, response.text
        return response.text

    def rows(self, path: str = '/') -> dict[str, str]:
        """The rows of the table, as one reads them: all of a row by its label."""
        found = re.findall('<tr id="e-.*?(?=<tr id|</table>)', self.ask(path), re.S)
        return {label(row): text(row) for row in found}

    def told(self) -> int:
        """The octets that Redis has sent."""
        return self.entries.ask(lambda redis: redis.info('stats')['total_net_output_bytes'])


@contextmanager
def served(options: Options) -> Iterator[Page]:
    """A page without login. Its store is empty at first and at the end."""
    entries = Entries(options)
    entries.ask(lambda redis: redis.flushall())
    server = Server(('127.0.0.1', 0), log=None, error_log=None)
    server.application = app = create_app(entries, options)
    server.start()
    yield Page(entries, f'http://127.0.0.1:{server.server_port}')
    server.stop()
    app.extensions['looks'].close()
    entries.ask(lambda redis: redis.flushall())
    entries.close()


def label(row: str) -> str:
    found = re.search('<a class="label".*?>(?:<bdi>(.*?)</bdi>|<i>.*?</i>)</a>', row)
    assert found, row
    return unescape(found[1] or '')


def text(page: str) -> str:
    """What can be read of a page or of a part of it, without superfluous space; dashes are -."""
    shown = re.sub('<(title|header).*?</\\1>', ' ', page, flags=re.S)
    shown = re.sub('<[^>]*>', ' ', shown.replace('<wbr>', ''))
    return ' '.join(unescape(shown).replace('\N{EN DASH}', '-').split())
