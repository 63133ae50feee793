"""Thousands of registrations come at once to one server: .venv/bin/python -m bench.scale.storm

First to one that runs, as when another node was killed; then to the same one, which was killed and
is started again. The crowd is in processes of its own, each connection as hidden.py makes it, with
its pauses: one dial of each hidden server at first, then all. The crowd has a core for itself, the
server and a bystander have the others: a dial that waited for the crowd's core would tell nothing
of the server. Prints when how many have registered, what that costs, and what the bystander waits
for: a request on a connection that it keeps, and one on a new connection. 20,000 need 1 GB of
memory, and 20,000 descriptors for a process.
"""

from gevent import monkey

monkey.patch_all()

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid as uuids
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import Semaphore
from gevent.server import StreamServer

from bench.lab import ROOT, Lab
from bench.peers.ours import Server
from bench.processes import family, family_cpu_seconds, memory_bytes
from rendezvous.hidden import dial
from rendezvous.hidden.hidden_server import pause_after
from rendezvous.store import embedded
from rendezvous.store.entries import Entries
from rendezvous.store.options import DEFAULTS
from rendezvous.wire import codes

CORES = sorted(os.sched_getaffinity(0))
PROCESSES, REGISTRATIONS = 4, 4  # of the crowd; of each hidden server
QUIET_SECONDS, LONGEST_SECONDS = 4, 400
LOOK_SECONDS = 0.1  # between two requests of the bystander
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'
SHARES = 0.5, 0.9, 0.99, 1


# The crowd, in a process


class Hidden:
    """As hidden.py is where the server is lost: while none succeeds, one slot tries for all."""

    def __init__(self, server: dial.RendezvousServer, entry: dict, registered: list[int]):
        self._server, self._uuid, self._registered = server, entry['uuid'], registered
        self._totp = codes.totp(entry['authParams'])
        self._is_offline, self._since, self._turn = True, time.monotonic(), Semaphore()
        for _ in range(REGISTRATIONS):
            gevent.spawn(self._slot)

    def _slot(self) -> None:
        while True:
            sock = self._registration()
            self._registered[0] += 1
            with suppress(OSError):
                sock.receive()
            self._registered[0] -= 1
            sock.close()

    def _registration(self):
        while True:
            with self._turn if self._is_offline else nullcontext():
                try:
                    sock = self._server.register(self._uuid, self._totp, [], {}).sock
                    self._is_offline = False
                    return sock
                except (dial.NotRegistered, OSError) as error:
                    if not self._is_offline:
                        self._is_offline, self._since = True, time.monotonic()
                    gevent.sleep(pause_after(error, time.monotonic() - self._since))


def crowd(host: str, port: int, certificate: str, core: int) -> None:
    """Begins with a line on stdin; prints how many wait. `host`: an address of the server."""
    os.sched_setaffinity(0, {core})
    entries = json.loads(sys.stdin.readline())
    way = dial.Addresses(host, port)
    server = dial.RendezvousServer('127.0.0.1', port, Path(certificate).read_text(), way)
    sys.stdin.readline()
    registered = [0]
    hidden = [Hidden(server, entry, registered) for entry in entries]
    while hidden:
        print(registered[0], flush=True)
        gevent.sleep(0.1)


class Crowd:
    def __init__(self, server: Server, entries: list[dict], host: str = '127.0.0.1'):
        self.size = len(entries) * REGISTRATIONS
        command = [sys.executable, '-m', 'bench.scale.storm', '--crowd', str(server.lab.ca)]
        command += ['--port', str(server.port), '--host', host, '--core', str(CORES[-1])]
        pipes: dict[str, Any] = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
        pipes |= {'text': True, 'cwd': ROOT}
        self.processes = [subprocess.Popen(command, **pipes) for _ in range(PROCESSES)]
        self._counts = [0] * PROCESSES
        for number, process in enumerate(self.processes):
            print(json.dumps(entries[number::PROCESSES]), file=process.stdin, flush=True)
            gevent.spawn(self._read, number, process)

    def _read(self, number: int, process) -> None:
        for line in process.stdout:
            self._counts[number] = int(line)

    def go(self) -> None:
        for process in self.processes:
            print(file=process.stdin, flush=True)

    def wait(self) -> int:
        return sum(self._counts)

    def until_all_wait(self) -> dict[float, float]:
        """By share of them: the seconds until so many do."""
        began = time.monotonic()
        found: dict[float, float] = {}
        while len(found) < len(SHARES) and time.monotonic() < began + LONGEST_SECONDS:
            gevent.sleep(0.05)
            for share in SHARES:
                if self.wait() >= share * self.size:
                    found.setdefault(share, time.monotonic() - began)
        return found

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


# The bystander


