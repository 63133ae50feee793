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
local function key_of(kind, uuid)
  return kind .. ':{' .. uuid .. '}'
end

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
  local found = read(redis.pcall('GET', key_of('state', uuid)))
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
  redis.call('SET', key_of('state', uuid), found)
end

local CHANGES, KEPT_SECONDS = 5000, 400 * 24 * 60 * 60

local function change(uuid, record, at, state)
  at = math.max(math.floor(at * 1000) / 1000, record.since or 0)
  record.state, record.since = state, at
  local key = key_of('changes', uuid)
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

# Adds to what an hour had.
_COUNT = """
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
"""

# A worker signs by the time of Redis: the clocks of two machines may differ, and then each would
# take the other for dead.
_SIGN = """
local function sign(servers, heard, me, now, text)
  local time = redis.pcall('TIME') -- `now` of the worker, where we may not ask
  if is(servers, 'zset') then
    now = time.err and now or tonumber(time[1]) + tonumber(time[2]) / 1000000
    redis.call('ZADD', servers, now, me)
  end
  redis.call('SET', heard, text)
end
"""

# KEYS: `servers`, `heard` and `outages`; ARGV: its name, the time, seconds, the text for `heard`,
# and 1 where no other worker lives. Where none did, and none was heard of for more seconds than
# that, the time between is an outage. The answer is the ten newest outages.
ARRIVE = (
    _RECORD
    + _SIGN
    + """
local servers, heard, outages = unpack(KEYS)
local me, now, least, text = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local last = number(read(redis.pcall('GET', heard)).at)
if last and now - last > least and ARGV[5] == '1' and is(outages, 'list') then
  redis.call('LPUSH', outages, string.format('%.3f %.3f', last, now))
  redis.call('LTRIM', outages, 0, 999)
  for _ = 1, 100 do
    local oldest = redis.call('LINDEX', outages, -1)
    local ended = tonumber(string.match(oldest, '%S+$'))
    if ended and ended > now - KEPT_SECONDS then
      break
    end
    redis.call('RPOP', outages)
  end
end
sign(servers, heard, me, now, text)
return is(outages, 'list') and redis.call('LRANGE', outages, 0, 9) or {}
"""
)

# What is new of some UUIDs: ARGV[1]; and what it takes to write that: ARGV[2]. No key of another
# slot is touched, and where it is one UUID, no other slot at all.
_NEWS = (
    _RECORD
    + _COUNT
    + """
local batch, how = cjson.decode(ARGV[1]), cjson.decode(ARGV[2])
local me, now = how.name, how.now
local answer = {1} -- then UUIDs and, after each, who says to have it and does not live
local there = {}

local function exists(uuid)
  if there[uuid] == nil then
    there[uuid] = redis.call('EXISTS', uuid) == 1
  end
  return there[uuid]
end

local function write_news()
  local records, touched = {}, {}

  local function record(uuid)
    records[uuid] = records[uuid] or record_of(uuid)
    return records[uuid]
  end

  local function has(uuid) -- whether any worker that lives does
    local fields, found = redis.pcall('HGETALL', key_of('at', uuid)), false
    for i = 1, #fields, 2 do
      if fields[i] ~= me and not how.alive[fields[i]] then
        table.insert(answer, uuid)
        table.insert(answer, fields[i])
      elseif fields[i + 1] ~= '0 0' then
        found = true
      end
    end
    return found
  end

  local function lost_since(at) -- when one was lost that was there at that time, with an outage
    local first
    for _, outage in ipairs(how.outages) do -- the newest first
      local began, ended = unpack(outage)
      if ended <= at then
        break
      end
      first = began
    end
    return first and math.max(first, at)
  end

  local function tell_outage(uuid, known, at) -- it was online before one, and is here again
    local lost = lost_since(math.max(known.since, known.seen or 0))
    if lost and at - lost >= how.patience then
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
    local before = redis.pcall('HGET', key_of('at', uuid), me)
    local was_here = type(before) == 'string' and before ~= '0 0'
    if counts ~= '0 0' and not was_here and exists(uuid) then
      online(uuid, batch.seen[uuid] and batch.seen[uuid].at or now)
    end
    if type(before) ~= 'table' then -- else it is another program's key
      redis.call('HSET', key_of('at', uuid), me, counts)
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
    redis.pcall('HDEL', key_of('at', uuid), me)
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
    local key = key_of('refusals', uuid)
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
    if redis.call('HLEN', key) > how.kinds then
      local rows, found = redis.call('HGETALL', key), {}
      for i = 1, #rows, 2 do
        local last = number(read(rows[i + 1]).last) or 0
        local first_to_go = how.common[string.match(rows[i], '^%l*')]
        table.insert(found, {first_to_go and last - 2 ^ 40 or last, rows[i]})
      end
      table.sort(found, function(a, b) return a[1] < b[1] end)
      for i = 1, #found - how.kinds do
        redis.call('HDEL', key, found[i][2])
      end
    end
  end
  for uuid in pairs(touched) do
    keep(uuid, records[uuid])
  end

  for _, row in ipairs(batch.rows) do
    local uuid, value = unpack(row)
    local key = key_of('rendezvous', uuid)
    if exists(uuid) and is(key, 'list') then
      redis.call('LPUSH', key, value)
      redis.call('LTRIM', key, 0, how.history - 1)
    end
  end

  for _, row in ipairs(batch.hours) do
    local uuid, hour, more = unpack(row)
    if exists(uuid) then
      count(key_of('hours', uuid), hour, {unpack(more)})
    end
  end
end
"""
)

