from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from svc_infra.errors import ConflictError, InvalidCredentialsError, RateLimitedError, ValidationError
from svc_infra.security import Device, TokenPair
from svc_infra.security.accounts import normalized_email
from svc_infra.security.models import RefreshToken, Session, User
from svc_infra.security.passwords import PasswordHasher
from tests.security.conftest import PASSWORD, World


async def state(world: World) -> dict[str, Any]:
    """Everything that a login could change."""
    async with world.db.session(read_only=True) as session:
        users = (await session.execute(select(User).order_by(User.id))).scalars().all()
        logins = [await session.scalar(select(func.count()).select_from(model)) for model in (Session, RefreshToken)]
    hidden = "_sa_instance_state"
    return {"users": [{k: v for k, v in vars(user).items() if k != hidden} for user in users], "logins": logins}


async def stored(world: World, user_id: UUID) -> User:
    async with world.db.session(read_only=True) as session:
        user = await world.accounts.get(session, user_id)
        assert isinstance(user, User)
        return user


async def test_who_registers_can_log_in(world: World) -> None:
    user_id = await world.register()
    pair = await world.accounts.login(email=" ANA@example.com", password=PASSWORD, device=Device("curl", "192.0.2.1"))
    assert isinstance(pair, TokenPair)
    principal = await world.sessions.principal(pair.access_token)
    assert (principal.id, principal.email, principal.roles) == (user_id, "ana@example.com", frozenset())
    assert (await stored(world, user_id)).last_login_at == world.clock.now()


async def test_a_new_account_has_the_roles_it_was_given_and_nothing_else(world: World) -> None:
    async with world.db.session() as session:
        user = await world.accounts.register(session, email="a@example.com", password=PASSWORD, roles=["support"])
    user = await stored(world, user.id)
    assert (user.roles, user.is_active, user.is_verified, user.last_login_at) == (["support"], True, False, None)
    assert user.created_at == world.clock.now()
    assert PASSWORD not in str(user.password_hash)


async def test_a_role_added_in_place_is_stored(world: World) -> None:
    user_id = await world.register()
    async with world.db.session() as session:
        user = await session.get_one(User, user_id)
        user.roles.append("admin")
    assert (await stored(world, user_id)).roles == ["admin"]


async def test_one_address_has_one_account_however_it_is_written(world: World) -> None:
    await world.register("ana@bücher.de")
    for spelling in ("ANA@Bücher.de", " ana@xn--bcher-kva.de ", "\uff41na@bücher.de"):
        async with world.db.session() as session:
            with pytest.raises(ConflictError):
                await world.accounts.register(session, email=spelling, password=PASSWORD)
            assert await session.scalar(select(func.count()).select_from(User)) == 1  # it can still be used


async def test_an_unacceptable_password_makes_no_account(world: World) -> None:
    for password in ("short", "x" * 129, "ana@example.com", "x" * 10**6, "\ud800" * 8):
        async with world.db.session() as session:
            with pytest.raises(ValidationError):
                await world.accounts.register(session, email="ana@example.com", password=password)
    assert (await state(world))["users"] == []


async def test_a_refused_login_changes_nothing(world: World) -> None:
    await world.register()
    await world.change(await world.register("disabled@example.com"), is_active=False)
    await world.change(await world.register("external@example.com"), password_hash=None)
    before = await state(world)
    for email, password in [
        ("ana@example.com", PASSWORD + "x"),
        ("ana@example.com", "x" * 10**6),
        ("nobody@example.com", PASSWORD),
        ("disabled@example.com", PASSWORD),
        ("external@example.com", PASSWORD),
    ]:
        with pytest.raises(InvalidCredentialsError) as refusal:
            await world.accounts.login(email=email, password=password)
        assert refusal.value.detail == "The e-mail address or the password is wrong."
    assert await state(world) == before


