"""One entry as a whole, to be kept elsewhere and put back; a copy of the whole embedded store."""

from pathlib import Path

from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import Json


def whole(entries: Entries, uuid: str) -> Json | None:
    """Everything that is kept of an entry, its secret too; None: there is none.

    `uuid`, `entry` (as it is in Redis), `name` ('' is none), `state`, `changes`, `hours` and
    `rendezvous`, all of which JSON can hold. Raises StoreDown.
    """
    raise NotImplementedError


def put_back(entries: Entries, kept: Json) -> str | None:
    """Writes what `whole` gave, all of it or nothing; None: that UUID has an entry already.

    Else the UUID of another entry that has its name by now (it is put back without one), or ''.
    Raises StoreDown, and Mistake where `kept` is not what `whole` gives.
    """
    raise NotImplementedError


def backup(entries: Entries, path: Path) -> None:
    """Writes a copy of all that the embedded store holds into a file, 0600, while the store runs.

    To restore it: an empty `data/`, and the file in it as dump.rdb. Raises StoreDown, and Mistake
    where the entries are in another Redis, or the file cannot be written.
    """
    raise NotImplementedError
