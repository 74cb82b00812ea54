"""Messages are part of the unit of work that adds them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text

from svc_infra.db import AsyncDatabase, Outbox
from svc_infra.db.models import OutboxRow
from svc_infra.db.outbox import MAX_PAYLOAD_BYTES
from svc_infra.errors import ValidationError
from svc_infra.obs.context import Context, enter, leave
from svc_infra.types import new_id


async def rows(db: AsyncDatabase) -> list[OutboxRow]:
    async with db.session(read_only=True) as session:
        return list((await session.scalars(select(OutboxRow).order_by(OutboxRow.position))).all())


async def test_a_message_is_stored_with_the_commit(db: AsyncDatabase) -> None:
    context = enter(Context(request_id="r-1", tenant_id="acme", span_id="s-1"))
    try:
        async with db.session() as session:
            identifier = await Outbox().add(session, "orders", {"order": 1, "notes": ["ü"]}, key="o-1")
    finally:
        leave(context)
    [row] = await rows(db)
    assert (row.id, row.topic, row.key, row.attempts) == (identifier, "orders", "o-1", 0)
    assert row.payload == {"order": 1, "notes": ["ü"]}
    assert row.headers == {"request_id": "r-1", "tenant_id": "acme"}


async def test_a_message_is_gone_with_the_rollback(db: AsyncDatabase) -> None:
    woken: list[int] = []
    with pytest.raises(KeyError):
        async with db.session() as session:
            await Outbox(wake=lambda: woken.append(1)).add(session, "orders", {})
            raise KeyError
    assert await rows(db) == []
    assert woken == []


async def test_the_relay_is_woken_once_after_the_commit(db: AsyncDatabase) -> None:
    woken: list[int] = []
    outbox = Outbox(wake=lambda: woken.append(1))
    async with db.session() as session:
        for _ in range(3):
            await outbox.add(session, "orders", {})
        assert woken == []
    assert woken == [1]


async def test_adding_the_same_id_again_changes_nothing(db: AsyncDatabase) -> None:
    identifier = new_id()
    outbox = Outbox()
    for payload in ("first", "second"):
        async with db.session() as session:
            assert await outbox.add(session, "orders", payload, message_id=identifier) == identifier
    async with db.session() as session:
        await outbox.add(session, "orders", "third", message_id=identifier)
        await outbox.add(session, "orders", "other")
    assert [row.payload for row in await rows(db)] == ["first", "other"]


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"topic": "", "payload": 1}, "topic has 1 to 100"),
        ({"topic": "t" * 101, "payload": 1}, "topic has 1 to 100"),
        ({"topic": "t", "payload": 1, "key": ""}, "key has 1 to 200"),
        ({"topic": "t", "payload": 1, "key": "k" * 201}, "key has 1 to 200"),
        ({"topic": "t", "payload": datetime.now(UTC)}, "must be JSON"),
        ({"topic": "t", "payload": float("nan")}, "must be JSON"),
        ({"topic": "t", "payload": "x" * MAX_PAYLOAD_BYTES}, "1048576 are allowed"),
    ],
)
async def test_what_no_handler_could_get_is_refused(
    message: dict[str, Any], complaint: str, sqlite_db: AsyncDatabase
) -> None:
    async with sqlite_db.session() as session:
        with pytest.raises(ValidationError, match=complaint):
            await Outbox().add(session, **message)
    assert await rows(sqlite_db) == []


async def test_positions_of_one_key_follow_the_order_of_the_commits(postgres_db: AsyncDatabase) -> None:
    """A transaction that added later but commits earlier must not become visible first."""
    added = asyncio.Event()
    committed: list[str] = []

    async def slow() -> None:
        async with postgres_db.session() as session:
            await Outbox().add(session, "orders", "slow", key="k")
            added.set()
            while not await waits_for_a_lock(postgres_db):
                pass
        committed.append("slow")

    async def fast() -> None:
        await added.wait()
        async with postgres_db.session() as session:
            await Outbox().add(session, "orders", "free", key="other")
        committed.append("free")
        async with postgres_db.session() as session:
            await Outbox().add(session, "orders", "fast", key="k")
        committed.append("fast")

    async with asyncio.timeout(30):
        await asyncio.gather(slow(), fast())
    assert committed == ["free", "slow", "fast"]
    assert [row.payload for row in await rows(postgres_db) if row.key == "k"] == ["slow", "fast"]


async def waits_for_a_lock(db: AsyncDatabase) -> bool:
    async with db.session(read_only=True) as session:
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return bool((await session.execute(waiting)).scalar_one())


async def test_identifiers_are_unique_and_given_back(sqlite_db: AsyncDatabase) -> None:
    async with sqlite_db.session() as session:
        identifiers = {await Outbox().add(session, "t", number) for number in range(50)}
    assert all(isinstance(identifier, UUID) for identifier in identifiers)
    assert {row.id for row in await rows(sqlite_db)} == identifiers
