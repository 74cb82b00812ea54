from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from svc_infra.config import AuthSettings
from svc_infra.db import AsyncDatabase
from svc_infra.errors import InvalidCredentialsError, RateLimitedError
from svc_infra.security import Device, Lockout
from svc_infra.security.keyring import KeyRing
from svc_infra.security.models import Attempts
from svc_infra.testing import FakeClock
from tests.security.conftest import PASSWORD, SECRET, World

ANA, IP = "ana@example.com", "192.0.2.7"


def lockout_of(db: AsyncDatabase, clock: FakeClock, **changes: Any) -> Lockout:
    return Lockout(db, KeyRing(SECRET), AuthSettings(**changes), clock=clock)


async def delay(lockout: Lockout, account: str = ANA, ip: str = "") -> float:
    """Seconds until the next attempt may be made, without making it count when it may."""
    try:
        await lockout.check(account, ip)
    except RateLimitedError as refusal:
        return refusal.retry_after_seconds or 0
    await lockout.withdrawn(account, ip)
    return 0


async def fail(lockout: Lockout, times: int, account: str = ANA, ip: str = "") -> None:
    for _ in range(times):
        await lockout.check(account, ip)


async def test_the_delay_grows_with_each_failure_up_to_an_hour(db: AsyncDatabase, clock: FakeClock) -> None:
    lockout = lockout_of(db, clock)
    await fail(lockout, 4)
    assert await delay(lockout) == 0
    for expected in (30, 60, 120, 240, 480, 960, 1920, 3600, 3600):
        await fail(lockout, 1)
        assert await delay(lockout) == expected
        clock.advance(expected - 1)
        assert await delay(lockout) == 1
        clock.advance(1)


async def test_a_locked_account_is_not_even_tried(world: World) -> None:
    await world.register()
    for _ in range(5):
        with pytest.raises(InvalidCredentialsError):
            await world.accounts.login(email=ANA, password="wrong password")
    with pytest.raises(RateLimitedError) as refusal:
        await world.accounts.login(email=ANA, password=PASSWORD)
    assert refusal.value.headers["Retry-After"] == "30"
    world.clock.advance(30)
    assert await world.accounts.login(email=ANA, password=PASSWORD)
    assert await delay(world.desk.lockout) == 0


async def test_what_is_refused_for_the_network_is_no_attempt_at_the_account(
    db: AsyncDatabase, clock: FakeClock
) -> None:
    lockout = lockout_of(db, clock, lockout_network_threshold=1)
    await fail(lockout, 1, "bob@example.com", IP)
    for _ in range(10):
        assert await delay(lockout, ANA, IP) == 30
    await fail(lockout, 4)
    assert await delay(lockout) == 0


async def test_a_lock_that_ends_while_it_is_looked_at_still_says_when_to_come_back(sqlite_db: AsyncDatabase) -> None:
    """Every look at this clock takes as long as the shortest lock."""

    class Hurried(FakeClock):
        def now(self) -> datetime:
            self.advance(30)
            return super().now()

    lockout = lockout_of(sqlite_db, Hurried(), lockout_threshold=1, lockout_base_seconds=45)
    await lockout.check(ANA)
    with pytest.raises(RateLimitedError) as refusal:
        await lockout.check(ANA)
    assert refusal.value.retry_after_seconds == 15


async def test_success_forgets_the_failures(db: AsyncDatabase, clock: FakeClock) -> None:
    lockout = lockout_of(db, clock)
    await fail(lockout, 5)
    async with db.session() as session:
        await lockout.succeeded(session, ANA)
    await fail(lockout, 4)
    assert await delay(lockout) == 0


async def test_failures_are_forgotten_after_a_day(db: AsyncDatabase, clock: FakeClock) -> None:
    lockout = lockout_of(db, clock)
    await fail(lockout, 4)
    clock.advance(86401)
    await fail(lockout, 4)
    assert await delay(lockout) == 0


async def test_a_hundred_guesses_at_once_are_a_hundred_attempts(world: World) -> None:
    await world.register()

    async def guess(number: int) -> str:
        try:
            await world.accounts.login(email=ANA, password=f"wrong {number}")
        except InvalidCredentialsError:
            return "tried"
        except RateLimitedError:
            return "refused"
        return "in"

    answers = await asyncio.gather(*(guess(number) for number in range(100)))
    assert answers.count("tried") == 5
    assert answers.count("refused") == 95


