"""What the programs here share: the real programs in a folder, requests that are checked octet by
octet, a relay that can be a bad network, and the table at the end.
"""

from gevent import monkey

monkey.patch_all()

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

from conftest import free_port, until
from faults import CHUNK_BYTES, linger_not
from programs import Folder, Program, listens

RUN_SH = 'import os; os.execl("bin/run.sh", "bin/run.sh")'


def octets(name: str, count: int) -> bytes:
    """The octets that a body of this name has: whoever checks it makes them again."""
    return hashlib.shake_128(name.encode()).digest(count)


class Stage(Folder):
    """The real programs on a fixed port, and HTTP servers in this process for them to hide."""

    def __init__(self, path: Path, **options):
        super().__init__(path, rendezvous_port=free_port(), **options)
        self.host = options.get('rendezvous_host', '127.0.0.1')
        self.pair(self.host)
        for name in ('bin', 'requirements.txt', 'local.example.py'):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.path / name)
        (self.path / '.venv').symlink_to(ROOT / '.venv')
        shutil.copy(HERE / 'probe.py', self.path)
        with (self.path / 'pipe.py').open('a') as file:
            file.write('\n\nimport sys, probe\n\nprobe.install(sys.modules[__name__])\n')
        self.port = self.options['rendezvous_port']
        self.context = ssl.create_default_context(cafile=self.path / 'registrar.crt')

    def run_sh(self) -> Program:
        """bin/run.sh, which serves."""
        program = self.start('-c', RUN_SH)
        until(lambda: listens(self.port, self.host), f'it serves: {program.said()}')
        return program

    def server_pids(self) -> list[int]:
        """Those of server.py, the newest last; others' pids are none of ours."""
        return sorted(pid for pid in self.pids() if b'\0server.py\0' in command(pid))

    def hide(self, uuid: str, origin: 'Origin', *more: str, port: int = 0, under=()) -> Program:
        """A hidden.py that is registered; `port`: of the relay that it goes through."""
        entry = json.loads((self.path / 'entries' / f'{uuid}.json').read_text())
        entry['server']['port'] = port or self.port
        file = self.path / 'entries' / f'{uuid}.{entry["server"]["port"]}.json'
        file.write_text(json.dumps(entry))
        program = self.start(*(under or ['hidden.py']), str(file), origin.address, *more)
        program.until_it_says('registered')
        return program

    def left(self, pid: int) -> dict[str, int]:
        """What a server.py or a hidden.py has: greenlets, pipes, registrations, descriptors."""
        file = self.path / f'left.{pid}'
        file.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR1)
        until(file.exists, 'it says what is left')
        return json.loads(file.read_text()) | {'sockets': self._sockets(pid)}

    def at_rest(self, pid: int, registrations: int) -> dict[str, int]:
        """The same, once so many wait at this server and nothing else is under way."""
        return until(
            lambda: (
                (found := self.left(pid))
                and (found['registrations'], found['pipes']) == (registrations, 0)
                and found
            ),
            f'{registrations} registrations wait',
            20,
        )

    def _sockets(self, pid: int) -> int:
        """TCP sockets that this process has, but for those to Redis: they are kept in a pool."""
        theirs = set()
        for fd in Path(f'/proc/{pid}/fd').iterdir():
            with suppress(OSError):
                theirs.add(os.readlink(fd).removeprefix('socket:[').removesuffix(']'))
        rows = [row.split() for row in Path('/proc/net/tcp').read_text().splitlines()[1:]]
        redis = f':{self.options["redis_port"]:04X}'
        return sum(row[9] in theirs and not row[2].endswith(redis) for row in rows)

    def until_as_before(self, pid: int, before: dict[str, int], seconds: float = 20) -> str:
        """What is left over of it compared with `before`, after these seconds at the most."""
        found = {}

        def as_before() -> bool:
            found.update(self.left(pid))
            gevent.sleep(0.1)
            return found == before

        with suppress(AssertionError):
            until(as_before, 'it is as it was', seconds)
        more = {name: found[name] - count for name, count in before.items()}
        return ', '.join(f'{count} {name}' for name, count in more.items() if count) or 'none'


