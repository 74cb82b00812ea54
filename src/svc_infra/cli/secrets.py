"""`svc-infra secrets ...`: what must be done after a secret was changed."""

from __future__ import annotations

import asyncio
from typing import Annotated, TypeAlias

import typer

from svc_infra.cli.jobs import loaded_app
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.jobs.add import plan_of
from svc_infra.security.audit import AuditTrail
from svc_infra.security.cipher import SealedColumns
from svc_infra.wiring import wiring_of

app = typer.Typer(name="secrets", help="Change secrets.", no_args_is_help=True)

App: TypeAlias = Annotated[
    str, typer.Argument(metavar="APP", help="The app as module:attribute, or a function there that makes it.")
]


@app.callback()
def secrets() -> None:
    """A group also while it has one command."""


@app.command()
def rotate(target: App) -> None:
    """Seal everything anew with the newest secret, once the one before it is its `_PREVIOUS`. Safe to run again."""
    wiring = wiring_of(loaded_app(target))
    if "audit" not in wiring.parts:
        raise ConfigurationError(f"{target} has no secrets at rest: call add_auth_users(app) in it.")
    plan = plan_of(wiring)
    plan.worker = plan.scheduler = False

    async def work() -> None:
        async with wiring.running():
            with wiring.active():
                db, trail = wiring.get(AsyncDatabase), wiring.get(AuditTrail)
                changed = await wiring.get(SealedColumns).rotate(db)
                async with db.session() as session:
                    chains = await trail.reseal(session)
                    await trail.record(session, "secrets.rotated", tenant_id="", after=changed)
                for column, count in changed.items():
                    print(f"{column}: {count} values sealed anew.")
                print(f"{chains} audit chains sealed anew.")

    asyncio.run(work())
