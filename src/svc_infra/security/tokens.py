"""Access tokens."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey
from joserfc.jws import JWSRegistry
from pydantic import SecretStr

from svc_infra.errors import ConfigurationError, InvalidTokenError, TokenExpiredError
from svc_infra.security.keyring import KeyRing
from svc_infra.security.methods import level
from svc_infra.types import Clock, SystemClock, new_id

MAX_TOKEN_BYTES = 8 * 1024
LEEWAY_SECONDS = 5
"""How far the clocks of two machines may be apart."""

MAX_REMEMBERED = 10_000
"""Tokens that were verified before and need not be verified again until they end."""

_HMAC = "HS256"
_CURVES = {"P-256": "ES256", "Ed25519": "Ed25519"}  # RFC 9864 names the curve
_TYPE = "at+jwt"
_PEM = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.+?-----END \1-----", re.DOTALL)

SigningKey = ECKey | OKPKey


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What a verified access token says.

    Attributes:
        authenticated_at: When the user last proved who it is (`auth_time`), to the second.
    """

    user_id: UUID
    session_id: UUID
    authenticated_at: datetime


def signing_keys(pem: SecretStr | None) -> list[SigningKey]:
    """The private keys in this text, in order; none when there is no text.

    Raises:
        ConfigurationError: There is no key in it, or one of another kind than P-256 and Ed25519.
    """
    blocks = [match[0] for match in _PEM.finditer(pem.get_secret_value())] if pem is not None else []
    if pem is not None and not blocks:
        raise ConfigurationError("AUTH_SIGNING_KEYS holds no private key in PEM.")
    return [_imported(block) for block in blocks]


def _imported(block: str) -> SigningKey:
    for kind in (ECKey, OKPKey):
        try:
            key: SigningKey = kind.import_key(block)
        except (JoseError, ValueError, TypeError):
            continue
        if key.curve_name in _CURVES:
            return key
    raise ConfigurationError("AUTH_SIGNING_KEYS holds a key that is neither of the curve P-256 nor Ed25519.")


class AccessTokens:
    """Short-lived JWTs (RFC 7519, RFC 9068) that name a user and the login that the token belongs to.

    Only a header that this class writes itself is accepted, compared before anything in it is parsed: no token can
    choose its algorithm, its key or its type (RFC 8725).

    Args:
        keys: Where the signing keys come from.
        signing: Private keys to sign with instead, the newest first; tokens signed with `keys` are still accepted.
        issuer: The `iss` claim.
        audience: The `aud` claim.
        ttl_seconds: How long a token is good for.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        keys: KeyRing,
        *,
        issuer: str,
        audience: str,
        ttl_seconds: float,
        signing: Sequence[SigningKey] = (),
        clock: Clock | None = None,
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._ttl_seconds = int(ttl_seconds)
        self._clock = clock or SystemClock()
        self._registry = JWSRegistry(algorithms=[_HMAC, *_CURVES.values()])
        self._signing = tuple(signing)
        signers: list[tuple[dict[str, str], SigningKey | OctKey]] = [
            (_header(_CURVES[key.curve_name], key.thumbprint()), key) for key in signing
        ]
        signers += [(_header(_HMAC, name), OctKey.import_key(key)) for name, key in keys.by_id("access-token").items()]
        self._header, self._key = signers[0]
        self._key_by_header = {self._encoded({}, header, key).partition(".")[0]: key for header, key in signers}
        self._remembered: OrderedDict[bytes, tuple[AccessClaims, int, int]] = OrderedDict()
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
            auth_time={"essential": True},
            typ={"essential": True, "value": "access"},
        )

    def issue(
        self,
        *,
        user_id: UUID,
        session_id: UUID,
        session_ends_at: datetime,
        authenticated_at: datetime,
        methods: Sequence[str] = (),
    ) -> tuple[str, int]:
        """A new token, and the seconds that it is good for: never longer than its login.

        Args:
            user_id, session_id: The user and the login.
            session_ends_at: When the login ends.
            authenticated_at: When the user last proved who it is: `auth_time` (RFC 9068, 2.2.1).
            methods: How: `amr` (RFC 8176) and, from it, `acr`.
        """
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
            "auth_time": int(authenticated_at.timestamp()),
            "amr": list(methods),
            "acr": level(methods),
            "typ": "access",
        }
        return self._encoded(claims, self._header, self._key), expires - now

    def verify(self, token: str) -> AccessClaims:
        """What the token says, once everything about it has been checked; whether its login still lives has not.

        Raises:
            TokenExpiredError: It is genuine, but its time is over.
            InvalidTokenError: Anything else is wrong with it.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidTokenError
        digest, now = sha256(token.encode("utf-8", "surrogatepass")).digest(), self._now()
        known = self._remembered.get(digest)
        if known is not None and known[1] <= now + LEEWAY_SECONDS and now - LEEWAY_SECONDS < known[2]:
            return known[0]
        key = self._key_by_header.get(token.partition(".")[0])
        if key is None:
            raise InvalidTokenError
        try:
            claims = jwt.decode(token, key, registry=self._registry, decoder_cls=StrictDecoder).claims
            self._claims.validate(claims)
            verified = AccessClaims(
                user_id=UUID(claims["sub"]), session_id=UUID(claims["sid"]), authenticated_at=_time(claims["auth_time"])
            )
        except ExpiredTokenError:
            raise TokenExpiredError from None
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError, OverflowError, OSError):
            raise InvalidTokenError from None
        self._remembered[digest] = verified, claims["nbf"], claims["exp"]
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return verified

    def jwks(self) -> dict[str, Any]:
        """The public keys that other services verify tokens with (RFC 7517); empty where there are only secret ones."""
        public = [
            {**key.as_dict(private=False), "kid": key.thumbprint(), "use": "sig", "alg": _CURVES[key.curve_name]}
            for key in self._signing
        ]
        return {"keys": public}

    def _encoded(self, claims: dict[str, Any], header: dict[str, str], key: SigningKey | OctKey) -> str:
        return jwt.encode(header, claims, key, registry=self._registry, default_type=None)

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


class StrictDecoder(json.JSONDecoder):
    """Refuses a repeated name, which two readers could understand differently, and numbers that JSON does not have."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a claim appears twice")
    return names


def _time(value: Any) -> datetime:
    if type(value) is not int:
        raise ValueError("no whole number of seconds")
    return datetime.fromtimestamp(value, UTC)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _header(algorithm: str, key_id: str) -> dict[str, str]:
    return {"alg": algorithm, "kid": key_id, "typ": _TYPE}
