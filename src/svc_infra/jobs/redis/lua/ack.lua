-- ARGV: now, most finished jobs, and as MessagePack the attempts, each: id, token and, when there is one, the result.
-- Returns for each whether the token was right.
although_full()
local answers, done = {}, 0
for place, attempt in ipairs(cmsgpack.unpack(ARGV[3])) do
  local id = attempt[1]
  local job = held(id, attempt[2])
  answers[place] = job and 1 or 0
  if job then
    done = done + 1
    let_go(id, job[4], job[5] or '')
    if attempt[3] then
      finish(id, job[3], 'running', 'succeeded', 'result', attempt[3])
    else
      finish(id, job[3], 'running', 'succeeded')
    end
  end
end
trim(tonumber(ARGV[2]), done)
return answers
