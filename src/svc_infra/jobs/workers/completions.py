"""Tells the queue of many attempts that succeeded at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

from svc_infra.errors import DeadlineExceededError, UnavailableError
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.queue import Completion, JobQueue, JobStore
from svc_infra.jobs.retry import Outage
from svc_infra.jobs.workers.attempt import Attempt

COMPLETIONS_LIMIT_JOBS = 1000
"""How many one call tells of at most; a worker whose queue is further behind than that claims nothing."""


class _Ended(NamedTuple):
    attempt: Attempt
    completion: Completion


class Completions:
    """What has succeeded and is not yet told: what ends while one call is under way goes out together in the next.

    So a lone completion waits for nothing, and a busy worker needs one round trip for many. An attempt counts as
    done when the queue has said so, which is when it is durable.

    Args:
        queue: Whom to tell.
        outage: Tells it again and again while the queue does not answer.
        settled: Called for each attempt whose end the queue knows, with the outcome.
        failed: Called for one whose completion the queue cannot store, with the reason.
    """

    def __init__(
        self,
        queue: JobQueue,
        outage: Outage,
        settled: Callable[[Attempt, str], None],
        failed: Callable[[Attempt, Exception], Awaitable[None]],
    ) -> None:
        self._queue = queue
        self._outage = outage
        self._settled = settled
        self._failed = failed
        self._ended: list[_Ended] = []
        self._news = asyncio.Event()
        self.closed = False  # nobody tells of what is added now

    @property
    def behind(self) -> bool:
        """Whether so many wait that nothing more should be begun."""
        return len(self._ended) >= COMPLETIONS_LIMIT_JOBS

    def add(self, attempt: Attempt, result: Any) -> None:
        """Tell of this one soon."""
        attempt.completing = True
        self._ended.append(_Ended(attempt, Completion(attempt.job, result)))
        self._news.set()

    async def run(self) -> None:
        """Tell of what is added, until cancelled."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._ended:
                    batch, self._ended = self._ended[:COMPLETIONS_LIMIT_JOBS], self._ended[COMPLETIONS_LIMIT_JOBS:]
                    await self._tell(batch)
        finally:
            self.closed = True

    async def _tell(self, batch: list[_Ended]) -> None:
        asked = 0

        def ask() -> Awaitable[set[str]]:
            nonlocal asked
            asked += 1
            return self._queue.ack_many([one.completion for one in batch])

        try:
            refused = await self._outage.through(ask)
            if refused and asked > 1:
                refused = {one.attempt.job.id for one in batch if not await self._was_told(one.attempt.job, refused)}
        except (UnavailableError, DeadlineExceededError):
            for one in batch:
                self._settled(one.attempt, "abandoned")
        except Exception as error:  # noqa: BLE001 - one of them cannot be stored: find it, and fail it
            if len(batch) == 1:
                await self._failed(batch[0].attempt, error)
            else:
                for one in batch:
                    await self._tell([one])
        else:
            for one in batch:
                self._settled(one.attempt, "stale" if one.attempt.job.id in refused else "succeeded")

    async def _was_told(self, job: Job, refused: set[str]) -> bool:
        """Whether it was stored, or by an earlier call whose answer was lost."""
        if job.id not in refused:
            return True
        kept = await self._outage.through(lambda: cast(JobStore, self._queue).get(job.id))
        return kept is not None and kept.state is JobState.SUCCEEDED and kept.attempts == job.attempts
