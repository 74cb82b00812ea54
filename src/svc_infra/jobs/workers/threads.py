"""Functions that are no coroutines, each in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any


def start_thread(function: Callable[[], Any]) -> asyncio.Future[tuple[bool, Any]]:
    """Run a function in a thread of its own; the future tells whether it returned, and what it returned or raised.

    A daemon thread: one that hangs must not keep a process alive whose worker has given it up.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[bool, Any]] = loop.create_future()
    context = copy_context()

    def run() -> None:
        try:
            ended = (True, context.run(function))
        except BaseException as error:  # noqa: BLE001 - raised again where the attempt awaits it
            ended = (False, error)
        with suppress(RuntimeError):  # the loop is closed: the worker has given the attempt up
            loop.call_soon_threadsafe(future.set_result, ended)

    threading.Thread(target=run, name="svc-infra-job", daemon=True).start()
    return future
