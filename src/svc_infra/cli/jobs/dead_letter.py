"""`svc-infra jobs dead-letter ...`: the jobs that ran out of attempts."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Annotated, Any, TypeAlias

import orjson
import typer

from svc_infra.cli.tables import print_jobs, print_table
from svc_infra.cli.targets import App, ask, idle
from svc_infra.errors import ValidationError
from svc_infra.jobs import Job, JobState, JobStore

PAGE_JOBS = 1000
SEARCH_LIMIT_JOBS = 100_000
"""How many jobs `search` looks at, newest first."""

app = typer.Typer(help="Look after the jobs that ran out of attempts.", no_args_is_help=True)

Queue: TypeAlias = Annotated[str | None, typer.Option(help="Only this queue.")]
Name: TypeAlias = Annotated[str | None, typer.Option(help="Only this task.")]
Fingerprint: TypeAlias = Annotated[str | None, typer.Option(help="Only those that died of this error; see `search`.")]


@app.command("list")
def list_(
    target: App,
    queue: Queue = None,
    name: Name = None,
    fingerprint: Fingerprint = None,
    before: Annotated[str | None, typer.Option(metavar="ID", help="Only those older than this job.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show this many, newest first.")] = 50,
) -> None:
    """List dead jobs, newest first, and why they died."""
    filters: dict[str, Any] = {"queue": queue, "name": name, "fingerprint": fingerprint, "before": before}

    async def show(store: JobStore) -> None:
        print_jobs(await store.list(state=JobState.DEAD, limit=limit, **filters))

    ask(idle(target), show)


@app.command()
def search(target: App, queue: Queue = None, name: Name = None) -> None:
    """Count the dead jobs by the error that they died of, the most frequent first."""

    async def count(store: JobStore) -> None:
        errors: Counter[tuple[str, str]] = Counter()
        newest: dict[tuple[str, str], Job] = {}
        before: str | None = None
        while errors.total() < SEARCH_LIMIT_JOBS:
            page = await store.list(state=JobState.DEAD, queue=queue, name=name, before=before, limit=PAGE_JOBS)
            for job in page:
                errors[job.name, job.fingerprint] += 1
                newest.setdefault((job.name, job.fingerprint), job)
            if len(page) < PAGE_JOBS:
                break
            before = page[-1].id
        rows = [
            (f"{jobs:,}", *key, newest[key].id, (newest[key].last_error or "").partition("\n")[0])
            for key, jobs in errors.most_common()
        ]
        print_table(["Jobs", "Task", "Fingerprint", "Newest", "Its error"], rows)

    ask(idle(target), count)


@app.command()
def edit(
    target: App,
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job; one that still waits will do too.")],
    payload: Annotated[str, typer.Argument(metavar="JSON", help="Its arguments from now on, as a JSON object.")],
) -> None:
    """Give a job other arguments; `replay` then runs it with them."""
    try:
        arguments = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise ValidationError(f"The arguments are no JSON: {error}.") from None

    async def change(store: JobStore) -> None:
        await store.edit(job_id, arguments)
        print(f"Job {job_id} has other arguments.")

    ask(idle(target), change)


@app.command()
def replay(
    target: App,
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="These jobs.")] = None,
    queue: Queue = None,
    name: Name = None,
    fingerprint: Fingerprint = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead job.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, those first that died first.")] = 1000,
    per_second: Annotated[float | None, typer.Option(min=0.001, help="So many become due each second.")] = None,
) -> None:
    """Run dead jobs again, with their attempts counted from zero: those named, or all that the options choose."""
    chosen: dict[str, Any] = {"queue": queue, "name": name, "fingerprint": fingerprint}
    if bool(job_ids) == (everything or any(chosen.values())):
        raise ValidationError("Name the jobs, or choose them by --queue, --name, --fingerprint or --all.")

    async def put_back(store: JobStore) -> None:
        for number, job_id in enumerate(job_ids or ()):
            if number and per_second:
                await asyncio.sleep(1 / per_second)
            await store.retry(job_id)
        count = len(job_ids) if job_ids else await store.retry_many(**chosen, limit=limit, per_second=per_second)
        print(f"{count} jobs wait again.")

    ask(idle(target), put_back)


@app.command()
def purge(
    target: App,
    older_than_seconds: Annotated[float, typer.Option(min=0, help="Those that died longer ago than this.")],
) -> None:
    """Delete dead jobs for good."""

    async def delete(store: JobStore) -> None:
        deleted = 0
        while batch := await store.purge(older_than_seconds=older_than_seconds, limit=PAGE_JOBS, dead=True):
            deleted += batch
        print(f"{deleted} jobs deleted.")

    ask(idle(target), delete)
