"""The pieces of work that each peer does, and what one round of each cost.

A piece is a function of a `Subject`; it gives figures by name. The CPU is that of the server's part
of the peer, with all its children, until everything that drains or lingers has ended; what it
costs idle is taken off. The loads are ab, wrk and curl, and the two programs of `loads/`.
"""

import http.client
import json
import os
import re
import resource
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from bench.lab import GIGABYTE, PARTS, ROOT, SMALL, Lab
from bench.peers import Peer, Running
from bench.processes import connections, family, family_cpu_seconds, kill

Figures = dict[str, float]
LOAD_SECONDS = 60  # the most that a load takes
# The work has ended when the server's connections are as many as before for so long, or no others
# for so long: a pipe of ours drains for up to a second. What is open after the last is kept open.
STEADY_SECONDS, STAYS_SECONDS, SETTLE_SECONDS = 0.15, {'ours': 1.5, 'floor': 0.6, 'tunnel': 0.6}, 8
IDLE_SECONDS = 5
VISITS_AT_A_TIME, CURLS = 4, 60
SOCKETS, SOCKET_SECONDS = 200, 0.8
AWAY_SECONDS, BACK_SECONDS = 1.0, 10.0
IN_BARS = 'HAProxy', 'stunnel, twice'
BULK = {'down': 1, 'up': 1, 'eight': 8}  # how many at once


@dataclass
class Used:
    """CPU seconds of the server's part and of the hidden one; the work's own time."""

    server: float = 0.0
    hidden: float = 0.0
    seconds: float = 0.0


class Subject:
    """A peer that runs in the lab."""

    def __init__(self, lab: Lab, peer: Peer, running: Running):
        self.lab, self.peer, self.running = lab, peer, running
        self.idle = Used()  # a second
        self.seconds = 1.2 if self.in_bars else 0.6  # of a load
        self.visits = 0  # that take about as long

    @property
    def in_bars(self) -> bool:
        """Whether a bar names it: it does all of the work, the others a part of it."""
        return self.peer.kind == 'ours' or self.peer.name in IN_BARS

    @property
    def headers(self) -> list[str]:
        return [word for header in self.running.headers for word in ('-H', header)]

    def url(self, path: str = '') -> str:
        return self.running.url + path

    def prepare(self) -> None:
        """Waits for the first answer, and finds how many visits a round has."""
        self.lab.until(self.answers, f'{self.peer.name} answers')
        self.settle(None)
        for count in (20, 100) if 'b' not in self.peer.cannot else ():
            began = time.monotonic()
            ab(self, count)
            self.visits = max(50, int(self.seconds * count / (time.monotonic() - began)))

    def answers(self) -> bool:
        """Whether a request gets the small file's answer."""
        where = urlsplit(self.running.url)
        connection = http.client.HTTPConnection(where.netloc, timeout=BACK_SECONDS)
        if where.scheme == 'https':
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(
                where.netloc, timeout=BACK_SECONDS, context=context
            )
        try:
            fields = dict(header.split(': ', 1) for header in self.running.headers)
            connection.request('GET', '/', headers=fields | {'Connection': 'close'})
            answer = connection.getresponse()
            return answer.status == 200 and answer.read() in (SMALL, b'hello')
        except http.client.HTTPException:
            return False
        finally:
            connection.close()

    def connections(self) -> int:
        return sum(len(connections(pid)) for pid in family(self.running.server))

    def settle(self, steady: int | None) -> None:
        """Waits until the server's part has `steady` connections, or else a number that stays."""
        stays = STAYS_SECONDS[self.peer.kind]
        deadline, since, last = time.monotonic() + SETTLE_SECONDS, time.monotonic(), -1
        while time.monotonic() < deadline:
            if (now := self.connections()) != last:
                since, last = time.monotonic(), now
            if time.monotonic() - since > (STEADY_SECONDS if now == steady else stays):
                return
            time.sleep(0.05)

    @contextmanager
    def measured(self) -> Iterator[Used]:
        """The CPU from here until all that drains has ended."""
        used, steady = Used(), self.connections()
        before = self.cpu()
        yield used
        used.seconds = time.monotonic() - before.seconds
        self.settle(steady)
        ended = self.between(before, self.cpu())
        used.server, used.hidden = ended.server, ended.hidden

    def between(self, before: Used, after: Used) -> Used:
        """What was used between two moments, less what it costs idle."""
        seconds = after.seconds - before.seconds
        server = after.server - before.server - self.idle.server * seconds
        hidden = after.hidden - before.hidden - self.idle.hidden * seconds
        return Used(server, hidden, seconds)

    def cpu(self) -> Used:
        running = self.running
        parts = family_cpu_seconds(running.server), family_cpu_seconds(running.hidden)
        return Used(*parts, time.monotonic())


