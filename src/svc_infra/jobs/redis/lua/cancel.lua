-- ARGV: now, id, most finished jobs. Returns the state that the job was in; nil when there is no such job.
although_full()
local id = ARGV[2]
local job = redis.call('HMGET', job_key(id), 'state', 'created_at')
if job[1] == 'running' then redis.call('HSET', job_key(id), 'cancel_requested', '1') end
if job[1] == 'ready' then
  withdraw(id)
  finish(id, job[2], 'ready', 'cancelled')
  trim(tonumber(ARGV[3]), 1)
end
return job[1]