class Bystander:
    """Asks all the time: on a connection that it keeps, and on new ones."""

    def __init__(self, server: Server):
        self._server, self._stops = server, Event()
        self._kept: socket.socket | None = None
        self._seconds: dict[str, list[float]] = {'kept': [], 'new': []}
        self._bad = {'kept': 0, 'new': 0}
        asks = {'kept': self._ask_kept, 'new': self._ask_new}
        self._greenlets = [gevent.spawn(self._every, *each) for each in asks.items()]

    def _every(self, kind: str, ask: Callable[[], None]) -> None:
        while not self._stops.wait(LOOK_SECONDS):
            began = time.monotonic()
            try:
                with gevent.Timeout(30, OSError('no answer')):
                    ask()
                self._seconds[kind].append(time.monotonic() - began)
            except (OSError, AssertionError):
                self._bad[kind] += 1

    def _ask_kept(self) -> None:
        sock, self._kept = self._kept or self._server.connect(), None
        self._ask(sock)
        self._kept = sock

    def _ask_new(self) -> None:
        with closing(self._server.connect()) as sock:
            self._ask(sock)

    def _ask(self, sock: socket.socket) -> None:
        uuid = self._server.entry.stem
        sock.sendall(f'GET /?rendezvous={uuid} HTTP/1.1\r\nHost: x\r\n\r\n'.encode())
        octets = b''
        while len(octets) < len(ANSWER):
            more = sock.recv(65536)
            assert more, 'it has ended'
            octets += more
        assert octets == ANSWER, octets

    def stop(self, what: str) -> None:
        self._stops.set()
        gevent.joinall(self._greenlets)
        for kind, found in self._seconds.items():
            times = sorted(found) or [0.0]
            middle, late = statistics.median(times), times[int(len(times) * 0.99)]
            said = f'median {middle * 1000:.0f} ms, 99 % {late * 1000:.0f}, most {times[-1]:.2f} s'
            print(f'{what}, {kind} connection: {said}; {len(found)} good, {self._bad[kind]} bad')


# The server


def made(server: Server, count: int) -> list[dict]:
    embedded.DATA = server.folder / 'data'
    with closing(Entries(DEFAULTS, starts_store=False)) as entries:
        found = [entries.add(str(uuids.uuid4()), ['crowd']) or {} for _ in range(count)]
    return [{'uuid': each['uuid'], 'authParams': each['authParams']} for each in found]


@contextmanager
def served(count: int, workers: int) -> Iterator[tuple[Server, Crowd]]:
    def answer(sock, _) -> None:
        with closing(sock), suppress(OSError):
            while sock.recv(65536):
                sock.sendall(ANSWER)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab = stack.enter_context(Lab(folder))
        local_server = StreamServer(('127.0.0.1', 0), answer)
        local_server.start()
        server = Server(lab, workers=workers, max_connections=2 * count)
        target = f'127.0.0.1:{local_server.server_port}'
        lab.start([sys.executable, 'hidden.py', server.entry, target], cwd=server.folder)
        crowd = stack.enter_context(closing(Crowd(server, made(server, count // REGISTRATIONS))))
        yield server, crowd


def calls(server: Server) -> int:
    embedded.DATA = server.folder / 'data'
    with closing(Entries(DEFAULTS, starts_store=False)) as entries:
        info = entries.ask(lambda redis: redis.info('stats'))
    return info['total_commands_processed']


def storm(server: Server, crowd: Crowd, what: str, begin: Callable[[], object]) -> None:
    bystander = Bystander(server)
    cpu, commands = family_cpu_seconds(server.pids), calls(server)
    begin()
    took = crowd.until_all_wait()
    said = ', '.join(f'{share:.0%} after {seconds:.1f} s' for share, seconds in took.items())
    cpu = family_cpu_seconds(server.pids) - cpu if what == 'at once' else 0
    print(f'{what}: {said}; {crowd.wait():,} of {crowd.size:,} wait')
    if cpu and 1 in took:
        each = cpu / crowd.size * 1000
        print(f'{what}: {crowd.size / took[1]:,.0f} a second; {each:.2f} ms of CPU each, Redis too')
        print(f'{what}: {(calls(server) - commands) / crowd.size:.1f} commands of Redis each')
    bystander.stop(what)


def main(count: int, workers: int) -> None:
    cores = CORES[:-1] or CORES
    os.sched_setaffinity(0, cores)  # what it starts has it, too
    with served(count, workers) as (server, crowd):
        server.lab.until(lambda: ' registered ' in server.log.read_text(), 'hidden.py waits')
        print(f'{count:,} registrations, {workers} workers, cores: {len(cores)}')
        bystander = Bystander(server)
        gevent.sleep(QUIET_SECONDS)
        bystander.stop('before')
        before = memory_bytes(family(server.pids))
        storm(server, crowd, 'at once', crowd.go)
        gevent.sleep(QUIET_SECONDS)
        each = (memory_bytes(family(server.pids)) - before) / crowd.size
        print(f'memory: {each / 1000:.1f} kB for each that waits')

        def again() -> None:
            server.lab.end(server.process, signal.SIGKILL)
            server.lab.until(lambda: not crowd.wait(), 'the crowd has noticed')
            began = time.monotonic()
            server.start()
            print(f'killed, and it accepts again after {time.monotonic() - began:.1f} s')

        storm(server, crowd, 'killed', again)


if __name__ == '__main__':
    ask = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ask.add_argument('--registrations', type=int, default=20_000)
    ask.add_argument('--workers', type=int, default=4)
    ask.add_argument('--crowd', help=argparse.SUPPRESS)
    ask.add_argument('--port', type=int, help=argparse.SUPPRESS)
    ask.add_argument('--host', help=argparse.SUPPRESS)
    ask.add_argument('--core', type=int, help=argparse.SUPPRESS)
    given = ask.parse_args()
    if given.crowd:
        crowd(given.host, given.port, given.crowd, given.core)
    else:
        main(given.registrations, given.workers)
