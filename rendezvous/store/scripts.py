"""What Redis runs itself, in Lua: each is whole or not at all, and sees no change of others.

state.py says what the keys hold. Another program may have written anything there: that costs this
one entry its past, and nobody else anything. Nothing is written for an entry that does not exist:
nobody would delete it.
"""

# Some fields of the hash KEYS[1] from the cursor ARGV[1] on: the next cursor, how many names and
# values, and these with a NUL between them.
FIELDS = """
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
  return {'0', 0, ''}
end
local cursor, found = unpack(redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', 1000))
return {cursor, #found, table.concat(found, '\\0')}
"""

# Reads and writes the record of an entry, and notes its changes of state.
_RECORD = """
local function number(value)
  return type(value) == 'number' and value >= 0 and value < 2 ^ 53 and value or nil
end

local function text(value)
  return type(value) == 'string' and value or nil
end

local function read(value) -- a JSON object
  local good, found = pcall(cjson.decode, value)
  return good and type(found) == 'table' and found or {}
end

local function is(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end

local function record_of(uuid)
  local found = read(redis.pcall('HGET', 'states', uuid))
  local record = {state = text(found.state), since = number(found.since)}
  if not record.since then
    record.state = nil
  end
  for _, name in ipairs({'first', 'seen', 'refused', 'until'}) do
    record[name] = number(found[name])
  end
  record.address = text(found.address)
  record.why = type(found.why) == 'table' and found.why or nil
  return record
end

local function keep(uuid, record)
  local good, found = pcall(cjson.encode, record)
  if not good then
    record.why = nil
    found = cjson.encode(record)
  end
  redis.pcall('HSET', 'states', uuid, found)
end

local CHANGES, KEPT_SECONDS = 5000, 400 * 24 * 60 * 60

local function change(uuid, record, at, state)
  at = math.max(math.floor(at * 1000) / 1000, record.since or 0)
  record.state, record.since = state, at
  local key = 'changes:' .. uuid
  if not is(key, 'list') then
    return
  end
  redis.call('RPUSH', key, string.format('%.3f %s', at, state))
  redis.call('LTRIM', key, -CHANGES, -1)
  for _ = 1, 100 do -- the last one before the time that is kept tells the state at its start
    local second = redis.call('LINDEX', key, 1)
    local time = second and tonumber(string.match(second, '^%S+'))
    if not time or time > at - KEPT_SECONDS then
      break
    end
    redis.call('LPOP', key)
  end
end

-- A refusal says nothing any more after five minutes, or when its ration allows a try again.
local function lapse(uuid, record, at)
  local refused = record.refused or record.since
  if record.state == 'refused' and at >= math.max(refused + 300, (record['until'] or 0) + 60) then
    change(uuid, record, refused, record.first and 'offline' or 'never seen')
  end
end

local function is_disabled(uuid)
  local disabled = read(redis.pcall('GET', uuid)).disabled
  return disabled and disabled ~= cjson.null and disabled ~= 0 and disabled ~= ''
end
"""

# Who else lives. A worker subscribes to its channel as long as it does. Signs have the time of
# Redis: the clocks of two machines may differ, and then each would take the other for dead.
_OTHERS = """
local function clock(now) -- `now` of the worker, where we may not ask
  local time = redis.pcall('TIME')
  return time.err and now or tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function others_than(me, now, age)
  local names, found = redis.pcall('ZRANGEBYSCORE', 'servers', clock(now) - age, '+inf'), {}
  for _, name in ipairs(names.err and {} or names) do
    local subscribers = redis.pcall('PUBSUB', 'NUMSUB', 'live:' .. name)
    if name ~= me and (subscribers.err or tonumber(subscribers[2]) > 0) then
      table.insert(found, name)
    end
  end
  return found
end

local function sign(me, now, heard)
  if is('servers', 'zset') then
    redis.call('ZADD', 'servers', clock(now), me)
  end
  redis.call('SET', 'heard', heard)
end
"""

# ARGV: its name, the time, seconds, the text for `heard`. Where no other worker lives, and none
# was heard of for more seconds than that, the time between is an outage.
ARRIVE = (
    _RECORD
    + _OTHERS
    + """
local me, now, least, heard = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local last = number(read(redis.pcall('GET', 'heard')).at)
if last and now - last > least and #others_than(me, now, 30) == 0 and is('outages', 'list') then
  redis.call('LPUSH', 'outages', string.format('%.3f %.3f', last, now))
  redis.call('LTRIM', 'outages', 0, 999)
  for _ = 1, 100 do
    local oldest = redis.call('LINDEX', 'outages', -1)
    local ended = tonumber(string.match(oldest, '%S+$'))
    if ended and ended > now - KEPT_SECONDS then
      break
    end
    redis.call('RPOP', 'outages')
  end
end
sign(me, now, heard)
"""
)

