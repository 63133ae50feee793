"""Times, lengths and sizes in words: one way for the page, the shell and the log of changes."""

import datetime
import time
from typing import NamedTuple

MINUTE, HOUR, DAY = 60, 3600, 86_400


class Clock(NamedTuple):
    """Says times as a reader in one time zone says them at one moment."""

    zone: datetime.tzinfo | None = None  # None: that of this machine
    now: float = 0  # seconds since 1970; 0: the present

    def ago(self, at: float) -> str:
        """`12 s ago`, `4 min ago`, then as `at`. A server's clock may be ahead of ours."""
        seconds = max(0, (self.now or time.time()) - at)
        if seconds < MINUTE:
            return f'{seconds:.0f} s ago'
        return f'{seconds // MINUTE:.0f} min ago' if seconds < HOUR else self.at(at)

    def at(self, at: float) -> str:
        """`09:12` today, `24 Nov 18:30` within a week, `24 Nov` within a year, `2 Sep 2025`."""
        then, now = self._local(at), self._local(self.now or time.time())
        date = f'{then.day} {then:%b}'
        if then.date() == now.date():
            return f'{then:%H:%M}'
        days = abs((now.date() - then.date()).days)
        return f'{date} {then:%H:%M}' if days < 7 else date if days < 300 else f'{date} {then:%Y}'

    def exact(self, at: float) -> str:
        """`2026-11-26 14:00:12 +0100`, for a title."""
        return f'{self._local(at):%Y-%m-%d %H:%M:%S %z}'

    def _local(self, at: float) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(at, self.zone or datetime.UTC).astimezone(self.zone)


def utc(at: float) -> str:
    """The exact time, for `<time datetime>`."""
    return f'{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}'


def lasting(seconds: float) -> str:
    """`18 ms`, `0.4 s`, `41 s`, `3:05 min`, `2:00 h`, `12 days`."""
    if seconds < 0.1:
        return f'{seconds * 1000:.0f} ms'
    if seconds < MINUTE:
        return f'{seconds:.1f} s' if seconds < 10 else f'{seconds:.0f} s'
    if seconds < HOUR:
        return f'{seconds // MINUTE:.0f}:{seconds % MINUTE:02.0f} min'
    if seconds < 2 * DAY:
        return f'{seconds // HOUR:.0f}:{seconds % HOUR // MINUTE:02.0f} h'
    return f'{seconds // DAY:.0f} days'


def size(octets: float) -> str:
    """`1.4 GB`, `310 kB`, `0`: at most three digits."""
    unit = 'B'
    for bigger in 'kB', 'MB', 'GB', 'TB':
        if octets < 999.5:
            break
        octets, unit = octets / 1000, bigger
    digits = 1 if octets < 9.95 and unit != 'B' else 0
    return f'{octets:.{digits}f}'.removesuffix('.0') + f' {unit}' if octets else '0'


def ago(at: float) -> str:
    """As the clock of this machine says it now."""
    return Clock().ago(at)
