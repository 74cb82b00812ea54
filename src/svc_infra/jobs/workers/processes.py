"""Functions that keep a processor busy, in processes of their own."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson

from svc_infra.jobs.job import Job
from svc_infra.jobs.retry import Fate, Verdict
from svc_infra.jobs.task import Task
from svc_infra.obs.logging import LineHandler
from svc_infra.obs.metrics import metrics

HEADER_BYTES = 4  # before each message: its length, big-endian
BEGINS = bytes(HEADER_BYTES)  # says that the function is found, and starts now
START_SECONDS = 60.0  # that a process has to import the function's module
MESSAGE_LIMIT_BYTES = 8 * 1024 * 1024
BOOT = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from svc_infra.jobs.workers.child import main
main(json.loads(sys.argv[2]))
"""

_log = logging.getLogger(__name__)


class Ruled(Exception):  # noqa: N818 - carries what has been decided elsewhere
    """A function in another process raised; what becomes of its job was decided there, where the error is."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.error)
        self.verdict = verdict


class ProcessDiedError(ChildProcessError):
    """The process that ran a function ended before it had an answer."""


class Processes:
    """Processes that each run one function at a time and are kept for the next; one that dies is replaced.

    They are told what to run by name and in JSON. A call that is cancelled kills its process.

    Args:
        limit: How many there are at most; one per processor when left out.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._free = asyncio.Semaphore(limit or os.cpu_count() or 1)
        self._idle: list[asyncio.subprocess.Process] = []

    async def call(self, job: Job, task: Task[..., Any], begins: Callable[[], None]) -> Any:
        """Run a task's function for a job.

        Args:
            begins: Called when a process has found the function and starts it.

        Raises:
            Ruled: The function raised.
            ProcessDiedError: The process died.
        """
        async with self._free:
            child = await self._take()
            try:
                answer = await _ask(child, _request(job, task), begins)
            except (OSError, EOFError):
                await _end(child)
                metrics.increment("jobs.process_crashes", task=task.name)
                _log.error("job.process_crashed", extra={"task": task.name, "status": child.returncode})
                raise ProcessDiedError(f"The process that ran it {_died(child.returncode)}.") from None
            except BaseException:
                await _end(child)
                raise
            self._idle.append(child)
        if "ruled" in answer:
            ruled = answer["ruled"]
            raise Ruled(Verdict(ruled["error"], Fate(ruled["fate"]), ruled["delay_seconds"], ruled["fingerprint"]))
        return answer["result"]

    async def close(self) -> None:
        """End the idle ones."""
        while self._idle:
            await _end(self._idle.pop())

    async def _take(self) -> asyncio.subprocess.Process:
        while self._idle:
            child = self._idle.pop()
            if child.returncode is None:
                return child
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            BOOT,
            orjson.dumps([path for path in sys.path if isinstance(path, str)]).decode(),
            orjson.dumps(_log_setup()).decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )


def _log_setup() -> dict[str, Any] | None:
    """How this process writes its logs, for its children to do the same; None where that is not our doing."""
    root = logging.getLogger()
    ours = [handler for handler in root.handlers if isinstance(handler, LineHandler)]
    return {"level": root.level, "as_json": ours[0].as_json} if ours else None


def _request(job: Job, task: Task[..., Any]) -> bytes:
    function = task.function
    return orjson.dumps(
        {
            "module": function.__module__,
            "name": function.__qualname__,
            "task": task.name,
            "payload": dict(job.payload),
            "attempt": job.attempts,
            "job_id": job.id,
            "context": dict(job.context),
        }
    )


async def _ask(child: asyncio.subprocess.Process, request: bytes, begins: Callable[[], None]) -> dict[str, Any]:
    if child.stdin is None or child.stdout is None:
        raise EOFError
    child.stdin.write(len(request).to_bytes(HEADER_BYTES) + request)
    await child.stdin.drain()
    async with asyncio.timeout(START_SECONDS):
        await child.stdout.readexactly(len(BEGINS))
    begins()
    length = int.from_bytes(await child.stdout.readexactly(HEADER_BYTES))
    if length > MESSAGE_LIMIT_BYTES:
        raise EOFError
    answer: dict[str, Any] = orjson.loads(await child.stdout.readexactly(length))
    return answer


async def _end(child: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        if child.returncode is None:
            os.kill(child.pid, signal.SIGKILL)  # `child.kill` would take its status from whoever waits for that
    if child.stdin is not None:
        child.stdin.close()
    await child.wait()


def _died(status: int | None) -> str:
    if status is None or status >= 0:
        return f"ended with status {status}"
    return f"was ended by {signal.Signals(-status).name}"
