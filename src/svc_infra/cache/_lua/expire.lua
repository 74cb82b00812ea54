-- Gives a value another end; a counter has no header that says it too.
-- KEYS: value · ARGV: life, first byte of a header, where in it the end stands, the end, channel, message
local first = redis.call('GETRANGE', KEYS[1], 0, 0)
if first == '' then return 0 end
if string.byte(first) == tonumber(ARGV[2]) then redis.call('SETRANGE', KEYS[1], ARGV[3], ARGV[4]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
