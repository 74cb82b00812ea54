"""How a waiting worker of this process learns that there may be work."""

from __future__ import annotations

import asyncio


class Wakeup:
    """Wakes whoever waits in this process; a notice that comes while nobody waits is kept for the next who does."""

    def __init__(self) -> None:
        self._noticed = False
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all who wait."""
        self._noticed = not self._waiting
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout_seconds: float) -> None:
        """Wait for a notice, at most this long."""
        if self._noticed:
            self._noticed = False
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_seconds)
        finally:
            self._waiting.discard(waiter)
