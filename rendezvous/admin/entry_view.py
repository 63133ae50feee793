"""What the page of one entry shows, put together: its state and why, its week, its connections.

All of it is read with the same number of questions to Redis, however many other entries there are.
"""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from rendezvous.admin import pictures, visits, why, words
from rendezvous.admin.pictures import Span
from rendezvous.admin.words import Clock
from rendezvous.store import questions, state
from rendezvous.store.entries import Entries
from rendezvous.store.questions import OpenPipe
from rendezvous.store.state import (
    DISABLED,
    NEVER,
    OFFLINE,
    ONLINE,
    REFUSED,
    Change,
    Hour,
    Known,
    Refusals,
    Server,
)

WEEK_DAYS = 7


class Now(NamedTuple):
    """What is known of a hidden server at this moment, and why it is so."""

    known: Known
    advice: list[why.Advice]
    refusals: list[Refusals]  # of the last day, the newest first
    pipes: list[OpenPipe]

    @property
    def is_seen(self) -> bool:
        """Whether it has registered at any time."""
        return self.known.first is not None or self.known.state == ONLINE

    @property
    def silent(self) -> int:
        """How many open pipes no worker told of in time."""
        return max(0, self.known.pipes - len(self.pipes))

    @property
    def is_cut(self) -> bool:
        """Whether a worker has more of them than it tells."""
        each = Counter(pipe.worker for pipe in self.pipes)
        return any(count >= questions.MOST for count in each.values())

    @property
    def clients(self) -> list[str]:
        """The addresses of those who use it, each once."""
        return list(dict.fromkeys(pipe.address for pipe in self.pipes))


class Week(NamedTuple):
    """Seven days of the reader's zone; today is the last one, and has not ended."""

    start: float  # seconds since 1970, as is the next
    now: float
    hours: list[Hour]  # of UTC, from `start` on; those to come are empty
    days: list[visits.Day]
    spans: list[Span]

    @property
    def gaps(self) -> list[Span]:
        """When it was not online, or nothing is known; the latest one may end in the future."""
        before = [span for span in self.spans if span.start < self.now]
        return [span for span in before if span.state not in (ONLINE, NEVER)]

    def hour(self, number: int) -> float:
        """When one of the hours begins, in seconds since 1970."""
        return (int(self.start // words.HOUR) + number) * words.HOUR

    @property
    def states(self) -> list[str]:
        """Those that its bar shows."""
        found = {span.state for span in self.spans}
        return [each for each in (ONLINE, REFUSED, OFFLINE, DISABLED) if each in found]


class Past(NamedTuple):
    """What was, as long as the page needs it."""

    start: float  # of the month or of the week, the earlier one
    changes: list[Change]
    hours: list[Hour]  # from that of `start` on

    def since(self, moment: float) -> list[Hour]:
        """The hours from that of a moment on."""
        return self.hours[int(moment // words.HOUR) - int(self.start // words.HOUR) :]

    @property
    def left(self) -> float | None:
        """When it was last online, where that is over."""
        ends = [after.at for before, after in pairwise(self.changes) if before.state == ONLINE]
        return ends[-1] if ends else None


def past(entries: Entries, uuid: str, known: Known, clock: Clock) -> Past:
    """Raises StoreDown."""
    present = clock.present()
    start = min(clock.month(present), clock.midnight(present, 1 - WEEK_DAYS))
    changes, hours = state.past(entries, [uuid], start, present)[uuid]
    return Past(start, pictures.with_present(changes, known), hours)


def now(entries: Entries, server: Server, uuid: str, known: Known, clock: Clock) -> Now:
    """Raises StoreDown."""
    refusals = state.refusals(entries, uuid)
    advice = why.advice(refusals, known, clock, entries.used_up(uuid))
    pipes = questions.open_pipes(entries, server, uuid) if known.pipes else []
    return Now(known, advice, refusals, pipes)


def week(of: Past, server: Server, clock: Clock) -> Week:
    present = clock.present()
    start, end = (clock.midnight(present, day) for day in (1 - WEEK_DAYS, 1))
    hours = of.since(start)
    hours += [Hour()] * (int(end // words.HOUR) - int(start // words.HOUR) - len(hours))
    until = present if server.down_since is None else server.down_since
    return Week(
        start,
        present,
        hours,
        visits.days(hours, start, clock, WEEK_DAYS),
        pictures.spans(of.changes, start, end, until, server.outages),
    )
