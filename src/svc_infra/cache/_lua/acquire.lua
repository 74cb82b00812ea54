-- Asks for the lease of a value, and reads the value as it is now.
-- KEYS: value, lease, tags · ARGV: token, life of the tags, lease, 1 to take it from its holder · after tokens.lua
local found = tokens(3)
local granted
if ARGV[4] == '1' then
  granted = redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
else
  granted = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[3])
end
return { granted and 1 or 0, redis.call('GET', KEYS[1]), found }
