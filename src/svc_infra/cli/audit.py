"""`svc-infra audit ...`: whether the audit trail is whole, and all of it as JSON lines."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import orjson
import typer
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.security.audit import AuditKeys, Verdict, entries
from svc_infra.security.audit import verify as verify_chains

T = TypeVar("T")

app = typer.Typer(name="audit", help="Check and export the audit trail.", no_args_is_help=True)

Url: TypeAlias = Annotated[str | None, typer.Option(help="The database; SQL_URL by default.")]
Tenant: TypeAlias = Annotated[
    str | None, typer.Option(help='Only the chain of this tenant; "" is the service\'s own. Every chain by default.')
]


@app.command()
def verify(
    url: Url = None,
    tenant: Tenant = None,
    known: Annotated[
        Path | None, typer.Option(help="What an earlier run printed: every chain must still contain where it was then.")
    ] = None,
) -> None:
    """Check every entry. Prints where each chain is; names the first broken entry of each and exits with 1."""
    settings = Settings()
    keys, before = AuditKeys.read(settings.secrets), _read(known) if known else {}

    async def check(session: AsyncSession) -> list[Verdict]:
        return await verify_chains(session, keys, tenant_id=tenant, known=before)

    verdicts = _ask(url or settings.sql.url, check)
    for one in verdicts:
        if one.broken_at is None:
            print(orjson.dumps({"tenant_id": one.tenant_id, "sequence": one.entries, "mac": one.mac}).decode())
    broken = [one for one in verdicts if one.broken_at is not None]
    for one in broken:
        print(
            f"broken: the chain of {one.tenant_id or 'the service'} at entry {one.broken_at}. {one.reason}",
            file=sys.stderr,
        )
    if broken:
        raise typer.Exit(1)


@app.command()
def export(
    url: Url = None,
    tenant: Tenant = None,
    after: Annotated[int | None, typer.Option(help="Only what follows this place in its chain.")] = None,
) -> None:
    """Print every entry as a line of JSON, chain by chain, oldest first."""

    async def write(session: AsyncSession) -> None:
        async for entry in entries(session, tenant_id=tenant, after_sequence=after):
            sys.stdout.buffer.write(orjson.dumps(entry) + b"\n")
        sys.stdout.buffer.flush()

    _ask(url or Settings().sql.url, write)


def _read(file: Path) -> dict[tuple[str, int], str]:
    try:
        lines = [orjson.loads(line) for line in file.read_bytes().splitlines() if line.strip()]
        return {(line["tenant_id"], line["sequence"]): line["mac"] for line in lines if line["sequence"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{file} is not what `svc-infra audit verify` prints: {error}.") from error


def _ask(url: str, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    async def connected() -> T:
        database = AsyncDatabase(url)
        try:
            async with database.session(read_only=True) as session:
                return await work(session)
        finally:
            await database.dispose()

    return asyncio.run(connected())
