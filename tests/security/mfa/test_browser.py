"""Passkeys in a real browser with a virtual authenticator, on a page of the app and on one of another origin."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from playwright.sync_api import Browser, Page, sync_playwright

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db.add import add_db
from svc_infra.security.access.http import public
from svc_infra.security.accounts import MailQueue
from svc_infra.security.add import add_auth_users
from svc_infra.security.mfa.add import add_mfa
from svc_infra.wiring import wiring_of
from tests.app.serving import listening, served
from tests.security.conftest import PASSWORD, Mailbox

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")

ACCOUNT = {"email": "ana@example.com", "password": PASSWORD}
SCRIPT = """
window.send = async (path, body, method = "POST") => {
  const headers = { "Content-Type": "application/json" };
  if (window.csrf) headers["X-CSRF-Token"] = window.csrf;
  const answer = await fetch(path, { method, headers, body: body ? JSON.stringify(body) : undefined });
  const text = await answer.text();
  const said = text ? JSON.parse(text) : null;
  if (said && said.csrf_token) window.csrf = said.csrf_token;
  return { status: answer.status, body: said };
};
window.create = async (options) => {
  const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(options);
  return (await navigator.credentials.create({ publicKey })).toJSON();
};
window.get = async (options) => {
  const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(options);
  return (await navigator.credentials.get({ publicKey })).toJSON();
};
null;
"""
REGISTER = """async (account) => {
  await send("/auth/register", account);
  const login = await send("/auth/login", { ...account, cookies: true });
  const asked = await send("/auth/mfa/passkeys/options");
  const made = await send("/auth/mfa/passkeys", { credential: await create(asked.body.public_key), name: "Laptop" });
  return [login.status, asked.status, made.status, made.body.recovery_codes.length];
}"""
LOG_IN_ALONE = """async () => {
  const asked = await send("/auth/mfa/passkeys/login/options", { cookies: true });
  const credential = await get(asked.body.public_key);
  const login = await send("/auth/mfa/passkeys/login", { credential, cookies: true });
  return [login.status, (await send("/auth/me", null, "GET")).body.email];
}"""
SECOND_STEP = """async (account) => {
  const first = await send("/auth/login", { ...account, cookies: true });
  const token = first.body.mfa_token;
  const asked = await send("/auth/mfa/options", { mfa_token: token });
  const credential = await get(asked.body.public_key);
  const second = await send("/auth/mfa/verify", { mfa_token: token, credential });
  return [first.status, second.status, second.body.token_type];
}"""
ANSWER_ELSEWHERE = """async (options) => {
  try { return await get(options); } catch (error) { return error.name; }
}"""


def app_on(folder: Path | None, port: int) -> FastAPI:
    """An app with an empty page; with a folder it has accounts, whose passkeys are good on this port alone."""
    auth = {"hash_memory_kib": 64, "hash_passes": 1}
    settings = Settings(app={"env": "test"}, auth=auth, mfa={"origins": (f"http://localhost:{port}",)})
    app = create_app(settings=settings)
    if folder is not None:
        add_db(app, url=f"sqlite:///{folder}/browser.db")
        add_auth_users(app)
        add_mfa(app)
        wiring_of(app).provide(MailQueue, Mailbox())

    @app.get("/page", dependencies=[public()], include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse("<!doctype html><title>page</title>")

    return app


def serving(stack: ExitStack, folder: Path | None) -> int:
    """A running app; its port."""
    listener = listening()
    port = int(listener.getsockname()[1])
    _, client = stack.enter_context(served(app_on(folder, port), on=listener))
    assert client.get("/page").status_code == 200
    return port


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def page_at(browser: Browser, port: int) -> tuple[Page, Any, str]:
    """A page of the app, with an authenticator that verifies its user."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://localhost:{port}/page")
    page.evaluate(SCRIPT)
    devtools = context.new_cdp_session(page)
    devtools.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2",
        "transport": "internal",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    made = devtools.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    return page, devtools, str(made["authenticatorId"])


def test_a_browser_enrols_a_passkey_and_logs_in_with_it_and_not_from_another_origin(
    browser: Browser, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        port, other_port = serving(stack, tmp_path), serving(stack, None)
        page, devtools, authenticator = page_at(browser, port)
        assert page.evaluate(REGISTER, ACCOUNT) == [200, 200, 201, 10]
        [credential] = devtools.send("WebAuthn.getCredentials", {"authenticatorId": authenticator})["credentials"]
        assert (credential["isResidentCredential"], credential["rpId"]) == (True, "localhost")
        assert page.evaluate(SECOND_STEP, ACCOUNT) == [202, 200, "cookie"]
        assert page.evaluate(LOG_IN_ALONE) == [200, ACCOUNT["email"]]

        # A page on another port has the same domain, so the browser lets it use the passkey; the service does not.
        elsewhere, other_devtools, other_authenticator = page_at(browser, other_port)
        copied = {"authenticatorId": other_authenticator, "credential": {**credential, "signCount": 100}}
        other_devtools.send("WebAuthn.addCredential", copied)
        options = page.evaluate("async () => (await send('/auth/mfa/passkeys/login/options', {})).body.public_key")
        answer = elsewhere.evaluate(ANSWER_ELSEWHERE, options)
        assert answer["type"] == "public-key"
        sent = page.evaluate("async (credential) => send('/auth/mfa/passkeys/login', { credential })", answer)
        assert (sent["status"], sent["body"]["code"]) == (401, "invalid_credentials")
