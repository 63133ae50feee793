"""Whether the page still goes by local.py, which it has read when it was started.

The page does not read it anew by itself: where it listens, whom it lets in and which Redis it asks
may hang on it. But the files that it hands out would lead to the old address.
"""

import math
import time
from pathlib import Path

from rendezvous.store import options as local
from rendezvous.store.options import Options
from rendezvous.wire.programs import HERE, Mistake

LOOK_SECONDS = 1  # one stat in so long, however many tabs ask
USED = (  # by the page; the others are the server's alone
    'rendezvous_host',
    'rendezvous_port',
    'names_domain',
    'key_file',
    'crt_file',
    'redis_host',
    'redis_port',
    'redis_auth',
    'redis_url',
    'wrong_codes_per_address',
    'wrong_codes_per_day',
    'page_host',
    'page_url',
    'metrics_token',
)
AGAIN = 'start users_app.py again'
CHANGED = f'local.py has changed since this page was started: {AGAIN}.'


class LocalFile:
    """The file with which the page was started, and what it gave."""

    def __init__(self, options: Options, path: Path = HERE / 'local.py'):
        self._options, self._path = options, path
        self._looked_at = -math.inf
        self._stamp: tuple[int, ...] | None = None
        self._notice = ''

    def notice(self) -> str:
        """A sentence where it gives something else now, or makes no sense; else ''."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at, before = now, self._stamp
            self._stamp = self._stamp_now()
            if self._stamp != before:
                self._notice = self._compared()
        return self._notice

    def _stamp_now(self) -> tuple[int, ...]:
        """Differs where the file does; () where there is none."""
        try:
            about = self._path.stat()
        except OSError:
            return ()
        return about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino

    def _compared(self) -> str:
        try:
            given = local.load(self._path, warn=False)
        except Mistake as mistake:
            return f'{CHANGED.removesuffix(f": {AGAIN}.")}, and has a mistake: {mistake}'
        is_same = all(getattr(given, name) == getattr(self._options, name) for name in USED)
        return '' if is_same else CHANGED
