"""What only some do: (e) clients of the tunnel that wait, and (i) one and two workers."""

import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence

from bench.lab import Lab
from bench.peers import Running
from bench.peers.ours import Ours, Server
from bench.processes import confine, family, family_cpu_seconds, memory_bytes
from bench.work import PIECES, Figures, Subject, new_connections

FEW, SOME, MANY, LEAVE = 10, 1000, 5000, 3000
OTHERS = 5  # clients of a tunnel: a process each
QUIET_SECONDS = 3
TRIM_SECONDS = 3  # after that the server has given back what it does not need


class Waiting:
    """A server with registrations that wait, and perhaps with hidden.py for visits."""

    def __init__(self, lab: Lab, is_visited: bool = True):
        self.server = Server(lab)
        running = self.server.serve() if is_visited else Running('', self.server.pids)
        self.subject = Subject(lab, Ours(1), running)
        if is_visited:
            self.subject.prepare()
        self._waiting: list[socket.socket] = []
        self._entry = self.server.add()
        self.fill(FEW)

    def fill(self, count: int) -> None:
        """Now so many wait."""
        for _ in range(count - len(self._waiting)):
            self._waiting.append(self.server.register(self._entry))

    def leave(self, count: int) -> None:
        before = self.subject.connections()
        for _ in range(count):
            self._waiting.pop().close()
        lab = self.server.lab
        lab.until(lambda: self.subject.connections() <= before - count, 'they have left')

    def memory(self) -> int:
        """Octets, of all its processes."""
        time.sleep(TRIM_SECONDS)
        return memory_bytes(family(self.server.pids))

    def idle(self) -> float:
        """Its CPU in ms a second."""
        before = family_cpu_seconds(self.server.pids)
        time.sleep(QUIET_SECONDS)
        return (family_cpu_seconds(self.server.pids) - before) / QUIET_SECONDS * 1000

    def end(self) -> None:
        self.leave(len(self._waiting))
        self.server.lab.end(self.server.process)


def growing(lab: Lab) -> Figures:
    """What 1,000 registrations cost a new server: MB in all, KB each, ms of CPU a second."""
    waiting = Waiting(lab, is_visited=False)
    before = waiting.memory()
    waiting.fill(SOME)
    full, idle = waiting.memory(), waiting.idle()
    waiting.end()
    return {'all': full / 1e6, 'each': (full - before) / (SOME - FEW) / 1000, 'idle': idle}


def waiting(lab: Lab, rounds: int, step: Callable[[str], None]) -> dict[str, list[Figures]]:
    """(e): memory and CPU of those that wait, and (b) beside 10 and beside 5,000 of them."""
    found: dict[str, list[Figures]] = {'10 wait': [], '1,000 wait': []}
    for _ in range(rounds):
        step('1,000 wait')
        found['1,000 wait'].append(growing(lab))
    step('5,000 wait')
    few, many = Waiting(lab), Waiting(lab)
    begin, few_idle = many.memory(), few.idle()
    found['10 wait'].append({'all': begin / 1e6, 'idle': few_idle})
    many.fill(MANY - LEAVE)
    before = many.memory()
    many.fill(MANY)
    full = many.memory()
    each = (full - begin) / (MANY - FEW) / 1000
    found['5,000 wait'] = [{'all': full / 1e6, 'each': each, 'idle': many.idle()}]
    for name in ('beside 10', 'beside 5,000'):
        found[name] = []
    for _ in range(rounds):
        step('rendezvous beside 10 and beside 5,000')
        found['beside 10'].append(new_connections(few.subject))
        found['beside 5,000'].append(new_connections(many.subject))
    many.leave(LEAVE)
    found['3,000 have left'] = [{'kept': (many.memory() - before) / 1e6}]
    few.end()
    many.end()
    return found


def others(subjects: Iterable[Subject]) -> dict[str, list[Figures]]:
    """KB of the server's memory that one more client of a tunnel takes."""
    found = {}
    for subject in subjects:
        if another := subject.running.another:
            before = memory_bytes(family(subject.running.server))
            for _ in range(OTHERS):
                another()
            subject.settle(None)
            octets = memory_bytes(family(subject.running.server)) - before
            found[subject.peer.name] = [{'each': octets / OTHERS / 1000}]
    return found


def two_workers(
    subjects: Sequence[Subject], rounds: int, step: Callable[[str], None]
) -> dict[str, list[Figures]]:
    """(i): what one worker does on one core, and two on two. The clients share these cores."""
    cores = sorted(os.sched_getaffinity(0))
    found: dict[str, list[Figures]] = {}
    try:
        for name in ('b', 'c64', 'eight'):
            for _ in range(rounds):
                for subject, count in zip(subjects, (1, 2), strict=True):
                    step(f'{PIECES[name].what}, {subject.peer.name}')
                    confine(family([os.getpid()]), cores[:count])
                    figures = PIECES[name].run(subject)
                    found.setdefault(f'{name}, {count} workers', []).append(figures)
    finally:
        confine(family([os.getpid()]), cores)
    return found
