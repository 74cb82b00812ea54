"""The proof: random workflows whose steps fail and whose workers die, at any point of a step's end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from svc_infra.jobs import InMemoryJobQueue, Job, JobQueue, JobState, Task, task
from svc_infra.jobs.flows import Flow, Flows, FlowState, FlowStep, Workflow
from svc_infra.jobs.flows.ends import Ends
from svc_infra.jobs.flows.flow import Outcome, StepJob
from svc_infra.jobs.queue import Completion
from svc_infra.jobs.retry import Outage
from svc_infra.jobs.workers.attempt import Attempt
from svc_infra.jobs.workers.runner import Runner
from svc_infra.testing import FakeClock
from tests.jobs.flows.flowing import KINDS, Room, room

FLOWS = 8
STEPS = 6
ROUNDS = 1000
LEASE_SECONDS = 10.0


class Fate:
    """When a process dies; whatever it was about to do then never happens."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.deaths: Counter[str] = Counter()
        self.dead = asyncio.Event()

    async def passes(self, point: str) -> None:
        """Go on, or die here."""
        if self.dead.is_set() or self._chance.random() < 0.08:
            self.deaths[point] += not self.dead.is_set()
            self.dead.set()
            await asyncio.Event().wait()


class MortalQueue:
    """The way of a process that may die to its queue."""

    def __init__(self, queue: Any, fate: Fate) -> None:
        self._queue, self._fate = queue, fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def ack_many(self, completions: Sequence[Completion]) -> set[str]:
        await self._fate.passes("before ack")
        return set(await self._queue.ack_many(completions))

    async def fail(self, job: Job, **terms: Any) -> JobState:
        await self._fate.passes("before fail")
        state: JobState = await self._queue.fail(job, **terms)
        await self._fate.passes("after fail")
        return state


class MortalEnds(Ends):
    """The ends of steps as a process that may die tells of them."""

    fate: Fate

    async def _end(self, session: Any, step: StepJob, outcome: Outcome) -> None:
        await self.fate.passes("before the end")
        await super()._end(session, step, outcome)
        await self.fate.passes("before the commit")


