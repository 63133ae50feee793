"""Who waits for whom: hidden servers' registrations, and mobile clients for the next one.

For one UUID either registrations wait or mobile clients do, never both, but for registrations that
have ended and have not noticed it yet. A registration that was claimed is handed over: it waits no
more and is in no pipe yet. No method but `claim` yields, and that one only while it waits: between
two yields nothing here is half done.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import gevent
from gevent.event import AsyncResult

from rendezvous.server.accepted import Connection
from rendezvous.store.entries import slices
from rendezvous.wire.http_head import Refusal
from rendezvous.wire.pipe import End, Pipe
from rendezvous.wire.sockets import Descriptor, Ended, hang_up_of, has_shut, has_spoken

AGAIN_SECONDS = 1  # between two rounds of questions to others, while a mobile client waits
RECENT_SECONDS = 60  # a hidden server that was here so lately is thought to come back
LOOKED_AT = 100  # registrations, to find another process that has the same entry
MAX_MOBILE_CLIENTS = 100  # may wait for one UUID; a browser opens six connections at once
# After a 200: an old hidden server loses a request that comes in the same read.
HAND_OVER_SECONDS = 0.05


class Held(End):
    """A hidden server's end that can be claimed: a registration here, or with another worker."""

    uuid = ''
    where = ''  # for the log: with which other worker
    is_far = False  # on another node
    is_new = True  # of a hidden server that loses nothing that comes close behind its 200

    def is_good(self) -> bool:
        """Whether it still waits: it has neither ended nor sent octets that nobody has read."""
        return not has_spoken(self.sock)


class Registration(Held):
    """One authenticated, waiting connection of a hidden server."""

    def __init__(self, uuid: str, stamp: int, connection: Connection):
        super().__init__(connection.sock)
        self.greenlet = None  # the connection knows it
        self.connection, self.uuid = connection, uuid
        self.stamp = stamp  # of the entry as it was when it authenticated
        self.pipe: Pipe | None = None  # set at the rendezvous
        self.over = False
        self.instance = ''  # the name of the process that registered, where it told
        self.wants_line = False  # of the PROXY protocol, before the octets of its visitor

    @property
    def is_new(self) -> bool:  # type: ignore[override]
        return bool(self.instance)

    def is_good(self) -> bool:
        return not self.over and super().is_good()

    def is_mine(self) -> bool:
        return self.connection.is_mine()

    def interrupt(self) -> None:
        self.connection.interrupt()


class Others:
    """Asks other workers for a registration, on behalf of a mobile client: here there are none."""

    def ask(self) -> None:
        """Asks those that have no question of it yet; an answer is put into its AsyncResult."""

    def is_expected(self) -> bool:
        """Whether one of them has the hidden server or expects it."""
        return False

    def end(self) -> None:
        """Takes the questions back."""


AskOthers = Callable[[str, AsyncResult], Others]


def _no_others(uuid: str, result: AsyncResult) -> Others:
    return Others()


