"""The entries in memory, for the page: what is published tells which ones have changed.

A scan now and then finds those that another program wrote without a word. It is due when 100 times
as long has passed as the last one took: in the same second for a hundred entries, and after half a
minute at most.
"""

import heapq
import math
import time
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, NamedTuple

import gevent
from gevent.event import Event

from rendezvous.store import entry_json, names, state
from rendezvous.store.entries import Entries, StoreDown, slices
from rendezvous.store.entry_json import Json
from rendezvous.store.options import Options
from rendezvous.wire import codes

SCAN_SHARE = 1 / 100  # of the time, at most, is spent on scans
SCAN_SECONDS = 30  # the longest time between two scans
PATIENCE_SECONDS = 0.05  # a scan that takes longer is for those who ask next
REST_SECONDS = 60  # without a question; then we do not listen for changes any more
SUBSCRIBE_SECONDS = 2  # the first question waits so long until we are told of changes
MOST_CHANGED = 1000  # entries that are read one by one; to scan is cheaper
PART = 500  # entries that are sorted without a pause, some 2 ms


class Row(NamedTuple):
    """An entry, and what is known of its hidden server."""

    uuid: str
    labels: list[str]
    note: str
    created: float | None  # in seconds since 1970
    disabled: float | None  # since when; 1: nobody knows
    name: str  # its host name; '' where it has none but its UUID
    key: Any  # sorts it by label
    words: tuple[str, str]  # label and note as a search compares them
    known: state.Known = state.Known()

    def with_known(self, known: state.Known) -> 'Row':
        """With another state of its hidden server."""
        return self._replace(known=known.disabled(self.disabled))


class Book:
    """Reads an entry again only where it may have changed, and nothing while nobody asks."""

    def __init__(self, entries: Entries, options: Options):
        self._entries, self._has_names = entries, bool(options.names_domain)
        self.rows: dict[str, Row] = {}
        self._sorted: list[str] | None = None  # the UUIDs by label; None: they may have changed
        self._changed: set[str] = set()  # are to be read again
        self._changed_since: set[str] = set()  # the same, since the last scan began
        self._missed = True  # changes: a scan finds them
        self._scan: gevent.Greenlet | None = None
        self._scan_at = self._asked_at = -math.inf
        self._follower: gevent.Greenlet | None = None

    def note(self, uuid: str) -> None:
        """That entry may have changed; '' is any."""
        if codes.UUID.fullmatch(uuid) and uuid == uuid.lower():
            self._changed.add(uuid)
            self._changed_since.add(uuid)
        if not uuid or len(self._changed) > MOST_CHANGED:
            self._missed, self._changed, self._changed_since = True, set(), set()

    def read(self) -> set[str]:
        """Brings `rows` up to date. Returns the UUIDs of those that are new. Raises StoreDown.

        It is for one greenlet at a time.
        """
        self._asked_at = time.monotonic()
        if self._follower is None:
            self._listen()
        cannot_do_without = self._missed or not self.rows
        if self._scan is None and (self._missed or self._asked_at > self._scan_at):
            self._missed, self._changed_since = False, set()
            self._scan = gevent.spawn(self._all)
        if self._scan:  # it has not ended
            self._scan.join(None if cannot_do_without else PATIENCE_SECONDS)
        return self._take_scan() | self._read_changed()

    def close(self) -> None:
        """Does not follow the changes any more."""
        if self._follower is not None:
            self._follower.kill()

    def ordered(self) -> list[Row]:
        """The rows by label."""
        if self._sorted is None:
            self._sorted = [row.uuid for row in in_order(self.rows.values(), attrgetter('key'))]
        return [self.rows[uuid] for uuid in self._sorted]

    def _all(self) -> dict[str, Row] | StoreDown:
        """All entries, as they are at some moment of the scan."""
        began = time.monotonic()
        try:
            known = names.known(self._entries) if self._has_names else {}
            name_of = {uuid: name for name, uuid in known.items()}
            found = {
                each['uuid']: _row(each, name_of.get(each['uuid'], ''))
                for some in slices(self._entries.uuids())
                for each in self._entries.some(some)
            }
        except StoreDown as error:
            return error
        took = time.monotonic() - began
        self._scan_at = began + min(took / SCAN_SHARE, SCAN_SECONDS)
        return found

    def _take_scan(self) -> set[str]:
        """Takes over what a scan has found."""
        if self._scan is None or not self._scan.ready():
            return set()
        found, self._scan = self._scan.get(), None
        if isinstance(found, StoreDown):
            self._missed = True
            raise found
        self._sorted, self.rows = None, found
        self._changed |= self._changed_since  # the scan may have read them before they changed
        return {*found}

    def _read_changed(self) -> set[str]:
        changed, self._changed = self._changed, set()
        try:
            found = {each['uuid']: each for each in self._entries.some(changed)}
            for uuid in changed:
                self.rows.pop(uuid, None)
                if shown := found.get(uuid):
                    name = names.of(self._entries, uuid) if self._has_names else ''
                    self.rows[uuid] = _row(shown, name)
        except BaseException:
            self._changed |= changed
            raise
        finally:
            self._sorted = None if changed else self._sorted
        return changed & self.rows.keys()

    def _listen(self) -> None:
        """Begins to follow the changes, and ends that again where nobody asks any more."""
        listens = Event()
        self._follower = gevent.spawn(self._follow, listens)
        gevent.spawn(self._rest, self._follower)
        listens.wait(SUBSCRIBE_SECONDS)

    def _follow(self, listens: Event) -> None:
        try:
            for _, uuid in self._entries.changes():
                self.note(uuid)
                listens.set()
        except StoreDown:
            pass  # who asks next is told so
        finally:
            self._follower, self._missed = None, True
            listens.set()

    def _rest(self, follower: gevent.Greenlet) -> None:
        while follower and (left := self._asked_at + REST_SECONDS - time.monotonic()) > 0:
            follower.join(left)
        follower.kill()


def in_order(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[Row]:
    """The rows, sorted. To sort 10,000 at once would keep others waiting."""
    parts = [sorted(some, key=key) for some in slices(rows, PART)]
    merged = heapq.merge(*parts, key=key)
    return [row for some in slices(merged) for row in some]


def _row(shown: Json, name: str) -> Row:
    """From what `Entries.some` gives of an entry."""
    uuid, labels, note = shown['uuid'], shown['labels'], shown['note']
    words = ', '.join(labels).casefold(), note.casefold()
    key = entry_json.sort_key(shown), uuid
    return Row(uuid, labels, note, shown['created'], shown['disabled'], name, key, words)
