"""The processes that the parent starts: workers, the trial of a new version, the renewal."""

import json
import os
import secrets
import signal
import socket
import sys
from dataclasses import asdict, dataclass, field

from rendezvous.server import listening, shares
from rendezvous.server.starting import ORDERS, READY
from rendezvous.store.options import Options

# What the parent waits for: they are blocked in it, and nowhere else.
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, READY}
SIGNALS |= {signal.SIGUSR1, signal.SIGUSR2}
STORE = 0  # in the place of a worker's number


@dataclass
class Generation:
    """The workers of one version, with its options."""

    number: int
    options: Options  # max_connections is that of each worker
    listener: socket.socket
    shares: int = field(init=False)  # a descriptor

    @property
    def has_store(self) -> bool:
        return self.options.has_embedded_store

    def __post_init__(self) -> None:
        self.count = listening.workers(self.options)
        self.shares, self.seed = shares.create(self.count), secrets.token_hex(16)


@dataclass
class Child:
    """A process: a worker, or with the number 0 the store."""

    number: int
    generation: int
    began: float  # time.monotonic()
    serves: bool = False

    def __str__(self) -> str:
        return f'worker {self.number}' if self.number else 'the embedded store'


def spawn_worker(generation: Generation, number: int, since: float) -> int:
    """Starts a worker, which gets the listening socket; its process. Raises OSError.

    `since`: when this process began, in seconds since 1970.
    """
    descriptors = generation.listener.fileno(), generation.shares
    orders = os.getpid(), number, generation.count, *descriptors, generation.seed
    return os.posix_spawn(
        sys.executable,
        [sys.executable, 'server.py', '--worker', str(number)],
        os.environ | {ORDERS: json.dumps([*orders, asdict(generation.options), since])},
        file_actions=[(os.POSIX_SPAWN_DUP2, each, each) for each in descriptors],
        setsid=True,  # a Ctrl-C is for the parent
        setsigmask=[],
        setsigdef=SIGNALS - {READY},
    )


def spawn_trial(output: int) -> int:
    """Has the new version do its set-up and say whether it can start; the process.

    What it says goes to the descriptor `output`. Raises OSError.
    """
    return _spawn(['/bin/sh', 'bin/run.sh', '--check'], output)


def spawn_renewal(output: int) -> int:
    """Has the next certificate made, if one is due; the process. `output` and OSError as above."""
    return _spawn([sys.executable, 'make_cert.py', '--renew'], output)


def _spawn(arguments: list[str], output: int) -> int:
    return os.posix_spawn(
        arguments[0],
        arguments,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, output, each) for each in (1, 2)],
        setsid=True,
        setsigmask=[],
        setsigdef=SIGNALS - {READY},
    )


def said(output: int) -> str:
    """What such a process has said, when it has ended. The descriptor is closed."""
    text = os.pread(output, 10_000, 0).decode(errors='replace').strip()
    os.close(output)
    return text
