"""The test kit for jobs."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.config import Settings
from svc_infra.db.add import add_db
from svc_infra.errors import ConfigurationError
from svc_infra.jobs import Cancel, JobContext, JobState, Snooze, cron, every, task
from svc_infra.jobs.add import add_jobs
from svc_infra.testing import FakeClock, JobTester
from svc_infra.wiring import wiring_of

sent: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_sent() -> None:
    sent.clear()


@task(queue="mail")
async def send_mail(to: str, subject: str = "Hello") -> None:
    sent.append(to)


@task
async def sign_up(name: str) -> None:
    await send_mail.enqueue(to=name)


@task(max_attempts=4, backoff_seconds=3600)
async def flaky(context: JobContext) -> int:
    if context.attempt < 4:
        raise ConnectionError("not yet")
    return context.attempt


@task(max_attempts=1)
async def broken() -> None:
    raise ValueError("no such thing")


@task
def in_a_thread(number: int) -> int:
    return 2 * number


async def test_in_manual_mode_jobs_wait_until_they_are_drained_with_what_they_start() -> None:
    async with JobTester(tasks=[sign_up, send_mail]) as jobs:
        await sign_up.enqueue(name="ada")
        assert sent == []
        jobs.assert_not_enqueued(send_mail)
        ran = await jobs.drain()
        assert [(job.name, job.state) for job in ran] == [
            (sign_up.name, JobState.SUCCEEDED),
            (send_mail.name, JobState.SUCCEEDED),
        ]
        assert sent == ["ada"]
        assert await jobs.drain() == []


async def test_in_inline_mode_a_job_has_run_when_enqueue_returns() -> None:
    async with JobTester(tasks=[sign_up, send_mail, in_a_thread], mode="inline") as jobs:
        await sign_up.enqueue(name="ada")
        assert sent == ["ada"]
        await in_a_thread.enqueue(number=4)
        assert jobs.assert_enqueued(in_a_thread).result == 8


async def test_in_inline_mode_a_failure_is_seen_where_the_job_was_stored() -> None:
    async with JobTester(tasks=[broken, flaky], mode="inline"):
        with pytest.raises(AssertionError, match="broken failed: ValueError: no such thing"):
            await broken.enqueue()
        with pytest.raises(AssertionError, match="flaky failed: ConnectionError: not yet"):
            await flaky.enqueue()


async def test_what_was_enqueued_is_asserted_by_its_arguments() -> None:
    async with JobTester(tasks=[send_mail]) as jobs:
        await send_mail.options(priority=3).enqueue(to="ada")
        await send_mail.enqueue(to="bob", subject="Bye")
        assert jobs.assert_enqueued(send_mail, to="ada").priority == 3
        assert jobs.assert_enqueued(send_mail, subject="Bye").payload == {"to": "bob", "subject": "Bye"}
        assert len(jobs.enqueued(send_mail)) == len(jobs.enqueued()) == 2
        with pytest.raises(AssertionError, match=r"2 jobs of test_jobs\.send_mail"):
            jobs.assert_enqueued(send_mail)
        with pytest.raises(AssertionError, match=r"0 jobs .* have \{'to': 'eve'\}; it has .*ada.*bob"):
            jobs.assert_enqueued(send_mail, to="eve")
        with pytest.raises(AssertionError, match="1 jobs"):
            jobs.assert_not_enqueued(send_mail, to="bob")


async def test_hours_of_retries_pass_in_milliseconds() -> None:
    async with JobTester(tasks=[flaky]) as jobs:
        await flaky.enqueue()
        began = time.perf_counter()
        ran = await jobs.advance(days=2)
        assert time.perf_counter() - began < 2
    assert [job.attempts for job in ran] == [1, 2, 3, 4]
    assert (ran[-1].state, ran[-1].result) == (JobState.SUCCEEDED, 4)
    assert jobs.clock.now() == FakeClock().now() + timedelta(days=2)


async def test_schedules_tick_as_time_passes(fake_clock: FakeClock) -> None:
    @task
    async def nightly() -> None:
        sent.append(fake_clock.now().isoformat())

    app = FastAPI()
    wiring_of(app, settings=Settings(app={"env": "test"}))
    add_jobs(app, tasks=[send_mail], schedules=[cron("30 2 * * *", nightly), every(7200, send_mail, {"to": "tick"})])
    async with JobTester(app, clock=fake_clock) as jobs:
        await jobs.advance(days=7)
    assert sent.count("tick") == 84
    assert [moment for moment in sent if moment != "tick"] == [f"2030-01-0{day}T02:30:00+00:00" for day in range(1, 8)]


async def test_handlers_use_the_apps_own_rooms(sqlite_url: str) -> None:
    @task
    async def write(session: AsyncSession) -> str:
        return type(session).__name__

    app = FastAPI()
    wiring_of(app, settings=Settings(app={"env": "test"}, sql={"url": sqlite_url}))
    add_db(app)
    add_jobs(app, tasks=[write])
    async with JobTester(app) as jobs:
        await write.enqueue()
        (job,) = await jobs.drain()
    assert (job.state, job.last_error) == (JobState.SUCCEEDED, None)


async def test_a_worker_that_dies_before_the_queue_hears_runs_the_job_again() -> None:
    async with JobTester(tasks=[send_mail]) as jobs:
        jobs.crash_before_ack(send_mail)
        await send_mail.enqueue(to="ada")
        (job,) = await jobs.drain()
    assert sent == ["ada", "ada"]
    assert (job.state, job.attempts, job.crashes) == (JobState.SUCCEEDED, 2, 1)


async def test_a_job_that_always_kills_its_worker_ends_in_the_dead_letter() -> None:
    async with JobTester(tasks=[send_mail]) as jobs:
        jobs.crash_before_ack(send_mail, times=100)
        await send_mail.enqueue(to="ada")
        (job,) = await jobs.drain()
    assert (job.state, job.crashes, len(sent)) == (JobState.DEAD, 3, 3)


async def test_a_job_that_is_delivered_twice_is_done_once() -> None:
    async with JobTester(tasks=[send_mail]) as jobs:
        jobs.deliver_twice(send_mail)
        await send_mail.enqueue(to="ada")
        (job,) = await jobs.drain()
        await send_mail.enqueue(to="bob")
        await jobs.drain()
    assert sent == ["ada", "ada", "bob"]
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 2)


async def test_jobs_that_put_themselves_off_or_end_themselves_are_no_failures() -> None:
    @task(name="odd")
    async def odd(how: str, context: JobContext) -> None:
        if how == "snooze":
            raise Snooze(60)
        raise Cancel

    async with JobTester(tasks=[odd], mode="inline") as jobs:
        await odd.enqueue(how="snooze")
        await odd.enqueue(how="cancel")
        assert [job.state for job in jobs.enqueued()] == [JobState.READY, JobState.CANCELLED]


async def test_what_never_ends_is_not_waited_for_for_ever() -> None:
    @task
    async def hang() -> None:
        import asyncio

        await asyncio.Event().wait()

    async with JobTester(tasks=[hang], patience_seconds=0.05) as jobs:
        await hang.enqueue()
        with pytest.raises(TimeoutError):
            await jobs.drain()


def test_an_app_without_jobs_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="add_jobs"):
        JobTester(FastAPI())


async def test_the_plugin_gives_a_tester_on_the_tests_clock(job_tester: Any, fake_clock: FakeClock) -> None:
    async with job_tester(tasks=[send_mail]) as jobs:
        await send_mail.options(delay_seconds=60).enqueue(to="ada")
        await jobs.advance(hours=1)
    assert sent == ["ada"]
    assert jobs.clock is fake_clock
    assert fake_clock.now() == FakeClock().now() + timedelta(hours=1)
