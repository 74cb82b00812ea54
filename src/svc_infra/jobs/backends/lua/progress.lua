-- ARGV: now, id, token, done, total. Returns whether the token was right.
local id = ARGV[2]
if not is_held(id, ARGV[3]) then return 0 end
redis.call('HSET', job_key(id), 'progress_done', ARGV[4], 'progress_total', ARGV[5])
return 1
