-- ARGV: now, limit, most ids looked at in each state, queue or '', then the states. Returns the newest jobs of each.
local limit, most, queue = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local found = {}
for place = 5, #ARGV do
  local taken, looked = 0, 0
  while taken < limit and looked < most do
    local ids = redis.call('ZREVRANGE', prefix .. ':' .. ARGV[place], looked, looked + 99)
    if #ids == 0 then break end
    looked = looked + #ids
    for _, id in ipairs(ids) do
      if taken < limit and (queue == '' or redis.call('HGET', job_key(id), 'queue') == queue) then
        taken = taken + 1
        found[#found + 1] = { id, redis.call('HGETALL', job_key(id)) }
      end
    end
  end
end
return found
