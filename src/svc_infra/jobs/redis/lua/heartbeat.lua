-- ARGV: now, lease in microseconds, then id and token of each attempt. Returns the ids that are held, and which of
-- them are to end.
although_full()
local lease_end = now + tonumber(ARGV[2])
local ids, cancelled = {}, {}
for place = 3, #ARGV, 2 do
  local id = ARGV[place]
  local job = held(id, ARGV[place + 1], 'cancel_requested')
  if job then
    add(prefix .. ':processing', lease_end, id .. ' ' .. job[4] .. ' ' .. (job[5] or ''))
    redis.call('HSET', job_key(id), 'lease_expires_at', lease_end)
    ids[#ids + 1] = id
    if job[6] == '1' then cancelled[#cancelled + 1] = id end
  end
end
flush()
return { ids, cancelled }
