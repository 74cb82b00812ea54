"""Tasks: what they accept, what their jobs carry, and where they go."""

import inspect
import logging
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError, ValidationError
from svc_infra.jobs import InMemoryJobQueue, JobContext, JobQueue, Limit, Task, Unique, Worker, task
from svc_infra.jobs.job import check_name
from svc_infra.jobs.task import by_name
from svc_infra.obs.logging import EventLogger, logger
from svc_infra.testing import FakeClock
from svc_infra.wiring import Wiring

WHEN = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
WHO = UUID("01890000-0000-7000-8000-000000000000")


class Colour(StrEnum):
    RED = "red"


class Line(pydantic.BaseModel):
    amount: int


@task
async def everything(
    to: str,
    when: datetime,
    who: UUID,
    lines: list[Line],
    colour: Colour = Colour.RED,
    limit: Annotated[int, pydantic.Field(gt=0)] = 5,
) -> None:
    """Take one of everything."""


@task(name="mail.send", queue="mail", max_attempts=3, timeout_seconds=30, priority=2, backoff_seconds=1)
async def send(to: str, context: JobContext, session: AsyncSession) -> str:
    return f"{to} {context} {session}"


@task
def carry(counts: dict[str, int], span: timedelta, numbers: set[int]) -> None: ...


@task
def nothing() -> str:
    return "done"


@pytest.fixture
def wiring() -> Wiring:
    wiring = Wiring(Settings())
    wiring.provide(JobQueue, InMemoryJobQueue())
    return wiring


def test_a_task_is_named_by_the_last_part_of_its_module_and_its_function() -> None:
    assert everything.name == "test_task.everything"
    assert send.name == "mail.send"
    assert repr(nothing) == "Task('test_task.nothing')"


def test_a_task_is_still_its_function() -> None:
    assert nothing() == "done"
    assert inspect.signature(everything) == inspect.signature(everything.function)
    assert everything.__doc__ == "Take one of everything."


def test_a_task_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        send.queue = "other"  # type: ignore[misc]


async def test_typed_arguments_survive_the_journey_through_json() -> None:
    queue = InMemoryJobQueue()
    job_id = await everything.options(on=queue).enqueue(to="x", when=WHEN, who=WHO, lines=[Line(amount=3)])
    job = await queue.get(job_id)
    assert job is not None
    assert job.payload == {"to": "x", "when": "2026-03-01T12:30:00Z", "who": str(WHO), "lines": [{"amount": 3}]}
    assert everything.arguments.decode(job.payload) == {
        "to": "x",
        "when": WHEN,
        "who": WHO,
        "lines": [Line(amount=3)],
    }


NUMBERS = st.integers(-(2**63), 2**64 - 1)  # what the queues' JSON can hold


@given(st.dictionaries(st.text(max_size=5), NUMBERS, max_size=5), st.timedeltas(), st.sets(NUMBERS))
def test_whatever_fits_the_hints_comes_back_equal(counts: dict[str, int], span: timedelta, numbers: set[int]) -> None:
    arguments = {"counts": counts, "span": span, "numbers": numbers}
    assert carry.arguments.decode(carry.arguments.encode(arguments)) == arguments


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"to": "x"}, "when: Field required"),
        ({"to": 7, "when": WHEN, "who": WHO, "lines": []}, "to: Input should be a valid string"),
        ({"to": "x", "when": WHEN, "who": WHO, "lines": [], "cc": "y"}, "cc: Extra inputs are not permitted"),
        ({"to": "x", "when": WHEN, "who": WHO, "lines": [], "limit": 0}, "limit: Input should be greater than 0"),
        ({"to": "x", "when": WHEN, "who": WHO, "lines": [{"amount": "many"}]}, "lines.0.amount: Input should be"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_and_nothing_is_stored(
    arguments: dict[str, object], named: str
) -> None:
    queue = InMemoryJobQueue()
    with pytest.raises(ValidationError, match=named):
        await everything.options(on=queue).enqueue(**arguments)
    assert await queue.list() == []


async def test_a_refusal_does_not_repeat_the_value_that_was_wrong() -> None:
    with pytest.raises(ValidationError) as caught:
        nothing.arguments.encode({"password": "hunter2"})
    assert "hunter2" not in repr(caught.value) + repr(caught.value.errors) + repr(caught.value.__cause__)


def test_an_argument_that_is_no_json_is_refused() -> None:
    @task(name="any")
    def anything(value) -> None: ...  # type: ignore[no-untyped-def]

    assert anything.arguments.encode({"value": [1, "two"]}) == {"value": [1, "two"]}
    with pytest.raises(ValidationError, match="cannot be stored as JSON"):
        anything.arguments.encode({"value": object()})


def test_what_the_worker_injects_is_no_argument() -> None:
    assert send.arguments.encode({"to": "x"}) == {"to": "x"}
    assert (send.arguments.context, send.arguments.session) == ("context", "session")
    with pytest.raises(ValidationError, match="session: Extra inputs"):
        send.arguments.encode({"to": "x", "session": None})


async def test_enqueue_finds_the_queue_of_the_app_that_is_active(wiring: Wiring) -> None:
    with wiring.active():
        job_id = await nothing.enqueue()
    assert await wiring.get(JobQueue).get(job_id) is not None  # type: ignore[attr-defined]


async def test_enqueue_outside_of_any_app_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"outside of any app.*\.active\(\)"):
        await nothing.enqueue()


