-- ARGV: now, age in microseconds, limit. Returns how many finished jobs were deleted.
local before = whole(now - tonumber(ARGV[2]))
local old = redis.call('ZRANGEBYSCORE', prefix .. ':finished', '-inf', before, 'LIMIT', 0, tonumber(ARGV[3]))
for _, id in ipairs(old) do forget(id) end
return #old
