-- Runs before every script. KEYS[1]: the prefix, which holds the hash tag, so that every key lives in one slot.
-- ARGV[1]: the time in microseconds since 1970; '' for the server's own. Times in all keys are such microseconds.
--
-- <p>:job:<id>                 hash    the job; a field that is missing has its default
-- <p>:<state>                  zset    the ids in that state by creation; <p>:dead is the dead letter
-- <p>:ready:<lane>             zset    ids that can be claimed now, by their rank: due time less 60 s a point of priority
-- <p>:delayed:<queue>          zset    ids of ready jobs whose time has not come, by that time
-- <p>:processing               zset    "<id> <queue> <limit key>" of running jobs, by the end of their lease
-- <p>:finished, <p>:buried     zset    ids of succeeded and cancelled jobs, and of dead ones, by the end of the job
-- <p>:unique:<key>             string  the id of the job that holds the unique key
-- <p>:queues                   set     the queues that have jobs, and perhaps some that had
-- <p>:tenants:<queue>          zset    the tenants that have claimable jobs, by their pass (see reserve)
-- <p>:turns:<queue>            zset    the passes of tenants that have none just now but are ahead of those that have
-- <p>:lanes:<queue> <tenant>   set     "<priority> <limit key>" of its lanes; "0 " is left out
-- <p>:held                     hash    how many jobs run, by limit key and by "queue <queue>"
-- <p>:rate:<limit key>         string  when the next start is due if starts were even; expires at that time
-- <p>:blocked:<limit key>      set     queues with a job that waits for one of the key to end
-- <p>:paused, <p>:configured   set, hash   of queues; the configuration as JSON
-- <p>:forgotten                string  how many finished jobs have been deleted
-- <p>:void:<token>             string  this claim must not be made any more
-- <p>:claim:<token>            list    the ids of a claim that may be given up; for a minute
-- <p>:wake:<queue>             list    at most one element: something became ready; waiting workers block on it
--
-- A lane is "<queue> <priority> <limit key> <tenant>", or "<queue>" alone for priority 0, no limit and no tenant.
local prefix = KEYS[1]
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local PLAIN, POINT = '0 ', 60 * 1000000

local function key_of(kind, name) return prefix .. ':' .. kind .. ':' .. name end
local function job_key(id) return prefix .. ':job:' .. id end
local function whole(number) return string.format('%.0f', number) end
local now_text = whole(now)  -- a number is made into text at each use
local function lane_key(queue, sublane, tenant)
  if sublane == PLAIN and tenant == '' then return key_of('ready', queue) end
  return key_of('ready', queue .. ' ' .. sublane .. ' ' .. tenant)
end

-- A server that is out of memory refuses what adds to it, but not to a script that has removed something before: with
-- this jobs go on and end, and so make room, while no new ones are stored.
local function although_full() redis.call('DEL', key_of('void', '')) end

-- What many jobs do to one key is gathered, and done by `flush` with one command for each key: removals first.
local removals, additions, counts = {}, {}, {}

