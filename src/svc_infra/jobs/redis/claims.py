"""How workers get jobs from Redis: by asking, and by waiting for them."""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass, replace
from typing import Any

from svc_infra.errors import SvcInfraError, UnavailableError
from svc_infra.jobs.backends.checked import LEASE_ENDED, SWEEP_LIMIT_JOBS
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.redis.hashes import duration, moment_of, read_job
from svc_infra.jobs.redis.kept import KeptConnection
from svc_infra.jobs.redis.scripts import Scripts
from svc_infra.redis import translating

BLOCK_SECONDS = 2.0
"""The longest that one blocking command of `wait` lasts; less than any sensible socket timeout."""
VOID_SECONDS = 60
"""How long a claim that was given up is forbidden to be made."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a worker claims; `room` is how many more jobs it would have taken."""

    worker_id: str
    queues: tuple[str, ...]
    lease_seconds: float
    room: int

    def serve_like(self, other: Terms) -> bool:
        """Whether the same worker claims from the same queues."""
        return (self.worker_id, self.queues) == (other.worker_id, other.queues)


class Claims:
    """Claims jobs for a worker, also while that waits.

    Args:
        scripts: The queue's steps.
        max_crashes, max_finished: As for `RedisJobQueue`.
    """

    def __init__(self, scripts: Scripts, max_crashes: int, max_finished: int) -> None:
        self._scripts = scripts
        self._max_crashes = max_crashes
        self._max_finished = max_finished
        self._terms = Terms("", ("default",), 0.0, 0)  # of the last claim
        self._ahead: list[Job] = []  # what `wait` has claimed for the next `claim`
        self._next: tuple[float, str] | None = None  # when more comes by itself, in the loop's time, and in which queue
        self._waiting_on = KeptConnection(scripts.client)
        self._aside: set[asyncio.Task[None]] = set()

    async def close(self) -> list[Job]:
        """Give the connection back; what was claimed and nobody took."""
        ahead, self._ahead = self._ahead, []
        await asyncio.gather(*self._aside)
        await self._waiting_on.close()
        return ahead

    async def claim(self, worker_id: str, queues: list[str], limit: int, lease_seconds: float) -> list[Job]:
        """Claim up to `limit` jobs, or take those that `wait` has claimed."""
        terms, ahead = Terms(worker_id, tuple(queues), lease_seconds, limit), self._ahead
        if ahead and terms.serve_like(self._terms):
            jobs, self._ahead = ahead[:limit], ahead[limit:]
        else:
            token = secrets.token_hex(16)
            jobs = self._read(terms, token, await self._scripts.run("reserve", *self.arguments(terms, token)))
        self._terms = replace(terms, room=limit - len(jobs))
        return jobs

    async def wait(self, timeout_seconds: float) -> None:
        """See `JobQueue.wait`. One waiting worker of the served queues is woken for each job, in any process.

        What it is woken for it claims in the same round trip, as `claim` did last; the next `claim` gives that. When a
        job becomes due or a lease ends, the waiting workers wake each other: the server would end the wait at the next
        of its ticks, as much as 100 ms late.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_seconds
        alarm = None if self._next is None else loop.call_at(self._next[0], self._run_aside, "wake", self._next[1])
        woken = False
        try:
            while not woken and (left := end - loop.time()) > 0:
                block = max(0.01, min(left, BLOCK_SECONDS))
                try:
                    async with asyncio.timeout(block + 1.0):
                        woken = await self._look_out(block)
                except (UnavailableError, TimeoutError) as error:  # the next `claim` tells the worker
                    _log.warning("jobs.wait_failed", exc_info=error)
                    await asyncio.sleep(max(0.0, end - loop.time()))
        finally:
            if alarm is not None:
                alarm.cancel()

    async def _look_out(self, block_seconds: float) -> bool:
        scripts, terms = self._scripts, self._terms
        keys = [f"{scripts.prefix}:wake:{name}" for name in terms.queues]
        if terms.room < 1 or self._ahead or not scripts.server_time or not self._waiting_on.can_ask:
            with translating():
                return bool(await scripts.client.blpop(keys, timeout=block_seconds))
        token = secrets.token_hex(16)
        void = f"{scripts.prefix}:void:{token}"
        claim = scripts.command("reserve", *self.arguments(terms, token, void))
        try:
            with translating():
                woken, claimed = await self._waiting_on.ask(("BLPOP", *keys, block_seconds), claim)
        except BaseException:  # cancelled or cut off: the server may have claimed all the same
            self._run_aside("abandon", token, VOID_SECONDS, self._max_finished)
            raise
        self._ahead += self._read(terms, token, claimed)
        return bool(woken or self._ahead)

    def arguments(self, terms: Terms, token: str, void: str = "") -> tuple[str | int, ...]:
        """What the script "reserve" is given; `void` is the key that forbids this claim where it is set."""
        bounds = (SWEEP_LIMIT_JOBS, self._max_crashes, self._max_finished)
        lease = duration(terms.lease_seconds)
        return (terms.worker_id, terms.room, lease, token, *bounds, LEASE_ENDED, void, *terms.queues)

    def _read(self, terms: Terms, token: str, answer: Any) -> list[Job]:
        now, claimed, lost, wait, queue = answer
        self._next = (asyncio.get_running_loop().time() + int(wait) / 1e6, queue.decode()) if wait else None
        for job_id in lost:
            _log.error("jobs.lost", extra={"job_id": job_id.decode(), "reason": "its hash is gone from Redis"})
        claim = {
            "state": JobState.RUNNING,
            "worker_id": terms.worker_id,
            "started_at": moment_of(now),
            "lease_expires_at": moment_of(int(now) + duration(terms.lease_seconds)),
        }
        return [
            read_job(job_id.decode(), fields, claim | {"token": f"{token}-{number.decode()}"})
            for job_id, number, fields in claimed
        ]

    def _run_aside(self, name: str, *arguments: str | int) -> None:
        """Run a script for which nobody waits."""
        task = asyncio.create_task(self._ran_aside(name, *arguments))
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    async def _ran_aside(self, name: str, *arguments: str | int) -> None:
        try:
            await self._scripts.run(name, *arguments)
        except (SvcInfraError, asyncio.CancelledError) as error:  # leases end, and workers look again: nothing is lost
            _log.warning("jobs.step_failed", exc_info=error, extra={"step": name})
