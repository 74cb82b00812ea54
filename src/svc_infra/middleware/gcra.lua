-- The generic cell rate algorithm for several keys at once: all are charged, or none.
--
-- KEYS: what is used, at most once each. ARGV, for each key: limit, period, and the interval of this use (the period
-- times the cost over the limit) as whole microseconds and a remainder in parts of which `limit` make a microsecond.
-- A key holds the time at which nothing of its rate is used up any more, "<microseconds>:<parts>"; both are whole, and
-- below 2^53, so that a double holds them exactly. Returns the server's time and what each key held.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local held, kept = {now}, {}
local allowed = true

for place, key in ipairs(KEYS) do
  local at = place * 4 - 3
  local limit, period = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local whole, part = 0, 0
  local state = redis.call('GET', key)
  if state then
    local separator = string.find(state, ':', 1, true)
    whole, part = tonumber(string.sub(state, 1, separator - 1)), tonumber(string.sub(state, separator + 1))
  end
  held[#held + 1] = whole
  held[#held + 1] = part
  if whole < now then
    whole, part = now, 0
  elseif whole >= now + period then -- the clock went back
    whole, part = now + period, 0
  end
  whole, part = whole + tonumber(ARGV[at + 2]), part + tonumber(ARGV[at + 3])
  if part >= limit then
    whole, part = whole + 1, part - limit
  end
  if whole > now + period or (whole == now + period and part > 0) then allowed = false end
  kept[place] = {whole, part}
end

if allowed then
  for place, key in ipairs(KEYS) do
    local whole, part = kept[place][1], kept[place][2]
    local milliseconds = math.floor((whole - now) / 1000) + 1
    redis.call('SET', key, string.format('%.0f:%.0f', whole, part), 'PX', string.format('%.0f', milliseconds))
  end
end
return held
