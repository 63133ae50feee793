"""What the page asks the workers themselves, over Redis, and nothing is written for it."""

from typing import NamedTuple

from rendezvous.store.entries import Entries
from rendezvous.store.state import Server


class OpenPipe(NamedTuple):
    """A rendezvous that is not over. Times are in seconds since 1970."""

    worker: str  # the name of the one that has it
    id: str  # among its pipes
    address: str  # of the mobile client
    at: float  # its start
    sent: int  # octets from the mobile client, so far
    received: int  # octets from the hidden server, so far


def open_pipes(entries: Entries, of: Server, uuid: str) -> list[OpenPipe]:
    """The open pipes of a hidden server, the oldest first. Raises StoreDown.

    A worker that does not answer within half a second is left out.
    """
    return []


def end_pipe(entries: Entries, worker: str, pipe: str) -> bool:
    """Ends a pipe; False: it is over already. Raises StoreDown."""
    return False
