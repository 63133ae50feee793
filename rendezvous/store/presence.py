"""Who is here and who was: each server writes it to Redis, in batches, and the page reads it.

No rendezvous waits for it: a greenlet looks once a second at what has changed. What a server that
was killed left behind ages out.
"""

import json
import logging
import re
import secrets
import time
from collections import deque
from itertools import islice
from typing import NamedTuple

import gevent

from rendezvous.server.registry import Registry
from rendezvous.store import entry_json
from rendezvous.store.entries import ANY_UUID, SLICE, Entries, StoreDown, scan, slices
from rendezvous.store.entry_json import LATEST, printable

log = logging.getLogger('live')

WRITE_SECONDS = 1
SIGN_SECONDS = 10  # so often a server says that it lives; each time costs a write to the disk
AGE_SECONDS = 30  # without a sign, a server is taken for dead
HISTORY = 100  # rendezvous of an entry that are kept
REFUSALS = 20  # of an entry that are kept
BACKLOG = 10_000  # rendezvous that are remembered while Redis is down, some 3 MB
REFUSED = 1000  # UUIDs whose refusals are remembered until they are written, some 3 MB
BATCH = 500  # of each kind in a batch: neither we nor Redis are held up for long
DAY_SECONDS = 86_400
SERVERS = 'live:' + '?' * 16, 10_000  # as Redis matches keys; few of so many do
OCTETS = 2**53  # that a rendezvous may have had: JavaScript's numbers end there
TEXT = 200  # characters of an address, or of how something ended, that are shown

_COUNTS = re.compile('([0-9]{1,9}) ([0-9]{1,9})', re.A)

# Nothing is written of an entry that is not there (any more), or it would stay for ever. Answers 0,
# and has written nothing, where the hash is not there that is to be changed: it has aged out or was
# flushed. KEYS[2] holds the number of the last batch: it may come again when its answer was lost.
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
  local kind = redis.call('TYPE', key).ok -- somebody else may have made it a text
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

    waiting: int = 0
    pipes: int = 0
    seen: float | None = None  # seconds since 1970
    address: str = ''


