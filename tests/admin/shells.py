"""The commands of users_app.py in a folder of their own, without a process for each.

A process takes most of the time that a command takes.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest
import redis
from click.testing import CliRunner
from programs import ENDS_SECONDS, Folder, Ran
from visitor import files

from rendezvous.admin import entry_files as hidden_files
from rendezvous.admin import shell as users_app
from rendezvous.store import embedded as store
from rendezvous.store import options as local

# A program that keeps the embedded store up
KEEPER = """
from gevent import monkey
monkey.patch_all()
import gevent
from rendezvous.store import options
from rendezvous.store.entries import Entries
Entries(options.load()).open()
print('the store is up', flush=True)
gevent.sleep(3600)
"""


@pytest.fixture(scope='module')
def shell_folder(tmp_path_factory):
    """With the embedded store up, for all tests of a module."""
    with Folder(tmp_path_factory.mktemp('shell')) as folder:
        folder.pair()
        folder.set(crt_file=str(folder.path / 'registrar.crt'), rendezvous_port=8899)
        folder.start('-c', KEEPER).until_it_says('the store is up')
        yield folder


@pytest.fixture
def shell(shell_folder, monkeypatch):
    """The commands in that folder, without entries at the start of each test."""
    load, umask = local.load, os.umask(0o077)
    monkeypatch.setattr(local, 'load', lambda: load(shell_folder.path / 'local.py'))
    monkeypatch.setattr(hidden_files, 'FILES', shell_folder.path / 'entries')
    monkeypatch.setattr(store, 'DATA', shell_folder.path / 'data')
    yield Shell(shell_folder)
    os.umask(umask)
    shell_folder.redis('FLUSHALL')


class Shell:
    def __init__(self, folder: Folder):
        self.folder = folder

    def run(self, *arguments: str) -> Ran:
        result = CliRunner().invoke(users_app.cli, arguments)
        if not isinstance(result.exception, SystemExit | None):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    def says(self, *arguments: str) -> str:
        """What a command says that does what it is asked for."""
        ran = self.run(*arguments)
        assert ran.status == 0, ran
        return ran.stdout

    def refuses(self, *arguments: str) -> str:
        """The sentence of a command that does nothing."""
        ran = self.run(*arguments)
        assert (ran.status, ran.stdout) == (1, ''), ran
        (line,) = ran.stderr.splitlines()
        assert line.startswith('Error: '), ran
        return line.removeprefix('Error: ')

    def listed(self, *options: str) -> list[dict]:
        return json.loads(self.says('list', '--json', *options))

    def stored(self, uuid: str) -> dict:
        return json.loads(self.folder.redis('GET', uuid))

    def file(self, uuid: str) -> dict:
        return json.loads(files(self.folder, uuid)[f'{uuid}.json'])

    def knows(self, uuid: str, **record) -> None:
        """What the workers have written of a hidden server, as state.py says it."""
        self.folder.redis('SET', f'state:{{{uuid}}}', json.dumps(record))


@contextmanager
def worker(folder: Folder, counts: dict[str, str], **about) -> Iterator[None]:
    """A worker lives meanwhile, as far as Redis knows: it subscribes, and has signed."""
    name, now = os.urandom(8).hex(), time.time()
    sign = {'at': now, 'node': 'vps', 'number': 1, 'workers': 1, 'pid': 1, 'version': '1.0'}
    sign |= {'since': now, 'connections': 0, 'most': 100, 'memory': 10**7, 'counters': {}}
    folder.redis('ZADD', 'servers', now, name)
    folder.redis('HSET', f'live:{{{name}}}', 'about', json.dumps(sign | about))
    for uuid, count in counts.items():
        folder.redis('HSET', f'at:{{{uuid}}}', name, count)
    data = os.open(folder.path / 'data', os.O_PATH)
    try:
        path = f'/proc/self/fd/{data}/store.sock'
        with redis.Redis(unix_socket_path=path) as client, client.pubsub() as subscription:
            subscription.subscribe(f'live:{name}')
            subscription.get_message(timeout=5)
            yield
    finally:
        os.close(data)
        folder.redis('ZREM', 'servers', name)
        folder.redis('DEL', f'live:{{{name}}}', *(f'at:{{{uuid}}}' for uuid in counts))


def on_terminal(folder: Folder, *arguments: str, typed: str = '', columns: int = 80) -> Ran:
    """A command whose standard input, output and error are a terminal."""
    ours, its = os.openpty()
    with os.fdopen(ours, 'w+b', buffering=0) as terminal, os.fdopen(its, 'w+b', buffering=0) as end:
        terminal.write(typed.encode())
        process = subprocess.Popen(
            [sys.executable, 'users_app.py', *arguments],
            cwd=folder.path,
            env=os.environ | {'COLUMNS': str(columns)},
            **dict.fromkeys(('stdin', 'stdout', 'stderr'), end),
        )
        reading = gevent.spawn(_read_all, terminal)
        status = process.wait(timeout=ENDS_SECONDS)
        end.close()
        return Ran(status, reading.get(timeout=ENDS_SECONDS).decode().replace('\r\n', '\n'), '')


def _read_all(terminal) -> bytes:
    said = b''
    while True:
        gevent.socket.wait_read(terminal.fileno())
        try:
            said += os.read(terminal.fileno(), 65536)
        except OSError:  # nobody has the other end open
            return said
