"""The workers of other nodes, as a worker knows them, and the links to them.

Their names and addresses are read from Redis, which may be wrong or silent: a worker counts as long
as it answers. A few links to each are opened in advance, so that no mobile client waits for a
handshake. Each serves one visit, and the next one is opened in its place.
"""

import logging
import math
import random
import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import Any
from weakref import WeakSet

import gevent
from gevent.event import Event
from gevent.lock import Semaphore
from gevent.pool import Pool
from redis import Redis

from rendezvous.server.limits import ThrottledWarning
from rendezvous.server.links import Door, Link, NodeVisitor, call
from rendezvous.server.listening import node_listener
from rendezvous.server.membership import Contexts, Membership
from rendezvous.store import entry_json, keys
from rendezvous.store.entries import Entries, StoreDown
from rendezvous.store.entry_json import Json
from rendezvous.store.options import Options
from rendezvous.store.state import ABOUT, WORKER
from rendezvous.wire.addresses import is_host
from rendezvous.wire.greenlets import keep_running
from rendezvous.wire.sockets import has_spoken, take_turn

log = logging.getLogger('nodes')

LOOK_SECONDS = 2  # between two looks into Redis
SECRET_SECONDS = 10  # between two looks at the secret
TEND_SECONDS = 1  # between two looks at the links that are kept
SPREAD = 0.75, 1.25  # of each of these: not all workers do it at once
CALL_SECONDS = 2
CALLS = 16  # in advance, at a time
PAUSES_SECONDS = 0.25, 5  # behind a call in vain: first, longest
LOST = 6  # calls in vain, one after the other: 8 seconds; of a worker that was killed Redis knows
TOLD = 20  # workers that are not reached are told at most
FILL_SECONDS = 0.02  # that one link may come back: it was answered with a no
QUICK_SECONDS = 0.25  # between two times that links are opened; where it is less, more are kept
FIRST, MOST = 2, 16  # links that are kept to a worker: at first, and where many were needed at once
KEPT = 128  # to all workers together, at first; twice as many where they are needed
RENEW_SECONDS = 60  # a kept link is as old at most: the link time is measured, and a session kept
MAX_PORT = 65535
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
        self.used_at = self.filled_at = -math.inf
        self.renew_at = math.inf
        self.session: tuple[Contexts, ssl.SSLSession] | None = None

    def close(self) -> None:
        while self.kept:
            self.kept.pop().close()

    def answered(self, seconds: float) -> None:
        """A call was answered so soon."""
        if self.seconds == math.inf:
            self.seconds = seconds
        self.seconds += NEW_SHARE * (seconds - self.seconds)
        self.failures, self.is_silent = 0, False

    def failed(self) -> None:
        """A call was in vain; of several at a time one counts."""
        self.close()
        if monotonic() < self.again_at:
            return
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
        self._name, self._near = name, {name}  # workers of this node
        self._apart: set[str] = set()  # workers of no node
        self._told: set[str] = set()  # machines of those, of which the log has told
        self._links: WeakSet[Link] = WeakSet()
        self._greenlets = Pool(None)
        self._calls = Semaphore(CALLS)
        self._doubt = Event()  # another one has another secret, and Redis says who is right
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
        """It did not answer in time: it is silent until it answers a new call.

        The links to it stay unless that one is in vain: new ones would keep the busy busier.
        """
        if far := self._far.get(worker):
            far.is_silent = True
            self._fill_soon(far)

    def is_near(self, worker: str) -> bool:
        """Whether it is a live worker of this node."""
        return worker in self._near

    def count(self) -> int:
        """Links that are open now, those of others to this worker among them."""
        return self._door.count() + sum(link.fileno() >= 0 for link in self._links)

    def not_reached(self) -> list[str]:
        """Some of the workers that live, as far as Redis knows, and do not answer calls."""
        lost = (far.name for far in self._far.values() if far.failures >= LOST and far.is_listed)
        return list(islice(lost, TOLD))

    def _look_at_secret(self) -> None:
        self._doubt.clear()
        is_soon, before = False, self._membership.contexts
        try:
            self._membership.look()
        except StoreDown:  # others say that
            is_soon = not self._membership.contexts
        except (OSError, ValueError) as error:
            self._warn('this node has no links to others: %s', error)
        if self._membership.contexts is not before:
            for far in self._far.values():
                far.failures, far.again_at = 0, -math.inf  # calls were in vain with the other one
        _sleep(TEND_SECONDS)
        if not is_soon:
            self._doubt.wait(SECRET_SECONDS * random.uniform(*SPREAD))

    def _look_for_others(self) -> None:
        with suppress(StoreDown):  # what is known stays
            found: Any = self._entries.ask(lambda redis: redis.zrange(keys.SERVERS, 0, -1))
            names = {name for name in found if WORKER.fullmatch(name)}
            self._near &= names | {self._name}
            self._apart &= names
            for far in self._far.values():
                far.is_listed = far.name in names
            self._learn(names)
        _sleep(LOOK_SECONDS)

    def _learn(self, names: Iterable[str]) -> None:
        """Of new workers, where they are. Raises StoreDown."""
        known = self._near | self._apart | self._far.keys()
        new = [name for name in names if name not in known]

        def read(redis: Redis) -> list:
            questions = redis.pipeline(transaction=False)
            for name in new:
                questions.hget(keys.live(name), ABOUT)
            return questions.execute(raise_on_error=False)  # a key may be another program's

        for name, text in zip(new, self._entries.ask(read) if new else (), strict=True):
            take_turn()
            if about := _about(text):
                self._place(name, about)

    def _place(self, name: str, about: Json) -> None:
        host, _, port = str(about.get('address', '')).rpartition(':')
        if self._is_ours(about):
            self._near.add(name)
        elif is_host(host.strip('[]')) and port.isdecimal() and 0 < int(port) <= MAX_PORT:
            self._far[name] = Far(name, host.strip('[]'), int(port))
        else:
            self._apart.add(name)
            self._tell_apart(entry_json.printable(entry_json.text_in(about.get('host'))))

    def _tell_apart(self, host: str) -> None:
        """In the log, once for each node and machine."""
        if host and self._number == 1 and host not in self._told:
            self._told.add(host)
            log.warning(
                'another server in this Redis, on %s, has no node_host: its hidden servers are not '
                'found by mobile clients here, and those here not by mobile clients there',
                host,
            )

    def _is_ours(self, about: Json) -> bool:
        """Whether it is of this node: two that have one node_host by mistake are two."""
        number = about.get('number')
        address = self._options.node_address(number) if isinstance(number, int) else ''
        return (about.get('host'), about.get('address')) == (socket.gethostname(), address)

    def _found(self, worker: str) -> Far:
        """One that Redis has told of since the last look. Raises ConnectionError."""
        with suppress(StoreDown):
            self._learn([worker])
        if worker in self._far:
            return self._far[worker]
        raise ConnectionError(f'worker {worker} is not known')

    def _tend(self) -> None:
        """Looks after the links that are kept, and forgets workers that are gone."""
        for far in list(self._far.values()):
            take_turn()
            self._drop_old(far)
            if far.failures and not far.is_listed:
                far.close()
                self._far.pop(far.name, None)
            elif monotonic() >= far.again_at:
                self._fill_soon(far)
        _sleep(TEND_SECONDS)

    def _drop_old(self, far: Far) -> None:
        now = monotonic()
        for link in [link for link in far.kept if _is_over(link)]:
            far.kept.remove(link)
            link.close()
        if now > far.renew_at and far.kept:
            far.renew_at = now + RENEW_SECONDS / len(far.kept) * random.uniform(*SPREAD)
            far.kept.pop(0).close()
            if now - far.used_at > RENEW_SECONDS:
                far.more //= 2

    def _wanted(self, far: Far) -> int:
        least = 0 if far.is_listed else 1  # a call tells whether it lives
        return max(min(FIRST, KEPT // (len(self._far) or 1)), far.more, least)

    def _grow(self, far: Far) -> None:
        """Too few were kept."""
        if sum(len(each.kept) for each in self._far.values()) < 2 * KEPT:
            far.more = min(MOST, 2 * max(1, self._wanted(far)))

    def _needs_call(self, far: Far) -> bool:
        """Whether half of the links are gone: to open several at a time costs less for each."""
        return far.is_silent or 0 < self._wanted(far) >= 2 * len(far.kept)

    def _fill_soon(self, far: Far) -> None:
        if not far.is_filling and self._needs_call(far):
            far.is_filling = True
            self._greenlets.spawn(self._fill, far)

    def _fill(self, far: Far) -> None:
        try:
            gevent.sleep(FILL_SECONDS)
            if far.is_silent or far.seconds == math.inf:
                self._open(far)  # one first: it may be in vain, and gives the others a session
            elif monotonic() - far.filled_at < QUICK_SECONDS:
                self._grow(far)
            missing = 0 if far.is_silent else self._wanted(far) - len(far.kept)
            gevent.joinall([self._greenlets.spawn(self._open, far) for _ in range(missing)])
            far.filled_at = monotonic()
        finally:
            far.is_filling = False

    def _open(self, far: Far) -> None:
        """One more link is kept, if it can be opened."""
        try:
            with self._calls:
                if far.name in self._far:
                    self.keep(self._call(far))
        except OSError as error:
            log.debug('%s: %s', far.name, error)

    def _call(self, far: Far) -> Link:
        """A new link to it. Raises OSError."""
        contexts = self._membership.contexts
        if not contexts:
            raise ConnectionError('the secret of the nodes is not known yet')
        of, session = far.session or (None, None)
        try:
            with gevent.Timeout(CALL_SECONDS, TimeoutError('no answer')):
                link, seconds = call(
                    contexts, far.host, far.port, session if of is contexts else None
                )
            self._links.add(link)
            if link.worker != far.name:  # it has taken the place of that one
                self.keep(link)
                raise ConnectionError(f'worker {link.worker} answers in place of {far.name}')
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                self._doubt.set()
            far.failed()
            if far.failures == LOST and far.is_listed:
                log.warning(
                    'worker %s of node %s, port %d, is not reached: %s; hidden servers there are '
                    'not found by mobile clients here',
                    *(far.name, far.host, far.port, error),
                )
            raise
        if far.failures >= LOST:
            log.info('worker %s of node %s, port %d, is reached', far.name, far.host, far.port)
        far.answered(seconds)
        if not link.tls.session_reused and (session := link.tls.session) and session.has_ticket:
            far.session = contexts, session  # for many links: to read it costs a copy
        if far.renew_at == math.inf:
            far.renew_at = monotonic() + RENEW_SECONDS * random.uniform(*SPREAD)
        return link


def _about(text: Any) -> Json:
    """What a worker says of itself; nothing where that makes no sense."""
    return (entry_json.read(text) if isinstance(text, str) else None) or {}


def _is_over(link: Link) -> bool:
    """Whether a link without a question has ended: there is nothing to read from one that lives."""
    return link.fileno() < 0 or has_spoken(link)


def _sleep(seconds: float) -> None:
    gevent.sleep(seconds * random.uniform(*SPREAD))
