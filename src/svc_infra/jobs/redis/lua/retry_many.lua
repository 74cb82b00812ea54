-- ARGV: now, limit, most ids looked at, microseconds between two, then fields and the values that they must have.
-- Returns how many dead jobs were put back, those first that have been dead longest.
local limit, most, spacing = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local ids = {}
for looked = 0, most - 1, 1000 do
  local page = redis.call('ZRANGE', prefix .. ':buried', looked, looked + 999)
  for _, id in ipairs(page) do
    if #ids < limit and has(id, 5, #ARGV) then ids[#ids + 1] = id end
  end
  if #page == 0 or #ids == limit then break end
end
for place, id in ipairs(ids) do restart(id, 'dead', now + (place - 1) * spacing) end
flush()
return #ids