class Storm:
    """Random flows, and processes that run their steps."""

    def __init__(self, made: Room, clock: FakeClock, chance: random.Random) -> None:
        self.made, self.clock, self.chance = made, clock, chance
        self.fate = Fate(chance)
        self.history: list[tuple[str, str]] = []
        self.broken: dict[str, int] = {}  # how many attempts at a step fail

        @task(name="work", max_attempts=2, retry={ValueError: 0.0})
        async def work(flow: str, step: str, inputs: list[str | None]) -> str:
            self.history.append((flow, step))
            await self.fate.passes("in the handler")
            if self.history.count((flow, step)) <= self.broken.get(f"{flow}/{step}", 0):
                raise ValueError(step)
            await asyncio.sleep(0)
            return step

        self.work: Task[..., Any] = work

    def workflow(self, flow_id: str) -> Workflow:
        """A random graph."""
        flow, steps = Workflow("storm"), []
        for number in range(self.chance.randint(1, STEPS)):
            name = f"s{number}"
            before = self.chance.sample(steps, min(len(steps), self.chance.randint(0, 3)))
            taken = before[: self.chance.randint(0, len(before))]
            on_failure: Any = self.chance.choice(["fail", "ignore", "ignore"])
            arguments = {"flow": flow_id, "step": name, "inputs": taken}
            steps.append(flow.add(self.work, arguments, name=name, after=before, on_failure=on_failure))
            if self.chance.random() < 0.25:
                self.broken[f"{flow_id}/{name}"] = self.chance.choice([1, 99])
        flow.on_complete(self.work, {"flow": flow_id, "step": "on_complete", "inputs": []})
        return flow

    async def process(self) -> None:
        """One worker process: it runs some jobs, or dies of it."""
        self.fate.dead.clear()
        limit = self.chance.randint(1, 4)
        jobs = await self.made.queue.reserve(worker_id="w", limit=limit, lease_seconds=LEASE_SECONDS)
        queue: Any = MortalQueue(self.made.queue, self.fate)
        wiring = self.made.wiring
        wiring.provide(JobQueue, queue)
        ends = wiring.get(Flows).ends = MortalEnds(self.made.queue, self.made.db, self.clock)
        ends.fate = self.fate
        settled: set[Attempt] = set()
        runner = Runner(queue, {"work": self.work}, outage=Outage(), default_timeout_seconds=None, settled=settled.add)
        telling = asyncio.create_task(runner.completions.run())
        attempts = [Attempt(job, self.work, wiring) for job in jobs]
        for attempt in attempts:
            attempt.running = asyncio.create_task(runner.run(attempt, draining=False))
        running = [attempt.running for attempt in attempts if attempt.running is not None]
        async with asyncio.timeout(30):
            while len(settled) < len(attempts) and not self.fate.dead.is_set():
                await asyncio.sleep(0.001)
        for one in (*running, telling):
            one.cancel()
        await asyncio.gather(*running, telling, return_exceptions=True)
        if self.fate.dead.is_set():
            self.clock.advance(LEASE_SECONDS + 1)

    async def run(self) -> list[Flow]:
        """Until every flow has ended, and its callback."""
        ids = [f"f{number}" for number in range(FLOWS)]
        for flow_id in ids:
            await self.workflow(flow_id).start(flow_id=flow_id, on=self.made.flows)
        sweeper = Ends(self.made.queue, self.made.db, self.clock)
        for number in range(ROUNDS):
            await self.process()
            if number % 5 == 0:
                self.clock.advance(31)
                await sweeper.sweep()
            flows = await self.made.flows.list(limit=FLOWS)
            if all(one.state is not FlowState.RUNNING for one in flows) and await self.idle():
                return flows
        raise AssertionError(f"not all flows have ended: {flows}")

    async def idle(self) -> bool:
        """Whether no job is left to do, nor the end of one to hear of."""
        steps = [step for number in range(FLOWS) for step in await self.made.flows.steps(f"f{number}")]
        return all(step.state != "enqueued" for step in steps)

    def check(self, flow: Flow, steps: dict[str, FlowStep]) -> None:
        """Whether a flow went as it must."""
        states = Counter(str(step.state) for name, step in steps.items() if name != "on_complete")
        assert set(states) <= {"succeeded", "failed", "ignored", "skipped"}
        assert (flow.succeeded, flow.failed, flow.ignored, flow.active) == (
            states["succeeded"],
            states["failed"],
            states["ignored"],
            0,
        )
        assert (flow.state is FlowState.SUCCEEDED) == (not states["failed"] and not states["skipped"])
        begun: dict[str, list[int]] = {}
        for at, (flow_id, name) in enumerate(self.history):
            if flow_id == flow.id:
                begun.setdefault(name, []).append(at)
        for name, step in steps.items():
            if step.state == "skipped":
                assert name not in begun
            for before in step.after:
                if name in begun and before in begun:
                    assert begun[before][-1] < begun[name][0], f"{before} ran after {name} had begun"
                if name in begun:
                    assert steps[before].state in ("succeeded", "ignored")
        ended = [begun[name][-1] for name in begun if name != "on_complete"]
        assert begun.get("on_complete", [10**9])[0] > max(ended, default=-1)


@pytest.mark.parametrize("kind", KINDS)
async def test_no_step_is_lost_stored_twice_or_begun_too_early(kind: str, request: pytest.FixtureRequest) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # shown when it fails
    clock, chance = FakeClock(), random.Random(seed)
    async with room(kind, request.getfixturevalue, clock=clock) as made:
        storm = Storm(made, clock, chance)
        stored: Counter[str] = Counter()
        if isinstance(made.queue, InMemoryJobQueue):
            insert = made.queue._insert
            made.queue._insert = lambda job: stored.update([job.id]) or insert(job)  # type: ignore
        flows = await storm.run()
        jobs = {job.id for job in await made.queue.list(limit=1000)}
        expected = set()
        for flow in flows:
            steps = await made.steps(flow.id)
            storm.check(flow, steps)
            expected |= {step.job_id for step in steps.values() if step.job_id is not None}
    assert jobs == expected
    assert set(stored.values()) <= {1}, "the end of a step has stored a job twice"
    assert storm.fate.deaths.total(), "no process has died: this shows nothing"
