-- ARGV: now, queue. Wakes a worker that waits for it.
wake(ARGV[2])
