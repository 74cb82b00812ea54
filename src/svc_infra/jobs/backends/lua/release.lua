-- ARGV: now, id, token, delay in microseconds. Returns whether the token was right.
local id, delay = ARGV[2], tonumber(ARGV[4])
if not is_held(id, ARGV[3]) then return 0 end
redis.call('HINCRBY', job_key(id), 'attempts', -1)
again(id, delay > 0 and now + delay or tonumber(redis.call('HGET', job_key(id), 'available_at')))
return 1
