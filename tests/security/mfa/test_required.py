"""Who must have a second factor can do nothing without one, but enrol one, prove one, or leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.cache import add_cache
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.security import Organizations, Sessions
from svc_infra.security.keys.add import add_api_keys
from svc_infra.security.mfa import required_for_members
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, assert_problem, running
from tests.security.mfa.conftest import ANA, Owner, owner_of, with_mfa
from tests.security.test_http import give_roles


@asynccontextmanager
async def ana_with(db: AsyncDatabase, clock: FakeClock, **settings: Any) -> AsyncIterator[Owner]:
    async with running(with_mfa(db, clock, **settings), clock) as client:
        yield await owner_of(client)


async def is_shut_out(owner: Owner) -> bool:
    """Whether the login may call none of an app's routes; the refusal says what to do."""
    answers = [await owner.client.get(path) for path in ("/me", "/maybe", "/auth/me", "/auth/sessions")]
    answers.append(await owner.post("/danger"))
    answers.append(await owner.post("/auth/password", current_password=PASSWORD, new_password="another horse battery"))
    if all(answer.status_code != 403 for answer in answers):
        return False
    for answer in answers:
        assert assert_problem(answer, 403, "second_factor_required")["enrol_url"] == "/auth/mfa"
    return True


async def test_where_all_must_a_new_account_can_only_enrol(db: AsyncDatabase, clock: FakeClock) -> None:
    async with ana_with(db, clock, mfa={"required": "all"}) as ana:
        assert await is_shut_out(ana)
        assert (await ana.client.get("/auth/mfa")).json()["required"] is True
        await ana.enrol_totp()
        assert (await ana.client.get("/me")).json()["methods"] == ["pwd", "otp", "mfa"]
        assert (await ana.verify(await ana.step(), ana.code())).status_code == 200


async def test_a_login_that_can_only_enrol_can_end_and_be_refreshed(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with ana_with(sqlite_db, clock, mfa={"required": "all"}) as ana:
        ana.client.tokens = (await ana.client.refresh()).json()
        assert await is_shut_out(ana)
        assert (await ana.post("/auth/logout")).status_code == 204


async def test_by_role_it_is_effective_at_once_both_ways(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with ana_with(sqlite_db, clock, mfa={"required": "roles", "roles": ("reader",)}) as ana:
        assert not await is_shut_out(ana)
        await give_roles(sqlite_db, ANA, "reader")
        assert await is_shut_out(ana)
        await give_roles(sqlite_db, ANA)
        assert not await is_shut_out(ana)


async def test_a_role_permits_nothing_before_the_factor_is_proven(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with ana_with(sqlite_db, clock, mfa={"required": "roles", "roles": ("reader",)}) as ana:
        await give_roles(sqlite_db, ANA, "reader")
        sessions = wiring_of(ana.client.app).get(Sessions)
        caller = await sessions.principal(ana.client.tokens["access_token"])
        assert (caller.lacks_second_factor, caller.roles, caller.permissions) == (True, frozenset(), frozenset())
        await ana.enrol_totp()
        caller = await sessions.principal(ana.client.tokens["access_token"])
        assert (caller.lacks_second_factor, caller.roles, caller.may("report.read")) == (
            False,
            frozenset({"reader"}),
            True,
        )


async def test_by_organization(db: AsyncDatabase, clock: FakeClock) -> None:
    organization_ids: list[UUID] = []

    async def is_member(session: AsyncSession, user_id: UUID, roles: Collection[str]) -> bool:
        return await required_for_members(*organization_ids)(session, user_id, roles)

    async with running(with_mfa(db, clock), clock) as client:
        ana, bob = await owner_of(client), await owner_of(client, "bob@example.com")
        async with db.session() as session:
            organization_ids.append((await Organizations(session).create(name="Acme", owner_id=ana.id)).id)
    async with running(with_mfa(db, clock, required=is_member), clock) as client:
        ana.client, bob.client = await client.log_in(), await client.log_in("bob@example.com")
        assert await is_shut_out(ana)
        assert not await is_shut_out(bob)
    with pytest.raises(ConfigurationError, match="name one"):
        required_for_members()


async def test_logins_that_are_remembered_are_shut_out_and_let_in_at_once(
    sqlite_db: AsyncDatabase, clock: FakeClock
) -> None:
    app = with_mfa(sqlite_db, clock, mfa={"required": "roles", "roles": ("reader",)}, auth={"token_cache": "on"})
    add_cache(app)
    async with running(app, clock) as client:
        ana = await owner_of(client)
        assert not await is_shut_out(ana)
        await give_roles(sqlite_db, ANA, "reader")
        assert await is_shut_out(ana)
        await ana.enrol_totp()
        assert not await is_shut_out(ana)


async def test_what_was_opened_before_needs_the_factor_that_there_is(
    sqlite_db: AsyncDatabase, clock: FakeClock
) -> None:
    """A login from before the first factor can neither go on nor enrol another one: it must prove the first."""
    async with ana_with(sqlite_db, clock, mfa={"required": "roles", "roles": ("reader",)}) as ana:
        before = Owner(await ana.client.log_in(), ana.id)
        await ana.enrol_totp()
        await give_roles(sqlite_db, ANA, "reader")
        assert await is_shut_out(before)
        refused = await before.post("/auth/mfa/totp")
        assert_problem(refused, 401, "insufficient_user_authentication")
        assert 'acr_values="aal2"' in refused.headers["www-authenticate"]
        before.client.tokens |= (await before.post("/auth/reauthenticate", password=PASSWORD)).json()
        assert await is_shut_out(before)
        before.client.tokens |= (await before.post("/auth/reauthenticate", code=ana.code())).json()
        assert not await is_shut_out(before)
        assert (await before.post("/auth/mfa/totp")).status_code == 201


async def test_a_code_by_mail_is_not_enough(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with ana_with(sqlite_db, clock, mfa={"required": "all", "email_codes": True}) as ana:
        await ana.post("/auth/mfa/email")
        [code] = [values["code"] for name, _, values in ana.client.mailbox.sent if name == "mfa_code"]
        assert (await ana.post("/auth/mfa/email/confirm", code=code)).status_code == 200
        assert await is_shut_out(ana)


async def test_the_last_factor_of_who_must_have_one_stays(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with ana_with(sqlite_db, clock, mfa={"required": "all"}) as ana:
        first = (await ana.enrol_totp())["factor"]["id"]
        path = f"/auth/mfa/factors/{first}"
        assert_problem(await ana.http.delete(path, headers=ana.client.bearer), 409, "conflict")
        await ana.enrol_totp("Tablet")
        assert (await ana.http.delete(path, headers=ana.client.bearer)).status_code == 204


async def test_keys_are_not_affected(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = with_mfa(sqlite_db, clock, mfa={"required": "roles", "roles": ("reader",)})
    add_api_keys(app)
    async with running(app, clock) as client:
        ana = await owner_of(client)
        key = (await ana.post("/auth/api-keys", name="ci")).json()["key"]
        await give_roles(sqlite_db, ANA, "reader")
        assert await is_shut_out(ana)
        assert (await ana.http.get("/me", headers={"X-API-Key": key})).status_code == 200
        assert_problem(await ana.http.post("/danger", headers={"X-API-Key": key}), 403, "forbidden")
        assert_problem(await ana.http.get("/auth/mfa", headers={"X-API-Key": key}), 403, "forbidden")
