"""The worker: what handlers are given, how attempts end, and what it survives."""

import asyncio
import logging
import threading
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.config import Settings
from svc_infra.errors import ConfigurationError, UnavailableError, ValidationError
from svc_infra.jobs import InMemoryJobQueue, Job, JobContext, JobQueue, JobState, Limit, Worker, task
from svc_infra.jobs.task import Task
from svc_infra.jobs.workers import worker
from svc_infra.obs import context
from svc_infra.obs.metrics import Metrics
from svc_infra.testing import FakeClock
from svc_infra.types import Clock
from svc_infra.wiring import Wiring, current_wiring
from tests.jobs.working import START, UnreliableQueue, measured, until, until_state, working


@pytest.fixture
def queue() -> InMemoryJobQueue:
    return InMemoryJobQueue()


@pytest.fixture
def wiring(queue: InMemoryJobQueue) -> Wiring:
    wiring = Wiring(Settings())
    wiring.provide(JobQueue, queue)
    wiring.provide(Metrics, Metrics(CollectorRegistry()))
    return wiring


async def finished(queue: InMemoryJobQueue, one: Task[..., Any], **arguments: Any) -> Job:
    """Run one job on a worker of its own until it is in a terminal state."""
    job_id = await one.options(on=queue, max_attempts=1).enqueue(**arguments)
    async with working(queue, one):
        return await until_state(queue, job_id)


@task
async def double(number: int) -> dict[str, int]:
    return {"doubled": 2 * number}


async def test_a_job_runs_and_its_result_is_kept(queue: InMemoryJobQueue) -> None:
    job = await finished(queue, double, number=21)
    assert (job.state, job.result, job.attempts) == (JobState.SUCCEEDED, {"doubled": 42}, 1)


async def test_as_many_jobs_run_at_once_as_the_concurrency_allows_and_no_more(queue: InMemoryJobQueue) -> None:
    running, most = 0, 0
    go_on = asyncio.Event()

    @task
    async def busy() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1

    ids = [await busy.options(on=queue).enqueue() for _ in range(7)]
    async with working(queue, busy, concurrency=3):
        await until(lambda: running == 3)
        assert (await queue.stats()).counts[JobState.RUNNING] == 3
        go_on.set()
        for job_id in ids:
            await until_state(queue, job_id)
    assert most == 3


async def test_a_handler_runs_as_the_request_that_enqueued_it_and_inside_the_app(
    queue: InMemoryJobQueue, wiring: Wiring
) -> None:
    seen: list[object] = []

    @task
    async def look() -> None:
        seen.extend([context.current().known(), current_wiring()])

    with context.restored({"tenant_id": "t1", "request_id": "r1", "principal_id": "p1"}):
        job_id = await look.options(on=queue).enqueue()
    async with working(queue, look, wiring=wiring):
        await until_state(queue, job_id)
    facts, inside_of = seen
    assert isinstance(facts, dict)
    assert facts.items() >= {"tenant_id": "t1", "request_id": "r1", "principal_id": "p1", "job_id": job_id}.items()
    assert inside_of is wiring


async def test_a_handler_that_asks_for_its_context_gets_it(queue: InMemoryJobQueue, wiring: Wiring) -> None:
    seen: list[JobContext] = []

    @task
    async def look(mine: JobContext) -> None:
        seen.append(mine)

    job_id = await look.options(on=queue).enqueue()
    async with working(queue, look, wiring=wiring):
        await until_state(queue, job_id)
    assert seen[0].job.id == job_id
    assert (seen[0].attempt, seen[0].cancelled) == (1, False)
    assert len(seen[0].token) >= 32
    assert seen[0].get(Metrics) is wiring.get(Metrics)


async def test_a_job_enqueued_by_a_job_goes_to_the_same_app_and_carries_the_same_request(
    queue: InMemoryJobQueue, wiring: Wiring
) -> None:
    @task
    async def first() -> str:
        return await double.enqueue(number=1)

    with context.restored({"request_id": "r1"}) as request:
        job_id = await first.options(on=queue).enqueue()
    async with working(queue, first, double, wiring=wiring):
        second = await until_state(queue, str((await until_state(queue, job_id)).result))
    assert second.context == {"request_id": "r1", "trace_id": request.trace_id}


async def test_a_sync_function_runs_in_a_thread_with_the_context_of_its_job(queue: InMemoryJobQueue) -> None:
    @task
    def look(mine: JobContext) -> list[str]:
        return [threading.current_thread().name, context.current().job_id]

    job = await finished(queue, look)
    assert job.result == ["svc-infra-job", job.id]


async def test_arguments_are_validated_again_before_they_run(queue: InMemoryJobQueue) -> None:
    job_id = await queue.enqueue(double.name, {"number": "many"}, max_attempts=1)
    async with working(queue, double):
        job = await until_state(queue, job_id)
    assert (job.state, job.result) == (JobState.DEAD, None)
    assert str(job.last_error).startswith("ValidationError: test_worker.double: number: Input should be a valid int")