# What the worker says of itself. 1: this batch is written already, its answer was lost; 0: nothing
# is to be written, as Redis has lost what was written before, all of it or the last of it.
# Whoever buries the worker finds the UUIDs here, so they are here before anything is at a UUID.
_LIVE = """
local function note_live(live, last_number, how)
  local last = redis.call('GET', last_number)
  if last == how.number then
    return 1
  end
  if not how.whole and (last ~= how.before or redis.call('EXISTS', live) == 0) then
    return 0
  end
  redis.call('HSET', live, 'about', how.about)
  for _, uuid in ipairs(how.arrived) do
    redis.call('HSET', live, uuid, '')
  end
end
"""

# On one Redis. KEYS: the hash of the worker, the number of its last batch, `servers`, `heard`, and
# the hours of all. The answer begins with 0 where Redis has lost what was written.
WRITE = (
    _NEWS
    + _SIGN
    + _LIVE
    + """
local live, last_number, servers, heard, hours_of_all = unpack(KEYS)
local early = note_live(live, last_number, how)
if early then
  return {early}
end
write_news()
local all = {}
for _, row in ipairs(batch.hours) do
  local uuid, hour, more = unpack(row)
  if exists(uuid) then
    all[hour] = all[hour] or {0, 0, 0, 0}
    for i = 1, 4 do
      all[hour][i] = all[hour][i] + more[i]
    end
  end
end
for hour, more in pairs(all) do
  count(hours_of_all, hour, more)
end
for uuid in pairs(batch.gone) do
  redis.call('HDEL', live, uuid)
end
sign(servers, heard, me, now, how.heard)
redis.call('SET', last_number, how.number, 'EX', how.remember)
return answer
"""
)

# The same in a cluster, step by step. First KEYS: the hash of the worker, the number of its last
# batch; ARGV: what it takes. Without an answer all is to be written.
WRITE_LIVE = _LIVE + "return note_live(KEYS[1], KEYS[2], cjson.decode(ARGV[1])) or ''"

# Then for each UUID. KEYS: the UUID, and where the number of the last batch is kept that counted
# something of it. The answer begins with 1 where there is such an entry.
WRITE_NEWS = (
    _NEWS
    + """
local counts = #batch.rows + #batch.refusals + #batch.hours > 0
if counts and redis.call('GET', KEYS[2]) == how.number then
  return {1}
end
write_news()
if not exists(KEYS[1]) then
  answer[1] = 0
elseif counts then
  redis.call('SET', KEYS[2], how.number, 'EX', how.remember_counts)
end
return answer
"""
)

# Then KEYS: the hours of all, and where the number of the last batch is kept; ARGV: the number,
# the hours and what they had as JSON, seconds.
WRITE_HOURS = (
    _RECORD
    + _COUNT
    + """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  for _, row in ipairs(cjson.decode(ARGV[2])) do
    count(KEYS[1], row[1], row[2])
  end
  redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[3])
end
"""
)

