-- ARGV: now, id, most finished jobs. Returns the state that the job was in; nil when there is no such job.
local id = ARGV[2]
local job = redis.call('HMGET', job_key(id), 'state', 'queue', 'available_at')
if job[1] ~= 'ready' then return job[1] end
redis.call('ZREM', delayed_key(job[2]), id)
redis.call('ZREM', ready_key(job[2]), ready_member(tonumber(job[3]), id))
finish(id, 'ready', 'cancelled', tonumber(ARGV[3]))
return job[1]
