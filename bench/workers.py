"""What several workers cost, and how connections are spread: ratios, not figures.

    .venv/bin/python -m bench.workers [PART ...]

PART is `cost`, `spread` or `crossing`; without one it takes all: about eight minutes. The CPU
is that of the parent and its workers, user and system, from before the first connection until the
last one has ended. To have a connection with a certain worker, the others are stopped (SIGSTOP)
while it is made; what that costs, and what idle workers do, is taken off. Rounds of what is
compared take turns, for other programs use the machine, too.
"""

import os
import random
import re
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from bench.lab import Lab
from bench.peers.ours import Server
from bench.processes import connections, family_cpu_seconds, stopped

ROUNDS, RENDEZVOUS = 6, 100
GIBIBYTES, PIPE_ROUNDS = 1, 2
MEBIBYTE = bytes(1024 * 1024)
IDLE_SECONDS, STOPS = 5, 200
SPREAD_TRIALS = 5
VISITS = 200
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok'
# Hidden servers in one process, and the local server of all of them.
HIDDEN = f"""
import hidden, json, sys
from rendezvous.hidden.hidden_server import HiddenServer
from rendezvous.hidden.target import Target
from pathlib import Path
from gevent.server import StreamServer
def answer(sock, _):
    sock.recv(65536)
    sock.sendall({ANSWER!r})
    sock.close()
port, count, *entries = sys.argv[1:]
for entry in entries:
    target = Target('127.0.0.1', int(port))
    HiddenServer(json.loads(Path(entry).read_text()), target, int(count)).start()
StreamServer(('127.0.0.1', int(port)), answer).serve_forever()
"""


@contextmanager
def served(**options):
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        yield Server(lab, **options)


def at(bench: Server, worker: int, make):
    """What `make()` gives, a connection, with that worker."""
    with stopped(pid for pid in bench.workers if pid != worker):
        return make()


def until_alone(bench: Server) -> None:
    """Until all connections have ended."""
    bench.lab.until(lambda: not any(map(connections, bench.workers)), 'all connections end')


# Cost

WAYS = 'one worker', 'two, nothing crosses', 'two, all crosses'


def pairs(bench: Server, way: str, count: int) -> list[tuple[int, int]]:
    """So many times, with which workers the mobile client and the hidden server are."""
    first, last = bench.workers[0], bench.workers[-1]
    turns = [(first, last), (last, first)] if way == WAYS[2] else [(first, first), (last, last)]
    return (turns * count)[:count]


def rendezvous(bench: Server, mobile_at: int, hidden_at: int) -> None:
    with (
        closing(at(bench, hidden_at, bench.register)) as hidden,
        closing(at(bench, mobile_at, bench.connect)) as mobile,
    ):
        visit(hidden, mobile, bench.entry.stem)


def visit(hidden: ssl.SSLSocket, mobile: ssl.SSLSocket, uuid: str) -> None:
    """A request, its answer, and the end."""
    mobile.sendall(request(uuid))
    hidden.recv(65536)
    hidden.sendall(ANSWER)
    with suppress(OSError):
        hidden.unwrap()
    octets = b''
    while more := mobile.recv(65536):
        octets += more
    assert octets == ANSWER, octets


def request(uuid: str) -> bytes:
    return f'GET /?rendezvous={uuid} HTTP/1.1\r\nHost: x\r\n\r\n'.encode()


def pipe(bench: Server, mobile_at: int, hidden_at: int) -> None:
    hidden = at(bench, hidden_at, bench.register)
    child = in_child(send, hidden, GIBIBYTES)
    mobile = at(bench, mobile_at, bench.connect)
    assert download(mobile, bench.entry.stem) == GIBIBYTES * 1024**3
    mobile.close()
    hidden.close()
    os.waitpid(child, 0)


def download(sock: socket.socket, uuid: str) -> int:
    """The octets that come for a request, by the method of least work."""
    sock.sendall(request(uuid))
    buffer, count = bytearray(65536), 0
    while octets := sock.recv_into(buffer):
        count += octets
    return count


def send(sock: ssl.SSLSocket, gibibytes: int) -> None:
    sock.recv(65536)
    for _ in range(gibibytes * 1024):
        sock.sendall(MEBIBYTE)
    sock.unwrap()


def in_child(work, *arguments) -> int:
    pid = os.fork()
    if not pid:
        work(*arguments)
        os._exit(0)
    return pid


def cost() -> None:
    with served(workers=1) as one, served(workers=2) as two:
        benches = dict(zip(WAYS, (one, two, two), strict=True))
        idle = {bench: idle_cpu(bench) for bench in (one, two)}
        for what, do, rounds, each in (
            ('ms a rendezvous', rendezvous, ROUNDS, RENDEZVOUS),
            ('s a GiB', pipe, PIPE_ROUNDS, 2),
        ):
            took: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way, bench in benches.items():
                    began, before = time.monotonic(), family_cpu_seconds(bench.pids)
                    for pair in pairs(bench, way, each):
                        do(bench, *pair)
                    until_alone(bench)
                    used = family_cpu_seconds(bench.pids) - before
                    a_second, a_stop = idle[bench]
                    used -= a_second * (time.monotonic() - began) + a_stop * each
                    took[way].append(used / each)
            print_costs(what, took)


