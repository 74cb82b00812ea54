"""Tasks that run in processes of their own."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from svc_infra.jobs import InMemoryJobQueue, Job, JobState, Retry, Snooze, Task, task
from svc_infra.obs import context
from svc_infra.obs.logging import setup_logging
from svc_infra.testing import FakeClock
from tests.jobs.working import until, until_state, working
from tests.obs.log_capture import kept_logging


@task(cpu=True)
def square(number: int) -> dict[str, int]:
    print("printed by a handler")
    return {"square": number * number, "process": os.getpid()}


@task(cpu=True)
def who() -> dict[str, str]:
    return context.current().known()


@task(cpu=True, timeout_seconds=1.0)
def endless(marks: str) -> None:
    Path(marks).write_text(str(os.getpid()))
    while True:
        pass


@task(cpu=True)
def leave() -> None:
    os._exit(7)


@task(cpu=True, retry={ChildProcessError: None})
def leave_for_good() -> None:
    os._exit(7)


@task(cpu=True)
def chatty() -> None:
    logging.getLogger("app").info("from the inside", extra={"size": 3})
    logging.getLogger("app").debug("from the inside, too")


@task(cpu=True, retry={KeyError: None})
def broken(how: str) -> object:
    match how:
        case "policy":
            raise KeyError("unknown")
        case "retry":
            raise Retry("later", after_seconds=77)
        case "snooze":
            raise Snooze(88)
        case "exit":
            raise SystemExit(3)
        case _:
            return object()


@pytest.fixture
def queue() -> InMemoryJobQueue:
    return InMemoryJobQueue()


async def finished(queue: InMemoryJobQueue, one: Task[..., Any], **arguments: object) -> Job:
    job_id = await one.options(on=queue, max_attempts=1).enqueue(**arguments)
    async with working(queue, one):
        return await until_state(queue, job_id)


async def test_it_runs_in_a_process_that_is_kept_for_the_next(queue: InMemoryJobQueue) -> None:
    ids = [await square.options(on=queue).enqueue(number=number) for number in (3, 4)]
    async with working(queue, square, concurrency=1):
        results = [(await until_state(queue, job_id)).result for job_id in ids]
    assert [result["square"] for result in results] == [9, 16]
    processes = {result["process"] for result in results}
    (process,) = processes
    assert process != os.getpid()
    assert not is_alive(process)  # the worker has ended


async def test_it_runs_as_whoever_enqueued_it(queue: InMemoryJobQueue) -> None:
    with context.restored({"tenant_id": "t1", "request_id": "r1"}):
        job = await finished(queue, who)
    assert job.result.items() >= {"tenant_id": "t1", "request_id": "r1", "job_id": job.id}.items()


async def test_it_is_killed_when_its_time_is_up(queue: InMemoryJobQueue, tmp_path: Path) -> None:
    job = await finished(queue, endless, marks=str(tmp_path / "pid"))
    assert job.state is JobState.DEAD
    assert str(job.last_error).startswith("DeadlineExceededError: ")
    assert not is_alive(int((tmp_path / "pid").read_text()))


async def test_it_is_killed_when_the_worker_stops_and_its_job_is_handed_back(
    queue: InMemoryJobQueue, tmp_path: Path
) -> None:
    job_id = await endless.options(on=queue, timeout_seconds=60).enqueue(marks=str(tmp_path / "pid"))
    async with working(queue, endless, drain_seconds=0.05):
        await until((tmp_path / "pid").exists)
        await until(lambda: bool((tmp_path / "pid").read_text()))
    assert (await until_state(queue, job_id, JobState.READY)).attempts == 0
    assert not is_alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("why", ["stop", "cancel"])
async def test_what_waits_for_a_process_does_not_go_on_waiting_for_nothing(
    why: str, queue: InMemoryJobQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    first = await endless.options(on=queue, timeout_seconds=60).enqueue(marks=str(tmp_path / "pid"))
    async with working(queue, endless, square, lease_seconds=1.5, drain_seconds=0.0):
        await until((tmp_path / "pid").exists)
        second = await square.options(on=queue).enqueue(number=2)
        await until_state(queue, second, JobState.RUNNING)
        if why == "cancel":
            await queue.cancel(second)
            assert (await until_state(queue, second)).state is JobState.CANCELLED
    ended = [await queue.get(job_id) for job_id in (first, second)]
    assert [(job.state, job.attempts, job.crashes) for job in ended if job] == [
        (JobState.READY, 0, 0),
        (JobState.READY, 0, 0) if why == "stop" else (JobState.CANCELLED, 1, 0),
    ]


async def test_a_process_that_dies_is_a_crash_of_its_job_and_is_replaced() -> None:
    queue = InMemoryJobQueue(max_crashes=1)
    bad = await leave.options(on=queue, max_attempts=2).enqueue()
    async with working(queue, leave, square, concurrency=1):
        job = await until_state(queue, bad)
        good = await until_state(queue, await square.options(on=queue).enqueue(number=2))
    assert (job.state, job.attempts, job.crashes) == (JobState.DEAD, 1, 1)
    assert str(job.last_error).startswith("ProcessDiedError: The process that ran it ended with status 7.")
    assert good.result["square"] == 4


async def test_what_a_task_says_of_a_process_that_died_counts_more(queue: InMemoryJobQueue) -> None:
    job = await finished(queue, leave_for_good)
    assert (job.state, job.attempts, job.crashes) == (JobState.DEAD, 1, 0)


async def test_its_log_lines_are_written_as_those_of_the_worker(
    queue: InMemoryJobQueue, capfd: pytest.CaptureFixture[str]
) -> None:
    with kept_logging():
        setup_logging("INFO", "json")
        job = await finished(queue, chatty)
    lines = [orjson.loads(line) for line in capfd.readouterr().err.splitlines() if "from the inside" in line]
    (line,) = lines
    assert (line["level"], line["size"], line["job_id"]) == ("INFO", 3, job.id)
    assert line["pid"] != os.getpid()


@pytest.mark.parametrize(
    ("how", "error"),
    [("policy", "KeyError: 'unknown'"), ("exit", "SystemExit: 3"), ("object", "ValidationError: ")],
)
async def test_what_it_raises_is_ruled_on_where_it_was_raised(how: str, error: str, queue: InMemoryJobQueue) -> None:
    job_id = await broken.options(on=queue, max_attempts=1 if how != "policy" else 9).enqueue(how=how)
    async with working(queue, broken):
        job = await until_state(queue, job_id)
    assert (job.state, job.attempts) == (JobState.DEAD, 1)
    assert str(job.last_error).startswith(error)
    assert len(job.fingerprint) == 16
    assert how != "policy" or "at broken (" in str(job.last_error)


@pytest.mark.parametrize(("how", "attempts", "seconds"), [("retry", 1, 77), ("snooze", 0, 88)])
async def test_it_may_ask_for_another_time(how: str, attempts: int, seconds: int) -> None:
    clock = FakeClock()
    queue = InMemoryJobQueue(clock=clock)
    job_id = await broken.options(on=queue).enqueue(how=how)

    async def put_off() -> bool:
        job = await queue.get(job_id)
        return job is not None and job.available_at > clock.now()

    async with working(queue, broken):
        await until(put_off)
    job = await until_state(queue, job_id, JobState.READY)
    assert (job.attempts, (job.available_at - clock.now()).total_seconds()) == (attempts, seconds)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