async def test_an_app_without_jobs_is_told_to_add_them() -> None:
    with Wiring(Settings()).active(), pytest.raises(ConfigurationError, match="add_jobs"):
        await nothing.enqueue()


async def test_a_job_has_the_options_of_its_task_unless_it_is_given_others() -> None:
    queue = InMemoryJobQueue()
    own = await queue.get(await send.options(on=queue).enqueue(to="x"))
    assert own is not None
    assert (own.queue, own.max_attempts, own.timeout_seconds, own.priority, own.backoff_seconds) == (
        "mail",
        3,
        30,
        2,
        1,
    )
    options = send.options(
        on=queue, queue="slow", max_attempts=9, timeout_seconds=1, priority=0, delay_seconds=60, job_id="chosen"
    )
    assert await options.enqueue(to="x") == "chosen"
    other = await queue.get("chosen")
    assert other is not None
    assert (other.queue, other.max_attempts, other.timeout_seconds, other.priority) == ("slow", 9, 1, 0)
    assert (other.available_at - other.created_at).total_seconds() == pytest.approx(60, abs=1)


async def test_options_do_not_stick_to_the_task() -> None:
    queue = InMemoryJobQueue()
    first = await nothing.options(on=queue, unique_key="one").enqueue()
    assert await nothing.options(on=queue, unique_key="one").enqueue() == first
    assert await nothing.options(on=queue).enqueue() != first


async def test_a_job_stored_in_a_unit_of_work_is_gone_with_its_rollback(sqlite_url: str) -> None:
    queue, db = InMemoryJobQueue(), AsyncDatabase(sqlite_url)

    async def enqueue_and_fail() -> None:
        async with db.session() as session:
            await nothing.options(on=queue, session=session).enqueue()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await enqueue_and_fail()
    assert await queue.list() == []
    async with db.session() as session:
        await nothing.options(on=queue, session=session).enqueue()
    assert len(await queue.list()) == 1
    await db.dispose()


async def test_many_jobs_are_stored_at_once_or_not_at_all() -> None:
    queue = InMemoryJobQueue()
    call = send.options(on=queue, priority=7)
    ids = await call.enqueue_many({"to": f"customer-{number}"} for number in range(3))
    jobs = [await queue.get(job_id) for job_id in ids]
    assert [(job.payload, job.priority, job.queue) for job in jobs if job is not None] == [
        ({"to": f"customer-{number}"}, 7, "mail") for number in range(3)
    ]
    with pytest.raises(ValidationError, match="to: Input should be"):
        await call.enqueue_many([{"to": "x"}, {"to": 7}])
    with pytest.raises(ConfigurationError, match="many jobs cannot have one"):
        await send.options(on=queue, job_id="one").enqueue_many([{"to": "x"}, {"to": "y"}])
    assert len(await queue.list()) == 3


async def test_a_job_can_be_put_off_until_a_time() -> None:
    clock = FakeClock(WHEN)
    queue = InMemoryJobQueue(clock=clock)
    tomorrow = WHEN + timedelta(days=1)
    job = await queue.get(await nothing.options(on=queue, at=tomorrow).enqueue())
    assert job is not None
    assert job.available_at == tomorrow


@task(unique=Unique("bill:{customer}:{month}"), limit=Limit("customer:{customer}", concurrency=1))
async def bill(customer: str, month: int = 1) -> None: ...


async def test_a_tasks_unique_key_and_limit_are_those_of_the_arguments() -> None:
    queue = InMemoryJobQueue()
    first = await bill.options(on=queue).enqueue(customer="acme")
    assert await bill.options(on=queue).enqueue(customer="acme", month=1) == first
    others = [await bill.options(on=queue).enqueue(customer=name, month=2) for name in ("acme", "b c/d{}")]
    assert len({first, *others}) == 3
    odd = await queue.get(others[1])
    assert odd is not None
    assert (odd.unique_key, odd.limit_key) == ("bill:b%20c/d%7B%7D:2", "customer:b%20c/d%7B%7D")
    assert len(await queue.reserve(worker_id="w", limit=10)) == 2  # one for each customer


