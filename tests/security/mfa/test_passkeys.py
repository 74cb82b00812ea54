"""Passkeys: enrolled, asked for in the second step and later, and enough alone; what is not quite one is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.security.cookies import SECOND_STEP_COOKIE
from svc_infra.security.mfa.challenges import Challenges
from svc_infra.security.mfa.models import Challenge
from svc_infra.security.mfa.passkeys import Passkeys
from svc_infra.security.models import User
from svc_infra.testing import FakeClock
from svc_infra.types import new_id
from tests.security.conftest import PASSWORD, assert_problem, running, service
from tests.security.mfa.authenticator import ORIGIN, Authenticator, b64, unb64
from tests.security.mfa.conftest import ANA, Owner, owner_of, with_mfa


async def enrol(owner: Owner, key: Authenticator, name: str = "Laptop") -> httpx2.Response:
    options = await owner.post("/auth/mfa/passkeys/options")
    assert options.status_code == 200, options.text
    return await owner.post("/auth/mfa/passkeys", credential=key.create(options.json()["public_key"]), name=name)


async def enter(owner: Owner, key: Authenticator, **changes: Any) -> httpx2.Response:
    """Log in with a passkey alone."""
    options = (await owner.http.post("/auth/mfa/passkeys/login/options", json={})).json()["public_key"]
    assert "allowCredentials" not in options or options["allowCredentials"] == []
    assert (options["userVerification"], options["rpId"]) == ("required", "localhost")
    return await owner.http.post("/auth/mfa/passkeys/login", json={"credential": key.get(options, **changes)})


async def second_step(owner: Owner, key: Authenticator) -> httpx2.Response:
    """Log in with the password and a passkey."""
    token = await owner.step()
    options = (await owner.http.post("/auth/mfa/options", json={"mfa_token": token})).json()["public_key"]
    answer = {"mfa_token": token, "credential": key.get(options)}
    return await owner.http.post("/auth/mfa/verify", json=answer)


async def methods(owner: Owner, answer: httpx2.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    said: list[str] = (await owner.http.get("/me", headers=headers)).json()["methods"]
    return said


@pytest.fixture
async def enrolled(here: Owner) -> tuple[Owner, Authenticator]:
    key = Authenticator()
    assert (await enrol(here, key)).status_code == 201
    return here, key


async def test_a_passkey_is_a_second_factor_and_enough_alone(ana: Owner) -> None:
    key = Authenticator()
    answer = await enrol(ana, key)
    assert answer.status_code == 201, answer.text
    assert answer.json()["factor"]["kind"] == "webauthn"
    assert len(answer.json()["recovery_codes"]) == 10
    assert await methods(ana, await second_step(ana, key)) == ["pwd", "pop", "mfa"]
    assert await methods(ana, await enter(ana, key)) == ["pop", "user", "mfa"]


async def test_an_account_has_several_under_one_random_handle(enrolled: tuple[Owner, Authenticator]) -> None:
    ana, first = enrolled
    second = Authenticator()
    options = (await ana.post("/auth/mfa/passkeys/options")).json()["public_key"]
    assert [one["id"] for one in options["excludeCredentials"]] == [b64(first.id)]
    assert options["rp"] == {"id": "localhost", "name": "service"}
    assert (await ana.post("/auth/mfa/passkeys", credential=second.create(options), name="Key")).status_code == 201
    assert second.handle == first.handle
    assert len(unb64(first.handle)) == 32
    assert ana.id.bytes not in unb64(first.handle)
    named = [one["name"] for one in (await ana.client.get("/auth/mfa")).json()["factors"]]
    assert named == ["Laptop", "Key"]
    assert await methods(ana, await enter(ana, second)) == ["pop", "user", "mfa"]


async def test_a_key_without_user_verification_is_a_second_factor_only(here: Owner) -> None:
    key = Authenticator(verifies=False)
    assert (await enrol(here, key)).status_code == 201
    assert await methods(here, await second_step(here, key)) == ["pwd", "pop", "mfa"]
    assert_problem(await enter(here, key), 401, "invalid_credentials")


WRONG: dict[str, dict[str, Any]] = {
    "another origin": {"origin": "https://evil.example"},
    "another origin below ours": {"origin": "https://localhost.evil.example"},
    "our origin without TLS": {"origin": "http://localhost"},
    "another domain": {"rp_id": "evil.example"},
    "a frame of another page": {"cross_origin": True},
    "another account's handle": {"handle": b64(b"x" * 32)},
    "no handle": {"handle": None},
    "a counter that went back": {"sign_count": 3},
    "a counter that stands still": {"sign_count": 5, "counts": False},
    "another key": {"key": Authenticator().key},
    "another credential": {"id": b"y" * 32},
}


async def test_what_is_not_quite_the_passkey_is_refused(enrolled: tuple[Owner, Authenticator]) -> None:
    ana, key = enrolled
    key.sign_count = 4
    assert (await enter(ana, key)).status_code == 200
    assert key.sign_count == 5
    for wrong in WRONG.values():
        assert_problem(await enter(ana, replace(key, **wrong)), 401, "invalid_credentials")
        ana.clock.advance(7200)
    assert (await enter(ana, key)).status_code == 200


async def test_a_passkey_that_was_made_elsewhere_is_not_enrolled(here: Owner) -> None:
    for wrong in ({"origin": "https://evil.example"}, {"rp_id": "evil.example"}, {"cross_origin": True}):
        assert_problem(await enrol(here, Authenticator(**wrong)), 401, "invalid_credentials")
    assert (await here.client.get("/auth/mfa")).json()["factors"] == []


async def test_an_answer_is_good_once(enrolled: tuple[Owner, Authenticator]) -> None:
    ana, key = enrolled
    options = (await ana.http.post("/auth/mfa/passkeys/login/options", json={})).json()["public_key"]
    answer = key.get(options)
    tries = [ana.http.post("/auth/mfa/passkeys/login", json={"credential": answer}) for _ in range(4)]
    assert sorted(one.status_code for one in await asyncio.gather(*tries)) == [200, 401, 401, 401]


async def test_a_challenge_is_used_up_by_a_wrong_answer(enrolled: tuple[Owner, Authenticator]) -> None:
    ana, key = enrolled
    options = (await ana.http.post("/auth/mfa/passkeys/login/options", json={})).json()["public_key"]
    wrong, right = key.get(options, signature=b64(b"wrong")), key.get(options)
    for answer in (wrong, right):
        refused = await ana.http.post("/auth/mfa/passkeys/login", json={"credential": answer})
        assert_problem(refused, 401, "invalid_credentials")


async def test_a_challenge_ends_after_five_minutes(enrolled: tuple[Owner, Authenticator]) -> None:
    ana, key = enrolled
    options = (await ana.http.post("/auth/mfa/passkeys/login/options", json={})).json()["public_key"]
    ana.clock.advance(301)
    late = await ana.http.post("/auth/mfa/passkeys/login", json={"credential": key.get(options)})
    assert_problem(late, 401, "invalid_credentials")


async def test_a_challenge_is_good_for_what_it_was_made_for_only(enrolled: tuple[Owner, Authenticator]) -> None:
    """One for a second step, for another second step, for a login's proof, or for enrolling opens nothing else."""
    ana, key = enrolled
    token, other = await ana.step(), await ana.step()
    step = (await ana.http.post("/auth/mfa/options", json={"mfa_token": token})).json()["public_key"]
    proof = (await ana.post("/auth/mfa/reauthenticate/options")).json()["public_key"]
    new = (await ana.post("/auth/mfa/passkeys/options")).json()["public_key"]
    for options in (step, proof, new):
        answer = await ana.http.post("/auth/mfa/passkeys/login", json={"credential": key.get(options)})
        assert_problem(answer, 401, "invalid_credentials")
    crossed = {"mfa_token": other, "credential": key.get(step)}
    assert_problem(await ana.http.post("/auth/mfa/verify", json=crossed), 401, "invalid_credentials")
    right = {"mfa_token": token, "credential": key.get(step)}
    assert (await ana.http.post("/auth/mfa/verify", json=right)).status_code == 200


