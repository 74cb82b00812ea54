from __future__ import annotations

import asyncio
from importlib.resources import files
from threading import Event

import bcrypt
import pytest

from svc_infra.errors import RateLimitedError, ValidationError
from svc_infra.security.passwords import (
    MAX_PASSWORD_BYTES,
    MIN_PASSWORD_CHARACTERS,
    PasswordHasher,
    PasswordPolicy,
)

PASSWORD = "correct horse battery"


async def test_a_password_matches_its_own_hash_only(hasher: PasswordHasher) -> None:
    stored = await hasher.hash(PASSWORD)
    assert stored.startswith("$argon2id$")
    assert await hasher.verify(PASSWORD, stored) == (True, None)
    assert await hasher.verify(PASSWORD + " ", stored) == (False, None)
    assert await hasher.verify("", stored) == (False, None)


async def test_two_hashes_of_one_password_differ(hasher: PasswordHasher) -> None:
    assert await hasher.hash(PASSWORD) != await hasher.hash(PASSWORD)


async def test_the_default_costs_are_those_of_owasp() -> None:
    hasher = PasswordHasher()
    assert "$m=19456,t=2,p=1$" in await hasher.hash(PASSWORD)
    hasher.close()


async def test_no_password_opens_an_account_without_one(hasher: PasswordHasher) -> None:
    for password in ("", PASSWORD, "None", "!oauth!"):
        assert not (await hasher.verify(password, None)).matches
        assert not (await hasher.verify(password, "")).matches
        assert not (await hasher.verify(password, "plain")).matches


async def test_a_hash_of_lower_costs_is_replaced_when_the_password_is_right(hasher: PasswordHasher) -> None:
    stored = await hasher.hash(PASSWORD)
    dearer = PasswordHasher(memory_kib=128, passes=2)
    assert await dearer.verify("wrong", stored) == (False, None)
    matches, new_hash = await dearer.verify(PASSWORD, stored)
    assert matches
    assert new_hash is not None
    assert "$m=128,t=2,p=1$" in new_hash
    assert await dearer.verify(PASSWORD, new_hash) == (True, None)
    dearer.close()


