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
"""

import math
from array import array
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple
from weakref import WeakValueDictionary

from gevent.lock import Semaphore

QUARTER, DAY = 15 * 60, 24 * 60 * 60  # seconds
MOST = 100  # ration 1: wrong codes of an address in a quarter of an hour
AT_ONCE = 8  # codes of an address that are checked at a time; half of the connections to Redis
MAX_ADDRESSES = 10_000  # kept in memory, 10 MB at most; a botnet has more
MAX_SHARED = 100_000  # addresses kept in Redis, some 300 octets each

ADDRESSES, LATEST = 'guesses:addresses', 'guesses:latest'
CLEARED = 'tries'  # the channel on which cleared addresses are published
NOBODY = 'guesses:nobody'  # the record for all UUIDs without an entry

# It is atomic: of a thousand tries at once, only as many as the rations allow are checked. The keys
# do not match ANY_UUID, which finds the entries.
#
# `addresses` is a hash: for each address, the times of its wrong tries by UUID. `latest` holds the
# time of the last one. `record` is a hash for one entry: the times of strangers' wrong tries and
# when those were used up; for each friend when it was last right, and its wrong tries; and since
# when tries count. It is written in any case: so the time that it takes shows nothing.
SCRIPT = """
local addresses, latest, record = unpack(KEYS)
local uuid, place, code = unpack(ARGV)
local per_address, per_day, now = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local most, max_addresses = tonumber(ARGV[7]), tonumber(ARGV[8])
local QUARTER, DAY, MONTH, MAX_FRIENDS = 15 * 60, 24 * 60 * 60, 30 * 24 * 60 * 60, 200
local refused = ''

local function write(...) -- a Redis that refuses to write must not keep hidden servers out
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

local function to_wait(times, most)
  return math.max(1, math.ceil(times[#times - most + 1] + QUARTER - now))
end

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
since = tonumber(since or 0)

local tried, all = {}, {}
if place ~= '' and code ~= 'long' then
  for id, times in pairs(read(redis.call('HGET', addresses, place))) do
    times = after(times, now - QUARTER)
    tried[id] = times[1] and times
    for _, at in ipairs(times) do
      table.insert(all, at)
    end
  end
  if #all >= most then
    table.sort(all)
    return {1, to_wait(all, most), 0, refused}
  end
  local mine = after(tried[uuid], since)
  if #mine >= per_address then
    return {2, to_wait(mine, per_address), 0, refused}
  end
end

local friend = of_place and read(of_place)
if friend and friend.at + MONTH < now then
  friend = nil
end
local wrong = friend and friend.wrong or not friend and read(strangers)
wrong = after(wrong, math.max(now - DAY, since))
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
if place ~= '' then
  tried[uuid] = tried[uuid] or {}
  table.insert(tried[uuid], now)
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
end
return {ration, 0, just_now, refused}
"""


class Verdict(NamedTuple):
    """The answer to a try.

    When ration 1 or 2 is used up, the try is refused; when 3 or 4 is, its code counts as wrong.
    """

    ration: int = 0  # the one that is used up; 0: none
    seconds: int = 0  # until the next try may be made
    used_up: bool = False  # this try used up ration 3, for the first time within a day
    refused: str = ''  # why Redis did not write the try down


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
    return f'guesses:{uuid.replace("-", "")}'
