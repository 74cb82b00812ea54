"""Schemathesis against real servers: whatever is sent to the documented operations, the answers are as documented.

Every check is on. The ranges `4XX` and `5XX`, which would document any error, are taken out of the document first: each
status must be declared by its number.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra.db import AsyncDatabase
from svc_infra.http import HttpClient
from svc_infra.security.models import User
from svc_infra.wiring import wiring_of
from tests.app.serving import served
from tests.e2e.documented_apps import ETAG, guarded, shared, tracker, with_second_factors

SCHEMATHESIS = str(Path(sys.executable).with_name("st"))
SEED = "20260101"
MAX_EXAMPLES = int(os.environ.get("CONTRACT_EXAMPLES", "8"))
"""Of each operation and way of making them; a search for what the suite has no time for takes some hundreds."""
IS_SEARCH = "CONTRACT_EXAMPLES" in os.environ
TIMEOUT_SECONDS = 240 + 30 * MAX_EXAMPLES
NOT_OF_A_ROOM = "/(?!admin/|organizations/|auth/api-keys|auth/mfa)"
"""The tracker's paths but those of rooms whose contracts have tests of their own."""
ACCOUNT = {"email": "ana@example.com", "password": "correct horse battery"}

OTHER_ACCOUNT = {"email": "bo@example.com", "password": "correct horse battery"}
ENDING = [
    *("POST /auth/logout-all", "POST /auth/sessions/revoke-others", "DELETE /auth/sessions/{session_id}"),
    *("POST /auth/password", "POST /auth/disable", "DELETE /auth/me", "POST /auth/reauthenticate"),
]
"""What ends the logins of its caller, or can."""

ACCEPTED = ("2xx", "3xx", 401, 403, 404, 409, 429, "5xx")
"""What valid data may lead to; a 5xx is found by another check."""
ALSO_ACCEPTED = {
    "POST /organizations": [422],  # a name's characters are printable, which is a matter of Unicode's tables
    "POST /auth/register": [422],  # an address follows more rules than its format; a password is another text than it
    "POST /auth/login": [422],
    "POST /auth/forgot-password": [422],
    "POST /auth/verify/request": [422],
    "POST /auth/email": [422],
    "POST /auth/password": [422],
    "POST /auth/verify": [400],  # what a mailed link carries is signed
    "POST /auth/unlock": [400],
    "POST /auth/email/confirm": [400],
    "POST /auth/reset-password": [400, 422],
    "POST /auth/mfa/totp/{factor_id}/confirm": [400],  # no code is right but one
    "POST /auth/mfa/email/confirm": [400],
    "POST /auth/refresh": [422],  # without cookies the body has the token
    "POST /projects/{project_id}/imports": [422],  # the file is CSV with a `title` column
    "POST /webhooks/endpoints": [422],  # which hosts may be called is known to the guard against forged requests
    "POST /orgs": [422],  # names are printable, addresses well formed, roles and scopes known to the app
    "PATCH /orgs/{organization_id}": [422],
    "POST /orgs/{organization_id}/teams": [422],
    "POST /orgs/{organization_id}/invitations": [422],
    "GET /orgs/{organization_id}/invitations": [422],  # Schemathesis takes the organization of a key, which may be null
    "PATCH /orgs/{organization_id}/members/{user_id}": [422],
    "POST /orgs/invitations/accept": [400],
    "POST /auth/api-keys": [422],
    "GET /oauth/authorize": [422],  # one may go on to a path or an allowed origin
    "POST /oauth/identities": [422],
    "POST /oauth/identities/offered": [400],  # what a mailed link carries is signed
    "GET /oauth/callback": [400],  # a state is signed and belongs to a browser
    "POST /orders": [422],  # a key that was sent before stands for one body
    "GET /documents/{number}": [400, 412],  # a precondition is the client's to set, and wrong by chance
    "PUT /documents/{number}": [400, 412, 428],
    "GET /admin/audit": [422],  # not every moment that a text can name is one that every database knows
    "GET /admin/users": [422],  # nor every text
    "POST /admin/impersonate/start": [422],  # a reason is more than blanks
    "PUT /admin/users/{user_id}/roles/{role}": [422],  # the roles are the app's
    "DELETE /admin/users/{user_id}/roles/{role}": [422],
}
"""Where valid data may be refused, because a rule cannot be said in JSON Schema."""


class Seen:
    """Notes the statuses that an app answers with."""

    def __init__(self, app: ASGIApp, statuses: set[int]) -> None:
        self.app = app
        self._statuses = statuses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._statuses.add(message["status"])
            await send(message)

        await self.app(scope, receive, note)


async def anywhere_is_here(host: str, port: int) -> list[str]:
    """No name is looked up: what the network knows is no business of a test's."""
    return ["127.0.0.1"]


