"""`svc-infra sql ...`: bringing a database's schema up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.sql import migrate

app = typer.Typer(name="sql", help="Bring the database's schema up to date.", no_args_is_help=True)

Url: TypeAlias = Annotated[str | None, typer.Option(help="The database; SQL_URL by default.")]
Own: TypeAlias = Annotated[
    Path | None, typer.Option("--migrations", help="The folder of the application's own revisions.")
]


@app.command()
def upgrade(url: Url = None, migrations: Own = None) -> None:
    """Apply every pending revision, the library's first. Safe to run from many places at once."""
    applied = _run(url, migrations, migrate.upgrade)
    for revision in applied:
        print("applied", revision)
    if not applied:
        print("The schema is up to date.")


@app.command()
def current(url: Url = None, migrations: Own = None) -> None:
    """Print the newest applied revision of each chain."""
    for revision in _run(url, migrations, migrate.current):
        print(revision)


@app.command()
def pending(url: Url = None, migrations: Own = None) -> None:
    """Print the revisions that `upgrade` would apply; exit with 2 when there are any."""
    revisions = _run(url, migrations, migrate.pending)
    for revision in revisions:
        print(revision)
    if revisions:
        raise typer.Exit(2)


def _run(
    url: str | None,
    own: Path | None,
    work: Callable[[AsyncDatabase, list[migrate.Migrations]], Awaitable[list[str]]],
) -> list[str]:
    async def connected() -> list[str]:
        database = AsyncDatabase(url or Settings().sql.url)
        try:
            return await work(database, migrate.chains(own))
        finally:
            await database.dispose()

    return asyncio.run(connected())
