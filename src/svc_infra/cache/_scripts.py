"""What Redis does in one step: the scripts of the second level."""

from __future__ import annotations

from svc_infra.cache.codec import FORMAT, FRESH_UNTIL_OFFSET_BYTES

_TOKENS = """
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
"""

# keys: tags; arguments: what a new token begins with, life of the tags
TOKENS = f"{_TOKENS} return tokens(1)"

# keys: value, lease, tags; arguments: token, life of the tags, lease, whether to take it from its holder
ACQUIRE = f"""{_TOKENS}
local found = tokens(3)
local granted
if ARGV[4] == '1' then
  granted = redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
else
  granted = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[3])
end
return {{granted and 1 or 0, redis.call('GET', KEYS[1]), found}}
"""

# keys: value, lease; arguments: token, value, its life, channel, message or nothing
STORE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[2])
if ARGV[5] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
return 1
"""

# key: lease; arguments: token, lease
RENEW = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end return redis.call('PEXPIRE', KEYS[1], ARGV[2])"

# key: lease; argument: token
RELEASE = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end return redis.call('DEL', KEYS[1])"

# key: counter; arguments: by, its life if it is new
ADD = """
local value = redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return value
"""

# key: value; arguments: its life, end of its freshness, channel, message
EXPIRE = f"""
local first = redis.call('GETRANGE', KEYS[1], 0, 0)
if first == '' then return 0 end
if string.byte(first) == {FORMAT} then redis.call('SETRANGE', KEYS[1], {FRESH_UNTIL_OFFSET_BYTES}, ARGV[2]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
"""
