"""What a worker does for all: it notes outages, takes over from workers that were killed, and
brings over what older versions wrote.
"""

import json
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from redis import Redis

from rendezvous.store import entry_json, keys, scripts
from rendezvous.store.entries import SCANNED, Entries, StoreRefuses, fields_of, scan, slices
from rendezvous.store.entry_json import number
from rendezvous.store.facts import Heard, heard_from, lost_at, numbers_in
from rendezvous.store.state import (
    ABOUT,
    ONLINE,
    WORKER,
    channel,
    clock,
    living,
    records,
    server,
)
from rendezvous.wire.codes import UUID

HUNG_SECONDS = 60  # a worker that listens, and has given no sign for so long, hangs
# Keys of older versions, as Redis matches them, and more: without braces.
OLD_KEYS = '[cghrs]*:[0-9a-f]*'
OLD = re.compile('(?:changes|hours|rendezvous|refusals|seen|refused):(.{36})|guesses:(.{32})')
DASHED = re.compile('(.{8})(.{4})(.{4})(.{4})(.{12})')
OLD_STATES = 'states'  # a hash: the records by UUID
MIGRATED = 10  # entries in a question: of each there may be thousands of changes


def arrive(entries: Entries, name: str, least: float, heard: str) -> list[list[float]]:
    """A worker signs. Where none lived for `least` seconds or more, that was an outage. The newest
    outages, from and to, the newest first. Raises StoreDown.
    """
    is_alone = int(not _others_live(entries, name))
    of_all = keys.SERVERS, keys.HEARD, keys.OUTAGES
    found = entries.run(scripts.ARRIVE, of_all, [name, time.time(), least, heard, is_alone])
    return [each for each in (numbers_in(row, 2) for row in found) if each]


def leave(entries: Entries, name: str, heard: str) -> None:
    """A worker ends; `heard` is kept where it was the last one. Raises StoreDown."""
    _remove(entries, name, had(entries, name))
    if not _others_live(entries, name):
        entries.ask(lambda redis: redis.set(keys.HEARD, heard))
    _note_end(entries, heard)


def _others_live(entries: Entries, name: str) -> bool:
    return any(each != name for each in entries.ask(living))


def _note_end(entries: Entries, text: str) -> None:
    """A worker has ended, and that was its last sign, as state.Heard has it. Raises StoreDown.

    One that had died before its node was stopped may be found later: the node was stopped.
    """
    ended = heard_from(text)
    if ended:
        with suppress(StoreRefuses):  # another program has that key
            known = heard_from(entries.ask(lambda redis: redis.hget(keys.GONE, ended.node)))
            if not (known and known.stopped and known.at > ended.at):
                entries.ask(lambda redis: redis.hset(keys.GONE, ended.node, text))


class Others(NamedTuple):
    """The names of other workers."""

    alive: set[str]
    dead: set[str]  # they have not said that they end


def others(entries: Entries, me: str, silent_seconds: float) -> Others:
    """A worker is dead where nobody listens to its channel, and it has given no sign for so many
    seconds; and where it gave none for much longer: it hangs. Raises StoreDown.
    """

    def read(redis: Redis) -> tuple[list, Any, float]:
        if redis.type(keys.SERVERS) != 'zset':
            return [], [], 0
        found: Any = redis.zrange(keys.SERVERS, 0, -1, withscores=True)
        signs = [(name, at) for name, at in found if WORKER.fullmatch(name)]
        names = [channel(name) for name, _ in signs]
        return signs, redis.pubsub_numsub(*names) if names else [], clock(redis)

    signs, listening, now = entries.ask(read)
    found = Others(set(), set())
    for (name, at), (_, count) in zip(signs, listening, strict=True):
        is_dead = now - at > (silent_seconds if not count else HUNG_SECONDS)
        (found.dead if is_dead else found.alive).add(name)
    return Others(found.alive - {me}, found.dead - {me})


