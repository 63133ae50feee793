"""Who was let in a moment ago, so that a hidden server that comes back costs Redis no question.

A hidden server registers again after each rendezvous, and `hidden.py` does so with a long code,
which is the same for half a minute. A right one passes all rations but the first, which is in
memory; and its address is a friend already, so there is nothing to write down. So for some seconds
the same question gets the same answer. For every other code, right or wrong, Redis is asked.

Something is remembered only while we are told of changes, and each change empties the memory.
"""

import time
from typing import NamedTuple

from rendezvous.wire import codes

# In so long a change is seen, too, of which nobody told us: another program wrote the entry, or the
# connection to Redis was lost and nobody has noticed it yet.
REMEMBER_SECONDS = 10
MOST = 10_000  # questions, some 5 MB
_OF_NO_CONCERN = {'labels': 0, 'note': 0, 'saved': 0}  # what saving.py writes


class _Answer(NamedTuple):
    """Good for some seconds, and for the current step of the codes."""

    until: float  # in seconds of time.monotonic()
    step: float  # counted since 1970
    step_seconds: float
    stamp: int


class Admitted:
    """The answers by UUID, place (`addresses.network` of who was let in) and code."""

    def __init__(self) -> None:
        self.changes = 0  # of entries that we were told of
        self._is_told = False
        self._answers: dict[tuple[str, str, str], _Answer] = {}  # the oldest first

    def forget(self, is_told: bool = True) -> None:
        """Any entry may be another one now. `is_told`: we are told of what changes from now on."""
        self.changes += 1
        self._is_told = is_told
        self._answers.clear()

    def note(self, question: tuple[str, str, str], entry: dict, now: float, changes: int) -> None:
        """It was let in with a code that is right at `now`, in seconds since 1970.

        `changes`: what they were before Redis was asked.
        """
        is_short = len(question[2]) <= codes.SHORT_DIGITS
        if is_short or not self._is_told or changes != self.changes:
            return  # a change that we were told of meanwhile may have been of this entry
        seconds, monotonic = codes.totp(entry['authParams']).interval, time.monotonic()
        self._answers.pop(question, None)
        self._answers[question] = _Answer(
            monotonic + REMEMBER_SECONDS, now // seconds, seconds, stamp_of(entry)
        )
        oldest = next(iter(self._answers))
        while len(self._answers) > MOST or self._answers[oldest].until <= monotonic:
            del self._answers[oldest]
            oldest = next(iter(self._answers))

    def stamp(self, question: tuple[str, str, str], now: float) -> int | None:
        """The stamp of the entry; None where Redis is to be asked."""
        known = self._answers.get(question)
        if not known or time.monotonic() >= known.until or now // known.step_seconds != known.step:
            return None
        return known.stamp


def stamp_of(entry: dict | None) -> int:
    """Another one when the entry is deleted, disabled or re-keyed; not when it is saved with
    other labels, a note or a host name.

    A few octets: each registration holds one.
    """
    return hash(repr(sorted((entry | _OF_NO_CONCERN).items())) if entry else None)
