"""Times, lengths and sizes in words: one way for the page, the shell and the log of changes.

Nothing here knows a language's rules but English: the month and day names are ours, so that no
locale of a machine changes them.
"""

import datetime
import time
from typing import NamedTuple

from rendezvous.store.entry_json import LATEST

MINUTE, HOUR, DAY = 60, 3600, 86_400
MONTHS = 'Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'
WEEKDAYS = 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun'
WITH_TIME_DAYS = 7  # a date so near has its time, too
WITHOUT_YEAR_DAYS = 300  # a date so near cannot be one of another year


class Clock(NamedTuple):
    """Says times as a reader in one time zone says them at one moment."""

    zone: datetime.tzinfo | None = None  # None: that of this machine
    now: float = 0  # seconds since 1970; 0: the present

    def ago(self, at: float) -> str:
        """`12 s ago`, `4 min ago`, then as `at`. A server's clock may be ahead of ours."""
        seconds = max(0, self.present() - at)
        if seconds < MINUTE:
            return f'{int(seconds)} s ago'
        return f'{int(seconds // MINUTE)} min ago' if seconds < HOUR else self.at(at)

    def at(self, at: float) -> str:
        """`09:12` today, `24 Nov 18:30` within a week, `24 Nov` within a year, `2 Sep 2025`."""
        then, now = self.local(at), self.local(self.present())
        date = f'{then.day} {MONTHS[then.month - 1]}'
        days = abs((now.date() - then.date()).days)
        if not days:
            return f'{then:%H:%M}'
        if days < WITH_TIME_DAYS:
            return f'{date} {then:%H:%M}'
        return date if days < WITHOUT_YEAR_DAYS else f'{date} {then.year}'

    def second(self, at: float) -> str:
        """As `at`, with seconds where it has a time: `09:12:44`, `24 Nov 18:30:02`, `24 Nov`."""
        said = self.at(at)
        return f'{said}:{self.local(at):%S}' if ':' in said else said

    def since(self, at: float) -> str:
        """`09:12 (4 h 48 min)`, `24 Nov 18:30 (2 days 19 h)`."""
        return f'{self.at(at)} ({length(self.present() - at)})'

    def day(self, at: float) -> str:
        """`today`, or the day of a week: `Tue 24`."""
        then, now = self.local(at), self.local(self.present())
        is_today = then.date() == now.date()
        return 'today' if is_today else f'{WEEKDAYS[then.weekday()]} {then.day}'

    def exact(self, at: float) -> str:
        """`2026-11-26 14:00:12 +0100`, for a title."""
        then = self.local(at)
        return f'{then.year:04}-{then:%m-%d %H:%M:%S %z}'

    def midnight(self, at: float, days: int = 0) -> float:
        """When the day of `at`, or the one so many `days` later, begins; seconds since 1970."""
        then = self.local(at)
        day = datetime.datetime(then.year, then.month, then.day) + datetime.timedelta(days)
        return (day.replace(tzinfo=self.zone) if self.zone else day).timestamp()

    def month(self, at: float) -> float:
        """When the month of `at` begins, in seconds since 1970."""
        return self.midnight(at, 1 - self.local(at).day)

    def present(self) -> float:
        """The moment at which it says them, in seconds since 1970."""
        return self.now or time.time()

    def local(self, at: float) -> datetime.datetime:
        """With its zone. What no calendar has is the nearest that it has."""
        moment = datetime.datetime.fromtimestamp(min(max(at, DAY), LATEST - 2 * DAY), datetime.UTC)
        return moment.astimezone(self.zone)


def utc(at: float) -> str:
    """The exact time, for `<time datetime>`."""
    return f'{Clock(datetime.UTC).local(at):%Y-%m-%dT%H:%M:%SZ}'


def lasting(seconds: float) -> str:
    """What took so long, for a table: `18 ms`, `0.4 s`, `41 s`, `3:05 min`, `2:00 h`, `12 days`."""
    if seconds < 0.0995:
        return f'{seconds * 1000:.0f} ms'
    if seconds < 9.95:
        return f'{seconds:.1f} s'
    whole = round(seconds)
    if whole < MINUTE:
        return f'{whole} s'
    if whole < HOUR:
        return f'{whole // MINUTE}:{whole % MINUTE:02} min'
    if whole < 2 * DAY:
        return f'{whole // HOUR}:{whole % HOUR // MINUTE:02} h'
    return f'{whole // DAY} days'


def length(seconds: float) -> str:
    """So long, in a sentence: `41 s`, `6 min`, `4 h 48 min`, `2 days 19 h`, `12 days`."""
    whole = max(0, int(seconds))
    if whole < MINUTE:
        return f'{whole} s'
    if whole < HOUR:
        return f'{whole // MINUTE} min'
    if whole < DAY:
        hours, minutes = whole // HOUR, whole % HOUR // MINUTE
        return f'{hours} h {minutes} min' if minutes else f'{hours} h'
    days, hours = whole // DAY, whole % DAY // HOUR
    said = plural(days, 'day')
    return f'{said} {hours} h' if hours and days < WITH_TIME_DAYS else said


def apart(seconds: float) -> str:
    """How far a clock is off, either way: `40 seconds`, `61 minutes`, `5 hours`, `2 days`."""
    seconds = abs(seconds)
    for unit, one, most in ('second', 1, 120), ('minute', MINUTE, 120), ('hour', HOUR, 48):
        if round(seconds / one) < most:
            return plural(round(seconds / one), unit)
    return plural(round(seconds / DAY), 'day')


def lowered(sentence: str) -> str:
    """The same as a part of another sentence."""
    return sentence[:1].lower() + sentence[1:]


def plural(count: int, noun: str, nouns: str = '') -> str:
    """`1 entry`, `2 entries`; without `nouns` an s is added."""
    return f'{count:,} {noun if count == 1 else nouns or f"{noun}s"}'


def size(octets: float) -> str:
    """`1.4 GB`, `310 kB`, `0`: at most three digits."""
    unit = 'B'
    for bigger in 'kB', 'MB', 'GB', 'TB', 'PB':
        if octets < 999.5:
            break
        octets, unit = octets / 1000, bigger
    digits = 1 if octets < 9.95 and unit != 'B' else 0
    return f'{octets:.{digits}f}'.removesuffix('.0') + f' {unit}' if octets else '0'