@contextmanager
def serving(app: FastAPI, folder: Path, paths: str = NOT_OF_A_ROOM) -> Iterator[tuple[httpx2.Client, Path, set[int]]]:
    """A server of the app, a client of it, the document without ranges, and the statuses that the app answers with.

    The document tells of the paths that the pattern matches.
    """
    seen: set[int] = set()
    app.add_middleware(Seen, seen)
    wiring_of(app).provide(HttpClient, HttpClient(allow_private_addresses=True, resolve=anywhere_is_here))
    document = {**app.openapi()}
    document["paths"] = {path: one for path, one in document["paths"].items() if re.match(paths, path)}
    for path in document["paths"].values():
        for operation in path.values():
            assert {"4XX", "5XX"} <= set(operation["responses"])
            operation["responses"] = {
                status: one for status, one in operation["responses"].items() if status not in ("4XX", "5XX")
            }
    file = folder / "openapi.json"
    file.write_text(json.dumps(document))
    with served(app) as (_, client):
        yield client, file, seen


def logged_in(client: httpx2.Client, account: dict[str, str] = ACCOUNT) -> dict[str, str]:
    tokens = client.post("/auth/login", json=account).json()
    return {"Authorization": f"Bearer {tokens['access_token']}"}


def made(client: httpx2.Client, path: str, **body: Any) -> str:
    answer = client.post(path, **body)
    assert answer.status_code in (201, 202), answer.text
    return str(answer.json()["id"])


def populated(client: httpx2.Client) -> dict[str, list[str]]:
    """Make one of everything; the identifiers by the parameters that take them."""
    endpoint = made(client, "/webhooks/endpoints", json={"url": "https://receiver.example/"})
    project = made(client, "/projects", json={"name": "Website"})
    ticket = made(client, f"/projects/{project}/tickets", json={"title": "Broken"})
    file = {"file": ("tickets.csv", b"title\nBroken\n")}
    imported = made(client, f"/projects/{project}/imports", files=file)
    deadline = time.monotonic() + 20
    while not (deliveries := client.get("/webhooks/deliveries").json()):
        assert time.monotonic() < deadline
    return {
        "path.endpoint_id": [endpoint],
        "path.project_id": [project],
        "path.ticket_id": [ticket],
        "path.import_id": [imported],
        "path.delivery_id": [deliveries[0]["id"]],
    }


def configured(
    folder: Path, *, headers: dict[str, str], known: dict[str, list[str]], by_operation: dict[str, dict[str, str]]
) -> Path:
    """The configuration; half of the values of a parameter that has known ones are these."""
    lines = ["[cache]", "enabled = false", "[generation]", 'database = "none"']
    lines += ["[headers]", *(f"{name} = {json.dumps(value)}" for name, value in headers.items())]
    lines += ["[dictionaries]", *(f'"{name}" = {{ values = {json.dumps(values)} }}' for name, values in known.items())]
    lines += ["[parameters]", *(f'"{name}" = {{ dictionary = "{name}", probability = 0.5 }}' for name in known)]
    for name, statuses in ALSO_ACCEPTED.items():
        lines += ["[[operations]]", f'include-name = "{name}"']
        lines += [f"checks.positive_data_acceptance.expected-statuses = {json.dumps([*ACCEPTED, *statuses])}"]
    for name, own in by_operation.items():
        lines += ["[[operations]]", f'include-name = "{name}"']
        lines += [f"headers.{key} = {json.dumps(value)}" for key, value in own.items()]
    file = folder / "schemathesis.toml"
    file.write_text("\n".join(lines))
    return file


