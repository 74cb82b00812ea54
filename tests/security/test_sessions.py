from __future__ import annotations

import asyncio
import os
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import Engine, event, func, select, update

from svc_infra.db import AsyncDatabase
from svc_infra.errors import InvalidTokenError, TokenExpiredError
from svc_infra.security import Device, Sessions, TokenPair
from svc_infra.security.keyring import KeyRing
from svc_infra.security.models import RefreshToken, Session, User
from svc_infra.testing import FakeClock
from tests.security.conftest import SECRET, World, sessions_for

GRACE = 10


async def log_in(db: AsyncDatabase, sessions: Sessions, *, device: Device | None = None) -> TokenPair:
    """A login of a new user, without the password."""
    async with db.session() as session:
        user = User(email=f"{uuid4().hex}@example.com", roles=["reader"])
        session.add(user)
        await session.flush()
        return await sessions.open(session, user.id, device or Device())


async def only(db: AsyncDatabase, model: Any) -> Any:
    async with db.session(read_only=True) as session:
        return (await session.execute(select(model))).scalar_one()


async def unused_tokens(db: AsyncDatabase) -> int:
    """How many chains could still be continued."""
    live = (
        select(func.count())
        .select_from(RefreshToken)
        .join(Session)
        .where(RefreshToken.used_at.is_(None), Session.revoked_at.is_(None))
    )
    async with db.session(read_only=True) as session:
        return await session.scalar(live) or 0


async def test_each_refresh_token_gives_its_successor(world: World) -> None:
    pair = await log_in(world.db, world.sessions)
    seen = {pair.refresh_token}
    for _ in range(4):
        world.clock.advance(GRACE + 1)
        pair = await world.sessions.refresh(pair.refresh_token)
        assert (await world.sessions.principal(pair.access_token)).roles == {"reader"}
        seen.add(pair.refresh_token)
    assert len(seen) == 5
    assert await unused_tokens(world.db) == 1
    assert (await only(world.db, Session)).last_seen_at == world.clock.now()


async def test_neither_tokens_nor_addresses_are_stored(world: World) -> None:
    pair = await log_in(world.db, world.sessions, device=Device(user_agent="a" * 1000, ip="192.0.2.7"))
    await world.sessions.refresh(pair.refresh_token)
    async with world.db.session(read_only=True) as session:
        hashes = (await session.scalars(select(RefreshToken.token_hash))).all()
    assert len(hashes) == 2
    assert pair.refresh_token not in hashes
    login = await only(world.db, Session)
    assert login.user_agent == "a" * 256
    assert len(login.ip_hash) == 64


async def test_a_token_shown_again_within_the_grace_time_gives_the_same_successor(world: World) -> None:
    old = await log_in(world.db, world.sessions)
    first = await world.sessions.refresh(old.refresh_token)
    world.clock.advance(GRACE - 1)
    second = await world.sessions.refresh(old.refresh_token)
    assert second.refresh_token == first.refresh_token
    assert second.access_token != first.access_token
    assert await unused_tokens(world.db) == 1
    assert (await world.sessions.refresh(second.refresh_token)).refresh_token != first.refresh_token


async def test_a_token_shown_again_after_the_grace_time_ends_the_login(world: World) -> None:
    old = await log_in(world.db, world.sessions)
    new = await world.sessions.refresh(old.refresh_token)
    world.clock.advance(GRACE)
    with pytest.raises(InvalidTokenError):
        await world.sessions.refresh(old.refresh_token)
    login = await only(world.db, Session)
    assert (login.revoked_at, login.revoke_reason) == (world.clock.now(), "refresh_token_reused")
    with pytest.raises(InvalidTokenError):
        await world.sessions.refresh(new.refresh_token)
    with pytest.raises(InvalidTokenError):
        await world.sessions.principal(new.access_token)


async def test_a_token_older_than_the_last_ends_the_login_even_at_once(world: World) -> None:
    first = await log_in(world.db, world.sessions)
    second = await world.sessions.refresh(first.refresh_token)
    third = await world.sessions.refresh(second.refresh_token)
    with pytest.raises(InvalidTokenError):
        await world.sessions.refresh(first.refresh_token)
    with pytest.raises(InvalidTokenError):
        await world.sessions.refresh(third.refresh_token)


async def test_without_a_grace_time_the_second_use_ends_the_login(world: World) -> None:
    strict = sessions_for(world.db, world.keys, world.clock, grace_seconds=0)
    pair = await log_in(world.db, strict)
    await strict.refresh(pair.refresh_token)
    with pytest.raises(InvalidTokenError):
        await strict.refresh(pair.refresh_token)
    assert await unused_tokens(world.db) == 0


