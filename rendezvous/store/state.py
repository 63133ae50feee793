"""What is known of the hidden servers and of the workers: the page and the shell read it here.

`presence.py` writes it, but for what an administrator changes. Times are in seconds since 1970. In
Redis are:

    servers          a sorted set: the workers' names, by the time of their last sign
    live:WORKER      a hash that expires: `about`, JSON, and "WAITING PIPES" by UUID
    heard            JSON: the last sign of any worker
    outages          a list of "FROM TO", the newest first: when no worker ran
    states           a hash: JSON by UUID
    changes:UUID     a list of "AT STATE", the oldest first
    refusals:UUID    a hash: JSON by "KIND ADDRESS"
    hours:UUID       a hash: by day since 1970 lines "HOUR UP DOWN VISITS FAILURES"; hours:all is
                     for all hidden servers together
    rendezvous:UUID  a list of JSON, the newest first

A worker subscribes to the channel live:WORKER as long as it lives. So it is known at once that it
was killed, and no disk write tells that it lives.
"""

import json
import re
import time
from collections.abc import Iterable
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

from redis import Redis, ResponseError

from rendezvous.store import entry_json
from rendezvous.store.entries import Entries, fields_of, slices
from rendezvous.store.entry_json import Json, number, printable

ONLINE, REFUSED, OFFLINE, DISABLED, NEVER = 'online', 'refused', 'offline', 'disabled', 'never seen'
STATES = ONLINE, REFUSED, OFFLINE, DISABLED, NEVER
SERVERS, HEARD, OUTAGES, STATES_KEY = 'servers', 'heard', 'outages', 'states'
ALL = 'all'  # in place of a UUID: what all hidden servers had together
ABOUT = 'about'  # the field of a live:WORKER that is no UUID
AGE_SECONDS = 30  # a worker that has given no sign for so long is gone, or frozen
REFUSED_SECONDS = 5 * 60  # after the last refusal; hidden.py tries again each minute at the latest
HISTORY = 100  # rendezvous of an entry that are kept
KINDS = 20  # of refusals of an entry that are kept
CHANGES = 5000  # of state of an entry that are kept, at most
RECENT = 200  # of them that are read first; few have more within a week
KEPT_DAYS = 400  # hours and changes of state
MINUTE, HOUR_SECONDS, DAY_SECONDS = 60, 3600, 86_400
MAX_OCTETS = 2**53  # JavaScript's numbers are exact up to here
TEXT = 200  # characters of a text that are shown
WORKER = re.compile('[0-9a-f]{16}')  # the name of one


class Why(NamedTuple):
    """Why a registration was refused."""

    kind: str
    # clock      its clock is wrong, by `seconds`: more than 0 is ahead
    # former     the secret from before the last rekey
    # wrong      another wrong code
    # unusable   the entry has no secret that can be used
    # disabled   the entry is disabled
    # address    too many wrong codes of this address: until then no code is right
    # strangers  too many wrong codes a day from strangers: no short code of a stranger is right
    # friend     the same for one address that registered it within 30 days
    # full       max_connections is too low
    # twins      no refusal: another process with the same file waits at `other`
    seconds: float = 0
    sure: bool = True  # False: a short code may look so by chance
    other: str = ''


class Known(NamedTuple):
    """What is known of one hidden server now, from all workers together."""

    state: str = NEVER
    since: float | None = None  # it is in that state; None: never seen
    waiting: int = 0  # registrations
    pipes: int = 0
    address: str = ''  # the last one from which it registered, or tried to
    first: float | None = None  # it registered for the first time
    refused: float | None = None  # the last refusal
    why: Why | None = None  # of the last refusal

    def disabled(self, since: float | None) -> 'Known':
        """The same, of an entry that is disabled."""
        return self._replace(state=DISABLED, since=since)


class Worker(NamedTuple):
    """A worker that lives, as it was at its last sign, at most ten seconds ago."""

    name: str  # random, and new at each start
    at: float  # its last sign
    node: str  # the host name of its machine
    number: int  # from 1 on, among the `workers` of its machine
    workers: int
    pid: int  # of their parent, which is what systemd started
    version: str
    since: float  # when the parent began
    connections: int
    most: int  # connections that it takes
    memory: int  # octets of its own
    counters: dict[str, float]  # since it began; presence.py has their names


class Heard(NamedTuple):
    """The last sign of any worker."""

    at: float
    node: str
    pid: int
    version: str
    since: float
    stopped: bool  # an administrator stopped it: it was neither killed nor cut off


