-- Reads a part of the stream of a channel. A stream that does not exist begins.
--
-- KEYS: the stream, its metadata.
-- ARGV: 1 run id of the server, 2 age in ms, 3 idle time in ms, 4 lowest and 5 highest ID as XRANGE
--   takes them, 6 "1": the newest first, 7 entries at most, 8 bytes of payloads and tags at most,
--   9 how many messages the channel retains, 10 time in us before which streams have ended.
-- Returns: the position, "1" if there is more, the entries.

local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local oldest_ms = math.floor(now_us / 1000) - tonumber(ARGV[2])

local run = ARGV[1]
if run == '' then
  run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

local since = tonumber(ARGV[10])
local meta = redis.call('HMGET', KEYS[2], 'epoch', 'offset', 'run')
if meta[1] and tonumber(meta[1]) < since then
  -- The channel had no history in the meantime.
  redis.call('DEL', KEYS[1], KEYS[2])
  meta = {}
end
local epoch, offset = meta[1], meta[2]
if not epoch or meta[3] ~= run then
  local after = epoch and tonumber(epoch) + 1 or 0
  epoch = string.format('%.0f', math.max(now_us, after, since))
  offset = '0'
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'offset', offset, 'run', run)
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end

-- The rule may be for fewer messages than before.
if redis.call('XLEN', KEYS[1]) > tonumber(ARGV[9]) then
  redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[9])
end

local lowest, highest, reverse = ARGV[4], ARGV[5], ARGV[6] == '1'
local count_max, bytes_max = tonumber(ARGV[7]), tonumber(ARGV[8])
local found, bytes, more = {}, 0, '0'
local done = count_max == 0
while not done do
  local chunk
  if reverse then
    chunk = redis.call('XREVRANGE', KEYS[1], highest, lowest, 'COUNT', 32)
  else
    chunk = redis.call('XRANGE', KEYS[1], lowest, highest, 'COUNT', 32)
  end
  for _, entry in ipairs(chunk) do
    local fields = entry[2]
    if tonumber(fields[2]) > oldest_ms then
      bytes = bytes + #fields[4] + (fields[6] and #fields[6] or 0)
      if #found == count_max or (bytes > bytes_max and #found > 0) then
        more = '1'
        done = true
        break
      end
      found[#found + 1] = {entry[1], fields[2], fields[4], fields[6] or ''}
    elseif reverse then
      done = true
      break
    end
  end
  if #chunk < 32 then
    break
  end
  if reverse then
    highest = '(' .. chunk[#chunk][1]
  else
    lowest = '(' .. chunk[#chunk][1]
  end
end
return {epoch .. '-' .. offset, more, found}
