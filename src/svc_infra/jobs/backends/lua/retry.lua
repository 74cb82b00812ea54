-- ARGV: now, id. Returns the state that the job was in; nil when there is no such job.
local id = ARGV[2]
local job = redis.call('HMGET', job_key(id), 'state', 'queue', 'priority')
if job[1] ~= 'dead' and job[1] ~= 'cancelled' then return job[1] end
redis.call('ZREM', prefix .. ':finished', id)
move(id, job[1], 'ready')
redis.call('HDEL', job_key(id), 'finished_at')
redis.call('HSET', job_key(id), 'available_at', whole(now), 'attempts', 0, 'crashes', 0, 'progress_done', 0,
  'progress_total', 0)
offer(id, job[2], tonumber(job[3]), now)
return job[1]
