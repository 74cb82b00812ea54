"""Gives an app its audit trail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from svc_infra.security.audit.chain import AuditKeys
from svc_infra.security.audit.trail import AuditTrail
from svc_infra.types import Clock
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_audit(app: FastAPI) -> None:
    """Let every room of an app record what is done; `add_auth_users` does this too. A second call changes nothing.

    Args:
        app: An app with a database (`add_db`).

    Raises:
        ConfigurationError: At start-up: `AUTH_SECRET` is missing outside local and test, or too short.
    """
    wiring = wiring_of(app)
    wiring.add(Part("audit", run=lambda: _running(wiring), after=("db",)))


@asynccontextmanager
async def _running(wiring: Wiring) -> AsyncIterator[None]:
    clock = wiring.get(Clock) if wiring.has(Clock) else None
    wiring.provide(AuditTrail, AuditTrail(AuditKeys.read(wiring.settings.secrets), clock=clock))
    yield
