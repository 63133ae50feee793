"""Which workers have a hidden server, as Redis knows it: where to ask first, never a claim.

Each batch of presence.py brings it up to date, so it is a second old, or wrong.
"""

import time
from typing import NamedTuple

from redis import Redis

from rendezvous.store import entry_json, keys
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import number
from rendezvous.store.facts import counts_from

RECENT_SECONDS = 60  # a hidden server that was seen so lately is thought to come back


class Hints(NamedTuple):
    """What Redis knows of the places of one hidden server."""

    workers: dict[str, tuple[int, int]]  # by name: registrations that wait, and pipes
    is_expected: bool  # it was seen a moment ago
    is_complete: bool  # False: Redis has lost what this worker wrote, and maybe what others did


def where(entries: Entries, uuid: str, me: str) -> Hints:
    """What Redis knows, for the worker of that name. Raises StoreDown."""

    def read(redis: Redis) -> list:
        with redis.pipeline(transaction=False) as questions:
            questions.hgetall(keys.of(keys.PLACES, uuid))
            questions.get(keys.of(keys.STATE, uuid))
            questions.exists(keys.live(me))
            return questions.execute(raise_on_error=False)  # a key may be no hash of ours

    fields, text, is_there = entries.ask(read)
    places = fields if isinstance(fields, dict) else {}
    record = (entry_json.read(text) if isinstance(text, str) else None) or {}
    seen = number(record.get('seen')) or 0
    # The clock of the machine that saw it may be ahead, or behind.
    is_expected = abs(time.time() - seen) < RECENT_SECONDS
    workers = {name: counts_from(value) for name, value in places.items()}
    return Hints(workers, is_expected, is_there == 1)
