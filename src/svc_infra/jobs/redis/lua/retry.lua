-- ARGV: now, id. Returns the state that the job was in; nil when there is no such job.
local id = ARGV[2]
local state = redis.call('HGET', job_key(id), 'state')
if state == 'dead' or state == 'cancelled' then
  restart(id, state, now)
  flush()
end
return state
