-- ARGV: now, worker, limit, lease in microseconds, token, most jobs that each sweep moves, most crashes, most finished
-- jobs, error of an ended lease, key that forbids this claim or '', then the queues. Returns the time, the claimed jobs,
-- each as id, number in the token and hash as it was before, the ids whose hash is gone, and for whoever now waits: in
-- how many microseconds there may be more by itself, or '', and in which queue.
--
-- Tenants take turns by stride scheduling (Waldspurger and Weihl 1995): the one with the smallest pass is next, and a
-- start moves its pass by 1 / weight. Of one tenant the smallest rank of all lanes is next. A lane that a limit holds
-- back is left for this call. When those whose turn is next leave a claim room, it goes on to others.
local LANES_LOOKED = 1000  -- of each tenant in each queue; when there are more, others each time
local TENANTS_BEYOND, LANES_BEYOND = 1000, 10  -- likewise, of those whose turn is not next
local REVOCABLE_SECONDS = 60  -- how long a claim that may be forbidden is remembered, for `abandon`
local worker, limit, lease, token, sweep = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local max_crashes, max_finished, lease_ended, first_queue = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9], 11
local lost = {}

if ARGV[10] ~= '' and redis.call('EXISTS', ARGV[10]) == 1 then return { whole(now), {}, lost, '', '' } end

