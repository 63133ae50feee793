"""This server beside what people would pick instead: python -m bench [--only b,c] [--quick]

Run it by bench/run.sh, which makes what it needs. All peers run side by side, and take turns with
each piece of work: ours, HAProxy, the next, ours, HAProxy... so that what else the machine does
hits all alike. Writes bench/results/.
"""

import argparse
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bench import alone, report
from bench.lab import ROOT, Lab
from bench.peers import Peer
from bench.peers.floors import FLOORS
from bench.peers.ours import Ours
from bench.peers.tunnels import TUNNELS
from bench.report import Peers
from bench.work import PIECES, Figures, Subject, find_idle

PEERS: tuple[Peer, ...] = (Ours(1), Ours(2), *FLOORS, *TUNNELS)
ALL = (*'abcdfhgei',)
ON_ALL_ADDRESSES = {'pipenet', 'localtunnel'}
ERRORS = OSError, RuntimeError, ValueError, IndexError, subprocess.TimeoutExpired
TRIES = 2  # a peer that fails so often at a piece of work is not asked again


class Bar:
    """How far it is, on a terminal; elsewhere a line for each piece of work."""

    def __init__(self, total: int):
        self._total, self._done, self._began = total, 0, time.monotonic()
        self._last = ''

    def step(self, what: str, whom: str, count: int = 1) -> None:
        share, passed = min(self._done / self._total, 1), time.monotonic() - self._began
        self._done += count
        if sys.stderr.isatty():
            left = f'{passed / share - passed:4.0f} s left' if share > 0.05 else ''
            line = f'[{"#" * int(share * 30):30}] {share:4.0%} {left}  {what}: {whom}'
            print(f'\r{line[:100]:100}', end='', file=sys.stderr, flush=True)
        elif what != self._last:
            print(f'{passed:5.0f} s  {what}', file=sys.stderr, flush=True)
        self._last = what


class Bench:
    def __init__(self, lab: Lab, rounds: int):
        self.lab, self.rounds = lab, rounds
        self.found: dict[str, dict[str, list[Figures]]] = {}
        self.peers = Peers({}, {}, {'start': {}})
        self.subjects: list[Subject] = []

    def start(self, peers: Sequence[Peer], bar: Bar) -> None:
        for peer in peers:
            bar.step('start', peer.name)
            self.peers.kinds[peer.name] = peer.kind
            try:
                if peer.name in ON_ALL_ADDRESSES and not is_private():
                    raise RuntimeError('listens on all addresses: it needs a network of its own')
                if {*'bcdfh'} <= peer.cannot.keys():
                    raise RuntimeError(peer.cannot['b'])
                subject = Subject(self.lab, peer, peer.start(self.lab))
                subject.prepare()
            except ERRORS as error:
                self.fails('start', peer, error)
            else:
                self.peers.legs[peer.name] = subject.running.legs
                self.subjects.append(subject)
        find_idle(self.subjects)

    def fails(self, name: str, peer: Peer, error: object) -> None:
        self.peers.reasons.setdefault(name, {})[peer.name] = str(error)

    def run(self, name: str, bar: Bar) -> None:
        groups = [[subject] for subject in self.subjects]
        if name == 'g':  # most of it is waiting: all tunnels at once
            others = [subject for subject in self.subjects if subject.peer.kind == 'tunnel']
            groups = [group for group in groups if group[0] not in others]
            groups += [others] if others else []
        for number in range(self.rounds):
            for group in groups:
                what = f'({PIECES[name].letter}) {PIECES[name].what}, round {number + 1}'
                bar.step(what, group[0].peer.name, len(group))
                with ThreadPoolExecutor(len(group)) as pool:
                    list(pool.map(partial(self.measure, name, number), group))

    def measure(self, name: str, number: int, subject: Subject) -> None:
        peer = subject.peer
        if why := self.why_not(name, subject):
            return self.fails(name, peer, why)
        done = len(self.found.get(name, {}).get(peer.name, []))
        if done + TRIES <= number:
            return
        try:
            figures = PIECES[name].run(subject)
            self.found.setdefault(name, {}).setdefault(peer.name, []).append(figures)
        except ERRORS as error:
            self.fails(name, peer, error)

    def why_not(self, name: str, subject: Subject) -> str | None:
        """Why the peer does not do this work."""
        letter = PIECES[name].letter
        if letter == 'a' and not subject.in_bars:
            return 'it asks for no name: (b) is what it does'
        if letter == 'g' and not subject.running.again:
            return subject.peer.cannot.get('g', 'cannot be started again alone')
        return subject.peer.cannot.get(letter)

    def alone(self, letters: Sequence[str], bar: Bar) -> None:
        """(e) and (i)."""
        ours = [subject for subject in self.subjects if subject.peer.kind == 'ours']
        try:
            if 'e' in letters:
                self.found['e'] = alone.waiting(self.lab, self.rounds, partial(bar.step, '(e)'))
                self.found['e'] |= alone.others(self.subjects)
            if 'i' in letters and len(ours) == 2:
                self.found['i'] = alone.two_workers(ours, self.rounds, partial(bar.step, '(i)'))
        except ERRORS as error:
            self.peers.reasons['start']['(e) or (i)'] = str(error)


def is_private() -> bool:
    """Whether this network is of loopback alone."""
    return {name for _, name in socket.if_nameindex()} <= {'lo'}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='bench', description=__doc__.splitlines()[0])
    parser.add_argument('--only', default=','.join(ALL), help=f'of {",".join(ALL)}')
    parser.add_argument('--peers', default='', help='parts of names, such as: this,haproxy,ssh')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--quick', action='store_true', help='one round')
    parser.add_argument('--results', type=Path, default=ROOT / 'bench' / 'results')
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    rounds, letters = 1 if asked.quick else asked.rounds, asked.only.split(',')
    words = asked.peers.lower().split(',')
    peers = [peer for peer in PEERS if any(word in peer.name.lower() for word in words)]
    pieces = [name for name in PIECES if {name, PIECES[name].letter} & {*letters}]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    steps = len(peers) * (1 + rounds * len(pieces))
    steps += rounds * (2 * ('e' in letters) + 6 * ('i' in letters)) + ('e' in letters)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended, too
    bar = Bar(steps)
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        lab.serve()
        bench = Bench(lab, rounds)
        bench.start(peers, bar)
        for name in pieces:
            bench.run(name, bar)
            report.write(asked.results, bench.found, bench.peers, rounds)
        bench.alone(letters, bar)
        report.write(asked.results, bench.found, bench.peers, rounds)
    print('\n' + (asked.results / 'table.md').read_text())
    for bound in report.bounds(bench.found, bench.peers):
        print(bound)


if __name__ == '__main__':
    main()
