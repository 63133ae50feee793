"""What happens around hidden.py: the machine is suspended, moves, or has its clock set.

A connection may be dead after each of these, and nobody says so; and a try that was hopeless before
may be worth it.
"""

import time

from rendezvous.hidden.dial import Addresses

CHANGED_SECONDS = 10  # a look that is so late comes after a suspension; a busy machine is sooner
# Goes on while the machine is suspended: Linux has one such clock, macOS another one. Windows has
# none, but there the clock on the wall tells.
_CLOCK = getattr(time, 'CLOCK_BOOTTIME', getattr(time, 'CLOCK_MONOTONIC', None))


def clock() -> float:
    """Seconds since some moment, suspensions included."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


class Surroundings:
    """Is looked at again and again."""

    def __init__(self, addresses: Addresses):
        self._addresses = addresses  # of the rendezvous server
        self._own, self._at, self._wall = '', clock(), time.time()

    def change(self) -> str:
        """What has changed since the last look, in words; '' where nothing has."""
        own, at, wall = self._addresses.own(), clock(), time.time()
        passed, wall_passed = at - self._at, wall - self._wall
        moved = own and self._own and own != self._own
        # Without a network it has no address, and in the end it may be where it was before.
        self._own, self._at, self._wall = own or self._own, at, wall
        if passed > CHANGED_SECONDS:
            return 'this machine was suspended'
        if abs(wall_passed - passed) > CHANGED_SECONDS:
            return "this machine's clock was set"
        return f'this machine has another address, {own}' if moved else ''
