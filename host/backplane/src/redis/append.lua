-- Appends a publication to the stream of its channel and publishes it, in one step, so that the
-- order of positions is the order of delivery on every node.
--
-- KEYS: the stream, its metadata, the record of the publication's key.
-- ARGV: 1 channel, 2 channel of the positions, 3 payload, 4 tags, 5 version, 6 run id of the server,
--   7 messages, 8 age in ms, 9 idle time in ms, 10 size and checksum of the payload,
--   11 idempotency time in ms, 12 deliveries, 13 time in us before which streams have ended. Empty:
--   there is none. Without 7, nothing is retained.
-- Returns: how it ended ("kept", "plain", "stale"), the position and the deliveries, as one text.

local channel, positions, payload, tags, version = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

if ARGV[11] ~= '' then
  local known = redis.call('GET', KEYS[3])
  if known then
    return known
  end
end

local function settle(how, position)
  local answer = how .. ' ' .. position .. ' ' .. ARGV[12]
  if ARGV[11] ~= '' then
    redis.call('SET', KEYS[3], answer, 'PX', ARGV[11])
  end
  return answer
end

if ARGV[7] == '' then
  redis.call('PUBLISH', channel, payload)
  return settle('plain', '')
end

local age_ms = tonumber(ARGV[8])
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now_ms = math.floor(now_us / 1000)

local run = ARGV[6]
if run == '' then
  run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

local since = tonumber(ARGV[13])
local meta = redis.call('HMGET', KEYS[2], 'epoch', 'offset', 'run', 'version', 'versioned')
if meta[1] and tonumber(meta[1]) < since then
  -- The channel had no history in the meantime.
  redis.call('DEL', KEYS[1], KEYS[2])
  meta = {}
end
local epoch, offset = meta[1], tonumber(meta[2] or '0')
if not epoch or meta[3] ~= run then
  -- A server that was started again, or took over, may have lost the last publications.
  local after = epoch and tonumber(epoch) + 1 or 0
  epoch = string.format('%.0f', math.max(now_us, after, since))
  offset = 0
end

local function is_retained(entry)
  return entry and tonumber(entry[2][2]) > now_ms - age_ms
end

if version ~= '' and meta[4] and tonumber(meta[4]) >= tonumber(version) then
  local held = redis.call('XRANGE', KEYS[1], meta[5], meta[5])[1]
  if is_retained(held) then
    return settle('stale', '')
  end
end

local previous = offset
offset = offset + 1
local position = epoch .. '-' .. string.format('%.0f', offset)
local fields = {'t', string.format('%.0f', now_ms), 'p', payload}
if tags ~= '' then
  fields[#fields + 1] = 'g'
  fields[#fields + 1] = tags
end
redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[7], position, unpack(fields))
redis.call('PEXPIRE', KEYS[1], ARGV[8])
if version ~= '' then
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'offset', offset, 'run', run,
    'version', version, 'versioned', position)
else
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'offset', offset, 'run', run)
end
redis.call('PEXPIRE', KEYS[2], ARGV[9])

-- What is too old is removed as new entries come, at most as many as keeps this short.
for _ = 1, 8 do
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if not oldest or is_retained(oldest) then
    break
  end
  redis.call('XDEL', KEYS[1], oldest[1])
end

-- The position first: nodes join it with the message that follows.
redis.call('PUBLISH', positions, position .. ' ' .. string.format('%.0f', previous) .. ' '
  .. string.format('%.0f', now_ms) .. ' ' .. ARGV[10] .. ' ' .. tags)
redis.call('PUBLISH', channel, payload)
return settle('kept', position)
