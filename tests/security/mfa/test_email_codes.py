"""Codes by mail: only where the app offers them and the owner has asked for them, and weak even then."""

from __future__ import annotations

from sqlalchemy import select

from svc_infra.db import AsyncDatabase
from svc_infra.security.mfa.models import Challenge
from svc_infra.testing import FakeClock
from tests.security.conftest import PASSWORD, assert_problem, running
from tests.security.mfa.conftest import ANA, Owner, owner_of, with_mfa


def mailed(owner: Owner) -> list[str]:
    return [values["code"] for name, to, values in owner.client.mailbox.sent if (name, to) == ("mfa_code", ANA)]


async def enrol(owner: Owner) -> None:
    assert (await owner.post("/auth/mfa/email")).status_code == 202
    answer = await owner.post("/auth/mfa/email/confirm", code=mailed(owner)[-1])
    assert answer.status_code == 200, answer.text
    assert answer.json()["recovery_codes"] == []
    owner.clock.advance(61)


async def send(owner: Owner, token: str) -> None:
    answer = await owner.http.post("/auth/mfa/email/send", json={"mfa_token": token})
    assert answer.status_code == 202, answer.text


def other(code: str) -> str:
    return f"{(int(code) + 1) % 10**8:08}"


async def test_a_code_by_mail_is_a_weak_second_factor(ana: Owner) -> None:
    app = with_mfa(ana.db, ana.clock, mfa={"email_codes": True})
    async with running(app, ana.clock) as client:
        ana.client = type(ana.client)(app, client.http, ana.clock, ana.client.tokens)
        await enrol(ana)
        first = await ana.log_in()
        assert first.json()["methods"] == ["email"]
        token = first.json()["mfa_token"]
        await send(ana, token)
        assert_problem(await ana.verify(token, other(mailed(ana)[-1])), 401, "invalid_credentials")
        answer = await ana.verify(token, mailed(ana)[-1])
        assert answer.status_code == 200, answer.text
        me = await ana.http.get("/me", headers={"Authorization": f"Bearer {answer.json()['access_token']}"})
        assert me.json()["methods"] == ["pwd", "email"]
        assert_problem(await ana.verify(await ana.step(), mailed(ana)[-1]), 401, "invalid_credentials")


async def test_an_app_that_does_not_offer_it_mails_no_codes(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with running(with_mfa(sqlite_db, clock), clock) as client:
        ana = await owner_of(client)
        assert_problem(await ana.post("/auth/mfa/email"), 403, "forbidden")
        assert_problem(await ana.post("/auth/mfa/email/confirm", code="12345678"), 403, "forbidden")
        await ana.enrol_totp()
        token = await ana.step()
        await send(ana, token)
        assert mailed(ana) == []


async def test_an_owner_who_has_not_enrolled_the_address_gets_no_code(here: Owner) -> None:
    """Otherwise whoever reads the mail would pass where an authenticator app was chosen."""
    await here.enrol_totp()
    await send(here, await here.step())
    assert (await here.post("/auth/mfa/reauthenticate/email")).status_code == 202
    assert mailed(here) == []


async def test_codes_are_mailed_a_minute_apart(here: Owner) -> None:
    await enrol(here)
    token = await here.step()
    for _ in range(3):
        await send(here, token)
    assert len(mailed(here)) == 2
    here.clock.advance(61)
    await send(here, token)
    assert len(set(mailed(here))) == 3
    assert (await here.verify(token, mailed(here)[-1])).status_code == 200


async def test_a_code_is_good_for_its_own_step_for_ten_minutes(here: Owner) -> None:
    await enrol(here)
    await here.post("/auth/mfa/reauthenticate/email")
    code = mailed(here)[-1]
    assert_problem(await here.verify(await here.step(), code), 401, "invalid_credentials")
    here.clock.advance(599)
    assert (await here.post("/auth/reauthenticate", code=code)).status_code == 200
    assert_problem(await here.post("/auth/reauthenticate", code=code), 401, "invalid_token")


async def test_a_code_is_too_old_after_ten_minutes_and_has_five_tries(here: Owner) -> None:
    await here.post("/auth/mfa/email")
    first = mailed(here)[-1]
    here.clock.advance(601)
    assert_problem(await here.post("/auth/mfa/email/confirm", code=first), 400, "bad_request")
    await here.post("/auth/mfa/email")
    second = mailed(here)[-1]
    for _ in range(5):
        assert_problem(await here.post("/auth/mfa/email/confirm", code=other(second)), 400, "bad_request")
    assert_problem(await here.post("/auth/mfa/email/confirm", code=second), 400, "bad_request")


async def test_an_address_is_enrolled_once_and_its_code_is_kept_as_a_hash(here: Owner) -> None:
    await here.post("/auth/mfa/email")
    here.clock.advance(61)
    code = mailed(here)[-1]
    async with here.db.session(read_only=True) as session:
        assert code not in str([vars(one) for one in await session.scalars(select(Challenge))])
    assert (await here.post("/auth/mfa/email/confirm", code=code)).status_code == 200
    assert_problem(await here.post("/auth/mfa/email"), 409, "conflict")
    assert (await here.log_in(PASSWORD)).status_code == 202
