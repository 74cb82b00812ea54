-- ARGV: now, age in microseconds, limit, key of what ended. Returns how many jobs were deleted.
although_full()
local key = prefix .. ':' .. ARGV[4]
local old = redis.call('ZRANGEBYSCORE', key, '-inf', now - tonumber(ARGV[2]), 'LIMIT', 0, tonumber(ARGV[3]))
for _, id in ipairs(old) do remove(key, id) end
forget(old)
return #old
