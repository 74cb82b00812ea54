"""The app that a command is about, and questions to its parts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from svc_infra.errors import ConfigurationError, SvcInfraError
from svc_infra.jobs import JobStore
from svc_infra.jobs.add import plan_of
from svc_infra.wiring import Wiring, wiring_of

App: TypeAlias = Annotated[
    str, typer.Argument(metavar="APP", help="The app as module:attribute, or a function there that makes it.")
]


def loaded(target: str) -> Any:
    """The app of this name.

    Raises:
        ConfigurationError: There is none.
    """
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise ConfigurationError(f"{target!r} names no app: write module:attribute, such as main:app.")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
        if callable(found) and not hasattr(found, "router"):
            found = found()
    except SvcInfraError:
        raise
    except Exception as error:
        raise ConfigurationError(f"{target} cannot be loaded: {type(error).__name__}: {error}.") from error
    if not hasattr(found, "router"):
        raise ConfigurationError(f"{target} is a {type(found).__name__} and no app.")
    return found


def wiring_with_jobs(app: Any, target: str) -> Wiring:
    """The wiring of an app that has jobs.

    Raises:
        ConfigurationError: It has none.
    """
    wiring = wiring_of(app)
    if "jobs" not in wiring.parts:
        raise ConfigurationError(f"{target} has no jobs: call add_jobs(app) in it.")
    return wiring


def idle(target: str) -> Wiring:
    """The wiring of an app that runs no job in this process."""
    wiring = wiring_with_jobs(loaded(target), target)
    plan = plan_of(wiring)
    plan.worker = plan.scheduler = False
    return wiring


def ask(wiring: Wiring, question: Callable[[JobStore], Awaitable[None]]) -> None:
    """Start the app's parts, ask its store of jobs, and stop them again."""

    async def asked() -> None:
        async with wiring.running():
            await question(wiring.get(JobStore))

    asyncio.run(asked())