local function gather(place, key, score, member)
  local list = place[key]
  if not list then
    list = {}
    place[key] = list
  end
  if score then list[#list + 1] = score end
  list[#list + 1] = member
end

local function remove(key, member) gather(removals, key, nil, member) end
local function add(key, score, member) gather(additions, key, score, member) end
local function count(field, change) counts[field] = (counts[field] or 0) + change end

local function flush()
  for key, list in pairs(removals) do
    for first = 1, #list, 2000 do redis.call('ZREM', key, unpack(list, first, math.min(first + 1999, #list))) end
  end
  for key, list in pairs(additions) do
    for first = 1, #list, 2000 do redis.call('ZADD', key, unpack(list, first, math.min(first + 1999, #list))) end
  end
  for field, change in pairs(counts) do
    if change ~= 0 and redis.call('HINCRBY', prefix .. ':held', field, change) <= 0 then
      redis.call('HDEL', prefix .. ':held', field)
    end
  end
  removals, additions, counts = {}, {}, {}
end

local woken = {}
local function wake(queue)
  if woken[queue] then return end
  woken[queue] = true
  local list = key_of('wake', queue)
  if redis.call('EXISTS', list) == 0 then redis.call('RPUSH', list, '1') end
end

-- Notes that a tenant waits in a queue: at its remembered pass, or else beside those that are next.
local function join(queue, tenant)
  local tenants, turns = key_of('tenants', queue), key_of('turns', queue)
  if redis.call('ZSCORE', tenants, tenant) then return end
  local first = redis.call('ZRANGE', tenants, 0, 0, 'WITHSCORES')
  local pass = first[2] or 0
  local former = first[2] and redis.call('ZSCORE', turns, tenant)
  if former then
    if tonumber(former) > tonumber(pass) then pass = former end
    redis.call('ZREM', turns, tenant)
  end
  redis.call('ZADD', tenants, pass, tenant)
end

-- Puts a ready job where it will be found: now, or when its time has come.
local known = {}
local function offer(id, queue, priority, limit, tenant, due)
  if not known['queue ' .. queue] then
    known['queue ' .. queue] = true
    redis.call('SADD', prefix .. ':queues', queue)
  end
  if due > now then
    local delayed = key_of('delayed', queue)
    add(delayed, due, id)
    known[delayed] = known[delayed] or tonumber(redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]) or math.huge
    if due < known[delayed] then  -- whoever waits has to know until when
      known[delayed] = due
      wake(queue)
    end
    return
  end
  local sublane = priority .. ' ' .. limit
  local lane = lane_key(queue, sublane, tenant)
  if not known[lane] then
    known[lane] = true
    if sublane ~= PLAIN then redis.call('SADD', key_of('lanes', queue .. ' ' .. tenant), sublane) end
    join(queue, tenant)
  end
  if due == now and sublane == PLAIN then
    add(lane, now_text, id)
  else
    add(lane, due - tonumber(priority) * POINT, id)
  end
  wake(queue)
end

-- Where a job waits or runs: queue, priority, limit key, tenant.
local function place_of(id)
  local job = redis.call('HMGET', job_key(id), 'queue', 'priority', 'limit_key', 'tenant')
  return job[1], job[2] or '0', job[3] or '', job[4] or ''
end

-- Takes a ready job out of where it waits.
local function withdraw(id)
  flush()
  local queue, priority, limit, tenant = place_of(id)
  if redis.call('ZREM', key_of('delayed', queue), id) == 0 then
    redis.call('ZREM', lane_key(queue, priority .. ' ' .. limit, tenant), id)
  end
end

-- The job's creation, queue, limit key and whatever else is asked for, if this attempt holds it.
local function held(id, token, ...)
  local job = redis.call('HMGET', job_key(id), 'state', 'token', 'created_at', 'queue', 'limit_key', ...)
  if job[1] == 'running' and job[2] == token then return job end
end

local function freed(field)
  local blocked = key_of('blocked', field)
  if not known[blocked] then
    known[blocked] = true
    for _, queue in ipairs(redis.call('SMEMBERS', blocked)) do wake(queue) end
    redis.call('DEL', blocked)
  end
end

-- An attempt no longer holds its job.
local function let_go(id, queue, limit)
  remove(prefix .. ':processing', id .. ' ' .. queue .. ' ' .. limit)
  count('queue ' .. queue, -1)
  freed('queue ' .. queue)
  if limit ~= '' then
    count(limit, -1)
    freed(limit)
  end
end

local function move(id, created, from, to)
  remove(prefix .. ':' .. from, id)
  add(prefix .. ':' .. to, created, id)
end

-- The job has ended; further fields of its hash may follow.
local function finish(id, created, from, to, ...)
  move(id, created, from, to)
  redis.call('HSET', job_key(id), 'state', to, 'finished_at', now_text, ...)
  add(prefix .. (to == 'dead' and ':buried' or ':finished'), now_text, id)
end

-- When a job that has been due keeps its place; a clock that went back does not make it wait again.
local function in_place(available_at) return math.min(tonumber(available_at), now) end

-- Gives a running job back: due at that time, or ended in the state `last`, or cancelled when somebody asked for that.
local function give_back(id, due, last)
  local job = redis.call('HMGET', job_key(id), 'created_at', 'cancel_requested')
  local queue, priority, limit, tenant = place_of(id)
  let_go(id, queue, limit)
  if job[2] == '1' then last = 'cancelled' end
  if last then
    finish(id, job[1], 'running', last)
    return last
  end
  move(id, job[1], 'running', 'ready')
  redis.call('HSET', job_key(id), 'state', 'ready', 'available_at', due)
  offer(id, queue, priority, limit, tenant, due)
  return 'ready'
end

local function forget(ids)
  local keys = {}
  for _, id in ipairs(ids) do
    local job = redis.call('HMGET', job_key(id), 'state', 'unique_key')
    keys[#keys + 1] = job_key(id)
    if job[1] then remove(prefix .. ':' .. job[1], id) end
    if job[2] then
      local unique = key_of('unique', job[2])
      if redis.call('GET', unique) == id then keys[#keys + 1] = unique end
    end
  end
  if #ids > 0 then redis.call('INCRBY', prefix .. ':forgotten', #ids) end
  for first = 1, #keys, 2000 do redis.call('UNLINK', unpack(keys, first, math.min(first + 1999, #keys))) end
  flush()
end

-- Of the succeeded and cancelled jobs only the newest stay; a call deletes some more than it can have added.
local function trim(most, added)
  flush()
  local surplus = redis.call('ZCARD', prefix .. ':finished') - most
  if surplus <= 0 then return end
  local popped, ids = redis.call('ZPOPMIN', prefix .. ':finished', math.min(surplus, added + 10)), {}
  for at = 1, #popped, 2 do ids[#ids + 1] = popped[at] end
  forget(ids)
end

-- Whether a job's fields have the values that follow each other in ARGV from `first` to `last`.
local function has(id, first, last)
  for at = first, last, 2 do
    if (redis.call('HGET', job_key(id), ARGV[at]) or '') ~= ARGV[at + 1] then return false end
  end
  return true
end

-- Due again, as if it had never run.
local function restart(id, from, due)
  local created = redis.call('HGET', job_key(id), 'created_at')
  local queue, priority, limit, tenant = place_of(id)
  remove(prefix .. (from == 'dead' and ':buried' or ':finished'), id)
  move(id, created, from, 'ready')
  redis.call('HDEL', job_key(id), 'finished_at', 'attempts', 'crashes', 'cancel_requested', 'progress_done',
    'progress_total')
  redis.call('HSET', job_key(id), 'state', 'ready', 'available_at', due)
  offer(id, queue, priority, limit, tenant, due)
end

-- The id of the job that holds a unique key against a job that is stored now.
local function holder_of(key, window, states)
  local id = redis.call('GET', key_of('unique', key))
  if not id then return nil end
  local job = redis.call('HMGET', job_key(id), 'state', 'created_at')
  if not job[1] or (window > 0 and now - job[2] >= window) then return nil, id end
  for _, state in ipairs(states) do
    if state == job[1] then return id end
  end
  return nil, id
end
