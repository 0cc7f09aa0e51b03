"""The Lua scripts that change job records: each runs whole or not at all.

Every script begins with `_COMMON`. It reads the time from Redis, so that no host's clock matters, and takes
its request as one JSON object in ARGV[1]. Values in a record are JSON texts; the scripts pass those that they
need not read through as they are.
"""

from __future__ import annotations

BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000)
"""Seconds: the upper edges by which waiting and stages are counted."""

_COMMON = """
-- Redis 6 would otherwise write the script itself to the append-only file: a restart would then give every
-- event the time of the restart.
redis.replicate_commands()
local P = 'tricksmith:'
local ask = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local stamp = string.format('%.3f', now)

local function key(id) return P .. 'job:' .. id end

local function field(id, name)
  local text = redis.call('HGET', key(id), name)
  if not text then return nil end
  local value = cjson.decode(text)
  if value == cjson.null then return nil end
  return value
end

local function tell(id, words)
  redis.call('XADD', key(id) .. ':events', 'MAXLEN', '~', ask.kept or 2000, '*', unpack(words))
end

local function count(name, by) redis.call('HINCRBYFLOAT', P .. 'metrics', name, by or 1) end

local BUCKETS = {@buckets@}
local function observe(name, seconds)
  local bucket = 'inf'
  for i = 1, #BUCKETS do
    if seconds <= BUCKETS[i] then bucket = tostring(BUCKETS[i]); break end
  end
  count(name .. '|bucket|' .. bucket)
  count(name .. '|sum', math.max(0, seconds))
end

local function lane_of(id) return field(id, 'lane') or 'cpu/people/small' end

-- A line is a round of users: the one whose last turn is longest ago is next, a newcomer goes to its end.
local function line_up(id)
  local user, line = field(id, 'user') or '', P .. 'line:' .. lane_of(id)
  redis.call('ZADD', line .. ':' .. user, now, id)
  redis.call('ZADD', line, 'NX', tonumber(redis.call('GET', line .. ':turn') or '0'), user)
  redis.call('ZADD', P .. 'waiting', now, id)
end

local function drop_out(id, served)
  local user, line = field(id, 'user') or '', P .. 'line:' .. lane_of(id)
  redis.call('ZREM', line .. ':' .. user, id)
  redis.call('ZREM', P .. 'waiting', id)
  if redis.call('EXISTS', line .. ':' .. user) == 0 then
    redis.call('ZREM', line, user)
  elseif served then
    redis.call('ZADD', line, redis.call('INCR', line .. ':turn'), user)
  end
end

local function end_stage(id)
  local stage, at = field(id, 'stage'), field(id, 'stage_at')
  if stage and at then observe('stage_seconds|' .. stage, now - at) end
  redis.call('HDEL', key(id), 'stage_at')
end

-- The one way in which a state changes: 'ok', or the state that the job is in instead ('missing' if none).
local function move(id, to, from, more)
  local state = field(id, 'state')
  if not state then return 'missing' end
  if not from[state] then return state end
  local owner = redis.call('HGET', key(id), 'owner')
  local lease = redis.call('EXISTS', key(id) .. ':lease') == 1
  if to == 'running' and state == 'running' and owner == more.owner then return 'ok' end
  if more.free and lease then return state end
  if more.owner and to ~= 'running' and owner ~= more.owner then return state end
  local active = P .. 'active:' .. (field(id, 'key') or id)
  if to == 'queued' then
    local other = redis.call('GET', active)
    if other and other ~= id then
      local theirs = field(other, 'state')
      if theirs == 'queued' or theirs == 'running' then return 'active ' .. other end
    end
  end
  if state == 'running' then end_stage(id) end
  for _, name in ipairs(more.drop or {}) do redis.call('HDEL', key(id), name) end
  for name, text in pairs(more.set or {}) do redis.call('HSET', key(id), name, text) end
  redis.call('HSET', key(id), 'state', '"' .. to .. '"')
  local user = field(id, 'user') or ''
  if to == 'running' then
    if not field(id, 'started') then
      redis.call('HSET', key(id), 'started', stamp)
      observe('wait_seconds', now - (field(id, 'created') or now))
    end
    redis.call('HSET', key(id), 'owner', more.owner)
    redis.call('SET', key(id) .. ':lease', more.owner, 'PX', more.lease)
    redis.call('HINCRBY', key(id), 'attempts', 1)
    redis.call('SADD', P .. 'running', id)
    redis.call('SADD', P .. 'running:' .. user, id)
    redis.call('SADD', P .. 'running/' .. lane_of(id), id)
    drop_out(id, true)
  else
    redis.call('HDEL', key(id), 'owner')
    redis.call('DEL', key(id) .. ':lease')
    redis.call('SREM', P .. 'running', id)
    redis.call('SREM', P .. 'running:' .. user, id)
    redis.call('SREM', P .. 'running/' .. lane_of(id), id)
    if to == 'queued' then
      redis.call('SET', active, id)
      line_up(id)
      redis.call('ZREM', P .. 'finished', id)
      redis.call('ZREM', P .. 'detailed', id)
    else
      drop_out(id, false)
      redis.call('HSET', key(id), 'finished', stamp)
      redis.call('ZADD', P .. 'finished', now, id)
      redis.call('ZADD', P .. 'detailed', now, id)
      if redis.call('GET', active) == id then redis.call('DEL', active) end
      count('jobs|' .. to)
      if to == 'published' then count('bytes', field(id, 'size') or 0) end
      if to == 'failed' then count('failures|' .. (field(id, 'cause') or 'other')) end
      local verdict = field(id, 'verdict')
      if verdict then count('verdicts|' .. verdict) end
    end
  end
  local said = {'kind', 'state', 'state', to}
  if more.text and more.text ~= '' then said[5] = 'text'; said[6] = more.text end
  tell(id, said)
  return 'ok'
end
""".replace("@buckets@", ", ".join(map(str, BUCKETS)))

