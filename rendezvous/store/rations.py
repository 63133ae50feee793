"""Limits on wrong codes: four rations, the first in memory, the others in Redis.

At any time three codes of six digits are right: a guess has 3 chances in 1,000,000, and a server
can be asked hundreds of times a second. The rations are

1. of an address, for all hidden servers together: MOST in a quarter of an hour
2. of an address, for one hidden server: wrong_codes_per_address in a quarter of an hour
3. of one hidden server, for strangers: addresses that did not register it within the last month;
   wrong_codes_per_day, for all of them together
4. of one hidden server, for each friend: an address that did; wrong_codes_per_day, too.

No answer shows whether a UUID has an entry: rations 1 and 2 count in the same way for all UUIDs,
and beyond rations 3 and 4 the answer is the same as to a wrong code.

A long code, which nobody guesses, is judged by the record of the entry alone. A short one is judged
in this order:

1. Are rations 3 and 4 used up? Then it counts as wrong from here on, whatever it is.
2. The address: are rations 1 and 2 used up? If not, a try that counts as wrong is counted, in the
   same step: of a thousand tries at once only as many as the rations allow are checked.
3. The record: the same for rations 3 and 4.

So a right code that is not let in takes the same steps as a wrong one, and is counted as often:
neither the time nor a later 429 tells the two apart. One script does all this, whole or not at all.

In a Redis Cluster the tries of the addresses and the record are on two machines. There each step is
a script of its own, other tries may come in between, and there is a fourth step:

4. Where these were used up between steps 1 and 3, the address once more: that counts a right code,
   which step 2 did not, or refuses it; for a wrong code it does the same work for nothing.
"""

import math
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from gevent.lock import Semaphore

from rendezvous.store import keys

QUARTER, DAY = 15 * 60, 24 * 60 * 60  # seconds
MOST = 100  # ration 1: wrong codes of an address in a quarter of an hour
AT_ONCE = 8  # codes of an address that are checked at a time; half of the connections to Redis
MAX_ADDRESSES = 10_000  # kept in memory, 10 MB at most; a botnet has more
MAX_SHARED = 100_000  # addresses kept in Redis, some 300 octets each

CLEARED = 'tries'  # the channel on which cleared addresses are published
NOBODY = keys.of(keys.GUESSES, 'nobody')  # the record for all UUIDs without an entry

# A Redis that refuses to write must not keep hidden servers out: `refused` says why it did.
_COMMON = """
local QUARTER, DAY, MONTH, MAX_FRIENDS = 15 * 60, 24 * 60 * 60, 30 * 24 * 60 * 60, 200
local refused = ''

local function write(...)
  local answer = redis.pcall(...)
  refused = type(answer) == 'table' and answer.err or refused
end

local function read(text)
  return text and cmsgpack.unpack(text) or {}
end

local function after(times, start)
  local found = {}
  for _, at in ipairs(times or {}) do
    if at > start then
      table.insert(found, at)
    end
  end
  return found
end
"""

# Rations 1 and 2. `addresses` is a hash: for each address, the times of its wrong tries by UUID.
# `latest` holds the time of the last one of each. `cleared` holds since when the tries of a UUID
# count, for a quarter of an hour: nobody looks for them at each address. ARGV[3]: 'look' counts
# nothing, 'count' does, 'again' has been counted and takes as long.
_BY_ADDRESS = """
local addresses, latest, cleared = unpack(KEYS)
local uuid, place, how = unpack(ARGV)
local per_address, now = tonumber(ARGV[4]), tonumber(ARGV[5])
local most, max_addresses = tonumber(ARGV[6]), tonumber(ARGV[7])

local function to_wait(times, most)
  return math.max(1, math.ceil(times[#times - most + 1] + QUARTER - now))
end

local tried, all = {}, {}
for id, times in pairs(read(redis.call('HGET', addresses, place))) do
  times = after(times, now - QUARTER)
  tried[id] = times[1] and times
  for _, at in ipairs(times) do
    table.insert(all, at)
  end
end
local mine = after(tried[uuid], tonumber(redis.call('ZSCORE', cleared, uuid) or 0))
if how ~= 'again' then
  if #all >= most then
    table.sort(all)
    return {1, to_wait(all, most), 0, refused}
  elseif #mine >= per_address then
    return {2, to_wait(mine, per_address), 0, refused}
  end
end

if how == 'look' then
  return {0, 0, 0, refused}
elseif how == 'count' then
  tried[uuid] = tried[uuid] or {}
  table.insert(tried[uuid], now)
end
write('HSET', addresses, place, cmsgpack.pack(tried))
write('ZADD', latest, now, place)
local old = redis.call('ZRANGEBYSCORE', latest, '-inf', now - QUARTER, 'LIMIT', 0, 10)
if redis.call('ZCARD', latest) - #old > max_addresses then
  table.insert(old, redis.call('ZRANGE', latest, #old, #old)[1])
end
if old[1] then
  write('HDEL', addresses, unpack(old))
  write('ZREM', latest, unpack(old))
end
return {0, 0, 0, refused}
"""

