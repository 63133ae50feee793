"""What all open tabs see of the entries and of the server: one look at Redis a second for all.

What is known of the hidden servers is read each time, and parsed only where its text is another
one. While no tab asks, nothing is read. What takes long is done in slices: nobody else waits for
it.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from gevent.lock import Semaphore

from rendezvous.admin.book import Book, Row
from rendezvous.store import state
from rendezvous.store.entries import Entries, StoreDown, slices
from rendezvous.store.options import Options
from rendezvous.wire import sockets

LOOK_SECONDS = 1  # an open tab asks every two seconds
TODAY_SECONDS = 30  # to read the octets of 10,000 entries takes two tenths of a second
ZONES = 4  # in which readers have different midnights, whose octets are kept

T = TypeVar('T')
Past = dict[str, tuple[list[state.Change], list[state.Hour]]]  # by UUID


class Look(NamedTuple):
    """How it was at one moment."""

    server: state.Server
    rows: list[Row]  # sorted by label, as people do
    counts: dict[str, int]  # by state
    shared: frozenset[str] = frozenset()  # labels that several have, in small letters


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
            began = time.monotonic()
            if began - self._at >= self._seconds:
                self._at, self._error = began, None
                try:
                    self._value = self._make()
                except StoreDown as error:
                    self._error = error
                except BaseException:
                    self.expire()  # who asked has gone
                    raise
                if self._at == began:  # it has not expired meanwhile
                    self._at = time.monotonic()  # those who waited share it, however slow it was
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
        self._changed: set[str] = set()  # entries whose row and state are to be put together
        self._today: dict[float, Shared[dict[str, int]]] = {}
        self._pasts: dict[tuple[str, float], tuple[list[state.Change], list[state.Hour]]] = {}
        self._refusals: dict[str, tuple[list[state.Refusals], float | None]] = {}

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

    def close(self) -> None:
        """Ends what goes on behind: a question starts it again."""
        self._book.close()

    def past(self, uuids: list[str], start: float, end: float) -> Past:
        """What state.past gives of some entries, of the window that ends with the present look.

        Tabs that show the same entries read it once. Raises StoreDown.
        """
        pasts = self._pasts
        if missing := [uuid for uuid in uuids if (uuid, start) not in pasts]:
            found = state.past(self._entries, missing, start, end)
            pasts |= {(uuid, start): past for uuid, past in found.items()}
        return {uuid: pasts[uuid, start] for uuid in uuids}

    def refusals(self, uuids: list[str]) -> dict[str, tuple[list[state.Refusals], float | None]]:
        """What state.all_refusals gives of some entries, as of the present look; of those that have
        none, too. Raises StoreDown.
        """
        known = self._refusals
        if missing := [uuid for uuid in uuids if uuid not in known]:
            known |= dict.fromkeys(missing, ([], None))
            known |= state.all_refusals(self._entries, missing)
        return {uuid: known[uuid] for uuid in uuids}

    def today(self, midnight: float) -> dict[str, int]:
        """The octets of all hidden servers since then, up and down, half a minute old at most.

        Raises StoreDown.
        """
        if midnight not in self._today:
            while len(self._today) >= ZONES:
                del self._today[min(self._today)]
            self._today[midnight] = Shared(partial(self._octets, midnight), TODAY_SECONDS)
        return self._today[midnight].get()

    def _octets(self, midnight: float) -> dict[str, int]:
        seen = [row.uuid for row in self.current().rows if row.known.first is not None]
        found = state.octets_since(self._entries, seen, midnight)
        return {uuid: up + down for uuid, (up, down) in found.items()}

    def _take(self) -> Look:
        server, self._pasts, self._refusals = self.server(), {}, {}
        self._changed |= self._book.read()
        self._changed |= self._facts.read(server, self._book.rows)
        rows, known = self._book.rows, self._facts.known
        for some in slices(self._changed):
            for uuid in some:
                if row := rows.get(uuid):
                    rows[uuid] = row.with_known(known.get(uuid, state.Known()))
        self._changed = set()
        ordered = self._book.ordered()
        counts = Counter(row.known.state for row in ordered)
        labels = Counter(row.words[0] for some in slices(ordered) for row in some)
        shared = frozenset(label for label, count in labels.items() if count > 1)
        return Look(server, ordered, {each: counts[each] for each in state.STATES}, shared)


class Facts:
    """What is known of each hidden server, and the texts that said so."""

    def __init__(self, entries: Entries):
        self._entries = entries
        self.known: dict[str, state.Known] = {}  # by UUID
        # What it was made of: the record and the counts.
        self._texts: dict[str, tuple[str, tuple[int, int]]] = {}
        self._outages: object = None

    def read(self, of: state.Server, uuids: Iterable[str]) -> set[str]:
        """Brings `known` up to date. Returns the UUIDs for which it may have changed.

        Raises StoreDown.
        """
        records = state.records(self._entries, of, uuids)
        outages = of.down_since, of.outages
        if outages != self._outages:  # of which each state may be made
            self._outages, self._texts = outages, {}
        changed = self.known.keys() - records.keys()
        for uuid in changed:
            del self.known[uuid]
            self._texts.pop(uuid, None)
        for some in slices(records.items()):
            for uuid, told in some:
                if self._texts.get(uuid) != told or self._may_lapse(uuid):
                    self._texts[uuid] = told
                    self.known[uuid] = state.known_from(told[0], told[1], of)
                    changed.add(uuid)
        return changed

    def _may_lapse(self, uuid: str) -> bool:
        """Whether it is in a state that ends by itself."""
        known = self.known.get(uuid)
        has_left = known and known.state == state.ONLINE and not (known.waiting or known.pipes)
        return bool(has_left or (known and known.state == state.REFUSED))
