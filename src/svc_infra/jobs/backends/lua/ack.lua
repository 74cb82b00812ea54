-- ARGV: now, id, token, most finished jobs, then the result when there is one. Returns whether the token was right.
local id = ARGV[2]
if not is_held(id, ARGV[3]) then return 0 end
let_go(id)
if ARGV[5] then redis.call('HSET', job_key(id), 'result', ARGV[5]) end
finish(id, 'running', 'succeeded', tonumber(ARGV[4]))
return 1
