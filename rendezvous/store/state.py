"""What is known of the hidden servers and of the workers: the page and the shell read it here.

`presence.py` writes it, but for what an administrator changes. Times are in seconds since 1970. In
Redis are:

    servers            a sorted set: the workers' names, by the time of their last sign
    heard:{servers}    JSON: the last sign of any worker
    gone:{servers}     a hash: JSON by node: the last sign of a worker that has ended there
    outages:{servers}  a list of "FROM TO", the newest first: when no worker ran
    live:{WORKER}      a hash: `about`, JSON, and the UUIDs that have a field of this worker below
    batch:{WORKER}     the number of its last batch; it expires after a day
    at:{UUID}          a hash: "WAITING PIPES" by worker; "0 0" for some seconds after the last one
                       has left, as it may come back at once. These are hints: the worker decides.
    state:{UUID}       JSON
    changes:{UUID}     a list of "AT STATE", the oldest first
    refusals:{UUID}    a hash: JSON by "KIND ADDRESS"
    hours:{UUID}       a hash: by day since 1970 lines "HOUR UP DOWN VISITS FAILURES"; hours:{all}
                       is for all hidden servers together
    rendezvous:{UUID}  a list of JSON, the newest first

In a cluster there are batch:{UUID}WORKER and batch:{all}WORKER, too, see batches.py.

Octets count in the hour in which they passed, give or take some seconds; a rendezvous in that in
which it ended. 400 days of changes and hours are kept; refusals expire after a day.

A worker subscribes to the channel live:WORKER as long as it lives. So it is known at once that it
was killed, and no disk write tells that it lives. Its hash does not expire: who buries it removes
its fields at the UUIDs first, then the hash, then its name from `servers`. Nothing at a UUID has a
worker that is not in `servers`, but where a part of a cluster has lost what was written last.
"""

import re
import time
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any, NamedTuple

from redis import Redis, ResponseError

from rendezvous.store import entry_json, keys, scripts
from rendezvous.store.entries import Entries, fields_of, slices
from rendezvous.store.facts import (
    DAY_SECONDS,
    DISABLED,
    HOUR_SECONDS,
    MAX_OCTETS,
    NEVER,
    OFFLINE,
    ONLINE,
    REFUSED,
    REFUSED_SECONDS,
    STATES,
    Change,
    Heard,
    Hour,
    Known,
    Refusals,
    Rendezvous,
    Server,
    Why,
    Worker,
    changes_from,
    counts_from,
    heard_from,
    hours_from,
    is_before,
    known_from,
    lapse,
    numbers_in,
    refusals_from,
    rendezvous_from,
    worker_from,
)

# Of facts.py, for those who read here.
__all__ = [
    'DISABLED',
    'MAX_OCTETS',
    'NEVER',
    'OFFLINE',
    'ONLINE',
    'REFUSED',
    'REFUSED_SECONDS',
    'STATES',
    'Heard',
    'Why',
    'Worker',
]

FEW = 25  # records that are read without a pause, some 0.5 ms
ALL = keys.ALL  # in place of a UUID: what all hidden servers had together
ABOUT = 'about'  # the field of a live:{WORKER} that is no UUID
GONE_SECONDS = 60 * 60  # a node that was not stopped is told for so long after its last sign
AGE_SECONDS = 30  # a worker that has given no sign for so long is gone, or frozen
HISTORY = 100  # rendezvous of an entry that are kept
KINDS = 20  # of refusals of an entry that are kept
CHANGES = 5000  # of state of an entry that are kept, at most
RECENT = 200  # of them that are read first; few have more within a week
KEPT_DAYS = 400  # hours and changes of state
WORKER = re.compile('[0-9a-f]{16}')  # the name of one
_PLACE = re.compile(r'(?<!\S)([0-9a-f]{16}) (\d{1,9} \d{1,9})(?!\S)', re.A)
JOINED = 100  # records that Redis joins into one answer: some 0.3 ms
NOTHING = '', (0, 0)  # is known of a hidden server


def server(entries: Entries) -> Server:
    """The workers that live, and when none did. Raises StoreDown."""

    def read(redis: Redis) -> tuple:
        signs = _signs(redis)
        with redis.pipeline(transaction=False) as questions:
            questions.get(keys.HEARD)
            questions.lrange(keys.OUTAGES, 0, -1)
            questions.hvals(keys.GONE)
            for sign in signs:
                questions.hget(keys.live(sign.name), ABOUT)
            heard, outages, gone, *abouts = questions.execute(raise_on_error=False)
        return signs, heard, outages, gone, abouts

    signs, heard, outages, gone, abouts = entries.ask(read)
    alive, ended = [], [heard_from(each) for each in gone] if isinstance(gone, list) else []
    for sign, about in zip(signs, abouts, strict=True):
        worker = worker_from(sign.name, about)
        if worker and sign.lives:
            alive.append(worker._replace(ahead=worker.at - sign.at))
        elif worker:
            ended.append(heard_from(about))
    found = [numbers_in(each, 2) for each in outages] if isinstance(outages, list) else []
    return Server(
        sorted(alive, key=lambda each: (each.node, each.number)),
        heard_from(heard),
        [(each[0], each[1]) for each in reversed(found) if each],
        _gone({each.node for each in alive}, filter(None, ended)),
    )


