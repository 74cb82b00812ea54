"""What a process of `Processes` runs: functions by name, one at a time, until its parent is gone."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from queue import SimpleQueue
from typing import Any, BinaryIO

import orjson

from svc_infra.errors import ConfigurationError
from svc_infra.jobs.arguments import storable
from svc_infra.jobs.job import result_text
from svc_infra.jobs.retry import verdict
from svc_infra.jobs.task import Task
from svc_infra.jobs.workers.processes import BEGINS, HEADER_BYTES
from svc_infra.obs.context import restored
from svc_infra.obs.logging import LineHandler, adopt_libraries


def main(log_setup: Mapping[str, Any] | None) -> None:
    """Answer requests on standard input; what functions print goes to standard error.

    Args:
        log_setup: How the worker writes its logs: `level`, and `as_json`.
    """
    if log_setup is not None:
        logging.getLogger().setLevel(log_setup["level"])
        logging.getLogger().addHandler(LineHandler(as_json=log_setup["as_json"]))
        adopt_libraries()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal's Ctrl-C is for the worker, which knows how to stop
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    waiting: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read, args=(requests, waiting), daemon=True).start()

    def say(message: bytes) -> None:
        answers.write(message)
        answers.flush()

    while True:
        answer = orjson.dumps(_answer(orjson.loads(waiting.get()), lambda: say(BEGINS)))
        say(len(answer).to_bytes(HEADER_BYTES) + answer)


def found(module: str, name: str) -> Any:
    """The task or function of this name.

    Raises:
        ConfigurationError: There is none that another process could find.
    """
    try:
        thing: Any = import_module(module)
        for part in name.split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError):
        raise ConfigurationError(f"{module}.{name} cannot be found by another process.") from None
    return thing


def _read(requests: BinaryIO, waiting: SimpleQueue[bytes]) -> None:
    while len(header := requests.read(HEADER_BYTES)) == HEADER_BYTES:
        waiting.put(requests.read(int.from_bytes(header)))
    os._exit(0)  # the worker is gone, and with it whoever wanted what runs here


def _answer(request: dict[str, Any], begins: Callable[[], None]) -> dict[str, Any]:
    task: Any = None
    with restored(request["context"], job_id=request["job_id"]):
        try:
            try:
                task = found(request["module"], request["name"])
            finally:
                begins()
            task = task if isinstance(task, Task) else Task(task, request["task"], cpu=True)
            result = storable(task.name, task.function(**task.arguments.decode(request["payload"])))
            result_text(result)
        except BaseException as error:  # noqa: BLE001 - whatever a function raises is told to the worker
            policy = task.retry if isinstance(task, Task) else None
            return {"ruled": asdict(verdict(error, request["attempt"], policy))}
    return {"result": result}
