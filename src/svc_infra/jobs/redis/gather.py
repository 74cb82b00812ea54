"""Many callers of one event loop, one command: what comes at the same time goes together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from svc_infra.errors import UnavailableError

T = TypeVar("T")
R = TypeVar("R")

TOGETHER_LIMIT = 1000
"""How many items of different callers go together; those of one caller always do."""
UNDER_WAY_LIMIT = 2
"""How many commands are under way at once; what comes meanwhile is gathered."""
WAITING_LIMIT = 100_000
"""How many items wait to be sent; more are refused."""


class Gatherer(Generic[T, R]):
    """Sends the items of several callers in one command, and gives each the answers to its own.

    An item waits for nothing but the current step of the event loop while fewer than two commands are under way.

    Args:
        send: Sends items, and gives an answer to each of them, in their order.
    """

    def __init__(self, send: Callable[[list[T]], Awaitable[Sequence[R]]]) -> None:
        self._send = send
        self._waiting: list[tuple[Sequence[T], asyncio.Future[Sequence[R]]]] = []
        self._items = 0
        self._under_way: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def __call__(self, items: Sequence[T]) -> Sequence[R]:
        """The answers to these items.

        Raises:
            UnavailableError: Too many items wait already.
        """
        if self._items >= WAITING_LIMIT:
            raise UnavailableError("Too many jobs wait to be sent to Redis.", retry_after_seconds=1)
        loop = asyncio.get_running_loop()
        answers: asyncio.Future[Sequence[R]] = loop.create_future()
        self._waiting.append((items, answers))
        self._items += len(items)
        if not self._scheduled and len(self._under_way) < UNDER_WAY_LIMIT:
            self._scheduled = True
            loop.call_soon(self._start)
        return await answers

    def _start(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._under_way) < UNDER_WAY_LIMIT:
            callers = [self._waiting.pop(0)]
            count = len(callers[0][0])
            while self._waiting and count + len(self._waiting[0][0]) <= TOGETHER_LIMIT:
                callers.append(self._waiting.pop(0))
                count += len(callers[-1][0])
            self._items -= count
            task = asyncio.create_task(self._serve(callers))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._start()

    async def _serve(self, callers: list[tuple[Sequence[T], asyncio.Future[Sequence[R]]]]) -> None:
        try:
            answers = await self._send([item for items, _ in callers for item in items])
        except BaseException as error:
            for _, waiter in callers:
                if not waiter.done():
                    waiter.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        first = 0
        for items, waiter in callers:
            if not waiter.done():  # a caller that was cancelled asks no more
                waiter.set_result(answers[first : first + len(items)])
            first += len(items)