class Live:
    """What one server tells of its registrations and pipes."""

    def __init__(self, entries: Entries, waiting: Registry):
        self._entries, self._waiting = entries, waiting
        name = secrets.token_hex(8)
        self._key, self._number_key, self._number = f'live:{name}', f'batch:{name}', 0
        self._written: dict[str, tuple[int, int]] = {}  # as Redis has them
        self._signed_at = 0.0
        self._seen: dict[str, str] = {}
        self._ended: deque[tuple[str, str]] = deque(maxlen=BACKLOG)
        self._refused: dict[str, deque[str]] = {}  # the oldest UUID first
        self._unsure: dict = {}  # the batch that was sent, and no answer came

    def seen(self, uuid: str, address: str) -> None:
        """The hidden server was here just now."""
        self._seen[uuid] = json.dumps({'at': time.time(), 'address': address})

    def ended(self, uuid: str, **rendezvous) -> None:
        """One is over; what is said of it is what `history` gives."""
        self._ended.append((uuid, json.dumps(rendezvous)))

    def refused(self, uuid: str, address: str, why: str) -> None:
        """A registration of it was refused; `refusals` gives the last ones."""
        texts = self._refused.pop(uuid, deque(maxlen=REFUSALS))
        texts.append(json.dumps({'at': time.time(), 'address': address, 'why': why}))
        self._refused[uuid] = texts
        if len(self._refused) > REFUSED:
            del self._refused[next(iter(self._refused))]

    def run(self) -> None:
        """For ever: writes what has changed."""
        down = False
        while True:
            gevent.sleep(WRITE_SECONDS)
            try:
                self.write(self._waiting.counts())
                down = False
            except StoreDown as error:
                if not down:
                    log.error('%s; the page does not show what happens now', error)
                down = True

    def write(self, counts: dict[str, tuple[int, int]]) -> None:
        """Writes what has changed since the last time. Raises StoreDown, and nothing is lost."""
        if self._unsure:
            self._send(self._unsure)
        while batch := self._batch(counts):
            self._send(batch)
            gevent.sleep(0)

    def _batch(self, counts: dict[str, tuple[int, int]]) -> dict:
        """What is to be told, or a part of it; {}: there is nothing."""
        gone = self._written.keys() - counts.keys()
        changed = {
            uuid: count for uuid, count in counts.items() if self._written.get(uuid) != count
        }
        changed = dict(islice((changed | dict.fromkeys(gone, '')).items(), BATCH))
        due = counts and time.monotonic() - self._signed_at > SIGN_SECONDS
        if not (changed or self._seen or self._ended or self._refused or due):
            return {}
        self._number += 1
        seen = {uuid: self._seen.pop(uuid) for uuid in list(islice(self._seen, BATCH))}
        return {'counts': changed, 'seen': seen, 'rows': self._rows(), 'number': str(self._number)}

    def _rows(self) -> list[tuple[str, str, str, int]]:
        """Each is for a list of Redis: its name, the UUID, the row, how many are kept."""
        ended = [self._ended.popleft() for _ in range(min(BATCH, len(self._ended)))]
        rows = [('rendezvous', uuid, text, HISTORY) for uuid, text in ended]
        for uuid in list(islice(self._refused, BATCH // REFUSALS)):
            rows += [('refused', uuid, text, REFUSALS) for text in self._refused.pop(uuid)]
        return rows

    def _send(self, batch: dict) -> None:
        """Sends it until it is written; what comes meanwhile is for the next one."""
        self._unsure = batch
        if not self._ask(batch):  # all that the hash held is to be written anew
            self._written = {}
            batch['counts'] = {}
            self._ask(batch)
        self._unsure = {}
        self._signed_at = time.monotonic()
        for uuid, count in batch['counts'].items():
            if count:
                self._written[uuid] = count
            else:
                self._written.pop(uuid, None)

    def _ask(self, batch: dict) -> bool:
        """Whether it is written; not where the hash is not there that it is to change."""
        counts = {uuid: count and '{} {}'.format(*count) for uuid, count in batch['counts'].items()}
        more = {'counts': counts, 'whole': not self._written}
        more |= {'age': AGE_SECONDS, 'remember': DAY_SECONDS}
        keys, text = (self._key, self._number_key), json.dumps(batch | more)
        return bool(self._entries.ask(lambda redis: redis.eval(_WRITE, 2, *keys, text)))


def now(entries: Entries) -> dict[str, Now]:
    """By UUID, whatever is known of now; raises StoreDown."""
    found = {}
    signs = entries.ask(lambda redis: scan(redis, f'seen:{ANY_UUID}'))
    for keys in slices(signs):
        values = entries.ask(lambda redis, keys=keys: redis.mget(keys))
        pairs = zip(keys, values, strict=True)
        found |= {key.removeprefix('seen:'): _seen(value) for key, value in pairs}
    for key in entries.ask(lambda redis: scan(redis, *SERVERS)):
        for some in slices(entries.ask(lambda redis, key=key: _fields(redis, key)).items()):
            found |= {uuid: _with(found.get(uuid, Now()), counts) for uuid, counts in some}
    return found


def now_of(entries: Entries, uuid: str) -> Now:
    """What is known of one; raises StoreDown."""

    def read(redis) -> list:
        servers = scan(redis, *SERVERS)
        with redis.pipeline(transaction=False) as questions:
            questions.mget(f'seen:{uuid}')
            for key in servers:
                questions.hget(key, uuid)
            return questions.execute(raise_on_error=False)  # somebody else's key is no hash

    (seen,), *counts = entries.ask(read)
    found = _seen(seen)
    for each in counts:
        found = _with(found, each)
    return found


def _fields(redis, key: str) -> dict[str, str]:
    """What a hash holds; somebody else's key is none."""
    if redis.type(key) != 'hash':
        return {}
    found = redis.hscan_iter(key, count=SLICE)
    return {uuid: counts for some in slices(found) for uuid, counts in some}


def _with(known: Now, counts) -> Now:
    """With what one server counts; what somebody else wrote there is nothing."""
    numbers = _COUNTS.fullmatch(counts) if isinstance(counts, str) else None
    if not numbers:
        return known
    waiting, pipes = map(int, numbers.groups())
    counted = {'waiting': known.waiting + waiting, 'pipes': known.pipes + pipes}
    return known._replace(seen=time.time(), **counted)


def _seen(value: str | None) -> Now:
    """What somebody else wrote there is nothing."""
    sign = entry_json.read(value) or {}
    at = _number(sign.get('at'))
    return Now() if at is None else Now(seen=at, address=_text(sign.get('address')))


def history(entries: Entries, uuid: str) -> list[dict]:
    """The last rendezvous, the newest first: `at` (seconds since 1970), `address` of the mobile
    client, `seconds`, `sent` (octets from the mobile client), `received` (from the hidden server),
    `how` it ended. Raises StoreDown.
    """
    return [each for each in map(_rendezvous, _rows(entries, 'rendezvous', uuid)) if each]


def refusals(entries: Entries, uuid: str) -> list[dict]:
    """The last refused registrations, the newest first: `at` (seconds since 1970), `address`, and
    `why`. Raises StoreDown.
    """
    return [each for each in map(_refusal, _rows(entries, 'refused', uuid)) if each]


def _rows(entries: Entries, name: str, uuid: str) -> list[dict]:
    """The rows of a list that make sense; none where somebody else's key is no list."""
    key = f'{name}:{uuid}'
    texts = entries.ask(
        lambda redis: redis.lrange(key, 0, HISTORY - 1) if redis.type(key) == 'list' else []
    )
    return [row for row in map(entry_json.read, texts) if row]


def _rendezvous(row: dict) -> dict | None:
    told = {name: _number(row.get(name)) for name in ('at', 'seconds')}
    octets = {name: _number(row.get(name), OCTETS) for name in ('sent', 'received')}
    if None in (told | octets).values():
        return None
    told |= {name: int(count) for name, count in octets.items()}
    return told | {name: _text(row.get(name)) for name in ('address', 'how')}


def _refusal(row: dict) -> dict | None:
    at = _number(row.get('at'))
    told = {'at': at} | {name: _text(row.get(name)) for name in ('address', 'why')}
    return None if at is None else told


def _number(value, most: int = LATEST) -> float | None:
    """One that can be shown: neither NaN nor of 400 digits."""
    known = type(value) in (int, float) and 0 <= value < most
    return float(value) if known else None


def _text(value) -> str:
    return printable(value[:TEXT]) if isinstance(value, str) else ''
