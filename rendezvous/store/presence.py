"""Who is online and who was: each server writes it to Redis, in batches, and the page reads it.

No rendezvous waits for it: a greenlet looks once a second at what has changed. What a server that
was killed left behind expires.
"""

import json
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple, TypedDict, Unpack

import gevent

from rendezvous.store.entries import Entries, StoreDown
from rendezvous.store.entry_json import Json
from rendezvous.store.state import Why, live

log = logging.getLogger('presence')

WRITE_SECONDS = 1  # between two batches
DOWN_SECONDS = 5  # the same, after a failure: each write to a full disk ends the embedded store
HEARTBEAT_SECONDS = 10  # a server without changes writes as often; each time costs a disk write
AGE_SECONDS = 30  # the counts of a server without a heartbeat expire
HISTORY = 100  # rendezvous of an entry that are kept
REFUSALS = 20  # of an entry that are kept
BACKLOG = 10_000  # rendezvous that wait in memory while Redis is down, some 3 MB
REFUSED = 1000  # UUIDs whose refusals wait in memory until they are written, some 3 MB
BATCH = 500  # of each kind in a batch: neither the server nor Redis is blocked for long
DAY_SECONDS = 86_400
SERVERS = 'live:' + '?' * 16, 10_000  # as Redis matches keys; few of that many match
MAX_OCTETS = 2**53  # of a rendezvous: JavaScript's numbers are exact up to here
TEXT = 200  # characters of an address or a reason that are shown

_COUNTS = re.compile('([0-9]{1,9}) ([0-9]{1,9})', re.A)

# Nothing is written for an entry that does not exist: nobody would delete it. The answer is 0, and
# nothing is written, where the hash is missing that is to be changed: it has expired, or Redis was
# flushed. KEYS[2] holds the number of the last batch: a batch whose answer was lost comes twice.
_WRITE = """
local batch = cjson.decode(ARGV[1])
if redis.call('GET', KEYS[2]) == batch.number then
  return 1
end
if not batch.whole and redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
for uuid, counts in pairs(batch.counts) do
  if counts == '' then
    redis.call('HDEL', KEYS[1], uuid)
  else
    redis.call('HSET', KEYS[1], uuid, counts)
  end
end
redis.call('EXPIRE', KEYS[1], batch.age)
for uuid, seen in pairs(batch.seen) do
  if redis.call('EXISTS', uuid) == 1 then
    redis.call('SET', 'seen:' .. uuid, seen)
  end
end
for _, row in ipairs(batch.rows) do
  local list, uuid, text, most = unpack(row)
  local key = list .. ':' .. uuid
  local kind = redis.call('TYPE', key).ok -- another program may have written a text there
  if redis.call('EXISTS', uuid) == 1 and (kind == 'list' or kind == 'none') then
    redis.call('LPUSH', key, text)
    redis.call('LTRIM', key, 0, most - 1)
  end
end
redis.call('SET', KEYS[2], batch.number, 'EX', batch.remember)
return 1
"""


class Now(NamedTuple):
    """What is known of a hidden server at this moment, from all servers together."""

    waiting: int = 0  # registrations
    pipes: int = 0
    seen: float | None = None  # when it was last seen, in seconds since 1970
    address: str = ''


class LastSeen(TypedDict):
    """Where and when a hidden server was last seen; times are in seconds since 1970."""

    at: float
    address: str


class RendezvousRow(TypedDict):
    """A rendezvous that is over."""

    at: float  # its start
    address: str  # of the mobile client
    seconds: float
    sent: int  # octets from the mobile client
    received: int  # octets from the hidden server
    how: str  # it ended


class RefusalRow(TypedDict):
    """A registration that was refused."""

    at: float
    address: str
    why: str


Counts = dict[str, tuple[int, int]]  # by UUID: registrations that wait, and pipes
Row = tuple[str, str, str, int]  # for a list in Redis: its name, UUID, the text, how many are kept


class Batch(TypedDict):
    """What one call of the script writes."""

    counts: dict[str, tuple[int, int] | None]  # None: the hidden server has gone
    seen: dict[str, str]
    rows: list[Row]
    number: str


