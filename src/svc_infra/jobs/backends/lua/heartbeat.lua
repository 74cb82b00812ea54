-- ARGV: now, lease in microseconds, then id and token of each attempt. Returns the ids that are held.
local lease_end = whole(now + tonumber(ARGV[2]))
local held = {}
for place = 3, #ARGV, 2 do
  local id = ARGV[place]
  if is_held(id, ARGV[place + 1]) then
    redis.call('ZADD', prefix .. ':processing', lease_end, id)
    redis.call('HSET', job_key(id), 'lease_expires_at', lease_end)
    held[#held + 1] = id
  end
end
return held
