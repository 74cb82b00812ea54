"""`svc-infra jobs run`: workers in processes of their own."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from svc_infra.cli.jobs.supervisor import Supervisor
from svc_infra.cli.targets import App, loaded, wiring_with_jobs
from svc_infra.config import Environment
from svc_infra.errors import ConfigurationError
from svc_infra.jobs.add import plan_of, worker_of
from svc_infra.obs.logging import is_set_up, setup_logging
from svc_infra.wiring import Wiring

PROCESSES_LIMIT = 256
ORPHAN_CHECK_SECONDS = 1.0


def run(
    target: App,
    queues: Annotated[
        str | None, typer.Option(help="The queues to serve, separated by commas; by default those of the app's tasks.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Jobs at a time; JOBS_CONCURRENCY by default.")] = None,
    processes: Annotated[int, typer.Option(min=1, max=PROCESSES_LIMIT, help="How many processes, each of that.")] = 1,
    scheduler: Annotated[bool, typer.Option(help="Run the schedules too.")] = True,
    reload: Annotated[
        bool | None, typer.Option(help="Start again when a source file changes; by default where APP_ENV is local.")
    ] = None,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run jobs until SIGTERM or SIGINT; then finish those that run, or after a second signal hand them back at once."""
    names = None if queues is None else [name.strip() for name in queues.split(",") if name.strip()]
    if names == []:
        raise ConfigurationError("--queues names no queue.")
    app = loaded(target)
    wiring = wiring_with_jobs(app, target)
    if not is_set_up():
        setup_logging(settings=wiring.settings)
    watched = wiring.settings.app.env is Environment.LOCAL if reload is None else reload
    if parent is None and (processes > 1 or watched):
        command = [sys.executable, "-m", "svc_infra.cli", "jobs", "run", target, "--parent", str(os.getpid())]
        command += ["--queues", ",".join(names)] if names else []
        command += ["--concurrency", str(concurrency)] if concurrency else []
        first = command if scheduler else [*command, "--no-scheduler"]
        commands = [first, *[[*command, "--no-scheduler"]] * (processes - 1)]
        raise typer.Exit(asyncio.run(Supervisor(commands, watch=Path.cwd() if watched else None).run()))
    plan = plan_of(wiring)
    plan.worker, plan.scheduler = False, scheduler  # the worker of this process is the one below
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_work(app, wiring, names, concurrency, parent))


def _new_loop() -> asyncio.AbstractEventLoop:
    """The loop that a server has as well: uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _work(
    app: Any, wiring: Wiring, queues: list[str] | None, concurrency: int | None, parent: int | None
) -> None:
    async with app.router.lifespan_context(app):
        worker = worker_of(wiring, queues=queues, concurrency=concurrency)
        gc.collect()
        gc.freeze()  # the app lives as long as the process: collections need not go through it again and again
        signals: list[int] = []

        def stop(number: int) -> None:
            worker.stop(at_once=bool(signals))
            signals.append(number)

        def stop_as_an_orphan() -> None:
            if os.getppid() == parent:
                loop.call_later(ORPHAN_CHECK_SECONDS, stop_as_an_orphan)
            else:
                worker.stop()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        if parent is not None:
            stop_as_an_orphan()
        try:
            await worker.run()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
