-- ARGV: now, then the states. Returns the age in microseconds of the oldest due job, and how many jobs are in each state.
local oldest = now
for _, queue in ipairs(redis.call('SMEMBERS', prefix .. ':queues')) do
  local delayed = redis.call('ZRANGE', delayed_key(queue), 0, 0, 'WITHSCORES')
  local head = redis.call('ZRANGE', ready_key(queue), 0, 0, 'WITHSCORES')
  if #delayed + #head == 0 then redis.call('SREM', prefix .. ':queues', queue) end
  oldest = math.min(oldest, tonumber(delayed[2] or now))
  while #head > 0 do  -- the oldest of each priority
    oldest = math.min(oldest, tonumber(string.sub(head[1], 1, 16)))
    head = redis.call('ZRANGEBYSCORE', ready_key(queue), '(' .. head[2], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  end
end
local counts = {}
for place = 2, #ARGV do counts[#counts + 1] = redis.call('ZCARD', prefix .. ':' .. ARGV[place]) end
return { whole(now - oldest), counts }