CREATE = (
    _COMMON
    + """
-- ask: id, key, user, lane, size, limits {user_waiting, all_waiting, user_bytes, user_jobs},
-- record {name: JSON}, day
-- answer: the id of the job that does it, or 'limit NAME'
local active = P .. 'active:' .. ask.key
local old = redis.call('GET', active)
if old then
  local state = field(old, 'state')
  if state == 'queued' or state == 'running' then return old end
end
local limits = ask.limits
if limits.all_waiting > 0 and redis.call('ZCARD', P .. 'waiting') >= limits.all_waiting then
  return 'limit all_waiting'
end
if limits.user_waiting > 0 then
  local waiting = 0
  for _, lane in ipairs(ask.lanes) do
    waiting = waiting + redis.call('ZCARD', P .. 'line:' .. lane .. ':' .. ask.user)
  end
  if waiting >= limits.user_waiting then return 'limit user_waiting' end
end
local today = math.floor(now / 86400) .. ':' .. ask.user
if limits.user_jobs > 0 and tonumber(redis.call('GET', P .. 'made:' .. today) or '0') >= limits.user_jobs then
  return 'limit user_jobs'
end
if limits.user_bytes > 0 then
  local bytes = P .. 'bytes:' .. today
  if tonumber(redis.call('GET', bytes) or '0') + ask.size > limits.user_bytes then
    return 'limit user_bytes'
  end
  redis.call('INCRBY', bytes, ask.size)
  redis.call('EXPIRE', bytes, 2 * 86400)
end
redis.call('INCR', P .. 'made:' .. today)
redis.call('EXPIRE', P .. 'made:' .. today, 2 * 86400)
for name, text in pairs(ask.record) do redis.call('HSET', key(ask.id), name, text) end
redis.call('HSET', key(ask.id), 'created', stamp)
redis.call('SET', active, ask.id)
redis.call('ZADD', P .. 'jobs', now, ask.id)
tell(ask.id, {'kind', 'state', 'state', 'queued'})
line_up(ask.id)
count('submitted')
return ask.id
"""
)

MOVE = (
    _COMMON
    + """
-- ask: id, to, from {state: true}, owner, lease (ms), free, drop [names], set {name: JSON}, text
return move(ask.id, ask.to, ask.from, ask)
"""
)

