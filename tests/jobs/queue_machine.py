"""Any steps in any order, on a queue and on the reference beside it: whatever can be seen must agree."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from svc_infra.errors import ConflictError, NotFoundError, StaleAttemptError, SvcInfraError
from svc_infra.jobs import InMemoryJobQueue, Job, JobState, RedisJobQueue, SqlJobQueue
from svc_infra.jobs.backends.checked import LEASE_ENDED
from svc_infra.jobs.job import JobRequest, Unique
from svc_infra.jobs.queue import Completion
from svc_infra.obs.context import restored
from svc_infra.testing import FakeClock
from tests.jobs.reference_queue import NOT_SHOWN, ReferenceQueue, first_of_each

AnyQueue = InMemoryJobQueue | SqlJobQueue | RedisJobQueue
QUEUES = ("mail", "sums")
START = datetime(2026, 1, 5, 12, 0, 0, 123456, tzinfo=UTC)

LEASES = [1.0, 2.5, 60.0]
leases = st.sampled_from(LEASES)
delays = st.sampled_from([0.0, 0.0, 0.0, 10.0])
keys = st.sampled_from(["k", "k", "k", "other"])
ids = st.sampled_from([f"{number:03}" for number in range(8)])
pick = st.integers(0, 9)
uniques = st.builds(
    Unique,
    key=keys,
    window_seconds=st.sampled_from([None, 10.0]),
    states=st.sampled_from([frozenset(JobState), frozenset({JobState.READY, JobState.RUNNING})]),
    on_conflict=st.sampled_from(["skip", "replace", "debounce"]),
)
requests = st.builds(
    JobRequest,
    name=st.sampled_from(["a", "b"]),
    payload=st.fixed_dictionaries({"n": st.integers(0, 9)}),
    queue=st.sampled_from(QUEUES),
    delay_seconds=delays,
    priority=st.sampled_from([0, 0, 1, -1]),
    max_attempts=st.sampled_from([1, 1, 3]),
    unique=st.none() | uniques,
)


@dataclass(frozen=True)
class Place:
    """Where queues of one backend are made.

    Attributes:
        make: An empty queue with this clock; what was in it before is gone.
        at_once: Whether a claim finds all that waits. PostgreSQL's begins with what the process has been told of, and
            looks for the rest beside it, less often the longer a look takes.
        patience_seconds: How long a claim may take to find the rest.
    """

    make: Callable[[FakeClock], AbstractAsyncContextManager[AnyQueue]]
    runner: asyncio.Runner
    at_once: bool = True
    patience_seconds: float = 30.0


class QueueMachine(RuleBasedStateMachine):
    """Steps of producers, workers and operators."""

    place: ClassVar[Place]
    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(START)
        self.model = ReferenceQueue(self.clock.now)
        self.stack = AsyncExitStack()
        self.stored = 0
        self.queue = self.run(self.stack.enter_async_context(self.place.make(self.clock)))

    def teardown(self) -> None:
        self.run(self.stack.aclose())

    def run(self, step: Coroutine[Any, Any, Any]) -> Any:
        return self.place.runner.run(step)

    @initialize(target=attempts, first=st.lists(requests, min_size=3, max_size=5), lease=leases)
    def begin(self, first: list[JobRequest], lease: float) -> Any:
        self.enqueue(first, "")
        return self.claim(3, lease, "w1", QUEUES)

    @rule(wanted=st.lists(requests, min_size=1, max_size=3), tenant=st.sampled_from(["", "red", "blue"]))
    def enqueue(self, wanted: list[JobRequest], tenant: str) -> None:
        named = [replace(one, job_id=f"{self.stored + at:03}") for at, one in enumerate(wanted)]
        self.stored += len(named)
        kept = self.run(as_tenant(tenant, lambda: self.queue.enqueue_many(named)))
        assert kept == [self.model.enqueue(one, tenant) for one in named]

    @rule(request=requests)
    def outlive_a_window(self, request: JobRequest) -> None:
        unique = replace(request, unique=Unique("k", window_seconds=10.0))
        self.enqueue([unique], "")
        self.clock.advance(10.0)
        self.enqueue([unique], "")

    @rule(job_id=ids, request=requests)
    def enqueue_the_same_id_again(self, job_id: str, request: JobRequest) -> None:
        again = replace(request, job_id=job_id)
        if job_id in self.model.jobs:
            assert self.run(self.queue.enqueue_many([again])) == [job_id]

    @rule(target=attempts, limit=st.integers(1, 5), lease=leases, worker=st.sampled_from(["w1", "w2"]), queues=pick)
    def reserve(self, limit: int, lease: float, worker: str, queues: int) -> Any:
        names = {0: QUEUES[:1], 1: QUEUES[1:]}.get(queues, QUEUES)
        if any(job.lease_expires_at and job.lease_expires_at <= self.clock.now() for job in self.model.jobs.values()):
            names = QUEUES  # a claim may, and need not, look after the leases of queues that it does not serve
        return self.claim(limit, lease, worker, names)

    @rule(target=attempts, lease=leases)
    def lose_every_worker(self, lease: float) -> Any:
        self.clock.advance(max(LEASES))
        return self.claim(5, lease, "w3", QUEUES)

    def claim(self, limit: int, lease: float, worker: str, names: Sequence[str]) -> Any:
        self.model.crash()
        due = self.model.due(names)
        wanted = min(limit, len(due))
        claimed: list[Job] = []
        terms = {"worker_id": worker, "queues": list(names), "lease_seconds": lease}
        end = time.monotonic() + self.place.patience_seconds
        while True:
            claimed += self.run(self.queue.reserve(limit=limit - len(claimed), **terms))
            if len(claimed) == wanted or self.place.at_once or time.monotonic() > end:
                break
            self.run(asyncio.sleep(0.01))
        assert len(claimed) == wanted
        self.check_order(due, claimed)
        for job in claimed:
            self.model.claimed(job, lease)
            self.check_seen(job, self.model.jobs[job.id])
        return multiple(*claimed)

    def check_order(self, due: list[Job], claimed: list[Job]) -> None:
        """Of each tenant the first ones; which tenant's turn it is the contract tests check."""

        def lane(job: Job) -> Any:
            return job.tenant if self.place.at_once else (job.tenant, job.queue)

        taken, waited = first_of_each(claimed, lane), first_of_each(due, lane)
        expected = {key: waited[key][: len(ids)] for key, ids in taken.items()}
        assert taken == expected, f"{taken} were claimed, and should have been {expected}"

    @rule(attempt=attempts, lease=leases)
    def heartbeat(self, attempt: Job, lease: float) -> None:
        beat = self.run(self.queue.heartbeat([attempt], lease_seconds=lease))
        held = self.model.holds(attempt)
        assert beat.held == ({attempt.id} if held else set())
        if held:
            assert beat.cancelled == ({attempt.id} if self.model.jobs[attempt.id].cancel_requested else set())
            self.model.renew(attempt, lease)

    @rule(attempt=attempts, result=st.none() | st.integers(0, 9))
    def ack(self, attempt: Job, result: int | None) -> None:
        if self.fenced(attempt, self.queue.ack(attempt, result=result)):
            self.model.ack(attempt, result)

    @rule(one=attempts, other=attempts)
    def ack_many(self, one: Job, other: Job) -> None:
        if one.id == other.id:
            return
        refused = self.run(self.queue.ack_many([Completion(one, 1), Completion(other)]))
        held = [job for job in (one, other) if self.model.holds(job)]
        assert refused == {one.id, other.id} - {job.id for job in held}
        for job in held:
            self.model.ack(job, 1 if job is one else None)

    @rule(attempt=attempts, delay=delays, end=st.sampled_from([None, None, None, JobState.DEAD, JobState.CANCELLED]))
    def fail(self, attempt: Job, delay: float, end: JobState | None) -> None:
        ends = {"dead": end is JobState.DEAD, "cancelled": end is JobState.CANCELLED}
        states: list[JobState] = []

        async def step() -> None:
            states.append(await self.queue.fail(attempt, error="broken", delay_seconds=delay, **ends))

        if self.fenced(attempt, step()):
            assert states == [self.model.fail(attempt, "broken", delay, end)]

    @rule(attempt=attempts)
    def fail_plainly(self, attempt: Job) -> None:
        self.fail(attempt, 0.0, None)

    @rule(attempt=attempts, delay=delays)
    def release(self, attempt: Job, delay: float) -> None:
        if self.fenced(attempt, self.queue.release(attempt, delay_seconds=delay)):
            self.model.release(attempt, delay)

    @rule(attempt=attempts, done=st.integers(0, 10))
    def progress(self, attempt: Job, done: int) -> None:
        if self.fenced(attempt, self.queue.progress(attempt, done=done, total=10)):
            self.model.progress(attempt, done)

    def fenced(self, attempt: Job, step: Coroutine[Any, Any, Any]) -> bool:
        """Take a step that only the attempt that holds the job may take; whether it was taken."""
        held = self.model.holds(attempt)
        try:
            self.run(step)
        except StaleAttemptError:
            assert not held, f"attempt {attempt.attempts} of {attempt.id} holds its job and is refused"
            return False
        assert held, f"attempt {attempt.attempts} of {attempt.id} does not hold its job and is accepted"
        return True

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        self.agree(self.queue.cancel(job_id), lambda: self.model.cancel(job_id))

    @rule(job_id=ids)
    def retry(self, job_id: str) -> None:
        self.agree(self.queue.retry(job_id), lambda: self.model.retry(job_id))

    def agree(self, step: Coroutine[Any, Any, Any], expected: Callable[[], None]) -> None:
        errors: list[type[SvcInfraError] | None] = [None, None]
        try:
            self.run(step)
        except (NotFoundError, ConflictError) as error:
            errors[0] = type(error)
        try:
            expected()
        except (NotFoundError, ConflictError) as error:
            errors[1] = type(error)
        assert errors[0] is errors[1]

    @rule(queue=st.sampled_from(QUEUES), paused=st.sampled_from([False, False, True]))
    def pause_or_resume(self, queue: str, paused: bool) -> None:
        self.run(self.queue.pause(queue) if paused else self.queue.resume(queue))
        (self.model.paused.add if paused else self.model.paused.discard)(queue)

    @rule(span=st.sampled_from([1.0, 10.0]))
    def advance(self, span: float) -> None:
        self.clock.advance(span)

    @rule(age=st.sampled_from([0.0, 10.0]), limit=st.sampled_from([1, 100]), dead=st.booleans())
    def purge(self, age: float, limit: int, dead: bool) -> None:
        old = self.model.old(age, dead=dead)
        count = self.run(self.queue.purge(older_than_seconds=age, limit=limit, dead=dead))
        assert count == min(limit, len(old))
        left = {job.id for job in self.run(self.queue.list(limit=1000))}
        gone = [job for job in old if job.id not in left]
        assert [job.finished_at for job in gone] == [job.finished_at for job in old[:count]]
        for job in gone:
            del self.model.jobs[job.id]

    @invariant()
    def every_job_is_as_it_should_be(self) -> None:
        seen, expected = self.run(self.queue.list(limit=1000)), self.model.shown()
        assert [job.id for job in seen] == [job.id for job in expected]
        for one, other in zip(seen, expected, strict=True):
            self.check_seen(one, other)

    def check_seen(self, seen: Job, expected: Job) -> None:
        assert (seen.token is not None) == (seen.state is JobState.RUNNING)
        error = seen.last_error
        if error is not None and error.startswith(LEASE_ENDED):
            error = LEASE_ENDED  # the facts behind it are checked elsewhere
        both = replace(seen, last_error=error, **NOT_SHOWN), replace(expected, **NOT_SHOWN)
        values = {field.name: [getattr(one, field.name) for one in both] for field in fields(Job)}
        wrong = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
        assert not wrong, f"job {seen.id} has, and should have, {wrong}"

    @rule(state=st.sampled_from(JobState), queue=st.sampled_from(QUEUES))
    def look(self, state: JobState, queue: str) -> None:
        counts, age = self.model.stats()
        stats = self.run(self.queue.stats())
        assert (dict(stats.counts), stats.oldest_due_age_seconds) == (counts, age)
        found = self.run(self.queue.list(state=state, queue=queue))
        shown = [job for job in self.model.shown() if (job.state, job.queue) == (state, queue)]
        assert [job.id for job in found] == [job.id for job in shown]
        infos = {info.name: (info.ready, info.running, info.paused) for info in self.run(self.queue.queues())}
        for name in QUEUES:
            here = [job.state for job in self.model.jobs.values() if job.queue == name]
            numbers = here.count(JobState.READY), here.count(JobState.RUNNING), name in self.model.paused
            assert infos.get(name, (0, 0, False)) == numbers


async def as_tenant(tenant: str, step: Callable[[], Awaitable[Any]]) -> Any:
    """What a step gives for whoever belongs to this tenant."""
    with restored({"tenant_id": tenant}):
        return await step()