# Rations 3 and 4. `record` is a hash for one entry: the times of strangers' wrong tries and when
# those were used up; for each friend when it was last right, and its wrong tries; and since when
# tries count. But for 'look', it is written in any case: so the time that it takes shows nothing.
_BY_RECORD = """
local record = KEYS[1]
local place, code, per_day, now = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local function befriend()
  local field, friends = nil, {}
  for i, text in ipairs(redis.call('HGETALL', record)) do
    if i % 2 == 1 then
      field = text
    elseif string.find(field, '[.:]') and field ~= place then -- of an address
      table.insert(friends, {address = field, at = read(text).at})
    end
  end
  table.sort(friends, function(a, b) return a.at > b.at end)
  for i, friend in ipairs(friends) do
    if i >= MAX_FRIENDS or friend.at + MONTH < now then
      write('HDEL', record, friend.address)
    end
  end
end

local strangers, since, used_up, of_place =
  unpack(redis.call('HMGET', record, 'strangers', 'since', 'used_up', place))
local friend = of_place and read(of_place)
if friend and friend.at + MONTH < now then
  friend = nil
end
local wrong = friend and friend.wrong or not friend and read(strangers)
wrong = after(wrong, math.max(now - DAY, tonumber(since or 0)))
local ration, just_now = 0, 0
if code ~= 'long' and per_day > 0 and #wrong >= per_day then
  ration = friend and 4 or 3
elseif code == 'wrong' then
  table.insert(wrong, now)
  if #wrong == per_day and not friend and tonumber(used_up or 0) + DAY < now then
    write('HSET', record, 'used_up', now)
    just_now = 1
  end
end
if code == 'look' then
  return {ration, 0, 0, refused}
end
if code ~= 'wrong' and ration == 0 then
  if place ~= '' and (not friend or friend.at + DAY < now) then -- each write waits for the disk
    befriend()
    write('HSET', record, place, cmsgpack.pack({at = now, wrong = friend and wrong or {}}))
    write('EXPIRE', record, MONTH)
  end
  return {0, 0, 0, refused}
end

if friend then
  write('HSET', record, place, cmsgpack.pack({at = friend.at, wrong = wrong}))
else
  write('HSET', record, 'strangers', cmsgpack.pack(wrong))
end
write('EXPIRE', record, MONTH)
return {ration, 0, just_now, refused}
"""

# Steps 1 to 3 at once: keys and arguments are those of BY_ADDRESS, and behind them the record, the
# code and per_day.
_BY_BOTH = f"""
local function by_address(KEYS, ARGV) {_BY_ADDRESS} end
local function by_record(KEYS, ARGV) {_BY_RECORD} end

local function of_record(code)
  return by_record({{KEYS[4]}}, {{ARGV[2], code, ARGV[9], ARGV[5]}})
end

local code = ARGV[8]
local is_used_up = of_record('look')[1] > 0
ARGV[3] = (is_used_up or code == 'wrong') and 'count' or 'look'
local of_address = by_address(KEYS, ARGV)
return of_address[1] > 0 and of_address or of_record(code)
"""

BY_ADDRESS, BY_RECORD, BY_BOTH = (_COMMON + each for each in (_BY_ADDRESS, _BY_RECORD, _BY_BOTH))