class Presence:
    """What one server writes about its registrations and pipes."""

    def __init__(self, entries: Entries, about: Callable[[], Json] = dict):
        """`about`: what this worker says of itself at each batch, as state.Worker has it."""
        self._entries, self._about = entries, about
        self.name = secrets.token_hex(8)
        self.channel = self.key = live(self.name)
        self._number_key, self._number = f'batch:{self.name}', 0
        self._written: Counts = {}  # as Redis holds them
        self._heartbeat_at = 0.0
        self._seen: dict[str, LastSeen] = {}
        self._rendezvous: deque[tuple[str, str]] = deque(maxlen=BACKLOG)
        self._refused: dict[str, deque[str]] = {}  # the oldest UUID first
        self._unanswered: Batch | None = None  # it was sent, and no answer came

    def note_online(self, uuid: str, address: str) -> None:
        """It was seen just now: a registration began or ended."""
        self._seen[uuid] = {'at': time.time(), 'address': address}

    def note_rendezvous(self, uuid: str, **rendezvous: Unpack[RendezvousRow]) -> None:
        """A rendezvous is over; `history` gives the last ones."""
        self._rendezvous.append((uuid, json.dumps(rendezvous)))

    def note_octets(self, uuid: str, sent: int, received: int) -> None:
        """So many more, of a pipe that goes on. Its note_rendezvous says how many were noted."""

    def note_failure(self, uuid: str) -> None:
        """A mobile client got no registration of it."""

    def stop(self) -> None:
        """A clean end: writes what is left, and that this worker is gone. Raises StoreDown."""
        self.write({})

    def note_refusal(self, uuid: str, address: str, why: Why, until: float = 0) -> None:
        """A registration was refused; `until`: when a ration that is used up allows a try again."""
        texts = self._refused.pop(uuid, deque(maxlen=REFUSALS))
        texts.append(json.dumps(RefusalRow(at=time.time(), address=address, why=why[0])))
        self._refused[uuid] = texts
        if len(self._refused) > REFUSED:
            del self._refused[next(iter(self._refused))]

    def run(self, counts: Callable[[], Counts]) -> None:
        """Without end: writes what has changed."""
        pause = WRITE_SECONDS
        while True:
            gevent.sleep(pause)
            try:
                self.write(counts())
                pause = WRITE_SECONDS
            except StoreDown as error:
                if pause == WRITE_SECONDS:
                    log.error('%s; until the store answers, the page shows nothing new', error)
                pause = DOWN_SECONDS

    def write(self, counts: Counts) -> None:
        """Writes what has changed since the last time. Raises StoreDown, and nothing is lost.

        What happens meanwhile is for the next time: each batch costs a disk write.
        """
        if self._unanswered:
            self._send(self._unanswered)
        was_full = True
        while batch := self._batch(counts, was_full):
            self._send(batch)
            gevent.sleep(0)
            was_full = _may_be_full(batch)

    def _batch(self, counts: Counts, with_news: bool) -> Batch | None:
        """What is to be written, or a part of it; None: there is nothing, or nothing but news."""
        changed: dict[str, tuple[int, int] | None] = {
            uuid: count for uuid, count in counts.items() if self._written.get(uuid) != count
        }
        changed |= dict.fromkeys(self._written.keys() - counts.keys())
        is_due = counts and time.monotonic() - self._heartbeat_at > HEARTBEAT_SECONDS
        news = with_news and (self._seen or self._rendezvous or self._refused)
        if not (changed or news or is_due):
            return None
        self._number += 1
        return {
            'counts': dict(islice(changed.items(), BATCH)),
            'seen': {
                uuid: json.dumps(self._seen.pop(uuid)) for uuid in list(islice(self._seen, BATCH))
            },
            'rows': self._rows(),
            'number': str(self._number),
        }

    def _rows(self) -> list[Row]:
        ended = [self._rendezvous.popleft() for _ in range(min(BATCH, len(self._rendezvous)))]
        rows = [('rendezvous', uuid, text, HISTORY) for uuid, text in ended]
        for uuid in list(islice(self._refused, BATCH // REFUSALS)):
            rows += [('refused', uuid, text, REFUSALS) for text in self._refused.pop(uuid)]
        return rows

    def _send(self, batch: Batch) -> None:
        """Sends it until it is written; what comes meanwhile goes into the next one."""
        self._unanswered = batch
        if not self._ask(batch):  # Redis has lost the hash: all counts are written once more
            self._written = {}
            batch['counts'] = {}
            self._ask(batch)
        self._unanswered = None
        self._heartbeat_at = time.monotonic()
        for uuid, count in batch['counts'].items():
            if count:
                self._written[uuid] = count
            else:
                self._written.pop(uuid, None)

    def _ask(self, batch: Batch) -> bool:
        """Whether it is written; False: the hash that it changes is missing."""
        counts = {
            uuid: '{} {}'.format(*count) if count else '' for uuid, count in batch['counts'].items()
        }
        more = {'counts': counts, 'whole': not self._written}
        more |= {'age': AGE_SECONDS, 'remember': DAY_SECONDS}
        keys, text = (self.key, self._number_key), json.dumps(batch | more)
        return bool(self._entries.ask(lambda redis: redis.eval(_WRITE, 2, *keys, text)))


def _may_be_full(batch: Batch) -> bool:
    """Whether there may have been more than the batch holds."""
    each = len(batch['counts']), len(batch['seen'])
    return max(each) >= BATCH or len(batch['rows']) >= BATCH // REFUSALS
