"""Which workers have a hidden server, as Redis knows it: where to ask first, never a claim.

Each batch of presence.py brings it up to date, so it is a second old, or wrong.
"""

import time
from functools import partial
from typing import NamedTuple

from redis import Redis, ResponseError

from rendezvous.store import entry_json, keys
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import number
from rendezvous.store.facts import counts_from

RECENT_SECONDS = 60  # a hidden server that was seen so lately is thought to come back


Places = dict[str, tuple[int, int]]  # by worker: registrations that wait, and pipes


class Signs(NamedTuple):
    """What follows where none of the places has it."""

    is_expected: bool  # it was seen a moment ago
    is_complete: bool  # False: Redis has lost what this worker wrote, and maybe what others did


def places(entries: Entries, uuid: str) -> Places:
    """The workers that have it, or had it a moment ago. Raises StoreDown."""
    fields = entries.ask(partial(_fields, keys.of(keys.PLACES, uuid)))
    return {name: counts_from(value) for name, value in fields.items()}


def signs(entries: Entries, uuid: str, me: str) -> Signs:
    """For the worker of that name. Raises StoreDown."""

    def read(redis: Redis) -> list:
        with redis.pipeline(transaction=False) as questions:
            questions.get(keys.of(keys.STATE, uuid))
            questions.exists(keys.live(me))
            return questions.execute(raise_on_error=False)  # a key may be another program's

    text, is_there = entries.ask(read)
    record = (entry_json.read(text) if isinstance(text, str) else None) or {}
    seen = number(record.get('seen')) or 0
    # The clock of the machine that saw it may be ahead, or behind.
    return Signs(abs(time.time() - seen) < RECENT_SECONDS, is_there == 1)


def _fields(key: str, redis: Redis) -> dict[str, str]:
    try:
        return redis.hgetall(key)  # type: ignore[return-value] # it does not wait
    except ResponseError:  # it is another program's
        return {}
