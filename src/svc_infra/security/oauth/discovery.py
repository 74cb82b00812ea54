"""What a provider says about itself: its endpoints and its keys, remembered for a while."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import orjson
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from svc_infra.errors import UpstreamError
from svc_infra.http import HttpClient, Response
from svc_infra.security.oauth.providers import TENANT, Endpoints, OAuthProvider
from svc_infra.types import Clock

REMEMBERED_SECONDS = 3600.0
KEYS_INTERVAL_SECONDS = 60.0
"""Between two looks for a key that is not there: forged tokens must not make us call the provider each time."""
MAX_KEYS = 100
MIN_RSA_CHARACTERS = 342
"""The modulus of 2048 bits in base64url (NIST SP 800-131A)."""

PublicKey = RSAKey | ECKey | OKPKey

_KINDS: dict[Any, type[PublicKey]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}


class Discovery:
    """What one provider says about itself.

    Args:
        provider: Which.
        http: What calls it.
        allow_http: Accept endpoints without TLS, on a developer's machine.
        clock: Where the time comes from.
    """

    def __init__(self, provider: OAuthProvider, http: HttpClient, *, allow_http: bool, clock: Clock) -> None:
        self._provider = provider
        self._http = http
        self._schemes = ("https", "http") if allow_http else ("https",)
        self._clock = clock
        self._lock = asyncio.Lock()
        self._endpoints = provider.endpoints
        self._endpoints_until: datetime | None = None
        self._keys: list[PublicKey] = []
        self._keys_at: datetime | None = None

    async def endpoints(self) -> Endpoints:
        """Where it is asked.

        Raises:
            UpstreamError: It cannot be reached, or describes itself wrongly.
        """
        if self._provider.endpoints is not None:
            return self._provider.endpoints
        async with self._lock:
            now = self._clock.now()
            if self._endpoints is None or self._endpoints_until is None or now >= self._endpoints_until:
                self._endpoints = await self._discovered()
                self._endpoints_until = now + timedelta(seconds=REMEMBERED_SECONDS)
            return self._endpoints

    async def keys(self, key_id: str | None) -> list[PublicKey]:
        """The keys that a token with this header may be signed with; looked for anew when there is none.

        Raises:
            UpstreamError: It cannot be reached.
        """
        endpoints = await self.endpoints()
        async with self._lock:
            age = timedelta.max if self._keys_at is None else self._clock.now() - self._keys_at
            found = self._named(key_id)
            too_old = timedelta(seconds=REMEMBERED_SECONDS if found else KEYS_INTERVAL_SECONDS)
            if age >= too_old and endpoints.keys is not None:
                body = json_object(await self._http.request("GET", endpoints.keys), self._provider.name)
                self._keys, self._keys_at = _public_keys(body), self._clock.now()
                found = self._named(key_id)
            return found

    def _named(self, key_id: str | None) -> list[PublicKey]:
        return [key for key in self._keys if key_id is None or key.kid == key_id]

    async def _discovered(self) -> Endpoints:
        provider = self._provider
        url = provider.discovery_url or f"{provider.issuer.rstrip('/')}/.well-known/openid-configuration"
        said = json_object(await self._http.request("GET", self._secure(url)), provider.name)
        if said.get("issuer") != provider.issuer and not (TENANT in provider.issuer and provider.discovery_url):
            raise UpstreamError(f"{provider.name} describes another issuer than {provider.issuer}.")
        methods = said.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        in_header = isinstance(methods, list) and "client_secret_basic" in methods
        return Endpoints(
            authorization=self._secure(said.get("authorization_endpoint")),
            token=self._secure(said.get("token_endpoint")),
            userinfo=self._secure(said["userinfo_endpoint"]) if "userinfo_endpoint" in said else None,
            keys=self._secure(said.get("jwks_uri")),
            names_issuer=said.get("authorization_response_iss_parameter_supported") is True,
            posts_client=not in_header,
        )

    def _secure(self, url: object) -> str:
        if not isinstance(url, str) or urlsplit(url).scheme not in self._schemes:
            raise UpstreamError(f"{self._provider.name} describes an endpoint that is missing or has no TLS.")
        return url


def json_object(response: Response, name: str) -> dict[str, Any]:
    """The object that a provider answered.

    Raises:
        UpstreamError: It answered with something else, or with an error.
    """
    said = json_value(response, name)
    if not isinstance(said, dict):
        raise UpstreamError(f"{name} answered no JSON object.")
    return said


def json_value(response: Response, name: str) -> Any:
    """What a provider answered.

    Raises:
        UpstreamError: It answered with an error, or no JSON.
    """
    if response.status != 200:
        raise UpstreamError(f"{name} answered with the status {response.status}.")
    try:
        return orjson.loads(response.body)
    except orjson.JSONDecodeError:
        raise UpstreamError(f"{name} answered no JSON.") from None


def _public_keys(body: dict[str, Any]) -> list[PublicKey]:
    """The keys that verify signatures; those of other kinds, for other uses or too short are left out."""
    said = body.get("keys")
    keys: list[PublicKey] = []
    for one in said[:MAX_KEYS] if isinstance(said, list) else ():
        kind = _KINDS.get(one.get("kty")) if isinstance(one, dict) and isinstance(one.get("kty"), str) else None
        if kind is None or one.get("use", "sig") != "sig":
            continue
        if kind is RSAKey and len(str(one.get("n", ""))) < MIN_RSA_CHARACTERS:
            continue
        try:
            keys.append(kind.import_key({name: value for name, value in one.items() if name != "key_ops"}))
        except (JoseError, ValueError, TypeError):
            continue  # one key that nobody can read must not take the others away
    return keys