# ARGV: its name, the time, the text for `heard`: what the last worker that stops leaves behind.
LEAVE = (
    _RECORD
    + _OTHERS
    + """
redis.pcall('ZREM', 'servers', ARGV[1])
redis.call('DEL', 'live:' .. ARGV[1])
if #others_than(ARGV[1], tonumber(ARGV[2]), 30) == 0 then
  redis.call('SET', 'heard', ARGV[3])
end
"""
)

# The answer is 0, and nothing is written, where the hash is missing that is to be changed: it has
# expired, or Redis was flushed. KEYS[2] holds the number of the last batch: a batch whose answer
# was lost comes twice.
WRITE = (
    _RECORD
    + _OTHERS
    + """
local live, last_number = KEYS[1], KEYS[2]
local batch = cjson.decode(ARGV[1])
local now = batch.now
if redis.call('GET', last_number) == batch.number then
  return 1
end
if not batch.whole and redis.call('EXISTS', live) == 0 then
  return 0
end

local there, records, touched = {}, {}, {}

local function exists(uuid)
  if there[uuid] == nil then
    there[uuid] = redis.call('EXISTS', uuid) == 1
  end
  return there[uuid]
end

local function record(uuid)
  records[uuid] = records[uuid] or record_of(uuid)
  return records[uuid]
end

local others
local function has(uuid) -- whether any worker does
  others = others or others_than(batch.name, now, 30)
  local found = redis.call('HEXISTS', live, uuid) == 1
  for _, name in ipairs(others) do
    found = found or redis.pcall('HEXISTS', 'live:' .. name, uuid) == 1
  end
  return found
end

local outages
local function lost_since(at) -- when one was lost that was there at that time, with an outage
  local found = not outages and redis.pcall('LRANGE', 'outages', 0, -1)
  outages = outages or found.err and {} or found
  local first
  for _, outage in ipairs(outages) do -- the newest first
    local began, ended = string.match(outage, '^(%S+) (%S+)$')
    if not tonumber(ended) or tonumber(ended) <= at then
      break
    end
    first = tonumber(began) or first
  end
  return first and math.max(first, at)
end

local function tell_outage(uuid, known, at) -- it was online before one, and is here again
  local lost = lost_since(math.max(known.since, known.seen or 0))
  if lost and at - lost >= batch.patience then
    change(uuid, known, lost, 'offline')
    change(uuid, known, at, 'online')
    touched[uuid] = true
  end
end

local function online(uuid, at)
  local known = record(uuid)
  if known.state == 'online' then
    tell_outage(uuid, known, at)
  elseif known.state ~= 'disabled' or not is_disabled(uuid) then
    lapse(uuid, known, at)
    change(uuid, known, at, 'online')
    touched[uuid] = true
  end
end

for uuid, counts in pairs(batch.counts) do
  if counts == '' then
    redis.call('HDEL', live, uuid)
  elseif redis.call('HEXISTS', live, uuid) == 1 then
    redis.call('HSET', live, uuid, counts)
  elseif exists(uuid) then
    online(uuid, batch.seen[uuid] and batch.seen[uuid].at or now)
    redis.call('HSET', live, uuid, counts)
  end
end
for uuid, seen in pairs(batch.seen) do
  if exists(uuid) then
    local known = record(uuid)
    local is_new = known.state == nil or known.state == 'never seen' or known.state == 'refused'
    if is_new and seen.at >= (known.refused or 0) then -- it came and left since the last batch
      known.first = known.first or seen.at
      change(uuid, known, seen.at, 'offline')
    elseif known.state == 'online' then
      tell_outage(uuid, known, seen.at)
    elseif known.state == 'offline' then
      known.since = math.max(known.since, seen.at)
    end
    known.first = known.first or seen.at
    known.seen, known.address = seen.at, seen.address
    touched[uuid] = true
  end
end
for uuid, at in pairs(batch.gone) do
  local known = exists(uuid) and record(uuid)
  if known and known.state == 'online' and not has(uuid) then
    local refused = (known.refused or 0) > (known.seen or 0) and known.refused
    change(uuid, known, math.min(at, refused or at), 'offline')
    if refused then
      change(uuid, known, refused, 'refused')
    end
    touched[uuid] = true
  end
end

local function refuse(uuid, given, address)
  local known = record(uuid)
  lapse(uuid, known, given.first)
  known.refused, known.why, known.address = given.last, given.why, address
  known['until'] = given['until'] > 0 and given['until'] or nil
  touched[uuid] = true
  if known.state == 'online' or known.state == 'disabled' and is_disabled(uuid) then
    return -- it has left this moment, and may come back: anybody can be refused meanwhile
  end
  if known.state ~= 'refused' then
    change(uuid, known, given.first, 'refused')
  end
end

local merged = {}

local function merge(key, field, given)
  local found = read(redis.call('HGET', key, field))
  given.first = math.min(number(found.first) or given.first, given.first)
  given.count = (number(found.count) or 0) + given.count
  redis.call('HSET', key, field, cjson.encode(given))
  merged[key] = true
  redis.call('EXPIRE', key, 24 * 60 * 60)
end

for _, row in ipairs(batch.refusals) do
  local uuid, kind, address, given = unpack(row)
  local key = 'refusals:' .. uuid
  if exists(uuid) then
    if kind ~= 'disabled' and kind ~= 'twins' and not has(uuid) then
      refuse(uuid, given, address)
    end
    if is(key, 'hash') then
      merge(key, kind .. ' ' .. address, given)
    end
  end
end
for key in pairs(merged) do
  if redis.call('HLEN', key) > batch.kinds then
    local rows, found = redis.call('HGETALL', key), {}
    for i = 1, #rows, 2 do
      local last = number(read(rows[i + 1]).last) or 0
      local first_to_go = batch.common[string.match(rows[i], '^%l*')]
      table.insert(found, {first_to_go and last - 2 ^ 40 or last, rows[i]})
    end
    table.sort(found, function(a, b) return a[1] < b[1] end)
    for i = 1, #found - batch.kinds do
      redis.call('HDEL', key, found[i][2])
    end
  end
end
for uuid in pairs(touched) do
  keep(uuid, records[uuid])
end

for _, row in ipairs(batch.rows) do
  local uuid, value = unpack(row)
  local key = 'rendezvous:' .. uuid
  if exists(uuid) and is(key, 'list') then
    redis.call('LPUSH', key, value)
    redis.call('LTRIM', key, 0, batch.history - 1)
  end
end

local function count(key, hour, more)
  local day, lines, found = math.floor(hour / 24), {}, false
  if not is(key, 'hash') then
    return
  end
  local before = redis.call('HGET', key, day)
  if not before then
    for _, each in ipairs(redis.call('HKEYS', key)) do
      if (tonumber(each) or 0) < day - 400 then
        redis.call('HDEL', key, each)
      end
    end
  end
  for line in string.gmatch(before or '', '[^\\n]+') do
    local all = {string.match(line, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')}
    if tonumber(all[1]) == hour % 24 then
      for i = 1, 4 do
        more[i] = more[i] + tonumber(all[i + 1])
      end
    elseif all[1] and #line < 100 and #lines < 24 then
      table.insert(lines, line)
    end
  end
  table.insert(lines, string.format('%d %.0f %.0f %.0f %.0f', hour % 24, unpack(more)))
  redis.call('HSET', key, day, table.concat(lines, '\\n'))
end

local all = {}
for _, row in ipairs(batch.hours) do
  local uuid, hour, more = unpack(row)
  if exists(uuid) then
    all[hour] = all[hour] or {0, 0, 0, 0}
    for i = 1, 4 do
      all[hour][i] = all[hour][i] + more[i]
    end
    count('hours:' .. uuid, hour, more)
  end
end
for hour, more in pairs(all) do
  count('hours:all', hour, more)
end

redis.call('HSET', live, 'about', batch.about)
redis.call('EXPIRE', live, batch.age)
sign(batch.name, now, batch.heard)
redis.call('SET', last_number, batch.number, 'EX', batch.remember)
return 1
"""
)

