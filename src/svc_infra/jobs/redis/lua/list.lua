-- ARGV: now, limit, most ids looked at in each state, id of a job that must be newer or '', the number of states, the
-- states, then fields and the values that they must have. Returns the newest jobs of each state, as id and hash.
local limit, most, before, states = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local created = before ~= '' and redis.call('HGET', job_key(before), 'created_at')
if before ~= '' and not created then return {} end
local found = {}
for place = 6, 5 + states do
  local key, taken = prefix .. ':' .. ARGV[place], 0
  local from = created and redis.call('ZCOUNT', key, '(' .. created, '+inf') or 0
  local looked = from
  while taken < limit and looked < from + most do
    local ids = redis.call('ZREVRANGE', key, looked, looked + 99)
    if #ids == 0 then break end
    looked = looked + #ids
    for _, id in ipairs(ids) do
      local newer = created and id >= before and redis.call('HGET', job_key(id), 'created_at') == created
      if taken < limit and not newer and has(id, 6 + states, #ARGV) then
        taken = taken + 1
        found[#found + 1] = { id, redis.call('HGETALL', job_key(id)) }
      end
    end
  end
end
return found
