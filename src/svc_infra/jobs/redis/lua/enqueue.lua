-- ARGV: now, and as MessagePack the jobs, each: id, whether the caller chose it, queue, priority, limit key, tenant,
-- delay (or nothing, and the time), the hash's fields and values, and of a unique key: key, window, states, what to do.
-- Returns, for each job that was not stored under its id, its place and the id of the job that is kept.
local replies = {}

local function put(id, job, created, due)
  local available_at = due == now and now_text or due
  redis.call('HSET', job_key(id), 'state', 'ready', 'created_at', created, 'available_at', available_at, unpack(job[9]))
  add(prefix .. ':ready', created, id)
  offer(id, job[3], job[4], job[5], job[6], due)
end

local function replace(id, job, due)
  local kept = redis.call('HMGET', job_key(id), 'state', 'created_at', 'available_at')
  if kept[1] ~= 'ready' or job[13] == 'skip' then return end
  withdraw(id)
  redis.call('DEL', job_key(id))
  if job[13] == 'replace' then due = tonumber(kept[3]) end
  put(id, job, kept[2], due)
end

local function store(job)
  local id, unique = job[1], job[10]
  local due = job[8] > 0 and math.max(now, job[8]) or now + job[7]
  if job[2] and redis.call('EXISTS', job_key(id)) == 1 then return id end
  if unique then
    local holder, former = holder_of(unique, job[11], job[12])
    if holder then
      replace(holder, job, due)
      return holder
    end
    if former then redis.call('HDEL', job_key(former), 'unique_key') end
    redis.call('SET', key_of('unique', unique), id)
  end
  put(id, job, now_text, due)
  return id
end

for place, job in ipairs(cmsgpack.unpack(ARGV[2])) do
  local kept = store(job)
  if kept ~= job[1] then
    replies[#replies + 1] = place
    replies[#replies + 1] = kept
  end
end
flush()
return replies
