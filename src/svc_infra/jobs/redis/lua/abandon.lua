-- ARGV: now, token of a claim whose answer nobody reads, seconds, most finished jobs. Forbids that claim for so long if
-- it is still to come, and hands back, unspent, what it has claimed. Returns how many jobs.
although_full()
local abandoned = 0
redis.call('SET', key_of('void', ARGV[2]), '1', 'EX', ARGV[3])
for _, id in ipairs(redis.call('LRANGE', key_of('claim', ARGV[2]), 0, -1)) do
  local job = redis.call('HMGET', job_key(id), 'token', 'available_at')
  if job[1] and string.sub(job[1], 1, #ARGV[2]) == ARGV[2] then
    redis.call('HINCRBY', job_key(id), 'attempts', -1)
    give_back(id, in_place(job[2]))
    abandoned = abandoned + 1
  end
end
redis.call('DEL', key_of('claim', ARGV[2]))
trim(tonumber(ARGV[4]), abandoned)
return abandoned