class Verdict(NamedTuple):
    """The answer to a try.

    When ration 1 or 2 is used up, the try is refused; when 3 or 4 is, its code counts as wrong.
    """

    ration: int = 0  # the one that is used up; 0: none
    seconds: int = 0  # until the next try may be made
    used_up: bool = False  # this try used up ration 3, for the first time within a day
    refused: str = ''  # why Redis did not write the try down


class Try(NamedTuple):
    """An attempt to register `uuid`; Entries.count_try says what `place` and `code` are."""

    uuid: str
    place: str
    code: str
    known: bool
    now: float
    per_address: int
    per_day: int


def judge(run: Callable[..., Any], tried: Try, *, is_cluster: bool) -> Verdict:
    """What the rations say to it; counts it. `run` is that of Entries. Raises StoreDown."""
    if not tried.place or tried.code == 'long':
        return _by_record(run, tried, tried.code)
    if not is_cluster:
        more = tried.code, tried.per_day
        return _verdict(run(BY_BOTH, [*_NAMES, _record(tried)], [*_of_address(tried, ''), *more]))
    were_used_up = _by_record(run, tried, 'look').ration > 0
    counts = tried.code == 'wrong' or were_used_up
    of_address = _by_address(run, tried, 'count' if counts else 'look')
    if of_address.ration:
        return of_address
    verdict = _by_record(run, tried, tried.code)
    if verdict.ration and not were_used_up:
        of_address = _by_address(run, tried, 'again' if counts else 'count')
        if of_address.ration:
            return of_address
    return verdict._replace(refused=of_address.refused or verdict.refused)


_NAMES = keys.ADDRESSES, keys.LATEST, keys.CLEARED


def _of_address(tried: Try, how: str) -> tuple:
    limits = tried.per_address, tried.now, MOST, MAX_SHARED
    return tried.uuid, tried.place, how, *limits


def _record(tried: Try) -> str:
    return record(tried.uuid) if tried.known else NOBODY


def _by_address(run: Callable[..., Any], tried: Try, how: str) -> Verdict:
    return _verdict(run(BY_ADDRESS, _NAMES, _of_address(tried, how)))


def _by_record(run: Callable[..., Any], tried: Try, code: str) -> Verdict:
    arguments = tried.place, code, tried.per_day, tried.now
    return _verdict(run(BY_RECORD, [_record(tried)], arguments))


def _verdict(answer: list) -> Verdict:
    ration, seconds, used_up, refused = answer
    return Verdict(ration, seconds, bool(used_up), refused)


class Tries:
    """Ration 1 in memory: the recent wrong codes of each address.

    It is checked before Redis is asked, so that a flood does not reach Redis, which counts for all
    servers together. `now` is in seconds of a monotonic clock.
    """

    def __init__(self):
        # The times, the oldest first; the address of the latest comes last.
        self._refused: dict[str, array] = {}
        self._turns: WeakValueDictionary[str, Semaphore] = WeakValueDictionary()

    def turn(self, place: str) -> AbstractContextManager:
        """Held while a code of that address is checked: at most AT_ONCE are at a time."""
        return self._turns.setdefault(place, Semaphore(AT_ONCE)) if place else nullcontext()

    def to_wait(self, place: str, now: float) -> int:
        """The seconds until the next code of the address is accepted; 0: now."""
        times = self._refused.pop(place, None)
        while times and times[0] + QUARTER <= now:
            del times[0]
        if not times:
            return 0
        self._refused[place] = times
        full = len(times) >= MOST
        return max(1, math.ceil(times[-MOST] + QUARTER - now)) if full else 0

    def note(self, place: str, now: float) -> None:
        """One more code was wrong."""
        if place:
            self._refused.setdefault(place, array('d')).append(now)
            if len(self._refused) > MAX_ADDRESSES:
                del self._refused[next(iter(self._refused))]

    def forget(self, place: str) -> None:
        """An administrator has cleared it."""
        self._refused.pop(place, None)


def record(uuid: str) -> str:
    """The key of an entry's record of tries."""
    return keys.of(keys.GUESSES, uuid)
