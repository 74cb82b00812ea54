"""One process of `bench.jobs_peers`: uses one queue library, and prints what it measured as a line of JSON."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import time
from importlib.metadata import version
from typing import Any

import uvloop

from bench.job_drivers import DRIVERS, Driver


class Watch:
    """Counts the jobs that ran, and how long each had waited when its value is the time that it was stored at."""

    def __init__(self, jobs: int) -> None:
        self.left = jobs
        self.first = 0.0
        self.waited: list[float] = []
        self.done = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def ran(self, value: float) -> None:
        now = time.perf_counter()
        if not self.waited:
            self.first = now
        self.waited.append(now - value)
        self.left -= 1
        if self.left == 0:
            self.loop.call_soon_threadsafe(self.done.set)


async def enqueue(driver: Driver, given: argparse.Namespace) -> dict[str, Any]:
    """Store jobs one by one, from `width` producers at once."""
    numbers = iter(range(given.jobs))

    async def produce() -> None:
        for number in numbers:
            await driver.enqueue(float(number))

    await driver.enqueue(-1.0)  # connects
    started = time.perf_counter()
    await asyncio.gather(*(produce() for _ in range(given.width)))
    return {"per_second": given.jobs / (time.perf_counter() - started)}


async def batches(driver: Driver, given: argparse.Namespace) -> dict[str, Any]:
    """Store jobs `width` in a call."""
    await driver.enqueue_many([-1.0])
    started = time.perf_counter()
    for first in range(0, given.jobs, given.width):
        await driver.enqueue_many([float(number) for number in range(first, min(first + given.width, given.jobs))])
    return {"per_second": given.jobs / (time.perf_counter() - started)}


async def fill(driver: Driver, given: argparse.Namespace) -> dict[str, Any]:
    """Store jobs, however."""
    if driver.has_batches:
        return await batches(driver, argparse.Namespace(jobs=given.jobs - 1, width=500))
    return await enqueue(driver, argparse.Namespace(jobs=given.jobs - 1, width=1 if driver.is_sync else 20))


async def work(driver: Driver, given: argparse.Namespace, watch: Watch) -> dict[str, Any]:
    """Run the jobs that are stored, from the first start on."""
    working = asyncio.create_task(driver.work(watch.done))
    async with asyncio.timeout(120):
        await asyncio.wait({working, asyncio.ensure_future(watch.done.wait())}, return_when=asyncio.FIRST_COMPLETED)
        ended = time.perf_counter()
        if driver.flushes:
            await working
            ended = time.perf_counter()
    if left := await driver.left():
        raise RuntimeError(f"{left} of the jobs that ran are not completed in the database.")
    return {"per_second": given.jobs / (ended - watch.first)}


async def listen(driver: Driver, given: argparse.Namespace, watch: Watch) -> dict[str, Any]:
    """Run jobs as they come; tells when it is ready by a line."""
    working = asyncio.create_task(driver.work(watch.done))
    await asyncio.sleep(1.0)
    print("ready", flush=True)
    async with asyncio.timeout(120):
        await asyncio.wait({working, asyncio.ensure_future(watch.done.wait())}, return_when=asyncio.FIRST_COMPLETED)
    waited = sorted(watch.waited[len(watch.waited) // 10 :])  # without the first tenth, which warms up
    return {"p50": waited[len(waited) // 2] * 1e3, "p99": waited[int(len(waited) * 0.99)] * 1e3}


async def trickle(driver: Driver, given: argparse.Namespace) -> dict[str, Any]:
    """Store `width` jobs a second."""
    due = time.perf_counter()
    for _ in range(given.jobs):
        due += 1 / given.width
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await driver.enqueue(time.perf_counter())
    return {}


async def run(given: argparse.Namespace) -> dict[str, Any]:
    """One measurement."""
    watch = Watch(given.jobs)
    works = given.measure in ("work", "listen")
    driver = DRIVERS[given.driver](given.url, watch.ran, given.width if works else 0)
    await driver.open()
    gc.collect()
    gc.freeze()  # for every library, as a worker's command does: what it has imported is not gone through again
    if works:
        found = await (work if given.measure == "work" else listen)(driver, given, watch)
    else:
        found = await {"enqueue": enqueue, "batches": batches, "fill": fill, "trickle": trickle}[given.measure](
            driver, given
        )
    return found | {"version": version(driver.package)}


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("driver", choices=DRIVERS)
    options.add_argument("measure", choices=("enqueue", "batches", "fill", "work", "listen", "trickle"))
    options.add_argument("--url", required=True)
    options.add_argument("--jobs", type=int, required=True)
    options.add_argument("--width", type=int, default=1)
    given = options.parse_args()
    uvloop.run(_measured(given))


async def _measured(given: argparse.Namespace) -> None:
    print(json.dumps(await run(given)), flush=True)
    os._exit(0)  # libraries differ in how long they take to stop, which is not measured here


if __name__ == "__main__":
    main()
