"""The visits of the mobile clients that a worker has accepted, while their pipes are open.

The registration may be with another worker: each visit is here once, and so are its octets.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from rendezvous.wire.pipe import Pipe


@dataclass(slots=True, eq=False)
class Visit:
    """One whose pipe is open. Octets are up, from the mobile client, and down, to it."""

    number: int  # among those of this worker
    uuid: str
    address: str  # of the mobile client
    at: float  # when it asked, in seconds since 1970
    pipe: Pipe
    up: int = 0  # octets that `moved` has given
    down: int = 0


class Visits:
    """All that are open, and what went through those that are over."""

    def __init__(self) -> None:
        self.count = 0  # that began; one that tries two registrations counts twice
        self._up = self._down = 0  # octets of those that are over
        self._open: dict[Visit, None] = {}  # the oldest first
        self._numbers = itertools.count(1)

    def begin(self, uuid: str, address: str, at: float, pipe: Pipe) -> Visit:
        self.count += 1
        visit = Visit(next(self._numbers), uuid, address, at, pipe)
        self._open[visit] = None
        return visit

    def end(self, visit: Visit) -> None:
        """Its pipe is over."""
        del self._open[visit]
        self._up += visit.pipe.mobile.octets
        self._down += visit.pipe.hidden.octets

    def octets(self) -> tuple[int, int]:
        """Up and down, in all of them from the start on: they never go back."""
        up, down = self._up, self._down
        for visit in self._open:
            up += visit.pipe.mobile.octets
            down += visit.pipe.hidden.octets
        return up, down

    def moved(self) -> Iterator[tuple[str, int, int]]:
        """Of each open one the UUID, and the octets up and down since the last time, if any."""
        for visit in self._open:
            up, down = visit.pipe.mobile.octets, visit.pipe.hidden.octets
            if (up, down) != (visit.up, visit.down):
                yield visit.uuid, up - visit.up, down - visit.down
                visit.up, visit.down = up, down

    def of(self, uuid: str) -> list[Visit]:
        """Those of one hidden server, the oldest first."""
        return [visit for visit in self._open if visit.uuid == uuid]

    def find(self, number: str) -> Visit | None:
        return next((visit for visit in self._open if str(visit.number) == number), None)
