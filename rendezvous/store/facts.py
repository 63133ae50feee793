"""What is known of hidden servers and workers, and how it is read from the texts in Redis.

Nothing here asks Redis: state.py does. Another program may have written anything: what makes no
sense is nothing. Times are in seconds since 1970.
"""

import time
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from rendezvous.store import entry_json
from rendezvous.store.entry_json import Json, number, text_in

ONLINE, REFUSED, OFFLINE, DISABLED, NEVER = 'online', 'refused', 'offline', 'disabled', 'never seen'
STATES = ONLINE, REFUSED, OFFLINE, DISABLED, NEVER
# Since it left: a hidden server registers again at once after a visit, or with a new worker, which
# tells of it within a second.
LEFT_SECONDS = 2.5
REFUSED_SECONDS = 5 * 60  # after the last refusal; hidden.py tries again each minute at the latest
MINUTE, HOUR_SECONDS, DAY_SECONDS = 60, 3600, 86_400
MAX_OCTETS = 2**53  # JavaScript's numbers are exact up to here


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
        """The same, where its entry is disabled since then, whatever the hidden server does.

        None: it is not disabled; 1: nobody knows since when.
        """
        if not since:
            return self
        return self._replace(state=DISABLED, since=since if since > 1 else None)


class Worker(NamedTuple):
    """A worker that lives, as it was at its last sign, at most ten seconds ago."""

    name: str  # random, and new at each start
    at: float  # its last sign
    node: str  # `node_host`, or the host name of its machine where that is not set
    number: int  # from 1 on, among the `workers` of its machine
    workers: int
    pid: int  # of their parent, which is what systemd started
    version: str
    since: float  # when the parent began
    connections: int
    most: int  # connections that it takes
    memory: int  # octets of its own
    counters: dict[str, float]  # since it began; counters.py has their names
    host: str = ''  # the host name of its machine
    address: str = ''  # HOST:PORT, where workers of other nodes reach it; '': it is no node
    draining: float = 0  # since when it takes no new connections, to end; 0: it does take them
    waiting: int = 0  # registrations
    pipes: int = 0
    links: int = 0  # connections to workers of other nodes and from them
    not_reached: tuple[str, ...] = ()  # names of workers of other nodes that do not answer it
    ahead: float = 0  # seconds that its clock is ahead of that of Redis


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
    gone: tuple[Heard, ...] = ()  # the last signs of nodes that were not stopped, but have gone

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


def worker_from(name: str, value: object) -> Worker | None:
    about = entry_json.read(value) if isinstance(value, str) else None
    if not about:
        return None
    counters = about.get('counters')
    return Worker(
        name=name,
        at=number(about.get('at')) or 0,
        node=text_in(about.get('node')),
        number=_whole(about.get('number')),
        workers=_whole(about.get('workers')),
        pid=_whole(about.get('pid')),
        version=text_in(about.get('version')),
        since=number(about.get('since')) or 0,
        connections=_whole(about.get('connections')),
        most=_whole(about.get('most')),
        memory=_whole(about.get('memory')),
        counters={
            text_in(key): value
            for key, value in (counters.items() if isinstance(counters, dict) else ())
            if number(value, MAX_OCTETS) is not None
        },
        host=text_in(about.get('host')),
        address=text_in(about.get('address')),
        draining=number(about.get('draining')) or 0,
        waiting=_whole(about.get('waiting')),
        pipes=_whole(about.get('pipes')),
        links=_whole(about.get('links')),
        not_reached=_texts(about.get('not_reached')),
    )


def heard_from(value: object) -> Heard | None:
    sign = (entry_json.read(value) if isinstance(value, str) else None) or {}
    at = number(sign.get('at'))
    if at is None:
        return None
    return Heard(
        at,
        text_in(sign.get('node')),
        _whole(sign.get('pid')),
        text_in(sign.get('version')),
        number(sign.get('since')) or at,
        sign.get('stopped') is True,
    )


@lru_cache(1024)  # few of them differ
def counts_from(value: object) -> tuple[int, int]:
    """What another program wrote there counts nothing."""
    numbers = numbers_in(value, 2)
    return (int(numbers[0]), int(numbers[1])) if numbers else (0, 0)


