"""Every change of who may log in, how, and to what, is on record: every entry point is run, none forgotten."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import select

from svc_infra.db import AsyncDatabase
from svc_infra.security import Accounts, Credentials, Organizations, Sessions
from svc_infra.security.accounts.http import accounts_router
from svc_infra.security.audit import AuditEntry
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, running, service

NEW = "another horse battery"
ANA = "ana@example.com"


@dataclass
class Stage:
    """Ana is registered and logged in twice; Bob is registered."""

    client: Client
    ana: Client
    other: Client
    ana_id: UUID
    bob_id: UUID
    db: AsyncDatabase

    @property
    def accounts(self) -> Accounts:
        return wiring_of(self.client.app).get(Accounts)

    async def send(self, method: str, path: str, *, as_ana: bool = True, **body: object) -> None:
        headers = self.ana.bearer if as_ana else {}
        answer = await self.client.http.request(method, f"/auth{path}", json=body or None, headers=headers)
        assert answer.status_code < 300, answer.text

    async def entries(self) -> list[AuditEntry]:
        async with self.db.session(read_only=True) as session:
            return list(await session.scalars(select(AuditEntry).order_by(AuditEntry.tenant_id, AuditEntry.sequence)))


@pytest.fixture
async def stage(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Stage]:
    async with running(service(sqlite_db, clock), clock) as client:
        ana_id, bob_id = await client.register(), await client.register("bob@example.com")
        clock.advance(3600)
        yield Stage(client, await client.log_in(), await client.log_in(), ana_id, bob_id, sqlite_db)


async def register(stage: Stage) -> None:
    await stage.client.register("new@example.com")


async def log_in(stage: Stage) -> None:
    await stage.client.log_in()


async def log_in_wrongly(stage: Stage) -> None:
    await stage.client.http.post("/auth/login", json={"email": ANA, "password": "wrong password"})


async def show_a_refresh_token_again(stage: Stage) -> None:
    await stage.ana.refresh()
    stage.client.clock.advance(11)
    await stage.ana.refresh()


async def log_out(stage: Stage) -> None:
    await stage.send("POST", "/logout")


async def log_out_everywhere(stage: Stage) -> None:
    await stage.send("POST", "/logout-all")


async def revoke_one(stage: Stage) -> None:
    listed = (await stage.ana.get("/auth/sessions")).json()
    other = next(one["id"] for one in listed if not one["current"])
    await stage.send("DELETE", f"/sessions/{other}")


async def revoke_others(stage: Stage) -> None:
    await stage.send("POST", "/sessions/revoke-others")


async def ask_verification(stage: Stage) -> None:
    await stage.send("POST", "/verify/request", email=ANA)


async def verify(stage: Stage) -> None:
    await stage.send("POST", "/verify", token=stage.client.mailbox.token("verify", ANA))


async def ask_reset(stage: Stage) -> None:
    await stage.send("POST", "/forgot-password", email=ANA)


async def reset(stage: Stage) -> None:
    await ask_reset(stage)
    token = stage.client.mailbox.token("reset", ANA)
    await stage.send("POST", "/reset-password", as_ana=False, token=token, password=NEW)


async def change_password(stage: Stage) -> None:
    await stage.send("POST", "/password", current_password=PASSWORD, new_password=NEW)


async def ask_email_change(stage: Stage) -> None:
    await stage.send("POST", "/email", password=PASSWORD, new_email="new@example.com")


async def change_email(stage: Stage) -> None:
    await ask_email_change(stage)
    await stage.send("POST", "/email/confirm", token=stage.client.mailbox.token("email", "new@example.com"))


async def unlock_by_mail(stage: Stage) -> None:
    for _ in range(5):
        await log_in_wrongly(stage)
    await stage.send("POST", "/unlock", as_ana=False, token=stage.client.mailbox.token("unlock", ANA))


async def reauthenticate(stage: Stage) -> None:
    await stage.send("POST", "/reauthenticate", password=PASSWORD)


async def give_up(stage: Stage) -> None:
    await stage.send("POST", "/disable", password=PASSWORD)


async def delete(stage: Stage) -> None:
    await stage.send("DELETE", "/me", password=PASSWORD)


async def update_profile(stage: Stage) -> None:
    await stage.send("PATCH", "/me", full_name="Ana")


async def register_by_code(stage: Stage) -> None:
    async with stage.db.session() as session:
        await stage.accounts.register(session, email="new@example.com", password=NEW)


async def adopt(stage: Stage) -> None:
    async with stage.db.session() as session:
        await stage.accounts.adopt(session, email="new@example.com")


async def set_roles(stage: Stage) -> None:
    async with stage.db.session() as session:
        await stage.accounts.set_roles(session, stage.bob_id, ["admin"])


async def disable(stage: Stage) -> None:
    async with stage.db.session() as session:
        await stage.accounts.disable(session, stage.bob_id, reason="test")


async def give_up_by_code(stage: Stage) -> None:
    async with stage.db.session() as session:
        await stage.accounts.give_up(session, stage.bob_id, reason="test")


async def enable(stage: Stage) -> None:
    async with stage.db.session() as session:
        await stage.accounts.enable(session, stage.bob_id)


async def unlock(stage: Stage) -> None:
    async with stage.db.session() as session:
        await stage.accounts.unlock(session, stage.bob_id)


async def create_organization(stage: Stage) -> None:
    async with stage.db.session() as session:
        await Organizations(session).create(name="Acme", owner_id=stage.ana_id)


async def add_member(stage: Stage) -> None:
    async with stage.db.session() as session:
        organization = await Organizations(session).create(name="Acme", owner_id=stage.ana_id)
        await Organizations(session).add_member(organization.id, stage.bob_id)


async def rename_organization(stage: Stage) -> None:
    async with stage.db.session() as session:
        organization = await Organizations(session).create(name="Acme", owner_id=stage.ana_id)
        await Organizations(session).rename(organization.id, "Apex")


async def delete_organization(stage: Stage) -> None:
    async with stage.db.session() as session:
        organization = await Organizations(session).create(name="Acme", owner_id=stage.ana_id)
        await Organizations(session).delete(organization.id)


Change = Callable[[Stage], Awaitable[None]]

CHANGES: dict[str, tuple[Change, str]] = {  # each entry point: how it is used, and the action that it leaves
    "POST /register": (register, "account.registered"),
    "POST /login": (log_in, "session.opened"),
    "POST /login, wrongly": (log_in_wrongly, "session.refused"),
    "POST /refresh": (show_a_refresh_token_again, "session.revoked"),
    "POST /logout": (log_out, "session.revoked"),
    "POST /logout-all": (log_out_everywhere, "session.revoked"),
    "POST /verify/request": (ask_verification, "link.verify_asked"),
    "POST /verify": (verify, "email.verified"),
    "POST /forgot-password": (ask_reset, "link.reset_asked"),
    "POST /reset-password": (reset, "password.reset"),
    "POST /email/confirm": (change_email, "email.changed"),
    "POST /unlock": (unlock_by_mail, "account.unlocked"),
    "POST /password": (change_password, "password.changed"),
    "POST /email": (ask_email_change, "email.change_asked"),
    "POST /reauthenticate": (reauthenticate, "session.reauthenticated"),
    "POST /disable": (give_up, "account.disabled"),
    "PATCH /me": (update_profile, "account.changed"),
    "DELETE /me": (delete, "account.deleted"),
    "POST /sessions/revoke-others": (revoke_others, "session.revoked"),
    "DELETE /sessions/{session_id:uuid}": (revoke_one, "session.revoked"),
    "Accounts.register": (register_by_code, "account.registered"),
    "Accounts.adopt": (adopt, "account.registered"),
    "Accounts.sign_up": (register, "account.registered"),
    "Accounts.login": (log_in, "session.opened"),
    "Accounts.refused": (log_in_wrongly, "session.refused"),
    "Accounts.reauthenticate": (log_in_wrongly, "session.refused"),
    "Accounts.update_profile": (update_profile, "account.changed"),
    "Accounts.set_roles": (set_roles, "account.roles_changed"),
    "Accounts.disable": (disable, "account.disabled"),
    "Accounts.give_up": (give_up_by_code, "account.disabled"),
    "Accounts.enable": (enable, "account.enabled"),
    "Accounts.unlock": (unlock, "account.unlocked"),
    "Accounts.delete": (delete, "account.deleted"),
    "Credentials.change_password": (change_password, "password.changed"),
    "Credentials.ask_reset": (ask_reset, "link.reset_asked"),
    "Credentials.reset_password": (reset, "password.reset"),
    "Credentials.ask_verification": (ask_verification, "link.verify_asked"),
    "Credentials.verify": (verify, "email.verified"),
    "Credentials.ask_email_change": (ask_email_change, "email.change_asked"),
    "Credentials.change_email": (change_email, "email.changed"),
    "Credentials.unlock": (unlock_by_mail, "account.unlocked"),
    "Sessions.admit": (log_in, "session.opened"),
    "Sessions.open": (log_in, "session.opened"),
    "Sessions.renew": (reauthenticate, "session.reauthenticated"),
    "Sessions.refresh": (show_a_refresh_token_again, "session.revoked"),
    "Sessions.revoke": (log_out, "session.revoked"),
    "Sessions.revoke_all": (log_out_everywhere, "session.revoked"),
    "Organizations.create": (create_organization, "organization.created"),
    "Organizations.add_member": (add_member, "membership.added"),
    "Organizations.rename": (rename_organization, "organization.renamed"),
    "Organizations.delete": (delete_organization, "organization.deleted"),
}
READS = {
    "Accounts.get",
    "Sessions.holder",
    "Sessions.principal",
    "Sessions.list",
    "Organizations.of_user",
    "Organizations.role",
}
READS |= {"Organizations.exists", "Organizations.get"}
KEEPS_HOUSE = {"Sessions.purge"}  # what had ended is deleted; its end is on record
PART_OF_ANOTHER = {"Sessions.add_methods"}  # of enrolling a factor, which is on record


def entry_points() -> set[str]:
    """Everything of the room that could change something: its routes, and the methods of its services."""
    routes = [route for route in accounts_router("").routes if isinstance(route, APIRoute)]
    changing = {f"{method} {route.path}" for route in routes for method in (route.methods or set()) - {"GET"}}
    methods = {
        f"{service.__name__}.{name}"
        for service in (Accounts, Credentials, Sessions, Organizations)
        for name, member in inspect.getmembers(service, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    return changing | methods


def test_no_entry_point_is_forgotten() -> None:
    known = {name for name in CHANGES if "," not in name} | READS | KEEPS_HOUSE | PART_OF_ANOTHER
    assert entry_points() == known


@pytest.mark.parametrize("name", CHANGES)
async def test_every_change_is_on_record(name: str, stage: Stage) -> None:
    change, action = CHANGES[name]
    before = {entry.id for entry in await stage.entries()}
    await change(stage)
    new = [entry for entry in await stage.entries() if entry.id not in before]
    assert action in [entry.action for entry in new]
    everything = json.dumps([[str(value) for value in vars(entry).values()] for entry in new])
    for secret in (PASSWORD, NEW, stage.ana.tokens["access_token"], stage.ana.tokens["refresh_token"], "argon2"):
        assert secret not in everything
    for _, _, values in stage.client.mailbox.sent:
        assert values.get("link", "#nothing").partition("#")[2] not in everything


async def test_an_entry_names_who_did_it_from_where(stage: Stage) -> None:
    await change_password(stage)
    [entry] = [entry for entry in await stage.entries() if entry.action == "password.changed"]
    assert (entry.actor_id, entry.target) == (str(stage.ana_id), f"user:{stage.ana_id}")
    assert (entry.client_ip, entry.outcome) == ("127.0.0.1", "success")
    assert entry.request_id


async def test_a_refused_login_is_a_failure_on_record_although_the_request_failed(stage: Stage) -> None:
    await log_in_wrongly(stage)
    [entry] = [entry for entry in await stage.entries() if entry.action == "session.refused"]
    assert (entry.outcome, entry.target, entry.actor_id) == ("failure", f"user:{stage.ana_id}", "")
