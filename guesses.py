"""Wrong codes are rationed, in Redis: all servers that share it share the count, over restarts.

Of the codes of six digits three are right at a time: 3 in 1,000,000 a try, and a server can be
asked hundreds of times a second. So an address has a few wrong tries for a UUID in 15 minutes, and
all addresses together a few more a day, but for those that have registered that UUID of late: they
are never shut out by the others.
"""

import hashlib
import ipaddress

# Atomic, and called with a code that has been looked at: of a thousand tries at once, the first ten
# count. The lists hold when the last wrong tries were, the latest first: if the tenth is not old
# enough, there were ten. `friend` holds when the address last knew a right code.
SCRIPT = """
local friend, tries, others = unpack(KEYS)
local per_address, per_day, right, now = unpack(ARGV)
local QUARTER, DAY, MONTH = 15 * 60, 24 * 60 * 60, 30 * 24 * 60 * 60

local function to_wait(key, most, seconds)
  local oldest = tonumber(most) > 0 and redis.call('LINDEX', key, most - 1)
  return oldest and math.max(0, math.ceil(oldest + seconds - now)) or 0
end

local function note(key, most, seconds)
  redis.call('LPUSH', key, now)
  redis.call('LTRIM', key, 0, most)
  redis.call('EXPIRE', key, seconds)
end

local known_at = redis.call('GET', friend) or 0
local stranger = known_at + MONTH < tonumber(now)
local wait = to_wait(tries, per_address, QUARTER)
if stranger then
  wait = math.max(wait, to_wait(others, per_day, DAY))
end
if wait > 0 then
  return wait
end
if right == '1' then
  if known_at + DAY < tonumber(now) then -- each write waits for the disk
    redis.call('SET', friend, now, 'EX', MONTH)
  end
else
  note(tries, per_address, QUARTER)
  if stranger then
    note(others, per_day, DAY)
  end
end
return 0
"""


def keys(uuid: str, address: str, lot: str) -> list[str]:
    """Where Redis keeps what is known of the tries of an IP address for a UUID."""
    place = network(address)
    return [f'right:{uuid}:{place}', f'wrong:{uuid}:{place}', f'wrong:{lot}']


def lot(uuid: str, salt: str) -> str:
    """One of 4,096 in which the tries of all others for UUIDs without an entry are counted.

    Each its own, and whoever makes up UUIDs could fill the memory. The salt is a secret: who knew
    which UUIDs share a lot could use it up, and see that this one is in none, so has an entry.
    """
    return hashlib.sha256((salt + uuid).encode()).hexdigest()[:3]


def network(address: str) -> str:
    """What counts as one address: for IPv6 a /64, which is what one household is given."""
    ip = ipaddress.ip_address(address.partition('%')[0])
    return str(ip if ip.version == 4 else ipaddress.ip_network((ip, 64), strict=False))