async def test_a_successor_can_be_given_again_after_the_secret_was_changed(world: World) -> None:
    old = await log_in(world.db, world.sessions)
    first = await world.sessions.refresh(old.refresh_token)
    newer = SecretStr("another secret of more than 32 bytes, at last")
    with_both, with_newer = (
        sessions_for(world.db, ring, world.clock) for ring in (KeyRing(newer, SECRET), KeyRing(newer))
    )
    assert (await with_both.refresh(old.refresh_token)).refresh_token == first.refresh_token
    with pytest.raises(InvalidTokenError):
        await with_newer.refresh(old.refresh_token)
    assert (await with_newer.refresh(first.refresh_token)).expires_in_seconds == 900


async def test_fifty_refreshes_of_one_token_at_once_leave_one_login_and_one_chain(world: World) -> None:
    old = await log_in(world.db, world.sessions)
    pairs = await asyncio.gather(*(world.sessions.refresh(old.refresh_token) for _ in range(50)))
    assert len({pair.refresh_token for pair in pairs}) == 1
    assert len({pair.access_token for pair in pairs}) == 50
    assert await unused_tokens(world.db) == 1
    world.clock.advance(GRACE + 1)
    await world.sessions.refresh(pairs[0].refresh_token)
    assert await unused_tokens(world.db) == 1


async def test_a_storm_of_refreshes_never_leaves_more_than_one_login(world: World) -> None:
    """`REFRESH_STORM_RUNS=1000` runs it at length."""
    for _ in range(int(os.environ.get("REFRESH_STORM_RUNS", "4"))):
        pair = await log_in(world.db, world.sessions)
        pairs = await asyncio.gather(*(world.sessions.refresh(pair.refresh_token) for _ in range(50)))
        assert len({one.refresh_token for one in pairs}) == 1
        assert await unused_tokens(world.db) == 1
        world.clock.advance(GRACE + 1)
        await world.sessions.refresh(pairs[0].refresh_token)
        with pytest.raises(InvalidTokenError):
            await world.sessions.refresh(pair.refresh_token)
        assert await unused_tokens(world.db) == 0


