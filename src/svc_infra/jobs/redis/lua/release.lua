-- ARGV: now, id, token, most finished jobs, delay in microseconds. Returns whether the token was right.
although_full()
local id, delay = ARGV[2], tonumber(ARGV[5])
local job = held(id, ARGV[3], 'available_at')
if not job then return 0 end
redis.call('HINCRBY', job_key(id), 'attempts', -1)
give_back(id, delay > 0 and now + delay or in_place(job[6]))
trim(tonumber(ARGV[4]), 1)
return 1
