-- ARGV: now, id, payload. Returns the state that the job is in; nil when there is no such job.
local state = redis.call('HGET', job_key(ARGV[2]), 'state')
if state == 'ready' or state == 'dead' then redis.call('HSET', job_key(ARGV[2]), 'payload', ARGV[3]) end
return state