async def test_a_network_that_fails_at_many_accounts_is_locked_out_and_no_other_is(world: World) -> None:
    await world.register()
    lockout = lockout_of(world.db, world.clock, lockout_network_threshold=10)
    accounts = world.with_desk(lockout=lockout)
    for number in range(10):
        with pytest.raises(InvalidCredentialsError):
            await accounts.login(email=f"user{number}@example.com", password="x", device=Device(ip=f"192.0.2.{number}"))
    with pytest.raises(RateLimitedError):
        await accounts.login(email=ANA, password=PASSWORD, device=Device(ip="192.0.2.200"))
    assert await accounts.login(email=ANA, password=PASSWORD, device=Device(ip="198.51.100.1"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.255", True),
        ("192.0.2.1", "192.0.3.1", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
    ],
)
async def test_a_network_is_a_slash_24_or_a_slash_64(
    one: str, other: str, same: bool, sqlite_db: AsyncDatabase, clock: FakeClock
) -> None:
    lockout = lockout_of(sqlite_db, clock, lockout_network_threshold=1)
    await fail(lockout, 1, ip=one)
    assert (await delay(lockout, "bob@example.com", other) > 0) is same


async def test_logins_that_succeed_do_not_lock_their_network(db: AsyncDatabase, clock: FakeClock) -> None:
    lockout = lockout_of(db, clock, lockout_network_threshold=3)
    for number in range(10):
        account = f"user{number}@example.com"
        await lockout.check(account, IP)
        async with db.session() as session:
            await lockout.succeeded(session, account, IP)
    assert await delay(lockout, ANA, IP) == 0


async def test_an_attempt_that_could_not_be_made_does_not_count(db: AsyncDatabase, clock: FakeClock) -> None:
    lockout = lockout_of(db, clock)
    for _ in range(20):
        await lockout.check(ANA, IP)
        await lockout.withdrawn(ANA, IP)
    assert await delay(lockout, ANA, IP) == 0


async def test_an_owner_who_is_locked_out_gets_in_by_mail(world: World) -> None:
    await world.register()
    for _ in range(5):
        with pytest.raises(InvalidCredentialsError):
            await world.accounts.login(email=ANA, password="wrong password")
    assert world.mailbox.to(ANA) == ["unlock"]
    await world.credentials.unlock(world.mailbox.token("unlock", ANA))
    assert await world.accounts.login(email=ANA, password=PASSWORD)


async def test_an_administrator_unlocks_an_account(world: World) -> None:
    user_id = await world.register()
    await fail(world.desk.lockout, 5)
    async with world.db.session() as session:
        await world.accounts.unlock(session, user_id)
    assert await world.accounts.login(email=ANA, password=PASSWORD)


async def test_neither_accounts_nor_addresses_are_stored_and_what_is_old_is_deleted(
    db: AsyncDatabase, clock: FakeClock
) -> None:
    lockout = lockout_of(db, clock)
    await fail(lockout, 2, ip=IP)
    async with db.session(read_only=True) as session:
        keys = list(await session.scalars(select(Attempts.key)))
    assert {len(key) for key in keys} == {64}
    clock.advance(86401)
    async with db.session() as session:
        assert [await lockout.purge(session, limit=1) for _ in range(3)] == [1, 1, 0]
        assert await session.scalar(select(func.count()).select_from(Attempts)) == 0


STEPS = st.lists(st.sampled_from(["fail", "succeed", "wait", "wait long"]), max_size=25)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_every_history_follows_the_rules(steps: list[str], sqlite_db: AsyncDatabase) -> None:
    clock = FakeClock()
    lockout = lockout_of(sqlite_db, clock)
    account, failures, locked_until, last = f"{id(steps)}@example.com", 0, clock.now(), clock.now()
    async with sqlite_db.session() as session:
        await lockout.unlock(session, account)
    for step in steps:
        if step.startswith("wait"):
            clock.advance(31 if step == "wait" else 90_000)
            continue
        if clock.now() < locked_until:
            assert await delay(lockout, account) == (locked_until - clock.now()).total_seconds()
            continue
        await lockout.check(account)
        failures = 1 if (clock.now() - last).total_seconds() > 86400 else failures + 1
        last = clock.now()
        if step == "succeed":
            async with sqlite_db.session() as session:
                await lockout.succeeded(session, account)
            failures = 0
        elif failures >= 5:
            locked_until = clock.now() + timedelta(seconds=min(30 * 2 ** (failures - 5), 3600))
