-- The tokens of tags, made where there are none.
-- KEYS: [value, lease,] tags · ARGV: what a new token begins with, life of the tags
local function tokens(first)
  local found = {}
  for i = first, #KEYS do
    local token = redis.call('GET', KEYS[i])
    if not token then
      token = ARGV[1] .. i
      redis.call('SET', KEYS[i], token, 'PX', ARGV[2])
    elseif redis.call('PTTL', KEYS[i]) < tonumber(ARGV[2]) then
      redis.call('PEXPIRE', KEYS[i], ARGV[2])
    end
    found[#found + 1] = token
  end
  return found
end
