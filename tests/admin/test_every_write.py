"""An admin acts as a user in an app with every room: each write route refuses, or its record names both."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI

from svc_infra.db import AsyncDatabase
from svc_infra.db.http import DbSession
from svc_infra.idempotency.add import add_idempotency
from svc_infra.idempotency.http import Idempotent
from svc_infra.jobs.add import add_jobs
from svc_infra.mail import add_mail
from svc_infra.obs import context
from svc_infra.obs.add import add_observability
from svc_infra.obs.logging import logger
from svc_infra.obs.tracing import span
from svc_infra.route_policy import PUBLIC
from svc_infra.security import Organizations, audit
from svc_infra.security.access.http import RoutePolicy, route_policies
from svc_infra.security.http import Identity
from svc_infra.security.oauth.add import add_oauth
from svc_infra.security.oauth.providers import github
from svc_infra.security.organizations.add import add_organizations
from svc_infra.tenancy.add import add_tenancy
from svc_infra.tenancy.http import TenantId
from svc_infra.testing import FakeClock
from svc_infra.webhooks.add import add_webhooks
from tests.admin.conftest import Person, Stage, an_app, staged
from tests.obs.log_capture import captured
from tests.obs.traced_app import KEPT, Kept

SAFE = {"GET", "HEAD", "OPTIONS"}
ACTS_FOR_NOBODY = {  # what such routes do has nothing to do with who is logged in
    PUBLIC,
    "possession of the key",
    "signature of GitHub",
    "mailed link in the browser of the login",
}
DONE: Mapping[str, Mapping[str, Any]] = {  # what is done as the user, and what is sent for it
    "POST /notes": {},
    "POST /papers": {},
    "POST /orders": {"headers": {"Idempotency-Key": "every-write"}},
    "POST /webhooks/endpoints": {"json": {"url": "http://127.0.0.1:9/"}},
}
OWN = {  # what the admin does themselves, whoever they act as
    "POST /admin/impersonate/stop",
    "POST /auth/logout",
    "POST /auth/logout-all",
}
GONE = {"DELETE /webhooks/endpoints/{endpoint_id}", "POST /webhooks/deliveries/{delivery_id}/redeliver"}


def everything(db: AsyncDatabase, clock: FakeClock, exporter: Kept) -> FastAPI:
    app = an_app(db, clock)
    add_observability(app, span_exporter=exporter)
    add_tenancy(app)
    add_organizations(app)
    add_oauth(app, providers=[github()])
    add_jobs(app)
    add_mail(app)
    add_idempotency(app)
    add_webhooks(app)

    @app.post("/papers", status_code=201)
    async def write_paper(user: Identity, tenant: TenantId, session: DbSession) -> dict[str, str]:
        with span("paper.print"):
            await audit.record(session, "paper.written", target="paper:1")
        logger.info("paper.printed")
        return context.current().carried()

    @app.post("/orders", status_code=201, dependencies=[Idempotent()])
    async def order(user: Identity, session: DbSession) -> str:
        await audit.record(session, "order.made", target="order:1")
        return user.via

    return app


@pytest.fixture
def exporter() -> Kept:
    return Kept()


@pytest.fixture
async def all_rooms(sqlite_db: AsyncDatabase, clock: FakeClock, exporter: Kept) -> AsyncIterator[Stage]:
    async with staged(everything(sqlite_db, clock, exporter), sqlite_db, clock) as stage:
        async with stage.db.session() as session:
            await Organizations(session).create(name="Acme", owner_id=stage.ids["bob"])
        yield stage


def writes(app: FastAPI) -> list[RoutePolicy]:
    return [route for route in route_policies(app) if set(route.methods) - SAFE]


async def called(person: Person, route: str, **options: Any) -> Any:
    method, _, path = route.partition(" ")
    address = re.sub(r"\{(\w+)[^}]*\}", lambda _: str(uuid4()), path)
    return await person.send(method, address, **{"json": {}, **options})


async def test_each_write_refuses_or_its_record_names_both(all_rooms: Stage) -> None:
    stage, ada, bob = all_rooms, await all_rooms.person("ada"), str(all_rooms.ids["bob"])
    await ada.start(bob)
    refused, silent = set(), set()
    for route in writes(stage.client.app):
        name = str(route)
        if ACTS_FOR_NOBODY & set(route.policies) or name in OWN:
            continue
        before = len(await stage.entries())
        answer = await called(ada, name, **DONE.get(name, {}))
        new = (await stage.entries())[before:]
        assert all((entry.actor_id, entry.acting_as) == (str(ada.id), bob) for entry in new), name
        if name in DONE:
            assert answer.status_code == 201, (name, answer.text)
            if not new:
                silent.add(name)
        elif name in GONE:
            assert answer.status_code == 404, (name, answer.text)
        else:
            assert answer.status_code == 403, (name, answer.text)
            assert "stop that first" in answer.json()["detail"], name
            assert new == [], name
            refused.add(name)
    assert silent <= {"POST /webhooks/endpoints"}  # which keeps no record of anybody yet
    rooms = {"/auth/password", "/auth/email", "/auth/me", "/auth/disable", "/auth/sessions", "/auth/api-keys", "/orgs"}
    rooms |= {"/oauth/identities", "/admin/users", "/admin/sessions", "/admin/api-keys", "/admin/impersonate/start"}
    for room in rooms:
        assert any(f" {room}" in name for name in refused), room
    assert (await ada.whoami())["id"] == bob  # none of it has ended anything


async def test_a_route_that_is_added_to_a_room_of_identity_refuses_too(all_rooms: Stage) -> None:
    """Nobody has to remember it: neither with a caller of any kind, nor deep in dependencies."""

    async def future(user: Identity) -> None: ...

    future.__module__ = "svc_infra.security.future.http"
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        all_rooms.client.app.add_api_route("/future", future, methods=[method], operation_id=method)
    ada = await all_rooms.person("ada")
    assert (await ada.send("POST", "/future")).status_code == 200
    await ada.start(all_rooms.ids["bob"])
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (await ada.send(method, "/future")).status_code == 403


async def test_both_are_in_every_line_and_span_and_in_what_jobs_are_given(all_rooms: Stage, exporter: Kept) -> None:
    stage, ada, bob = all_rooms, await all_rooms.person("ada"), str(all_rooms.ids["bob"])
    await ada.start(bob)
    with captured() as output:
        carried = (await called(ada, "POST /papers", headers=dict([KEPT]))).json()
    both = {"actor_id": str(ada.id), "principal_id": bob}
    lines = [line for line in output.lines if line["message"] in ("paper.printed", "POST /papers 201")]
    assert len(lines) == 2
    assert all(both.items() <= line.items() for line in lines)
    assert both.items() <= carried.items()
    with context.restored(carried):  # as a worker does
        async with stage.db.session() as session:
            await audit.record(session, "paper.sent", target="paper:1")
    [sent] = await stage.entries("paper.sent")
    assert (sent.actor_id, sent.acting_as) == (str(ada.id), bob)
    await ada.stop()
    await called(ada, "POST /notes", headers=dict([KEPT]))
    tracing = all_rooms.client.app
    async with tracing.router.lifespan_context(tracing):
        pass  # every span is sent when the app ends
    named = {"enduser.id": bob, "svc_infra.actor.id": str(ada.id)}
    for name in ("POST /papers", "paper.print"):
        attributes = exporter.named(name).attributes
        assert attributes is not None
        assert named.items() <= attributes.items(), name
    attributes = exporter.named("POST /notes").attributes
    assert attributes is not None
    assert named.keys().isdisjoint(attributes)


async def test_the_user_is_not_given_what_an_admin_was_answered_as_them(all_rooms: Stage) -> None:
    """The same key of the two is two keys."""
    ada, bob = await all_rooms.person("ada"), await all_rooms.person("bob")
    key = {"headers": {"Idempotency-Key": "one"}}
    await ada.start(bob.id)
    answers = [await called(person, "POST /orders", **key) for person in (ada, bob, ada, bob)]
    assert [answer.json() for answer in answers] == ["impersonated", "jwt", "impersonated", "jwt"]
    assert len(await all_rooms.entries("order.made")) == 2  # each one's own, once
