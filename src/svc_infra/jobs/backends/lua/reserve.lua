-- ARGV: now, worker, limit, lease in microseconds, token, most jobs that each sweep moves, error of an ended lease,
-- then the queues. Returns the claimed jobs, each as id and hash, and the ids whose hash is gone.
local worker, limit, lease, token, sweep, lease_ended =
  ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), ARGV[7]
local lost = {}

for _, id in ipairs(redis.call('ZRANGEBYSCORE', prefix .. ':processing', '-inf', whole(now), 'LIMIT', 0, sweep)) do
  local job = redis.call('HMGET', job_key(id), 'available_at', 'attempts', 'max_attempts')
  if not job[1] then
    redis.call('ZREM', prefix .. ':processing', id)
    redis.call('ZREM', prefix .. ':running', id)
    lost[#lost + 1] = id
  else
    redis.call('HINCRBY', job_key(id), 'crashes', 1)
    redis.call('HSET', job_key(id), 'last_error', lease_ended)
    if tonumber(job[2]) >= tonumber(job[3]) then bury(id) else again(id, tonumber(job[1])) end
  end
end

for place = 8, #ARGV do
  local key = delayed_key(ARGV[place])
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', whole(now), 'LIMIT', 0, sweep)) do
    local job = redis.call('HMGET', job_key(id), 'priority', 'available_at')
    redis.call('ZREM', key, id)
    if job[1] then
      offer(id, ARGV[place], tonumber(job[1]), tonumber(job[2]))
    else
      redis.call('ZREM', prefix .. ':ready', id)
      lost[#lost + 1] = id
    end
  end
end

local heads = {}
for place = 8, #ARGV do
  local key = ready_key(ARGV[place])
  local found = redis.call('ZRANGE', key, 0, limit - 1, 'WITHSCORES')
  for at = 1, #found, 2 do heads[#heads + 1] = { key, found[at], tonumber(found[at + 1]) } end
end
if #ARGV > 8 then
  table.sort(heads, function(a, b) return a[3] < b[3] or (a[3] == b[3] and a[2] < b[2]) end)
end

local claimed = {}
for place = 1, math.min(limit, #heads) do
  local key, member = heads[place][1], heads[place][2]
  local id = string.sub(member, 18)
  redis.call('ZREM', key, member)
  if redis.call('EXISTS', job_key(id)) == 0 then
    redis.call('ZREM', prefix .. ':ready', id)
    lost[#lost + 1] = id
  else
    local lease_end = whole(now + lease)
    move(id, 'ready', 'running')
    redis.call('ZADD', prefix .. ':processing', lease_end, id)
    redis.call('HINCRBY', job_key(id), 'attempts', 1)
    redis.call('HSET', job_key(id), 'token', token .. '-' .. place, 'worker_id', worker, 'started_at', whole(now),
      'lease_expires_at', lease_end)
    claimed[#claimed + 1] = { id, redis.call('HGETALL', job_key(id)) }
  end
end
return { claimed, lost }
