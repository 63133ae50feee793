"""Applications behind a real rendezvous server and a real hidden.py, reached in both ways.

By name: names are switched on, and the host of the URL says whom it is for. By Digest: it is the
user name. The applications have an environment of their own, which bin/test.sh makes.
"""

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from browser import Browser
from conftest import ROOT, until
from programs import Folder

from rendezvous.admin import certificate, entry_files
from rendezvous.store import options as local
from rendezvous.store.entries import Entries

NAMES = 'rendezvous.localhost'  # browsers and curl know where it is; a certificate may cover it
PYTHON = ROOT / '.venv' / 'applications' / 'bin' / 'python'
WSGI = """
from cheroot.wsgi import Server
{}
server = Server(('127.0.0.1', 0), application)
server.prepare()
print(server.bind_addr[1], flush=True)
server.serve()
"""


class Site(NamedTuple):
    """An application, and how mobile clients reach it."""

    uuid: str
    port: int
    crt_file: Path

    @property
    def name(self) -> str:
        return f'{self.uuid}.{NAMES}'

    @property
    def named(self) -> str:
        """Its URL."""
        return f'https://{self.name}:{self.port}'

    @property
    def unnamed(self) -> str:
        """The URL of the server itself."""
        return f'https://127.0.0.1:{self.port}'

    def connection(self, host: str) -> 'Connection':
        return Connection(host, self.port, context=ssl.create_default_context(cafile=self.crt_file))


class Connection(http.client.HTTPSConnection):
    """To the server, by a host that the system need not know."""

    def connect(self) -> None:
        sock = socket.create_connection(('127.0.0.1', self.port))
        self.sock = self._context.wrap_socket(sock, server_hostname=self.host)


class Stage(Folder):
    """A rendezvous server that serves, with names switched on; its entries are in a Redis."""

    def __init__(self, path: Path, redis_options: dict):
        given = {'rendezvous_host': '127.0.0.1', 'names_domain': NAMES, 'workers': 1}
        super().__init__(path, **given, **redis_options)
        files = {f'{each}_file': str(self.path / f'registrar.{each}') for each in ('key', 'crt')}
        certificate.write_pair('127.0.0.1', *map(Path, files.values()), NAMES)
        _, self.port = self.serve()
        self._options = local.DEFAULTS | self.options | files | {'rendezvous_port': self.port}
        self._entries = Entries(self._options)

    def __exit__(self, *how) -> None:
        self._entries.close()
        super().__exit__(*how)

    @contextmanager
    def hide(self, port: int, *options: str) -> Iterator[Site]:
        """A hidden.py that waits, before the application at a port of this machine."""
        entry = self._entries.add(str(uuids.uuid4()), ['application'])
        uuid, document = entry['uuid'], entry_files.document(entry, self._options)
        (self.path / f'{uuid}.json').write_text(json.dumps(document))
        hiding = self.start('hidden.py', f'{uuid}.json', f'127.0.0.1:{port}', *options)
        until(lambda: self.log().count(f'registered {uuid}') >= 4, 'four registrations wait')
        crt_file = shutil.copy(self.path / 'registrar.crt', self.path.parent)  # no space in it
        yield Site(uuid, self.port, Path(crt_file))
        assert hiding.end() == 0, hiding.said()


@pytest.fixture(scope='session')
def stage(redis_options, tmp_path_factory):
    with Stage(tmp_path_factory.mktemp('stage'), redis_options) as stage:
        yield stage
        assert 'Traceback' not in stage.log()


def need(there: object, package: str) -> None:
    """Skips a test where a program is missing; with CI set, it fails."""
    if not there:
        why = f'these tests need {package}'
        pytest.fail(why) if os.environ.get('CI') else pytest.skip(why)


@pytest.fixture
def browser(stage, tmp_path):
    """A Chromium that trusts the authority of the server."""
    need(shutil.which('certutil'), 'libnss3-tools')
    store = tmp_path / '.pki' / 'nssdb'
    store.mkdir(parents=True)
    add = 'certutil', '-d', f'sql:{store}', '-A', '-t', 'C,,', '-n', 'rendezvous', '-i'
    subprocess.run([*add, stage.path / 'registrar-ca.crt'], check=True)
    browser = Browser(tmp_path)
    yield browser
    browser.close()


def signed_in(url: str, user: str) -> str:
    """A URL that says who is there, for the first visit."""
    return url.replace('://', f'://{user}@')


@contextmanager
def serving(
    handler: type[BaseHTTPRequestHandler], kind=ThreadingHTTPServer, host: str = '127.0.0.1'
):
    """The port of a server in a thread of this process."""
    server = kind((host, 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def running(code: str, folder: Path) -> Iterator[int]:
    """The port of a program in Python that prints it."""
    need(PYTHON.exists(), 'the applications, which bin/test.sh installs')
    said = (folder / 'said').open('wb')
    command = [PYTHON, '-c', code]
    with (
        said,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=said) as program,
    ):
        try:
            port = program.stdout.readline()
            assert port, (folder / 'said').read_text()
            yield int(port)
        finally:
            program.kill()