class Server(NamedTuple):
    """The rendezvous server as a whole."""

    workers: list[Worker]  # none: it is down
    heard: Heard | None  # None: it never ran
    outages: list[tuple[float, float]]  # from, to; the oldest first; without the present one

    @property
    def down_since(self) -> float | None:
        """When it was last heard of; None: it runs, or it never ran."""
        return None if self.workers or not self.heard else self.heard.at


class Change(NamedTuple):
    """From then on it was in that state."""

    at: float
    state: str


class Hour(NamedTuple):
    up: int = 0  # octets from mobile clients
    down: int = 0  # octets to them
    visits: int = 0  # rendezvous
    failures: int = 0  # mobile clients that got none


class Refusals(NamedTuple):
    """The refusals of one kind that one address has got."""

    why: Why
    address: str
    first: float
    last: float
    count: int  # type: ignore[assignment]  # as of a tuple, which nobody asks for it
    until: float  # when the ration that was used up allows a try again; 0: no ration was


class Rendezvous(NamedTuple):
    """A rendezvous that is over."""

    at: float  # its start
    address: str  # of the mobile client
    seconds: float  # to the last octet
    sent: int  # octets from the mobile client
    received: int  # octets from the hidden server
    how: str  # it ended


def server(entries: Entries) -> Server:
    """The workers that live, and when none did. Raises StoreDown."""

    def read(redis: Redis) -> tuple:
        names = _names(redis)
        with redis.pipeline(transaction=False) as questions:
            questions.get(HEARD)
            questions.lrange(OUTAGES, 0, -1)
            for name in names:
                questions.hget(live(name), ABOUT)
            heard, outages, *abouts = questions.execute(raise_on_error=False)
        return names, heard, outages, abouts

    names, heard, outages, abouts = entries.ask(read)
    workers = [_worker(name, about) for name, about in zip(names, abouts, strict=True)]
    found = [_numbers(each, 2) for each in outages] if isinstance(outages, list) else []
    return Server(
        sorted(filter(None, workers), key=lambda each: (each.node, each.number)),
        _heard(heard),
        [(each[0], each[1]) for each in reversed(found) if each],
    )


def known(entries: Entries, of: Server) -> dict[str, Known]:
    """What is known of each hidden server, by UUID. Raises StoreDown."""
    counted, texts = counts(entries, of), records(entries)
    return {
        uuid: known_from(texts.get(uuid), counted.get(uuid, (0, 0)), of)
        for some in slices(texts.keys() | counted.keys())
        for uuid in some
    }


def records(entries: Entries) -> dict[str, str]:
    """The JSON in `states`, by UUID, for `known_from`. Raises StoreDown."""
    return entries.ask(lambda redis: fields_of(redis, STATES_KEY))


def counts(entries: Entries, of: Server) -> dict[str, tuple[int, int]]:
    """Registrations that wait and pipes, of all workers together, by UUID. Raises StoreDown."""
    found: dict[str, tuple[int, int]] = {}
    for worker in of.workers:
        fields = entries.ask(partial(fields_of, key=live(worker.name)))
        fields.pop(ABOUT, None)
        for some in slices(fields.items()):
            for uuid, value in some:
                waiting, pipes = _counts(value)
                before = found.get(uuid, (0, 0))
                found[uuid] = before[0] + waiting, before[1] + pipes
    return found


def known_of(entries: Entries, of: Server, uuid: str) -> Known:
    """What is known of one hidden server. Raises StoreDown."""

    def read(redis: Redis) -> list:
        with redis.pipeline(transaction=False) as questions:
            questions.hget(STATES_KEY, uuid)
            for worker in of.workers:
                questions.hget(live(worker.name), uuid)
            return questions.execute(raise_on_error=False)  # a key may be no hash of ours

    record, *counts = entries.ask(read)
    pairs = [_counts(each) for each in counts]
    return known_from(record, (sum(each[0] for each in pairs), sum(each[1] for each in pairs)), of)


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
            changes = _changes([*rows, *_lapse(record)], start)
            found[uuid] = changes, _hours(days, texts, first, last)
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
            hours = _hours(days, texts, first, last) if _any_text(texts) else []
            found[uuid] = sum(each.up for each in hours), sum(each.down for each in hours)
    return found


def _any_text(texts: object) -> bool:
    """Whether any of those days is there."""
    return isinstance(texts, list) and any(texts)


def _texts(uuids: list[str], days: list[int], redis: Redis) -> list:
    with redis.pipeline(transaction=False) as questions:
        for uuid in uuids:
            questions.hmget(f'hours:{uuid}', list(map(str, days)))
        return questions.execute(raise_on_error=False)