-- Year, month and day by days since 1970 (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
local function moment(micros)
  local days = math.floor(micros / 86400000000)
  local seconds = micros / 1000000 - days * 86400
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return string.format('%04d-%02d-%02d %02d:%02d:%02d+00:00', yoe + era * 400 + (month <= 2 and 1 or 0), month,
    doy - math.floor((153 * mp + 2) / 5) + 1, math.floor(seconds / 3600), math.floor(seconds / 60) % 60, seconds % 60)
end

local function sweep_ended_leases()
  local processing = prefix .. ':processing'
  local ended = redis.call('ZRANGEBYSCORE', processing, '-inf', now, 'LIMIT', 0, sweep)
  for _, member in ipairs(ended) do
    local id, queue, limit_key = string.match(member, '^([^ ]+) ([^ ]+) ([^ ]*)$')
    local job = redis.call('HMGET', job_key(id), 'available_at', 'crashes', 'worker_id', 'started_at', 'lease_expires_at')
    if not job[1] then
      let_go(id, queue, limit_key)
      remove(prefix .. ':running', id)
      lost[#lost + 1] = id
    else
      local crashes = (tonumber(job[2]) or 0) + 1
      redis.call('HSET', job_key(id), 'crashes', crashes, 'last_error', string.format(
        '%s Held by %s, started at %s, lease until %s.', lease_ended, job[3], moment(job[4]), moment(job[5])))
      give_back(id, in_place(job[1]), crashes >= max_crashes and 'dead' or nil)
    end
  end
  if #ended > 0 then trim(max_finished, #ended) end
end

local function sweep_delayed(queue)
  local delayed = key_of('delayed', queue)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, sweep)) do
    local available_at = redis.call('HGET', job_key(id), 'available_at')
    remove(delayed, id)
    if available_at then
      local of, priority, limit_key, tenant = place_of(id)
      offer(id, of, priority, limit_key, tenant, tonumber(available_at))
    else
      remove(prefix .. ':ready', id)
      lost[#lost + 1] = id
    end
  end
end

although_full()
local queues, settings = {}, {}
for place = first_queue, #ARGV do queues[#queues + 1] = ARGV[place] end
sweep_ended_leases()
for _, queue in ipairs(queues) do sweep_delayed(queue) end
flush()

-- What waits: by tenant its pass and its lanes.
local weights, flows, turns, width, met, beyond = {}, {}, {}, 0, {}, {}
local paused = redis.call('SMISMEMBER', prefix .. ':paused', unpack(queues))
local configured = redis.call('HMGET', prefix .. ':configured', unpack(queues))

local function meet(queue, tenants, lanes_looked)
  for at = 1, #tenants, 2 do
    local tenant, pass = tenants[at], tonumber(tenants[at + 1])
    if not met[queue][tenant] then
      met[queue][tenant] = true
      local flow = flows[tenant]
      if not flow then
        flow = { tenant = tenant, pass = pass, lanes = {}, met = {}, heap = {}, queues = {}, started = 0 }
        flows[tenant] = flow
      end
      if not flow.waits then
        flow.waits = true
        turns[#turns + 1] = flow
      end
      flow.pass = math.max(flow.pass, pass)
      flow.queues[#flow.queues + 1] = queue
      local sublanes = redis.call('SRANDMEMBER', key_of('lanes', queue .. ' ' .. tenant), lanes_looked)
      sublanes[#sublanes + 1] = PLAIN
      for _, sublane in ipairs(sublanes) do
        local lane = { queue = queue, sublane = sublane, key = lane_key(queue, sublane, tenant),
          limit = string.match(sublane, ' (.*)$'), heads = {}, at = 1, read = 0 }
        flow.lanes[#flow.lanes + 1], flow.met[#flow.met + 1] = lane, lane
        width = width + 1
      end
    end
  end
end

for place = #queues, 1, -1 do
  local queue = queues[place]
  met[queue] = {}
  if configured[place] then
    settings[queue] = cjson.decode(configured[place])
    for tenant, weight in pairs(settings[queue].weights or {}) do weights[tenant] = weight end
  end
  if paused[place] == 0 then
    local most = math.max(limit, 2)
    local tenants = redis.call('ZRANGE', key_of('tenants', queue), 0, most - 1, 'WITHSCORES')
    meet(queue, tenants, LANES_LOOKED)
    if #tenants == 2 * most then beyond[#beyond + 1] = queue end
  end
end
local page = width < 3 and limit or math.max(1, math.min(limit, 16, math.floor(1000 / width)))

-- Whether a lane has a job at hand: its id at `at`, its rank behind it.
local function has_head(lane)
  if lane.at > #lane.heads then
    lane.heads = redis.call('ZRANGE', lane.key, lane.read, lane.read + page - 1, 'WITHSCORES')
    lane.read, lane.at = lane.read + page, 1
    for at = 2, #lane.heads, 2 do lane.heads[at] = tonumber(lane.heads[at]) end
  end
  return #lane.heads > 0
end

-- Heaps: of flows, the next one first, and of each flow's lanes, that of the smallest rank.
local function sooner(a, b) return a.pass < b.pass or (a.pass == b.pass and a.tenant < b.tenant) end
local function older(a, b)
  local rank, other = a.heads[a.at + 1], b.heads[b.at + 1]
  return rank < other or (rank == other and a.heads[a.at] < b.heads[b.at])
end
local function sink(heap, before)
  local at, top = 1, heap[1]
  while heap[2 * at] do
    local child = 2 * at
    if heap[child + 1] and before(heap[child + 1], heap[child]) then child = child + 1 end
    if not before(heap[child], top) then break end
    heap[at] = heap[child]
    at = child
  end
  heap[at] = top
end
local function drop(heap, before)
  heap[1] = heap[#heap]
  heap[#heap] = nil
  if #heap > 1 then sink(heap, before) end
end

-- Limits: how many run, and how far the even starts are ahead of now (GCRA, ITU-T I.371).
local running, ahead = {}, {}

local function has_room(key, concurrency, rate, period)
  if concurrency then
    running[key] = running[key] or tonumber(redis.call('HGET', prefix .. ':held', key) or 0)
    if running[key] >= concurrency then return false, true end
  end
  if rate then
    ahead[key] = ahead[key] or math.max(0, tonumber(redis.call('GET', key_of('rate', key)) or 0) - now)
    if ahead[key] + math.floor(period / rate + 0.5) > period then return false end
  end
  return true
end

local function opens(lane, id)
  local limits = {}
  if lane.limit ~= '' then
    local job = redis.call('HMGET', job_key(id), 'limit_concurrency', 'limit_rate', 'limit_period')
    limits[1] = { lane.limit, tonumber(job[1]), tonumber(job[2]), tonumber(job[3]) }
  end
  local own = settings[lane.queue]
  if own then limits[#limits + 1] = { 'queue ' .. lane.queue, own.concurrency, own.rate, own.period } end
  for _, one in ipairs(limits) do
    local open, until_one_ends = has_room(unpack(one, 1, 4))
    if not open then
      if until_one_ends then redis.call('SADD', key_of('blocked', one[1]), lane.queue) end
      return false
    end
  end
  for _, one in ipairs(limits) do
    local key, concurrency, rate, period = unpack(one, 1, 4)
    if concurrency then running[key] = running[key] + 1 end
    if rate then
      ahead[key] = ahead[key] + math.floor(period / rate + 0.5)
      redis.call('SET', key_of('rate', key), whole(now + ahead[key]), 'PX', math.ceil(ahead[key] / 1000))
    end
  end
  return true
end

local waiting = 0
local claimed, expires, claims = {}, whole(now + lease), 0

local function start_in_turn()
  waiting = waiting + #turns
  table.sort(turns, sooner)
  while #turns > 0 and claims < limit do
    local flow = turns[1]
    if flow.is_read then  -- its first lane, to the end of a page
      flow.is_read = false
      if has_head(flow.heap[1]) then sink(flow.heap, older) else drop(flow.heap, older) end
    end
    for _, lane in ipairs(flow.met) do
      if has_head(lane) then flow.heap[#flow.heap + 1] = lane end
    end
    if #flow.met > 0 then
      table.sort(flow.heap, older)
      flow.met = {}
    end
    local lane = flow.heap[1]
    local id = lane and lane.heads[lane.at]
    if not lane then
      flow.waits = false
      drop(turns, sooner)
    elseif not opens(lane, id) then
      drop(flow.heap, older)
    else
      lane.at = lane.at + 2
      if lane.at > #lane.heads then flow.is_read = true else sink(flow.heap, older) end
      claims = claims + 1
      flow.started = flow.started + 1
      flow.pass = flow.pass + 1 / (weights[flow.tenant] or 1)
      sink(turns, sooner)
      remove(lane.key, id)
      remove(prefix .. ':ready', id)
      local job = redis.call('HGETALL', job_key(id))
      local created, attempts
      for at = 1, #job, 2 do
        if job[at] == 'created_at' then created = job[at + 1] elseif job[at] == 'attempts' then attempts = job[at + 1] end
      end
      if not created then
        lost[#lost + 1] = id
      else
        add(prefix .. ':running', created, id)
        add(prefix .. ':processing', expires, id .. ' ' .. lane.queue .. ' ' .. lane.limit)
        count('queue ' .. lane.queue, 1)
        if lane.limit ~= '' then count(lane.limit, 1) end
        redis.call('HSET', job_key(id), 'state', 'running', 'attempts', (attempts or 0) + 1, 'token',
          token .. '-' .. claims, 'worker_id', worker, 'started_at', now_text, 'lease_expires_at', expires)
        claimed[#claimed + 1] = { id, tostring(claims), job }
      end
    end
  end
end

start_in_turn()
if claims < limit and #beyond > 0 then
  for _, queue in ipairs(beyond) do
    meet(queue, redis.call('ZRANDMEMBER', key_of('tenants', queue), TENANTS_BEYOND, 'WITHSCORES'), LANES_BEYOND)
  end
  start_in_turn()
end
if ARGV[10] ~= '' and #claimed > 0 then
  local ids = {}
  for place, one in ipairs(claimed) do ids[place] = one[1] end
  redis.call('RPUSH', key_of('claim', token), unpack(ids))
  redis.call('EXPIRE', key_of('claim', token), REVOCABLE_SECONDS)
end
flush()

-- Tenants that no longer wait leave; those that started while others waited are behind those.
for tenant, flow in pairs(flows) do
  local left = {}
  for _, lane in ipairs(flow.lanes) do
    if lane.read == 0 or lane.at <= #lane.heads or redis.call('EXISTS', lane.key) == 1 then
      left[lane.queue] = true
    elseif lane.sublane ~= PLAIN then
      redis.call('SREM', key_of('lanes', lane.queue .. ' ' .. tenant), lane.sublane)
    end
  end
  for _, queue in ipairs(flow.queues) do
    local tenants, key = key_of('tenants', queue), key_of('turns', queue)
    if left[queue] or redis.call('EXISTS', key_of('lanes', queue .. ' ' .. tenant)) == 1 then
      if waiting > 1 and flow.started > 0 then redis.call('ZADD', tenants, flow.pass, tenant) end
      if claims >= limit then wake(queue) end
    else
      redis.call('ZREM', tenants, tenant)
      if waiting > 1 then redis.call('ZADD', key, flow.pass, tenant) end
    end
  end
end
if waiting > 1 then
  for _, queue in ipairs(queues) do
    local first = redis.call('ZRANGE', key_of('tenants', queue), 0, 0, 'WITHSCORES')
    redis.call('ZREMRANGEBYSCORE', key_of('turns', queue), '-inf', first[2] or '+inf')
  end
end

-- What comes by itself: a job becomes due, or a lease ends.
local wait, where = math.huge, queues[1]
local function comes(key, queue)
  local first = tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
  if first and first - now < wait then wait, where = first - now, queue end
end
if claims < limit then
  comes(prefix .. ':processing', queues[1])
  for _, queue in ipairs(queues) do comes(key_of('delayed', queue), queue) end
end
return { whole(now), claimed, lost, wait < math.huge and whole(wait) or '', where }