def find_idle(subjects: Sequence[Subject]) -> None:
    """What each costs while nothing happens."""
    before = [subject.cpu() for subject in subjects]
    time.sleep(IDLE_SECONDS)
    for subject, was in zip(subjects, before, strict=True):
        used = subject.between(was, subject.cpu())
        subject.idle = Used(used.server / used.seconds, used.hidden / used.seconds)


def load(
    *commands: Sequence[object], watch: Callable[[subprocess.Popen], object] = id
) -> tuple[list[str], float]:
    """Runs them at once. Gives what they print, and how many cores each of them used.

    `watch` is called with one of them while they run. Raises RuntimeError if one fails.
    """
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    pipes: dict[str, Any] = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    pipes['process_group'] = 0
    running = [subprocess.Popen([*map(str, words)], **pipes) for words in commands]
    try:
        watch(running[0])
        outputs = [process.communicate(timeout=LOAD_SECONDS) for process in running]
    finally:
        for process in running:
            with suppress(ProcessLookupError):  # it and its children have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    for process, words, (output, error) in zip(running, commands, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f'{words[0]}: {error.strip() or output.strip()}'[-200:])
    return [output for output, _ in outputs], cpu / (time.monotonic() - began) / len(commands)


# (a) and (b): a rendezvous


def ab(subject: Subject, count: int) -> Figures:
    command = ['ab', '-q', '-n', count, '-c', VISITS_AT_A_TIME, '-s', 20, *subject.headers]
    (output,), share = load([*command, subject.url()])
    rate = re.search(r'Requests per second:\s+([\d.]+)', output)
    lines = re.findall(r'(?:Failed requests|Non-2xx responses):\s+(\d+)', output)
    done = re.search(r'Complete requests:\s+(\d+)', output)
    if not rate or not done:
        raise RuntimeError(output[-200:])
    failed = count - int(done[1]) + max(map(int, lines))
    return {'rate': float(rate[1]), 'failed': failed, 'load': share}


def new_connections(subject: Subject) -> Figures:
    """(b): each request on a new connection, without a 401."""
    with subject.measured() as used:
        figures = ab(subject, subject.visits)
    return figures | each(used, subject.visits)


def each(used: Used, count: float, scale: float = 1000) -> Figures:
    """The CPU of one of `count`, in a unit of which a second has `scale`."""
    return {'cpu': used.server / count * scale, 'hidden': used.hidden / count * scale}


def challenged(subject: Subject) -> Figures:
    """(a): the same, with a 401 and Digest where there is one; curl, a process each."""
    digest = f'--digest -u {subject.running.digest}:x' if subject.running.digest else ''
    curl = f'curl -sS {digest} --cacert {subject.lab.ca} -o /dev/null -w %{{http_code}}\\n'
    command = f'seq {CURLS} | xargs -P {VISITS_AT_A_TIME} -I N {curl} {subject.url()}'
    with subject.measured() as used:
        (output,), share = load(['sh', '-c', command.replace('\\', '\\\\')])
    failed = CURLS - output.split().count('200')
    rate = CURLS / used.seconds
    return {'rate': rate, 'failed': failed, 'load': share} | each(used, CURLS)


# (c): small requests


def kept_open(subject: Subject, count: int) -> Figures:
    """Small requests, one after the other on each of `count` connections.

    The CPU is that between two moments when all connections are long open: how many requests came
    between them, the local web server knows.
    """
    command = ['wrk', '-t', 1, '-c', count, '-d', f'{LOAD_SECONDS}s', *subject.headers]
    command += ['-s', ROOT / 'bench' / 'latency.lua', subject.url()]
    found: list[tuple[Used, int]] = []

    def watch(wrk: subprocess.Popen) -> None:
        for share in (0.4, 0.6):
            time.sleep(share * subject.seconds)
            found.append((subject.cpu(), requests(subject.lab)))
        wrk.send_signal(signal.SIGINT)  # it says what it has found

    with subject.measured():
        (output,), share = load(command, watch=watch)
    (first, before), (last, after) = found
    used, count = subject.between(first, last), after - before - 1  # less our own question
    figures = json.loads(output.splitlines()[-1])
    if figures['failed'] > count:  # its figures would be those of errors
        raise RuntimeError(f'{figures["failed"]:.0f} requests failed')
    kept = {name: figures[name] for name in ('failed', 'p50', 'p99', 'p99.9')}
    return kept | {'rate': count / used.seconds, 'load': share} | each(used, max(count, 1), 1e6)


