"""Times in words, for the page and the shell."""

import datetime
import time

UNITS = ('day', 86400), ('hour', 3600), ('minute', 60)


def ago(at: float) -> str:
    """How long ago that was, in seconds since 1970; a clock of a server may be ahead of ours."""
    seconds = time.time() - at
    for unit, size in UNITS:
        if seconds >= size:
            number = int(seconds // size)
            return f'{number} {unit}{"s" if number > 1 else ""} ago'
    return 'just now'


def utc(at: float) -> str:
    """For `<time datetime>`, and for who wants to know it exactly."""
    return f'{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M:%SZ}'


def lasting(seconds: float) -> str:
    """How long something took: 0.4 s, 3:05 min, 2:00 h."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes = int(seconds // 60)
    if minutes < 60:
        return f'{minutes}:{int(seconds % 60):02} min'
    return f'{minutes // 60}:{minutes % 60:02} h'
