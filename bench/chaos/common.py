"""What the programs here share: the real programs in a folder, requests that are checked octet by
octet, and a table.
"""

import json
import os
import re
import shutil
import signal
import ssl
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import gevent
from gevent.event import Event
from gevent.pool import Pool

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDERS = 'bench', 'tests', 'tests/server', 'tests/hidden'
sys.path[:0] = [str(ROOT), *(str(ROOT / name) for name in FOLDERS)]

from checked import Mobile, Origin, Outcome, Request, ask, numbers
from conftest import free_port, until
from probe import SAY
from processes import connections
from programs import Folder, Program

from rendezvous.store import embedded
from rendezvous.store.entries import Entries
from rendezvous.store.options import DEFAULTS

# Of those, for the programs here, which import this first: it says where the others are.
__all__ = ['Mobile', 'Origin', 'Outcome', 'Request', 'ask', 'free_port', 'numbers', 'until']

WORKERS = 2


class Probed(Folder):
    """The real programs in a folder; probe.py says what is inside them."""

    def install_probe(self) -> None:
        shutil.copy(HERE / 'probe.py', self.path)
        with (self.path / 'rendezvous/wire/pipe.py').open('a') as file:
            file.write('\n\nimport sys, probe\n\nprobe.install(sys.modules[__name__])\n')

    def renew(self) -> bool:
        """SIGUSR2: when this returns, new workers serve, and the old ones finish their pipes; or
        the parent has found that the new version cannot start: then it is False.
        """
        before, _ = self._tried()
        os.kill(self.parent, signal.SIGUSR2)
        until(lambda: self._tried()[0] > before, 'the new version is tried', 120)
        return self._tried()[1]

    def _served(self) -> int:
        """How many versions the parent that runs has tried, the last one with success; else 0."""
        count, is_good = self._tried()
        return count if is_good else 0

    def _tried(self) -> tuple[int, bool]:
        """How many versions the parent that runs has tried, and whether the last one serves."""
        with suppress(OSError):  # behind a line may be the end of a longer one that was there
            found = re.match(r'(\d+) (\w+)-(\d+) *\n', (self.path / 'server.pid').read_text())
            if found and int(found[1]) in self.pids():
                return int(found[3]), found[2] == 'good'
        return 0, False

    @property
    def worker_pids(self) -> list[int]:
        """Those that probe.py knows: one that has just been started cannot be asked yet."""
        return [pid for pid in self.workers() if (self.path / f'probed.{pid}').exists()]

    def until_all_workers_serve(self) -> None:
        count = self.options['workers']
        until(lambda: len(self.worker_pids) == count == len(self.workers()), 'all serve', 60)

    def inside(self, *pids: int) -> Counter[str]:
        """What the workers have, or a hidden.py: greenlets, pipes, registrations, sockets."""
        found: Counter[str] = Counter()
        for pid in pids or self.worker_pids:
            found.update(self._inside(pid))
        return found

    def _inside(self, pid: int) -> dict[str, int]:
        file = self.path / f'inside.{pid}'
        file.unlink(missing_ok=True)
        with suppress(ProcessLookupError):
            os.kill(pid, SAY)
        until(lambda: file.exists() or pid not in self.pids(), 'it says what is in it')
        if not file.exists():
            return {}
        sockets = sum(not {*ends} & self.pooled() for ends in connections(pid))
        return json.loads(file.read_text()) | {'sockets': sockets}

    def pooled(self) -> set[int]:
        """Ports whose connections are kept for later: how many there are tells nothing."""
        return {self.options.get('redis_port', 0)}

    def joined(self) -> list[list]:
        """What probe.py has written of each pipe: when, the process, and two ports."""
        file = self.path / 'joined.log'
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def at_rest(self, registrations: int) -> Counter[str]:
        """What is inside the workers, once so many wait and nothing else is under way."""

        def found() -> Counter[str] | None:
            inside = self.inside()
            rests = (inside['registrations'], inside['pipes']) == (registrations, 0)
            return inside if rests else None

        self.until_all_workers_serve()
        return until(found, f'{registrations} registrations wait', 30)

    def left(self, before: Counter[str], *pids: int, seconds: float = 20) -> str:
        """What the workers, or these, have more than `before`, after these seconds at the most.

        '' for nothing.
        """
        if not pids:
            self.until_all_workers_serve()
        more, deadline = Counter(any=1), time.monotonic() + seconds
        while more and time.monotonic() < deadline:
            gevent.sleep(0.1)
            inside = self.inside(*pids)
            more = inside - before  # where it is more
        return ', '.join(f'{count} {name}' for name, count in more.items())


