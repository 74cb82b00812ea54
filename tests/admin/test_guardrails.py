"""As whom nobody may act, and what ends an impersonation."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from http.cookies import SimpleCookie
from uuid import uuid4

import pytest
from sqlalchemy import update

from svc_infra.admin.add import end_expired_impersonations
from svc_infra.security.models import User
from tests.admin.conftest import HEADER, Person, Stage
from tests.security.conftest import assert_problem

REFUSED = {  # who wants to act as whom, and what is answered
    "nobody's user": ("ada", lambda stage: uuid4(), 404, "not_found"),
    "another spelling": ("ada", lambda stage: str(stage.ids["bob"]).upper(), 404, "not_found"),
    "a text": ("ada", lambda stage: "u-12345", 404, "not_found"),
    "oneself": ("ada", lambda stage: stage.ids["ada"], 403, "forbidden"),
    "an equal": ("ada", lambda stage: stage.ids["abe"], 403, "forbidden"),
    "who may do something else": ("ada", lambda stage: stage.ids["olga"], 403, "forbidden"),
    "support": ("sue", lambda stage: stage.ids["bob"], 403, "forbidden"),
    "a user": ("bob", lambda stage: stage.ids["sue"], 403, "forbidden"),
}


@pytest.mark.asyncio(loop_scope="module")
async def test_who_may_act_as_whom(sqlite_stage: Stage) -> None:
    for case, (who, whom, status, code) in REFUSED.items():
        person, before = await sqlite_stage.person(who), len(await sqlite_stage.entries("admin.impersonation.refused"))
        answer = await person.start(whom(sqlite_stage))
        assert_problem(answer, status, code)
        assert "set-cookie" not in answer.headers, case
        refusals = (await sqlite_stage.entries("admin.impersonation.refused"))[before:]
        if who == "ada":  # who may act as anybody at all has tried
            [refusal] = refusals
            assert (refusal.outcome, refusal.actor_id) == ("failure", str(person.id)), case
            assert json.loads(refusal.after or "")["reason"] == "case 789"
        else:
            assert refusals == [], case
    assert await sqlite_stage.rows() == []


@pytest.mark.asyncio(loop_scope="module")
async def test_who_may_do_less_can_be_acted_as_even_with_a_role(sqlite_stage: Stage) -> None:
    ada = await sqlite_stage.person("ada")
    assert (await ada.start(sqlite_stage.ids["sue"])).status_code == 204
    assert (await ada.whoami())["roles"] == ["admin"]
    assert (
        await ada.send("GET", "/admin/users")
    ).status_code == 200  # support may do it too, and an admin all the more


@pytest.mark.asyncio(loop_scope="module")
async def test_a_higher_role_is_of_no_use_without_the_role_admin(sqlite_stage: Stage) -> None:
    """Both guards count: the role at the router, and the permission at the route."""
    for roles in (["operator"], ["auditor", "support"]):
        await sqlite_stage.set_roles(sqlite_stage.ids["olga"], *roles)
        olga = await sqlite_stage.person("olga")
        problem = assert_problem(await olga.start(sqlite_stage.ids["bob"]), 403, "forbidden")
        assert "role admin" in problem["detail"]


async def log_out(stage: Stage, ada: Person, bob: Person) -> None:
    assert (await ada.send("POST", "/auth/logout")).status_code == 204


async def log_out_everywhere(stage: Stage, ada: Person, bob: Person) -> None:
    assert (await ada.send("POST", "/auth/logout-all")).status_code == 204


async def disable_the_admin(stage: Stage, ada: Person, bob: Person) -> None:
    async with stage.db.session() as session:
        await stage.accounts.disable(session, ada.id, reason="gone")


async def delete_the_admin(stage: Stage, ada: Person, bob: Person) -> None:
    async with stage.db.session() as session:
        await stage.accounts.delete(session, ada.id)


async def take_the_role(stage: Stage, ada: Person, bob: Person) -> None:
    await stage.set_roles(ada.id, "support")


async def raise_the_user(stage: Stage, ada: Person, bob: Person) -> None:
    await stage.set_roles(bob.id, "auditor")


async def disable_the_user(stage: Stage, ada: Person, bob: Person) -> None:
    async with stage.db.session() as session:
        await stage.accounts.disable(session, bob.id, reason="gone")


async def disable_and_enable_the_user(stage: Stage, ada: Person, bob: Person) -> None:
    await disable_the_user(stage, ada, bob)
    async with stage.db.session() as session:
        await stage.accounts.enable(session, bob.id)


async def disable_the_user_behind_our_back(stage: Stage, ada: Person, bob: Person) -> None:
    async with stage.db.session() as session:
        await session.execute(update(User).where(User.id == bob.id).values(is_active=False))


async def delete_the_user(stage: Stage, ada: Person, bob: Person) -> None:
    async with stage.db.session() as session:
        await stage.accounts.delete(session, bob.id)


async def let_the_user_end_everything(stage: Stage, ada: Person, bob: Person) -> None:
    assert (await bob.send("POST", "/auth/logout-all")).status_code == 204


async def let_time_pass(stage: Stage, ada: Person, bob: Person) -> None:
    ada.clock.advance(899)
    assert (await ada.whoami())["id"] == str(bob.id)  # nothing makes it longer
    ada.clock.advance(1)
    ada.tokens = (await ada.refresh()).json()


async def stop_elsewhere(stage: Stage, ada: Person, bob: Person) -> None:
    """With the same login, where the cookie is not."""
    assert (await stage.client.http.post("/admin/impersonate/stop", headers=ada.bearer)).status_code == 204


ENDS: dict[str, tuple[Callable[[Stage, Person, Person], Awaitable[None]], bool, str]] = {
    # what ends it; whether the admin's login lives on; the reason on record
    "stop": (stop_elsewhere, True, "manual"),
    "time": (let_time_pass, True, "expired"),
    "logout": (log_out, False, "logout"),
    "logout everywhere": (log_out_everywhere, False, "logout_all"),
    "the admin is disabled": (disable_the_admin, False, "account_disabled"),
    "the admin is deleted": (delete_the_admin, False, "account_deleted"),
    "the admin loses the role": (take_the_role, True, "You may not act as other users any more."),
    "the user is raised": (raise_the_user, True, "This user's roles permit as much as yours, or something"),
    "the user is disabled": (disable_the_user, True, "account_disabled"),
    "the user is disabled and enabled": (disable_and_enable_the_user, True, "account_disabled"),
    "the user is disabled in the table": (disable_the_user_behind_our_back, True, "The user is disabled or gone."),
    "the user is deleted": (delete_the_user, True, "account_deleted"),
    "the user ends all logins": (let_the_user_end_everything, True, "logout_all"),
}


@pytest.mark.asyncio(loop_scope="module")
async def test_what_ends_it_ends_it_at_once_and_is_on_record(stage: Stage) -> None:
    for number, (case, (end, login_lives, reason)) in enumerate(ENDS.items()):
        ada, bob = await stage.newcomer(f"ada{number}", "admin"), await stage.newcomer(f"bob{number}")
        before = len(await stage.entries("admin.impersonation.stopped"))
        await ada.start(bob.id)
        assert (await ada.whoami())["id"] == str(bob.id)
        await end(stage, ada, bob)
        answer = await ada.send("POST", "/notes")
        if login_lives:
            assert_problem(answer, 403, "impersonation_ended")
            assert HEADER not in answer.headers
            [gone] = SimpleCookie(answer.headers["set-cookie"]).values()
            assert (gone.key, gone.value, gone["max-age"]) == ("impersonation", "", "0")
            assert (await ada.whoami())["id"] == str(ada.id), case  # the next request is the admin's own
        else:
            assert answer.status_code == 401, case
        stopped = (await stage.entries("admin.impersonation.stopped"))[before:]
        if end is let_time_pass:  # nobody has noticed yet
            assert stopped == []
            assert await end_expired_impersonations() >= 1
            assert await end_expired_impersonations() == 0
            stopped = (await stage.entries("admin.impersonation.stopped"))[before:]
            stopped = [entry for entry in stopped if entry.actor_id == str(ada.id)]
            assert (stopped[0].actor_id, stopped[0].acting_as) == (str(ada.id), str(bob.id))
        [entry] = stopped
        told = json.loads(entry.after or "")
        assert (told["actor_id"], told["target_id"]) == (str(ada.id), str(bob.id)), case
        assert told["reason"].startswith(reason), case
        assert entry.target == f"user:{bob.id}"
    assert await stage.entries("note.") == []


@pytest.mark.asyncio(loop_scope="module")
async def test_an_end_that_is_rolled_back_is_none(sqlite_stage: Stage) -> None:
    ada = await sqlite_stage.person("ada")
    await ada.start(sqlite_stage.ids["bob"])
    with pytest.raises(RuntimeError):
        async with sqlite_stage.db.session() as session:
            await sqlite_stage.accounts.disable(session, sqlite_stage.ids["bob"], reason="perhaps")
            raise RuntimeError
    assert (await ada.whoami())["email"] == sqlite_stage.email("bob")


@pytest.mark.asyncio(loop_scope="module")
async def test_stopping_what_never_began_is_no_error(sqlite_stage: Stage) -> None:
    for name in ("ada", "bob"):
        assert (await (await sqlite_stage.person(name)).stop()).status_code == 204
    assert (await sqlite_stage.client.http.post("/admin/impersonate/stop")).status_code == 401
    assert await sqlite_stage.entries("admin.") == []


@pytest.mark.asyncio(loop_scope="module")
async def test_what_has_expired_is_recorded_once_at_the_latest_when_the_next_one_begins(sqlite_stage: Stage) -> None:
    ada, abe = await sqlite_stage.person("ada"), await sqlite_stage.person("abe")
    await ada.start(sqlite_stage.ids["bob"])
    ada.clock.advance(900)
    await abe.start(sqlite_stage.ids["bob"])
    stopped = await sqlite_stage.entries("admin.impersonation.stopped")
    [entry] = [entry for entry in stopped if entry.acting_as == str(sqlite_stage.ids["bob"])]
    assert entry.actor_id == str(ada.id)  # and not who happened to come by
    assert await end_expired_impersonations() == 0
    assert (await abe.whoami())["email"] == sqlite_stage.email("bob")
