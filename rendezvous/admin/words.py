"""Times in words, for the page and the shell."""

import datetime
import time

UNITS = ('day', 86400), ('hour', 3600), ('minute', 60)


def ago(at: float) -> str:
    """How long ago that was, in seconds since 1970. A server's clock may be ahead of ours."""
    seconds = time.time() - at
    for unit, size in UNITS:
        if (number := int(seconds // size)) > 0:
            return f'{number} {unit}{"s" if number > 1 else ""} ago'
    return 'just now'


def utc(at: float) -> str:
    """The exact time, for `<time datetime>`."""
    return f'{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M:%SZ}'


def lasting(seconds: float) -> str:
    """How long something took: 0.4 s, or in hours, minutes and seconds, 0:03:05."""
    return f'{seconds:.1f} s' if seconds < 60 else str(datetime.timedelta(seconds=int(seconds)))