# ARGV: JSON of rows, a UUID, the time and the address of each: what older versions wrote.
MIGRATE = (
    _RECORD
    + """
for _, row in ipairs(cjson.decode(ARGV[1])) do
  local uuid, at, address = unpack(row)
  if redis.call('EXISTS', uuid) == 1 then
    if number(at) then
      local known = record_of(uuid)
      known.first = math.min(known.first or at, at)
      if (known.seen or 0) < at then
        known.seen, known.address = at, address
      end
      if not known.state then
        change(uuid, known, at, 'offline')
      end
      keep(uuid, known)
    end
    redis.call('DEL', 'seen:' .. uuid, 'refused:' .. uuid)
  end
end
"""
)

# ARGV: a UUID, 'disabled' or 'enabled', the time.
SET_STATE = (
    _RECORD
    + """
local uuid, now = ARGV[1], tonumber(ARGV[3])
local known = record_of(uuid)
lapse(uuid, known, now)
if ARGV[2] == 'disabled' and known.state ~= 'disabled' then
  change(uuid, known, now, 'disabled')
  keep(uuid, known)
elseif ARGV[2] == 'enabled' and known.state == 'disabled' then
  change(uuid, known, now, known.first and 'offline' or 'never seen')
  keep(uuid, known)
end
"""
)

