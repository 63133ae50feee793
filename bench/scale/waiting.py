"""What a rendezvous costs beside many that wait: .venv/bin/python -m bench.scale.waiting [MOST]

Two servers take turns: with one of them 10 registrations wait, with the other one ever more, up to
50,000, which is why it has 8 workers: with 20,000 descriptors each takes some 7,000. Prints CPU and
commands of Redis for a rendezvous and the registration in front of it, both with their ratio to the
first server, and what those that wait cost by themselves. It takes ten minutes, and 3 GB of memory.

Both ends of each connection are on this machine. Their keepalive probes come in bursts, of which
the kernel drops what is too much: first `sysctl -w net.core.netdev_max_backlog=100000`.
"""

from gevent import monkey

monkey.patch_all()

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import gevent

from bench.lab import Lab
from bench.peers.ours import Server
from bench.processes import family, family_cpu_seconds, memory_bytes
from bench.scale.storm import REGISTRATIONS, Crowd, calls, made
from bench.workers import ANSWER, request

BACKLOG = Path('/proc/sys/net/core/netdev_max_backlog')
# Of one address there are ports for 28,000 connections: no step may add more.
STEPS, FEW = (1000, 10_000, 30_000, 50_000), 12
WORKERS, ROUNDS, EACH = 8, 4, 100
IDLE_SECONDS = 10
SETTLE_SECONDS = 2  # batches are written, memory is given back


class Cost(NamedTuple):
    cpu: float  # seconds of the server, with its store
    commands: float


def registration(server: Server) -> None:
    server.register().close()


def rendezvous(server: Server) -> None:
    """And the registration that it takes."""
    with closing(server.register()) as hidden, closing(server.connect()) as mobile:
        mobile.sendall(request(server.entry.stem))
        hidden.recv(65536)
        hidden.sendall(ANSWER)
        octets = b''
        while len(octets) < len(ANSWER):
            more = mobile.recv(65536)
            assert more
            octets += more


def cost(server: Server, do: Callable[[Server], None], idle: Cost) -> Cost:
    """Of one, less what the server does by itself."""
    began = time.monotonic()
    before = Cost(family_cpu_seconds(server.pids), calls(server))
    for _ in range(EACH):
        do(server)
    gevent.sleep(SETTLE_SECONDS)
    took = time.monotonic() - began
    cpu = family_cpu_seconds(server.pids) - before.cpu - idle.cpu * took
    return Cost(cpu / EACH, (calls(server) - before.commands - idle.commands * took) / EACH)


def idle(server: Server) -> Cost:
    """A second."""
    before = Cost(family_cpu_seconds(server.pids), calls(server))
    gevent.sleep(IDLE_SECONDS)
    used = family_cpu_seconds(server.pids) - before.cpu
    return Cost(used / IDLE_SECONDS, (calls(server) - before.commands) / IDLE_SECONDS)


def compare(few: Server, many: Server, count: int) -> None:
    lazy = {server: idle(server) for server in (few, many)}
    said = ', '.join(
        f'{each.cpu * 1000:.0f} ms of CPU, {each.commands:.0f} commands' for each in lazy.values()
    )
    print(f'{count:,} wait: idle, a second, beside {FEW} and these: {said}')
    for what, do in (('registration', registration), ('registration and rendezvous', rendezvous)):
        found: dict[Server, list[Cost]] = {few: [], many: []}
        for _ in range(ROUNDS):
            for server, costs in found.items():
                costs.append(cost(server, do, lazy[server]))
        pairs = list(zip(found[few], found[many], strict=True))
        ratio = statistics.median(more.cpu / less.cpu for less, more in pairs)
        cpu, commands = (statistics.median(each) for each in zip(*found[many], strict=True))
        print(
            f'{count:,} wait: {cpu * 1000:.2f} ms of CPU a {what}, ratio {ratio:.2f} to {FEW}; '
            f'{commands:.1f} commands',
            flush=True,
        )


def main(most: int) -> None:
    if int(BACKLOG.read_text()) < 2 * most:
        sys.exit(f'sysctl -w net.core.netdev_max_backlog={2 * most} first: see the docstring')
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab = stack.enter_context(Lab(folder))
        options = {'workers': WORKERS, 'listen_host': '0.0.0.0', 'max_connections': 2 * most}
        few, many = Server(lab, **options), Server(lab, **options)
        little = stack.enter_context(closing(Crowd(few, made(few, FEW // REGISTRATIONS))))
        little.go()
        little.until_all_wait()
        there, before = 0, memory_bytes(family(many.pids))
        for number, count in enumerate(each for each in STEPS if each <= most):
            host, entries = f'127.0.0.{number + 1}', made(many, (count - there) // REGISTRATIONS)
            crowd = stack.enter_context(closing(Crowd(many, entries, host)))
            crowd.go()
            took = crowd.until_all_wait()
            gevent.sleep(SETTLE_SECONDS)
            there += crowd.wait()
            each = (memory_bytes(family(many.pids)) - before) / there
            print(
                f'{there:,} wait after {took.get(1, 0):.0f} s: {each / 1000:.1f} kB each',
                flush=True,
            )
            compare(few, many, there)


if __name__ == '__main__':
    main(int(sys.argv[1]) if sys.argv[1:] else STEPS[-1])