# And KEYS: `servers` and `heard`; ARGV: the name, the time, the text for `heard`.
SIGN = _RECORD + _SIGN + 'sign(KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2]), ARGV[3])'

# The records of the UUIDs that are joined in ARGV[1], '' where there is none, with a NUL between
# each two; and in the same way who has each: "WORKER WAITING PIPES", one after the other.
RECORDS = """
local call, uuids, keys, places = redis.pcall, {}, {}, {}
for i = 1, #ARGV[1] / 36 do
  uuids[i] = string.sub(ARGV[1], 36 * i - 35, 36 * i)
  keys[i] = 'state:{' .. uuids[i] .. '}'
end
local texts = call('MGET', unpack(keys))
for i, uuid in ipairs(uuids) do
  texts[i] = texts[i] or ''
  local at = call('HGETALL', 'at:{' .. uuid .. '}')
  places[i] = at[3] and table.concat(at, ' ') or at[1] and at[1] .. ' ' .. at[2] or ''
end
return {table.concat(texts, '\\0'), table.concat(places, '\\0')}
"""

# What older versions wrote of the UUIDs in ARGV, and of all hidden servers together, in keys of
# other names, on one Redis: a cluster never had it. Such a version may still run, and write once
# more what is brought over already: then what is here counts, and both are put together.
MIGRATE = (
    _RECORD
    + _COUNT
    + """
local function moved(old, new) -- whether there is nothing more to do
  if redis.call('EXISTS', old) == 1 and redis.call('EXISTS', new) == 0 then
    redis.call('RENAME', old, new)
  end
  return redis.call('EXISTS', old) == 0
end

local function join(old, new, time_of, known) -- lists in the order of the times: their ends
  if moved(old, new) or not is(old, 'list') or not is(new, 'list') then
    return
  end
  local rows, places = redis.call('LRANGE', old, 0, -1), {}
  local older, first, later = #rows, time_of(rows[1]) or 0, 0
  local row = redis.call('LINDEX', new, -1)
  while row and (time_of(row) or 0) > first do
    later = later + 1
    row = redis.call('LINDEX', new, -later - 1)
  end
  for i = -later, -1 do
    table.insert(rows, redis.call('LINDEX', new, i))
  end
  for i, row in ipairs(rows) do
    places[i] = {time_of(row) or 0, i}
  end
  table.sort(places, function(a, b) return a[1] < b[1] or a[1] == b[1] and a[2] < b[2] end)
  local joined, state, since = {}, known and known.state, known and known.since or 0
  for n = #places, 1, -1 do
    local at, i = unpack(places[n])
    local told, is_last = string.match(rows[i], '%S+ (.*)'), not joined[1]
    -- A worker of an older version that ends tells that a hidden server has left which is here.
    local is_wrong = is_last and told ~= state and at > since or not is_last and told == state
    if not (state and i <= older and is_wrong) then
      table.insert(joined, rows[i])
      state = state and told
    end
  end
  redis.call('DEL', old)
  redis.call('LTRIM', new, 0, -later - 1)
  for n = #joined, 1, -1 do
    redis.call('RPUSH', new, joined[n])
  end
end

local function add_hours(old, new)
  if moved(old, new) or not is(old, 'hash') then
    return
  end
  local days = redis.call('HGETALL', old)
  for i = 1, #days, 2 do
    for line in string.gmatch(days[i + 1], '[^\\n]+') do
      local all = {string.match(line, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')}
      if tonumber(days[i]) and all[1] then
        count(new, days[i] * 24 + all[1], {all[2], all[3], all[4], all[5]})
      end
    end
  end
  redis.call('DEL', old)
end

local function first_number(row)
  return tonumber(string.match(row, '^%S+'))
end

local function bring_over(uuid)
  local known, old = record_of(uuid), read(redis.pcall('HGET', 'states', uuid))
  local sign = read(redis.pcall('GET', 'seen:' .. uuid)) -- before 1.0
  old.seen, old.first = number(old.seen) or number(sign.at), number(old.first) or number(sign.at)
  if not known.state and text(old.state) and number(old.since) then
    known.state, known.since = old.state, old.since
    known.refused, known['until'] = number(old.refused), number(old['until'])
    known.why = type(old.why) == 'table' and old.why or nil
    known.address = text(old.address)
  end
  if old.first then
    known.first = math.min(known.first or old.first, old.first)
  end
  if old.seen and (known.seen or 0) < old.seen then
    known.seen, known.address = old.seen, text(old.address) or text(sign.address) or known.address
  end
  join('changes:' .. uuid, key_of('changes', uuid), first_number, known)
  if not known.state and known.seen then
    change(uuid, known, known.seen, 'offline')
  end
  if known.state then
    keep(uuid, known)
  end
  join('rendezvous:' .. uuid, key_of('rendezvous', uuid), function(row)
    return -(number(read(row).at) or 0)
  end)
  add_hours('hours:' .. uuid, key_of('hours', uuid))
  moved('refusals:' .. uuid, key_of('refusals', uuid))
  local guesses = 'guesses:' .. string.gsub(uuid, '-', '')
  moved(guesses, key_of('guesses', uuid))
  redis.call('DEL', 'refusals:' .. uuid, guesses, 'seen:' .. uuid, 'refused:' .. uuid)
  redis.pcall('HDEL', 'states', uuid)
end

for _, uuid in ipairs(ARGV) do
  if redis.call('EXISTS', uuid) == 1 then
    bring_over(uuid)
  end
end
add_hours('hours:all', key_of('hours', 'all'))
if redis.call('EXISTS', 'heard') == 1 then
  local new = 'heard:{servers}'
  local at = number(read(redis.pcall('GET', 'heard')).at)
  if at and at > (number(read(redis.pcall('GET', new)).at) or 0) then
    redis.call('RENAME', 'heard', new)
  else
    redis.call('DEL', 'heard')
  end
end
join('outages', 'outages:{servers}', function(row)
  return -(first_number(row) or 0)
end)
moved('guesses:addresses', 'guesses:{addresses}')
moved('guesses:latest', 'latest:{addresses}')
redis.call('DEL', 'guesses:addresses', 'guesses:latest', 'guesses:nobody')
"""
)

