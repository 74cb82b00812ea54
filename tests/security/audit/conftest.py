"""A trail over each engine in turn, and what someone with all rights to the database could do to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import text

from svc_infra.db import AsyncDatabase
from svc_infra.obs.context import Context, enter, leave
from svc_infra.security.audit import AuditKeys, AuditTrail, Verdict, entries, verify
from svc_infra.security.keyring import KeyRing
from svc_infra.testing import FakeClock
from tests.security.conftest import SECRET

WHO = Context(request_id="r-1", trace_id="t" * 32, principal_id="ana", client_ip="192.0.2.7")


@dataclass
class Trail:
    """A trail, its database and its keys."""

    db: AsyncDatabase
    keys: AuditKeys
    trail: AuditTrail
    clock: FakeClock

    async def write(self, *actions: str, tenant_id: str = "", **fields: Any) -> None:
        """Each action in a unit of work of its own."""
        for action in actions:
            async with self.db.session() as session:
                await self.trail.record(session, action, tenant_id=tenant_id, **fields)

    async def entries(self, tenant_id: str | None = "") -> list[dict[str, Any]]:
        async with self.db.session(read_only=True) as session:
            return [entry async for entry in entries(session, tenant_id=tenant_id)]

    async def verdicts(self, keys: AuditKeys | None = None, **options: Any) -> list[Verdict]:
        async with self.db.session(read_only=True) as session:
            return await verify(session, keys or self.keys, **options)

    async def broken(self, **options: Any) -> list[tuple[str, int | None]]:
        """Where the chains are broken."""
        return [(one.tenant_id, one.broken_at) for one in await self.verdicts(**options) if one.broken_at is not None]

    async def tamper(self, *statements: str | tuple[str, Mapping[str, Any]]) -> None:
        """Do what only the owner of the tables could: without the triggers."""
        async with self.db.session() as session:
            if self.db.dialect == "postgresql":
                for table in ("svc_audit_entries", "svc_audit_chains"):
                    await session.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
            else:
                names = await session.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'"))
                for name in list(names):
                    await session.execute(text(f"DROP TRIGGER {name}"))
            for one in statements:
                statement, values = (one, {}) if isinstance(one, str) else one
                await session.execute(text(statement), values)


@pytest.fixture
def trail(db: AsyncDatabase, clock: FakeClock) -> Trail:
    keys = AuditKeys(KeyRing(SECRET))
    return Trail(db, keys, AuditTrail(keys, clock=clock), clock)


@pytest.fixture
def sqlite_trail(sqlite_db: AsyncDatabase, clock: FakeClock) -> Trail:
    """For what does not depend on the engine."""
    keys = AuditKeys(KeyRing(SECRET))
    return Trail(sqlite_db, keys, AuditTrail(keys, clock=clock), clock)


@pytest.fixture
def as_ana() -> Any:
    token = enter(WHO)
    yield WHO
    leave(token)


def actions_of(found: Sequence[Mapping[str, Any]]) -> list[str]:
    return [entry["action"] for entry in found]
