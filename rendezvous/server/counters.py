"""What a worker counts, from its start on. Metrics are made of it; a count never goes back.

began              when the worker began, in seconds since 1970
handshakes         of TLS that succeeded
handshakes_failed  those that did not: a peer that hangs up, takes too long or speaks no TLS
registrations      that got their 200
rendezvous         of mobile clients that this worker accepted
crossed            those of them whose registration was on another node
octets_up          from mobile clients, in these rendezvous; of pipes that are open, too
octets_down        to them
store_errors       questions that the store did not answer, or refused
refused STATUS DIAGNOSTIC   answers that refuse, by what they say: a fixed vocabulary of ours
"""

import time

from rendezvous.server.visits import Visits
from rendezvous.wire.http_head import Refusal

KINDS = 100  # of refusals that are told apart; there are half as many


class Counters:
    """Plain numbers: to count is an addition."""

    def __init__(self) -> None:
        self.began = time.time()
        self.handshakes = self.handshakes_failed = self.registrations = self.crossed = 0
        self._refused: dict[tuple[int, str], int] = {}

    def refused(self, refusal: Refusal) -> None:
        """It is the answer to a request."""
        kind = refusal.status, refusal.diagnostic
        if kind not in self._refused and len(self._refused) >= KINDS:
            kind = refusal.status, 'other'
        self._refused[kind] = self._refused.get(kind, 0) + 1

    def now(self, visits: Visits, store_errors: int) -> dict[str, float]:
        """All of them, by the names above."""
        up, down = visits.octets()
        refused = {
            f'refused {status} {diagnostic}': count
            for (status, diagnostic), count in self._refused.items()
        }
        return {
            'began': self.began,
            'handshakes': self.handshakes,
            'handshakes_failed': self.handshakes_failed,
            'registrations': self.registrations,
            'rendezvous': visits.count,
            'crossed': self.crossed,
            'octets_up': up,
            'octets_down': down,
            'store_errors': store_errors,
            **refused,
        }