# The text of the entry KEYS[1] and its digest, or nothing.
READ = """
local value = redis.pcall('GET', KEYS[1])
return type(value) == 'string' and {value, redis.sha1hex(value)} or {}
"""

# Puts another text in place of the one that was read, and tells the servers. KEYS: the entry, its
# record, its changes of state; ARGV: the digest of the text that was read, the new text, the
# channel, a new state or '', the time. The answer is 0 where the text is another one by now. Where
# the first answer was lost and this comes again, the text there is ours.
REPLACE = (
    _RECORD
    + """
local uuid, value = KEYS[1], redis.pcall('GET', KEYS[1])
local digest, after, channel, state, now = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if type(value) ~= 'string' or redis.sha1hex(value) ~= digest then
  return value == after and 1 or 0
end
redis.call('SET', uuid, after)
if state ~= '' then
  local known = record_of(uuid)
  lapse(uuid, known, now)
  if state == 'disabled' and known.state ~= 'disabled' then
    change(uuid, known, now, 'disabled')
    keep(uuid, known)
  elseif state == 'enabled' and known.state == 'disabled' then
    change(uuid, known, now, known.first and 'offline' or 'never seen')
    keep(uuid, known)
  end
end
redis.call('PUBLISH', channel, uuid)
return 1
"""
)

# KEYS: the entry's and those of what is kept of it; ARGV: the channel on which the servers hear it.
DELETE = """
local there = redis.call('DEL', KEYS[1])
redis.call('DEL', unpack(KEYS, 2))
redis.call('PUBLISH', ARGV[1], KEYS[1])
return there
"""

