"""Who is here and who was: each server writes it to Redis, in batches, and the page reads it.

No rendezvous waits for it: a greenlet looks once a second at what has changed. What a server that
was killed left behind ages out.
"""

import json
import logging
import secrets
import time
from collections import deque
from contextlib import suppress
from typing import NamedTuple

import gevent

from entries import Entries, StoreDown
from entry_json import LATEST
from waiting import Waiting

log = logging.getLogger('live')

WRITE_SECONDS = 1
SIGN_SECONDS = 10  # so often a server says that it lives; each time costs a write to the disk
AGE_SECONDS = 30  # without a sign, a server is taken for dead
HISTORY = 100  # rendezvous of an entry that are kept
BACKLOG = 10_000  # rendezvous that are remembered while Redis is down, some 3 MB

# Nothing is written of an entry that is not there (any more), or it would stay for ever. Answers
# whether the server's hash is there: it may have aged out while the server was held up.
_WRITE = """
local batch = cjson.decode(ARGV[1])
for uuid, counts in pairs(batch.counts) do
  if counts == '' then
    redis.call('HDEL', KEYS[1], uuid)
  else
    redis.call('HSET', KEYS[1], uuid, counts)
  end
end
for uuid, seen in pairs(batch.seen) do
  if redis.call('EXISTS', uuid) == 1 then
    redis.call('SET', 'seen:' .. uuid, seen)
  end
end
for _, ended in ipairs(batch.ended) do
  local uuid, rendezvous = unpack(ended)
  if redis.call('EXISTS', uuid) == 1 then
    redis.pcall('LPUSH', 'rendezvous:' .. uuid, rendezvous) -- somebody else may have made it a text
    redis.pcall('LTRIM', 'rendezvous:' .. uuid, 0, batch.history - 1)
  end
end
return redis.call('EXPIRE', KEYS[1], batch.age)
"""


class Now(NamedTuple):
    """What is known of a hidden server at this moment, from all servers together."""

    waiting: int = 0
    pipes: int = 0
    seen: float | None = None  # seconds since 1970
    address: str = ''


class Live:
    """What one server tells of its registrations and pipes."""

    def __init__(self, entries: Entries, waiting: Waiting):
        self._entries, self._waiting = entries, waiting
        self._key = f'live:{secrets.token_hex(8)}'
        self._written: dict[str, str] = {}  # as Redis has it
        self._signed_at = 0.0
        self._seen: dict[str, str] = {}
        self._ended: deque[tuple[str, str]] = deque(maxlen=BACKLOG)

    def seen(self, uuid: str, address: str) -> None:
        """The hidden server was here just now."""
        self._seen[uuid] = json.dumps({'at': time.time(), 'address': address})

    def ended(self, uuid: str, **rendezvous) -> None:
        """One is over; what is said of it is what `history` gives."""
        self._ended.append((uuid, json.dumps(rendezvous)))

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
        texts = {uuid: f'{waiting} {pipes}' for uuid, (waiting, pipes) in counts.items()}
        changed = {uuid: text for uuid, text in texts.items() if self._written.get(uuid) != text}
        changed |= dict.fromkeys(self._written.keys() - texts.keys(), '')
        due = texts and time.monotonic() - self._signed_at > SIGN_SECONDS
        seen, ended = dict(self._seen), list(self._ended)
        if not (changed or seen or ended or due):
            return
        batch = {'counts': changed, 'seen': seen, 'ended': ended}
        batch |= {'age': AGE_SECONDS, 'history': HISTORY}
        there = self._entries.ask(lambda redis: redis.eval(_WRITE, 1, self._key, json.dumps(batch)))
        self._signed_at = time.monotonic()
        self._written = texts if there else {}
        self._seen = {uuid: text for uuid, text in self._seen.items() if seen.get(uuid) != text}
        for _ in ended:
            self._ended.popleft()


def now(entries: Entries) -> dict[str, Now]:
    """By UUID, whatever is known of now; raises StoreDown."""

    def read(redis) -> tuple[list[dict], dict[str, str]]:
        keys = redis.scan_iter('live:*', count=1000)
        servers = [redis.hgetall(key) for key in keys if redis.type(key) == 'hash']
        keys = list(redis.scan_iter('seen:*', count=1000))
        return servers, dict(zip(keys, redis.mget(keys), strict=True)) if keys else {}

    servers, seen = entries.ask(read)
    found = {key.partition(':')[2]: _seen(value) for key, value in seen.items()}
    for server in servers:
        for uuid, counts in server.items():
            with suppress(ValueError):  # somebody else's hash is no server of ours
                waiting, pipes = map(int, counts.split())
                known = found.get(uuid, Now())
                counted = {'waiting': known.waiting + waiting, 'pipes': known.pipes + pipes}
                found[uuid] = known._replace(seen=time.time(), **counted)
    return found


def _seen(value: str | None) -> Now:
    """What somebody else wrote there is nothing."""
    with suppress(ValueError, TypeError, KeyError):
        sign = json.loads(value)
        if 0 < sign['at'] < LATEST:
            return Now(seen=float(sign['at']), address=str(sign['address']))
    return Now()


def history(entries: Entries, uuid: str) -> list[dict]:
    """The last rendezvous, the newest first: `at` (seconds since 1970), `address` of the mobile
    client, `seconds`, `sent` (octets from the mobile client), `received` (from the hidden server),
    `how` it ended. Raises StoreDown.
    """
    texts = entries.ask(lambda redis: redis.lrange(f'rendezvous:{uuid}', 0, HISTORY - 1))
    return [each for each in map(_rendezvous, texts) if each]


def _rendezvous(text: str) -> dict | None:
    with suppress(ValueError, TypeError, KeyError, OverflowError):
        each = json.loads(text)
        told = {name: str(each[name]) for name in ('address', 'how')}
        told |= {name: int(each[name]) for name in ('sent', 'received')}
        told |= {name: float(each[name]) for name in ('at', 'seconds')}
        if 0 < told['at'] < LATEST and 0 <= told['seconds'] < LATEST:
            return told
    return None