TAKE = (
    _COMMON
    + """
-- ask: lanes [in order], owner, lease (ms), schema (the latest known), set, user_running,
--      large (most large jobs at a time), large_lanes
-- answer: the id of the job that is the owner's now; else 'newer ID' of one of a later schema, or ''
local newer
local taken = redis.call('GET', P .. 'taken:' .. ask.owner)
if taken then return taken end  -- the answer to an earlier try was lost on its way
local large = 0
for _, lane in ipairs(ask.large_lanes) do large = large + redis.call('SCARD', P .. 'running/' .. lane) end
local is_large = {}
for _, lane in ipairs(ask.large_lanes) do is_large[lane] = true end
for _, lane in ipairs(ask.lanes) do
  if not (is_large[lane] and large >= ask.large) then
    local line = P .. 'line:' .. lane
    for _, user in ipairs(redis.call('ZRANGE', line, 0, 499)) do
      local busy = ask.user_running > 0 and redis.call('SCARD', P .. 'running:' .. user) >= ask.user_running
      if not busy then
        for _, id in ipairs(redis.call('ZRANGE', line .. ':' .. user, 0, 9)) do
          -- A later schema may ask for what this worker does not know: that waits for a newer one.
          if (field(id, 'schema') or 1) > ask.schema then
            newer = newer or id
          else
            if move(id, 'running', {queued = true}, ask) == 'ok' then
              redis.call('SET', P .. 'taken:' .. ask.owner, id, 'PX', ask.lease)
              return id
            end
            -- A worker of an older release took it by its message and left it in the line.
            redis.call('ZREM', line .. ':' .. user, id)
            redis.call('ZREM', P .. 'waiting', id)
          end
        end
        if redis.call('EXISTS', line .. ':' .. user) == 0 then redis.call('ZREM', line, user) end
      end
    end
  end
end
return newer and ('newer ' .. newer) or ''
"""
)

TELL = (
    _COMMON
    + """
-- ask: id, owner, stage or nil, set {name: JSON}, event [name, text, ...]
-- answer: 1, or 0 where not the owner
if redis.call('HGET', key(ask.id), 'owner') ~= ask.owner then return 0 end
if ask.stage then end_stage(ask.id) end
for name, text in pairs(ask.set) do redis.call('HSET', key(ask.id), name, text) end
if ask.stage then redis.call('HSET', key(ask.id), 'stage_at', stamp) end
tell(ask.id, ask.event)
return 1
"""
)

LAY_DOWN = (
    _COMMON
    + """
-- ask: id, owner, name; ARGV[2]: the text; answer: 1, or 0 where not the owner
if redis.call('HGET', key(ask.id), 'owner') ~= ask.owner then return 0 end
redis.call('HSET', key(ask.id) .. ':papers', ask.name, ARGV[2])
return 1
"""
)

BEAT = (
    _COMMON
    + """
-- ask: id, owner, lease (ms); answer: -1 not the owner, 1 cancel asked for, 0 go on
if redis.call('HGET', key(ask.id), 'owner') ~= ask.owner then return -1 end
redis.call('SET', key(ask.id) .. ':lease', ask.owner, 'PX', ask.lease)
if redis.call('HGET', key(ask.id), 'cancel') == 'true' then return 1 end
return 0
"""
)

CANCEL = (
    _COMMON
    + """
-- ask: id; answer: the state before, 'missing' where there is no such job
local state = field(ask.id, 'state')
if not state then return 'missing' end
if state == 'queued' then move(ask.id, 'cancelled', {queued = true}, {text = ask.text}) end
if state == 'running' then redis.call('HSET', key(ask.id), 'cancel', 'true') end
return state
"""
)

RECLAIM = (
    _COMMON
    + """
-- ask: id, most (attempts that may be lost), text, reason (JSON); answer: 'ok' where it was moved
if redis.call('EXISTS', key(ask.id) .. ':lease') == 1 then return 'running' end
local lost = tonumber(redis.call('HGET', key(ask.id), 'lost') or '0') + 1
count('lost|worker')
if lost >= ask.most then
  return move(ask.id, 'failed', {running = true}, {text = cjson.decode(ask.reason),
    set = {reason = ask.reason, cause = '"worker lost"', lost = tostring(lost)}})
end
if redis.call('HGET', key(ask.id), 'cancel') == 'true' then
  return move(ask.id, 'cancelled', {running = true}, {set = {reason = '"cancelled"'}})
end
return move(ask.id, 'queued', {running = true}, {text = ask.text, set = {lost = tostring(lost)}})
"""
)

RETIRE = (
    _COMMON
    + """
-- ask: id, whole; answer: 1, or 0 where the job is queued or running
local state = field(ask.id, 'state')
if state == 'queued' or state == 'running' then return 0 end
redis.call('ZREM', P .. 'detailed', ask.id)
redis.call('DEL', key(ask.id) .. ':events', key(ask.id) .. ':papers')
if ask.whole then
  redis.call('DEL', key(ask.id))
  for _, set in ipairs({'jobs', 'finished', 'waiting'}) do redis.call('ZREM', P .. set, ask.id) end
  return 1
end
local source = field(ask.id, 'source')
if source then
  local kept = {model = source.model, commit = source.commit, private = source.private}
  redis.call('HSET', key(ask.id), 'source', cjson.encode(kept))
end
for _, name in ipairs({'progress', 'stage_at', 'owner'}) do redis.call('HDEL', key(ask.id), name) end
return 1
"""
)