async def test_a_passkey_of_another_account_is_no_second_factor(enrolled: tuple[Owner, Authenticator]) -> None:
    ana, key = enrolled
    bob = await owner_of(ana.client, "bob@example.com")
    bobs = Authenticator()
    assert (await enrol(bob, bobs)).status_code == 201
    assert_problem(await second_step(bob, key), 401, "invalid_credentials")
    assert (await second_step(bob, bobs)).status_code == 200


async def test_a_passkey_belongs_to_one_account(enrolled: tuple[Owner, Authenticator]) -> None:
    ana, key = enrolled
    bob = await owner_of(ana.client, "bob@example.com")
    assert_problem(await enrol(bob, key), 409, "conflict")


async def test_what_one_login_began_another_one_cannot_enrol(enrolled: tuple[Owner, Authenticator]) -> None:
    ana, _ = enrolled
    bob = await owner_of(ana.client, "bob@example.com")
    options = (await ana.post("/auth/mfa/passkeys/options")).json()["public_key"]
    answer = await bob.post("/auth/mfa/passkeys", credential=Authenticator().create(options), name="Mine")
    assert_problem(answer, 401, "invalid_credentials")


async def test_a_disabled_account_and_an_unknown_passkey_get_the_same_answer(
    enrolled: tuple[Owner, Authenticator],
) -> None:
    ana, key = enrolled
    unknown = await enter(ana, Authenticator(handle=key.handle))
    await ana.post("/auth/disable", password=PASSWORD)
    disabled = await enter(ana, key)
    said = [(answer.json()["code"], answer.json()["detail"]) for answer in (unknown, disabled)]
    assert said[0] == said[1]
    assert unknown.status_code == 401


