"""What the page of one entry shows, put together: its state and why, its week, its connections.

All of it is read with the same number of questions to Redis, however many other entries there are.
"""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from rendezvous.admin import nodes, pictures, visits, why, words
from rendezvous.admin.pictures import Span
from rendezvous.admin.words import Clock
from rendezvous.store import questions, state
from rendezvous.store.entries import Entries
from rendezvous.store.questions import OpenPipe, Told
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
NEW_SECONDS = 15 * words.MINUTE  # who sets it up looks at the page for so long


class Now(NamedTuple):
    """What is known of a hidden server at this moment, and why it is so."""

    known: Known
    clock: Clock
    advice: list[why.Advice]
    refusals: list[Refusals]  # of the last day, the newest first
    pipes: list[OpenPipe]
    silent: int = 0  # workers that did not tell theirs in time
    nodes: str = ''  # see nodes.where

    @property
    def reason(self) -> str:
        """Of the last refusal, as a clause: `it has to wait until 13:05`."""
        last = self.known.why
        own = (each for each in self.advice if last and each.kind == last.kind)
        if each := next(own, None):
            until = f' until {self.clock.at(each.until)}' if each.until else ''
            return f'{words.lowered(each.heading)}{until}'
        return words.lowered(why.brief(last)) if last else ''

    @property
    def is_kept_out(self) -> bool:
        """Whether what is wrong has to do with refusals: then they are listed with it."""
        return any(each.kind not in (OFFLINE, 'twins') for each in self.advice)

    @property
    def is_new(self) -> bool:
        """Whether it has come online for the first time just now."""
        first = self.known.first or self.clock.present()
        return self.known.state == ONLINE and self.clock.present() - first < NEW_SECONDS

    @property
    def is_seen(self) -> bool:
        """Whether it has registered at any time."""
        return self.known.first is not None or self.known.state == ONLINE

    @property
    def missing(self) -> int:
        """How many open pipes were not told. The count is a second old: where nobody was silent
        and nothing is cut, the rest is over.
        """
        more = max(0, self.known.pipes - len(self.pipes))
        return more if self.silent or self.is_cut else 0

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
        """When it was not online, or the server was down; the latest one may end in the future."""
        before = [span for span in self.spans if span.start < self.now]
        return [span for span in before if span.state not in (ONLINE, NEVER)]

    def hour(self, number: int) -> float:
        """When one of the hours begins, in seconds since 1970."""
        return (int(self.start // words.HOUR) + number) * words.HOUR

    @property
    def has_traffic(self) -> bool:
        return any(hour.up or hour.down for hour in self.hours)

    @property
    def is_lost(self) -> bool:
        """Whether there were times when the server was down."""
        return any(span.state == pictures.UNKNOWN for span in self.gaps)

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


def now(entries: Entries, server: Server, uuid: str, known: Known, clock: Clock, file: str) -> Now:
    """`file`: what the one for the hidden machine is called. Raises StoreDown."""
    found = state.refusals(entries, uuid)
    file = file if server.workers else ''  # else the server is the reason
    advice = why.advice(found, known, clock, entries.used_up(uuid), file)
    told = questions.told(entries, server, uuid) if known.pipes else Told([], 0)
    where = nodes.where(entries, server, uuid)
    return Now(known, clock, advice, list(filter(why.is_refusal, found)), *told, where)


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
