"""Who was let in a moment ago, so that a hidden server that comes back costs Redis no question.

A hidden server registers again after each rendezvous, and `hidden.py` does so with a long code. A
right one passes all rations but the first, which is in memory; and its address is a friend already,
so there is nothing to write down. So for some seconds nobody has to be asked about it. For every
other code, right or wrong, Redis is asked.

Something is remembered only while we are told of changes, and each change empties the memory.
"""

import time
from typing import NamedTuple

from rendezvous.wire import codes

# In so long a change is seen, too, of which nobody told us: another program wrote the entry, or the
# connection to Redis was lost and nobody has noticed it yet.
REMEMBER_SECONDS = 10
MOST = 10_000  # hidden servers, some 5 MB

# Stands in for an entry that there is not: a wrong UUID costs the same work as a wrong code.
DECOY = {'authParams': {'base32': 'A' * 64, 'algorithm': 'sha1', 'step': 30}}


class _Entry(NamedTuple):
    """What is left of an entry that let somebody in."""

    until: float  # it is remembered, in seconds of time.monotonic()
    secret: codes.Secret
    stamp: int


_NOBODY = _Entry(0.0, codes.secret(DECOY['authParams']), 0)


class Admitted:
    """The entries by UUID and place: `addresses.network` of who was let in."""

    def __init__(self) -> None:
        self.changes = 0  # of entries that we were told of
        self._is_told = False
        self._entries: dict[tuple[str, str], _Entry] = {}  # the oldest first

    def forget(self, is_told: bool = True) -> None:
        """Any entry may be another one now. `is_told`: we are told of what changes from now on."""
        self.changes += 1
        self._is_told = is_told
        self._entries.clear()

    def note(self, uuid: str, place: str, entry: dict, changes: int) -> None:
        """It was let in. `changes`: what they were before Redis was asked for the entry."""
        if not self._is_told or changes != self.changes:
            return  # one that we were told of meanwhile may have been of this entry
        now = time.monotonic()
        self._entries.pop((uuid, place), None)
        self._entries[uuid, place] = _Entry(
            now + REMEMBER_SECONDS, codes.secret(entry['authParams']), stamp_of(entry)
        )
        oldest = next(iter(self._entries))
        while len(self._entries) > MOST or self._entries[oldest].until <= now:
            del self._entries[oldest]
            oldest = next(iter(self._entries))

    def stamp(self, uuid: str, place: str, code: str, now: float) -> int | None:
        """The stamp of the entry, where this long code of it is right at `now`, in seconds since
        1970; None where Redis is to be asked.
        """
        if len(code) <= codes.SHORT_DIGITS:
            return None
        entry = self._entries.get((uuid, place), _NOBODY)
        # Of nobody, too: the time that it takes does not tell who was here.
        right = codes.code_is_right(entry.secret, code, now)
        return entry.stamp if right and time.monotonic() < entry.until else None


def stamp_of(entry: dict | None) -> int:
    """Another one when the entry is deleted, disabled or re-keyed; the same with new labels.

    A few octets: each registration holds one.
    """
    return hash(repr(sorted((entry | {'labels': 0}).items())) if entry else None)