# Gives an entry another name. KEYS: `names`; ARGV: the UUID, its field as it was read and as it is
# to be (see names.py), the channel, the name that it takes or '', a UUID that has no entry any
# more, and the names that it gives back. The answer is '', the UUID of another entry that has that
# name, or 'changed': the field is another one by now. Nothing is changed then.
PUT_NAME = """
local names, uuid, before, after, channel, name, gone = KEYS[1], unpack(ARGV)
local found = redis.call('HGET', names, uuid) or ''
if found ~= before then
  return found == after and '' or 'changed'
end
if name ~= '' then
  local holder = redis.call('HGET', names, name)
  if holder and holder ~= uuid and holder ~= gone then
    return holder
  end
  redis.call('HSET', names, name, uuid)
end
for i = 7, #ARGV do
  if redis.call('HGET', names, ARGV[i]) == uuid then
    redis.call('HDEL', names, ARGV[i])
  end
end
if after == '' then
  redis.call('HDEL', names, uuid)
else
  redis.call('HSET', names, uuid, after)
end
redis.call('PUBLISH', channel, uuid)
return ''
"""

# A deleted entry ARGV[1] gives its names back. The key may be another program's: an entry can be
# deleted all the same.
DROP_NAMES = """
local names, uuid = KEYS[1], ARGV[1]
local field = redis.pcall('HGET', names, uuid)
if type(field) ~= 'string' then
  return
end
for name in string.gmatch(field, '%S+') do
  if redis.call('HGET', names, name) == uuid then
    redis.call('HDEL', names, name)
  end
end
redis.call('HDEL', names, uuid)
redis.call('PUBLISH', ARGV[2], uuid)
"""

# KEYS: an entry's; ARGV: JSON, as export.py gives it. The answer is 0 where there is an entry
# already. Where the first answer was lost and this comes again, the entry there is ours.
PUT_BACK = (
    _RECORD
    + """
local uuid, kept = KEYS[1], cjson.decode(ARGV[1])
if redis.call('EXISTS', uuid) == 1 then
  return redis.pcall('GET', uuid) == kept.entry and 1 or 0
end
redis.call('SET', uuid, kept.entry)
for _, kind in ipairs({'changes', 'hours', 'rendezvous', 'refusals', 'state'}) do
  redis.call('DEL', key_of(kind, uuid))
end
if kept.state ~= '' then
  redis.call('SET', key_of('state', uuid), kept.state)
end
for _, kind in ipairs({'changes', 'rendezvous'}) do
  for _, row in ipairs(kept[kind]) do
    redis.call('RPUSH', key_of(kind, uuid), row)
  end
end
for day, lines in pairs(kept.hours) do
  redis.call('HSET', key_of('hours', uuid), day, lines)
end
redis.call('PUBLISH', 'entries', uuid)
return 1
"""
)

# Earlier wrong codes no longer count. KEYS: the entry, its record of tries, its refusals, its
# record; ARGV: the time.
CLEAR = (
    _RECORD
    + """
local entry, tries, refusals = unpack(KEYS)
if redis.call('EXISTS', entry) == 0 then
  return redis.call('DEL', tries)
end
redis.call('HDEL', tries, 'used_up', 'strangers')
redis.call('HSET', tries, 'since', ARGV[1])
redis.call('EXPIRE', tries, 30 * 24 * 60 * 60)
local fields = redis.pcall('HKEYS', refusals)
for _, field in ipairs(fields.err and {} or fields) do
  local kind = string.match(field, '^%l+')
  if kind == 'address' or kind == 'strangers' or kind == 'friend' then
    redis.call('HDEL', refusals, field)
  end
end
local known = record_of(entry)
if known['until'] then
  known['until'] = nil
  keep(entry, known)
end
"""
)

# The same for the addresses. KEYS: their tries, the times of these, the UUIDs that were cleared;
# ARGV: the UUID, the time, for how many seconds tries count, and the addresses that may try again
# at once.
CLEAR_ADDRESSES = """
local addresses, latest, cleared = unpack(KEYS)
local uuid, now, seconds = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZREMRANGEBYSCORE', cleared, '-inf', now - seconds)
redis.call('ZADD', cleared, now, uuid)
redis.call('EXPIRE', cleared, seconds)
for i = 4, #ARGV do
  redis.pcall('HDEL', addresses, ARGV[i])
  redis.pcall('ZREM', latest, ARGV[i])
  redis.pcall('PUBLISH', 'tries', ARGV[i])
end
"""
