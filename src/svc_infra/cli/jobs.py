"""`svc-infra jobs ...`: running an app's jobs in a process of their own, and looking after them."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from svc_infra.errors import ConfigurationError, NotFoundError, SvcInfraError
from svc_infra.jobs import Job, JobState, JobStore
from svc_infra.jobs.add import plan_of, worker_of
from svc_infra.obs.logging import is_set_up, setup_logging
from svc_infra.wiring import Wiring, wiring_of

PIPED_COLUMNS = 200  # a table's width where there is no terminal

app = typer.Typer(name="jobs", help="Run an app's jobs, and look after them.", no_args_is_help=True)

App: TypeAlias = Annotated[
    str, typer.Argument(metavar="APP", help="The app as module:attribute, or a function there that makes it.")
]
Ids: TypeAlias = Annotated[list[str], typer.Argument(metavar="ID...", help="The jobs.")]
Limit: TypeAlias = Annotated[int, typer.Option(min=1, max=10_000, help="Show this many, newest first.")]
Queue: TypeAlias = Annotated[str | None, typer.Option(help="Only this queue.")]


@app.command()
def run(
    target: App,
    queues: Annotated[str, typer.Option(help="The queues to serve, separated by commas.")] = "default",
    concurrency: Annotated[int | None, typer.Option(min=1, help="Jobs at a time; JOBS_CONCURRENCY by default.")] = None,
    scheduler: Annotated[bool, typer.Option(help="Run the schedules too.")] = True,
) -> None:
    """Run jobs until SIGTERM or SIGINT; then finish those that run, or after a second signal hand them back at once."""
    loaded = loaded_app(target)
    wiring = _wiring(loaded, target)
    plan = plan_of(wiring)
    plan.worker, plan.scheduler = False, scheduler  # the worker of this process is the one below
    names = [name.strip() for name in queues.split(",") if name.strip()]
    if not names:
        raise ConfigurationError("--queues names no queue.")
    if not is_set_up():
        setup_logging(settings=wiring.settings)
    asyncio.run(_work(loaded, wiring, names, concurrency))


@app.command("list")
def list_(
    target: App,
    state: Annotated[JobState | None, typer.Option(help="Only those in this state.")] = None,
    queue: Queue = None,
    limit: Limit = 50,
) -> None:
    """List jobs, newest first."""

    async def show(store: JobStore) -> None:
        _print_jobs(await store.list(state=state, queue=queue, limit=limit))

    _ask(_idle(target), show)


@app.command("dead-letter")
def dead_letter(target: App, queue: Queue = None, limit: Limit = 50) -> None:
    """List the jobs that ran out of attempts, and why."""

    async def show(store: JobStore) -> None:
        _print_jobs(await store.list(state=JobState.DEAD, queue=queue, limit=limit))

    _ask(_idle(target), show)


@app.command()
def show(target: App, job_id: Annotated[str, typer.Argument(metavar="ID", help="The job.")]) -> None:
    """Show everything about one job."""

    async def show_one(store: JobStore) -> None:
        job = await store.get(job_id)
        if job is None:
            raise NotFoundError("Job", job_id)
        _print(["Field", "Value"], [(field.name, _text(getattr(job, field.name))) for field in fields(Job)])

    _ask(_idle(target), show_one)


@app.command()
def retry(target: App, job_ids: Ids) -> None:
    """Run dead or cancelled jobs again, with their attempts counted from zero."""
    _each(target, job_ids, "waits again", lambda store, job_id: store.retry(job_id))


@app.command()
def cancel(target: App, job_ids: Ids) -> None:
    """Cancel jobs that wait."""
    _each(target, job_ids, "is cancelled", lambda store, job_id: store.cancel(job_id))


@app.command()
def purge(
    target: App,
    older_than_seconds: Annotated[
        float | None, typer.Option(min=0, help="Finished longer ago than this; JOBS_RETENTION_SECONDS by default.")
    ] = None,
) -> None:
    """Delete finished jobs; the dead letter is kept."""
    wiring = _idle(target)
    age_seconds = wiring.settings.jobs.retention_seconds if older_than_seconds is None else older_than_seconds

    async def delete(store: JobStore) -> None:
        deleted = 0
        while batch := await store.purge(older_than_seconds=age_seconds):
            deleted += batch
        print(f"{deleted} jobs deleted.")

    _ask(wiring, delete)


@app.command()
def stats(target: App) -> None:
    """Count the jobs in each state."""

    async def count(store: JobStore) -> None:
        found = await store.stats()
        rows = [(str(state), str(found.counts.get(state, 0))) for state in JobState]
        _print(["State", "Jobs"], [*rows, ("oldest due job waits", f"{found.oldest_due_age_seconds:.1f} s")])

    _ask(_idle(target), count)


def _each(target: str, job_ids: list[str], done: str, change: Callable[[JobStore, str], Awaitable[None]]) -> None:
    async def change_each(store: JobStore) -> None:
        for job_id in job_ids:
            await change(store, job_id)
            print(f"Job {job_id} {done}.")

    _ask(_idle(target), change_each)


def _ask(wiring: Wiring, question: Callable[[JobStore], Awaitable[None]]) -> None:
    async def ask() -> None:
        async with wiring.running():
            await question(wiring.get(JobStore))

    asyncio.run(ask())


async def _work(loaded: Any, wiring: Wiring, queues: list[str], concurrency: int | None) -> None:
    async with loaded.router.lifespan_context(loaded):
        worker = worker_of(wiring, queues=queues, concurrency=concurrency)
        signals: list[int] = []

        def stop(number: int) -> None:
            worker.stop(at_once=bool(signals))
            signals.append(number)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            await worker.run()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def _idle(target: str) -> Wiring:
    """The wiring of an app that runs no job in this process."""
    wiring = _wiring(loaded_app(target), target)
    plan = plan_of(wiring)
    plan.worker = plan.scheduler = False
    return wiring


def _wiring(loaded: Any, target: str) -> Wiring:
    wiring = wiring_of(loaded)
    if "jobs" not in wiring.parts:
        raise ConfigurationError(f"{target} has no jobs: call add_jobs(app) in it.")
    return wiring


def loaded_app(target: str) -> Any:
    """The app that a command line names.

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


def _print_jobs(jobs: list[Job]) -> None:
    rows = [
        (
            job.id,
            job.name,
            job.queue,
            str(job.state),
            f"{job.attempts}/{job.max_attempts}",
            _text(job.created_at),
            _text(job.available_at),
            (job.last_error or "").partition("\n")[0],
        )
        for job in jobs
    ]
    _print(["ID", "Task", "Queue", "State", "Attempts", "Created", "Due", "Last error"], rows)


def _print(columns: list[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS).print(table)


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case datetime():
            return value.isoformat(sep=" ", timespec="seconds")
        case Mapping() | list():
            return orjson.dumps(value).decode()
        case _:
            return str(value)
