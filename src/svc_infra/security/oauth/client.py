"""A client of one provider: sends browsers there, and learns from it who came back (RFC 6749, OpenID Connect Core)."""

from __future__ import annotations

import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlencode

from pydantic import SecretStr

from svc_infra.errors import BadRequestError, ForbiddenError, UpstreamError
from svc_infra.http import HttpClient, Response
from svc_infra.security.oauth.discovery import Discovery, json_object, json_value
from svc_infra.security.oauth.id_token import MAX_SUBJECT_CHARACTERS, verified_claims
from svc_infra.security.oauth.providers import Endpoints, OAuthProvider
from svc_infra.types import Clock

MAX_TOKEN_CHARACTERS = 16 * 1024
MAX_TOKEN_SECONDS = 366 * 86400.0
_CANCELLED = frozenset({"access_denied", "user_cancelled_login", "user_cancelled_authorize"})  # RFC 6749; LinkedIn
_CODE_OF_AN_ERROR = re.compile(r"[a-z_]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTokens:
    """What the app may call the provider with."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenIdentity:
    """Who came back from a provider.

    Attributes:
        provider: Its name.
        issuer: What it calls itself.
        subject: What it calls the user, for ever.
        email: The user's address there, if it tells one.
        email_is_verified: Whether it says that the address was proven to be the user's.
        tokens: What it gave us.
    """

    provider: str
    issuer: str
    subject: str
    email: str | None
    email_is_verified: bool
    tokens: ProviderTokens


class ProviderClient:
    """A client of one provider.

    Args:
        provider: Which.
        client_id: What it calls us.
        client_secret: What we prove that with.
        http: What calls it.
        allow_http: Accept endpoints without TLS, on a developer's machine.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        provider: OAuthProvider,
        client_id: str,
        client_secret: SecretStr,
        http: HttpClient,
        *,
        allow_http: bool,
        clock: Clock,
    ) -> None:
        self.provider = provider
        self._client_id = client_id
        self._client_secret = client_secret
        self._http = http
        self._clock = clock
        self._discovery = Discovery(provider, http, allow_http=allow_http, clock=clock)

    async def authorization_url(self, *, redirect_uri: str, state: str, nonce: str, verifier: str) -> str:
        """Where the browser goes to log in.

        Raises:
            UpstreamError: The provider cannot be reached, or describes itself wrongly.
        """
        endpoints = await self._discovery.endpoints()
        asked = {
            **self.provider.parameters,
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self.provider.scopes),
            "state": state,
        }
        if endpoints.keys is not None:
            asked["nonce"] = nonce
        if self.provider.has_pkce:
            digest = sha256(verifier.encode()).digest()
            asked["code_challenge"] = urlsafe_b64encode(digest).rstrip(b"=").decode()
            asked["code_challenge_method"] = "S256"
        return f"{endpoints.authorization}{'&' if '?' in endpoints.authorization else '?'}{urlencode(asked)}"

    async def check_answer(self, *, code: str | None, error: str | None, issuer: str | None) -> str:
        """The code in what a browser came back with.

        Raises:
            BadRequestError: There is none, or another issuer has sent it (RFC 9207).
            ForbiddenError: The user has not agreed.
        """
        name = self.provider.name
        required = (await self._discovery.endpoints()).names_issuer
        if (issuer is None and required) or (issuer is not None and not self._may_be_named(issuer)):
            raise BadRequestError(f"This answer is not from {name}: start the login again.")
        if error in _CANCELLED:
            raise ForbiddenError(f"The login with {name} was cancelled.")
        if error is not None or not code:
            known = error if error is not None and _CODE_OF_AN_ERROR.fullmatch(error) else "no code"
            raise BadRequestError(f"{name} has refused the login ({known}): start it again.")
        return code

    async def identity(self, code: str, *, redirect_uri: str, nonce: str, verifier: str) -> ProvenIdentity:
        """Who came back with this code.

        Raises:
            BadRequestError: The provider does not take the code.
            InvalidTokenError: What it says about the user is not to be believed.
            UpstreamError: It cannot be reached, or answers nonsense.
        """
        provider, endpoints = self.provider, await self._discovery.endpoints()
        said = await self._exchange(endpoints, code, redirect_uri, verifier)
        tokens = self._tokens(said)
        if endpoints.keys is None:
            return await self._from_api(endpoints, tokens)
        claims = await verified_claims(
            said.get("id_token"),
            provider=provider,
            discovery=self._discovery,
            client_id=self._client_id,
            nonce=nonce,
            clock=self._clock,
        )
        if "email" not in claims and endpoints.userinfo is not None:
            more = json_object(await self._get(endpoints.userinfo, tokens), provider.name)
            if more.get("sub") != claims["sub"]:
                raise UpstreamError(f"{provider.name} answered about somebody else.")
            claims = {**more, **claims}
        return self._identity(claims, claims["iss"], claims["sub"], tokens)

    def _may_be_named(self, issuer: str) -> bool:
        # A provider without discovery says nowhere what it would call itself, so its name cannot be held against it.
        return self.provider.endpoints is not None or self.provider.is_issuer(issuer)

    def _identity(self, claims: Mapping[str, Any], issuer: str, subject: str, tokens: ProviderTokens) -> ProvenIdentity:
        email = claims.get("email")
        return ProvenIdentity(
            provider=self.provider.name,
            issuer=issuer,
            subject=subject,
            email=email if isinstance(email, str) and email else None,
            email_is_verified=self.provider.is_verified(claims),
            tokens=tokens,
        )

    async def _from_api(self, endpoints: Endpoints, tokens: ProviderTokens) -> ProvenIdentity:
        """A user as GitHub's API describes one."""
        provider = self.provider
        user = json_object(await self._get(endpoints.userinfo or "", tokens), provider.name)
        if type(user.get("id")) not in (int, str) or len(str(user["id"])) > MAX_SUBJECT_CHARACTERS:
            raise UpstreamError(f"{provider.name} answered without the user's id.")
        emails = json_value(await self._get(provider.emails_url, tokens), provider.name) if provider.emails_url else []
        listed = [one for one in emails if isinstance(one, dict)] if isinstance(emails, list) else []
        primary = next((one for one in listed if one.get("primary") is True), {})
        claims = {"email": primary.get("email"), "email_verified": primary.get("verified")}
        return self._identity(claims, provider.issuer, str(user["id"]), tokens)

    async def _get(self, url: str, tokens: ProviderTokens) -> Response:
        headers = {"authorization": f"Bearer {tokens.access_token}", "accept": "application/json"}
        return await self._http.request("GET", url, headers=headers)

    async def _exchange(self, endpoints: Endpoints, code: str, redirect_uri: str, verifier: str) -> dict[str, Any]:
        sent = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
        secret = self._client_secret.get_secret_value()
        if self.provider.has_pkce:
            sent["code_verifier"] = verifier
        if endpoints.posts_client:
            sent |= {"client_id": self._client_id, "client_secret": secret}
        else:
            pair = f"{quote(self._client_id, safe='')}:{quote(secret, safe='')}"  # RFC 6749, 2.3.1
            headers["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        answer = await self._http.request("POST", endpoints.token, headers=headers, content=urlencode(sent).encode())
        name = self.provider.name
        said = json_object(replace(answer, status=200) if answer.status in (400, 401, 403) else answer, name)
        if "error" not in said and answer.status == 200:
            return said
        error = said.get("error")
        if error in ("invalid_grant", "bad_verification_code"):  # the second is GitHub's
            raise BadRequestError(f"{name} does not take the code: start the login again.")
        known = error if isinstance(error, str) and _CODE_OF_AN_ERROR.fullmatch(error) else f"status {answer.status}"
        raise UpstreamError(f"{name} has refused the exchange of the code ({known}).")

    def _tokens(self, said: Mapping[str, Any]) -> ProviderTokens:
        access, refresh, kind = said.get("access_token"), said.get("refresh_token"), said.get("token_type", "bearer")
        if not _is_token(access) or not isinstance(kind, str) or kind.lower() != "bearer":
            raise UpstreamError(f"{self.provider.name} answered without an access token.")
        seconds = said.get("expires_in")
        known = isinstance(seconds, int | float) and 0 < seconds <= MAX_TOKEN_SECONDS
        return ProviderTokens(
            access_token=str(access),
            refresh_token=str(refresh) if _is_token(refresh) else None,
            expires_at=self._clock.now() + timedelta(seconds=float(seconds or 0)) if known else None,
        )


def _is_token(value: object) -> bool:
    """Whether this can be put into a header as it is."""
    return isinstance(value, str) and 0 < len(value) <= MAX_TOKEN_CHARACTERS and value.isascii() and value.isprintable()