async def test_a_browsers_login_is_bound_to_it(enrolled: tuple[Owner, Authenticator]) -> None:
    ana, key = enrolled
    begun = await ana.http.post("/auth/mfa/passkeys/login/options", json={"cookies": True})
    options, secret = begun.json()["public_key"], ana.http.cookies[SECOND_STEP_COOKIE]
    ana.http.cookies.clear()
    body = {"credential": key.get(options), "cookies": True}
    assert_problem(await ana.http.post("/auth/mfa/passkeys/login", json=body), 401, "invalid_credentials")
    evil = {"Origin": "https://evil.example", "Cookie": f"{SECOND_STEP_COOKIE}={secret}"}
    assert_problem(await ana.http.post("/auth/mfa/passkeys/login", json=body, headers=evil), 403, "forbidden")
    own = {"Cookie": f"{SECOND_STEP_COOKIE}={secret}"}
    answer = await ana.http.post("/auth/mfa/passkeys/login", json=body, headers=own)
    assert answer.status_code == 200, answer.text
    assert answer.json()["token_type"] == "cookie"
    assert "__Host-access" in answer.headers["set-cookie"]


async def test_a_browsers_login_by_a_passkey_ends_the_one_before(enrolled: tuple[Owner, Authenticator]) -> None:
    ana, key = enrolled
    before = len((await ana.client.get("/auth/sessions")).json())
    for _ in range(2):
        begun = await ana.http.post("/auth/mfa/passkeys/login/options", json={"cookies": True})
        body = {"credential": key.get(begun.json()["public_key"]), "cookies": True}
        assert (await ana.http.post("/auth/mfa/passkeys/login", json=body)).status_code == 200
        assert len((await ana.client.get("/auth/sessions")).json()) == before + 1


async def test_the_host_header_decides_nothing(enrolled: tuple[Owner, Authenticator]) -> None:
    ana, key = enrolled
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    begun = await ana.http.post("/auth/mfa/passkeys/login/options", json={}, headers=headers)
    assert begun.json()["public_key"]["rpId"] == "localhost"
    key.origin = "https://evil.example"
    evil = {"credential": key.get(begun.json()["public_key"])}
    answer = await ana.http.post("/auth/mfa/passkeys/login", json=evil, headers=headers)
    assert_problem(answer, 401, "invalid_credentials")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    part=st.sampled_from(["clientDataJSON", "authenticatorData", "signature", "userHandle"]),
    data=st.one_of(st.binary(min_size=1, max_size=200), st.just(b'{"challenge":"x"}'), st.just(b"[" * 9000)),
)
async def test_no_rubbish_is_an_answer(part: str, data: bytes, enrolled: tuple[Owner, Authenticator]) -> None:
    ana, key = enrolled
    ana.clock.advance(7200)
    answer = await enter(ana, key, **{part: b64(data)})
    assert answer.status_code in (401, 429)


async def test_of_two_answers_with_one_counter_at_once_one_is_believed(db: AsyncDatabase, clock: FakeClock) -> None:
    """Both may have been verified before either was noted: the statement that notes it decides."""
    passkeys = Passkeys(Challenges(clock=clock), rp_id="localhost", rp_name="us", origins=[ORIGIN], clock=clock)
    key = Authenticator()
    async with db.session() as session:
        user = User(email=ANA)
        session.add(user)
        await session.flush()
        made = key.create(await passkeys.enrol_options(session, user, new_id()))
        challenge = (await session.scalars(select(Challenge))).one()
        await passkeys.enrol(session, challenge, made, "Laptop")
        answer = key.get(await passkeys.options(session))

    async def use() -> bool:
        async with db.session() as session:
            return await passkeys.use(session, user.id, answer, alone=True) is not None

    assert sorted(await asyncio.gather(*[use() for _ in range(4)])) == [False, False, False, True]


async def test_an_app_without_a_domain_for_passkeys_does_not_start_in_prod(
    sqlite_db: AsyncDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_SECRET", "s" * 40)
    for section, said in [({}, "MFA_RP_ID"), ({"rp_id": "example.com", "origins": ("http://example.com",)}, "https")]:
        app = with_mfa(sqlite_db, clock, mfa=section, env="dev")
        with pytest.raises(ConfigurationError, match=said):
            async with running(app, clock):
                pass


async def test_an_app_may_have_no_passkeys(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with running(with_mfa(sqlite_db, clock, passkeys=False), clock) as client:
        ana = await owner_of(client)
        assert_problem(await ana.post("/auth/mfa/passkeys/options"), 403, "forbidden")
        answer = await ana.http.post("/auth/mfa/passkeys/login/options", json={})
        assert_problem(answer, 401, "invalid_credentials")


async def test_an_account_with_a_passkey_stays_closed_where_passkeys_are_gone(
    enrolled: tuple[Owner, Authenticator], sqlite_db: AsyncDatabase
) -> None:
    """The password alone must not open it again; a recovery code still does."""
    ana, _ = enrolled
    async with running(with_mfa(sqlite_db, ana.clock, passkeys=False), ana.clock) as client:
        answer = await client.http.post("/auth/login", json={"email": ana.email, "password": PASSWORD})
        assert (answer.status_code, answer.json()["methods"]) == (202, ["recovery_code"])


def test_accounts_alone_have_no_such_routes(clock: FakeClock) -> None:
    paths = service("sqlite://", clock).openapi()["paths"]
    assert not [path for path in paths if "mfa" in path]
