-- ARGV: now, id, queue, priority, delay in microseconds, unique key or '', then the hash's other fields and values.
-- Returns the id of the job that is kept.
local id, queue, priority, unique_key = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[6]
local due = now + tonumber(ARGV[5])
if redis.call('EXISTS', job_key(id)) == 1 then return id end
if unique_key ~= '' then
  local unique = prefix .. ':unique:' .. unique_key
  local holder = redis.call('GET', unique)
  if holder and redis.call('EXISTS', job_key(holder)) == 1 then return holder end
  redis.call('SET', unique, id)
  redis.call('HSET', job_key(id), 'unique_key', unique_key)
end
redis.call('HSET', job_key(id), 'queue', queue, 'priority', priority, 'state', 'ready', 'created_at', whole(now),
  'available_at', whole(due), unpack(ARGV, 7))
redis.call('ZADD', prefix .. ':ready', whole(now), id)
offer(id, queue, priority, due)
return id
