"""The visits of mobile clients, as the page of an entry lists them."""

import csv
import io
from typing import NamedTuple

from rendezvous.admin import words
from rendezvous.admin.words import HOUR, Clock
from rendezvous.store.state import Hour, Rendezvous
from rendezvous.wire.pipe import How

TOGETHER_SECONDS = 60  # a browser fetches the parts of a page within such a time


class Visits(NamedTuple):
    """Rendezvous in a row that were alike: from one address, and ended in one way."""

    at: float  # the start of the last one
    address: str
    seconds: float  # the longest took
    sent: int  # octets of all from mobile clients
    received: int  # octets of all to them
    how: str
    times: int


def ended(how: str) -> str:
    """How a rendezvous ended, in words for a table: those that the log has, where nothing is
    plainer.
    """
    return _ENDED.get(how, how)


_ENDED = {
    How.MOBILE_CLOSED.value: 'finished by mobile client',
    How.HIDDEN_CLOSED.value: 'finished by hidden server',
    How.MOBILE_RESET.value: 'broken off by mobile client',
    How.HIDDEN_RESET.value: 'broken off by hidden server',
    How.FAR_RESET.value: 'broken off, or its node gone',
    How.CHANGED.value: 'ended: disabled or new secret',
}


class Day(NamedTuple):
    """A day of the reader's zone."""

    at: float  # its midnight
    of_all: Hour  # of its hours together


def by_beginning(rows: list[Rendezvous]) -> list[Rendezvous]:
    """Those that began last first; the store has them by their ends."""
    return sorted(rows, key=lambda row: -row.at)


def grouped(rows: list[Rendezvous]) -> list[Visits]:
    """The newest first, as `by_beginning` has them. Neighbours are alike within a minute."""
    found: list[Visits] = []
    before = 0.0
    for row in rows:
        last = found[-1] if found else None
        is_near = abs(before - row.at) <= TOGETHER_SECONDS
        if last and is_near and (last.address, last.how) == (row.address, row.how):
            found[-1] = last._replace(
                seconds=max(last.seconds, row.seconds),
                sent=last.sent + row.sent,
                received=last.received + row.received,
                times=last.times + 1,
            )
        else:
            found.append(Visits(*row, 1))
        before = row.at
    return found


def total(hours: list[Hour]) -> Hour:
    """Of all of them together."""
    return Hour(*map(sum, zip(Hour(), *hours, strict=True)))


def days(hours: list[Hour], start: float, clock: Clock, count: int) -> list[Day]:
    """The sums of so many days of the reader's zone from the one of `start` on, where the hours
    begin. In a zone that is half an hour off, an hour of UTC counts where it begins.
    """
    first = int(start // HOUR)
    bounds = [clock.midnight(start, day) for day in range(count + 1)]
    places = [-int(-bound // HOUR) - first for bound in bounds]
    return [Day(bounds[day], total(hours[places[day] : places[day + 1]])) for day in range(count)]


def as_csv(hours: list[Hour], start: float) -> str:
    """A line for each hour of UTC with anything in it, and a header."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(['hour', 'octets_up', 'octets_down', 'visits', 'failures'])
    for number, hour in enumerate(hours, int(start // HOUR)):
        if any(hour):
            rows.writerow([words.utc(number * HOUR), *hour])
    return text.getvalue()
