"""The workers of other nodes, as a worker knows them, and the links to them.

Their names and addresses are read from Redis, which may be wrong or silent: a worker counts as long
as it answers. A few links to each are opened in advance, so that no mobile client waits for a
handshake. Each serves one visit, and the next one is opened in its place.
"""

import logging
import math
import random
import select
import ssl
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import gevent
from gevent.lock import Semaphore
from gevent.pool import Pool
from redis import Redis

from rendezvous.server.limits import ThrottledWarning
from rendezvous.server.links import Door, Link, NodeVisitor, call
from rendezvous.server.listening import node_listener
from rendezvous.server.membership import Contexts, Membership
from rendezvous.store import keys
from rendezvous.store.entries import Entries, StoreDown
from rendezvous.store.facts import ABOUT, WORKER
from rendezvous.store.options import Options
from rendezvous.wire.addresses import authority
from rendezvous.wire.greenlets import keep_running
from rendezvous.wire.sockets import is_polled, take_turn

log = logging.getLogger('nodes')

LOOK_SECONDS = 2  # between two looks into Redis
SECRET_SECONDS = 10  # between two looks at the secret
TEND_SECONDS = 1  # between two looks at the links that are kept
SPREAD = 0.75, 1.25  # of each of these: not all workers do it at once
CALL_SECONDS = 2
CALLS = 16  # in advance, at a time
PAUSES_SECONDS = 0.25, 5  # behind a call in vain: first, longest
FILL_SECONDS = 0.02  # that one link may come back: it was answered with a no
FIRST, MOST = 2, 16  # links that are kept to a worker: at first, and where many were needed at once
KEPT = 128  # to all workers together, at first; twice as many where they are needed
RENEW_SECONDS = 60  # a kept link is as old at most: the link time is measured, and a session kept
NEW_SHARE = 0.25  # of the newest measurement, in the link time


class Far:
    """A worker of another node."""

    def __init__(self, name: str, host: str, port: int):
        self.name, self.host, self.port = name, host, port
        self.seconds = math.inf  # link time
        self.kept: list[Link] = []  # the oldest first
        self.more = 0  # links to keep, where it is more than at first
        self.is_silent = False  # it has not answered a question, or a call
        self.is_listed = True  # in Redis
        self.is_filling = False
        self.failures, self.again_at = 0, -math.inf  # calls in vain, and when the next one may be
        self.used_at, self.renew_at = -math.inf, math.inf
        self.session: tuple[Contexts, ssl.SSLSession] | None = None

    def close(self) -> None:
        while self.kept:
            self.kept.pop().close()

    def answered(self, seconds: float) -> None:
        """A call was answered so soon."""
        share = NEW_SHARE if self.seconds < math.inf else 1
        self.seconds = share * seconds + ((1 - share) * self.seconds if share < 1 else 0)
        self.failures, self.is_silent = 0, False

    def failed(self) -> None:
        first, longest = PAUSES_SECONDS
        pause = min(first * 2**self.failures, longest)
        self.failures, self.is_silent = min(self.failures + 1, 10), True
        self.again_at = monotonic() + pause * random.uniform(0.5, 1)


class Nodes:
    """This worker among those of other nodes."""

    def __init__(
        self,
        options: Options,
        entries: Entries,
        name: str,
        number: int,
        answer: Callable[[NodeVisitor], object],
    ):
        """`name` and `number`: of this worker. `answer`: see links.Door."""
        self._options, self._entries, self._number = options, entries, number
        self._membership = Membership(entries, options.node_secret)
        self._door = Door(self._membership, name, answer)
        self._far: dict[str, Far] = {}
        self._ignored = {name}  # workers that are of this node, or of none
        self._greenlets = Pool(None)
        self._calls = Semaphore(CALLS)
        self._warn = ThrottledWarning()

    def start(self) -> None:
        """Raises Mistake."""
        self._door.open(node_listener(self._options, self._number))
        for run in (self._look_at_secret, self._look_for_others, self._tend):
            self._greenlets.spawn(keep_running, run, TEND_SECONDS)

    def close(self) -> None:
        """No new links of others; those that are there go on."""
        self._door.close()

    def stop(self) -> None:
        self._door.stop()
        self._greenlets.kill()
        for far in self._far.values():
            far.close()

    def workers(self) -> dict[str, float]:
        """Those of other nodes, and the link time in seconds; inf where it is not known, or the
        worker is silent.
        """
        return {far.name: math.inf if far.is_silent else far.seconds for far in self._far.values()}

    def connect(self, worker: str) -> Link:
        """A link to it. Raises OSError, at once where calls have just been in vain."""
        far = self._far.get(worker) or self._found(worker)
        far.used_at = monotonic()
        while far.kept:
            link = far.kept.pop()
            if not _is_over(link):
                self._fill_soon(far)
                return link
            link.close()
        self._grow(far)
        if monotonic() < far.again_at:
            raise ConnectionError(f'worker {worker} does not answer')
        link = self._call(far)
        self._fill_soon(far)
        return link

    def keep(self, link: Link) -> None:
        """It was answered with a no, and is for the next question."""
        far = self._far.get(link.worker)
        if far and len(far.kept) < MOST:
            far.kept.append(link)
        else:
            link.close()

    def failed(self, worker: str) -> None:
        """It did not answer in time: it is silent until it answers a new call."""
        if far := self._far.get(worker):
            far.is_silent = True
            far.close()
            self._fill_soon(far)

    def _look_at_secret(self) -> None:
        try:
            self._membership.look()
        except StoreDown:
            pass  # others say that
        except (OSError, ValueError) as error:
            self._warn('this node has no links to others: %s', error)
        _sleep(SECRET_SECONDS if self._membership.contexts else TEND_SECONDS)

    def _look_for_others(self) -> None:
        with suppress(StoreDown):  # what is known stays
            names = set(self._entries.ask(lambda redis: redis.zrange(keys.SERVERS, 0, -1)))
            self._ignored &= names
            for far in self._far.values():
                far.is_listed = far.name in names
            self._learn(name for name in names if WORKER.fullmatch(name))
        _sleep(LOOK_SECONDS)

    def _learn(self, names) -> None:
        """Reads of new workers where they are. Raises StoreDown."""
        new = [name for name in names if name not in self._ignored | self._far.keys()]

        def read(redis: Redis) -> list:
            pipeline = redis.pipeline(transaction=False)
            for name in new:
                pipeline.hget(keys.live(name), ABOUT)
            return pipeline.execute()

        for name, text in zip(new, self._entries.ask(read) if new else (), strict=True):
            take_turn()
            about = _about(text)
            host, _, port = str(about.get('address', '')).rpartition(':')
            if about.get('node') == self._options.node_host or not port.isdecimal():
                self._ignored.add(name)
            elif about:
                self._far[name] = Far(name, host.strip('[]'), int(port))
        return None

    def _found(self, worker: str) -> Far:
        """One that Redis has told of since the last look. Raises ConnectionError."""
        with suppress(StoreDown):
            self._learn([worker])
        if worker in self._far:
            return self._far[worker]
        raise ConnectionError(f'worker {worker} is not known')
