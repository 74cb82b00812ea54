-- ARGV: now, id, token, done, total. Returns whether the token was right.
although_full()
if not held(ARGV[2], ARGV[3]) then return 0 end
redis.call('HSET', job_key(ARGV[2]), 'progress_done', ARGV[4], 'progress_total', ARGV[5])
return 1
