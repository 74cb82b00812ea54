"""Keys that were found where they should not be: by somebody, or by GitHub, which signs what it says."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import select

from svc_infra.db import AsyncDatabase
from svc_infra.security.access.http import routes_without_policy
from svc_infra.security.audit import AuditEntry
from svc_infra.security.keys import KeyForm
from svc_infra.security.keys.add import add_api_keys
from svc_infra.security.models import User
from svc_infra.security.permissions import register_role
from svc_infra.testing import FakeClock
from tests.security.conftest import Client, assert_problem, running, service
from tests.security.keys.conftest import call, made, organization, reader

ANA, PATH = "ana@example.com", "/auth/api-keys/leaked/github"
FOUND_AT = "https://github.example/ana/shop/blob/main/.env#L3"
IDENTIFIER = "f" * 64


@dataclass
class Github:
    """Publishes keys as GitHub does, on loopback, and signs reports with them."""

    url: str = ""
    key: EllipticCurvePrivateKey = field(default_factory=lambda: generate_private_key(SECP256R1()))
    published: list[Any] | None = None
    answer: tuple[int, bytes] | None = None
    asked: int = 0

    def keys(self) -> list[Any]:
        return [{"key_identifier": IDENTIFIER, "key": pem(self.key.public_key()), "is_current": True}]

    def reply(self) -> tuple[int, bytes]:
        self.asked += 1
        listed = self.keys() if self.published is None else self.published
        return self.answer or (200, json.dumps({"public_keys": listed}).encode())

    def headers(self, body: bytes, key: EllipticCurvePrivateKey | None = None) -> dict[str, str]:
        signature = (key or self.key).sign(body, ECDSA(SHA256()))
        return {
            "content-type": "application/json",
            "github-public-key-identifier": IDENTIFIER,
            "github-public-key-signature": b64encode(signature).decode(),
        }

    async def report(self, client: Client, *tokens: str, url: str = FOUND_AT) -> httpx2.Response:
        matches = [{"token": token, "type": "svc_key", "url": url, "source": "commit"} for token in tokens]
        body = json.dumps(matches).encode()
        return await client.http.post(PATH, content=body, headers=self.headers(body))


def pem(key: Any) -> str:
    text: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


@pytest.fixture
def github() -> Iterator[Github]:
    github = Github()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = github.reply()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        github.url = f"http://127.0.0.1:{server.server_port}/meta/public_keys/secret_scanning"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield github
        server.shutdown()
        thread.join(10)


@pytest.fixture
async def client(sqlite_db: AsyncDatabase, clock: FakeClock, github: Github) -> AsyncIterator[Client]:
    app = service(sqlite_db, clock, auth={"secret_scanning_keys_url": github.url})
    add_api_keys(app, github_secret_scanning=True)
    register_role(app, "member", ["ticket.read"], in_organizations=True)
    async with running(app, clock) as client:
        assert "/auth/api-keys/leaked/github" not in {route.path for route in routes_without_policy(app)}
        yield client


async def works(client: Client, key: str) -> bool:
    return (await call(client, key, "/auth/me")).status_code == 200


async def test_the_owner_of_a_leaked_key_is_told_once(client: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await reader(client, sqlite_db)
    await reader(client, sqlite_db, "eve@example.com")
    key = await made(ana)
    for _ in range(2):
        assert (await client.http.post("/auth/api-keys/leaked", json={"key": key["key"]})).status_code == 204
    [(to, values)] = [(to, values) for name, to, values in client.mailbox.sent if name == "key_leaked"]
    assert (to, values["name"], values["hint"]) == (ANA, "ci", key["key"][-4:])
    assert key["key"] not in str(values)


async def test_the_owners_of_a_services_organization_are_told(client: Client, sqlite_db: AsyncDatabase) -> None:
    ana, ana_id = await reader(client, sqlite_db)
    _, bob_id = await reader(client, sqlite_db, "bob@example.com")
    _, eve_id = await reader(client, sqlite_db, "eve@example.com")
    acme = await organization(sqlite_db, ana_id, admin=bob_id, owner=eve_id)
    key = await made(ana, organization_id=str(acme), service=True)
    async with sqlite_db.session() as session:
        (await session.get_one(User, eve_id)).is_active = False
    await client.http.post("/auth/api-keys/leaked", json={"key": key["key"]})
    assert [to for name, to, _ in client.mailbox.sent if name == "key_leaked"] == [ANA]


async def test_what_github_finds_is_ended_and_its_owner_told_where_it_was(
    client: Client, sqlite_db: AsyncDatabase, github: Github
) -> None:
    ana, _ = await reader(client, sqlite_db)
    one, two, other = await made(ana), await made(ana), await made(ana)
    unknown = KeyForm().draw(uuid4())
    answer = await github.report(client, one["key"], unknown, "no key", two["key"])
    assert answer.status_code == 200, answer.text
    assert [judged["label"] for judged in answer.json()] == [
        "true_positive", "false_positive", "false_positive", "true_positive",
    ]  # fmt: skip
    digest = b64encode(sha256(one["key"].encode()).digest()).decode()
    assert (answer.json()[0]["token_hash"], answer.json()[0]["token_type"]) == (digest, "svc_key")
    assert [await works(client, key["key"]) for key in (one, two, other)] == [False, False, True]
    sent = [values["found_at"] for name, to, values in client.mailbox.sent if (name, to) == ("key_leaked", ANA)]
    assert sent == [FOUND_AT, FOUND_AT]
    again = await github.report(client, one["key"])
    assert [judged["label"] for judged in again.json()] == ["true_positive"], "it was one, though it has ended"
    assert client.mailbox.to(ANA).count("key_leaked") == 2
    async with sqlite_db.session(read_only=True) as session:
        actions = list(await session.scalars(select(AuditEntry.action)))
    assert actions.count("api_key.revoked") == 2
    assert github.asked == 1, "its keys are remembered"


async def test_a_report_that_github_has_not_signed_ends_nothing(
    client: Client, sqlite_db: AsyncDatabase, github: Github
) -> None:
    ana, _ = await reader(client, sqlite_db)
    key = (await made(ana))["key"]
    body = json.dumps([{"token": key, "type": "svc_key", "url": "", "source": "commit"}]).encode()
    good = github.headers(body)
    stranger = generate_private_key(SECP256R1())
    forged: dict[str, dict[str, str]] = {
        "nothing": {},
        "no signature": {**good, "github-public-key-signature": ""},
        "no key": {**good, "github-public-key-identifier": ""},
        "another key": {**good, "github-public-key-identifier": "a" * 64},
        "a key's name that is none": {**good, "github-public-key-identifier": "../../etc"},
        "no base64": {**good, "github-public-key-signature": "%%%"},
        "cut": {**good, "github-public-key-signature": good["github-public-key-signature"][:-8]},
        "of another body": github.headers(body + b" "),
        "by a stranger": github.headers(body, stranger),
        "without end": {**good, "github-public-key-signature": "A" * 5000},
    }
    for why, headers in forged.items():
        answer = await client.http.post(PATH, content=body, headers=headers)
        assert answer.status_code == 401, (why, answer.text)
        assert_problem(answer, 401, "invalid_signature")
    assert await works(client, key)
    assert client.mailbox.to(ANA).count("key_leaked") == 0
    assert (await client.http.post(PATH, content=body, headers=good)).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", json.dumps([{"token": "x"}] * 1001).encode()])
async def test_what_is_signed_and_no_report_is_refused(body: bytes, client: Client, github: Github) -> None:
    answer = await client.http.post(PATH, content=body, headers=github.headers(body))
    assert_problem(answer, 422, "validation_error")


async def test_what_is_signed_and_no_json_is_refused(client: Client, github: Github) -> None:
    answer = await client.http.post(PATH, content=b"no json", headers=github.headers(b"no json"))
    assert_problem(answer, 400, "bad_request")


async def test_matches_without_a_token_are_passed_over(client: Client, github: Github) -> None:
    body = b'[{"type": "svc_key"}, {"token": 7, "url": []}]'
    answer = await client.http.post(PATH, content=body, headers=github.headers(body))
    assert (answer.status_code, answer.json()) == (200, [])


async def test_github_is_asked_again_after_an_hour_and_for_unknown_keys_now_and_then(
    client: Client, github: Github, clock: FakeClock
) -> None:
    assert (await github.report(client, "x")).status_code == 200
    stranger = {**github.headers(b"[]"), "github-public-key-identifier": "b" * 64}

    async def unknown() -> int:
        return (await client.http.post(PATH, content=b"[]", headers=stranger)).status_code

    assert [await unknown(), await unknown(), github.asked] == [401, 401, 1]
    clock.advance(299)
    assert [await unknown(), github.asked] == [401, 1]
    clock.advance(1)
    assert [await unknown(), await unknown(), github.asked] == [401, 401, 2]
    clock.advance(3600)
    github.published = []
    assert (await github.report(client, "x")).status_code == 401, "a key that is withdrawn is forgotten"


async def test_while_github_cannot_be_asked_it_is_not_asked_by_every_request(
    client: Client, github: Github, clock: FakeClock
) -> None:
    for answer in ((500, b"oops"), (200, b"no json"), (200, b"[]"), (200, b'{"public_keys": 7}')):
        github.answer, github.asked = answer, 0
        assert_problem(await github.report(client, "x"), 502, "upstream_error")
        later = await github.report(client, "x")
        assert_problem(later, 503, "unavailable")
        assert (later.headers["retry-after"], github.asked) == ("300", 1)
        clock.advance(300)
    github.answer = None
    assert (await github.report(client, "x")).status_code == 200


async def test_a_public_key_that_is_not_fit_takes_no_other_away(client: Client, github: Github) -> None:
    spoiled = [
        "text", {"key_identifier": "a"}, {"key": "b"}, {"key_identifier": 7, "key": pem(github.key.public_key())},
        {"key_identifier": "c" * 64, "key": pem(generate_private_key(SECP384R1()).public_key())},
        {"key_identifier": "d" * 64, "key": pem(Ed25519PrivateKey.generate().public_key())},
    ]  # fmt: skip
    github.published = [*spoiled, *github.keys()]
    assert (await github.report(client, "x")).status_code == 200
    headers = {**github.headers(b"[]"), "github-public-key-identifier": "d" * 64}
    assert (await client.http.post(PATH, content=b"[]", headers=headers)).status_code == 401


async def test_a_report_as_github_documents_it_is_understood(client: Client, github: Github) -> None:
    """The example of GitHub's own page, and the key that GitHub publishes for it."""
    documented = (
        "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEYAGMWO8XgCamYKMJS6jc/qgvSlAd\n"
        "AjPuDPRcXU22YxgBrz+zoN19MzuRyW87qEt9/AmtoNP5GrobzUvQSyJFVw==\n-----END PUBLIC KEY-----\n"
    )
    identifier = "bcb53661c06b4728e59d897fb6165d5c9cda0fd9cdf9d09ead458168deb7518c"
    github.published = [{"key_identifier": identifier, "key": documented}]
    headers = {
        "github-public-key-identifier": identifier,
        "github-public-key-signature": "MEQCIQDaMKqrGnE27S0kgMrEK0eYBmyG0LeZismAEz/BgZyt7AIf"
        "Xt9fErtRS4XaeSt/AO1RtBY66YcAdjxji410VQV4xg==",
    }
    body = b'[{"source":"commit","token":"some_token","type":"some_type","url":"https://example.com/base-repo-url/"}]'
    answer = await client.http.post(PATH, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()[0]["label"] == "false_positive"


async def test_an_app_that_did_not_ask_for_it_takes_no_reports(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = service(sqlite_db, clock)
    add_api_keys(app)
    async with running(app, clock) as client:
        assert (await client.http.post(PATH, json=[])).status_code in (404, 405)