async def test_every_refusal_costs_the_same_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.register()
    await world.change(await world.register("disabled@example.com"), is_active=False)
    await world.change(await world.register("external@example.com"), password_hash=None)
    hasher = PasswordHasher(memory_kib=64, passes=1)
    costs: list[str] = []
    argon2 = hasher._argon2.current_hasher
    verify = argon2.verify
    monkeypatch.setattr(
        argon2, "verify", lambda password, stored: costs.append(stored.rsplit("$", 2)[0]) or verify(password, stored)
    )
    accounts = world.with_desk(hasher=hasher)
    for email in ("ana@example.com", "nobody@example.com", "disabled@example.com", "external@example.com"):
        with pytest.raises(InvalidCredentialsError):
            await accounts.login(email=email, password="wrong password")
    assert len(costs) == 4
    assert len(set(costs)) == 1
    assert costs[0] == "$argon2id$v=19$m=64,t=1,p=1"
    hasher.close()


async def test_raised_costs_reach_an_account_at_its_next_login(world: World) -> None:
    user_id = await world.register()
    dearer = PasswordHasher(memory_kib=128, passes=1)
    accounts = world.with_desk(hasher=dearer)
    await accounts.login(email="ana@example.com", password=PASSWORD)
    first = (await stored(world, user_id)).password_hash
    await accounts.login(email="ana@example.com", password=PASSWORD)
    assert first == (await stored(world, user_id)).password_hash
    assert "$m=128," in str(first)
    dearer.close()


@pytest.mark.parametrize("change", [{"is_active": False}, {"password_hash": "another"}], ids=lambda c: next(iter(c)))
async def test_a_change_during_the_verification_wins(change: dict[str, Any], world: World) -> None:
    """Hashing takes long; a password changed or an account disabled meanwhile must not be logged in to."""
    user_id = await world.register()

    class SlowHasher(PasswordHasher):
        async def verify(self, password: str, password_hash: str | None) -> Any:
            verification = await super().verify(password, password_hash)
            await world.change(user_id, **change)
            return verification

    hasher = SlowHasher(memory_kib=64, passes=1)
    with pytest.raises(InvalidCredentialsError):
        await world.with_desk(hasher=hasher).login(email="ana@example.com", password=PASSWORD)
    assert (await state(world))["logins"] == [0, 0]
    hasher.close()


async def test_a_full_pool_refuses_logins_before_it_changes_anything(world: World) -> None:
    await world.register()
    full = PasswordHasher(concurrency=1, max_waiting=0, memory_kib=64, passes=1)
    full._places.acquire()
    accounts = world.with_desk(hasher=full)
    with pytest.raises(RateLimitedError):
        await accounts.login(email="ana@example.com", password=PASSWORD)
    assert (await state(world))["logins"] == [0, 0]
    full.close()


@pytest.mark.parametrize(
    ("written", "stored_as"),
    [
        ("Ana@Example.COM", "ana@example.com"),
        ("  ana+tag@example.com\n", "ana+tag@example.com"),
        ("ana@xn--bcher-kva.de", "ana@bücher.de"),
        ("ana@BÜCHER.de", "ana@bücher.de"),
        ("\uff41n\uff41\uff20example.com", "ana@example.com"),
        ("josé@example.com", "josé@example.com"),
    ],
)
def test_an_address_has_one_form(written: str, stored_as: str) -> None:
    assert normalized_email(written) == stored_as


@pytest.mark.parametrize(
    "written",
    [
        *(
            "",
            "@",
            "ana",
            "ana@",
            "@example.com",
            "a@b@example.com",
            "ana@localhost",
            "ana@[127.0.0.1]",
            '"a"@example.com',
        ),
        *("a b@example.com", "Ana <ana@example.com>", "ana\x00@example.com", "ana\n@example.com", "\ud800@example.com"),
        *("ana@exa\u202emple.com", "x" * 300 + "@example.com", "ana@" + "x" * 300 + ".com", "x" * 10**6 + "@x.com"),
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_what_is_no_address_is_refused(written: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        normalized_email(written)
    assert refusal.value.errors[0]["pointer"] == "#/email"


@given(st.one_of(st.emails(), st.builds("{}@{}.com".format, st.text(max_size=8), st.text(max_size=8))))
def test_the_one_form_is_its_own(written: str) -> None:
    try:
        once = normalized_email(written)
    except ValidationError:
        return
    assert normalized_email(once) == once
    assert normalized_email(f" {once.upper().lower()} ") == normalized_email(once.upper().lower())
