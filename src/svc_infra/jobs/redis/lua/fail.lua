-- ARGV: now, id, token, most finished jobs, delay in microseconds, state to end in or '', error, fingerprint,
-- crashes to count. Returns the new state; nil for a wrong token.
although_full()
local id, last = ARGV[2], ARGV[6] ~= '' and ARGV[6] or nil
local job = held(id, ARGV[3], 'attempts', 'crashes', 'max_attempts')
if not job then return false end
local crashes = (job[7] or 0) + ARGV[9]
redis.call('HSET', job_key(id), 'last_error', ARGV[7], 'fingerprint', ARGV[8], 'crashes', crashes)
if not last and job[6] - crashes >= tonumber(job[8]) then last = 'dead' end
local state = give_back(id, now + tonumber(ARGV[5]), last)
trim(tonumber(ARGV[4]), 1)
return state
