"""A real OpenID provider over HTTP for what a certified one never does: it checks what it must, and lies on demand."""

from __future__ import annotations

import secrets
import socket
import threading
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

import uvicorn
from joserfc import jws, jwt
from joserfc.jwk import ECKey, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from svc_infra.testing import FakeClock

CLIENT_ID, CLIENT_SECRET = "the-client", "the secret: of the client, 32 bytes+"
RSA = [RSAKey.generate_key(2048, {"kid": f"rsa-{number}"}) for number in (1, 2)]
EC = ECKey.generate_key("P-256", {"kid": "ec-1"})


@dataclass
class Impostor:
    """The provider's state.

    Attributes:
        claims: Put over those of the ID token; None takes one away.
        userinfo: What `/userinfo` says instead.
        metadata: Put over what it says of itself.
        answer: Put over the parameters that the browser is sent back with; None takes one away.
        token_answer: Status and body of the token endpoint instead.
        sign: Instead of signing with the newest key.
        keys: What it signs with, and what it publishes, the newest first.
    """

    issuer: str
    clock: FakeClock = field(default_factory=FakeClock)
    claims: dict[str, Any] = field(default_factory=dict)
    userinfo: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, str | None] = field(default_factory=dict)
    token_answer: tuple[int, bytes] | None = None
    sign: Any = None
    keys: list[Any] = field(default_factory=lambda: [RSA[0]])
    published: list[Any] | None = None
    emails: Any = None
    calls: list[str] = field(default_factory=list)
    token_headers: dict[str, str] = field(default_factory=dict)
    token_form: dict[str, str] = field(default_factory=dict)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    access: dict[str, str] = field(default_factory=dict)

    def behave(self) -> None:
        """Forget every misdeed."""
        self.__init__(self.issuer)  # type: ignore[misc]

    def now(self) -> int:
        return int(self.clock.now().timestamp())

    async def describe(self, request: Request) -> Response:
        self.calls.append("metadata")
        said = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "jwks_uri": f"{self.issuer}/jwks",
            "authorization_response_iss_parameter_supported": True,
        }
        return JSONResponse(_over(said, self.metadata))

    async def jwks(self, request: Request) -> Response:
        self.calls.append("jwks")
        if self.published is not None:
            return JSONResponse({"keys": self.published})
        return JSONResponse({"keys": [key.as_dict(private=False) for key in self.keys]})

    async def authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        code = secrets.token_urlsafe(16)
        self.codes[code] = asked
        said = {"code": code, "state": asked["state"], "iss": self.issuer}
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(_over(said, self.answer))}", 303)

    async def token(self, request: Request) -> Response:
        self.calls.append("token")
        form = dict(parse_qsl((await request.body()).decode()))
        self.token_headers, self.token_form = dict(request.headers), form
        asked = self.codes.pop(form["code"], None)
        if self.token_answer is not None:
            return Response(self.token_answer[1], self.token_answer[0], media_type="application/json")
        if not self._knows_client(request, form):
            return JSONResponse({"error": "invalid_client"}, 401)
        if asked is None or asked["redirect_uri"] != form["redirect_uri"] or not self._proves(asked, form):
            return JSONResponse({"error": "invalid_grant"}, 400)
        access = secrets.token_urlsafe(16)
        self.access[access] = asked.get("login", "ana")
        given = {"access_token": access, "token_type": "Bearer", "expires_in": 3600, "refresh_token": f"r-{access}"}
        return JSONResponse({**given, "id_token": self._id_token(asked)})

    async def user(self, request: Request) -> Response:
        self.calls.append("userinfo")
        who = self.access.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if who is None:
            return JSONResponse({"error": "invalid_token"}, 401)
        return JSONResponse(self.userinfo if self.userinfo is not None else self._person(who))

    async def addresses(self, request: Request) -> Response:
        return JSONResponse(self.emails)

    def _person(self, who: str) -> dict[str, Any]:
        return {"sub": who, "email": f"{who}@example.com", "email_verified": True}

    def _id_token(self, asked: dict[str, str]) -> str:
        now = self.now()
        said = {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": asked.get("nonce"),
            **self._person(asked.get("login", "ana")),
        }
        claims = {name: value for name, value in _over(said, self.claims).items() if value is not None}
        if self.sign is not None:
            return str(self.sign(claims))
        return signed(claims, self.keys[0])

    def _knows_client(self, request: Request, form: dict[str, str]) -> bool:
        sent = request.headers.get("authorization", "")
        if sent.startswith("Basic "):
            name, _, secret = b64decode(sent[6:]).decode().partition(":")
            return (unquote(name), unquote(secret)) == (CLIENT_ID, CLIENT_SECRET)
        return (form.get("client_id"), form.get("client_secret")) == (CLIENT_ID, CLIENT_SECRET)

    def _proves(self, asked: dict[str, str], form: dict[str, str]) -> bool:
        if "code_challenge" not in asked:
            return "code_verifier" not in form
        digest = sha256(form.get("code_verifier", "").encode()).digest()
        return urlsafe_b64encode(digest).rstrip(b"=").decode() == asked["code_challenge"]


def signed(claims: dict[str, Any], key: Any, alg: str | None = None) -> str:
    """A token."""
    alg = alg or ("ES256" if isinstance(key, ECKey) else "RS256")
    registry = jws.JWSRegistry(algorithms=[alg])
    return jwt.encode({"alg": alg, "kid": key.kid}, claims, key, registry=registry)


def _over(said: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**said, **changes}.items() if value is not None}


class _Server(uvicorn.Server):
    """A server that says when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


@contextmanager
def serving(port: int) -> Iterator[Impostor]:
    """Serve it on loopback, in a thread of its own."""
    impostor = Impostor(f"http://127.0.0.1:{port}/impostor")
    routes = [
        Route("/impostor/.well-known/openid-configuration", impostor.describe),
        Route("/impostor/jwks", impostor.jwks),
        Route("/impostor/authorize", impostor.authorize),
        Route("/impostor/token", impostor.token, methods=["POST"]),
        Route("/impostor/userinfo", impostor.user),
        Route("/impostor/emails", impostor.addresses),
    ]
    config = uvicorn.Config(Starlette(routes=routes), port=port, log_level="error", lifespan="off", ws="none")
    server = _Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.is_up.wait(30), "the impostor did not start"
    try:
        yield impostor
    finally:
        server.should_exit = True
        thread.join(10)
