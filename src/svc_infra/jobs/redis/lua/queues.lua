-- ARGV: now. Returns each queue: name, ready jobs, running jobs, age in microseconds of the oldest that is due, whether
-- it is paused, and its configuration or ''.
local names = {}
for _, queue in ipairs(redis.call('SMEMBERS', prefix .. ':queues')) do names[queue] = true end
for _, queue in ipairs(redis.call('SMEMBERS', prefix .. ':paused')) do names[queue] = true end
for _, queue in ipairs(redis.call('HKEYS', prefix .. ':configured')) do names[queue] = true end
local found = {}
for queue in pairs(names) do
  local ready, oldest = 0, now
  local function look(key, priority)
    local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if #head > 0 then
      ready = ready + redis.call('ZCARD', key)
      oldest = math.min(oldest, head[2] + priority * POINT)
    end
  end
  look(key_of('delayed', queue), 0)
  local tenants = redis.call('ZRANGE', key_of('tenants', queue), 0, -1)
  for _, tenant in ipairs(tenants) do
    look(lane_key(queue, PLAIN, tenant), 0)
    for _, sublane in ipairs(redis.call('SMEMBERS', key_of('lanes', queue .. ' ' .. tenant))) do
      look(lane_key(queue, sublane, tenant), tonumber(string.match(sublane, '^[^ ]+')))
    end
  end
  if ready == 0 then  -- the last one was cancelled: no claim has seen it go
    for _, tenant in ipairs(tenants) do redis.call('DEL', key_of('lanes', queue .. ' ' .. tenant)) end
    redis.call('DEL', key_of('tenants', queue), key_of('turns', queue))
  end
  local running = tonumber(redis.call('HGET', prefix .. ':held', 'queue ' .. queue) or 0)
  local paused = redis.call('SISMEMBER', prefix .. ':paused', queue)
  local configured = redis.call('HGET', prefix .. ':configured', queue) or ''
  if ready + running == 0 then redis.call('SREM', prefix .. ':queues', queue) end
  if ready + running + paused > 0 or configured ~= '' then
    found[#found + 1] = { queue, ready, running, now - oldest, paused, configured }
  end
end
return found
