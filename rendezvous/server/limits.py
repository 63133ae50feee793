"""How much room there is: connections in all and for an address, and absent UUIDs to ask for."""

import logging
import math
import time
from collections.abc import Callable

from rendezvous.server.accepted import Connection
from rendezvous.server.listening import HEADERLESS
from rendezvous.server.shares import Shares
from rendezvous.wire.addresses import network
from rendezvous.wire.http_head import Refusal
from rendezvous.wire.sockets import Ended

log = logging.getLogger('limits')

FULL_SECONDS = 30  # after which a client may try again
VISIT_SECONDS = 5  # the same, where one address has too many pipes
MINUTE = 60
SLOW_SECONDS = 1  # for each answer, once there were too many
REFUSED_AT = 2  # times as many: no answer but 429
MAX_ADDRESSES = 10_000  # whose questions are remembered; a botnet has more, and its own limits


class Evicted(Ended):
    """Raised in the greenlet of a connection whose place another one needs: close at once."""


class ConnectionLimits:
    """The places of a worker for connections.

    A stranger is a connection that has not said yet who it is; a leaver has had its answer: its
    pipe drains, or it is read off before it is closed. Where all places are taken the leaver that
    has been one for the longest is evicted, or the stranger that has been here for the longest: an
    honest client needs a moment, an attacker stays. Hidden servers may take three quarters of the
    places, and pipes as many: neither the registrations that wait nor the mobile clients can shut
    out the others. The limits for one address hold for all workers together.
    """

    def __init__(self, places: int, per_address: int, visits_per_address: int, shares: Shares):
        self.places, self._per_address = places, per_address
        self._visits_per_address, self._shares = visits_per_address, shares
        self._most = {'hidden server': places * 3 // 4, 'mobile client': places * 3 // 8}
        self._headerless: dict[Connection, None] = {}  # the oldest first
        self._strangers: dict[Connection, None] = {}  # the oldest first
        self._leavers: dict[Connection, None] = {}  # the first first
        self.taken = 0
        self._of_kind = dict.fromkeys(self._most, 0)
        self._warn = ThrottledWarning()

    def await_header(self, connection: Connection) -> None:
        """Its PROXY header has not come: its address is not known, and nobody loses a place for it.

        Proxies send the header at once: where many have not, the oldest of them is evicted.
        """
        if len(self._headerless) >= HEADERLESS:
            self._warn('%d connections have sent no PROXY header: the oldest is closed', HEADERLESS)
            _evict_oldest(self._headerless)
        self._headerless[connection] = None

    def admit(self, connection: Connection) -> None:
        """Takes a place, until it is released. Raises Evicted where there is none."""
        self._headerless.pop(connection, None)
        address = network(connection.peer.host)
        place = self._shares.place(address)
        if self._per_address and self._shares.count(place) >= self._per_address:
            if not self._evict_leaver(lambda leaver: leaver.address == place):
                self._warn('%s has max_connections_per_address and gets no more', address)
                raise Evicted
        elif self.taken >= self.places:
            self._warn('max_connections is reached: a new one takes the place of an old one')
            if not _evict_oldest(self._leavers, self._strangers):
                raise Evicted
        connection.has_place, connection.address = True, place
        self.taken += 1
        self._shares.add(place, 1)
        self._shares.add_connection(1)
        self._strangers[connection] = None

    def release(self, connection: Connection) -> None:
        """Gives the place back, if it has one."""
        self.mark_leaving(connection)
        self._headerless.pop(connection, None)
        self._leavers.pop(connection, None)
        if connection.has_place:
            connection.has_place = False
            self.taken -= 1
            self._shares.add_connection(-1)
            self.mark_visited(connection)
        if connection.kind:
            self._of_kind[connection.kind] -= 1
            connection.kind = ''

    def mark_leaving(self, connection: Connection) -> None:
        """It is a leaver from now on."""
        if connection.visit:
            self._shares.add(connection.visit, -1)
            connection.visit = 0
        self._strangers.pop(connection, None)
        if connection.has_place:
            self._leavers[connection] = None

    def begin_visit(self, connection: Connection, uuid: str) -> None:
        """A mobile client asks for this hidden server. Raises Refusal: it has too many pipes."""
        visit = self._shares.place(f'{network(connection.peer.host)} {uuid}')
        if self._visits_per_address and self._shares.count(visit) >= self._visits_per_address:
            sentence = 'this address has max_pipes_per_address to this hidden server'
            raise Refusal(429, sentence, f'Retry-After: {VISIT_SECONDS}')
        connection.visit = visit
        self._shares.add(visit, 1)

    def mark_visited(self, connection: Connection) -> None:
        """A hidden server has a visitor: its own address has this place free again."""
        if connection.address:
            self._shares.add(connection.address, -1)
            connection.address = 0

    def evict(self) -> None:
        """Ends one whose descriptor is needed, if any is neither a registration nor in a pipe."""
        _evict_oldest(self._headerless, self._leavers, self._strangers)

    def identify(self, connection: Connection, kind: str) -> None:
        """It is one of this kind, no stranger any more. Raises Refusal where they are too many."""
        if connection.kind:
            return
        if connection not in self._strangers:
            raise Evicted  # just now: it has not been told yet
        is_full = self._of_kind[kind] >= self._most[kind]
        if is_full and not self._evict_leaver(lambda leaver: leaver.kind == kind):
            self._warn('no room for one more %s: max_connections is too low', kind)
            raise Refusal(503, 'the server is full', f'Retry-After: {FULL_SECONDS}')
        del self._strangers[connection]
        connection.kind = kind
        self._of_kind[kind] += 1

    def _evict_leaver(self, is_meant: Callable[[Connection], bool]) -> bool:
        for leaver in self._leavers:
            if is_meant(leaver):
                return _evict(leaver, self._leavers)
        return False


def _evict_oldest(*kinds: dict[Connection, None]) -> bool:
    """Of the first kind of which there is one; False where there is none."""
    for connections in kinds:
        for connection in connections:
            return _evict(connection, connections)
    return False


def _evict(connection: Connection, connections: dict[Connection, None]) -> bool:
    del connections[connection]
    connection.interrupt(Evicted)
    return True


class UnknownUuids:
    """The UUIDs that an address asked for within a minute and that are not here.

    Whether there is an entry makes no difference: nobody learns that here. An address that asks for
    too many of them is a prober: it is slowed, and then refused, whatever it asks for.
    """

    def __init__(self, per_minute: int):
        self._most = per_minute
        self._asked: dict[str, dict[str, float]] = {}  # time.monotonic(), the oldest first

    def check(self, address: str) -> None:
        """Raises Refusal where the address has asked for far too many."""
        asked = self._asked_lately(address)
        if self._most and len(asked) >= REFUSED_AT * self._most:
            wait = math.ceil(next(iter(asked.values())) + MINUTE - time.monotonic())
            raise Refusal(429, 'too many unknown UUIDs', f'Retry-After: {max(1, wait)}')

    def note(self, address: str, uuid: str) -> float:
        """It asked for one that is not here; seconds to wait with the answer."""
        if not self._most:
            return 0
        asked = self._asked_lately(address)
        asked.pop(uuid, None)
        asked[uuid] = time.monotonic()
        self._asked[network(address)] = asked
        if len(self._asked) > MAX_ADDRESSES:
            del self._asked[next(iter(self._asked))]
        return SLOW_SECONDS if len(asked) > self._most else 0

    def _asked_lately(self, address: str) -> dict[str, float]:
        asked = self._asked.pop(network(address), {})
        while asked and time.monotonic() - next(iter(asked.values())) > MINUTE:
            del asked[next(iter(asked))]
        if asked:
            self._asked[network(address)] = asked  # the last one now
        return asked


class ThrottledWarning:
    """A warning for what may happen a thousand times a second: said once in so many at the most."""

    def __init__(self, seconds: float = 1):
        self._seconds, self._count, self._said_at = seconds, 0, -math.inf

    def __call__(self, message: str, *args) -> None:
        self._count += 1
        if time.monotonic() - self._said_at >= self._seconds:
            often = 'once' if self._count == 1 else f'{self._count} times'
            log.warning(f'{message} (%s)', *args, often)
            self._count, self._said_at = 0, time.monotonic()
