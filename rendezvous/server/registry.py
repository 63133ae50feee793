"""Who waits for whom: hidden servers' registrations, and mobile clients for the next one.

For one UUID either registrations wait or mobile clients do, never both, but for registrations that
have ended and have not noticed it yet. One that a mobile client has waited for is handed over: it
waits no more and is in no pipe yet. No method but `take` yields, and that one only while it waits:
between two yields nothing here is half done.
"""

import time
from collections import deque

import gevent
from gevent.event import AsyncResult

from rendezvous.wire.http_head import Refusal
from rendezvous.wire.pipe import End, Pipe
from rendezvous.wire.sockets import Ended, hang_up_of, has_shut, has_spoken

RECENT_SECONDS = 60  # a hidden server that was here so lately is thought to come back
MAX_MOBILE_CLIENTS = 100  # may wait for one UUID; a browser opens six connections at once
# After a 200: an old hidden server loses a request that comes in the same read.
HAND_OVER_SECONDS = 0.05


class Moved(Exception):
    """Raised where nothing waits any more: a new server has taken over."""


class Registration(End):
    """One authenticated, waiting connection of a hidden server."""

    def __init__(self, uuid: str, stamp: int, sock):
        super().__init__(sock)
        self.uuid, self.stamp = uuid, stamp  # of the entry as it was when it authenticated
        self.pipe: Pipe | None = None  # set at the rendezvous
        self.over = False
        self.instance, self.host = '', ''  # of the process that registered, where it told

    def is_good(self) -> bool:
        """Whether it waits still: one whose last octets or end nobody has read yet does not."""
        return not (self.over or has_spoken(self.sock))