def _past(uuids: list[str], start: float, days: list[int], redis: Redis) -> list[tuple]:
    """For each: its record, its changes since `start` or more, and the texts of those days."""
    with redis.pipeline(transaction=False) as questions:
        questions.hmget(STATES_KEY, uuids)
        for uuid in uuids:
            questions.lrange(f'changes:{uuid}', -RECENT, -1)
        texts = _texts(uuids, days, redis)
        records, *recent = questions.execute(raise_on_error=False)
        found = []
        for number, uuid in enumerate(uuids):
            rows = recent[number] if isinstance(recent[number], list) else []
            if len(rows) == RECENT and not _is_before(rows[0], start):
                rows = redis.lrange(f'changes:{uuid}', 0, -1)
            record = records[number] if isinstance(records, list) else None
            found.append((record, rows, texts[number]))
        return found


def _is_before(row: str, start: float) -> bool:
    numbers = _numbers(row.partition(' ')[0], 1)
    return bool(numbers and numbers[0] <= start)


def _lapse(text: str | None) -> list[str]:
    """The end of a refusal that is so old that it says nothing any more: no worker notes it."""
    record = entry_json.read(text) or {}
    refused, until = number(record.get('refused')), number(record.get('until')) or 0
    if record.get('state') != REFUSED or refused is None or is_fresh(refused, until):
        return []
    return [f'{refused} {OFFLINE if number(record.get("first")) else NEVER}']


def refusals(entries: Entries, uuid: str) -> list[Refusals]:
    """Those within the last day, the newest first. Raises StoreDown."""
    found = entries.ask(lambda redis: fields_of(redis, f'refusals:{uuid}'))
    rows = [_refusals(field, value) for field, value in found.items()]
    fresh = [row for row in rows if row and time.time() - row.last < DAY_SECONDS]
    return sorted(fresh, key=lambda row: -row.last)


def history(entries: Entries, uuid: str) -> list[Rendezvous]:
    """The last rendezvous, the newest first. Raises StoreDown."""
    key = f'rendezvous:{uuid}'
    texts: list[str] = entries.ask(
        lambda redis: redis.lrange(key, 0, HISTORY - 1) if redis.type(key) == 'list' else []
    )
    return [row for row in map(_rendezvous, map(entry_json.read, texts)) if row]


def live(name: str) -> str:
    """The hash of a worker, and its channel."""
    return f'live:{name}'


def _names(redis: Redis) -> list[str]:
    """The workers that live."""
    if redis.type(SERVERS) != 'zset':  # there was none yet
        return []
    found: Any = redis.zrangebyscore(SERVERS, time.time() - AGE_SECONDS, '+inf')
    names = [name for name in found if WORKER.fullmatch(name)]
    try:
        counted: Any = redis.pubsub_numsub(*map(live, names)) if names else []
    except ResponseError:  # without that permission, those that were killed age out
        return names
    return [name for name, (_, count) in zip(names, counted, strict=True) if count]


def _worker(name: str, value: object) -> Worker | None:
    about = entry_json.read(value) if isinstance(value, str) else None
    if not about:
        return None
    counters = about.get('counters')
    return Worker(
        name=name,
        at=number(about.get('at')) or 0,
        node=_text(about.get('node')),
        number=_whole(about.get('number')),
        workers=_whole(about.get('workers')),
        pid=_whole(about.get('pid')),
        version=_text(about.get('version')),
        since=number(about.get('since')) or 0,
        connections=_whole(about.get('connections')),
        most=_whole(about.get('most')),
        memory=_whole(about.get('memory')),
        counters={
            _text(key): value
            for key, value in (counters.items() if isinstance(counters, dict) else ())
            if number(value, MAX_OCTETS) is not None
        },
    )


def _heard(value: object) -> Heard | None:
    sign = (entry_json.read(value) if isinstance(value, str) else None) or {}
    at = number(sign.get('at'))
    if at is None:
        return None
    return Heard(
        at,
        _text(sign.get('node')),
        _whole(sign.get('pid')),
        _text(sign.get('version')),
        number(sign.get('since')) or at,
        sign.get('stopped') is True,
    )


@lru_cache(1024)
def _counts(value: object) -> tuple[int, int]:
    """What another program wrote there counts nothing."""
    numbers = _numbers(value, 2)
    return (int(numbers[0]), int(numbers[1])) if numbers else (0, 0)