def had(entries: Entries, name: str) -> dict[str, str]:
    """The UUIDs that have a field of that worker. Raises StoreDown."""
    fields = entries.ask(partial(fields_of, key=keys.live(name)))
    fields.pop(ABOUT, None)
    return fields


def bury(entries: Entries, name: str) -> dict[str, float]:
    """Removes what a dead worker left behind. What it had, and when it gave its last sign, by UUID.

    Raises StoreDown.
    """
    text = entries.ask(lambda redis: redis.hmget(keys.live(name), ABOUT))[0]
    about, fields = entry_json.read(text) or {}, had(entries, name)
    at = number(about.get('at')) or time.time()
    _remove(entries, name, fields)
    if about:
        _note_end(entries, json.dumps({name: about.get(name) for name in Heard._fields}))
    return dict.fromkeys(fields, at)


def _remove(entries: Entries, name: str, uuids: Iterable[str]) -> None:
    """Its name goes last: where this ends in the midst, another one can do it."""
    forget(entries, [(uuid, name) for uuid in uuids])

    def remove(redis: Redis) -> None:
        redis.unlink(keys.live(name))
        if redis.type(keys.SERVERS) == 'zset':
            redis.zrem(keys.SERVERS, name)

    entries.ask(remove)


def forget(entries: Entries, places: Iterable[tuple[str, str]]) -> None:
    """Removes fields at UUIDs: each has a UUID and a worker. Raises StoreDown."""

    def remove(some: list[tuple[str, str]], redis: Redis) -> None:
        with redis.pipeline(transaction=False) as changes:
            for uuid, name in some:
                changes.hdel(keys.of(keys.PLACES, uuid), name)
            changes.execute(raise_on_error=False)  # a key may be another program's

    for some in slices(places):
        entries.ask(partial(remove, some))


def forget_strangers(entries: Entries, places: Iterable[tuple[str, str]]) -> None:
    """The same of those workers that are not in `servers`: nobody will bury them.

    One that is new was there before it wrote anything at a UUID. Raises StoreDown.
    """

    def signed(redis: Redis) -> set[str]:
        is_ours = redis.type(keys.SERVERS) == 'zset'
        return set(map(str, redis.zrange(keys.SERVERS, 0, -1))) if is_ours else set()

    there = entries.ask(signed)
    forget(entries, [(uuid, name) for uuid, name in places if name not in there])


def lost(entries: Entries) -> dict[str, float]:
    """Which hidden servers were online when their workers ended, and are nowhere now; when they
    were lost, by UUID. Raises StoreDown.
    """
    of, found, elsewhere = server(entries), {}, _at_older_workers(entries)
    for some in slices(records(entries, of, entries.uuids()).items()):
        for uuid, (text, counts) in some:
            record = entry_json.read(text) or {}
            since, is_here = number(record.get('since')), any(counts) or uuid in elsewhere
            if record.get('state') == ONLINE and since is not None and not is_here:
                found[uuid] = lost_at(max(since, number(record.get('seen')) or 0), of)
    return found


def _at_older_workers(entries: Entries) -> set[str]:
    """The hidden servers that workers of an older version have, while these still run."""
    found: set[str] = set()
    if not entries.is_cluster:
        for name in entries.ask(living):
            found |= entries.ask(partial(fields_of, key=f'live:{name}')).keys()
    return found


def migrate(entries: Entries) -> None:
    """What older versions wrote goes into the keys of this one. Raises StoreDown.

    They ran on one Redis only. Where there is nothing of them, it costs a scan of all keys.
    """
    if entries.is_cluster:
        return
    found = set(entries.ask(partial(fields_of, key=OLD_STATES)))
    for some in slices(entries.ask(lambda redis: scan(redis, OLD_KEYS, SCANNED))):
        for key in some:
            if old := OLD.fullmatch(key):
                found.add(old[1] or DASHED.sub(r'\1-\2-\3-\4-\5', old[2]))
    for some in slices(found, MIGRATED) if found else [[]]:
        uuids = [uuid for uuid in some if UUID.fullmatch(uuid)]
        entries.run(scripts.MIGRATE, arguments=uuids)
