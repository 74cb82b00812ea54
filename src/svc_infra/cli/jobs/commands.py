"""`svc-infra jobs ...`: running an app's jobs in processes of their own, and looking after them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Annotated, TypeAlias

import typer
from rich.live import Live

from svc_infra.cli.jobs import dead_letter
from svc_infra.cli.jobs.run import run
from svc_infra.cli.tables import console, print_jobs, print_table, table, text
from svc_infra.cli.targets import App, ask, idle
from svc_infra.errors import NotFoundError
from svc_infra.jobs import Job, JobState, JobStore
from svc_infra.jobs.queue import QueueInfo

PURGE_BATCH_JOBS = 1000
REFRESH_SECONDS = 1.0
LOOK_SHARE = 9.0  # how much longer than a look `top` rests after it: to count many jobs keeps the server busy

app = typer.Typer(name="jobs", help="Run an app's jobs, and look after them.", no_args_is_help=True)
app.command()(run)
app.add_typer(dead_letter.app, name="dead-letter")

Ids: TypeAlias = Annotated[list[str], typer.Argument(metavar="ID...", help="The jobs.")]
Queues: TypeAlias = Annotated[list[str], typer.Argument(metavar="QUEUE...", help="The queues.")]


@app.command("list")
def list_(
    target: App,
    state: Annotated[JobState | None, typer.Option(help="Only those in this state.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only this queue.")] = None,
    name: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    before: Annotated[str | None, typer.Option(metavar="ID", help="Only those older than this job.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show this many, newest first.")] = 50,
) -> None:
    """List jobs, newest first."""

    async def show(store: JobStore) -> None:
        found = store.list(state=state, queue=queue, name=name, tenant=tenant, before=before, limit=limit)
        print_jobs(await found)

    ask(idle(target), show)


@app.command()
def show(target: App, job_id: Annotated[str, typer.Argument(metavar="ID", help="The job.")]) -> None:
    """Show everything about one job."""

    async def show_one(store: JobStore) -> None:
        job = await store.get(job_id)
        if job is None:
            raise NotFoundError("Job", job_id)
        print_table(["Field", "Value"], [(field.name, text(getattr(job, field.name))) for field in fields(Job)])

    ask(idle(target), show_one)


@app.command()
def retry(target: App, job_ids: Ids) -> None:
    """Run dead or cancelled jobs again, with their attempts counted from zero."""
    _each(target, "Job", job_ids, "waits again", lambda store, job_id: store.retry(job_id))


@app.command()
def cancel(target: App, job_ids: Ids) -> None:
    """Cancel jobs: those that wait at once, those that run when their worker sends its next heartbeat."""
    _each(target, "Job", job_ids, "is cancelled", lambda store, job_id: store.cancel(job_id))


@app.command()
def pause(target: App, queues: Queues) -> None:
    """Let no worker begin jobs of these queues; those that run go on."""
    _each(target, "Queue", queues, "is paused", lambda store, queue: store.pause(queue))


@app.command()
def resume(target: App, queues: Queues) -> None:
    """Let workers begin jobs of these queues again."""
    _each(target, "Queue", queues, "goes on", lambda store, queue: store.resume(queue))


@app.command()
def purge(
    target: App,
    older_than_seconds: Annotated[
        float | None, typer.Option(min=0, help="Finished longer ago than this; JOBS_RETENTION_SECONDS by default.")
    ] = None,
) -> None:
    """Delete finished jobs; the dead letter is kept."""
    wiring = idle(target)
    age_seconds = wiring.settings.jobs.retention_seconds if older_than_seconds is None else older_than_seconds

    async def delete(store: JobStore) -> None:
        deleted = 0
        while batch := await store.purge(older_than_seconds=age_seconds, limit=PURGE_BATCH_JOBS):
            deleted += batch
        print(f"{deleted} jobs deleted.")

    ask(wiring, delete)


@app.command()
def stats(target: App) -> None:
    """Count the jobs in each state, and show each queue."""

    async def count(store: JobStore) -> None:
        found = await store.stats()
        rows = [(str(state), str(found.counts.get(state, 0))) for state in JobState]
        print_table(["State", "Jobs"], [*rows, ("oldest due job waits", f"{found.oldest_due_age_seconds:.1f} s")])
        if queues := await store.queues():
            print()
            print_table(QUEUE_COLUMNS, [_queue_row(one) for one in queues])

    ask(idle(target), count)


@app.command()
def top(
    target: App,
    seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks.")] = REFRESH_SECONDS,
    looks: Annotated[int | None, typer.Option(min=1, help="Stop after so many; by default with Ctrl-C.")] = None,
) -> None:
    """Watch the queues; where there is no terminal, print them once."""
    wiring = idle(target)
    count = 1 if looks is None and not sys.stdout.isatty() else looks

    async def watch(store: JobStore) -> None:
        seen, seen_at, number = 0, 0.0, 0
        with Live(console=console(), auto_refresh=False) as live:
            while True:
                began = time.monotonic()
                stats, queues, now = await store.stats(), await store.queues(), time.monotonic()
                done = stats.counts.get(JobState.SUCCEEDED, 0) + stats.forgotten
                rate = max(0.0, (done - seen) / (now - seen_at)) if number else 0.0
                counts = " · ".join(f"{stats.counts.get(state, 0):,} {state}" for state in JobState)
                shown = table(QUEUE_COLUMNS, [_queue_row(one) for one in queues])
                shown.title, shown.title_justify = f"{counts} · {rate:,.0f}/s", "left"
                live.update(shown, refresh=True)
                seen, seen_at, number = done, now, number + 1
                if number == count:
                    return
                await asyncio.sleep(max(seconds, LOOK_SHARE * (now - began)))

    try:
        ask(wiring, watch)
    except KeyboardInterrupt:
        raise typer.Exit from None


QUEUE_COLUMNS = ("Queue", "Ready", "Running", "Oldest due waits", "Paused", "Concurrency", "Rate")


def _queue_row(one: QueueInfo) -> tuple[str, ...]:
    return (
        one.name,
        f"{one.ready:,}",
        f"{one.running:,}",
        f"{one.oldest_due_age_seconds:.1f} s",
        "paused" if one.paused else "",
        text(one.concurrency),
        "" if one.rate is None else f"{one.rate} per {one.period_seconds:g} s",
    )


def _each(
    target: str, kind: str, names: list[str], done: str, change: Callable[[JobStore, str], Awaitable[None]]
) -> None:
    async def change_each(store: JobStore) -> None:
        for name in names:
            await change(store, name)
            print(f"{kind} {name} {done}.")

    ask(idle(target), change_each)
