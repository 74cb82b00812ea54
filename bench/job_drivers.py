"""One process of `bench.jobs_peers`: drives one queue library and prints what it measured as a line of JSON.

Runs under the interpreters of the library and of the peers, so it imports a queue only when it is asked for it.
Every library is used as its documentation says for throughput: uvloop, no results kept where that can be chosen.
"""

# The peers are not installed where this is checked.
# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"
from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import uvloop

Ran = Callable[[float], None]


class Driver:
    """What is asked of each library; the value of a job is a number.

    Attributes:
        package: Whose version is shown.
        width: How many jobs `work` runs at the same time; 0 for a process that only stores jobs.
        is_sync: `enqueue` blocks, so only one producer makes sense in a process.
        has_batches: `enqueue_many` stores many jobs in one call.
        flushes: `work` ends when every completion is stored, which then counts; else the last start ends the time.
    """

    package = ""
    is_sync = False
    has_batches = True
    flushes = False

    def __init__(self, url: str, ran: Ran, width: int) -> None:
        self.url = url
        self.ran = ran
        self.width = width

    async def open(self) -> None:
        """Connect; make what must be there."""

    async def enqueue(self, value: float) -> None:
        """Store one job and wait for the answer."""

    async def enqueue_many(self, values: Sequence[float]) -> None:
        """Store many jobs and wait for the answer."""

    async def work(self, done: asyncio.Event) -> None:
        """Run jobs until `done`."""


class OurRedis(Driver):
    package = "svc-infra"
    flushes = True

    async def open(self) -> None:
        from svc_infra.jobs import RedisJobQueue

        self.queue: Any = RedisJobQueue(self.url)

    async def enqueue(self, value: float) -> None:
        await self.queue.enqueue("bench.nothing", {"value": value})

    async def enqueue_many(self, values: Sequence[float]) -> None:
        from svc_infra.jobs import JobRequest

        await self.queue.enqueue_many([JobRequest(name="bench.nothing", payload={"value": value}) for value in values])

    async def work(self, done: asyncio.Event) -> None:
        from svc_infra.jobs import Worker, task

        @task(name="bench.nothing")
        async def nothing(value: float) -> None:
            self.ran(value)

        worker = Worker(self.queue, [nothing], concurrency=self.width)
        running = asyncio.create_task(worker.run())
        await done.wait()
        worker.stop()
        await running  # until the last completion is stored


class OurSql(OurRedis):
    async def open(self) -> None:
        from svc_infra.db import AsyncDatabase
        from svc_infra.db.sql.migrate import upgrade
        from svc_infra.jobs import SqlJobQueue

        database = AsyncDatabase(self.url)
        await upgrade(database)
        self.queue = SqlJobQueue(database)


class TaskiqList(Driver):
    package = "taskiq-redis"
    has_batches = False
    kind = "ListQueueBroker"

    async def open(self) -> None:
        import taskiq_redis

        self.broker: Any = getattr(taskiq_redis, self.kind)(self.url, **self.options())

        @self.broker.task(task_name="nothing")
        async def nothing(value: float) -> None:
            self.ran(value)

        self.nothing = nothing
        await self.broker.startup()

    def options(self) -> dict[str, Any]:
        return {}

    async def enqueue(self, value: float) -> None:
        await self.nothing.kiq(value)

    async def work(self, done: asyncio.Event) -> None:
        from taskiq.api import run_receiver_task

        receiving = asyncio.create_task(
            run_receiver_task(self.broker, max_async_tasks=self.width, max_prefetch=self.width, validate_params=False)
        )
        await done.wait()
        receiving.cancel()


class TaskiqStream(TaskiqList):
    kind = "RedisStreamBroker"

    def options(self) -> dict[str, Any]:
        return {"consumer_id": "0"}


class Streaq(Driver):
    package = "streaq"

    async def open(self) -> None:
        from streaq import Worker

        self.worker: Any = Worker(redis_url=self.url, handle_signals=False, concurrency=self.width or 16)

        @self.worker.task(ttl=0)
        async def nothing(value: float) -> None:
            self.ran(value)

        self.nothing = nothing
        if not self.width:  # running enters it too
            await self.worker.__aenter__()

    async def enqueue(self, value: float) -> None:
        await self.nothing.enqueue(value)

    async def enqueue_many(self, values: Sequence[float]) -> None:
        await self.worker.enqueue_many([self.nothing.enqueue(value) for value in values])

    async def work(self, done: asyncio.Event) -> None:
        running = asyncio.create_task(self.worker.run_async())
        await done.wait()
        running.cancel()


class Saq(Driver):
    package = "saq"
    has_batches = False

    async def open(self) -> None:
        from saq import Queue

        self.queue: Any = Queue.from_url(self.url, max_concurrent_ops=100)
        await self.queue.connect()

    async def enqueue(self, value: float) -> None:
        await self.queue.enqueue("nothing", value=value, ttl=-1)

    async def work(self, done: asyncio.Event) -> None:
        from saq import Worker

        async def nothing(context: Any, *, value: float) -> None:
            self.ran(value)

        running = asyncio.create_task(
            Worker(self.queue, functions=[("nothing", nothing)], concurrency=self.width).start()
        )
        await done.wait()
        running.cancel()


