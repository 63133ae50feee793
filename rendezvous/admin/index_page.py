"""The first page: the server as a whole, and a table of all entries, or of those that are wanted.

What is wanted is in the URL alone: a state, words to find, an order and a number of a page. Any
nonsense there means what would be without it.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from flask import render_template, request, url_for
from flask.typing import ResponseReturnValue
from markupsafe import Markup
from werkzeug.datastructures import MultiDict

from rendezvous.admin import pictures, reader, summary, visits, why
from rendezvous.admin.book import Row, in_order
from rendezvous.admin.look import Look, Looks
from rendezvous.admin.words import DAY, HOUR, MINUTE, Clock
from rendezvous.store.entries import Entries, slices
from rendezvous.store.options import Options
from rendezvous.store.state import (
    ALL,
    DISABLED,
    NEVER,
    OFFLINE,
    ONLINE,
    REFUSED,
    STATES,
    Hour,
    Server,
)

ROWS = 50  # of a page
WORDS = 200  # characters that can be searched for
WORST_FIRST = REFUSED, OFFLINE, NEVER, ONLINE, DISABLED
# How a column is sorted at first: by number, the most come first.
SORTS = {
    'name': 'name',
    'state': 'state',
    'open': '-open',
    'waiting': '-waiting',
    'today': '-today',
}


class Wanted(NamedTuple):
    """What the URL asks for."""

    state: str = ''  # one of STATES; '': any
    words: str = ''  # that are searched for
    sort: str = 'name'  # one of SORTS, with a - before it where the most come first
    page: int = 1

    @classmethod
    def of(cls, given: MultiDict[str, str]) -> 'Wanted':
        """From the query of a URL."""
        state, sort = given.get('state', '').replace('-', ' '), given.get('sort', '')
        return cls(
            state if state in STATES else '',
            given.get('q', '').strip()[:WORDS],
            sort if sort.removeprefix('-') in SORTS else 'name',
            max(given.get('page', 1, int), 1),
        )

    def url(self, **changed: Any) -> str:
        """That of the page with something else; the first page, unless another one is named."""
        new = self._replace(**{'page': 1} | changed)
        query: dict[str, Any] = {
            'state': new.state.replace(' ', '-') or None,
            'q': new.words or None,
            'sort': new.sort if new.sort != 'name' else None,
            'page': new.page if new.page > 1 else None,
        }
        return url_for('index', **query)

    def sort_url(self, column: str) -> str:
        """By that column; the other way round where it is sorted by it already."""
        turned = self.sort.removeprefix('-') if self.sort.startswith('-') else f'-{self.sort}'
        is_sorted = self.sort.removeprefix('-') == column
        return self.url(sort=turned if is_sorted else SORTS[column])

    def aria_sort(self, column: str) -> str:
        if self.sort.removeprefix('-') != column:
            return 'none'
        return 'descending' if self.sort.startswith('-') else 'ascending'


class Line(NamedTuple):
    """A row of the table."""

    row: Row
    why: str  # it is refused, or what is wrong although it is online, in a few words; '': nothing
    was_lost: bool  # it was online until the server went down
    bar: Markup
    today: Hour


class Index:
    """Answers GET /."""

    def __init__(self, entries: Entries, options: Options, looks: Looks):
        self._entries, self._options, self._looks = entries, options, looks

    def view(self, status: int = 200, error: str = '') -> ResponseReturnValue:
        look, clock, wanted = self._looks.current(), reader.clock(), Wanted.of(request.args)
        found = _found(look.rows, wanted.words) if wanted.words else look.rows
        counts = Counter(row.known.state for row in found) if wanted.words else look.counts
        if wanted.state:
            found = [row for row in found if row.known.state == wanted.state]
        rows = self._sorted(found, wanted, clock)
        last = max(1, -(-len(rows) // ROWS))
        wanted = wanted._replace(page=min(wanted.page, last))
        start = (wanted.page - 1) * ROWS
        lines, hours = self._lines(rows[start : start + ROWS], look.server, clock)
        page = render_template(
            'index.html',
            wanted=wanted,
            all=len(look.rows),
            found=sum(counts.values()),
            counts=counts,
            rows=len(rows),
            start=start,
            lines=lines,
            shared=look.shared,
            last=last,
            server=summary.of(self._options, look.server, hours, clock),
            title=_title(look),
            icon=_icon(look),
            missing=_missing(look),
            error=error,
            refresh=wanted.url(page=wanted.page),
        )
        return page, status

    def _sorted(self, rows: list[Row], wanted: Wanted, clock: Clock) -> list[Row]:
        """In the order that is wanted. `rows` are sorted by name, which decides between equals."""
        column = wanted.sort.removeprefix('-')
        if column == 'name':
            if wanted.sort != column:
                return rows[::-1]
            return in_order(rows, _hit(wanted.words)) if wanted.words else rows
        sign = -1 if wanted.sort.startswith('-') else 1
        number = self._number(column, clock)
        return in_order(rows, lambda row: sign * number(row))

    def _number(self, column: str, clock: Clock) -> Callable[[Row], float]:
        """By which a column is sorted."""
        if column == 'today':
            octets = self._looks.today(clock.midnight(clock.present()))
            return lambda row: octets.get(row.uuid, 0)
        return {
            'state': lambda row: WORST_FIRST.index(row.known.state),
            'open': lambda row: row.known.pipes,
            'waiting': lambda row: row.known.waiting,
        }[column]

    def _lines(
        self, rows: list[Row], server: Server, clock: Clock
    ) -> tuple[list[Line], list[Hour]]:
        """Those rows with their pictures, and the last 24 hours of all together."""
        # To the minute: a page in which nothing has happened is the same one until the next.
        end = (clock.present() // MINUTE + 1) * MINUTE
        midnight = clock.midnight(clock.present())
        first = min(end - DAY, midnight)  # a day with 25 hours begins earlier
        past = self._looks.past([ALL, *(row.uuid for row in rows)], first, end)
        refused = self._looks.refusals([row.uuid for row in rows if row.known.state == ONLINE])
        lines = []
        for row in rows:
            changes, hours = past[row.uuid]
            changes = pictures.with_present(changes, row.known)
            spans = pictures.spans(changes, end - DAY, end, server.down_since, server.outages)
            bar = pictures.bar(spans, pictures.day_words(spans, clock))
            known, today = row.known, visits.total(hours[int(midnight // HOUR - first // HOUR) :])
            reason = why.reason(known)
            if known.state == ONLINE:
                found, used_up = refused[row.uuid]
                reason = why.beside(found, known, clock, used_up)
            down = server.down_since
            was_lost = known.state == OFFLINE and bool(down and (known.since or 0) >= down)
            lines.append(Line(row, reason, was_lost, bar, today))
        return lines, past[ALL][1][int((end - DAY) // HOUR - first // HOUR) :]


def _found(rows: list[Row], text: str) -> list[Row]:
    """Those that have the text in their label, UUID, address or note."""
    hit = _hit(text)
    return [row for some in slices(rows) for row in some if hit(row) < MISSED]


MISSED = 3  # of what `_hit` gives


def _hit(text: str) -> Callable[[Row], int]:
    """Where a text is found: in the label (which comes first), the UUID, or elsewhere."""
    wanted = text.casefold()

    def hit(row: Row) -> int:
        label, note = row.words
        if wanted in label:
            return 0
        if wanted in row.uuid:
            return 1
        return 2 if wanted in row.known.address.casefold() or wanted in note else MISSED

    return hit


def _title(look: Look) -> str:
    """`(3 offline) 7 of 12 online`: what a tab in the background has to say."""
    if not look.server.workers and look.server.heard:
        return 'Server down'
    if not look.rows:
        return 'Hidden servers'
    missing = _missing(look)
    said = f'{look.counts[ONLINE]} of {len(look.rows)} online'
    return f'({missing} offline) {said}' if missing else said


def _missing(look: Look) -> int:
    """How many should be online and are not. While the server is down that says it all: 0."""
    return look.counts[OFFLINE] + look.counts[REFUSED] if look.server.workers else 0


def _icon(look: Look) -> str:
    """The worst state that there is."""
    if not look.server.workers:
        return 'down' if look.server.heard else NEVER
    return next((each for each in (REFUSED, OFFLINE, ONLINE) if look.counts[each]), NEVER)
