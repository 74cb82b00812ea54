"""The relay: at least once, in order per key, whoever dies."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select, text

from svc_infra.db import AsyncDatabase, Outbox, OutboxMessage, OutboxRelay
from svc_infra.db.models import OutboxRow
from svc_infra.errors import ConfigurationError
from svc_infra.obs import context
from svc_infra.testing.clock import FakeClock

PAST = FakeClock(datetime(2020, 1, 1, tzinfo=UTC))


class Seen:
    """A handler that remembers, and fails when it is told to."""

    def __init__(self) -> None:
        self.messages: list[OutboxMessage] = []
        self.failing: list[object] = []

    @property
    def payloads(self) -> list[object]:
        return [message.payload for message in self.messages]

    async def __call__(self, message: OutboxMessage) -> None:
        if message.payload in self.failing:
            raise RuntimeError(f"cannot handle {message.payload}")
        self.messages.append(message)


async def add(db: AsyncDatabase, *payloads: object, topic: str = "t", key: str | None = None) -> None:
    async with db.session() as session:
        for payload in payloads:
            await Outbox(clock=PAST).add(session, topic, payload, key=key)


async def left(db: AsyncDatabase) -> list[OutboxRow]:
    async with db.session(read_only=True) as session:
        return list((await session.scalars(select(OutboxRow).order_by(OutboxRow.position))).all())


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def relay(db: AsyncDatabase, clock: FakeClock, seen: Seen) -> OutboxRelay:
    return OutboxRelay(db, handlers={"t": seen}, clock=clock, lease_seconds=30)


async def test_a_message_is_handled_once_and_deleted(db: AsyncDatabase, relay: OutboxRelay, seen: Seen) -> None:
    await add(db, {"n": 1}, {"n": 2})
    assert await relay.run_once() == 2
    assert await relay.run_once() == 0
    assert seen.payloads == [{"n": 1}, {"n": 2}]
    assert [message.attempts for message in seen.messages] == [1, 1]
    assert await left(db) == []


async def test_a_handler_runs_in_the_context_of_the_unit_of_work_that_added(
    db: AsyncDatabase, clock: FakeClock
) -> None:
    tenants: list[str] = []

    async def handle(message: OutboxMessage) -> None:
        tenants.append(context.current().tenant_id)

    token = context.enter(context.Context(tenant_id="acme"))
    await add(db, 1)
    context.leave(token)
    await OutboxRelay(db, handlers={"t": handle}, clock=clock).run_once()
    assert tenants == ["acme"]


async def test_a_message_that_fails_comes_again_after_a_growing_bounded_delay(
    db: AsyncDatabase, relay: OutboxRelay, seen: Seen, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    await add(db, "bad", "good")
    seen.failing = ["bad"]
    delays = []
    with caplog.at_level(logging.WARNING):
        for _ in range(12):
            assert await relay.run_once() > 0
            [row] = await left(db)
            assert row.last_error == "RuntimeError: cannot handle bad"
            delays.append((row.available_at - clock.now()).total_seconds())
            clock.advance(delays[-1] - 0.001)
            assert await relay.run_once() == 0
            clock.advance(0.001)
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert "outbox.delivery_failed" in caplog.text
    seen.failing = []
    assert await relay.run_once() == 1
    assert seen.payloads == ["good", "bad"]
    assert seen.messages[-1].attempts == 13
    assert await left(db) == []


async def test_the_messages_of_a_key_keep_their_order_while_others_pass(
    db: AsyncDatabase, relay: OutboxRelay, seen: Seen, clock: FakeClock
) -> None:
    await add(db, "a1", "a2", key="a")
    await add(db, "b1", "b2", key="b")
    await add(db, "free")
    seen.failing = ["a1"]
    while await relay.run_once():
        pass
    assert set(seen.payloads) == {"b1", "b2", "free"}
    assert seen.payloads.index("b1") < seen.payloads.index("b2")
    seen.failing = []
    clock.advance(1)
    while await relay.run_once():
        pass
    assert seen.payloads[-2:] == ["a1", "a2"]


async def test_the_same_key_in_two_topics_is_two_keys(db: AsyncDatabase, clock: FakeClock) -> None:
    bad, good = Seen(), Seen()
    bad.failing = [1]
    relay = OutboxRelay(db, handlers={"bad": bad, "good": good}, clock=clock)
    await add(db, 1, topic="bad", key="k")
    await add(db, 2, topic="good", key="k")
    await relay.run_once()
    assert good.payloads == [2]


async def test_messages_of_a_relay_that_died_are_delivered_when_its_lease_ends(
    db: AsyncDatabase, relay: OutboxRelay, seen: Seen, clock: FakeClock
) -> None:
    await add(db, 1, 2)
    dying = OutboxRelay(db, handlers={"t": seen}, clock=clock, lease_seconds=30)
    await dying._claim("t")
    assert await relay.run_once() == 0
    clock.advance(30)
    assert await relay.run_once() == 2
    assert [message.attempts for message in seen.messages] == [2, 2]


async def test_a_relay_that_overslept_its_lease_deletes_nothing_of_the_next_one(
    db: AsyncDatabase, relay: OutboxRelay, seen: Seen, clock: FakeClock
) -> None:
    await add(db, 1)
    sleeper = OutboxRelay(db, handlers={"t": seen}, clock=clock, lease_seconds=30)
    batch = await sleeper._claim("t")
    clock.advance(31)
    taken = await relay._claim("t")
    await sleeper._settle(batch, done=list(batch.messages), failed={})
    assert [row.attempts for row in await left(db)] == [2]
    await relay._settle(taken, done=list(taken.messages), failed={})
    assert await left(db) == []


async def test_a_handler_that_takes_longer_than_the_lease_is_cancelled(db: AsyncDatabase) -> None:
    async def hang(message: OutboxMessage) -> None:
        await asyncio.Event().wait()

    await add(db, 1)
    relay = OutboxRelay(db, handlers={"t": hang}, lease_seconds=0.5)
    assert await relay.run_once() == 1
    [row] = await left(db)
    assert row.last_error is not None
    assert row.last_error.startswith("TimeoutError")


async def test_a_batch_that_cannot_end_within_the_lease_is_given_back_unspent(db: AsyncDatabase) -> None:
    async def hang(message: OutboxMessage) -> None:
        await asyncio.Event().wait()

    await add(db, 1, 2, 3)
    await OutboxRelay(db, handlers={"t": hang}, lease_seconds=0.5).run_once()
    assert [row.attempts for row in await left(db)] == [1, 0, 0]


async def test_a_batch_has_at_most_its_size(db: AsyncDatabase, seen: Seen, clock: FakeClock) -> None:
    await add(db, *range(5))
    relay = OutboxRelay(db, handlers={"t": seen}, batch_size=2, clock=clock)
    assert [await relay.run_once() for _ in range(4)] == [2, 2, 1, 0]


async def test_running_delivers_at_once_what_this_process_commits(db: AsyncDatabase) -> None:
    handled = asyncio.Event()

    async def handle(message: OutboxMessage) -> None:
        handled.set()

    relay = OutboxRelay(db, handlers={"t": handle}, poll_interval_seconds=3600)
    outbox = Outbox(wake=relay.wake)
    stop = asyncio.Event()
    task = asyncio.create_task(relay.run(stop))
    async with asyncio.timeout(30):
        for _ in range(3):
            async with db.session() as session:
                await outbox.add(session, "t", 1)
            await handled.wait()
            handled.clear()
        stop.set()
        await task
    assert await left(db) == []


async def test_running_finds_what_another_process_committed(db: AsyncDatabase) -> None:
    handled = asyncio.Event()

    async def handle(message: OutboxMessage) -> None:
        handled.set()

    stop = asyncio.Event()
    task = asyncio.create_task(OutboxRelay(db, handlers={"t": handle}, poll_interval_seconds=0.01).run(stop))
    await add(db, 1)
    async with asyncio.timeout(30):
        await handled.wait()
        stop.set()
        await task


async def test_a_topic_that_hangs_does_not_hold_up_another(db: AsyncDatabase) -> None:
    handled = asyncio.Event()

    async def hang(message: OutboxMessage) -> None:
        await asyncio.Event().wait()

    async def handle(message: OutboxMessage) -> None:
        handled.set()

    await add(db, 1, topic="slow")
    await add(db, 1, topic="fast")
    task = asyncio.create_task(OutboxRelay(db, handlers={"slow": hang, "fast": handle}).run(asyncio.Event()))
    async with asyncio.timeout(30):
        await handled.wait()
    task.cancel()
    await asyncio.wait({task})


async def test_stopping_finishes_the_message_in_hand_and_gives_back_the_rest(db: AsyncDatabase) -> None:
    stop = asyncio.Event()
    done: list[object] = []

    async def handle(message: OutboxMessage) -> None:
        stop.set()
        await asyncio.sleep(0)
        done.append(message.payload)

    await add(db, 1, 2, 3)
    async with asyncio.timeout(30):
        await OutboxRelay(db, handlers={"t": handle}).run(stop)
    assert done == [1]
    assert [(row.payload, row.attempts) for row in await left(db)] == [(2, 0), (3, 0)]


async def test_a_database_that_fails_for_a_while_does_not_end_the_relay(
    db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    handled = asyncio.Event()

    async def handle(message: OutboxMessage) -> None:
        handled.set()

    async with db.session() as session:
        await session.execute(text("ALTER TABLE svc_outbox RENAME TO away"))
    stop = asyncio.Event()
    task = asyncio.create_task(OutboxRelay(db, handlers={"t": handle}, poll_interval_seconds=0.01).run(stop))
    async with asyncio.timeout(30):
        while "outbox.database_failed" not in caplog.text:
            await asyncio.sleep(0)
        async with db.session() as session:
            await session.execute(text("ALTER TABLE away RENAME TO svc_outbox"))
        await add(db, 1)
        await handled.wait()
        stop.set()
        await task


async def test_a_topic_without_a_handler_stays_and_is_reported_once(
    db: AsyncDatabase, relay: OutboxRelay, caplog: pytest.LogCaptureFixture
) -> None:
    await add(db, 1, 2, topic="unknown")
    for _ in range(2):
        await relay._report_orphans()
        assert await relay.run_once() == 0
    assert [r.topic for r in caplog.records if r.message == "outbox.topic_without_handler"] == ["unknown"]  # type: ignore[attr-defined]
    assert len(await left(db)) == 2


async def test_a_topic_has_one_handler_and_gets_it_before_the_start(relay: OutboxRelay, seen: Seen) -> None:
    with pytest.raises(ConfigurationError, match="has a handler already"):
        relay.register("t", seen)
    relay.register("u", seen)
    assert relay.topics == ["t", "u"]
    stop = asyncio.Event()
    task = asyncio.create_task(relay.run(stop))
    await asyncio.sleep(0)
    with pytest.raises(ConfigurationError, match="runs already"):
        relay.register("v", seen)
    stop.set()
    await task


async def test_relays_share_the_work_without_doing_any_of_it_twice(db: AsyncDatabase) -> None:
    counts: Counter[object] = Counter()
    order: dict[str, list[object]] = {}

    async def handle(message: OutboxMessage) -> None:
        await asyncio.sleep(0)
        counts[message.id] += 1
        order.setdefault(str(message.key), []).append(message.payload)

    for number in range(120):
        await add(db, number, key=f"k{number % 7}")
    relays = [OutboxRelay(db, handlers={"t": handle}, batch_size=5) for _ in range(4)]

    async def drain(relay: OutboxRelay) -> None:
        while await left(db):
            await relay.run_once()

    await asyncio.gather(*[drain(relay) for relay in relays])
    assert len(counts) == 120
    assert set(counts.values()) == {1}
    for numbers in order.values():
        assert numbers == sorted(numbers)  # type: ignore[type-var]


RELAY = """
import asyncio, sys
from sqlalchemy import text
from svc_infra.db import AsyncDatabase, Inbox, OutboxRelay

