"""Authenticator apps: enrolled with a code, asked for at every login, and each code is good once."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4
from xml.etree import ElementTree

import pyotp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from svc_infra.db import AsyncDatabase
from svc_infra.errors import SvcInfraError
from svc_infra.security.cipher import FieldCipher, SealedColumns
from svc_infra.security.keyring import KeyRing
from svc_infra.security.mfa.add import add_mfa
from svc_infra.security.mfa.totp import TotpFactors, secret_context
from svc_infra.security.models import User
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import SECRET, assert_problem
from tests.security.mfa.conftest import ANA, Owner


async def test_a_login_with_an_app_takes_two_steps(ana: Owner) -> None:
    await ana.enrol_totp()
    first = await ana.log_in()
    assert first.status_code == 202
    assert first.headers["cache-control"] == "no-store"
    needed = first.json()
    assert needed.keys() == {"mfa_token", "methods", "expires_in"}
    assert (needed["methods"], needed["expires_in"]) == (["recovery_code", "totp"], 300)
    assert "set-cookie" not in first.headers
    answer = await ana.verify(needed["mfa_token"], ana.code())
    assert answer.status_code == 200, answer.text
    tokens = answer.json()
    assert tokens.keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    me = await ana.http.get("/me", headers={"Authorization": f"Bearer {tokens['access_token']}"})
    assert me.json()["methods"] == ["pwd", "otp", "mfa"]


async def test_the_first_step_opens_nothing(ana: Owner) -> None:
    await ana.enrol_totp()
    before = len((await ana.client.get("/auth/sessions")).json())
    token = await ana.step()
    assert len((await ana.client.get("/auth/sessions")).json()) == before
    for headers in ({"Authorization": f"Bearer {token}"}, {"Authorization": f"Bearer a.{token}.b"}):
        assert (await ana.http.get("/me", headers=headers)).status_code == 401
    assert_problem(await ana.http.post("/auth/refresh", json={"refresh_token": token}), 401, "invalid_token")


async def test_a_second_step_gives_one_login(ana: Owner) -> None:
    await ana.enrol_totp()
    token = await ana.step()
    assert (await ana.verify(token, ana.code())).status_code == 200
    ana.clock.advance(30)
    assert_problem(await ana.verify(token, ana.code()), 401, "invalid_token")


async def test_a_code_is_good_once_for_each_of_many_steps_at_once(ana: Owner) -> None:
    await ana.enrol_totp()
    tokens = [await ana.step() for _ in range(4)]
    answers = await asyncio.gather(*(ana.verify(token, ana.code()) for token in tokens))
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401]


async def test_one_second_step_that_is_shown_many_times_at_once_opens_one_login(ana: Owner) -> None:
    await ana.enrol_totp()
    token = await ana.step()
    codes = [ana.code(), *ana.recovery_codes[:3]]
    answers = await asyncio.gather(*(ana.verify(token, code) for code in codes))
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401]


async def test_the_code_that_enrols_an_app_is_used_up_by_it(here: Owner) -> None:
    await here.enrol_totp()
    here.clock.advance(-30)
    assert_problem(await here.verify(await here.step(), here.code()), 401, "invalid_credentials")


async def test_a_code_before_the_last_one_is_refused_although_its_time_is_not_over(here: Owner) -> None:
    await here.enrol_totp()
    here.clock.advance(60)
    assert (await here.verify(await here.step(), here.code(steps=1))).status_code == 200
    assert (await here.verify(await here.step(), here.code())).status_code == 401
    here.clock.advance(60)
    assert (await here.verify(await here.step(), here.code())).status_code == 200


async def test_an_apps_clock_may_be_one_step_off(here: Owner) -> None:
    await here.enrol_totp()
    for steps, status in [(-2, 401), (-1, 200), (0, 200), (1, 200), (2, 401)]:
        here.clock.advance(300)
        assert (await here.verify(await here.step(), here.code(steps=steps))).status_code == status


async def test_what_is_no_code_proves_nothing(here: Owner) -> None:
    await here.enrol_totp()
    for code in ["000 000 ", "１２３４５６", "12345", "1234567", "abcdef", "-" * 64, "\x00" * 6, " "]:
        assert_problem(await here.verify(await here.step(), code), 401, "invalid_credentials")
        here.clock.advance(7200)
    assert_problem(await here.verify(await here.step(), "1" * 65), 422, "validation_error")


async def test_a_code_may_be_typed_with_blanks(here: Owner) -> None:
    await here.enrol_totp()
    code = here.code()
    assert (await here.verify(await here.step(), f" {code[:3]} {code[3:]} ")).status_code == 200


async def test_an_app_is_shown_its_secret_once_and_as_a_picture(here: Owner) -> None:
    answer = await here.post("/auth/mfa/totp", name="Phone")
    assert answer.headers["cache-control"] == "no-store"
    shown = answer.json()
    uri = urlsplit(shown["otpauth_uri"])
    assert (uri.scheme, uri.netloc) == ("otpauth", "totp")
    assert parse_qs(uri.query)["secret"] == [shown["secret"]]
    assert parse_qs(uri.query)["issuer"] == ["service"]
    assert ANA in uri.path.replace("%40", "@")
    picture = ElementTree.fromstring(shown["qr_svg"])
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert not [name for one in picture.iter() for name in one.attrib if "href" in name or name == "src"]
    assert "http" not in shown["qr_svg"].replace("http://www.w3.org/2000/svg", "")
    overview = (await here.client.get("/auth/mfa")).json()
    assert overview == {"factors": [], "recovery_codes_left": 0, "required": False}


async def test_an_app_counts_only_once_it_has_given_a_code_in_time(here: Owner) -> None:
    begun = (await here.post("/auth/mfa/totp")).json()
    assert (await here.log_in()).status_code == 200
    here.secret = begun["secret"]
    confirm = f"/auth/mfa/totp/{begun['id']}/confirm"
    wrong = f"{(int(here.code()) + 1) % 10**6:06}"
    assert_problem(await here.post(confirm, code=wrong), 400, "bad_request")
    here.clock.advance(601)
    assert_problem(await here.post(confirm, code=here.code()), 400, "bad_request")
    again = (await here.post("/auth/mfa/totp")).json()
    here.secret = again["secret"]
    assert (await here.post(f"/auth/mfa/totp/{again['id']}/confirm", code=here.code())).status_code == 200
    assert_problem(
        await here.post(f"/auth/mfa/totp/{again['id']}/confirm", code=here.code(steps=1)), 400, "bad_request"
    )


async def test_the_secret_is_sealed_for_its_own_row_and_sealed_anew_with_a_new_key(
    here: Owner, sqlite_db: AsyncDatabase
) -> None:
    await here.enrol_totp()
    async with sqlite_db.session(read_only=True) as session:
        [stored] = await session.scalars(text("SELECT secret FROM svc_mfa_factors"))
    assert here.secret not in stored
    wiring = wiring_of(here.client.app)
    assert (await wiring.get(SealedColumns).rotate(sqlite_db))["svc_mfa_factors.secret"] == 0
    cipher = wiring.get(FieldCipher)
    with pytest.raises(SvcInfraError, match="belongs elsewhere"):
        cipher.open(stored, context=secret_context(uuid4()))


async def test_a_first_code_is_read_as_people_type_it_and_anything_else_is_wrong(here: Owner) -> None:
    begun = (await here.post("/auth/mfa/totp", name="Phone")).json()
    here.secret, confirm = begun["secret"], f"/auth/mfa/totp/{begun['id']}/confirm"
    arabic = here.code().translate({ord("0") + digit: 0x660 + digit for digit in range(10)})
    for wrong in ("\u00e9", arabic, "12345", " ", "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace")):
        assert_problem(await here.post(confirm, code=wrong), 400, "bad_request")
    assert (await here.post(confirm, code=f" {here.code()[:3]} {here.code()[3:]}")).status_code == 200


HISTORY = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 29, 30, 61]),  # seconds that pass
        st.integers(-2, 2),  # how many steps the app's clock is off
        st.integers(1, 4),  # how often the code is shown at once
    ),
    max_size=8,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=HISTORY)
async def test_every_history_of_an_app_follows_the_rules(
    history: list[tuple[int, int, int]], db: AsyncDatabase
) -> None:
    """Against a model: a code counts when its step is at most one off and later than the last one that counted."""
    clock = FakeClock()
    factors = TotpFactors(FieldCipher(KeyRing(SECRET)), issuer="us", clock=clock)
    async with db.session() as session:
        user = User(email=f"{uuid4().hex}@example.com")
        session.add(user)
        await session.flush()
        factor, secret = await factors.begin(session, user.id, "Phone")
        app = pyotp.TOTP(secret)
        assert await factors.confirm(session, user.id, factor.id, app.at(clock.now()))
    last = app.timecode(clock.now())

    async def show(code: str) -> bool:
        async with db.session() as session:
            return await factors.use(session, user.id, code) is not None

    for seconds, drift, times in history:
        clock.advance(seconds)
        step = app.timecode(clock.now()) + drift
        accepted = await asyncio.gather(*[show(app.generate_otp(step)) for _ in range(times)])
        good = abs(drift) <= 1 and step > last
        assert accepted.count(True) == good
        last = step if good else last


async def test_a_second_call_changes_nothing(here: Owner, clock: FakeClock) -> None:
    routes = len(here.client.app.routes)
    add_mfa(here.client.app)
    assert len(here.client.app.routes) == routes
