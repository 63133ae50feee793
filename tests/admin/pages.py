"""The page, served in the process of the test over a store of the tests' own."""

import json
import re
import time
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape

import requests

from rendezvous.admin.look import Looks
from rendezvous.admin.page import create_app
from rendezvous.admin.page_server import Server
from rendezvous.store import keys, state
from rendezvous.store.entries import Entries
from rendezvous.store.options import Options

WORKER = '0123456789abcdef'  # one that `make` makes


class Page:
    """What a browser sees of it, after all redirections."""

    def __init__(self, entries: Entries, looks: Looks, url: str):
        self.entries, self.looks, self.url = entries, looks, url
        self.uuids: list[str] = []  # of its entries, for tests of many

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

    def send(self, path: str, **fields: str) -> str:
        """Sends a form. Returns where it leads."""
        shown = self.get()
        token = re.search('name="token" value="(.*?)"', shown.text)
        assert token
        response = requests.post(
            self.url + path,
            data=fields | {'token': token[1]},
            cookies=shown.cookies,
            allow_redirects=False,
            timeout=25,
        )
        assert response.status_code == 303, response.text
        return response.headers['Location']

    def rows(self, path: str = '/') -> dict[str, str]:
        """The rows of the table, as one reads them: all of a row by its label."""
        found = re.findall('<tr id="e-.*?(?=<tr id|</table>)', self.ask(path), re.S)
        return {label(row): text(row) for row in found}

    def told(self) -> int:
        """The octets that Redis has sent."""
        return self.entries.ask(lambda redis: redis.info('stats')['total_net_output_bytes'])


def make(page: Page, count: int) -> list[str]:
    """Makes so many entries. Of four, one is online, one was, and two were never seen."""
    found = [str(uuids.uuid4()) for _ in range(count)]
    parameters = {'base32': 'GEZDGNBVGY3TQOJQ' * 4, 'algorithm': 'sha1', 'digits': 8}
    now, day = time.time(), int(time.time() // state.DAY_SECONDS)
    about = {'at': now, 'node': 'vps1', 'number': 1, 'workers': 1, 'pid': 1, 'since': now - 7200}

    def write(redis) -> None:
        pipeline = redis.pipeline(transaction=False)
        for number, uuid in enumerate(found):
            entry = {'uuid': uuid, 'authParams': parameters, 'labels': [f'Machine {number}']}
            pipeline.set(uuid, json.dumps(entry))
            if number % 2:
                kind = state.ONLINE if number % 4 == 1 else state.OFFLINE
                record = {'state': kind, 'since': now - 3600, 'seen': now, 'first': now - 9e6}
                pipeline.set(f'state:{{{uuid}}}', json.dumps(record | {'address': '192.0.2.1'}))
                pipeline.rpush(f'changes:{{{uuid}}}', f'{now - 9e6} online', f'{now - 3600} {kind}')
                pipeline.hset(f'hours:{{{uuid}}}', day, '0 1000 2000000 3 0')
            if number % 4 == 1:
                pipeline.hset(f'at:{{{uuid}}}', WORKER, '4 1')
        pipeline.hset(keys.live(WORKER), state.ABOUT, json.dumps(about))
        pipeline.zadd(keys.SERVERS, {WORKER: now + 3600})
        pipeline.execute()

    page.entries.ask(write)
    return found


@contextmanager
def served(options: Options) -> Iterator[Page]:
    """A page without login. Its store is empty at first and at the end."""
    entries = Entries(options)
    entries.ask(lambda redis: redis.flushall())
    server = Server(('127.0.0.1', 0), log=None, error_log=None)
    server.application = app = create_app(entries, options)
    server.start()
    yield Page(entries, app.extensions['looks'], f'http://127.0.0.1:{server.server_port}')
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
