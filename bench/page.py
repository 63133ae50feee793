"""What the page costs in the store, at 1,000 entries: .venv/bin/python -m bench.page

One worker writes to an embedded store in a folder of its own, with nobody connected: what its
greenlet would write each second is written at once, by a clock that is turned on. The rates are
those of a minute; what is kept of 400 days is measured at some of the entries. It takes a minute.
"""

from gevent import monkey

monkey.patch_all()

import random
import tempfile
import time
import uuid as uuids
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from redis import Redis

from rendezvous.store import embedded, keys, presence, state, upkeep
from rendezvous.store.entries import Entries
from rendezvous.store.options import DEFAULTS
from rendezvous.store.presence import Presence
from rendezvous.store.state import Why

ENTRIES, SAMPLE = 1000, 20  # how many write; those of which 400 days are kept
SECONDS = 60  # a rate is measured for so long
DAYS, DAY = state.KEPT_DAYS, state.DAY_SECONDS
ABOUT = {
    **{'node': 'rendezvous', 'number': 1, 'workers': 1, 'pid': 1234, 'version': '1.0'},
    **{'since': 1.8e9, 'connections': 4000, 'most': 10_000, 'memory': 2**26},
    'counters': {f'counter number {number}': 123_456_789 for number in range(20)},
}


class Clock:
    """Turned on by hand; both clocks show the same time."""

    def __init__(self, now: float):
        self.now = now

    def time(self) -> float:
        return self.now

    monotonic = time


class Load(NamedTuple):
    """What each hidden server has, a second; and for how much of a day."""

    name: str
    rendezvous: float
    refusals: float
    hours: int


LOADS = [
    Load('idle', 0, 0, 0),
    Load('busy 8 h: a rendezvous every 10 s', 0.1, 0, 8),
    Load('busy 24 h: and a refusal a minute', 0.1, 1 / 60, 24),
]


class Rates(NamedTuple):
    """A second, of all entries together."""

    appended: float  # octets in the append-only file
    commands: float
    cpu: float  # share of a processor that the store takes
    worker: float  # the same of the worker's


class Bench:
    """A worker that writes of many hidden servers."""

    def __init__(self, entries: Entries, clock: Clock):
        self.entries, self.clock = entries, clock
        self.uuids = [str(uuids.uuid4()) for _ in range(ENTRIES)]
        for number, uuid in enumerate(self.uuids):
            entries.add(uuid, [f'kitchen {number}'])
        self.worker = Presence(entries, lambda: ABOUT)
        for uuid in self.uuids:
            self.worker.note_online(uuid, '192.0.2.1')
        self.worker.write(self.counts())

    def counts(self) -> presence.Counts:
        """Four that wait, or three while one is met."""
        return dict.fromkeys(self.uuids, (4, 0))

    def second(self, load: Load) -> None:
        self.clock.now += 1
        counts = self.counts()
        for uuid in self.uuids:
            if random.random() < load.rendezvous:
                self.meet(uuid)
                counts[uuid] = 3, 1
            if random.random() < load.refusals:
                host = random.randrange(1, 255)
                self.worker.note_refusal(uuid, f'198.51.100.{host}', Why('wrong'))
        self.worker.write(counts)

    def meet(self, uuid: str) -> None:
        self.worker.note_rendezvous(
            uuid,
            at=self.clock.now,
            address='198.51.100.77',
            seconds=0.25,
            sent=600,
            received=123_456,
            how='hidden server closed',
        )
        self.worker.note_online(uuid, '192.0.2.1')

    def rates(self, load: Load) -> Rates:
        """In the last of its busy hours: the day is written anew each time."""
        self._hours(self.uuids, load.hours)
        self.second(load)
        before, began = self._used(), time.process_time()
        for _ in range(SECONDS):
            self.second(load)
        took = time.process_time() - began
        used = [after - each for after, each in zip(self._used(), before, strict=True)]
        appended, commands, cpu = (each / SECONDS for each in used)
        return Rates(appended, commands, cpu, took / SECONDS)

    def _used(self) -> tuple[float, float, float]:
        info = self.entries.ask(lambda redis: redis.info('everything'))
        calls = info['total_commands_processed']
        cpu = info['used_cpu_sys'] + info['used_cpu_user']
        return info['aof_current_size'], calls, cpu

    def kept(self, load: Load) -> tuple[float, float]:
        """Octets of memory: a day of one entry, and 400 days of all."""
        some = self.uuids[:SAMPLE]
        for uuid in some:
            names = [keys.of(kind, uuid) for kind in ('hours', 'changes')]
            self.entries.ask(partial(_delete, names))
        before, per_day = self._memory(some), 0.0
        for day in range(DAYS):
            self._day(some, load)
            if day == 9:
                per_day = (self._memory(some) - before) / 10
        return per_day / SAMPLE, (self._memory(some) - before) / SAMPLE * ENTRIES

    def _day(self, some: list[str], load: Load) -> None:
        """Each has so many busy hours, and is offline once for some minutes."""
        counts = self.counts()
        self._hours(some, load.hours)
        self.worker.write({uuid: each for uuid, each in counts.items() if uuid not in some})
        self.clock.now += 300
        self.worker.write({uuid: each for uuid, each in counts.items() if uuid not in some})
        self.worker.write(counts)

    def _hours(self, some: list[str], hours: int) -> None:
        """A new day begins, and so many hours of it pass."""
        midnight = (self.clock.now // DAY + 1) * DAY
        self.clock.now = midnight
        for hour in range(hours):
            self.clock.now = midnight + hour * 3600 + 1800
            for uuid in some:
                self.worker.note_octets(uuid, 123_456, 123_456_789)
        self.worker.write(self.counts())

    def _memory(self, some: list[str]) -> int:
        def used(redis) -> int:
            names = [keys.of(kind, uuid) for kind in ('hours', 'changes') for uuid in some]
            return sum(redis.memory_usage(name, samples=0) or 0 for name in names)

        return self.entries.ask(used)


def _delete(names: list[str], redis: Redis) -> None:
    redis.delete(*names)


def main() -> None:
    clock = Clock(1.8e9)
    for module in (presence, upkeep):
        module.time = clock  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        embedded.DATA = Path(folder) / 'data'
        with closing(Entries(DEFAULTS)) as entries:
            bench = Bench(entries, clock)
            print(f'{ENTRIES:,} entries, one worker')
            show('', 'AOF B/s', 'commands/s', 'store CPU', 'worker CPU', 'B a day each', '400 days')
            for load in LOADS:
                rates, (day, all_days) = bench.rates(load), bench.kept(load)
                show(
                    load.name,
                    f'{rates.appended:,.0f}',
                    f'{rates.commands:,.1f}',
                    *(f'{share:.2%}' for share in (rates.cpu, rates.worker)),
                    *(f'{day:,.0f}', f'{all_days / 1e6:,.0f} MB'),
                )


def show(name: str, *cells: str) -> None:
    print(f'{name:36}', *(f'{cell:>14}' for cell in cells), flush=True)


if __name__ == '__main__':
    main()
