"""What a worker counts, from its start on. Metrics are made of it; a count never goes back.

began              when the worker began, in seconds since 1970
handshakes         of TLS that succeeded
handshakes_failed  those that did not: a peer that hangs up, takes too long or speaks no TLS
registrations      that got their 200
rendezvous         of mobile clients that this worker accepted
octets_up          from mobile clients, in these rendezvous; of pipes that are open, too
octets_down        to them
store_errors       questions that the store did not answer, or refused
refused STATUS DIAGNOSTIC   answers that refuse, by what they say: a fixed vocabulary of ours
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rendezvous.wire.http_head import Refusal
from rendezvous.wire.pipe import Pipe

KINDS = 100  # of refusals that are told apart; there are half as many


@dataclass(slots=True)
class _Noted:
    """What `moved` has given of an open pipe: octets."""

    uuid: str
    up: int = 0
    down: int = 0


class Counters:
    """Plain numbers: to count is an addition."""

    def __init__(self) -> None:
        self.began = time.time()
        self.handshakes = self.handshakes_failed = self.registrations = self.rendezvous = 0
        self._refused: dict[tuple[int, str], int] = {}
        self._up = self._down = 0  # octets of pipes that are over
        self._open: dict[Pipe, _Noted] = {}

    def refused(self, refusal: Refusal) -> None:
        """It is the answer to a request."""
        kind = refusal.status, refusal.diagnostic
        if kind not in self._refused and len(self._refused) >= KINDS:
            kind = refusal.status, 'other'
        self._refused[kind] = self._refused.get(kind, 0) + 1

    def pipe_began(self, pipe: Pipe, uuid: str) -> None:
        """Its octets count from now on, as they pass."""
        self.rendezvous += 1
        self._open[pipe] = _Noted(uuid)

    def pipe_ended(self, pipe: Pipe) -> tuple[int, int]:
        """Its octets up and down that `moved` has given."""
        noted = self._open.pop(pipe)
        self._up += pipe.mobile.octets
        self._down += pipe.hidden.octets
        return noted.up, noted.down

    def moved(self) -> Iterator[tuple[str, int, int]]:
        """Of each open pipe the UUID, and the octets up and down since the last time, if any."""
        for pipe, noted in self._open.items():
            up, down = pipe.mobile.octets, pipe.hidden.octets
            if (up, down) != (noted.up, noted.down):
                yield noted.uuid, up - noted.up, down - noted.down
                noted.up, noted.down = up, down

    def now(self, store_errors: int) -> dict[str, float]:
        """All of them, by the names above."""
        refused = {
            f'refused {status} {diagnostic}': count
            for (status, diagnostic), count in self._refused.items()
        }
        return {
            'began': self.began,
            'handshakes': self.handshakes,
            'handshakes_failed': self.handshakes_failed,
            'registrations': self.registrations,
            'rendezvous': self.rendezvous,
            'octets_up': self._up + sum(pipe.mobile.octets for pipe in self._open),
            'octets_down': self._down + sum(pipe.hidden.octets for pipe in self._open),
            'store_errors': store_errors,
            **refused,
        }
