-- ARGV: now, id, token, delay in microseconds, '1' to give up, error. Returns the new state; nil for a wrong token.
local id = ARGV[2]
if not is_held(id, ARGV[3]) then return false end
local job = redis.call('HMGET', job_key(id), 'attempts', 'max_attempts')
redis.call('HSET', job_key(id), 'last_error', ARGV[6])
if ARGV[5] == '1' or tonumber(job[1]) >= tonumber(job[2]) then
  bury(id)
  return 'dead'
end
again(id, now + tonumber(ARGV[4]))
return 'ready'
