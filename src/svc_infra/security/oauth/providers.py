"""The providers that users can log in with. What a provider does differently from OpenID Connect stands here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from svc_infra.errors import ConfigurationError

TENANT = "{tenantid}"
"""Stands in an issuer for the Microsoft tenant of whoever logs in."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_TENANT_ID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where a provider is asked.

    Attributes:
        authorization: Where the browser goes.
        token: Where a code is exchanged.
        userinfo: Where a user's claims are, if anywhere.
        keys: Where the keys of ID tokens are; None for a provider without ID tokens.
        names_issuer: Whether it always names itself in its answer to the browser (RFC 9207).
        posts_client: Whether our id and secret go into the body rather than into a header.
    """

    authorization: str
    token: str
    userinfo: str | None = None
    keys: str | None = None
    names_issuer: bool = False
    posts_client: bool = False


def says_verified(claims: Mapping[str, Any]) -> bool:
    """Whether the provider says that it has verified the address; some say it as text."""
    return claims.get("email_verified") in (True, "true")


def _microsoft_says_verified(claims: Mapping[str, Any]) -> bool:
    # `email` is whatever an administrator of any tenant wrote there; `xms_edov` says that the domain's owner did.
    return claims.get("xms_edov") in (True, "true", 1, "1")


def _always(_: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthProvider:
    """One provider. Its client is in the secrets `OAUTH_<NAME>_CLIENT_ID` and `OAUTH_<NAME>_CLIENT_SECRET`.

    Attributes:
        name: What requests call it; small letters, digits and underscores.
        issuer: What it calls itself.
        scopes: What it is asked for.
        discovery_url: Where it describes itself; below the issuer by default.
        endpoints: Instead of discovering them, for a provider without OpenID Connect.
        emails_url: Where such a provider lists a user's addresses, as GitHub does.
        has_pkce: Whether it takes a PKCE verifier (RFC 7636).
        has_nonce: Whether it puts the nonce into its ID tokens.
        is_verified: Whether these claims say that the address in them was verified.
        keep_tokens: Store its tokens, encrypted, for the app to call it with.
        parameters: Further ones of the request that the browser is sent with.
    """

    name: str
    issuer: str
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    discovery_url: str | None = None
    endpoints: Endpoints | None = None
    emails_url: str | None = None
    has_pkce: bool = True
    has_nonce: bool = True
    is_verified: Callable[[Mapping[str, Any]], bool] = says_verified
    keep_tokens: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(f"{self.name!r} names no provider: write small letters, digits and underscores.")

    def secret_name(self, what: str) -> str:
        """The name of its secret `CLIENT_ID` or `CLIENT_SECRET`."""
        return f"OAUTH_{self.name.upper()}_{what}"

    def is_issuer(self, name: str) -> bool:
        """Whether it may call itself this."""
        if TENANT not in self.issuer:
            return name == self.issuer
        return re.fullmatch(re.escape(self.issuer).replace(re.escape(TENANT), _TENANT_ID), name) is not None

    def issuer_of(self, claims: Mapping[str, Any]) -> str:
        """What it must call itself in these claims."""
        return self.issuer.replace(TENANT, str(claims.get("tid", "")))


def google(*, keep_tokens: bool = False) -> OAuthProvider:
    """Google (https://developers.google.com/identity/openid-connect/openid-connect)."""
    return OAuthProvider(name="google", issuer="https://accounts.google.com", keep_tokens=keep_tokens)


def microsoft(tenant: str = "common", *, trust_email: bool = False, keep_tokens: bool = False) -> OAuthProvider:
    """Microsoft Entra ID (https://learn.microsoft.com/entra/identity-platform/v2-protocols-oidc).

    Its addresses count as verified only with the optional claim `xms_edov`, which the app's registration must ask for.

    Args:
        tenant: Whose users may log in: `common`, `organizations`, `consumers`, or the id of one tenant.
        trust_email: Take the addresses of this one tenant as verified, because its administrators are yours.
        keep_tokens: As in `OAuthProvider`.

    Raises:
        ConfigurationError: The tenant is none of those, or the addresses of many tenants would be trusted.
    """
    is_one = re.fullmatch(_TENANT_ID, tenant) is not None
    if not is_one and tenant not in ("common", "organizations", "consumers"):
        raise ConfigurationError(f"{tenant!r} is no tenant: write its id, common, organizations or consumers.")
    if trust_email and not is_one:
        raise ConfigurationError("Every tenant can claim any address: trust_email needs the id of one tenant.")
    host = "https://login.microsoftonline.com"
    return OAuthProvider(
        name="microsoft",
        issuer=f"{host}/{tenant if is_one else TENANT}/v2.0",
        discovery_url=f"{host}/{tenant}/v2.0/.well-known/openid-configuration",
        is_verified=_always if trust_email else _microsoft_says_verified,
        keep_tokens=keep_tokens,
    )


def linkedin(*, keep_tokens: bool = False) -> OAuthProvider:
    """LinkedIn, which has neither PKCE nor a nonce (https://learn.microsoft.com/linkedin/consumer/integrations)."""
    return OAuthProvider(
        name="linkedin",
        issuer="https://www.linkedin.com/oauth",
        has_pkce=False,
        has_nonce=False,
        keep_tokens=keep_tokens,
    )


def github(*, keep_tokens: bool = False) -> OAuthProvider:
    """GitHub, which has OAuth without ID tokens (https://docs.github.com/apps/oauth-apps)."""
    return OAuthProvider(
        name="github",
        issuer="https://github.com",
        scopes=("read:user", "user:email"),
        endpoints=Endpoints(
            authorization="https://github.com/login/oauth/authorize",
            token="https://github.com/login/oauth/access_token",  # noqa: S106 - an address
            userinfo="https://api.github.com/user",
            posts_client=True,
        ),
        emails_url="https://api.github.com/user/emails",
        keep_tokens=keep_tokens,
    )


def oidc(
    name: str,
    issuer: str,
    *,
    scopes: tuple[str, ...] = ("openid", "email", "profile"),
    trust_email: bool = False,
    keep_tokens: bool = False,
) -> OAuthProvider:
    """Any issuer with discovery (OpenID Connect Discovery 1.0).

    Args:
        name: What requests call it.
        issuer: Its identifier, exactly as it writes it.
        scopes: What it is asked for; `openid` among them.
        trust_email: Take its addresses as verified although it does not say so, because the issuer is yours.
        keep_tokens: As in `OAuthProvider`.

    Raises:
        ConfigurationError: The name is malformed.
    """
    verified = _always if trust_email else says_verified
    return OAuthProvider(name=name, issuer=issuer, scopes=scopes, is_verified=verified, keep_tokens=keep_tokens)
