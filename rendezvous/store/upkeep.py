"""What a worker does for all: it notes outages, takes over from workers that were killed, and
brings over what older versions wrote.
"""

import json
import time
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from redis import Redis

from rendezvous.store import entry_json, scripts
from rendezvous.store.entries import (
    ANY_UUID,
    SCANNED,
    Entries,
    StoreRefuses,
    fields_of,
    scan,
    slices,
)
from rendezvous.store.entry_json import TEXT, Json, number
from rendezvous.store.facts import Heard, heard_from, lost_at
from rendezvous.store.keys import GONE
from rendezvous.store.state import (
    ABOUT,
    AGE_SECONDS,
    ONLINE,
    SERVERS,
    WORKER,
    clock,
    counts,
    live,
    records,
    server,
)
from rendezvous.wire.codes import UUID

OLD_KEYS = '[sr]e[ef]*:' + ANY_UUID  # seen:UUID and refused:UUID, as Redis matches keys
OLD = 'seen:', 'refused:'
MIGRATED = 500  # entries in a question


def arrive(entries: Entries, name: str, least: float, heard: str) -> None:
    """A worker signs. Where none lived for `least` seconds or more, that was an outage.

    Raises StoreDown.
    """
    entries.run(scripts.ARRIVE, arguments=[name, time.time(), least, heard])


def leave(entries: Entries, name: str, heard: str) -> None:
    """A worker ends; `heard` is kept where it was the last one. Raises StoreDown."""
    entries.run(scripts.LEAVE, arguments=[name, time.time(), heard])
    _note_end(entries, heard)


def _note_end(entries: Entries, text: str) -> None:
    """A worker has ended, and that was its last sign, as state.Heard has it. Raises StoreDown.

    One that had died before its node was stopped may be found later: the node was stopped.
    """
    ended = heard_from(text)
    if ended:
        with suppress(StoreRefuses):  # another program has that key
            known = heard_from(entries.ask(partial(Redis.hget, name=GONE, key=ended.node)))
            if not (known and known.stopped and known.at > ended.at):
                entries.ask(partial(Redis.hset, name=GONE, key=ended.node, value=text))


class Others(NamedTuple):
    """The names of other workers."""

    alive: set[str]
    dead: set[str]  # they have not said that they end


def others(entries: Entries, me: str, silent_seconds: float) -> Others:
    """A worker is dead where nobody listens to its channel, and it has given no sign for so many
    seconds; and where it gave none for much longer: it hangs. Raises StoreDown.
    """

    def read(redis: Redis) -> tuple[list, Any, float]:
        if redis.type(SERVERS) != 'zset':
            return [], [], 0
        found: Any = redis.zrange(SERVERS, 0, -1, withscores=True)
        signs = [(name, at) for name, at in found if WORKER.fullmatch(name)]
        names = [live(name) for name, _ in signs]
        return signs, redis.pubsub_numsub(*names) if names else [], clock(redis)

    signs, listening, now = entries.ask(read)
    found = Others(set(), set())
    for (name, at), (_, count) in zip(signs, listening, strict=True):
        is_dead = now - at > (silent_seconds if not count else AGE_SECONDS)
        (found.dead if is_dead else found.alive).add(name)
    return Others(found.alive - {me}, found.dead - {me})


def bury(entries: Entries, name: str) -> dict[str, float]:
    """Removes what a dead worker left behind. What it had, and when it gave its last sign, by UUID.

    Raises StoreDown.
    """
    fields = entries.ask(partial(fields_of, key=live(name)))
    about = entry_json.read(fields.pop(ABOUT, None)) or {}
    at = number(about.get('at')) or time.time()

    def remove(redis: Redis) -> None:
        redis.zrem(SERVERS, name)
        redis.delete(live(name))

    entries.ask(remove)
    if about:
        _note_end(entries, json.dumps({name: about.get(name) for name in Heard._fields}))
    return dict.fromkeys(fields, at)


def lost(entries: Entries) -> dict[str, float]:
    """Which hidden servers were online when their workers ended, and are nowhere now; when they
    were lost, by UUID. Raises StoreDown.
    """
    of = server(entries)
    counted, found = counts(entries, of), {}
    for some in slices(records(entries).items()):
        for uuid, text in some:
            record = entry_json.read(text) or {}
            since = number(record.get('since'))
            if record.get('state') == ONLINE and since is not None and uuid not in counted:
                found[uuid] = lost_at(max(since, number(record.get('seen')) or 0), of)
    return found


def migrate(entries: Entries) -> None:
    """What versions before 1.0 wrote of each entry goes into its record. Raises StoreDown."""
    keys = entries.ask(lambda redis: scan(redis, OLD_KEYS, SCANNED))
    uuids = {key.rpartition(':')[2] for key in keys if key.startswith(OLD)}
    for some in slices((uuid for uuid in uuids if UUID.fullmatch(uuid)), MIGRATED):
        signs = entries.ask(partial(Redis.mget, keys=[f'seen:{uuid}' for uuid in some]))
        rows = [_row(*each) for each in zip(some, signs, strict=True)]
        entries.run(scripts.MIGRATE, arguments=[json.dumps(rows)])


def _row(uuid: str, sign: str | None) -> list:
    """A UUID, and when and from which address it was seen, or None."""
    read: Json = entry_json.read(sign) or {}
    address = read.get('address')
    return [uuid, number(read.get('at')), address[:TEXT] if isinstance(address, str) else '']
