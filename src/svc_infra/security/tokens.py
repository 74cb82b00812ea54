"""Access tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import OctKey
from joserfc.jws import JWSRegistry

from svc_infra.errors import InvalidTokenError, TokenExpiredError
from svc_infra.security.keyring import KeyRing, key_id
from svc_infra.types import Clock, SystemClock, new_id

MAX_TOKEN_BYTES = 8 * 1024
LEEWAY_SECONDS = 5
"""How far the clocks of two machines may be apart."""

_ALGORITHM = "HS256"
_TYPE = "at+jwt"


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What a verified access token says."""

    user_id: UUID
    session_id: UUID


class AccessTokens:
    """Short-lived JWTs (RFC 7519, RFC 9068) that name a user and the login that the token belongs to.

    Only a header that this class writes itself is accepted, compared before anything in it is parsed: no token can
    choose its algorithm, its key or its type (RFC 8725).

    Args:
        keys: Where the signing keys come from.
        issuer: The `iss` claim.
        audience: The `aud` claim.
        ttl_seconds: How long a token is good for.
        clock: Where the time comes from.
    """

    def __init__(
        self, keys: KeyRing, *, issuer: str, audience: str, ttl_seconds: float, clock: Clock | None = None
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._ttl_seconds = int(ttl_seconds)
        self._clock = clock or SystemClock()
        self._registry = JWSRegistry(algorithms=[_ALGORITHM])
        signers = [(_header(key), OctKey.import_key(key)) for key in keys.derived("access-token")]
        self._header, self._key = signers[0]
        self._key_by_header = {self._encoded({}, header, key).partition(".")[0]: key for header, key in signers}
        self._claims = jwt.JWTClaimsRegistry(
            now=self._now,
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            sub={"essential": True},
            exp={"essential": True},
            nbf={"essential": True},
            iat={"essential": True},
            jti={"essential": True},
            sid={"essential": True},
            typ={"essential": True, "value": "access"},
        )

    def issue(self, *, user_id: UUID, session_id: UUID, session_ends_at: datetime) -> tuple[str, int]:
        """A new token, and the seconds that it is good for: never longer than its login."""
        now = self._now()
        expires = min(now + self._ttl_seconds, int(session_ends_at.timestamp()))
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": str(user_id),
            "exp": expires,
            "nbf": now,
            "iat": now,
            "jti": new_id().hex,
            "sid": str(session_id),
            "typ": "access",
        }
        return self._encoded(claims, self._header, self._key), expires - now

    def verify(self, token: str) -> AccessClaims:
        """What the token says, once everything about it has been checked; whether its login still lives has not.

        Raises:
            TokenExpiredError: It is genuine, but its time is over.
            InvalidTokenError: Anything else is wrong with it.
        """
        key = self._key_by_header.get(token.partition(".")[0]) if len(token) <= MAX_TOKEN_BYTES else None
        if key is None:
            raise InvalidTokenError
        try:
            claims = jwt.decode(token, key, registry=self._registry, decoder_cls=_StrictDecoder).claims
            self._claims.validate(claims)
            return AccessClaims(user_id=UUID(claims["sub"]), session_id=UUID(claims["sid"]))
        except ExpiredTokenError:
            raise TokenExpiredError from None
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError):
            raise InvalidTokenError from None

    def _encoded(self, claims: dict[str, Any], header: dict[str, str], key: OctKey) -> str:
        return jwt.encode(header, claims, key, registry=self._registry, default_type=None)

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


class _StrictDecoder(json.JSONDecoder):
    """Refuses a repeated name, which two readers could understand differently, and numbers that JSON does not have."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a claim appears twice")
    return names


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _header(key: bytes) -> dict[str, str]:
    return {"alg": _ALGORITHM, "kid": key_id(key), "typ": _TYPE}