async def test_progress_is_kept_while_a_job_runs_and_when_it_ends(queue: InMemoryJobQueue) -> None:
    go_on = asyncio.Event()

    @task
    async def count(mine: JobContext) -> None:
        mine.progress(3, 10)
        await go_on.wait()
        mine.progress(10, 10)

    job_id = await count.options(on=queue).enqueue()

    async def reported() -> bool:
        job = await queue.get(job_id)
        return job is not None and (job.progress_done, job.progress_total) == (3, 10)

    async with working(queue, count):
        await until(reported)
        go_on.set()
        job = await until_state(queue, job_id)
    assert (job.progress_done, job.progress_total) == (10, 10)


@pytest.mark.parametrize("count", [-1, 1.5, True])
def test_progress_that_is_no_count_is_refused_where_it_is_reported(count: int) -> None:
    with pytest.raises(ValidationError, match="progress"):
        JobContext(job=None).progress(count)  # type: ignore[arg-type]


async def test_starts_outcomes_and_times_are_measured_in_the_app_of_the_worker(
    queue: InMemoryJobQueue, wiring: Wiring
) -> None:
    @task(name="broken")
    async def broken() -> None:
        raise ValueError

    good = await double.options(on=queue).enqueue(number=1)
    bad = await broken.options(on=queue, max_attempts=1).enqueue()
    async with working(queue, double, broken, wiring=wiring):
        await until_state(queue, good)
        await until_state(queue, bad)
    assert measured(wiring, "jobs_started_total", task="broken") == 1
    assert measured(wiring, "jobs_finished_total", task=double.name, outcome="succeeded") == 1
    assert measured(wiring, "jobs_finished_total", task="broken", outcome="dead") == 1
    assert measured(wiring, "jobs_run_seconds_count", task="broken") == 1


async def test_a_task_with_a_session_needs_an_app() -> None:
    @task
    async def write(session: AsyncSession) -> None: ...

    with pytest.raises(ConfigurationError, match="takes a session"):
        Worker(InMemoryJobQueue(), [write])


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"queues": ()},
        {"queues": "mail"},
        {"queues": ["two words"]},
        {"queues": [str(number) for number in range(101)]},
        {"lease_seconds": 0},
        {"worker_id": "two words"},
    ],
    ids=str,
)
def test_a_worker_that_could_never_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="A worker needs"):
        Worker(InMemoryJobQueue(), [double], **options)


async def test_a_worker_serves_only_its_queues(queue: InMemoryJobQueue) -> None:
    mail, other = [await double.options(on=queue, queue=name).enqueue(number=1) for name in ("mail", "other")]
    async with working(queue, double, queues=["mail"], concurrency=5000):
        await until_state(queue, mail)
    assert (await until_state(queue, other, JobState.READY)).attempts == 0


async def test_jobs_at_hand_follow_at_once_and_are_claimed_many_at_a_time() -> None:
    queue = UnreliableQueue()
    ids = await double.options(on=queue).enqueue_many({"number": number} for number in range(100))
    async with working(queue, double, concurrency=1, prefetch=50):
        results = [(await until_state(queue, job_id)).result for job_id in ids]
    assert results == [{"doubled": 2 * number} for number in range(100)]
    assert queue.calls.count("reserve") <= 6


async def test_a_job_that_is_lost_while_it_is_at_hand_never_begins(wiring: Wiring) -> None:
    clock = FakeClock(START)
    queue = InMemoryJobQueue(clock=clock)
    go_on, began = asyncio.Event(), 0

    @task
    async def gated() -> None:
        nonlocal began
        began += 1
        await go_on.wait()

    ids = await gated.options(on=queue).enqueue_many([{}] * 2)
    async with working(queue, gated, concurrency=1, prefetch=1, lease_seconds=0.15, wiring=wiring):
        await until_state(queue, ids[1], JobState.RUNNING)
        clock.advance(60)
        taken = await queue.reserve(worker_id="other", limit=2)
        assert len(taken) == 2
        await until(lambda: measured(wiring, "jobs_stale_total") == 2)
    assert began == 1


class Stuck(InMemoryJobQueue):
    """Gives nothing out, as a queue with a hidden fault would."""

    async def reserve(self, **terms: Any) -> list[Job]:
        return []


async def test_a_worker_that_gets_none_of_the_due_jobs_is_not_alive() -> None:
    clock = FakeClock(START)
    queue = Stuck(clock=clock)
    async with working(queue, double, stall_seconds=0.05) as worker:
        await worker.check()
        await double.options(on=queue, queue="other").enqueue(number=1)
        await double.options(on=queue, delay_seconds=3600).enqueue(number=1)
        clock.advance(60)
        for _ in range(40):
            await worker.check()  # nothing is due for this worker
            await asyncio.sleep(0.002)
        await double.options(on=queue).enqueue(number=1)
        clock.advance(60)
        with pytest.raises(UnavailableError, match="has got none for"):
            await worker.check()
        await queue.pause("default")
        await worker.check()


