"""Each write route of keys, organizations, administration and webhooks leaves an entry; accounts and factors have their
own tests of this kind. One app, in which one thing is done after the other."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from svc_infra.db import AsyncDatabase
from svc_infra.security import Accounts
from svc_infra.security.access.http import route_policies
from svc_infra.security.audit import AuditEntry
from svc_infra.security.models import User
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, running
from tests.security.test_private_routes import with_every_room

SAFE = {"GET", "HEAD", "OPTIONS"}
ROOMS = ("/admin/", "/auth/api-keys", "/oauth", "/orgs", "/webhooks")
ELSEWHERE = {
    "POST /auth/api-keys/leaked/github": "tests/security/keys/test_leaks.py",  # needs GitHub's signature
    "POST /oauth/identities/offered": "tests/security/oauth/test_offers.py",  # and these two a provider
    "DELETE /oauth/identities/{identity_id}": "tests/security/oauth/test_link.py",
    "POST /oauth/identities": "tests/security/oauth/test_link.py",
    "POST /webhooks/deliveries/{delivery_id}/redeliver": "tests/webhooks/test_deliver.py",  # changes no rights
}
STEPS: list[tuple[str, str, str, str, dict[str, Any]]] = [  # who, the route, what is given, the action, the body
    ("ana", "POST /orgs", "org", "organization.created", {"name": "Acme"}),
    ("ana", "PATCH /orgs/{org}", "", "organization.renamed", {"name": "Apex"}),
    ("ana", "POST /orgs/{org}/invitations", "", "invitation.created", {"email": "bob@example.com"}),
    ("ana", "POST /orgs/{org}/invitations", "", "invitation.revoked", {"email": "bob@example.com"}),  # the one before
    ("bob", "POST /orgs/invitations/accept", "", "invitation.accepted", {"token": "{token}"}),
    ("ana", "POST /orgs/{org}/invitations", "invitation", "invitation.created", {"email": "new@example.com"}),
    ("ana", "DELETE /orgs/{org}/invitations/{invitation}", "", "invitation.revoked", {}),
    ("ana", "PATCH /orgs/{org}/members/{bob}", "", "membership.role_changed", {"role": "admin"}),
    ("bob", "POST /orgs/{org}/invitations", "", "invitation.created", {"email": "bobs@example.com"}),
    ("ana", "POST /orgs/{org}/teams", "team", "team.created", {"name": "Support"}),
    ("ana", "PUT /orgs/{org}/teams/{team}/members/{bob}", "", "team.member_added", {}),
    ("ana", "DELETE /orgs/{org}/teams/{team}/members/{bob}", "", "team.member_removed", {}),
    ("ana", "DELETE /orgs/{org}/teams/{team}", "", "team.deleted", {}),
    ("ana", "POST /webhooks/endpoints", "hook", "webhook.endpoint_added", {"url": "http://127.0.0.1:9/"}),
    ("ana", "DELETE /webhooks/endpoints/{hook}", "", "webhook.endpoint_removed", {}),
    ("bob", "POST /orgs/{org}/leave", "", "invitation.revoked", {}),  # what he has offered ends with it
    ("ana", "POST /auth/api-keys", "key", "api_key.created", {"name": "one"}),
    ("ana", "POST /auth/api-keys/{key}/rotate", "key", "api_key.rotated", {}),
    ("ana", "POST /auth/api-keys/leaked", "", "api_key.revoked", {"key": "{secret}"}),
    ("ana", "POST /auth/api-keys", "key", "api_key.created", {"name": "two"}),
    ("ana", "DELETE /auth/api-keys/{key}", "", "api_key.revoked", {}),
    ("bob", "POST /auth/api-keys", "key", "api_key.created", {"name": "three"}),
    ("ada", "DELETE /admin/api-keys/{key}", "", "api_key.revoked", {}),
    ("ada", "PUT /admin/users/{bob}/roles/support", "", "account.roles_changed", {}),
    ("ada", "DELETE /admin/users/{bob}/roles/support", "", "account.roles_changed", {}),
    ("ada", "POST /admin/users/{bob}/unlock", "", "account.unlocked", {}),
    ("ada", "POST /admin/users/{bob}/mfa/reset", "", "mfa.reset", {}),
    ("ada", "POST /admin/impersonate/start", "", "admin.impersonation.started", {"user_id": "{bob}", "reason": "1"}),
    ("ada", "POST /admin/impersonate/stop", "", "admin.impersonation.stopped", {}),
    ("ada", "DELETE /admin/sessions/{login}", "", "session.revoked", {}),
    ("bob", "", "", "session.opened", {}),
    ("ada", "POST /admin/users/{bob}/sessions/revoke", "", "session.revoked", {}),
    ("ada", "POST /admin/users/{bob}/disable", "", "account.disabled", {"reason": "test"}),
    ("ada", "POST /admin/users/{bob}/enable", "", "account.enabled", {}),
    ("bob", "", "", "session.opened", {}),
    ("ana", "POST /orgs/{org}/invitations", "", "invitation.created", {"email": "bob@example.com"}),
    ("bob", "POST /orgs/invitations/accept", "", "membership.added", {"token": "{token}"}),
    ("ana", "DELETE /orgs/{org}/members/{bob}", "", "membership.removed", {}),
    ("ana", "DELETE /orgs/{org}", "", "organization.deleted", {}),
]


@dataclass
class Stage:
    """Ana, Bob and Ada, who is an admin; and what was made so far, by the names in the steps."""

    client: Client
    db: AsyncDatabase
    people: dict[str, Client] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)

    async def enter(self, name: str, *roles: str) -> None:
        async with self.db.session() as session:
            accounts = wiring_of(self.client.app).get(Accounts)
            made = await accounts.register(session, email=f"{name}@example.com", password=PASSWORD, roles=roles)
            (await session.get_one(User, made.id)).is_verified = True
        self.made[name] = str(made.id)
        await self.log_in(name)

    async def log_in(self, name: str) -> None:
        self.people[name] = await self.client.log_in(f"{name}@example.com")
        self.made["login"] = (await self.people[name].get("/auth/sessions")).json()[0]["id"]

    async def do(self, who: str, route: str, gives: str, body: dict[str, Any]) -> None:
        if not route:
            return await self.log_in(who)
        if body.get("token"):
            self.made["token"] = self.client.mailbox.token("invitation", f"{who}@example.com")
        if "login" in route:
            await self.log_in("bob")
        method, _, path = route.partition(" ")
        answer = await self.client.http.request(
            method,
            path.format(**self.made),
            json={name: value.format(**self.made) for name, value in body.items()} or None,
            headers={**self.people[who].bearer, **self.browser},
        )
        assert answer.status_code < 300, (route, answer.text)
        if gives:
            self.made[gives] = answer.json()["id"]
            self.made["secret"] = answer.json().get("key", "")
        return None

    @property
    def browser(self) -> dict[str, str]:
        """Nobody carries the cookies of somebody else."""
        return {"Cookie": ""}

    async def entries(self) -> dict[UUID, AuditEntry]:
        async with self.db.session(read_only=True) as session:
            return {entry.id: entry for entry in await session.scalars(select(AuditEntry))}


@pytest.fixture
async def stage(sqlite_db: AsyncDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setenv("OAUTH_GITHUB_CLIENT_ID", "us")
    monkeypatch.setenv("OAUTH_GITHUB_CLIENT_SECRET", "a secret")
    async with running(with_every_room(sqlite_db, clock), clock) as client:
        stage = Stage(client, sqlite_db)
        await stage.enter("ana")
        await stage.enter("bob")
        await stage.enter("ada", "admin")
        yield stage


def plain(route: str) -> str:
    """A route without the names of its parameters."""
    return re.sub(r"\{[^}]*\}|(?<=/roles/)support", "{}", route)


async def test_no_write_route_is_forgotten(stage: Stage) -> None:
    writes = {
        f"{method} {route.path}"
        for route in route_policies(stage.client.app)
        for method in set(route.methods) - SAFE
        if route.path.startswith(ROOMS)
    }
    assert len(writes) > 30
    done = {plain(route) for _, route, _, _, _ in STEPS if route} | {plain(route) for route in ELSEWHERE}
    assert {plain(route) for route in writes} == done


async def test_every_change_is_on_record_with_who_has_made_it_and_without_secrets(stage: Stage) -> None:
    before = await stage.entries()
    for who, route, gives, action, body in STEPS:
        await stage.do(who, route, gives, body)
        after = await stage.entries()
        new = [entry for one, entry in after.items() if one not in before]
        found = [entry for entry in new if entry.action == action]
        assert found, (route, [entry.action for entry in new])
        if "leaked" not in route:
            assert {entry.actor_id for entry in found} == {stage.made[who]}, route
        if route.startswith(("PATCH /orgs/", "DELETE /orgs/", "PUT /orgs/", "POST /webhooks")):
            assert {entry.tenant_id for entry in found} == {stage.made["org"]}, route
        everything = json.dumps([[str(value) for value in vars(entry).values()] for entry in new])
        for secret in (PASSWORD, stage.made.get("secret"), stage.made.get("token")):
            assert not secret or secret not in everything, route
        before = after


async def test_whoever_deletes_their_account_is_a_member_no_more_in_the_organizations_own_record(stage: Stage) -> None:
    await stage.do("ana", "POST /orgs", "org", {"name": "Acme"})
    await stage.do("ana", "POST /orgs/{org}/invitations", "", {"email": "bob@example.com"})
    await stage.do("bob", "POST /orgs/invitations/accept", "", {"token": "{token}"})
    await stage.do("bob", "DELETE /auth/me", "", {"password": PASSWORD})
    [entry] = [one for one in (await stage.entries()).values() if one.action == "membership.removed"]
    assert (entry.tenant_id, entry.target) == (stage.made["org"], f"user:{stage.made['bob']}")
    assert json.loads(entry.before or "") == {"role": "member"}
