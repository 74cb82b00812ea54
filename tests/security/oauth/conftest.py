"""Apps that log in with a provider, browsers, and two providers: a certified one, and one that misbehaves on demand."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx2
import pytest
from fastapi import FastAPI

from svc_infra.config.serving import HeadersSettings
from svc_infra.db import AsyncDatabase
from svc_infra.security.oauth import OAuthProvider, oidc
from svc_infra.security.oauth.add import add_oauth
from svc_infra.testing import FakeClock
from svc_infra.types import Clock
from tests.security.conftest import service
from tests.security.oauth.impostor import Impostor, serving
from tests.servers import free_port

HERE = Path(__file__).parent
CALLBACK = "https://test/oauth/callback"
CLIENT_ID, CLIENT_SECRET = "the-client", "the secret: of the client, 32 bytes+"
HTML = {"Accept": "text/html,*/*;q=0.8"}


@pytest.fixture(autouse=True)
def client_of_every_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACME", "OTHER", "GITHUB", "MICROSOFT", "LINKEDIN", "GOOGLE"):
        monkeypatch.setenv(f"OAUTH_{name}_CLIENT_ID", CLIENT_ID)
        monkeypatch.setenv(f"OAUTH_{name}_CLIENT_SECRET", CLIENT_SECRET)


@pytest.fixture(scope="session")
def impostor() -> Iterator[Impostor]:
    """A provider that can misbehave, over HTTP; each test gives it back well-behaved."""
    with serving(free_port()) as impostor:
        yield impostor


@pytest.fixture
def acme(impostor: Impostor, clock: FakeClock) -> Iterator[OAuthProvider]:
    """The impostor, as an app knows it."""
    impostor.behave()
    impostor.clock = clock
    yield oidc("acme", impostor.issuer)
    impostor.behave()


@pytest.fixture(scope="session")
def certified() -> Iterator[str]:
    """The issuer of a certified provider, `oidc-provider` from npm, under Node.js."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("the certified provider needs node and npm, which are not on this machine")
    folder, port = _installed(npm), free_port()
    command = [node, "server.mjs", str(port)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "listening", "the certified provider did not start"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _installed(npm: str) -> Path:
    """The provider's packages, exactly as the lock file names them, installed once for every run on this machine."""
    lock = HERE / "provider/package-lock.json"
    ours = [lock, HERE / "provider/package.json", HERE / "provider/server.mjs"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in ours)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"svc-infra-oidc-provider-{os.getuid()}-{digest}")
    if not folder.exists():
        fresh = Path(tempfile.mkdtemp(dir=folder.parent))
        for file in ours:
            shutil.copy(file, fresh)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        result = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False, timeout=120)
        if result.returncode:
            shutil.rmtree(fresh)
            pytest.skip(f"npm cannot install the certified provider here: {result.stderr[-300:]}")
        try:
            fresh.rename(folder)
        except OSError:  # another test process was first
            shutil.rmtree(fresh)
    return folder


@dataclass
class Browser:
    """A browser: it keeps cookies, and goes where it is sent."""

    http: httpx2.AsyncClient

    async def begin(self, provider: str = "acme", **params: str) -> str:
        """Begin a login; where it is sent."""
        answer = await self.http.get("/oauth/authorize", params={"provider": provider, **params}, headers=HTML)
        assert answer.status_code == 303, answer.text
        return str(answer.headers["location"])

    async def come_back(self, url: str) -> httpx2.Response:
        """Follow the provider's redirect back to the app."""
        return await self.http.get(url, headers=HTML)

    async def log_in(self, who: str = "ana", provider: str = "acme", **params: str) -> httpx2.Response:
        return await self.come_back(await agree(await self.begin(provider, **params), who))

    @property
    def flows(self) -> list[str]:
        return [name for name in self.http.cookies if name.startswith("__Host-oauth-")]


@asynccontextmanager
async def browser_of(app: FastAPI) -> AsyncIterator[Browser]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="https://test") as http:
        yield Browser(http)


def assert_page(response: httpx2.Response, status: int, code: str) -> None:
    """Insist on a refusal of this kind, as a person's browser shows it under the policy of every page."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-security-policy"] == HeadersSettings().html_content_security_policy
    assert f"<small>{code} " in response.text
    assert not re.search(r"<(script|style|link|img)| (style|on[a-z]+)=", response.text)


async def agree(url: str, who: str = "ana") -> str:
    """Log in at a provider and agree to everything that it asks; where it sends the browser in the end."""
    async with httpx2.AsyncClient() as http:
        answer = await http.get(f"{url}&login={who}" if "/impostor/" in url else url)
        for _ in range(12):
            if answer.is_redirect:
                url = urljoin(str(answer.request.url), answer.headers["location"])
                if url.startswith(CALLBACK):
                    return url
                answer = await http.get(url)
                continue
            assert answer.status_code == 200, answer.text
            action = re.search(r'action="([^"]+)"', answer.text)
            prompt = re.search(r'name="prompt" value="([^"]+)"', answer.text)
            assert action is not None, answer.text
            assert prompt is not None, answer.text
            form = {"prompt": prompt[1], "login": who, "password": "any"}
            answer = await http.post(urljoin(url, action[1]), data=form)
    raise AssertionError(f"{urlsplit(url).netloc} asks without end")


def app_with(
    db: AsyncDatabase | str, clock: Clock, *providers: OAuthProvider, env: str = "test", **sections: object
) -> FastAPI:
    app = service(db, clock, env=env, **sections)  # type: ignore[arg-type]
    add_oauth(app, providers=providers)
    return app
