"""The page of one entry: its state and why, its week, its connections, its files and its secret.

It reads that entry alone, and asks Redis the same number of questions however many others there
are. `changes_page.py` does what its forms say.
"""

from functools import lru_cache
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import segno
from flask import Response, abort, g, render_template, request
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from rendezvous.admin import actions, certificate, pack, pictures, visits, why, words
from rendezvous.admin import entry_files as files
from rendezvous.admin.login import NO_REFERRER
from rendezvous.admin.words import Clock
from rendezvous.store import entry_json, names, questions, state
from rendezvous.store.entries import Entries
from rendezvous.store.options import Options
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
from rendezvous.wire import codes
from rendezvous.wire.programs import Mistake

QR_CHARACTERS = 36  # of a label: with more, the QR code is too fine for a screen
SHOWN_VISITS = 8  # lines on the page; the history has all
WEEK_DAYS = 7


class Looks(Protocol):
    """What all pages share."""

    def server(self) -> Server:
        """As it was within the last second. Raises StoreDown."""
        ...


class Now(NamedTuple):
    """What is known of a hidden server, and why it is so."""

    known: Known
    advice: list[why.Advice]
    refusals: list[Refusals]  # of the last day, the newest first
    pipes: list[OpenPipe]
    silent: int  # pipes of which no worker told
    reason: str  # of the last refusal that matters, in a few words
    left: float | None  # it was online until then, within the week


class Week(NamedTuple):
    """Seven days of the reader's zone; today is the last one, and has not ended."""

    start: float
    hours: list[Hour]  # of UTC, from `start` on; those to come are empty
    days: list[visits.Day]
    spans: list[pictures.Span]
    words: str

    @property
    def gaps(self) -> list[pictures.Span]:
        """When it was not online, or nothing is known."""
        return [span for span in self.spans if span.state not in (ONLINE, NEVER)]

    @property
    def states(self) -> list[str]:
        """Those that its bar shows."""
        found = {span.state for span in self.spans}
        return [each for each in (ONLINE, REFUSED, OFFLINE, DISABLED) if each in found]


class EntryPage:
    """Each public method answers one kind of request, all but `secret` by GET."""

    def __init__(self, entries: Entries, options: Options, looks: Looks):
        self._entries, self._options, self._looks = entries, options, looks

    def view(self, uuid: UUID, status: int = 200, error: str = '') -> ResponseReturnValue:
        """Everything about one entry, except its secret: /entries/UUID."""
        entry, server, clock = self._shown(uuid), self._looks.server(), _clock()
        present = clock.present()
        known = state.known_of(self._entries, server, entry['uuid'])
        if entry['disabled']:
            known = known.disabled(entry['since'])
        week_start = clock.midnight(present, 1 - WEEK_DAYS)
        start = min(clock.month(present), week_start)
        changes, hours = self._past(entry['uuid'], start, present)
        month = hours[int(clock.month(present) // words.HOUR) - int(start // words.HOUR) :]
        week = _week(changes, hours[int(week_start // words.HOUR) - int(start // words.HOUR) :],
                     server, clock)
        page = render_template(
            'entry.html',
            entry=entry | self._addresses(entry),
            now=self._now(entry['uuid'], known, server, changes, clock),
            server=server,
            week=week,
            month=visits.total(month),
            history=visits.grouped(state.history(self._entries, entry['uuid'])),
            error=error,
        )
        return page, status
