-- Runs before every script. KEYS[1]: the prefix, which holds the hash tag, so that every key lives in one slot.
-- ARGV[1]: the time in microseconds since 1970; '' for the server's own.
--
-- <prefix>:job:<id>         hash    the job
-- <prefix>:<state>          zset    the ids in that state by creation; <prefix>:dead is the dead letter
-- <prefix>:ready:<queue>    zset    what can be claimed now: score -priority, member "<due>:<id>", so in claiming order
-- <prefix>:delayed:<queue>  zset    ids of ready jobs whose time has not come, by that time
-- <prefix>:queues           set     the queues that have ready jobs, and perhaps some that had
-- <prefix>:processing       zset    ids of running jobs, by the end of their lease
-- <prefix>:finished         zset    ids of succeeded and cancelled jobs, by the end of the job
-- <prefix>:unique:<key>     string  the id of the job that holds the unique key
-- <prefix>:wake:<queue>     list    at most one element: something became ready; waiting workers block on it
local prefix = KEYS[1]
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local function job_key(id) return prefix .. ':job:' .. id end
local function whole(number) return string.format('%.0f', number) end
local function ready_key(queue) return prefix .. ':ready:' .. queue end
local function delayed_key(queue) return prefix .. ':delayed:' .. queue end
local function ready_member(due, id) return string.format('%016.0f:%s', due, id) end

local function move(id, from, to)
  redis.call('ZREM', prefix .. ':' .. from, id)
  redis.call('ZADD', prefix .. ':' .. to, redis.call('HGET', job_key(id), 'created_at'), id)
  redis.call('HSET', job_key(id), 'state', to)
end

-- Puts a ready job where it will be found: now, or when its time has come.
local function offer(id, queue, priority, due)
  redis.call('SADD', prefix .. ':queues', queue)
  if due > now then
    redis.call('ZADD', delayed_key(queue), whole(due), id)
    return
  end
  redis.call('ZADD', ready_key(queue), 0 - priority, ready_member(due, id))
  local wake = prefix .. ':wake:' .. queue
  if redis.call('EXISTS', wake) == 0 then redis.call('RPUSH', wake, '1') end
end

local function is_held(id, token)
  local job = redis.call('HMGET', job_key(id), 'state', 'token')
  return job[1] == 'running' and job[2] == token
end

local function let_go(id)
  redis.call('ZREM', prefix .. ':processing', id)
  redis.call('HDEL', job_key(id), 'token', 'lease_expires_at')
end

-- Back to ready, due at that time.
local function again(id, due)
  local job = redis.call('HMGET', job_key(id), 'queue', 'priority')
  let_go(id)
  move(id, 'running', 'ready')
  redis.call('HSET', job_key(id), 'available_at', whole(due))
  offer(id, job[1], tonumber(job[2]), due)
end

local function bury(id)
  let_go(id)
  move(id, 'running', 'dead')
  redis.call('HSET', job_key(id), 'finished_at', whole(now))
end

local function forget(id)
  local job = redis.call('HMGET', job_key(id), 'state', 'unique_key')
  redis.call('ZREM', prefix .. ':finished', id)
  if not job[1] then return end
  redis.call('ZREM', prefix .. ':' .. job[1], id)
  redis.call('DEL', job_key(id))
  if job[2] then
    local unique = prefix .. ':unique:' .. job[2]
    if redis.call('GET', unique) == id then redis.call('DEL', unique) end
  end
end

-- Finished for good; of all that are, only the newest stay.
local function finish(id, from, to, max_finished)
  move(id, from, to)
  redis.call('HSET', job_key(id), 'finished_at', whole(now))
  redis.call('ZADD', prefix .. ':finished', whole(now), id)
  local surplus = redis.call('ZCARD', prefix .. ':finished') - max_finished
  if surplus > 0 then
    for _, old in ipairs(redis.call('ZRANGE', prefix .. ':finished', 0, math.min(surplus, 10) - 1)) do forget(old) end
  end
end
