"""Who reads the page: the time zone of the reader's browser, which page.js puts into a cookie."""

import datetime
import re
from functools import lru_cache
from zoneinfo import ZoneInfo

from flask import g, request

from rendezvous.admin.words import Clock

COOKIE = 'zone'
_ZONE = re.compile(r'[A-Za-z][A-Za-z0-9_+-]{0,30}(/[A-Za-z0-9_+-]{1,30}){0,2}', re.A)


def clock() -> Clock:
    """The reader's, which stands still for the time of a request; of UTC where no zone is known."""
    if 'clock' not in g:
        g.clock = Clock(zone(request.cookies.get(COOKIE, '')) or datetime.UTC)
        g.clock = g.clock._replace(now=g.clock.present())
    return g.clock


def in_utc() -> bool:
    """Whether the reader's zone is not known."""
    return zone(request.cookies.get(COOKIE, '')) is None


@lru_cache(64)
def zone(name: str) -> ZoneInfo | None:
    """The zone of that name; None: there is none, or the cookie is nonsense."""
    if not _ZONE.fullmatch(name):
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # there is none, or a file that is no zone
        return None
