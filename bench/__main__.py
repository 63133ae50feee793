"""This server beside what people would pick instead: python -m bench [--only b,c] [--quick]

Run it by bench/run.sh, which makes what it needs. All peers run side by side, and take turns with
each piece of work: ours, HAProxy, the next, ours, HAProxy... so that what else the machine does
hits all alike. Writes bench/results/.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bench.lab import Lab
from bench.peers import Peer
from bench.peers.floors import FLOORS
from bench.peers.ours import Ours
from bench.work import PIECES, Figures, Subject, find_idle

PEERS: tuple[Peer, ...] = (Ours(1), Ours(2), *FLOORS)
TRIES = 2  # a peer that fails so often at a piece of work is not asked again


class Bar:
    """How far it is, on a terminal; elsewhere a line for each piece of work."""

    def __init__(self, total: int):
        self._total, self._done, self._began = total, 0, time.monotonic()
        self._last = ''

    def step(self, what: str, whom: str) -> None:
        share, passed = self._done / self._total, time.monotonic() - self._began
        self._done += 1
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
        self.found: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
        self.failed: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.subjects: list[Subject] = []

    def start(self, peers: Sequence[Peer], bar: Bar) -> None:
        for peer in peers:
            bar.step('start', peer.name)
            try:
                subject = Subject(self.lab, peer, peer.start(self.lab))
                subject.prepare()
            except (OSError, RuntimeError, TimeoutError) as error:
                self.failed['start'][peer.name].append(f'{type(error).__name__}: {error}')
            else:
                self.subjects.append(subject)
        find_idle(self.subjects)

    def run(self, name: str, bar: Bar) -> None:
        piece = PIECES[name]
        for number in range(self.rounds):
            for subject in self.subjects:
                bar.step(f'({piece.letter}) {piece.what}, round {number + 1}', subject.peer.name)
                failed = self.failed[name][subject.peer.name]
                if self.why_not(name, subject) or len(failed) >= TRIES:
                    continue
                try:
                    self.found[name][subject.peer.name].append(piece.run(subject))
                except (OSError, RuntimeError, TimeoutError, ValueError) as error:
                    failed.append(f'{type(error).__name__}: {error}')

    def why_not(self, name: str, subject: Subject) -> str | None:
        """Why the peer does not do this work."""
        letter = PIECES[name].letter
        if letter == 'a' and subject.peer.kind == 'tunnel':
            return 'it asks for no name: (b) is what it does'
        if letter == 'g' and not subject.running.again:
            return subject.peer.cannot.get('g', 'cannot be started again alone')
        return subject.peer.cannot.get(letter)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='bench', description=__doc__.splitlines()[0])
    parser.add_argument('--only', default=','.join(PIECES), help='such as: b,c64,down')
    parser.add_argument('--peers', default='', help='parts of names, such as: this,haproxy,ssh')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--quick', action='store_true', help='one round')
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    rounds = 1 if asked.quick else asked.rounds
    words = asked.peers.lower().split(',')
    peers = [peer for peer in PEERS if any(word in peer.name.lower() for word in words)]
    pieces = [name for name in PIECES if {name, PIECES[name].letter} & {*asked.only.split(',')}]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    bar = Bar(len(peers) * (1 + rounds * len(pieces)))
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        lab.serve()
        bench = Bench(lab, rounds)
        bench.start(peers, bar)
        for name in pieces:
            bench.run(name, bar)
    for name, by_peer in bench.found.items():
        print(name)
        for peer, figures in by_peer.items():
            medians = {
                key: round(statistics.median(each[key] for each in figures), 3)
                for key in figures[0]
            }
            print(f'  {peer:24} {medians}')
    print(json.dumps(bench.failed))


if __name__ == '__main__':
    main()
