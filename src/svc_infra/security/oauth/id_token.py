"""ID tokens (OpenID Connect Core 1.0, 3.1.3.7)."""

from __future__ import annotations

import hmac
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from svc_infra.errors import InvalidTokenError
from svc_infra.security.oauth.discovery import Discovery
from svc_infra.security.oauth.providers import OAuthProvider
from svc_infra.security.tokens import StrictDecoder
from svc_infra.types import Clock

ALGORITHMS = ("RS256", "PS256", "ES256", "Ed25519")
"""None of them takes a key that the client knows, and none of them is `none` (RFC 8725, 3.1)."""
LEEWAY_SECONDS = 60
"""How far the provider's clock may be from ours."""
MAX_ID_TOKEN_BYTES = 16 * 1024
MAX_SUBJECT_CHARACTERS = 255

_REGISTRY = JWSRegistry(algorithms=list(ALGORITHMS))


async def verified_claims(
    token: object, *, provider: OAuthProvider, discovery: Discovery, client_id: str, nonce: str, clock: Clock
) -> dict[str, Any]:
    """What an ID token says, once everything about it has been checked.

    Args:
        token: What the provider sent.
        provider: Which.
        discovery: Where its keys come from.
        client_id: Whom it must be for.
        nonce: What the request was sent with.
        clock: Where the time comes from.

    Raises:
        InvalidTokenError: Something is wrong with it.
        UpstreamError: The provider's keys cannot be had.
    """
    if not isinstance(token, str) or not token.isascii() or len(token) > MAX_ID_TOKEN_BYTES:
        raise _invalid(provider, "it is missing or malformed")
    try:
        header = jws.extract_compact(token.encode()).headers()
    except (JoseError, ValueError, TypeError, AttributeError):
        raise _invalid(provider, "it is malformed") from None
    key_id = header.get("kid")
    for key in await discovery.keys(key_id if isinstance(key_id, str) else None):
        try:
            claims = jwt.decode(token, key, registry=_REGISTRY, decoder_cls=StrictDecoder).claims
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError):
            continue
        return _checked(claims, provider, client_id, nonce, clock)
    raise _invalid(provider, "no key of the provider has signed it")


def _checked(
    claims: dict[str, Any], provider: OAuthProvider, client_id: str, nonce: str, clock: Clock
) -> dict[str, Any]:
    rules = jwt.JWTClaimsRegistry(
        now=int(clock.now().timestamp()),
        leeway=LEEWAY_SECONDS,
        sub={"essential": True},
        exp={"essential": True},
        iat={"essential": True},
    )
    try:
        rules.validate(claims)
    except (JoseError, ValueError, TypeError):
        raise _invalid(provider, "its time is over, or a claim is missing") from None
    issuer, audience, subject = claims.get("iss"), claims.get("aud"), claims["sub"]
    if not isinstance(issuer, str) or issuer != provider.issuer_of(claims) or not provider.is_issuer(issuer):
        raise _invalid(provider, "it has another issuer")
    audiences = audience if isinstance(audience, list) else [audience]
    if client_id not in audiences or (len(audiences) > 1 and "azp" not in claims):
        raise _invalid(provider, "it is for somebody else")
    if claims.get("azp", client_id) != client_id:
        raise _invalid(provider, "it is for somebody else")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_CHARACTERS:
        raise _invalid(provider, "it names nobody")
    said = claims.get("nonce")
    if (said is not None or provider.has_nonce) and not (
        isinstance(said, str) and hmac.compare_digest(said.encode("utf-8", "replace"), nonce.encode())
    ):
        raise _invalid(provider, "it belongs to another login")
    return claims


def _invalid(provider: OAuthProvider, why: str) -> InvalidTokenError:
    return InvalidTokenError(f"The ID token of {provider.name} is not acceptable: {why}. Start the login again.")
