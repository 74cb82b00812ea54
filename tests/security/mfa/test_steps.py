"""The second step of a login: for a while, for one account, in one browser, and not to be guessed."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db import AsyncDatabase
from svc_infra.security import Accounts
from svc_infra.security.accounts.http import accounts_router
from svc_infra.security.aliases import aliases_router
from svc_infra.security.cookies import ACCESS_COOKIE, SECOND_STEP_COOKIE
from svc_infra.security.mfa.add import add_mfa
from svc_infra.security.mfa.challenges import Challenges
from svc_infra.security.mfa.models import Challenge
from svc_infra.security.models import Session, User
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, assert_problem, running, service
from tests.security.mfa.conftest import ANA, Owner, claims, owner_of

WRONG = "000000"


async def test_a_step_ends_after_five_minutes(here: Owner) -> None:
    await here.enrol_totp()
    token = await here.step()
    here.clock.advance(301)
    assert_problem(await here.verify(token, here.code()), 401, "invalid_token")


async def test_a_step_that_is_unknown_is_refused(here: Owner) -> None:
    await here.enrol_totp()
    token = await here.step()
    for other in ("x", token[:-1], token + "x", token.swapcase(), "é"):
        assert_problem(await here.verify(other, here.code()), 401, "invalid_token")
        assert (await here.http.post("/auth/mfa/options", json={"mfa_token": other})).status_code == 401
        assert (await here.http.post("/auth/mfa/email/send", json={"mfa_token": other})).status_code == 401
    assert_problem(await here.verify("x" * 129, here.code()), 422, "validation_error")


async def test_a_step_proves_factors_of_its_own_account_only(here: Owner) -> None:
    await here.enrol_totp()
    bob = await owner_of(here.client, "bob@example.com")
    await bob.enrol_totp()
    token = await here.step()
    for code in (bob.code(), bob.recovery_codes[0]):
        assert_problem(await here.verify(token, code), 401, "invalid_credentials")


async def test_a_browsers_login_before_ends_with_the_second_step_and_not_before(here: Owner) -> None:
    assert (await here.log_in(cookies=True)).status_code == 200
    await here.enrol_totp()

    async def logins() -> int:
        return len((await here.client.get("/auth/sessions")).json())

    assert await logins() == 2
    token = (await here.log_in(cookies=True)).json()["mfa_token"]
    assert await logins() == 2, "nothing was proven yet"
    assert (await here.verify(token, here.code())).status_code == 200
    assert await logins() == 2, "the new one is there, and the one before is gone"
    here.clock.advance(30)
    token = await here.step()  # a client without cookies, in the same browser
    assert (await here.http.post("/auth/mfa/verify", json={"mfa_token": token, "code": here.code()})).status_code == 200
    assert await logins() == 3


async def test_a_browsers_step_is_good_in_that_browser_only(here: Owner) -> None:
    await here.enrol_totp()
    first = await here.log_in(cookies=True)
    assert first.status_code == 202
    cookie = first.headers["set-cookie"]
    assert cookie.startswith(f"{SECOND_STEP_COOKIE}=")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    token, secret = first.json()["mfa_token"], here.http.cookies[SECOND_STEP_COOKIE]
    here.http.cookies.clear()
    assert_problem(await here.verify(token, here.code()), 401, "invalid_token")
    here.http.cookies.set(SECOND_STEP_COOKIE, "x" * 43)
    assert_problem(await here.verify(token, here.code()), 401, "invalid_token")
    evil = {"Cookie": f"{SECOND_STEP_COOKIE}={secret}", "Origin": "https://evil.example"}
    body = {"mfa_token": token, "code": here.code()}
    assert_problem(await here.http.post("/auth/mfa/verify", json=body, headers=evil), 403, "forbidden")
    here.http.cookies.set(SECOND_STEP_COOKIE, secret)
    answer = await here.verify(token, here.code())
    assert answer.json()["token_type"] == "cookie"
    assert ACCESS_COOKIE in answer.headers["set-cookie"]
    assert f'{SECOND_STEP_COOKIE}=""; HttpOnly; Max-Age=0' in answer.headers["set-cookie"]


async def test_a_step_ends_with_the_password_and_with_the_account(here: Owner) -> None:
    await here.enrol_totp()
    token = await here.step()
    new = {"current_password": PASSWORD, "new_password": "another horse battery"}
    assert (await here.post("/auth/password", **new)).status_code == 204
    assert_problem(await here.verify(token, here.code()), 401, "invalid_token")
    token = str((await here.log_in("another horse battery")).json()["mfa_token"])
    assert (await here.post("/auth/disable", password="another horse battery")).status_code == 204
    assert_problem(await here.verify(token, here.code()), 401, "invalid_token")


async def test_an_account_that_changes_while_a_code_is_looked_at_is_not_opened(
    here: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.enrol_totp()
    token, attempt = await here.step(), Challenges.attempt

    async def meanwhile(self: Challenges, session: AsyncSession, challenge: Challenge) -> bool:
        await session.execute(update(User).where(User.id == here.id).values(password_hash="another"))
        return await attempt(self, session, challenge)

    monkeypatch.setattr(Challenges, "attempt", meanwhile)
    assert_problem(await here.verify(token, here.code()), 401, "invalid_credentials")


async def test_the_right_password_does_not_forget_wrong_codes(ana: Owner) -> None:
    """Whoever knows the password has five codes, as anybody has five passwords, and then waits ever longer."""
    await ana.enrol_totp()
    for _ in range(4):
        assert_problem(await ana.verify(await ana.step(), WRONG), 401, "invalid_credentials")
    assert_problem(await ana.verify(await ana.step(), WRONG), 401, "invalid_credentials")
    assert_problem(await ana.log_in(), 429, "rate_limited")
    assert "unlock" in ana.client.mailbox.to(ANA)
    ana.clock.advance(31)
    assert_problem(await ana.verify(await ana.step(), WRONG), 401, "invalid_credentials")
    ana.clock.advance(31)
    locked = assert_problem(await ana.log_in(), 429, "rate_limited")
    assert locked
    ana.clock.advance(30)
    token = await ana.step()
    assert (await ana.verify(token, ana.code())).status_code == 200
    for _ in range(4):
        await ana.verify(await ana.step(), WRONG)
    assert (await ana.log_in()).status_code == 202


async def test_wrong_passwords_and_wrong_codes_add_up(here: Owner) -> None:
    await here.enrol_totp()
    token = await here.step()
    for _ in range(2):
        await here.log_in("wrong password")
        await here.verify(token, WRONG)
    await here.log_in("wrong password")
    assert_problem(await here.verify(token, here.code()), 429, "rate_limited")


async def test_a_login_that_can_be_proven_again_guesses_no_codes_either(here: Owner) -> None:
    await here.enrol_totp()
    for _ in range(4):
        assert (await here.post("/auth/reauthenticate", code=WRONG)).status_code == 401
        renewed = await here.post("/auth/reauthenticate", password=PASSWORD)
        here.client.tokens |= renewed.json()
    assert (await here.post("/auth/reauthenticate", code=WRONG)).status_code == 401
    assert_problem(await here.post("/auth/reauthenticate", password=PASSWORD), 429, "rate_limited")


async def test_a_step_has_five_attempts_whatever_the_lockout_says(here: Owner) -> None:
    await here.enrol_totp()
    token = await here.step()
    for _ in range(5):
        await here.verify(token, WRONG)
        async with here.db.session() as session:
            await wiring_of(here.client.app).get(Accounts).unlock(session, here.id)
    assert_problem(await here.verify(token, here.code()), 401, "invalid_token")


async def test_many_wrong_codes_at_once_are_many_attempts(ana: Owner) -> None:
    await ana.enrol_totp()
    tokens = [await ana.step() for _ in range(8)]
    answers = await asyncio.gather(*(ana.verify(token, WRONG) for token in tokens))
    assert sorted(answer.status_code for answer in answers) == [401] * 5 + [429] * 3


async def test_what_is_too_old_is_swept(here: Owner) -> None:
    await here.enrol_totp()
    for _ in range(3):
        await here.step()
    here.clock.advance(3600)
    await here.step()
    async with here.db.session(read_only=True) as session:
        assert await session.scalar(select(func.count()).select_from(Challenge)) == 1


async def test_the_older_paths_take_two_steps_too(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = service(sqlite_db, clock)
    add_mfa(app)
    app.include_router(aliases_router(accounts_router("/auth")))
    async with running(app, clock) as client:
        ana = await owner_of(client)
        await ana.enrol_totp()
        answer = await client.http.post("/users/login", data={"username": ANA, "password": PASSWORD})
        assert (answer.status_code, "access_token" in answer.json()) == (202, False)


async def test_an_access_token_says_how_and_when_it_was_proven(here: Owner) -> None:
    await here.enrol_totp()
    pair = (await here.verify(await here.step(), here.code())).json()
    proven_at = int(here.clock.now().timestamp())
    said = claims(pair["access_token"])
    assert (said["auth_time"], said["amr"], said["acr"]) == (proven_at, ["pwd", "otp", "mfa"], "aal2")
    here.clock.advance(600)
    again = (await here.http.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})).json()
    assert claims(again["access_token"])["auth_time"] == proven_at
    assert claims(again["access_token"])["amr"] == ["pwd", "otp", "mfa"]
    password_only = await owner_of(here.client, "bob@example.com")
    assert claims(password_only.client.tokens["access_token"])["acr"] == "aal1"
    async with here.db.session(read_only=True) as session:
        assert await session.scalar(select(func.count()).select_from(Session)) == 3