async def test_a_call_may_have_a_unique_key_and_a_limit_of_its_own() -> None:
    queue = InMemoryJobQueue()
    call = bill.options(on=queue, unique_key="mine", limit=Limit("{as it is}".replace(" ", "-"), rate=5))
    job = await queue.get(await call.enqueue(customer="acme"))
    assert job is not None
    assert (job.unique_key, job.limit_key) == ("mine", "{as-it-is}")


@given(st.text(max_size=300), st.text(max_size=300))
def test_different_arguments_make_different_keys_of_a_legal_length(one: str, other: str) -> None:
    keys = [bill.arguments.key("bill:{customer}", {"customer": name}) for name in (one, other)]
    assert all(check_name("key", key) for key in keys)
    assert (keys[0] == keys[1]) is (one == other)


@pytest.mark.parametrize(
    "key", ["x:{nobody}", "x:{customer.name}", "x:{customer!r}", "x:{customer:>10}", "x:{", "x:{}"]
)
def test_a_key_that_names_no_argument_is_refused(key: str) -> None:
    broken = task(name="broken", limit=Limit(key, concurrency=1))(bill.function)
    with pytest.raises(ConfigurationError, match="Task broken: the key"):
        by_name([broken])


class Mailer:
    """Something that an app provides, and JSON cannot express."""


@task
async def mail(to: str, mailer: Mailer, log: logging.Logger, events: EventLogger) -> None: ...


def test_what_json_cannot_express_is_given_by_the_app_and_is_no_argument(wiring: Wiring) -> None:
    mailer = Mailer()
    wiring.provide(Mailer, mailer)
    assert mail.arguments.encode({"to": "x"}) == {"to": "x"}
    arguments: dict[str, Any] = {}
    mail.arguments.inject(arguments, JobContext(job=None, wiring=wiring), None)  # type: ignore[arg-type]
    assert arguments == {"mailer": mailer, "log": logging.getLogger(__name__), "events": logger}


def test_a_worker_whose_app_does_not_provide_it_says_so_at_the_start(wiring: Wiring) -> None:
    with pytest.raises(ConfigurationError, match="cannot carry its 'mailer', and the app provides no Mailer"):
        Worker(InMemoryJobQueue(), [mail], wiring=wiring)
    with pytest.raises(ConfigurationError, match="takes Mailer: give the worker the app's wiring"):
        Worker(InMemoryJobQueue(), [mail])


def _variadic(*values: int) -> None: ...
def _positional(value: int, /) -> None: ...
def _unknown_hint(value: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821
def _arbitrary(value: InMemoryJobQueue | None) -> None: ...
def _wants_its_context(context: JobContext) -> None: ...
def _session_in_a_thread(session: AsyncSession) -> None: ...


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_variadic, "'values' cannot be given by name"),
        (_positional, "'value' cannot be given by name"),
        (_unknown_hint, "type hint Missing is not defined"),
        (_arbitrary, "InMemoryJobQueue"),
        (_session_in_a_thread, "needs an async function"),
    ],
)
def test_a_function_that_cannot_be_a_task_is_refused_by_name(function: object, reason: str) -> None:
    unusable: Task[..., Any] = Task(function, "broken")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=f"Task broken: .*{reason}"):
        by_name([unusable])


def test_a_process_runs_only_what_it_can_find_and_gives_it_nothing() -> None:
    with pytest.raises(ConfigurationError, match="a process runs a plain function"):
        task(cpu=True)(send.function)

    def local() -> None: ...

    with pytest.raises(ConfigurationError, match="a process runs a plain function"):
        task(cpu=True)(local)
    with pytest.raises(ConfigurationError, match="nothing can be injected"):
        by_name([task(name="broken", cpu=True)(_wants_its_context)])


def test_a_generator_is_no_task() -> None:
    with pytest.raises(ConfigurationError, match="generator"):

        @task
        async def stream():  # type: ignore[no-untyped-def]
            yield 1


@pytest.mark.parametrize("limit", ["max_attempts", "timeout_seconds", "backoff_seconds"])
def test_limits_below_one_are_refused(limit: str) -> None:
    with pytest.raises(ConfigurationError, match=limit):
        Task(nothing.function, "broken", **{limit: 0})  # type: ignore[arg-type]


def test_two_tasks_of_one_name_are_refused_and_one_task_twice_is_not() -> None:
    assert by_name([nothing, nothing]) == {"test_task.nothing": nothing}
    with pytest.raises(ConfigurationError, match=r"Two tasks are called mail\.send"):
        by_name([send, task(name="mail.send")(nothing.function)])


def test_a_context_outside_of_an_app_says_so() -> None:
    with pytest.raises(ConfigurationError, match="has no AsyncDatabase"):
        _ = JobContext(job=None).db  # type: ignore[arg-type]
