"""What the log tells of an attempt that is over."""

from __future__ import annotations

import logging

import pytest

from svc_infra.jobs import InMemoryJobQueue, task
from svc_infra.jobs.workers import report
from svc_infra.obs import context
from tests.jobs.working import until_state, working
from tests.obs.log_capture import captured


@task
async def talk(fails: bool = False) -> None:
    logging.getLogger("app").info("inside")
    if fails:
        raise ValueError


async def ran(queue: InMemoryJobQueue, *, fails: bool = False) -> str:
    job_id = await talk.options(on=queue, max_attempts=1).enqueue(fails=fails)
    async with working(queue, talk):
        await until_state(queue, job_id)
    return job_id


@pytest.mark.parametrize(("fails", "outcome"), [(False, "succeeded"), (True, "dead")])
@pytest.mark.parametrize("carried", [{}, {"tenant_id": "t1", "trace_id": "a" * 32}])
async def test_its_last_line_belongs_to_the_trace_of_its_handler(
    fails: bool, outcome: str, carried: dict[str, str]
) -> None:
    with captured() as output, context.restored(carried):
        job_id = await ran(InMemoryJobQueue(), fails=fails)
    inside, finished = [
        next(one for one in output.lines if one["message"] == what) for what in ("inside", "job.finished")
    ]
    assert finished["logger"] == report.__name__
    assert (finished["task"], finished["attempt"], finished["outcome"]) == (talk.name, 1, outcome)
    assert 0 <= finished["seconds"] < 5
    for fact in ("trace_id", "span_id", "job_id", "tenant_id"):
        assert finished.get(fact) == inside.get(fact)
    assert (finished["job_id"], finished.get("tenant_id")) == (job_id, carried.get("tenant_id"))


async def test_whoever_listens_to_the_workers_gets_it_as_a_record() -> None:
    class Heard(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.records: list[logging.LogRecord] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.records.append(record)

    heard, workers = Heard(), logging.getLogger("svc_infra.jobs")
    workers.addHandler(heard)
    try:
        with captured() as output:
            await ran(InMemoryJobQueue())
    finally:
        workers.removeHandler(heard)
    (record,) = [one for one in heard.records if one.getMessage() == "job.finished"]
    assert (record.__dict__["task"], record.__dict__["outcome"]) == (talk.name, "succeeded")
    assert [one["outcome"] for one in output.lines if one["message"] == "job.finished"] == ["succeeded"]
