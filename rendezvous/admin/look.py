"""What all open tabs see of the entries and of the server: one look at Redis a second for all.

What is known of the hidden servers is read each time, and parsed only where its text is another
one. While no tab asks, nothing is read. What takes long is done in slices: nobody else waits for
it.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from gevent.lock import Semaphore
from redis import Redis

from rendezvous.admin.book import Book, Row
from rendezvous.store import state
from rendezvous.store.entries import Entries, StoreDown, fields_of, slices
from rendezvous.store.options import Options
from rendezvous.wire import sockets

LOOK_SECONDS = 1  # an open tab asks every two seconds
TODAY_SECONDS = 30  # to read the octets of 10,000 entries takes two tenths of a second

T = TypeVar('T')


class Look(NamedTuple):
    """How it was at one moment."""

    at: float  # in seconds since 1970
    server: state.Server
    rows: list[Row]  # sorted by label, as people do
    counts: dict[str, int]  # by state


class Shared(Generic[T]):
    """What is made once for all who ask within some time. An error is shared, too."""

    def __init__(self, make: Callable[[], T], seconds: float = LOOK_SECONDS):
        self._make, self._seconds, self._lock = make, seconds, Semaphore()
        self._at = -math.inf
        self._value: T
        self._error: StoreDown | None = None

    def get(self) -> T:
        """Raises StoreDown."""
        with self._lock:
            if time.monotonic() - self._at >= self._seconds:
                self._at, self._error = time.monotonic(), None
                try:
                    self._value = self._make()
                except StoreDown as error:
                    self._error = error
                except BaseException:
                    self.expire()  # who asked has gone
                    raise
        sockets.take_turn()  # each of those who share it makes its page in a turn of its own
        if self._error:
            raise self._error.with_traceback(None)
        return self._value

    def expire(self) -> None:
        """What is asked for from now on is new, although something is being made now."""
        self._at = -math.inf


class Looks:
    """Reads for all tabs together."""

    def __init__(self, entries: Entries, options: Options):
        self._entries, self._book, self._facts = entries, Book(entries, options), Facts(entries)
        self._server = Shared(lambda: state.server(entries))
        self._look = Shared(self._take)
        self._today: dict[float, Shared[dict[str, int]]] = {}
        self._pasts: dict[str, tuple[list[state.Change], list[state.Hour]]] = {}

    def current(self) -> Look:
        """As it is now, or was at most a second ago. Raises StoreDown."""
        return self._look.get()

    def server(self) -> state.Server:
        """The same of the workers alone, which costs a question or two. Raises StoreDown."""
        return self._server.get()

    def changed(self, uuids: Iterable[str]) -> None:
        """The next look sees what was done to these entries."""
        for uuid in uuids:
            self._book.note(uuid)
        self._look.expire()

    def _take(self) -> Look:
        at, server = time.time(), self.server()
        new, rows = self._book.read(), self._book.rows
        for some in slices(new | self._facts.read(server)):
            for uuid in some:
                if row := rows.get(uuid):
                    rows[uuid] = row.with_known(self._facts.known.get(uuid, state.Known()))
        ordered = self._book.ordered()
        counts = Counter(row.known.state for row in ordered)
        return Look(at, server, ordered, {each: counts[each] for each in state.STATES})


class Facts:
    """What is known of each hidden server, and the texts that said so."""

    def __init__(self, entries: Entries):
        self._entries = entries
        self.known: dict[str, state.Known] = {}  # by UUID
        self._texts: dict[str, tuple] = {}  # the record and the counts
        self._outages: object = None

    def read(self, of: state.Server) -> set[str]:
        """Brings `known` up to date. Returns the UUIDs for which it may have changed.

        Raises StoreDown.
        """
        counts = count_texts(self._entries, of)
        records = self._entries.ask(lambda redis: fields_of(redis, state.STATES_KEY))
        outages = of.down_since, of.outages
        texts = {} if outages != self._outages else self._texts
        changed, self._outages, self._texts = set(), outages, {}
        for some in slices(records.keys() | counts.keys()):
            for uuid in some:
                ...
        return changed
