"""Handlers that are given a unit of work: their effects and the end of their job."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import upgrade
from svc_infra.db.unit_of_work import UnitOfWork
from svc_infra.errors import UnavailableError
from svc_infra.jobs import InMemoryJobQueue, Job, JobContext, JobQueue, JobState, RedisJobQueue, SqlJobQueue, task
from svc_infra.testing import FakeClock
from svc_infra.wiring import Wiring
from tests.jobs.working import until_state, working


@task
async def write(number: int, session: AsyncSession) -> int:
    """Have an effect."""
    await session.execute(text("INSERT INTO effects (number) VALUES (:number)"), {"number": number})
    if number < 0:
        raise ValueError("after the effect")
    return number


async def database(url: str) -> AsyncDatabase:
    db = AsyncDatabase(url)
    await upgrade(db)
    async with db.session() as session:
        await session.execute(text("CREATE TABLE effects (number integer)"))
    return db


@pytest.fixture(params=["sqlite", "postgres"])
async def db(request: pytest.FixtureRequest) -> AsyncIterator[AsyncDatabase]:
    db = await database(request.getfixturevalue(f"migrated_{request.param}_url"))
    yield db
    await db.dispose()


def wired(db: AsyncDatabase, queue: JobQueue) -> Wiring:
    wiring = Wiring(Settings())
    wiring.provide(AsyncDatabase, db)
    wiring.provide(JobQueue, queue)
    return wiring


async def effects(db: AsyncDatabase) -> list[int]:
    async with db.session(read_only=True) as session:
        return list((await session.execute(text("SELECT number FROM effects ORDER BY number"))).scalars())


async def test_effects_and_completion_are_stored_together(db: AsyncDatabase) -> None:
    queue = SqlJobQueue(db)
    job_id = await write.options(on=queue).enqueue(number=7)
    async with working(queue, write, wiring=wired(db, queue)):
        job = await until_state(queue, job_id)
    assert (job.state, job.result) == (JobState.SUCCEEDED, 7)
    assert await effects(db) == [7]


async def test_a_handler_that_fails_has_no_effect(db: AsyncDatabase) -> None:
    queue = SqlJobQueue(db)
    job_id = await write.options(on=queue, max_attempts=1).enqueue(number=-1)
    async with working(queue, write, wiring=wired(db, queue)):
        job = await until_state(queue, job_id)
    assert job.state is JobState.DEAD
    assert str(job.last_error).startswith("ValueError: after the effect")
    assert await effects(db) == []


async def test_an_attempt_that_lost_its_job_has_no_effect_either(db: AsyncDatabase) -> None:
    clock = FakeClock()
    queue = SqlJobQueue(db, clock=clock)
    waits, go_on = asyncio.Event(), asyncio.Event()

    @task
    async def slow(context: JobContext, session: AsyncSession) -> None:
        if context.attempt == 1:
            waits.set()
            await go_on.wait()
        await session.execute(text("INSERT INTO effects (number) VALUES (:number)"), {"number": context.attempt})

    job_id = await slow.options(on=queue).enqueue()
    async with working(queue, slow, wiring=wired(db, queue)):
        await waits.wait()
        clock.advance(60)
        async with working(queue, slow, wiring=wired(db, queue)):
            assert (await until_state(queue, job_id)).attempts == 2
        go_on.set()
    assert await effects(db) == [2]


async def test_a_completion_that_cannot_be_stored_takes_the_effects_with_it(db: AsyncDatabase) -> None:
    class FailsOnce(SqlJobQueue):
        failed = False

        async def ack(self, job: Job, *, result: object = None, session: AsyncSession | None = None) -> None:
            await super().ack(job, result=result, session=session)
            if not self.failed:
                self.failed = True
                raise UnavailableError("The connection broke before the commit.")

    queue = FailsOnce(db, backoff_seconds=0.001)
    job_id = await write.options(on=queue).enqueue(number=7)
    async with working(queue, write, wiring=wired(db, queue)):
        job = await until_state(queue, job_id)
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 2)
    assert await effects(db) == [7]


async def test_a_commit_whose_answer_is_lost_has_ended_the_job_and_had_its_effects_once(
    db: AsyncDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers: list[AsyncSession] = []
    commit = UnitOfWork.commit

    async def commit_and_lose(session: UnitOfWork) -> None:
        await commit(session)
        if session in handlers:
            raise UnavailableError("The connection broke with the answer.")

    monkeypatch.setattr(UnitOfWork, "commit", commit_and_lose)

    @task
    async def lose(session: AsyncSession) -> None:
        handlers.append(session)
        await write.function(7, session)

    queue = SqlJobQueue(db, backoff_seconds=0.001)
    job_id = await lose.options(on=queue).enqueue()
    async with working(queue, lose, wiring=wired(db, queue)):
        await until_state(queue, job_id)
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.attempts, len(handlers)) == (JobState.SUCCEEDED, 1, 1)
    assert await effects(db) == [7]


async def test_a_job_enqueued_in_the_handlers_transaction_comes_and_goes_with_it(db: AsyncDatabase) -> None:
    queue = SqlJobQueue(db)

    @task
    async def chain(number: int, session: AsyncSession) -> None:
        await write.options(session=session).enqueue(number=number)
        if number == 1:
            raise ValueError

    good = await chain.options(on=queue, max_attempts=1).enqueue(number=2)
    bad = await chain.options(on=queue, max_attempts=1).enqueue(number=1)
    async with working(queue, chain, wiring=wired(db, queue)):
        await until_state(queue, good)
        await until_state(queue, bad)
    assert [job.payload for job in await queue.list() if job.name == write.name] == [{"number": 2}]


@pytest.mark.parametrize("where", ["memory", "valkey", "another database"])
async def test_a_queue_that_lives_elsewhere_is_told_after_the_commit(
    where: str, sqlite_url: str, request: pytest.FixtureRequest
) -> None:
    db = await database(sqlite_url)
    other = await database(sqlite_url.replace("test.db", "other.db"))
    queue: InMemoryJobQueue | RedisJobQueue | SqlJobQueue = InMemoryJobQueue()
    if where == "valkey":
        queue = RedisJobQueue(request.getfixturevalue("valkey_url"))
    elif where == "another database":
        queue = SqlJobQueue(other)
    good = await write.options(on=queue).enqueue(number=7)
    bad = await write.options(on=queue, max_attempts=1).enqueue(number=-1)
    async with working(queue, write, wiring=wired(db, queue)):
        assert (await until_state(queue, good)).state is JobState.SUCCEEDED
        assert (await until_state(queue, bad)).state is JobState.DEAD
    assert await effects(db) == [7]
    if isinstance(queue, RedisJobQueue):
        await queue.close()
    await db.dispose()
    await other.dispose()