@pytest.mark.parametrize("of", ["job", "queue"])
async def test_jobs_that_only_a_limit_holds_back_say_nothing_against_a_worker(of: str) -> None:
    clock = FakeClock(START)
    queue = InMemoryJobQueue(clock=clock)
    limit = Limit("k", rate=1, period_seconds=86400)
    if of == "queue":
        await queue.configure_queue("default", rate=1, period_seconds=86400)
    ids = await double.options(on=queue, limit=limit if of == "job" else None).enqueue_many([{"number": 1}] * 2)
    async with working(queue, double, stall_seconds=0.02) as worker:
        await until_state(queue, ids[0])
        clock.advance(60)
        await asyncio.sleep(0.05)
        assert (await queue.stats()).oldest_due_age_seconds == 60
        await worker.check()


async def test_a_job_without_a_limit_among_those_with_one_tells_of_a_worker_that_gets_none() -> None:
    clock = FakeClock(START)
    queue = Stuck(clock=clock)
    wiring = Wiring(Settings())
    wiring.provide(Clock, clock)
    await double.options(on=queue, limit=Limit("k", rate=1)).enqueue(number=1)
    await double.options(on=queue, delay_seconds=3600).enqueue(number=1)
    async with working(queue, double, stall_seconds=0.02, wiring=wiring) as worker:
        clock.advance(60)
        await asyncio.sleep(0.05)
        await worker.check()
        await double.options(on=queue).enqueue(number=1)
        clock.advance(60)
        with pytest.raises(UnavailableError, match="has got none for"):
            await worker.check()


async def test_a_worker_that_gets_no_answer_is_not_alive_whatever_holds_its_jobs_back() -> None:
    clock, answers = FakeClock(START), asyncio.Event()

    class Silent(InMemoryJobQueue):
        async def reserve(self, **terms: Any) -> list[Job]:
            await answers.wait()
            return []

    queue = Silent(clock=clock)
    await double.options(on=queue, limit=Limit("k", rate=1)).enqueue(number=1)
    async with working(queue, double, stall_seconds=0.02) as worker:
        clock.advance(60)
        await worker.check()
        await asyncio.sleep(0.05)
        with pytest.raises(UnavailableError, match="has not answered for"):
            await worker.check()
        answers.set()


async def test_a_worker_without_room_is_alive() -> None:
    clock = FakeClock(START)
    queue = InMemoryJobQueue(clock=clock)
    go_on = asyncio.Event()

    @task
    async def gated() -> None:
        await go_on.wait()

    ids = await gated.options(on=queue).enqueue_many([{}] * 2)
    async with working(queue, gated, concurrency=1, stall_seconds=0.01, lease_seconds=3600) as worker:
        await until_state(queue, ids[0], JobState.RUNNING)
        clock.advance(60)
        await asyncio.sleep(0.05)
        await worker.check()
        go_on.set()
        await until_state(queue, ids[1])


class Mailer:
    """Something that an app provides."""


async def test_a_handler_is_given_what_the_app_provides(queue: InMemoryJobQueue, wiring: Wiring) -> None:
    seen: list[object] = []

    @task
    async def mail(to: str, mailer: Mailer, log: logging.Logger) -> None:
        seen.extend([to, mailer, log.name])

    @task
    def mail_in_a_thread(mailer: Mailer) -> None:
        seen.append(mailer)

    mailer = Mailer()
    wiring.provide(Mailer, mailer)
    ids = [await mail.options(on=queue).enqueue(to="x"), await mail_in_a_thread.options(on=queue).enqueue()]
    async with working(queue, mail, mail_in_a_thread, wiring=wiring, concurrency=1):
        for job_id in ids:
            assert (await until_state(queue, job_id)).state is JobState.SUCCEEDED
    assert seen == ["x", mailer, __name__, mailer]


async def test_of_jobs_that_were_there_when_workers_died_twice_one_runs_at_a_time(
    queue: InMemoryJobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SUSPECT_PAUSE_SECONDS", 0.01)
    running = most = 0
    beside = asyncio.Event()

    @task(name="suspect")
    async def suspect() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await beside.wait()
        running -= 1

    @task(name="new")
    async def new() -> None:
        beside.set()

    ids = [await suspect.options(on=queue).enqueue() for _ in range(3)]
    for _ in range(2):
        assert len(await queue.reserve(worker_id="dead", limit=3, lease_seconds=0.001)) == 3
        await asyncio.sleep(0.002)
    await new.options(on=queue).enqueue()
    async with working(queue, suspect, new):
        ended = [await until_state(queue, job_id) for job_id in ids]
    assert [(job.state, job.attempts, job.crashes) for job in ended] == [(JobState.SUCCEEDED, 3, 2)] * 3
    assert most == 1
