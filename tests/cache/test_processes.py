"""Four real processes and one key."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from multiprocessing import get_context
from typing import Any

from svc_infra.cache import Cache, cached

PROCESSES = 4
MISSES = 10_000

spawn = get_context("spawn")


def ask(url: str, misses: int, delay_seconds: float, start: Any, answers: Any, calls: Any) -> None:
    """Ask for the same many times at once; the body of a process."""

    async def run() -> set[int]:
        async with Cache(url, timeout_seconds=30) as cache:

            @cached(ttl=60, lease_seconds=1.0, cache=cache)
            async def slow(number: int) -> int:
                calls.put(os.getpid())
                await asyncio.sleep(delay_seconds)
                return os.getpid()

            await cache.get("warm")
            answers.put(None)
            await asyncio.to_thread(start.wait, 60)
            return set(await asyncio.gather(*(slow(1) for _ in range(misses))))

    answers.put(asyncio.run(run()))


def test_ten_thousand_misses_in_four_processes_call_the_origin_once(valkey_url: str) -> None:
    start, answers, calls = spawn.Event(), spawn.Queue(), spawn.Queue()
    share = MISSES // PROCESSES
    processes = [
        spawn.Process(target=ask, args=(valkey_url, share, 0.3, start, answers, calls)) for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        assert answers.get(timeout=60) is None
    start.set()
    seen = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert calls.get(timeout=1)
    assert calls.empty(), "once"
    assert len(seen[0]) == 1
    assert seen == [seen[0]] * PROCESSES


def test_a_process_that_is_killed_while_it_computes_delays_the_others_by_its_lease_at_most(valkey_url: str) -> None:
    start, answers, calls = spawn.Event(), spawn.Queue(), spawn.Queue()
    start.set()
    doomed = spawn.Process(target=ask, args=(valkey_url, 1, 60.0, start, answers, calls))
    doomed.start()
    assert calls.get(timeout=60) == doomed.pid
    assert answers.get(timeout=30) is None
    other = spawn.Process(target=ask, args=(valkey_url, 10, 0.0, start, answers, calls))
    other.start()
    assert answers.get(timeout=60) is None
    assert calls.empty(), "the other one waits"
    os.kill(doomed.pid or 0, signal.SIGKILL)
    killed = time.monotonic()
    assert calls.get(timeout=30) == other.pid
    assert time.monotonic() - killed < 10.0, "its lease was 1 second, and its work a minute"
    assert answers.get(timeout=30) == {other.pid}
    for process in (doomed, other):
        process.join(30)