def holds(
    client: httpx2.Client, document: Path, config: Path, max_examples: int = MAX_EXAMPLES, *, phases: str = ""
) -> str:
    """Let Schemathesis look for an answer that is not as documented; what it did.

    Args:
        phases: Which of its ways of making requests; a search for more takes all of them, and so does the default.
    """
    command = [
        *(SCHEMATHESIS, "--config-file", str(config), "run", str(document), "--url", str(client.base_url)),
        *("--checks", "all", "--seed", SEED, "--max-examples", str(max_examples), "--workers", "1", "--no-color"),
        *("--continue-on-failure",),
        *(("--phases", phases) if phases and not IS_SEARCH else ()),
    ]
    done = subprocess.run(
        command,
        cwd=config.parent,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-30_000:] + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("engine", "phases", "also_seen"),
    [
        ("postgres", "", {405, 415}),
        ("sqlite", "fuzzing,stateful", set()),  # the rest is mostly refused before a database is asked
    ],
    ids=["postgres", "sqlite"],
)
def test_the_tracker_answers_a_user_as_it_is_documented(
    engine: str, phases: str, also_seen: set[int], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    app = tracker(request.getfixturevalue(f"migrated_{engine}_url"))
    with serving(app, tmp_path) as (client, document, seen):
        client.post("/auth/register", json=ACCOUNT)
        headers, to_be_ended = logged_in(client), logged_in(client)
        headers["X-Tenant-Id"] = made(client, "/organizations", json={"name": "Acme"}, headers=headers)
        client.headers.update(headers)
        known = populated(client)
        client.post("/auth/register", json=OTHER_ACCOUNT)
        other = logged_in(client, OTHER_ACCOUNT)
        ending = {"POST /auth/logout": to_be_ended, **dict.fromkeys(ENDING, other)}  # the others go on
        config = configured(tmp_path, headers=headers, known=known, by_operation=ending)
        output = holds(client, document, config, phases=phases)
        assert client.get("/projects").status_code == 200  # the login has lasted to the end
    assert "Selected: 37/37" in output
    assert seen >= {200, 201, 202, 204, 400, 401, 404, 409, 422, *also_seen}


def test_the_tracker_answers_nobody_as_it_is_documented(migrated_sqlite_url: str, tmp_path: Path) -> None:
    app = tracker(migrated_sqlite_url)
    with serving(app, tmp_path) as (client, document, seen):
        output = holds(client, document, configured(tmp_path, headers={}, known={}, by_operation={}), phases="coverage")
    assert "Selected: 37/37" in output
    assert seen >= {201, 400, 401, 405, 415, 422}


@pytest.mark.parametrize("engine", ["postgres", *(["sqlite"] if IS_SEARCH else [])])
def test_organizations_keys_and_logins_elsewhere_answer_as_they_are_documented(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OAUTH_GITHUB_CLIENT_ID", "shared")
    monkeypatch.setenv("OAUTH_GITHUB_CLIENT_SECRET", "a secret of the provider's")
    app = shared(request.getfixturevalue(f"migrated_{engine}_url"))
    with serving(app, tmp_path, "/(orgs|oauth|auth/api-keys)") as (client, document, seen):
        client.post("/auth/register", json=ACCOUNT)
        headers = logged_in(client)
        client.headers.update(headers)
        organization = made(client, "/orgs", json={"name": "Acme"})
        team = made(client, f"/orgs/{organization}/teams", json={"name": "Writers"})
        invited = made(client, f"/orgs/{organization}/invitations", json={"email": "bo@example.com", "role": "member"})
        known = {
            "path.organization_id": [organization],
            "query.organization_id": [organization],
            "path.team_id": [team],
            "path.invitation_id": [invited],
            "path.user_id": [client.get("/auth/me").json()["id"]],
            "query.provider": ["github"],
        }
        output = holds(client, document, configured(tmp_path, headers=headers, known=known, by_operation={}))
    assert "Selected: 31/31" in output
    assert seen >= {200, 201, 204, 400, 401, 403, 404, 409, 422}


def test_second_factors_answer_as_they_are_documented(migrated_sqlite_url: str, tmp_path: Path) -> None:
    app = with_second_factors(migrated_sqlite_url)
    with serving(app, tmp_path, "/auth/mfa") as (client, document, seen):
        client.post("/auth/register", json=ACCOUNT)
        headers = logged_in(client)
        client.headers.update(headers)
        factor = made(client, "/auth/mfa/totp", json={})
        config = configured(tmp_path, headers=headers, known={"path.factor_id": [factor]}, by_operation={})
        output = holds(client, document, config, max_examples=MAX_EXAMPLES // 2)
    assert "Selected: 17/17" in output
    assert seen >= {200, 201, 202, 400, 401, 404, 422}


async def make_admin(sql_url: str) -> str:
    """Give the first account every role that the routes below `/admin` ask for; its id."""
    db = AsyncDatabase(sql_url)
    async with db.session() as session:
        user = (await session.scalars(select(User).where(User.email == ACCOUNT["email"]))).one()
        user.roles = ["admin", "auditor"]
    await db.dispose()
    return str(user.id)


def test_the_admin_routes_answer_an_admin_as_they_are_documented(migrated_sqlite_url: str, tmp_path: Path) -> None:
    app = tracker(migrated_sqlite_url)
    with serving(app, tmp_path, "/admin/") as (client, document, seen):
        for account in (ACCOUNT, OTHER_ACCOUNT):
            client.post("/auth/register", json=account)
        admin_id = asyncio.run(make_admin(migrated_sqlite_url))
        headers = logged_in(client)
        users = client.get("/admin/users", headers=headers).json()["items"]
        known = {"path.user_id": [user["id"] for user in users if user["id"] != admin_id], "path.role": ["support"]}
        config = configured(tmp_path, headers=headers, known=known, by_operation={})
        output = holds(client, document, config, max_examples=MAX_EXAMPLES // 2)
        assert client.get("/admin/roles", headers=headers).status_code == 200  # the login has lasted to the end
    assert "Selected: 17/17" in output
    assert seen >= {200, 204, 403, 404, 405, 422}


def test_guards_answer_as_they_are_documented(migrated_sqlite_url: str, tmp_path: Path) -> None:
    with serving(guarded(migrated_sqlite_url), tmp_path) as (client, document, seen):
        dates = ["Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 01 Jan 2027 00:00:00 GMT"]
        known = {
            "header.If-Match": ["*", ETAG, f'"another", {ETAG}', '"another"'],
            "header.If-None-Match": ["*", ETAG, f"W/{ETAG}", '"another"'],
            "header.If-Modified-Since": dates,
            "header.If-Unmodified-Since": dates,
        }
        config = configured(tmp_path, headers={}, known=known, by_operation={})
        output = holds(client, document, config, max_examples=5 * MAX_EXAMPLES)
    assert "Selected: 4/4" in output
    assert seen >= {200, 304, 400, 404, 405, 412, 422, 428, 429}