class Registry:
    """The registrations that wait, by UUID, and the mobile clients that wait for one."""

    def __init__(self, max_waiting: int):
        self._max_waiting, self._since = max_waiting, time.monotonic()
        # The oldest first. Dicts: thousands may wait for one UUID, and any of them may leave.
        self._registrations: dict[str, dict[Registration, None]] = {}
        self._mobile_clients: dict[str, deque[AsyncResult]] = {}  # first come first
        self._handed: dict[str, set[Registration]] = {}
        self._pipes: dict[str, set[Registration]] = {}
        self._last_here: dict[str, float] = {}  # time.monotonic() of the last sign, oldest first

    def count(self, uuid: str) -> int:
        return len(self._registrations.get(uuid, ()))

    def other(self, registration: Registration) -> str:
        """Where another process of the same UUID waits; '' where none does that told its name."""
        mine = registration.instance
        newest = islice(reversed(self._registrations.get(registration.uuid, {})), LOOKED_AT)
        others = (each.connection.peer.host for each in newest if each.instance not in ('', mine))
        return next(others, '') if mine else ''

    def twins(self) -> Iterator[tuple[str, str, str]]:
        """Of each UUID for which two processes wait: the UUID, and where they are.

        It yields now and then: what has come or gone meanwhile may be missed.
        """
        for some in slices(list(self._registrations)):
            for uuid in some:
                newest = next(reversed(self._registrations.get(uuid, {})), None)
                if newest and (other := self.other(newest)):
                    yield uuid, *sorted([newest.connection.peer.host, other])

    def counts(self) -> dict[str, tuple[int, int]]:
        """By UUID, the registrations that wait and the pipes."""
        uuids = self._registrations.keys() | self._pipes.keys()
        return {uuid: (self.count(uuid), len(self._pipes.get(uuid, ()))) for uuid in uuids}

    def totals(self) -> tuple[int, int]:
        """All registrations that wait, and all pipes."""
        kinds = self._registrations, self._pipes
        waiting, pipes = (sum(map(len, kind.values())) for kind in kinds)
        return waiting, pipes

    def wanted(self) -> dict[str, int]:
        """By UUID, the mobile clients that wait."""
        return {uuid: len(waiting) for uuid, waiting in self._mobile_clients.items()}

    def all(self, uuid: str) -> list[Registration]:
        """Those that wait, those that are handed over and those in a pipe."""
        kinds = self._registrations, self._handed, self._pipes
        return [each for kind in kinds for each in kind.get(uuid, ())]

    def waiting(self) -> list[Registration]:
        return [each for some in self._registrations.values() for each in some]

    def oldest(self, uuid: str) -> Registration | None:
        """Of those that wait."""
        return next(iter(self._registrations.get(uuid, ())), None)

    def add(self, registration: Registration) -> Registration | None:
        """Lets it wait, or hands it to the first that waits for it; answers with one it evicts."""
        self.unclaim(registration)
        registrations = self._registrations.get(registration.uuid, {})
        if len(registrations) <= self._max_waiting:
            return None
        oldest = next(iter(registrations))
        del registrations[oldest]
        return oldest

    def unclaim(self, held: Held) -> None:
        """It was claimed in vain: it waits on, or the next that waits for it has it."""
        if not isinstance(held, Registration):
            held.sock.close()  # the other worker notices
            return
        self._take_from_handed(held)
        if held.over:
            return
        if (result := self._next(held.uuid)) is not None:
            result.set(held)
            self._hand_over(held)
        else:
            self._registrations.setdefault(held.uuid, {})[held] = None

    def remove(self, registration: Registration) -> None:
        """Forgets it, and only it, for good."""
        registration.over = True
        self._take_from_handed(registration)
        self._note_here(registration.uuid)
        if registration in self._registrations.get(registration.uuid, ()):
            del self._registrations[registration.uuid][registration]
            self._drop_empty(registration.uuid)

    def end(self, registration: Registration) -> None:
        """Ends one that is in no pipe. Its greenlet runs later: until then nobody may claim it."""
        self.remove(registration)
        registration.interrupt()

    def claim(
        self, uuid: str, seconds: float, sock: Descriptor, ask_others: AskOthers = _no_others
    ) -> Held:
        """The newest registration: an old one is likelier to be a dead NAT mapping.

        None waits but one did a moment ago, here or with those that `ask_others` asks: waits for
        the next one, up to `seconds`, first come first served; a mobile client that hangs up on
        `sock`, or shuts its sending side, gets none. Raises Refusal where none is to be had.
        """
        deadline, first = time.monotonic() + seconds, False
        while True:
            registrations = self._registrations.get(uuid, {})
            newest = next((each for each in reversed(registrations) if each.is_good()), None)
            if newest:
                del registrations[newest]
                self._hand_over(newest)
                return newest
            held = self._wait(uuid, deadline - time.monotonic(), first, sock, ask_others)
            if has_shut(sock):
                self.unclaim(held)
                raise _absent()
            if held.is_good():
                return held
            self.unclaim(held)
            first = True  # it hung up before we woke: it is still our turn

    def pipe_began(self, registration: Registration) -> None:
        self._pipes.setdefault(registration.uuid, set()).add(registration)
        self._take_from_handed(registration)

    def pipe_ended(self, registration: Registration) -> None:
        self._note_here(registration.uuid)
        self._pipes[registration.uuid].remove(registration)
        self._drop_empty(registration.uuid)

    def expects(self, uuid: str) -> bool:
        """Whether the hidden server was here a moment ago, or may have been: a worker that began
        only now does not know.
        """
        if uuid in self._pipes or uuid in self._registrations:
            return True
        return time.monotonic() - self._last_here.get(uuid, self._since) < RECENT_SECONDS

    def _note_here(self, uuid: str) -> None:
        now = time.monotonic()
        self._last_here.pop(uuid, None)
        self._last_here[uuid] = now
        while now - self._last_here[oldest := next(iter(self._last_here))] > RECENT_SECONDS:
            del self._last_here[oldest]

    def _wait(
        self, uuid: str, seconds: float, first: bool, sock: Descriptor, ask_others: AskOthers
    ) -> Held:
        """One that is handed over. Raises Refusal."""
        waiting = len(self._mobile_clients.get(uuid, ()))
        if waiting >= MAX_MOBILE_CLIENTS:
            raise _absent()
        mobile_clients, result = self._mobile_clients.setdefault(uuid, deque()), AsyncResult()
        mobile_clients.insert(0 if first else waiting, result)
        others = ask_others(uuid, result)
        try:
            with hang_up_of(sock, lambda: result.ready() or result.set_exception(_absent())):
                others.ask()
                if self.expects(uuid) or others.is_expected():
                    self._wait_for(result, seconds, others)
            if not result.ready():
                raise _absent()
            held = result.get(block=False)  # or it raises
            if not held.is_new:
                gevent.sleep(HAND_OVER_SECONDS)
            return held
        except Ended:  # the server stops, or the place is needed
            if result.successful():
                self.unclaim(result.value)
            raise Refusal(503, 'the server is stopping or full', 'Retry-After: 5') from None
        finally:
            others.end()
            if not result.ready():  # what a worker gives from now on stays with it
                result.set_exception(_absent())
            if result in mobile_clients:
                mobile_clients.remove(result)
                self._drop_empty(uuid)

    def _wait_for(self, result: AsyncResult, seconds: float, others: Others) -> None:
        deadline = time.monotonic() + seconds
        while not result.ready() and (left := deadline - time.monotonic()) > 0:
            result.wait(timeout=min(left, AGAIN_SECONDS))
            if not result.ready():
                others.ask()

    def _next(self, uuid: str) -> AsyncResult | None:
        """The first mobile client that waits, without those that have got another one just now."""
        waiting = self._mobile_clients.get(uuid, ())
        while waiting:
            result = waiting.popleft()
            if not result.ready():
                return result
        self._drop_empty(uuid)
        return None

    def _hand_over(self, registration: Registration) -> None:
        self._handed.setdefault(registration.uuid, set()).add(registration)
        self._drop_empty(registration.uuid)

    def _take_from_handed(self, registration: Registration) -> None:
        if handed := self._handed.get(registration.uuid):
            handed.discard(registration)
            self._drop_empty(registration.uuid)

    def _drop_empty(self, uuid: str) -> None:
        for kind in (self._registrations, self._mobile_clients, self._handed, self._pipes):
            if uuid in kind and not kind[uuid]:
                del kind[uuid]


def _absent() -> Refusal:
    return Refusal(503, 'the hidden server is not connected', 'Retry-After: 5')
