"""A search of the audit trail reads what it gives, and not the trail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event, text

from svc_infra.admin.trail import TrailQuery, find_entries
from svc_infra.db import AsyncDatabase

WAYS = {
    "actor_id": "ix_svc_audit_entries_actor_id",
    "acting_as": "ix_svc_audit_entries_acting_as",
    "target": "ix_svc_audit_entries_target",
    "action": "ix_svc_audit_entries_action",
    "tenant_id": "ix_svc_audit_entries_tenant_id",
}


async def plan(db: AsyncDatabase, query: TrailQuery) -> str:
    """How the database finds what a search asks for."""
    seen: list[tuple[str, object]] = []

    def executed(connection: object, cursor: object, statement: str, parameters: object, *_: object) -> None:
        seen.append((statement, parameters))

    async with db.session() as session:
        event.listen(Engine, "before_cursor_execute", executed)
        try:
            await find_entries(session, query)
        finally:
            event.remove(Engine, "before_cursor_execute", executed)
        [(statement, parameters)] = [one for one in seen if one[0].startswith("SELECT")]
        connection = await session.connection()
        if db.engine.dialect.name == "postgresql":  # which reads a table of no rows from end to end, if it may
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
            await connection.execute(text("SET LOCAL enable_sort = off"))
            explained = await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)  # type: ignore[arg-type]
        else:
            explained = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)  # type: ignore[arg-type]
        return "\n".join(str(row[-1]) for row in explained)


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_to_search_has_an_index_in_the_order_of_the_answer(way: str, db: AsyncDatabase) -> None:
    wanted: dict[str, Any] = {way: "x"}
    found = await plan(db, replace(TrailQuery(before=uuid4(), limit=50), **wanted))
    assert WAYS[way] in found
    assert "TEMP B-TREE" not in found
    assert "Sort" not in found


async def test_what_is_told_of_a_user_is_three_short_searches(db: AsyncDatabase) -> None:
    found = await plan(db, TrailQuery(subject_id="x", limit=50))
    assert all(WAYS[way] in found for way in ("actor_id", "acting_as", "target"))
    assert "SCAN svc_audit_entries" not in found
    assert "Seq Scan" not in found
