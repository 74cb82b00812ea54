"""How `bench.job_measures` uses each queue library.

This runs under the interpreters of the library and of the peers, so it imports a queue only when it is asked for it.
Every library is used as its documentation says for throughput: uvloop, no results kept where that can be chosen.
"""

# The peers are not installed where this is checked.
# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"
from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

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

    async def left(self) -> int:
        """How many jobs are stored and not completed, where that can be asked."""
        return 0


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

        worker = Worker(self.queue, [nothing], concurrency=self.width, prefetch=self.width)
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

    async def left(self) -> int:
        counts = (await self.queue.stats()).counts
        return int(sum(count for state, count in counts.items() if state != "succeeded"))


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
        from pgqueuer.queries import Queries

        self.queries: Any = Queries(await self.connected())
        if not await self.queries.has_table("pgqueuer"):
            await self.queries.install()

    async def connected(self) -> Any:
        import asyncpg
        from pgqueuer.db import AsyncpgDriver

        return AsyncpgDriver(await asyncpg.connect(self.url))

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

    async def left(self) -> int:
        rows = await self.queries.driver.fetch("SELECT count(*) AS jobs FROM pgqueuer")
        return int(rows[0]["jobs"])


class PgQueuerPool(PgQueuer):
    async def connected(self) -> Any:
        import asyncpg
        from pgqueuer.db import AsyncpgPoolDriver

        return AsyncpgPoolDriver(await asyncpg.create_pool(self.url, min_size=4, max_size=20))


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
    "pgqueuer pool": PgQueuerPool,
    "procrastinate": Procrastinate,
}