def known_from(text: object, counts: tuple[int, int], of: Server) -> Known:
    """From its record in `states`, and from how many registrations and pipes the workers have."""
    record = (entry_json.read(text) if isinstance(text, str) else None) or {}
    state, since = record.get('state'), number(record.get('since'))
    seen, refused = number(record.get('seen')), number(record.get('refused'))
    found = Known(
        waiting=counts[0],
        pipes=counts[1],
        address=text_in(record.get('address')),
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
        if seen and time.time() - seen < LEFT_SECONDS and of.down_since is None:
            return found._replace(state=ONLINE, since=since)
        since = lost_at(max(since, seen or 0), of)
    return found._replace(state=OFFLINE, since=since)


def is_fresh(refused: float, until: float) -> bool:
    """Whether a refusal still says something: `until` is the end of a ration that was used up."""
    return time.time() < max(refused + REFUSED_SECONDS, until + MINUTE)


def lost_at(seen: float, of: Server) -> float:
    """When one was lost that was there at `seen`, and is not there now: with the first outage since
    then, if there was one.

    That may have begun a little before: the last sign of a server that is killed is ten seconds old
    at most.
    """
    down = (begin for begin, end in of.outages if end > seen)
    return max(seen, next(down, of.down_since or 0))


def _why(value: object) -> Why | None:
    if not isinstance(value, list) or len(value) != len(Why._fields):
        return None
    kind, seconds, sure, other = value
    return Why(text_in(kind), _signed(seconds), bool(sure), text_in(other))


def _signed(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < MAX_OCTETS else 0


def changes_from(rows: object, start: float) -> list[Change]:
    """Those since `start`, and the last one before it."""
    found = []
    for row in rows if isinstance(rows, list) else ():
        at, _, state = row.partition(' ')
        numbers = numbers_in(at, 1)
        if numbers and state in STATES:
            found.append(Change(numbers[0], state))
    first = sum(after.at <= start for _, after in pairwise(found))
    return found[first:]


def is_before(row: str, start: float) -> bool:
    numbers = numbers_in(row.partition(' ')[0], 1)
    return bool(numbers and numbers[0] <= start)


def lapse(text: str | None) -> list[str]:
    """The end of a refusal that is so old that it says nothing any more: no worker notes it."""
    record = entry_json.read(text) or {}
    refused, until = number(record.get('refused')), number(record.get('until')) or 0
    if record.get('state') != REFUSED or refused is None or is_fresh(refused, until):
        return []
    return [f'{refused} {OFFLINE if number(record.get("first")) else NEVER}']


def hours_from(days: list[int], texts: object, first: int, last: int) -> list[Hour]:
    found = [Hour()] * (last - first + 1)
    pairs = zip(days, texts, strict=True) if isinstance(texts, list) else ()
    for day, text in pairs:
        for line in (text or '').splitlines():
            numbers = numbers_in(line, 5)
            if numbers and first <= (hour := day * 24 + int(numbers[0])) <= last:
                found[hour - first] = Hour(*map(int, numbers[1:]))
    return found


def refusals_from(field: str, value: str) -> Refusals | None:
    row: Json = entry_json.read(value) or {}
    why, first, last = _why(row.get('why')), number(row.get('first')), number(row.get('last'))
    if why is None or first is None or last is None:
        return None
    address, until = text_in(field.partition(' ')[2]), number(row.get('until')) or 0
    return Refusals(why, address, first, last, _whole(row.get('count')) or 1, until)


def rendezvous_from(row: Json | None) -> Rendezvous | None:
    row = row or {}
    at, seconds = number(row.get('at')), number(row.get('seconds'))
    sent, received = (number(row.get(name), MAX_OCTETS) for name in ('sent', 'received'))
    if at is None or seconds is None or sent is None or received is None:
        return None
    ends = text_in(row.get('address')), text_in(row.get('how'))
    return Rendezvous(at, ends[0], seconds, int(sent), int(received), ends[1])


def numbers_in(value: object, count: int) -> list[float] | None:
    """So many numbers between spaces, none below 0; None where it is anything else."""
    words = value.split(' ') if isinstance(value, str) else []
    if len(words) != count:
        return None
    try:
        found = [float(word) for word in words]
    except ValueError:
        return None
    return found if all(0 <= each < MAX_OCTETS for each in found) else None


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(text_in, value)) if isinstance(value, list) else ()


def _whole(value: object) -> int:
    return int(number(value, MAX_OCTETS) or 0)
