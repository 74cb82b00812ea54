"""How commands show what they found."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from svc_infra.jobs import Job

PIPED_COLUMNS = 200  # a table's width where there is no terminal


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain texts."""
    made = Table(*columns, box=None)
    for row in rows:
        made.add_row(*(Text(cell, overflow="fold") for cell in row))
    return made


def console() -> Console:
    """Standard output."""
    return Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    console().print(table(columns, rows))


def print_jobs(jobs: Sequence[Job]) -> None:
    """Print jobs, one a line."""
    rows = [
        (
            job.id,
            job.name,
            job.queue,
            str(job.state),
            f"{job.attempts}/{job.max_attempts}",
            text(job.created_at),
            text(job.available_at),
            (job.last_error or "").partition("\n")[0],
        )
        for job in jobs
    ]
    print_table(["ID", "Task", "Queue", "State", "Attempts", "Created", "Due", "Last error"], rows)


def text(value: object) -> str:
    """A value as a cell shows it."""
    match value:
        case None:
            return ""
        case datetime():
            return value.isoformat(sep=" ", timespec="seconds")
        case Mapping() | list():
            return orjson.dumps(value).decode()
        case _:
            return str(value)
