"""An app with jobs: what it shares, what it runs, and in which order it starts and stops."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.errors import ConfigurationError, UnavailableError
from svc_infra.jobs import InMemoryJobQueue, Job, JobQueue, JobState, JobStore, RedisJobQueue, SqlJobQueue, every, task
from svc_infra.jobs.add import add_jobs, contribute_tasks, plan_of, purge_finished
from svc_infra.jobs.http import JobQueueDep, JobStoreDep
from svc_infra.testing import FakeClock
from svc_infra.types import Clock
from svc_infra.wiring import Part, wiring_of
from tests.jobs.working import until, until_state


@task
async def hello(name: str = "you") -> str:
    return f"hello {name}"


@task
async def write(session: AsyncSession) -> None:
    await session.execute(text("INSERT INTO effects VALUES (1)"))


def made(**settings: Any) -> FastAPI:
    app = FastAPI()
    settings.setdefault("jobs", {"driver": "memory", "poll_interval_seconds": 0.01, "drain_seconds": 0.5})
    wiring_of(app, settings=Settings(app={"env": "test"}, **settings))
    return app


@asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[None]:
    async with app.router.lifespan_context(app):
        with wiring_of(app).active():
            yield


def store_of(app: FastAPI) -> JobStore:
    return wiring_of(app).get(JobStore)


@pytest.mark.parametrize("first", ["db", "jobs"])
async def test_an_app_runs_its_jobs_on_its_own_database_in_whatever_order_its_rooms_were_added(
    first: str, sqlite_url: str
) -> None:
    app = made(sql={"url": sqlite_url}, jobs={"driver": "sql", "poll_interval_seconds": 0.01})
    if first == "db":
        add_db(app)
    add_jobs(app, tasks=[hello])
    add_db(app)
    async with started(app):
        assert isinstance(wiring_of(app).get(JobQueue), SqlJobQueue)
        job = await until_state(store_of(app), await hello.enqueue(name="there"))
    assert (job.state, job.result) == (JobState.SUCCEEDED, "hello there")


async def test_a_request_enqueues_and_asks(sqlite_url: str) -> None:
    app = made()
    add_jobs(app, tasks=[hello])

    @app.post("/jobs")
    async def enqueue(queue: JobQueueDep) -> str:
        return await hello.options(on=queue).enqueue()

    @app.get("/jobs/{job_id}")
    async def show(job_id: str, store: JobStoreDep) -> Any:
        job = await until_state(store, job_id)
        return job.result

    async with started(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        job_id = (await client.post("/jobs")).json()
        assert (await client.get(f"/jobs/{job_id}")).json() == "hello you"


@pytest.mark.parametrize("first", ["db", "jobs"])
async def test_with_redis_a_job_stored_in_a_unit_of_work_runs_after_its_commit(
    first: str, sqlite_url: str, valkey_url: str
) -> None:
    app = made(
        sql={"url": sqlite_url}, redis={"url": valkey_url}, jobs={"driver": "auto", "poll_interval_seconds": 0.01}
    )
    if first == "db":
        add_db(app)
    add_jobs(app, tasks=[hello])
    add_db(app)
    async with started(app):
        queue = wiring_of(app).get(JobQueue)
        assert isinstance(queue, RedisJobQueue)
        async with wiring_of(app).get(AsyncDatabase).session() as session:
            job_id = await hello.options(session=session).enqueue()
            assert await queue.get(job_id) is None
        assert (await until_state(queue, job_id)).result == "hello you"


async def test_rooms_contribute_tasks_and_schedules_before_and_after() -> None:
    app = made()
    early, late, ticking = (task(name=name)(hello.function) for name in ("early", "late", "ticking"))
    contribute_tasks(app, [early])
    add_jobs(app, tasks=[hello])
    contribute_tasks(app, [late], schedules=[every(0.02, ticking)])
    async with started(app):
        for one in (early, late, hello):
            assert (await until_state(store_of(app), await one.enqueue())).state is JobState.SUCCEEDED

        async def ticked() -> bool:
            return "ticking" in {job.name for job in await store_of(app).list(state=JobState.SUCCEEDED)}

        await until(ticked)


def test_two_tasks_or_schedules_of_one_name_are_refused() -> None:
    app = made()
    add_jobs(app, tasks=[hello])
    with pytest.raises(ConfigurationError, match="Two tasks"):
        contribute_tasks(app, [task(name=hello.name)(write.function)])
    with pytest.raises(ConfigurationError, match="Two schedules"):
        contribute_tasks(app, [], schedules=[every(60, hello), every(90, hello)])


async def test_a_second_call_adds_its_tasks_and_changes_nothing_else() -> None:
    app, queue = made(), InMemoryJobQueue()
    add_jobs(app, tasks=[hello], queue=queue, worker=False)
    add_jobs(app, tasks=[write], queue=InMemoryJobQueue(), worker=True)
    plan = plan_of(wiring_of(app))
    assert set(plan.tasks) == {hello.name, write.name, purge_finished.name}
    assert (plan.queue, plan.worker) == (queue, False)


async def test_tasks_that_come_too_late_are_refused() -> None:
    app = made()
    add_jobs(app)
    async with started(app):
        with pytest.raises(ConfigurationError, match="after the app started"):
            contribute_tasks(app, [hello])


@pytest.mark.parametrize("worker", [True, False])
async def test_an_app_runs_a_worker_only_when_asked(worker: bool) -> None:
    app = made()
    add_jobs(app, tasks=[hello], worker=worker, scheduler=False)
    async with started(app):
        await hello.enqueue()
        running = {one.get_coro().__qualname__ for one in asyncio.all_tasks()}  # type: ignore[union-attr]
    assert ("Worker.run" in running) is worker
    assert "Scheduler.run" not in running


async def test_two_apps_in_one_process_share_no_job() -> None:
    one, other = made(), made()
    for app in (one, other):
        add_jobs(app, tasks=[hello], scheduler=False)
    async with started(one), started(other):
        await until_state(store_of(other), await hello.enqueue())
        assert await store_of(one).list() == []


async def test_the_worker_stops_before_what_its_handlers_use() -> None:
    events: list[str] = []

    @task
    async def use() -> None:
        events.append("runs")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("ends")

    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        events.append("opens")
        yield
        events.append("closes")

    app = made()
    add_jobs(app, tasks=[use], scheduler=False)
    wiring_of(app).add(Part("webhooks", resource))
    async with started(app):
        job_id = await use.enqueue()
        await until(lambda: "runs" in events)
    assert events == ["opens", "runs", "ends", "closes"]
    assert (await until_state(store_of(app), job_id, JobState.READY)).attempts == 0


async def test_an_app_can_be_started_twice(sqlite_url: str) -> None:
    app = made()
    add_jobs(app, tasks=[hello])
    for _ in range(2):
        async with started(app):
            assert (await until_state(store_of(app), await hello.enqueue())).state is JobState.SUCCEEDED


async def test_a_missing_database_is_named_at_the_start() -> None:
    app = made(jobs={"driver": "sql"})
    add_jobs(app)
    with pytest.raises(ConfigurationError, match="add_db"):
        await started(app).__aenter__()


async def test_readiness_asks_the_queue_and_the_worker(valkey_url: str) -> None:
    app = made(redis={"url": "redis://127.0.0.1:1"}, jobs={"driver": "redis", "drain_seconds": 0.1})
    add_jobs(app, tasks=[hello])
    parts = wiring_of(app).parts
    async with started(app):
        assert parts["jobs"].check is not None
        with pytest.raises(UnavailableError, match="Redis"):
            await parts["jobs"].check()
    healthy = made()
    add_jobs(healthy, tasks=[hello])
    parts = wiring_of(healthy).parts
    assert parts["jobs"].check is not None
    assert parts["worker"].check is not None
    async with started(healthy):
        await parts["jobs"].check()
        await parts["worker"].check()
        (scheduler,) = [one for one in asyncio.all_tasks() if "Scheduler.run" in repr(one)]
        scheduler.cancel()
        await asyncio.wait({scheduler})
        with pytest.raises(UnavailableError, match="stopped"):
            await parts["worker"].check()


async def test_finished_jobs_are_purged_when_their_retention_is_over() -> None:
    clock = FakeClock()
    queue = InMemoryJobQueue(clock=clock)
    app = made(jobs={"driver": "memory", "retention_seconds": 3600, "poll_interval_seconds": 0.01})
    wiring_of(app).provide(Clock, clock)
    add_jobs(app, tasks=[hello], queue=queue)
    async with started(app):
        job_id = await hello.enqueue()
        await until_state(queue, job_id)
        clock.advance(3599)
        kept = await queue.enqueue(purge_finished.name, {"older_than_seconds": 3600})
        assert (await until_state(queue, kept)).result == 0
        clock.advance(600)

        async def purged() -> bool:
            return await queue.get(job_id) is None

        await until(purged)


async def test_readiness_asks_the_worker_whether_it_gets_what_is_due() -> None:
    class Stuck(InMemoryJobQueue):
        async def reserve(self, **terms: Any) -> list[Job]:
            return []

    clock = FakeClock()
    queue = Stuck(clock=clock)
    app = made(jobs={"driver": "memory", "poll_interval_seconds": 0.01, "stall_seconds": 0.05, "drain_seconds": 0.5})
    wiring_of(app).provide(Clock, clock)
    add_jobs(app, tasks=[hello], queue=queue, scheduler=False)
    check = wiring_of(app).parts["worker"].check
    assert check is not None
    async with started(app):
        await hello.enqueue()
        await check()
        clock.advance(60)

        async def refused() -> bool:
            try:
                await check()
            except UnavailableError as error:
                return "has got none" in error.detail
            return False

        await until(refused)


async def test_the_worker_of_an_app_serves_the_queues_that_its_tasks_name() -> None:
    mail = task(name="mail", queue="mail")(hello.function)
    app = made()
    add_jobs(app, tasks=[mail, hello], scheduler=False)
    async with started(app):
        for one in (mail, hello):
            assert (await until_state(store_of(app), await one.enqueue())).state is JobState.SUCCEEDED