def command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f'/proc/{pid}/cmdline').read_bytes()
    return b''


@contextmanager
def stage(folder: str | None = None, **options):
    """A stage; what was started is ended, also by Ctrl-C and SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(dir=folder) as path, Stage(Path(path), **options) as stage:
        yield stage


class Request(NamedTuple):
    """A request and its answer, both with bodies that can be made again from its name."""

    name: str
    up: int = 0
    down: int = 100

    def head(self, uuid: str) -> bytes:
        return (
            f'POST /{self.name}/{self.up}/{self.down} HTTP/1.1\r\nHost: x\r\n'
            f'Authorization: Digest username="{uuid}"\r\nContent-Length: {self.up}\r\n\r\n'
        ).encode()

    def answer(self) -> bytes:
        head = f'HTTP/1.1 200 OK\r\nX-Name: {self.name}\r\nContent-Length: {self.down}\r\n\r\n'
        return head.encode() + octets(f'{self.name} down', self.down)


class Origin:
    """The HTTP server that is hidden: checks what comes, and answers what the request says."""

    def __init__(self, name: str = ''):
        self.name, self.wrong = name, []
        self.ports: dict[str, int] = {}  # by request: the port that it came from
        self.pause = Event()  # cleared: answers stop after their first half
        self.pause.set()
        self.ended = 0
        self.open: dict[str, object] = {}
        self._server = StreamServer(('127.0.0.1', 0), self._handle, spawn=Pool(None))
        self._server.start()
        self.address = f'127.0.0.1:{self._server.server_port}'

    def stop(self) -> None:
        self._server.stop(timeout=0)

    def _handle(self, sock, address) -> None:
        with sock, suppress(OSError):
            while self._answer(sock, address[1]):
                pass
        self.ended += 1

    def _answer(self, sock, port: int) -> bool:
        got = b''
        while b'\r\n\r\n' not in got:
            if not (more := sock.recv(CHUNK_BYTES)):
                return False
            got += more
        head, _, body = got.partition(b'\r\n\r\n')
        name, up, down = head.split()[1].decode()[1:].split('/')
        request = Request(name, int(up), int(down))
        self.ports[name], self.open[name] = port, sock
        try:
            whole = self._read(sock, body, request)
            if whole:
                answer = request.answer()
                sock.sendall(answer[: len(answer) // 2])
                self.pause.wait()
                sock.sendall(answer[len(answer) // 2 :])
        finally:
            del self.open[name]
        return whole

    def _read(self, sock, body: bytes, request: Request) -> bool:
        """Whether the body came whole; as far as it came, it is compared."""
        expected = octets(f'{request.name} up', request.up)
        parts, count = [body], len(body)
        while count < request.up:
            try:
                more = sock.recv(CHUNK_BYTES)
            except OSError:
                more = b''
            if not more:
                break
            parts.append(more)
            count += len(more)
        body = b''.join(parts)
        if not expected.startswith(body):
            self.wrong.append(request.name)
        return body == expected


class Outcome(NamedTuple):
    request: Request
    saw: str  # 'good', or what came instead; 'WRONG' where an octet was
    port: int  # of the mobile client
    began: float  # time.monotonic()
    ended: float
    since: float = 0  # its connection


class Mobile:
    """A mobile client's connection: one request after the other, each checked."""

    def __init__(self, stage: Stage, uuid: str, seconds: float = 90, address=None, sock=None):
        self._stage, self._uuid, self._seconds = stage, uuid, seconds
        self._address = address or (stage.host, stage.port)
        self._sock, self.port, self.since = sock, 0, time.monotonic()

    def ask(self, request: Request) -> Outcome:
        began, got = time.monotonic(), bytearray()
        try:
            with gevent.Timeout(self._seconds, TimeoutError('no end')):
                saw = self._ask(request, got)
        except ConnectionRefusedError:
            saw = 'refused'
        except TimeoutError:
            saw = f'no end within {self._seconds:g} s'
        except (OSError, ValueError) as error:  # ValueError: it has been closed here
            saw = 'reset' if isinstance(error, ConnectionResetError) else 'cut off'
        answer = request.answer()
        if got and not answer.startswith(got):
            status = re.match(rb'HTTP/1\.1 (502|503|408) [ -~]*\r\n', got)
            saw = status[1].decode() if status else 'WRONG'
        return Outcome(request, saw, self.port, began, time.monotonic(), self.since)

    def _ask(self, request: Request, got: bytearray) -> str:
        if not self.port:
            self._connect()
        self._sock.sendall(request.head(self._uuid))
        for start in range(0, request.up, 16 * CHUNK_BYTES):  # as it is, a reset is found early
            self._sock.sendall(octets(f'{request.name} up', request.up)[start:][: 16 * CHUNK_BYTES])
        count = len(request.answer())
        while len(got) < count:
            if not (more := self._sock.recv(CHUNK_BYTES)):
                return 'ended early' if got else 'ended'
            got += more
        return 'good'

    def _connect(self) -> None:
        self._sock = self._sock or socket.socket()
        self._sock.connect(self._address)
        self.port = self._sock.getsockname()[1]
        self._sock = self._stage.context.wrap_socket(
            self._sock, server_hostname=self._stage.host, suppress_ragged_eofs=False
        )

    def close(self, reset: bool = False) -> None:
        if self._sock:
            with suppress(OSError):  # it may be closed already
                if reset:
                    linger_not(self._sock)
            self._sock.close()


