"""Recovery codes: ten, shown once, kept as hashes, each good once."""

from __future__ import annotations

import asyncio
import re

from sqlalchemy import select

from svc_infra.security.mfa.models import RecoveryCode
from tests.security.conftest import assert_problem
from tests.security.mfa.conftest import ANA, Owner, owner_of


async def left(owner: Owner) -> int:
    return int((await owner.client.get("/auth/mfa")).json()["recovery_codes_left"])


async def test_the_first_factor_brings_ten_codes_that_are_kept_as_hashes(here: Owner) -> None:
    enrolled = await here.enrol_totp()
    codes = enrolled["recovery_codes"]
    assert len(set(codes)) == 10
    assert all(re.fullmatch(r"([a-z2-7]{4}-){5}[a-z2-7]{4}", code) for code in codes)
    async with here.db.session(read_only=True) as session:
        stored = list(await session.scalars(select(RecoveryCode.code_hash)))
    assert {len(one) for one in stored} == {64}
    assert not set(stored) & set(codes)
    assert (await here.enrol_totp("Tablet"))["recovery_codes"] == []
    assert await left(here) == 10


async def test_a_code_is_good_once_however_it_is_typed(here: Owner) -> None:
    await here.enrol_totp()
    code = here.recovery_codes[0]
    typed = code.replace("-", " ").upper()
    assert (await here.verify(await here.step(), typed)).status_code == 200
    assert_problem(await here.verify(await here.step(), code), 401, "invalid_credentials")
    assert await left(here) == 9


async def test_of_twenty_uses_at_once_one_succeeds(ana: Owner) -> None:
    await ana.enrol_totp()
    code = ana.recovery_codes[0].replace("-", "")

    async def use() -> bool:
        async with ana.db.session() as session:
            return await ana.recovery.use(session, ana.id, code)

    assert (await asyncio.gather(*[use() for _ in range(20)])).count(True) == 1
    assert await left(ana) == 9


async def test_a_code_of_another_account_is_none(here: Owner) -> None:
    await here.enrol_totp()
    bob = await owner_of(here.client, "bob@example.com")
    await bob.enrol_totp()
    assert_problem(await here.verify(await here.step(), bob.recovery_codes[0]), 401, "invalid_credentials")
    assert await left(bob) == 10


async def test_new_codes_end_those_before_them(here: Owner) -> None:
    assert_problem(await here.post("/auth/mfa/recovery-codes"), 409, "conflict")
    await here.enrol_totp()
    answer = await here.post("/auth/mfa/recovery-codes")
    assert answer.headers["cache-control"] == "no-store"
    codes = answer.json()["codes"]
    assert len(set(codes) | set(here.recovery_codes)) == 20
    assert_problem(await here.verify(await here.step(), here.recovery_codes[0]), 401, "invalid_credentials")
    assert (await here.verify(await here.step(), codes[0])).status_code == 200


async def test_the_owner_is_told_when_few_are_left(here: Owner) -> None:
    await here.enrol_totp()
    for used, code in enumerate(here.recovery_codes[:8], 1):
        assert (await here.verify(await here.step(), code)).status_code == 200
        assert here.client.mailbox.to(ANA).count("mfa_recovery_low") == max(0, used - 6)
    told = [values["left"] for name, _, values in here.client.mailbox.sent if name == "mfa_recovery_low"]
    assert told == ["3", "2"]
