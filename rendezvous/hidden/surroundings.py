"""Notices when the machine was suspended, has moved to another network or has its clock set.

After that a connection may be dead without a sign, and a try that had no chance may succeed.
"""

import time

from rendezvous.hidden.dial import Way

CHANGED_SECONDS = 10  # a check is so late only after a suspension, not on a busy machine
# A clock that counts while the machine is suspended: Linux has one, macOS another one. Windows has
# none, but there the time of day tells.
_CLOCK = getattr(time, 'CLOCK_BOOTTIME', getattr(time, 'CLOCK_MONOTONIC', None))


def clock() -> float:
    """Seconds since some moment, with the time of suspensions."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


class Surroundings:
    """What is around this process: the network, and the time that passes."""

    def __init__(self, way: Way):
        self._way = way  # to the rendezvous server
        self._own, self._at, self._wall = '', clock(), time.time()

    def change(self) -> str:
        """What has changed since the last call, in words; '' where nothing has."""
        own, at, wall = self._way.own(), clock(), time.time()
        passed, wall_passed = at - self._at, wall - self._wall
        moved = own and self._own and own != self._own
        # Without a network it has no address; afterwards it may have the one that it had before.
        self._own, self._at, self._wall = own or self._own, at, wall
        if passed > CHANGED_SECONDS:
            return 'this machine was suspended'
        if abs(wall_passed - passed) > CHANGED_SECONDS:
            return "this machine's clock was set"
        return f'this machine has another address, {own}' if moved else ''