# KEYS: the entry's and those of what is kept of it.
DELETE = """
local there = redis.call('DEL', KEYS[1])
redis.call('DEL', unpack(KEYS, 2))
redis.pcall('HDEL', 'states', KEYS[1])
return there
"""

# Gives the entry KEYS[2] the name ARGV[1], and takes the one away that it had; '' is none. Answers
# with the UUID of another entry that has that name, and changes nothing then. A name that points to
# a deleted entry is free. The key may be another program's: an entry can be deleted all the same.
SWITCH_NAME = """
local names, uuid, name = KEYS[1], KEYS[2], ARGV[1]
local holder = name ~= '' and redis.call('HGET', names, name)
if holder and holder ~= uuid and redis.call('EXISTS', holder) == 1 then
  return holder
end
local old = redis.pcall('HGET', names, uuid)
if type(old) == 'string' then
  redis.call('HDEL', names, uuid)
  if redis.call('HGET', names, old) == uuid then
    redis.call('HDEL', names, old)
  end
end
if name ~= '' and redis.call('EXISTS', uuid) == 1 then
  redis.call('HSET', names, name, uuid, uuid, name)
end
redis.call('PUBLISH', 'entries', uuid)
return ''
"""

# KEYS: an entry's and `names`; ARGV: JSON, as export.py gives it. The answer is 0 where there is an
# entry already. Where the first answer was lost and this comes again, the entry there is ours.
PUT_BACK = """
local uuid, names = unpack(KEYS)
local kept = cjson.decode(ARGV[1])
if redis.call('EXISTS', uuid) == 1 then
  return redis.pcall('GET', uuid) == kept.entry and 1 or 0
end
redis.call('SET', uuid, kept.entry)
for _, name in ipairs({'changes', 'hours', 'rendezvous', 'refusals'}) do
  redis.call('DEL', name .. ':' .. uuid)
end
redis.pcall('HDEL', 'states', uuid)
if kept.state ~= '' then
  redis.pcall('HSET', 'states', uuid, kept.state)
end
for _, name in ipairs({'changes', 'rendezvous'}) do
  for _, row in ipairs(kept[name]) do
    redis.call('RPUSH', name .. ':' .. uuid, row)
  end
end
for day, text in pairs(kept.hours) do
  redis.call('HSET', 'hours:' .. uuid, day, text)
end
local holder = redis.pcall('HGET', names, kept.name)
if kept.name ~= '' and not (type(holder) == 'string' and redis.call('EXISTS', holder) == 1) then
  redis.pcall('HSET', names, kept.name, uuid, uuid, kept.name)
end
redis.call('PUBLISH', 'entries', uuid)
return 1
"""

# Earlier wrong codes no longer count. KEYS: the entry, its record of tries, the addresses and the
# times of their tries; ARGV: the time, and the addresses that may try again at once. For a deleted
# entry only the time is kept, and not for long.
CLEAR = (
    _RECORD
    + """
local entry, tries, addresses, latest = unpack(KEYS)
local there = redis.call('EXISTS', entry) == 1
redis.call(unpack(there and {'HDEL', tries, 'used_up', 'strangers'} or {'DEL', tries}))
redis.call('HSET', tries, 'since', ARGV[1])
redis.call('EXPIRE', tries, there and 30 * 24 * 60 * 60 or 15 * 60)
for i = 2, #ARGV do
  redis.pcall('HDEL', addresses, ARGV[i])
  redis.pcall('ZREM', latest, ARGV[i])
  redis.pcall('PUBLISH', 'tries', ARGV[i])
end
local fields = redis.pcall('HKEYS', 'refusals:' .. entry)
for _, field in ipairs(fields.err and {} or fields) do
  local kind = string.match(field, '^%l+')
  if kind == 'address' or kind == 'strangers' or kind == 'friend' then
    redis.call('HDEL', 'refusals:' .. entry, field)
  end
end
local known = record_of(entry)
if known['until'] then
  known['until'] = nil
  keep(entry, known)
end
"""
)
