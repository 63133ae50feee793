"""What all open tabs see of the entries and of the server: one look at Redis a second for all."""

from typing import NamedTuple

from rendezvous.store import state
from rendezvous.store.entries import Entries
from rendezvous.store.options import Options


class Row(NamedTuple):
    """An entry, and what is known of its hidden server."""

    uuid: str
    labels: list[str]
    note: str
    created: float | None  # in seconds since 1970, as is the next
    disabled: float | None  # None: it is not
    name: str  # its host name; '' where it has none but its UUID
    known: state.Known


class Look(NamedTuple):
    """How it was at one moment."""

    at: float  # in seconds since 1970
    server: state.Server
    rows: list[Row]  # sorted by label, as people do
    counts: dict[str, int]  # by state


class Looks:
    """Reads for all tabs together, and only while one asks."""

    def __init__(self, entries: Entries, options: Options):
        self._entries, self._options = entries, options

    def current(self) -> Look:
        """As it is now, or was at most a second ago. Raises StoreDown."""
        raise NotImplementedError

    def server(self) -> state.Server:
        """The same of the workers alone, which costs one question. Raises StoreDown."""
        return state.server(self._entries)

    def changed(self, *uuids: str) -> None:
        """The next look sees what was done to these entries."""