def idle_cpu(bench: Server) -> tuple[float, float]:
    """CPU seconds a second of a server that does nothing, and those of the stops for one pair."""
    before = family_cpu_seconds(bench.pids)
    time.sleep(IDLE_SECONDS)
    a_second = (family_cpu_seconds(bench.pids) - before) / IDLE_SECONDS
    began, before = time.monotonic(), family_cpu_seconds(bench.pids)
    for worker in bench.workers * STOPS:
        at(bench, worker, lambda: None)
    used = family_cpu_seconds(bench.pids) - before - a_second * (time.monotonic() - began)
    a_stop = 2 * used / STOPS / len(bench.workers)
    count = len(bench.workers)
    print(f'{count} workers, idle: {a_second * 1000:.1f} ms of CPU a second; not counted below')
    print(f'{count} workers, to stop one twice: {a_stop * 1000:.2f} ms of CPU; not counted below')
    return a_second, a_stop


def print_costs(what: str, took: dict[str, list[float]]) -> None:
    base, scale = statistics.mean(took[WAYS[0]]), 1000 if what.startswith('ms') else 1
    for way, seconds in took.items():
        mean = statistics.mean(seconds)
        print(f'{way}: {mean * scale:.2f} {what} of CPU, ratio {mean / base:.2f}', flush=True)


# How evenly connections are spread


def spread() -> None:
    for workers in (2, 4):
        with served(workers=workers) as bench:
            for how, come in (('one by one', one_by_one), ('at once', at_once)):
                for count in (50, 200):
                    found = [spread_of(bench, count, come) for _ in range(SPREAD_TRIALS)]
                    print(
                        f'{workers} workers, {count} connections {how}: the most that a worker has '
                        f'is {statistics.median(found):.2f} of the mean, at worst {max(found):.2f}',
                        flush=True,
                    )


def spread_of(bench: Server, count: int, come) -> float:
    with ExitStack() as stack:
        for sock in come(bench, count):
            stack.enter_context(sock)
        found: list[int] = []

        def all_there() -> bool:
            found[:] = [len(connections(pid)) for pid in bench.workers]
            return sum(found) >= count

        bench.lab.until(all_there, 'all are accepted')
    until_alone(bench)
    return max(found) * len(found) / sum(found)


def one_by_one(bench: Server, count: int) -> list[socket.socket]:
    return [bench.connect() for _ in range(count)]


def at_once(bench: Server, count: int) -> list[socket.socket]:
    return [socket.create_connection(('127.0.0.1', bench.port)) for _ in range(count)]


# What share of visits crosses


def crossing() -> None:
    for hidden_servers, at_a_time in ((1, 1), (1, 6), (20, 7)):
        for workers in (2, 4):
            for registrations in (1, 4, 8):
                share, bad = crossed(workers, hidden_servers, registrations, at_a_time)
                print(
                    f'{hidden_servers} hidden servers, {at_a_time} visits at a time, {workers} '
                    f'workers, {registrations} registrations: {share:.1%} cross, {bad} bad',
                    flush=True,
                )


def crossed(workers: int, count: int, registrations: int, at_a_time: int) -> tuple[float, int]:
    """The share of visits that cross, and how many fail."""
    with served(workers=workers) as bench, ExitStack() as stack:
        entries = [bench.entry, *(bench.add() for _ in range(count - 1))]
        command = [sys.executable, '-c', HIDDEN, str(Lab.free_port()), str(registrations)]
        bench.lab.start([*command, *entries], cwd=bench.folder)
        log = bench.folder / 'server.log'
        bench.lab.until(
            lambda: log.read_text().count(' registered ') >= count * registrations, 'all wait'
        )
        time.sleep(1)  # those that looked for another worker have found it

        def visit(_) -> bool:
            with bench.connect() as sock:
                sock.sendall(request(random.choice(entries).stem))
                octets = b''
                while more := sock.recv(65536):
                    octets += more
                return octets == ANSWER

        pool = stack.enter_context(ThreadPoolExecutor(at_a_time))
        good = sum(pool.map(visit, range(VISITS)))
        found = re.findall(r' rendezvous with [0-9a-f-]{36}(.*)', log.read_text())
    kinds = Counter(found)
    ours, others = kinds[''], kinds[', with another worker']
    return others / (ours + others), VISITS - good


PARTS = {'cost': cost, 'spread': spread, 'crossing': crossing}


def main() -> None:
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == '__main__':
    main()
