-- ARGV: now, unique key, window in microseconds, the states that count. Returns the id of the job that holds the key.
return (holder_of(ARGV[2], tonumber(ARGV[3]), { unpack(ARGV, 4) }))