def _gone(alive: set[str], ended: Iterable[Heard]) -> tuple[Heard, ...]:
    """The last sign of each node that has none that lives, and was not stopped."""
    last = {each.node: each for each in sorted(ended, key=lambda each: each.at)}
    return tuple(
        each
        for node, each in sorted(last.items())
        if node not in alive and not each.stopped and time.time() - each.at < GONE_SECONDS
    )


def known(entries: Entries, of: Server, uuids: Iterable[str]) -> dict[str, Known]:
    """What is known of each of these hidden servers, by UUID; without those of which nothing is.

    Raises StoreDown.
    """
    return {
        uuid: known_from(text, counts, of)
        for some in slices(records(entries, of, uuids).items(), FEW)
        for uuid, (text, counts) in some
    }


def records(
    entries: Entries, of: Server, uuids: Iterable[str]
) -> dict[str, tuple[str, tuple[int, int]]]:
    """For known_from, by UUID: the JSON of a record, '' where there is none; and registrations that
    wait and pipes, of all workers that live. Without those that have neither. Raises StoreDown.
    """
    names = frozenset(worker.name for worker in of.workers)
    found: dict[str, tuple[str, tuple[int, int]]] = {}
    for some in slices(uuids, JOINED):
        texts, places = _texts_and_places(entries, some)
        counts = [counted(each, names) if each else (0, 0) for each in places]
        rows = zip(some, zip(texts, counts, strict=True), strict=True)
        found |= {uuid: row for uuid, row in rows if row != NOTHING}
    return found


def _texts_and_places(entries: Entries, uuids: list[str]) -> tuple[list[str], list[str]]:
    """The text of each record, '' where there is none; and its places as `counted` takes them.

    Raises StoreDown.
    """
    if not entries.is_cluster:
        joined = entries.run(scripts.RECORDS, arguments=[''.join(uuids)])
        texts, places = (each.split('\0') for each in joined)
        if len(texts) == len(places) == len(uuids):  # else another program wrote a NUL there
            return texts, places

    def read(redis: Redis) -> list:
        with redis.pipeline(transaction=False) as questions:
            for uuid in uuids:
                questions.get(keys.of(keys.STATE, uuid))
                questions.hgetall(keys.of(keys.PLACES, uuid))
            return questions.execute(raise_on_error=False)  # a key may be another program's

    answers = entries.ask(read)
    texts = [each if isinstance(each, str) else '' for each in answers[::2]]
    fields = [each.items() if isinstance(each, dict) else () for each in answers[1::2]]
    return texts, [' '.join(f'{name} {value}' for name, value in each) for each in fields]


@lru_cache(1024)  # few of them differ
def counted(places: str, names: frozenset[str]) -> tuple[int, int]:
    """What those of these workers say that are at a UUID, together: registrations and pipes."""
    pairs = [counts_from(value) for name, value in _PLACE.findall(places) if name in names]
    return sum(each[0] for each in pairs), sum(each[1] for each in pairs)


def known_of(entries: Entries, of: Server, uuid: str) -> Known:
    """What is known of one hidden server. Raises StoreDown."""
    return known(entries, of, [uuid]).get(uuid, Known())