@pytest.mark.parametrize("password", ["x" * (MAX_PASSWORD_BYTES + 1), "é" * MAX_PASSWORD_BYTES, "x" * 10**6, "\ud800"])
async def test_an_oversized_password_or_one_that_is_no_text_is_never_hashed(
    password: str, hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await hasher.hash(PASSWORD)
    monkeypatch.setattr(hasher, "_in_thread", None)
    assert await hasher.verify(password, stored) == (False, None)
    with pytest.raises(ValidationError):
        await hasher.hash(password)


async def test_what_does_not_fit_in_the_pool_is_refused_at_once() -> None:
    hasher = PasswordHasher(concurrency=1, max_waiting=2, memory_kib=64, passes=1)
    open_gate = Event()
    blocked = asyncio.ensure_future(hasher._in_thread(lambda: open_gate.wait(5)))
    waiting = [asyncio.ensure_future(hasher.verify(PASSWORD, None)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimitedError) as refusal:
        await hasher.hash(PASSWORD)
    assert int(refusal.value.headers["Retry-After"]) >= 1
    open_gate.set()
    await asyncio.gather(blocked, *waiting)
    assert await hasher.hash(PASSWORD)
    hasher.close()


async def test_a_caller_that_goes_away_makes_no_room_while_its_work_runs() -> None:
    hasher = PasswordHasher(concurrency=1, max_waiting=0, memory_kib=64, passes=1)
    begun, open_gate = Event(), Event()

    def work() -> None:
        begun.set()
        open_gate.wait(5)

    running = asyncio.ensure_future(hasher._in_thread(work))
    await asyncio.to_thread(begun.wait, 5)
    running.cancel()
    await asyncio.wait({running})
    with pytest.raises(RateLimitedError):
        await hasher.hash(PASSWORD)
    open_gate.set()
    await asyncio.to_thread(hasher._threads.shutdown)
    assert hasher._places.acquire(blocking=False)


async def test_the_loop_stays_free_while_passwords_are_hashed() -> None:
    hasher = PasswordHasher(concurrency=2)
    work = asyncio.gather(*(hasher.verify(PASSWORD, None) for _ in range(10)))
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 100  # hashed on the loop, ten verifications would leave it about ten turns
    hasher.close()


@pytest.mark.parametrize("password", ["", "1234567", "x" * 129, "ana@example.com", " Ana@Example.com ", "verylongname"])
def test_the_policy_refuses_and_says_why(password: str) -> None:
    email = "verylongname@example.com" if password == "verylongname" else "ana@example.com"
    with pytest.raises(ValidationError) as refusal:
        PasswordPolicy().check(password, email=email)
    assert refusal.value.errors[0]["pointer"] == "#/password"
    assert not password or password not in refusal.value.detail


@pytest.mark.parametrize("password", ["74920183", "        ", "x" * 128, "пароль-пароль", "🐎" * 128])
def test_the_policy_has_no_rules_of_composition(password: str) -> None:
    PasswordPolicy().check(password, email="ana@example.com")


@pytest.mark.parametrize("password", ["password", "12345678", " PassWord ", "qwertyuiop", "iloveyou"])
def test_the_most_common_passwords_are_refused(password: str) -> None:
    with pytest.raises(ValidationError, match="most common"):
        PasswordPolicy().check(password, email="ana@example.com")
    PasswordPolicy(refuse_common=False).check(password, email="ana@example.com")


def test_the_common_ones_are_more_than_three_thousand_that_could_be_chosen() -> None:
    common = files("svc_infra.security.passwords").joinpath("common.txt").read_text(encoding="utf-8").split()
    assert len({password for password in common if len(password) >= MIN_PASSWORD_CHARACTERS}) >= 3000


@pytest.mark.parametrize("password", ["shop2026", "Shop-Shop-1", "!!acme shop!!", "ACME_shop_2026_acme"])
def test_a_password_of_the_services_own_names_is_refused(password: str) -> None:
    policy = PasswordPolicy(words=("Shop", "Acme", "eu"))
    with pytest.raises(ValidationError, match="name of this service"):
        policy.check(password, email="ana@example.com")
    PasswordPolicy().check(password, email="ana@example.com")
    for other in ("shopping-2026", "acme bakes cakes", "eu-eu-2026", "20260101!!"):
        policy.check(other, email="ana@example.com")


async def test_every_character_of_a_long_password_counts(hasher: PasswordHasher) -> None:
    for length in (64, 128):
        password = "Ab" * (length // 2)
        PasswordPolicy().check(password, email="ana@example.com")
        stored = await hasher.hash(password)
        assert (await hasher.verify(password, stored)).matches
        for other in (password[:-1], password[:-1] + "B", password.lower(), password + "b", f" {password}"):
            assert not (await hasher.verify(other, stored)).matches


@pytest.mark.parametrize("prefix", [b"2a", b"2b"])
async def test_a_bcrypt_hash_is_accepted_and_replaced(prefix: bytes, hasher: PasswordHasher) -> None:
    old = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4, prefix)).decode()
    assert await hasher.verify("wrong password", old) == (False, None)
    matches, new_hash = await hasher.verify(PASSWORD, old)
    assert matches
    assert new_hash is not None
    assert new_hash.startswith("$argon2id$")
    assert (await hasher.verify(PASSWORD, old.replace("$2a$", "$2y$"))).matches  # as PHP writes it


async def test_a_bcrypt_hash_was_made_of_72_bytes(hasher: PasswordHasher) -> None:
    old = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert (await hasher.verify("x" * 100, old)).matches
    assert not (await hasher.verify("x" * 71, old)).matches


@pytest.mark.parametrize("broken", ["$2b$", "$2b$04$short", "$2b$99$" + "a" * 53])
async def test_a_broken_bcrypt_hash_matches_nothing(broken: str, hasher: PasswordHasher) -> None:
    assert await hasher.verify(PASSWORD, broken) == (False, None)