class Arq(Driver):
    package = "arq"
    has_batches = False

    async def open(self) -> None:
        from arq import create_pool
        from arq.connections import RedisSettings

        self.pool: Any = await create_pool(RedisSettings.from_dsn(self.url))

    async def enqueue(self, value: float) -> None:
        await self.pool.enqueue_job("nothing", value)

    async def work(self, done: asyncio.Event) -> None:
        from arq import func
        from arq.worker import Worker

        async def nothing(context: Any, value: float) -> None:
            self.ran(value)

        worker = Worker(
            [func(nothing, name="nothing", keep_result=0)],
            redis_pool=self.pool,
            max_jobs=self.width,
            poll_delay=0.005,
            handle_signals=False,
        )
        running = asyncio.create_task(worker.main())
        await done.wait()
        running.cancel()


class Dramatiq(Driver):
    package = "dramatiq"
    is_sync = True
    has_batches = False

    async def open(self) -> None:
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker
        from dramatiq.middleware import AsyncIO

        self.broker: Any = RedisBroker(url=self.url)
        self.broker.add_middleware(AsyncIO())
        dramatiq.set_broker(self.broker)

        @dramatiq.actor(actor_name="nothing")
        async def nothing(value: float) -> None:
            self.ran(value)

        self.nothing = nothing

    async def enqueue(self, value: float) -> None:
        self.nothing.send(value)

    async def work(self, done: asyncio.Event) -> None:
        import dramatiq

        worker = dramatiq.Worker(self.broker, worker_threads=self.width, worker_timeout=100)
        worker.start()
        await done.wait()


class Rq(Driver):
    package = "rq"
    is_sync = True

    async def open(self) -> None:
        from redis import Redis
        from rq import Queue

        self.queue: Any = Queue(connection=Redis.from_url(self.url))

    async def enqueue(self, value: float) -> None:
        self.queue.enqueue("time.sleep", value)

    async def enqueue_many(self, values: Sequence[float]) -> None:
        self.queue.enqueue_many([self.queue.prepare_data("time.sleep", args=(value,)) for value in values])


class PgQueuer(Driver):
    package = "pgqueuer"
    flushes = True

    async def open(self) -> None:
        import asyncpg
        from pgqueuer.db import AsyncpgDriver
        from pgqueuer.queries import Queries

        self.driver: Any = AsyncpgDriver(await asyncpg.connect(self.url))
        self.queries: Any = Queries(self.driver)
        if not await self.queries.has_table("pgqueuer"):
            await self.queries.install()

    async def enqueue(self, value: float) -> None:
        await self.queries.enqueue("nothing", b"%r" % value)

    async def enqueue_many(self, values: Sequence[float]) -> None:
        await self.queries.enqueue(["nothing"] * len(values), [b"%r" % value for value in values], [0] * len(values))

    async def work(self, done: asyncio.Event) -> None:
        from pgqueuer import QueueManager

        manager = QueueManager(self.queries)

        @manager.entrypoint("nothing")
        async def nothing(job: Any) -> None:
            self.ran(float(job.payload))

        running = asyncio.create_task(manager.run(batch_size=self.width))
        await done.wait()
        manager.shutdown.set()
        await running  # it flushes its completions when it stops


class Procrastinate(Driver):
    package = "procrastinate"

    async def open(self) -> None:
        from procrastinate import App, PsycopgConnector

        self.app: Any = App(connector=PsycopgConnector(conninfo=self.url, min_size=4, max_size=20))
        await self.app.open_async()
        if await self.app.connector.execute_query_one_async("SELECT to_regclass('procrastinate_jobs') AS there") == {
            "there": None
        }:
            await self.app.schema_manager.apply_schema_async()

        @self.app.task(name="nothing")
        async def nothing(value: float) -> None:
            self.ran(value)

        self.nothing = nothing

    async def enqueue(self, value: float) -> None:
        await self.nothing.defer_async(value=value)

    async def enqueue_many(self, values: Sequence[float]) -> None:
        await self.nothing.batch_defer_async(*({"value": value} for value in values))

    async def work(self, done: asyncio.Event) -> None:
        running = asyncio.create_task(
            self.app.run_worker_async(concurrency=self.width, install_signal_handlers=False, delete_jobs="always")
        )
        await done.wait()
        running.cancel()


DRIVERS: dict[str, type[Driver]] = {
    "svc-infra valkey": OurRedis,
    "taskiq list": TaskiqList,
    "taskiq stream": TaskiqStream,
    "streaq": Streaq,
    "saq": Saq,
    "arq": Arq,
    "dramatiq": Dramatiq,
    "rq": Rq,
    "svc-infra postgres": OurSql,
    "pgqueuer": PgQueuer,
    "procrastinate": Procrastinate,
}


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