class Stage(Probed):
    """One server, on a fixed port, and hidden servers beside it."""

    def __init__(self, path: Path, **options):
        # All mobile clients have one address here, and a pipe stays for `drain` after each request.
        options = {'max_connections_per_address': 0, 'workers': WORKERS, **options}
        super().__init__(path, rendezvous_port=free_port(), **options)
        self.name = options.get('rendezvous_host', '127.0.0.1')
        self.host = options.get('listen_host', self.name)
        self.port = self.options['rendezvous_port']
        self.pair(self.name)
        self.context = ssl.create_default_context(cafile=self.path / 'registrar.crt')
        self.install_probe()

    def serve(self, *command: str) -> tuple[Program, int]:
        """server.py, all workers of which serve, and its port; `command`: another program."""
        program = self.start(*(command or ['server.py']))
        until(self._served, 'it serves', 60)
        return program, self.port

    def run_sh(self) -> Program:
        """bin/run.sh, which serves."""
        return self.serve('-c', 'import os; os.execl("bin/run.sh", "bin/run.sh")')[0]

    def hide(self, uuid: str, origin: Origin, port: int = 0, program=('hidden.py',)) -> Program:
        """A hidden.py that is registered; `port`: of the relay that it goes through."""
        origin.uuid = uuid
        entry = json.loads((self.path / 'entries' / f'{uuid}.json').read_text())
        entry['server']['port'] = port or self.port
        file = self.path / 'entries' / f'{next(numbers)}.json'
        file.write_text(json.dumps(entry))
        hiding = self.start(*program, str(file), origin.address)
        hiding.until_it_says('registered')
        return hiding

    def explain(self, outcome: Outcome) -> None:
        """Prints a request that failed, its pipes, and the lines of the log about its ports."""
        print(f'    {outcome}')
        ports = {outcome.port}
        for at, pid, mobile_port, hidden_port in self.joined():
            if mobile_port == outcome.port and outcome.since <= at <= outcome.ended:
                print(f'        {at - outcome.began:.3f} s later joined by {pid} to {hidden_port}')
                ports.add(hidden_port)
        marks = [f':{port} ' for port in ports]
        for line in self.log().splitlines():
            if any(mark in line for mark in marks):
                print(f'        {line}')

    def entries(self) -> Entries:
        """The entries of the store in this folder, for this process."""
        embedded.DATA = self.path / 'data'
        return Entries(DEFAULTS | self.options, starts_store=False)


@contextmanager
def stage(folder: str | None = None, **options):
    """A stage; what was started is ended, also by Ctrl-C and SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(dir=folder) as path, Stage(Path(path), **options) as on:
        yield on


def until_good(stage: Stage, uuid: str, each: float = 90) -> tuple[str, float]:
    """Asks every 40 ms until an answer is good: what was seen before, and the seconds."""
    began, seen, good, asking = time.monotonic(), Counter(), Event(), Pool(50)

    def one() -> None:
        outcome = ask(stage, uuid, seconds=each)
        if outcome.saw == 'good':
            good.set()
        elif not good.is_set():
            seen[outcome.saw] += 1

    while not good.is_set():
        asking.spawn(one)
        good.wait(0.04)
    took = time.monotonic() - began
    asking.kill()
    return words(seen), took


def words(seen: Counter) -> str:
    return ', '.join(f'{count} x {saw}' for saw, count in seen.most_common()) or 'nothing bad'


class Bystander:
    """Somebody else's requests, one after the other: they all should be good."""

    def __init__(self, stage: Stage, uuid: str):
        self.seen = Counter()
        self._greenlet = gevent.spawn(self._live, stage, uuid)

    def _live(self, stage: Stage, uuid: str) -> None:
        while True:
            self.seen[ask(stage, uuid, 1000, 100_000, seconds=15).saw] += 1
            gevent.sleep(0.05)

    def stop(self) -> str:
        self._greenlet.kill()
        return words(self.seen)


def print_row(fault: str, saw: str, seconds: list[float], more: str) -> None:
    """A line of the table: median and worst of the seconds, how many; what was seen."""
    if fault:
        took = f'{statistics.median(seconds):6.2f} {max(seconds):6.2f} {len(seconds):4}'
    else:
        fault, took = 'fault', 'median  worst runs'
    print(f'{fault:<42} {took}  {saw} | {more}', flush=True)