def requests(lab: Lab) -> int:
    """How many the local web server has had."""
    connection = http.client.HTTPConnection('127.0.0.1', lab.http, timeout=10)
    connection.request('GET', '/count')
    numbers = re.findall(r'\d+', connection.getresponse().read().decode())
    connection.close()
    return int(numbers[3])


# (d): bulk


def bulk(subject: Subject, way: str) -> Figures:
    """One file down or up, or eight down at once: 1 GB in all, or an eighth of it."""
    at_once = BULK[way]
    parts = at_once * (1 if subject.in_bars else 8)
    name = next(name for name, count in PARTS.items() if count == parts)
    octets = GIGABYTE // parts
    curl = ['curl', '-sS', '--cacert', subject.lab.ca, '-o', '/dev/null', *subject.headers]
    written = '%{http_code} %{size_download}'
    what: list[object] = [subject.url(name)]
    if way == 'up':
        written = '%{http_code} %{size_upload}'
        what = ['-T', subject.lab.folder / 'www' / name, '-H', 'Expect:', subject.url('sink')]
    with subject.measured() as used:
        outputs, share = load(*[[*curl, '-w', written, *what]] * at_once)
    if any(output.split() != ['200', str(octets)] for output in outputs):
        raise RuntimeError(f'not all octets came: {outputs[0]}')
    gigabytes = octets * at_once / GIGABYTE
    return {'rate': gigabytes / used.seconds, 'load': share} | each(used, gigabytes, 1)


# (f): WebSockets; (h): a page


def python(subject: Subject, name: str, path: str, *arguments: object) -> list[object]:
    fields = [word for header in subject.running.headers for word in ('--header', header)]
    program = ROOT / 'bench' / 'loads' / name
    return [sys.executable, program, subject.url(path), *arguments, *fields]


def websockets(subject: Subject) -> Figures:
    """The CPU is that of a stretch in which all connections are open."""
    how = '--connections', SOCKETS, '--seconds', SOCKET_SECONDS
    moments: list[Used] = []

    def watch(process: subprocess.Popen) -> None:
        while process.poll() is None:
            moments.append(subject.cpu())
            time.sleep(0.05)

    with subject.measured():
        (output,), share = load(python(subject, 'websocket.py', 'echo', *how), watch=watch)
    figures = json.loads(output)
    while_open = [m for m in moments if figures['from'] <= m.seconds <= figures['to']]
    used, rate = subject.between(while_open[0], while_open[-1]), figures['messages_a_second']
    kept = {'failed': figures['bad'], 'p50': figures['p50_ms'], 'p99': figures['p99_ms']}
    return kept | {'rate': rate, 'load': share} | each(used, max(rate * used.seconds, 1), 1e6)


def page(subject: Subject) -> Figures:
    """Sixty requests over six connections."""
    with subject.measured() as used:
        (output,), share = load(python(subject, 'page.py', '', '--pages', 1))
    figures = json.loads(output)
    return {'failed': figures['failed'], 'page': figures['page_ms'], 'load': share} | each(used, 60)


# (g): back after a kill


def back(subject: Subject) -> Figures:
    """Seconds from the moment when a killed server accepts again to its first good answer."""
    assert subject.running.again
    kill(family(subject.running.server))
    time.sleep(AWAY_SECONDS)
    subject.running.server = subject.running.again()
    began = time.monotonic()
    subject.lab.until(subject.answers, 'an answer', BACK_SECONDS)
    seconds = time.monotonic() - began
    subject.settle(None)
    return {'seconds': seconds}


@dataclass
class Piece:
    """A piece of work: `letter` is that of the list in `cannot`."""

    letter: str
    what: str
    unit: str  # of `cpu`
    run: Callable[[Subject], Figures]


PIECES = {
    'a': Piece('a', 'rendezvous with a 401', 'ms', challenged),
    'b': Piece('b', 'rendezvous', 'ms', new_connections),
    'c1': Piece('c', 'small requests on 1 connection', 'us', partial(kept_open, count=1)),
    'c4': Piece('c', 'small requests on 4 connections', 'us', partial(kept_open, count=4)),
    'c64': Piece('c', 'small requests on 64 connections', 'us', partial(kept_open, count=64)),
    'down': Piece('d', '1 GB down', 's', partial(bulk, way='down')),
    'up': Piece('d', '1 GB up', 's', partial(bulk, way='up')),
    'eight': Piece('d', '1 GB down, eight at once', 's', partial(bulk, way='eight')),
    'f': Piece('f', 'a WebSocket message, 200 connections', 'us', websockets),
    'h': Piece('h', 'a page, each of 60 requests', 'ms', page),
    # The last one: not every tunnel comes back
    'g': Piece('g', 'back after a kill', 's', back),
}