def past(
    entries: Entries, uuids: Iterable[str], start: float, end: float
) -> dict[str, tuple[list[Change], list[Hour]]]:
    """For each of some entries, or ALL: its changes of state, the oldest first and with the last
    one before `start`; and its hours of UTC from that of `start` to that of `end`, both included.

    Raises StoreDown.
    """
    first, last = int(start // HOUR_SECONDS), int(end // HOUR_SECONDS)
    days = list(range(first // 24, last // 24 + 1))
    found = {}
    for some in slices(uuids):
        answers = entries.ask(partial(_past, some, start, days))
        for uuid, (record, rows, texts) in zip(some, answers, strict=True):
            changes = changes_from([*rows, *lapse(record)], start)
            found[uuid] = changes, hours_from(days, texts, first, last)
    return found


def octets_since(
    entries: Entries, uuids: Iterable[str], start: float
) -> dict[str, tuple[int, int]]:
    """For each of some entries, or ALL: octets up and down from the hour of `start` on.

    Raises StoreDown.
    """
    first, last = int(start // HOUR_SECONDS), int(time.time() // HOUR_SECONDS)
    days = list(range(first // 24, last // 24 + 1))
    found = {}
    for some in slices(uuids):
        for uuid, texts in zip(some, entries.ask(partial(_texts, some, days)), strict=True):
            hours = hours_from(days, texts, first, last) if _any_text(texts) else []
            found[uuid] = sum(each.up for each in hours), sum(each.down for each in hours)
    return found


def _any_text(texts: object) -> bool:
    """Whether any of those days is there."""
    return isinstance(texts, list) and any(texts)


def _texts(uuids: list[str], days: list[int], redis: Redis) -> list:
    with redis.pipeline(transaction=False) as questions:
        for uuid in uuids:
            questions.hmget(keys.of('hours', uuid), list(map(str, days)))
        return questions.execute(raise_on_error=False)


def _past(uuids: list[str], start: float, days: list[int], redis: Redis) -> list[tuple]:
    """For each: its record, its changes since `start` or more, and the texts of those days."""
    with redis.pipeline(transaction=False) as questions:
        for uuid in uuids:
            questions.get(keys.of(keys.STATE, uuid))
            questions.lrange(keys.of('changes', uuid), -RECENT, -1)
        answers = questions.execute(raise_on_error=False)
    found, texts = [], _texts(uuids, days, redis)
    for number, uuid in enumerate(uuids):
        record, recent = answers[2 * number : 2 * number + 2]
        rows = recent if isinstance(recent, list) else []
        if len(rows) == RECENT and not is_before(rows[0], start):
            rows = redis.lrange(keys.of('changes', uuid), 0, -1)
        found.append((record if isinstance(record, str) else None, rows, texts[number]))
    return found


def refusals(entries: Entries, uuid: str) -> list[Refusals]:
    """Those within the last day, the newest first. Raises StoreDown."""
    return _fresh(entries.ask(lambda redis: fields_of(redis, keys.of('refusals', uuid))))


def all_refusals(
    entries: Entries, uuids: Iterable[str]
) -> dict[str, tuple[list[Refusals], float | None]]:
    """The same of several entries, each with its Entries.used_up, without those that have neither.

    Raises StoreDown.
    """

    def read(some: list[str], redis: Redis) -> list:
        with redis.pipeline(transaction=False) as questions:
            for uuid in some:
                questions.hgetall(keys.of('refusals', uuid))
            return questions.execute(raise_on_error=False)  # a key may be no hash of ours

    found = {}
    for some in slices(uuids):
        used_up = entries.all_used_up(some)
        for uuid, fields in zip(some, entries.ask(partial(read, some)), strict=True):
            rows = _fresh(fields) if isinstance(fields, dict) else []
            if rows or uuid in used_up:
                found[uuid] = rows, used_up.get(uuid)
    return found


def _fresh(fields: dict[str, str]) -> list[Refusals]:
    rows = [refusals_from(field, value) for field, value in fields.items()]
    fresh = [row for row in rows if row and time.time() - row.last < DAY_SECONDS]
    return sorted(fresh, key=lambda row: -row.last)


def history(entries: Entries, uuid: str) -> list[Rendezvous]:
    """The last rendezvous, the newest first. Raises StoreDown."""
    key = keys.of('rendezvous', uuid)
    texts: list[str] = entries.ask(
        lambda redis: redis.lrange(key, 0, HISTORY - 1) if redis.type(key) == 'list' else []
    )
    return [row for row in map(rendezvous_from, map(entry_json.read, texts)) if row]


def channel(name: str) -> str:
    """To which a worker listens as long as it lives."""
    return f'live:{name}'


def clock(redis: Redis) -> float:
    """The time by which workers sign: that of Redis, whatever the clocks of the machines say."""
    try:
        seconds, microseconds = redis.time()
    except ResponseError:  # without that permission they sign by their own clocks
        return time.time()
    return seconds + microseconds / 1e6


def living(redis: Redis) -> list[str]:
    """The workers that live."""
    return [sign.name for sign in _signs(redis) if sign.lives]


class _Sign(NamedTuple):
    name: str  # of a worker
    at: float  # by the clock of Redis
    lives: bool


def _signs(redis: Redis) -> list[_Sign]:
    """The last ones of the workers that live, and of those that ended without a word just now."""
    if redis.type(keys.SERVERS) != 'zset':  # there was none yet
        return []
    now = clock(redis)
    found: Any = redis.zrangebyscore(keys.SERVERS, now - 2 * AGE_SECONDS, '+inf', withscores=True)
    named = (each for each in found if WORKER.fullmatch(each[0]))
    signs = [_Sign(name, at, now - at < AGE_SECONDS) for name, at in named]
    names = [channel(sign.name) for sign in signs]
    try:
        counted: Any = redis.pubsub_numsub(*names) if names else []
    except ResponseError:  # without that permission, those that were killed age out
        return signs
    return [
        sign._replace(lives=sign.lives and bool(count))
        for sign, (_, count) in zip(signs, counted, strict=True)
    ]
