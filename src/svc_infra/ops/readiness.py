"""Whether every part of an app can do its work now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any

from svc_infra.errors import SvcInfraError
from svc_infra.middleware.problem import as_problem
from svc_infra.obs.logging import logger
from svc_infra.obs.redact import printable, shown
from svc_infra.wiring import Wiring

CHECK_TIMEOUT_SECONDS = 2.0
CACHE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Check:
    """What one part said."""

    name: str
    seconds: float
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether the part can do its work."""
        return not self.error

    def as_json(self, *, expose: bool) -> dict[str, Any]:
        """The check as an answer shows it; what failed is told only where it may be."""
        shown_error = {"error": self.error} if self.error and expose else {}
        status = "ok" if self.passed else "failed"
        return {"name": self.name, "status": status, "ms": round(self.seconds * 1000, 1), **shown_error}


class Readiness:
    """Asks every part of an app at once and remembers the answers for a moment.

    However many probes come, the parts are asked once per `cache_seconds`, and never twice at a time.

    Args:
        wiring: The app's parts.
        check_timeout_seconds: Longest wait for one part; a part that takes longer has failed.
        cache_seconds: How long answers are remembered.
        clock: Seconds on a clock that does not go back.
    """

    def __init__(
        self,
        wiring: Wiring,
        *,
        check_timeout_seconds: float = CHECK_TIMEOUT_SECONDS,
        cache_seconds: float = CACHE_SECONDS,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.wiring = wiring
        self._check_timeout_seconds = check_timeout_seconds
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._asking: asyncio.Task[None] | None = None
        self._checks: list[Check] = []
        self._fresh_until = float("-inf")

    async def checks(self) -> list[Check]:
        """What each part says that has something to say."""
        if self._clock() >= self._fresh_until:
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask_all())
            await asyncio.shield(self._asking)  # others may wait for the same answers when this probe goes away
        return self._checks

    async def _ask_all(self) -> None:
        try:
            parts = self.wiring.parts.values()
            asked = [self._ask(part.name, part.check) for part in parts if part.check is not None]
            self._checks = await asyncio.gather(*asked)
            self._fresh_until = self._clock() + self._cache_seconds
        finally:
            self._asking = None

    async def _ask(self, name: str, check: Callable[[], Awaitable[None]]) -> Check:
        started = perf_counter()
        try:
            async with asyncio.timeout(self._check_timeout_seconds):
                await check()
        except Exception as error:  # noqa: BLE001 - whatever a check raises means that its part is not ready
            logger.warning("readiness.check_failed", part=name, error=error)
            return Check(name, perf_counter() - started, self._told(error))
        return Check(name, perf_counter() - started)

    def _told(self, error: Exception) -> str:
        if isinstance(error, TimeoutError) and not isinstance(error, SvcInfraError):
            return f"no answer within {self._check_timeout_seconds:g} seconds"
        return shown(printable(as_problem(error).detail))