class Registry:
    """The registrations that wait, by UUID, and the mobile clients that wait for one."""

    def __init__(self, max_waiting: int):
        self._max_waiting, self._since = max_waiting, time.monotonic()
        self.moved = False
        self._registrations: dict[str, list[Registration]] = {}  # oldest first
        self._mobile_clients: dict[str, deque[AsyncResult]] = {}  # first come first
        self._handed: dict[str, set[Registration]] = {}
        self._pipes: dict[str, set[Registration]] = {}
        self._seen: dict[str, float] = {}  # time.monotonic() of the last sign, oldest first

    def count(self, uuid: str) -> int:
        return len(self._registrations.get(uuid, ()))

    def other(self, registration: Registration) -> str:
        """Where another process of the same UUID waits; '' where none does that told its name."""
        mine = registration.instance
        waiting = self._registrations.get(registration.uuid, ())
        others = [each.host for each in waiting if each.instance not in ('', mine)]
        return others[-1] if mine and others else ''

    def counts(self) -> dict[str, tuple[int, int]]:
        """By UUID, the registrations that wait and the pipes."""
        uuids = self._registrations.keys() | self._pipes.keys()
        return {uuid: (self.count(uuid), len(self._pipes.get(uuid, ()))) for uuid in uuids}

    def all(self, uuid: str) -> list[Registration]:
        """Those that wait, those that are handed over and those in a pipe."""
        kinds = self._registrations, self._handed, self._pipes
        return [each for kind in kinds for each in kind.get(uuid, ())]

    def move(self) -> list[Registration]:
        """From now on nobody waits here any more; the registrations that did."""
        self.moved = True
        for result in [each for queue in self._mobile_clients.values() for each in queue]:
            result.set_exception(Moved())
        return [each for waiting in self._registrations.values() for each in waiting]

    def add(self, registration: Registration) -> Registration | None:
        """Lets it wait, or hands it to the first who waits for it; answers with one it evicts."""
        self.unclaim(registration)
        registrations = self._registrations.get(registration.uuid, ())
        return registrations.pop(0) if len(registrations) > self._max_waiting else None

    def unclaim(self, registration: Registration) -> None:
        """It was taken in vain: it waits on, or the next who waits for it has it."""
        uuid = registration.uuid
        self._hand_back(registration)
        if registration.over:
            return
        if uuid in self._mobile_clients:
            self._handed.setdefault(uuid, set()).add(registration)
            self._mobile_clients[uuid].popleft().set(registration)
            self._drop_empty(uuid)
        else:
            self._registrations.setdefault(uuid, []).append(registration)

    def remove(self, registration: Registration) -> None:
        """Forgets it, and only it, for good."""
        registration.over = True
        self._hand_back(registration)
        self._see(registration.uuid)
        if registration in self._registrations.get(registration.uuid, ()):
            self._registrations[registration.uuid].remove(registration)
            self._drop_empty(registration.uuid)

    def claim(self, uuid: str, seconds: float, sock) -> Registration:
        """The newest registration: an old one is likelier to be a dead NAT mapping.

        None waits but one did a moment ago: waits for the next one, up to `seconds`, first come
        first served; a mobile client that hangs up, or shuts its sending side, gets none. Raises
        Refusal where none is to be had, Moved where none will come any more.
        """
        deadline, first = time.monotonic() + seconds, False
        while True:
            if self.moved:
                raise Moved
            registrations = self._registrations.get(uuid, ())
            registration = next((each for each in reversed(registrations) if each.is_good()), None)
            if registration:
                registrations.remove(registration)
                self._drop_empty(uuid)
                return registration
            registration = self._wait(uuid, deadline - time.monotonic(), first, sock)
            if has_shut(sock):
                self.unclaim(registration)
                raise _absent()
            if registration.is_good():
                self._hand_back(registration)
                return registration
            self.unclaim(registration)
            first = True  # it hung up before we woke: it is our turn still

    def pipe_began(self, registration: Registration) -> None:
        self._pipes.setdefault(registration.uuid, set()).add(registration)

    def pipe_ended(self, registration: Registration) -> None:
        self._see(registration.uuid)
        self._pipes[registration.uuid].remove(registration)
        self._drop_empty(registration.uuid)

    def _recent(self, uuid: str) -> bool:
        """Of a server that began only now nobody knows who was here a moment ago: all may have."""
        if uuid in self._pipes or uuid in self._registrations:
            return True
        return time.monotonic() - self._seen.get(uuid, self._since) < RECENT_SECONDS

    def _see(self, uuid: str) -> None:
        now = time.monotonic()
        self._seen.pop(uuid, None)
        self._seen[uuid] = now
        while now - self._seen[oldest := next(iter(self._seen))] > RECENT_SECONDS:
            del self._seen[oldest]

    def _wait(self, uuid: str, seconds: float, first: bool, sock) -> Registration:
        """One that is handed over. Raises Refusal or Moved."""
        waiting = len(self._mobile_clients.get(uuid, ()))
        if not self._recent(uuid) or waiting >= MAX_MOBILE_CLIENTS:
            raise _absent()
        mobile_clients, result = self._mobile_clients.setdefault(uuid, deque()), AsyncResult()
        mobile_clients.insert(0 if first else waiting, result)
        try:
            with hang_up_of(sock, lambda: result.ready() or result.set_exception(_absent())):
                result.wait(timeout=max(0, seconds))
            if not result.ready():
                raise _absent()
            registration = result.get(block=False)  # or it raises
            if not registration.instance:  # those that tell it are not old
                gevent.sleep(HAND_OVER_SECONDS)
            return registration
        except Ended:  # the server stops, or the place is needed
            if result.successful():
                self.unclaim(result.value)
            raise Refusal(503, 'the server is stopping or full', 'Retry-After: 5') from None
        finally:
            if result in mobile_clients:
                mobile_clients.remove(result)
                self._drop_empty(uuid)

    def _hand_back(self, registration: Registration) -> None:
        self._handed.get(registration.uuid, set()).discard(registration)
        self._drop_empty(registration.uuid)

    def _drop_empty(self, uuid: str) -> None:
        for waiting in (self._registrations, self._mobile_clients, self._handed, self._pipes):
            if uuid in waiting and not waiting[uuid]:
                del waiting[uuid]


def _absent() -> Refusal:
    return Refusal(503, 'the hidden server is not here', 'Retry-After: 5')
