"""Keeps processes running: starts them again when they die, and when the sources change."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from svc_infra.cli.app import REFUSED

BACKOFF_SECONDS = 0.5  # before the first restart of a process that died; doubles with each
BACKOFF_CAP_SECONDS = 30.0
STEADY_SECONDS = 60.0  # a process that lived so long begins with the first backoff again
WATCH_SECONDS = 0.5
WATCHED_LIMIT_FILES = 10_000
SKIPPED_FOLDERS = frozenset(["__pycache__", "node_modules", "site-packages"])

_log = logging.getLogger(__name__)


class Supervisor:
    """Runs one process for each command until a signal, which it passes on to them; each signal, so the second too.

    The processes are in sessions of their own: a terminal's Ctrl-C reaches them once, through the supervisor.

    Args:
        commands: What to run.
        watch: Restart them all when a Python file in this folder changes.
    """

    def __init__(self, commands: Sequence[Sequence[str]], *, watch: Path | None = None) -> None:
        self._commands = commands
        self._watch = watch
        self._running: set[asyncio.subprocess.Process] = set()
        self._stopping = asyncio.Event()
        self._restarting: set[asyncio.subprocess.Process] = set()
        self._status = 0

    async def run(self) -> int:
        """Run them; the exit status, 0 when all ended well after a signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._pass_on, number)
        watching = None if self._watch is None else asyncio.create_task(self._reload(self._watch))
        try:
            await asyncio.gather(*(self._keep(command) for command in self._commands))
        finally:
            if watching is not None:
                watching.cancel()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        return self._status

    def _pass_on(self, number: int) -> None:
        self._stopping.set()
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):  # it has just ended
                process.send_signal(number)

    async def _keep(self, command: Sequence[str]) -> None:
        backoff_seconds = BACKOFF_SECONDS
        while not self._stopping.is_set():
            started = time.monotonic()
            process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
            self._running.add(process)
            if self._stopping.is_set():
                self._pass_on(signal.SIGTERM)
            status = await process.wait()
            self._running.discard(process)
            if process in self._restarting:
                self._restarting.discard(process)
                continue
            refused = status == REFUSED and self._watch is None  # the next try would end the same way
            if self._stopping.is_set() or refused:
                if -status not in (signal.SIGINT, signal.SIGTERM):  # those came before it could take them
                    self._status = self._status or abs(status)
                self._pass_on(signal.SIGTERM)
                return
            if time.monotonic() - started >= STEADY_SECONDS:
                backoff_seconds = BACKOFF_SECONDS
            _log.error("jobs.process_died", extra={"status": status, "restart_seconds": backoff_seconds})
            await self._pause(backoff_seconds)
            backoff_seconds = min(2 * backoff_seconds, BACKOFF_CAP_SECONDS)

    async def _pause(self, seconds: float) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({stopping}, timeout=seconds)
        stopping.cancel()

    async def _reload(self, folder: Path) -> None:
        seen = await asyncio.to_thread(_times, folder)
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if (now := await asyncio.to_thread(_times, folder)) != seen:
                changed = sorted(path for path in seen.keys() | now.keys() if seen.get(path) != now.get(path))
                _log.info("jobs.reload", extra={"changed": [str(path) for path in changed[:10]]})
                seen = now
                self._restarting |= self._running
                for number in (signal.SIGTERM, signal.SIGINT):  # two: the jobs that run start over with what is new
                    self._send(number)


def _times(folder: Path) -> dict[Path, int]:
    """When each Python file was last changed; hidden folders and installed packages are left out."""
    times: dict[Path, int] = {}
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in SKIPPED_FOLDERS]
        for path in (Path(here, name) for name in files if name.endswith(".py")):
            if len(times) >= WATCHED_LIMIT_FILES:
                return times
            with suppress(FileNotFoundError):
                times[path] = path.stat().st_mtime_ns
    return times