async def main():
    db = AsyncDatabase(sys.argv[1])

    async def handle(message):
        async with db.session() as session:
            if await Inbox().mark(session, "test", message.id):
                await session.execute(
                    text("INSERT INTO effects (k, n) VALUES (:k, :n)"), {"k": message.key, "n": message.payload}
                )
        print(message.payload, flush=True)

    relay = OutboxRelay(db, handlers={"t": handle}, lease_seconds=1, batch_size=20, poll_interval_seconds=0.02)
    await relay.run(asyncio.Event())

asyncio.run(main())
"""


async def test_no_message_is_lost_or_reordered_when_relays_are_killed(db: AsyncDatabase) -> None:
    total, keys = 300, 30
    serial = "integer PRIMARY KEY" if db.dialect == "sqlite" else "serial PRIMARY KEY"
    async with db.session() as session:
        await session.execute(text(f"CREATE TABLE effects (at {serial}, k text, n integer)"))
        for number in range(total):
            await Outbox().add(session, "t", number, key=f"k{number % keys}")

    url = db.url.render_as_string(hide_password=False)
    async with asyncio.timeout(120):
        for kill_after in (5, 40, 60, None):
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", RELAY, url, stdout=PIPE)
            assert process.stdout is not None
            handled = 0
            while kill_after is None or handled < kill_after:
                if kill_after is None and not await remaining(db):
                    break
                await process.stdout.readline() if kill_after else await asyncio.sleep(0.05)
                handled += 1
            process.send_signal(signal.SIGKILL)
            await process.communicate()
    async with db.session(read_only=True) as session:
        effects = (await session.execute(text("SELECT k, n FROM effects ORDER BY at"))).all()
    assert len(effects) == total
    for key in range(keys):
        numbers = [n for k, n in effects if k == f"k{key}"]
        assert numbers == list(range(key, total, keys))


async def remaining(db: AsyncDatabase) -> int:
    async with db.session(read_only=True) as session:
        return (await session.execute(select(func.count()).select_from(OutboxRow))).scalar_one()
