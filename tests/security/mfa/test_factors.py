"""What is done to factors: named, taken away, reset by an administrator; and all of it on record."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import select

from svc_infra.security.access.http import routes_without_policy
from svc_infra.security.audit import AuditEntry
from svc_infra.security.mfa import Factors
from svc_infra.security.mfa.enrolment import Enrolment
from svc_infra.security.mfa.http import mfa_router
from svc_infra.security.mfa.login import FactorLogin
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, assert_problem
from tests.security.mfa.authenticator import Authenticator
from tests.security.mfa.conftest import ANA, Owner, owner_of, with_mfa
from tests.security.mfa.test_passkeys import enrol, enter, second_step


async def overview(owner: Owner) -> dict[str, Any]:
    answer: dict[str, Any] = (await owner.client.get("/auth/mfa")).json()
    return answer


async def remove(owner: Owner, factor_id: str) -> Any:
    return await owner.http.delete(f"/auth/mfa/factors/{factor_id}", headers=owner.client.bearer)


async def rename(owner: Owner, factor_id: str, name: str) -> Any:
    path = f"/auth/mfa/factors/{factor_id}"
    return await owner.http.patch(path, json={"name": name}, headers=owner.client.bearer)


async def test_a_factor_has_a_name_and_a_last_use(here: Owner) -> None:
    factor = (await here.enrol_totp())["factor"]
    assert (factor["kind"], factor["name"], factor["last_used_at"]) == ("totp", "Phone", None)
    assert (await rename(here, factor["id"], "Old phone")).json()["name"] == "Old phone"
    await here.verify(await here.step(), here.code())
    [shown] = (await overview(here))["factors"]
    assert shown["name"] == "Old phone"
    assert shown["last_used_at"] is not None
    assert not {"secret", "public_key", "last_step"} & shown.keys()
    for name in ("", "x" * 101):
        assert_problem(await rename(here, factor["id"], name), 422, "validation_error")


async def test_the_last_factor_takes_the_recovery_codes_with_it(ana: Owner) -> None:
    first, second = (await ana.enrol_totp())["factor"], (await ana.enrol_totp("Tablet"))["factor"]
    assert (await remove(ana, first["id"])).status_code == 204
    assert (await overview(ana))["recovery_codes_left"] == 10
    assert (await remove(ana, second["id"])).status_code == 204
    assert await overview(ana) == {"factors": [], "recovery_codes_left": 0, "required": False}
    assert (await ana.log_in()).status_code == 200


async def test_factors_are_changed_by_a_fresh_login_only(here: Owner) -> None:
    factor = (await here.enrol_totp())["factor"]
    here.clock.advance(901)
    here.client.tokens = (await here.client.refresh()).json()
    stale = [
        await remove(here, factor["id"]),
        await here.post("/auth/mfa/totp"),
        await here.post(f"/auth/mfa/totp/{factor['id']}/confirm", code=here.code()),
        await here.post("/auth/mfa/passkeys/options"),
        await here.post("/auth/mfa/passkeys", credential=Authenticator().create(OPTIONS)),
        await here.post("/auth/mfa/email"),
        await here.post("/auth/mfa/email/confirm", code="12345678"),
        await here.post("/auth/mfa/recovery-codes"),
    ]
    for answer in stale:
        assert_problem(answer, 401, "insufficient_user_authentication")


async def test_the_password_alone_changes_no_factors_of_an_account_that_has_some(here: Owner) -> None:
    """Nor does a login from before: whoever has stolen a password must not replace the app."""
    before = Owner(await here.client.log_in(), here.id)
    factor = (await here.enrol_totp())["factor"]
    assert_problem(await remove(before, factor["id"]), 401, "insufficient_user_authentication")
    assert_problem(await before.post("/auth/mfa/recovery-codes"), 401, "insufficient_user_authentication")
    before.client.tokens |= (await before.post("/auth/reauthenticate", code=here.code())).json()
    assert (await remove(before, factor["id"])).status_code == 204


async def test_another_accounts_factor_is_not_there(here: Owner) -> None:
    factor = (await here.enrol_totp())["factor"]
    bob = await owner_of(here.client, "bob@example.com")
    assert_problem(await remove(bob, factor["id"]), 404, "not_found")
    assert_problem(await rename(bob, factor["id"], "Mine"), 404, "not_found")
    assert_problem(await bob.post(f"/auth/mfa/totp/{factor['id']}/confirm", code=here.code()), 400, "bad_request")


async def test_an_account_has_at_most_twenty_factors(here: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svc_infra.security.mfa.factors.MAX_FACTORS", 1)
    await here.enrol_totp()
    assert_problem(await here.post("/auth/mfa/totp"), 409, "conflict")
    assert_problem(await here.post("/auth/mfa/passkeys/options"), 409, "conflict")
    assert_problem(await here.post("/auth/mfa/email"), 409, "conflict")


async def test_an_administrator_resets_everything_and_no_login_ends(ana: Owner) -> None:
    key = Authenticator()
    await enrol(ana, key)
    codes = (await ana.enrol_totp())["recovery_codes"] or (await ana.post("/auth/mfa/recovery-codes")).json()["codes"]
    token = await ana.step()
    factors = wiring_of(ana.client.app).get(Factors)
    assert await factors.reset(ana.id) == 2
    assert await factors.reset(ana.id) == 0
    for code in (ana.code(), codes[0]):
        assert_problem(await ana.verify(token, code), 401, "invalid_token")
    assert_problem(await enter(ana, key), 401, "invalid_credentials")
    assert await overview(ana) == {"factors": [], "recovery_codes_left": 0, "required": False}
    assert (await ana.log_in()).status_code == 200
    assert "mfa_reset" in ana.client.mailbox.to(ANA)


async def test_the_owner_is_told_of_every_change(here: Owner) -> None:
    factor = (await here.enrol_totp())["factor"]
    await remove(here, factor["id"])
    told = [(name, values.get("factor")) for name, to, values in here.client.mailbox.sent if name.startswith("mfa")]
    assert told == [("mfa_enrolled", "Phone"), ("mfa_removed", "Phone")]


async def test_an_account_that_is_deleted_takes_everything_with_it(ana: Owner) -> None:
    await ana.enrol_totp()
    await ana.step()
    answer = await ana.http.request("DELETE", "/auth/me", json={"password": PASSWORD}, headers=ana.client.bearer)
    assert answer.status_code == 204, answer.text


def test_every_route_says_who_may_call_it(clock: FakeClock) -> None:
    silent = routes_without_policy(with_mfa("sqlite://", clock))
    assert [route.path for route in silent if route.path.startswith("/auth")] == []


OPTIONS = {"user": {"id": "aGFuZGxl"}, "challenge": "eA"}


async def totp(owner: Owner) -> None:
    await owner.enrol_totp()


async def passkey(owner: Owner) -> None:
    await enrol(owner, Authenticator())


async def email(owner: Owner) -> None:
    await owner.post("/auth/mfa/email")
    code = [values["code"] for name, _, values in owner.client.mailbox.sent if name == "mfa_code"][-1]
    await owner.post("/auth/mfa/email/confirm", code=code)
    owner.clock.advance(61)


async def login_by_code(owner: Owner) -> None:
    await totp(owner)
    assert (await owner.verify(await owner.step(), owner.code())).status_code == 200


async def wrong_code(owner: Owner) -> None:
    await totp(owner)
    await owner.verify(await owner.step(), "000000")


async def login_by_passkey(owner: Owner) -> None:
    key = Authenticator()
    await enrol(owner, key)
    assert (await second_step(owner, key)).status_code == 200
    assert (await enter(owner, key)).status_code == 200


async def unknown_passkey(owner: Owner) -> None:
    await enter(owner, Authenticator(handle="eA"))


async def prove_again(owner: Owner) -> None:
    await totp(owner)
    owner.client.tokens |= (await owner.post("/auth/reauthenticate", code=owner.code())).json()


async def mailed_codes(owner: Owner) -> None:
    await email(owner)
    await owner.http.post("/auth/mfa/email/send", json={"mfa_token": await owner.step()})
    await owner.post("/auth/mfa/reauthenticate/email")


async def renaming(owner: Owner) -> None:
    await rename(owner, (await owner.enrol_totp())["factor"]["id"], "Old phone")


async def removing(owner: Owner) -> None:
    await remove(owner, (await owner.enrol_totp())["factor"]["id"])


async def new_codes(owner: Owner) -> None:
    await totp(owner)
    await owner.post("/auth/mfa/recovery-codes")


async def reset(owner: Owner) -> None:
    await wiring_of(owner.client.app).get(Factors).reset(owner.id)


CHANGES: dict[str, tuple[Callable[[Owner], Awaitable[None]], str]] = {  # as in test_everything_is_audited
    "POST /verify": (login_by_code, "mfa.used"),
    "POST /verify, wrongly": (wrong_code, "mfa.refused"),
    "POST /passkeys/login": (login_by_passkey, "mfa.used"),
    "POST /passkeys/login, unknown": (unknown_passkey, "mfa.refused"),
    "POST /email/send": (mailed_codes, "mfa.code_sent"),
    "POST /reauthenticate/email": (mailed_codes, "mfa.code_sent"),
    "POST /totp": (totp, "mfa.enrolment_begun"),
    "POST /totp/{factor_id:uuid}/confirm": (totp, "mfa.enrolled"),
    "POST /passkeys/options": (passkey, "mfa.enrolment_begun"),
    "POST /passkeys": (passkey, "mfa.enrolled"),
    "POST /email": (email, "mfa.enrolment_begun"),
    "POST /email/confirm": (email, "mfa.enrolled"),
    "POST /recovery-codes": (new_codes, "mfa.recovery_codes_made"),
    "PATCH /factors/{factor_id:uuid}": (renaming, "mfa.renamed"),
    "DELETE /factors/{factor_id:uuid}": (removing, "mfa.removed"),
    "Factors.reset": (reset, "mfa.reset"),
    "FactorLogin.reauthenticate": (prove_again, "session.reauthenticated"),
    "the first step": (wrong_code, "mfa.asked"),
}
BY_ROUTE = {  # each is what a route of the list above calls, or a part of it
    f"{kind.__name__}.{name}"
    for kind in (Factors, FactorLogin, Enrolment)
    for name in (
        *("rename", "remove", "enrolled", "room_for_one", "verify", "send_step_code", "passkey_login"),
        *("send_proof_code", "begin_totp", "confirm_totp", "passkey_options", "add_passkey", "send_email_code"),
        *("confirm_email", "new_recovery_codes", "list", "has_strong", "step_options", "proof_options"),
    )
}
ASKS = {"POST /options", "POST /passkeys/login/options", "POST /reauthenticate/options"}
"""What only makes something to be signed; what becomes of that is on record."""


def test_no_entry_point_is_forgotten() -> None:
    routes = [route for route in mfa_router("").routes if isinstance(route, APIRoute)]
    changing = {f"{method} {route.path}" for route in routes for method in (route.methods or set()) - {"GET"}}
    listed = {name for name in CHANGES if name.startswith(("POST", "PATCH", "DELETE")) and "," not in name}
    assert changing == listed | ASKS
    methods = {
        f"{kind.__name__}.{name}"
        for kind in (Factors, FactorLogin, Enrolment)
        for name, _ in inspect.getmembers(kind, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert methods <= BY_ROUTE | set(CHANGES)


async def test_every_change_is_on_record_without_secrets(here: Owner) -> None:
    """One account after the other, so that one app is enough."""
    for number, (name, (change, action)) in enumerate(CHANGES.items()):
        address = f"owner{number}@example.com"
        owner = await owner_of(here.client, address)
        here.client.mailbox.sent.clear()
        async with here.db.session(read_only=True) as session:
            before = set(await session.scalars(select(AuditEntry.id)))
        await change(owner)
        async with here.db.session(read_only=True) as session:
            new = [one for one in await session.scalars(select(AuditEntry)) if one.id not in before]
        found = [one for one in new if one.action == action]
        assert found, name
        assert {one.outcome for one in found} == {"failure" if action == "mfa.refused" else "success"}
        everything = json.dumps([[str(value) for value in vars(one).values()] for one in new])
        secrets = [PASSWORD, owner.secret, *owner.recovery_codes, owner.client.tokens["access_token"]]
        secrets += [values["code"] for _, _, values in here.client.mailbox.sent if "code" in values]
        assert not [secret for secret in secrets if secret and secret in everything], name