numbers = iter(range(10**9))


def ask(stage: Stage, uuid: str, up: int = 0, down: int = 100, **more) -> Outcome:
    """One request on a connection of its own."""
    mobile = Mobile(stage, uuid, **more)
    try:
        return mobile.ask(Request(f'r{next(numbers)}', up, down))
    finally:
        mobile.close()


def until_good(
    stage: Stage, uuid: str, seconds: float = 120, each: float = 90
) -> tuple[str, float]:
    """Asks every 40 ms until an answer is good: what was seen before, and the seconds."""
    began, seen, good = time.monotonic(), Counter(), Event()

    def one() -> None:
        outcome = ask(stage, uuid, seconds=each)
        if outcome.saw == 'good':
            good.set()
        elif not good.is_set():
            seen[outcome.saw] += 1

    asking = Pool(50)
    while not good.is_set() and time.monotonic() - began < seconds:
        asking.spawn(one)
        good.wait(0.04)
    took = time.monotonic() - began if good.is_set() else float('inf')
    asking.kill()
    return words(seen), took


def words(seen: Counter) -> str:
    return ', '.join(f'{count} x {saw}' for saw, count in seen.most_common()) or 'nothing'


class Bystander:
    """Another hidden server and its mobile client: nothing that happens may harm them."""

    def __init__(self, stage: Stage, uuid: str):
        self._stage, self._uuid = stage, uuid
        self.good, self.failed = 0, []
        self._greenlet = gevent.spawn(self._live)

    def _live(self) -> None:
        while True:
            outcome = ask(self._stage, self._uuid, 1000, 100_000, seconds=15)
            if outcome.saw == 'good':
                self.good += 1
            else:
                self.failed.append(outcome.saw)
            gevent.sleep(0.05)

    def __str__(self) -> str:
        return f'bystander: {self.good} good, {len(self.failed)} failed {self.failed[:5] or ""}'

    def stop(self) -> None:
        self._greenlet.kill()


def print_row(fault: str, saw: list[str], seconds: list[float], left: list[str] | str) -> None:
    """A line of the table: median and worst of the seconds until the next good answer."""
    left = left if isinstance(left, str) else '; '.join(dict.fromkeys(left))
    took = f'{statistics.median(seconds):7.2f} {max(seconds):7.2f}' if seconds else ' ' * 15
    print(f'{fault:<44} {took} {len(saw):4}  {saw_most(saw)} | left over: {left}', flush=True)


def print_head() -> None:
    print(f'{"fault":<44} {"median":>7} {"worst":>7} runs  what the mobile client saw first')


def saw_most(saw: list[str]) -> str:
    return ' / '.join(dict.fromkeys(saw))
