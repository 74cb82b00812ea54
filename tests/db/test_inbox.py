"""One effect for each message, however often it arrives."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from svc_infra.db import AsyncDatabase, Inbox
from svc_infra.testing.clock import FakeClock
from svc_infra.types import new_id


async def test_a_message_is_new_once_for_each_consumer(db: AsyncDatabase) -> None:
    message = new_id()
    for consumer, new in [("mail", True), ("mail", False), ("search", True), ("mail", False)]:
        async with db.session() as session:
            assert await Inbox().mark(session, consumer, message) is new
    async with db.session() as session:
        assert not await Inbox().mark(session, "mail", str(message))


async def test_a_mark_is_gone_with_the_rollback(db: AsyncDatabase) -> None:
    with pytest.raises(KeyError):
        async with db.session() as session:
            assert await Inbox().mark(session, "mail", "m-1")
            raise KeyError
    async with db.session() as session:
        assert await Inbox().mark(session, "mail", "m-1")


async def test_many_at_once_have_one_effect(db: AsyncDatabase) -> None:
    async with db.session() as session:
        await session.execute(text("CREATE TABLE effects (x integer)"))

    async def handle() -> None:
        async with db.session() as session:
            if await Inbox().mark(session, "mail", "m-1"):
                await session.execute(text("INSERT INTO effects VALUES (1)"))

    await asyncio.gather(*[handle() for _ in range(20)])
    async with db.session() as session:
        assert (await session.execute(text("SELECT count(*) FROM effects"))).scalar_one() == 1


async def test_purging_takes_the_oldest_up_to_its_limit(db: AsyncDatabase) -> None:
    clock = FakeClock()
    inbox = Inbox(clock=clock)
    for day in range(6):
        async with db.session() as session:
            await inbox.mark(session, "mail", f"m-{day}")
        clock.advance(86400)
    counts = []
    for _ in range(3):
        async with db.session() as session:
            counts.append(await inbox.purge(session, older_than=timedelta(days=3), limit=2))
    assert counts == [2, 1, 0]
    async with db.session() as session:
        assert [await inbox.mark(session, "mail", f"m-{day}") for day in range(6)] == [True] * 3 + [False] * 3