async def test_fifty_at_once_without_a_grace_time_have_at_most_one_winner(world: World) -> None:
    strict = sessions_for(world.db, world.keys, world.clock, grace_seconds=0)
    old = await log_in(world.db, strict)
    results = await asyncio.gather(*(strict.refresh(old.refresh_token) for _ in range(50)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["InvalidTokenError"] * 49 + ["TokenPair"]
    assert await unused_tokens(world.db) == 0


async def test_a_login_ends_for_good_however_often_it_is_refreshed(world: World) -> None:
    pair = await log_in(world.db, world.sessions)
    world.clock.advance(86400 - 60)
    pair = await world.sessions.refresh(pair.refresh_token)
    assert pair.expires_in_seconds == 60
    world.clock.advance(60)
    with pytest.raises(TokenExpiredError):
        await world.sessions.refresh(pair.refresh_token)
    with pytest.raises(InvalidTokenError):
        await world.sessions.principal(pair.access_token)


async def test_a_login_that_was_idle_for_too_long_is_listed_no_more_and_no_access_token_outlives_it(
    world: World,
) -> None:
    user_id = await world.register()
    sessions = sessions_for(world.db, world.keys, world.clock, idle_seconds=600)
    async with world.db.session() as session:
        kept = await sessions.open(session, user_id, Device())
        idle = await sessions.open(session, user_id, Device())
    assert (kept.expires_in_seconds, len(await listed(sessions, user_id))) == (600, 2)
    world.clock.advance(599)
    kept = await sessions.refresh(kept.refresh_token)
    world.clock.advance(2)
    assert await listed(sessions, user_id) == [kept.session_id]
    with pytest.raises(TokenExpiredError):
        await sessions.refresh(idle.refresh_token)
    async with world.db.session() as session:
        renewed = await sessions.renew(session, kept.session_id, methods=("pwd",))
    assert renewed.expires_in_seconds == 598, "to prove a login again is not to refresh it"
    async with world.db.session() as session:  # all that could still be used are ended, listed or not
        assert await sessions.revoke_all(session, user_id, reason="test") == 2


async def listed(sessions: Sessions, user_id: UUID) -> list[UUID]:
    async with sessions._db.session(read_only=True) as session:
        return [one.id for one in await sessions.list(session, user_id)]


async def test_a_revoked_login_is_refused_from_the_commit_on(world: World) -> None:
    pair = await log_in(world.db, world.sessions)
    other = await log_in(world.db, world.sessions)
    principal = await world.sessions.principal(pair.access_token)
    assert principal.session_id is not None
    async with world.db.session() as session:
        assert await world.sessions.revoke(session, principal.session_id, reason="logout")
        assert not await world.sessions.revoke(session, principal.session_id, reason="again")
    with pytest.raises(InvalidTokenError):
        await world.sessions.principal(pair.access_token)
    with pytest.raises(InvalidTokenError):
        await world.sessions.refresh(pair.refresh_token)
    assert await world.sessions.principal(other.access_token)


async def test_a_disabled_account_is_refused_at_once_and_welcome_again_later(world: World) -> None:
    pair = await log_in(world.db, world.sessions)
    user = (await world.sessions.principal(pair.access_token)).id
    await world.change(user, is_active=False)
    with pytest.raises(InvalidTokenError):
        await world.sessions.principal(pair.access_token)
    with pytest.raises(InvalidTokenError):
        await world.sessions.refresh(pair.refresh_token)
    await world.change(user, is_active=True)
    assert await world.sessions.refresh(pair.refresh_token)


async def test_a_change_of_roles_is_effective_at_once(world: World) -> None:
    pair = await log_in(world.db, world.sessions)
    before = await world.sessions.principal(pair.access_token)
    assert before.permissions == {"report.read"}
    await world.change(before.id, roles=["auditor", "no such role"])
    after = await world.sessions.principal(pair.access_token)
    assert after.permissions == {"audit.read", "billing.read", "user.read"}


async def test_a_token_does_not_open_another_users_login(world: World) -> None:
    ana, eve = [await world.sessions.principal((await log_in(world.db, world.sessions)).access_token) for _ in range(2)]
    assert ana.session_id is not None
    ends = world.clock.now().replace(year=world.clock.now().year + 1)
    mixed, _ = world.tokens.issue(
        user_id=eve.id, session_id=ana.session_id, session_ends_at=ends, authenticated_at=world.clock.now()
    )
    with pytest.raises(InvalidTokenError):
        await world.sessions.principal(mixed)


UNKNOWN_TOKENS = ["", "x", "x" * 43, "é", "\x00", "\ud800", "x" * 1_000_000]


async def test_an_unknown_refresh_token_is_refused_and_changes_nothing(world: World) -> None:
    pair = await log_in(world.db, world.sessions)
    for token in (*UNKNOWN_TOKENS, pair.refresh_token + "x", pair.refresh_token[:-1], pair.refresh_token.swapcase()):
        with pytest.raises(InvalidTokenError):
            await world.sessions.refresh(token)
    assert await unused_tokens(world.db) == 1


async def test_the_database_refuses_a_second_successor(world: World) -> None:
    """The last line of defence: even code that forgets the compare-and-set cannot fork a chain."""
    pair = await log_in(world.db, world.sessions)
    await world.sessions.refresh(pair.refresh_token)
    unused_again = update(RefreshToken).values(used_at=None).where(RefreshToken.parent_id.is_(None))
    with pytest.raises(Exception, match="A row with these values already exists"):  # two that are good
        async with world.db.session() as session:
            await session.execute(unused_again)
    async with world.db.session() as session:
        await session.execute(update(RefreshToken).values(used_at=world.clock.now()))
        await session.execute(unused_again)
    with pytest.raises(Exception, match="A row with these values already exists"):  # two successors of one
        await world.sessions.refresh(pair.refresh_token)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("show"), st.integers(0, 3)),  # the newest token, or one of its ancestors
        st.tuples(st.just("wait"), st.sampled_from([1, GRACE - 1, GRACE, 1000])),
        st.tuples(st.just("revoke"), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_every_history_of_a_family_follows_the_rules(steps: list[tuple[str, int]], db: AsyncDatabase) -> None:
    """Against a model of the four rules that `sessions` states."""
    clock = FakeClock()
    sessions = sessions_for(db, KeyRing(SECRET), clock, grace_seconds=GRACE)
    pair = await log_in(db, sessions)
    login = (await sessions.principal(pair.access_token)).session_id
    assert login is not None
    chain, used_at, alive = [pair.refresh_token], [], True
    for action, number in steps:
        if action == "wait":
            clock.advance(number)
        elif action == "revoke":
            async with db.session() as session:
                assert await sessions.revoke(session, login, reason="logout") is alive
            alive = False
        else:
            back = min(number, len(chain) - 1)
            in_grace = back == 1 and (clock.now() - used_at[-1]).total_seconds() < GRACE
            if alive and (back == 0 or in_grace):
                got = (await sessions.refresh(chain[-1 - back])).refresh_token
                if back == 0:
                    assert got not in chain
                    chain.append(got)
                    used_at.append(clock.now())
                assert got == chain[-1]
            else:
                with pytest.raises(InvalidTokenError):
                    await sessions.refresh(chain[-1 - back])
                alive = False


async def test_a_request_is_authenticated_by_one_read(
    sqlite_db: AsyncDatabase, clock: FakeClock, keys: KeyRing
) -> None:
    sessions = sessions_for(sqlite_db, keys, clock)
    pair = await log_in(sqlite_db, sessions)
    statements: list[str] = []

    def executed(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement.split()[0])

    event.listen(Engine, "before_cursor_execute", executed)
    try:
        await sessions.principal(pair.access_token)
    finally:
        event.remove(Engine, "before_cursor_execute", executed)
    assert [statement for statement in statements if statement != "BEGIN"] == ["SELECT"]
