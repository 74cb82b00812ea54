-- ARGV: now, queue, 'pause', 'resume', or its configuration ('' for none).
although_full()
local queue, change = ARGV[2], ARGV[3]
if change == 'pause' then
  redis.call('SADD', prefix .. ':paused', queue)
elseif change == 'resume' then
  redis.call('SREM', prefix .. ':paused', queue)
elseif change == '' then
  redis.call('HDEL', prefix .. ':configured', queue)
else
  redis.call('HSET', prefix .. ':configured', queue, change)
end
wake(queue)