def known_from(text: object, counts: tuple[int, int], of: Server) -> Known:
    """From its record in `states`, and from how many registrations and pipes the workers have."""
    record = (entry_json.read(text) if isinstance(text, str) else None) or {}
    state, since = record.get('state'), number(record.get('since'))
    seen, refused = number(record.get('seen')), number(record.get('refused'))
    found = Known(
        waiting=counts[0],
        pipes=counts[1],
        address=_text(record.get('address')),
        first=number(record.get('first')),
        refused=refused,
        why=_why(record.get('why')),
    )
    if any(counts):
        since = since if state == ONLINE else seen
        return found._replace(state=ONLINE, since=time.time() if since is None else since)
    if since is None or state not in STATES:
        return found
    if state == ONLINE and refused and refused > max(seen or 0, since):
        state, since = REFUSED, refused  # it has left this moment: soon its record says so, too
    if state == REFUSED:
        fresh = is_fresh(refused or since, number(record.get('until')) or 0)
        if fresh and of.down_since is None:
            return found._replace(state=REFUSED, since=since)
        since = refused or since
    if found.first is None:
        return found
    if state == ONLINE:  # the workers that had it were killed, or it has left this moment
        since = lost_at(max(since, seen or 0), of)
    return found._replace(state=OFFLINE, since=since)


def is_fresh(refused: float, until: float) -> bool:
    """Whether a refusal still says something: `until` is the end of a ration that was used up."""
    return time.time() < max(refused + REFUSED_SECONDS, until + MINUTE)


def lost_at(seen: float, of: Server) -> float:
    """When one was lost that was there at `seen`, and is not there now: with the first outage since
    then, if there was one.
    """
    down = (begin for begin, _ in of.outages if begin >= seen)
    return next(down, max(seen, of.down_since or 0))


def why_text(why: Why) -> str:
    """As Redis holds it."""
    return json.dumps(why)


def _why(value: object) -> Why | None:
    if not isinstance(value, list) or len(value) != len(Why._fields):
        return None
    kind, seconds, sure, other = value
    return Why(_text(kind), _signed(seconds), bool(sure), _text(other))


def _signed(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < MAX_OCTETS else 0


def _changes(rows: object, start: float) -> list[Change]:
    """Those since `start`, and the last one before it."""
    found = []
    for row in rows if isinstance(rows, list) else ():
        at, _, state = row.partition(' ')
        numbers = _numbers(at, 1)
        if numbers and state in STATES:
            found.append(Change(numbers[0], state))
    first = sum(after.at <= start for _, after in pairwise(found))
    return found[first:]


def _hours(days: list[int], texts: object, first: int, last: int) -> list[Hour]:
    found = [Hour()] * (last - first + 1)
    pairs = zip(days, texts, strict=True) if isinstance(texts, list) else ()
    for day, text in pairs:
        for line in (text or '').splitlines():
            numbers = _numbers(line, 5)
            if numbers and first <= (hour := day * 24 + int(numbers[0])) <= last:
                found[hour - first] = Hour(*map(int, numbers[1:]))
    return found


def _refusals(field: str, value: str) -> Refusals | None:
    row: Json = entry_json.read(value) or {}
    why, first, last = _why(row.get('why')), number(row.get('first')), number(row.get('last'))
    if why is None or first is None or last is None:
        return None
    address, until = _text(field.partition(' ')[2]), number(row.get('until')) or 0
    return Refusals(why, address, first, last, _whole(row.get('count')) or 1, until)


def _rendezvous(row: Json | None) -> Rendezvous | None:
    row = row or {}
    at, seconds = number(row.get('at')), number(row.get('seconds'))
    sent, received = (number(row.get(name), MAX_OCTETS) for name in ('sent', 'received'))
    if at is None or seconds is None or sent is None or received is None:
        return None
    ends = _text(row.get('address')), _text(row.get('how'))
    return Rendezvous(at, ends[0], seconds, int(sent), int(received), ends[1])


def _numbers(value: object, count: int) -> list[float] | None:
    """So many numbers between spaces, none below 0; None where it is anything else."""
    words = value.split(' ') if isinstance(value, str) else []
    if len(words) != count:
        return None
    try:
        found = [float(word) for word in words]
    except ValueError:
        return None
    return found if all(0 <= each < MAX_OCTETS for each in found) else None


def _whole(value: object) -> int:
    return int(number(value, MAX_OCTETS) or 0)


def _text(value: object) -> str:
    return printable(value[:TEXT]) if isinstance(value, str) else ''
