from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OKPKey
from pydantic import SecretStr

from svc_infra.errors import ConfigurationError, InvalidTokenError, TokenExpiredError
from svc_infra.security.keyring import KeyRing
from svc_infra.security.tokens import LEEWAY_SECONDS, AccessTokens, signing_keys
from svc_infra.testing import FakeClock
from tests.security.conftest import SECRET, tokens_for

USER, SESSION = uuid4(), uuid4()
KEY = KeyRing(SECRET).derived("access-token")[0]


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def segment(value: Any) -> str:
    return b64(value if isinstance(value, bytes) else json.dumps(value).encode())


def issued(tokens: AccessTokens, clock: FakeClock) -> str:
    ends_at = clock.now() + timedelta(days=1)
    return tokens.issue(
        user_id=USER,
        session_id=SESSION,
        session_ends_at=ends_at,
        authenticated_at=clock.now(),
        methods=("pwd", "otp", "mfa"),
    )[0]


def forge(header: Any, payload: Any, *, key: bytes = KEY, digest: str = "sha256") -> str:
    """A token with any content, signed well with the real key."""
    signed = f"{header if isinstance(header, str) else segment(header)}.{segment(payload)}"
    return f"{signed}.{b64(hmac.digest(key, signed.encode(), digest))}"


def header_of(tokens: AccessTokens, clock: FakeClock) -> str:
    return issued(tokens, clock).partition(".")[0]


def claims_at(clock: FakeClock, **changes: Any) -> dict[str, Any]:
    now = int(clock.now().timestamp())
    claims = {"iss": "us", "aud": "them", "sub": str(USER), "exp": now + 900, "nbf": now, "iat": now}
    claims |= {"jti": "x", "sid": str(SESSION), "auth_time": now, "typ": "access", **changes}
    return {name: value for name, value in claims.items() if value is not ...}


@pytest.fixture
def tokens(keys: KeyRing, clock: FakeClock) -> AccessTokens:
    return tokens_for(keys, clock)


def test_a_token_says_who_it_was_issued_for(tokens: AccessTokens, clock: FakeClock) -> None:
    claims = tokens.verify(issued(tokens, clock))
    assert (claims.user_id, claims.session_id) == (USER, SESSION)


def test_two_tokens_of_the_same_second_differ(tokens: AccessTokens, clock: FakeClock) -> None:
    assert issued(tokens, clock) != issued(tokens, clock)


def test_a_token_expires_to_the_second(tokens: AccessTokens, clock: FakeClock) -> None:
    token = issued(tokens, clock)
    clock.advance(899 + LEEWAY_SECONDS)
    assert tokens.verify(token).user_id == USER
    clock.advance(1)
    with pytest.raises(TokenExpiredError):
        tokens.verify(token)


def test_a_token_never_outlives_its_login(tokens: AccessTokens, clock: FakeClock) -> None:
    token, good_for = tokens.issue(
        user_id=USER,
        session_id=SESSION,
        session_ends_at=clock.now() + timedelta(seconds=60),
        authenticated_at=clock.now(),
    )
    assert good_for == 60
    clock.advance(61 + LEEWAY_SECONDS)
    with pytest.raises(TokenExpiredError):
        tokens.verify(token)


def test_an_older_key_still_verifies_and_an_unknown_one_does_not(clock: FakeClock) -> None:
    newer = SecretStr("another secret of more than 32 bytes, at last")
    old, new = (tokens_for(ring, clock) for ring in (KeyRing(SECRET), KeyRing(newer, SECRET)))
    assert new.verify(issued(old, clock)).user_id == USER
    with pytest.raises(InvalidTokenError):
        old.verify(issued(new, clock))


def test_each_purpose_has_a_key_of_its_own(keys: KeyRing) -> None:
    derived = {keys.derived(purpose)[0] for purpose in ("access-token", "refresh-token", "ip-hash")}
    assert len(derived) == 3
    assert SECRET.get_secret_value().encode() not in derived


def test_a_token_forged_like_a_real_one_is_one(tokens: AccessTokens, clock: FakeClock) -> None:
    """Without this, every refusal below could have another reason than the one it names."""
    assert tokens.verify(forge(header_of(tokens, clock), claims_at(clock))).user_id == USER


WRONG_HEADERS: dict[str, dict[str, Any]] = {
    "alg none": {"alg": "none"},
    "alg None": {"alg": "None"},
    "alg HS512": {"alg": "HS512"},
    "alg RS256": {"alg": "RS256"},
    "alg hs256": {"alg": "hs256"},
    "no alg": {"alg": ...},
    "typ JWT": {"typ": "JWT"},
    "typ refresh": {"typ": "rt+jwt"},
    "no typ": {"typ": ...},
    "an unknown kid": {"kid": "0000000000000000"},
    "no kid": {"kid": ...},
    "a key of its own": {"jwk": {"kty": "oct", "k": "AAAA"}},
    "a key from elsewhere": {"jku": "https://example.com/keys"},
    "a critical extension": {"crit": ["b64"], "b64": False},
    "something more": {"x": 1},
}


@pytest.mark.parametrize("name", WRONG_HEADERS)
def test_a_token_with_another_header_is_refused(name: str, tokens: AccessTokens, clock: FakeClock) -> None:
    own = json.loads(_unb64(header_of(tokens, clock)))
    header = {key: value for key, value in {**own, **WRONG_HEADERS[name]}.items() if value is not ...}
    digest = "sha512" if header.get("alg") == "HS512" else "sha256"
    token = forge(header, claims_at(clock), digest=digest)
    for shown in (token, token.rpartition(".")[0] + "."):  # signed, and with an empty signature
        with pytest.raises(InvalidTokenError):
            tokens.verify(shown)


NEEDED = ("iss", "aud", "sub", "exp", "nbf", "iat", "jti", "sid", "auth_time", "typ")
WRONG_CLAIMS: dict[str, dict[str, Any]] = {
    **{f"no {claim}": {claim: ...} for claim in NEEDED},
    "another issuer": {"iss": "someone"},
    "another audience": {"aud": "someone"},
    "other audiences": {"aud": ["someone", "else"]},
    "an issuer that is a list": {"iss": ["us"]},
    "a refresh token": {"typ": "refresh"},
    "a subject that is no id": {"sub": "admin"},
    "a subject that is a number": {"sub": 1},
    "a session that is no id": {"sid": "1"},
    "a session that is a list": {"sid": [str(SESSION)]},
    "not valid yet": {"nbf": 99_999_999_999},
    "issued in the future": {"iat": 99_999_999_999},
    "an end in words": {"exp": "tomorrow"},
    "an end that is true": {"exp": True},
    "an end that is null": {"exp": None},
    "a time of proof in words": {"auth_time": "now"},
    "a time of proof that is true": {"auth_time": True},
    "a time of proof that no calendar has": {"auth_time": 10**18},
}


@pytest.mark.parametrize("name", WRONG_CLAIMS)
def test_a_token_with_other_claims_is_refused(name: str, tokens: AccessTokens, clock: FakeClock) -> None:
    token = forge(header_of(tokens, clock), claims_at(clock, **WRONG_CLAIMS[name]))
    with pytest.raises(InvalidTokenError) as refusal:
        tokens.verify(token)
    assert type(refusal.value) is InvalidTokenError


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.replace(b'"sub"', b'"sub": "00000000-0000-0000-0000-000000000000", "sub"'),
        lambda body: body.replace(b'"exp": ', b'"exp": Infinity, "was": '),
        lambda body: body.replace(b'"exp": ', b'"exp": NaN, "was": '),
        lambda body: b"[" + body + b"]",
        lambda body: body + b"x",
        lambda body: b"\xff" + body,
        lambda body: b"",
        lambda body: b"[" * 5000,
    ],
    ids=["duplicate claim", "infinity", "nan", "a list", "junk", "not utf-8", "empty", "deeply nested"],
)
def test_a_well_signed_token_of_another_form_is_refused(change: Any, tokens: AccessTokens, clock: FakeClock) -> None:
    body = json.dumps(claims_at(clock)).encode()
    with pytest.raises(InvalidTokenError):
        tokens.verify(forge(header_of(tokens, clock), change(body)))


def test_a_signature_of_another_key_is_refused(tokens: AccessTokens, clock: FakeClock) -> None:
    with pytest.raises(InvalidTokenError):
        tokens.verify(forge(header_of(tokens, clock), claims_at(clock), key=b"k" * 32))


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "...", "a.b.c", "null", " ", "é.é.é", "\x00", "x" * 1_000_000, "." * 1_000_000, "\ud800.a.b"],
    ids=lambda text: f"{len(text)} {text[:4]!r}",
)
def test_what_is_no_token_is_refused(text: str, tokens: AccessTokens, clock: FakeClock) -> None:
    genuine = issued(tokens, clock)
    head, body, signature = genuine.split(".")
    for shown in (text, genuine + text[:1] + "x", f"{head}.{text}.{signature}", f"{head}.{body}.{text}", genuine + "="):
        with pytest.raises(InvalidTokenError):
            tokens.verify(shown)


@given(data=st.data())
def test_no_change_of_a_single_character_is_accepted(data: st.DataObject) -> None:
    clock = FakeClock()
    tokens = tokens_for(KeyRing(SECRET), clock)
    genuine = issued(tokens, clock)
    place = data.draw(st.integers(0, len(genuine) - 1))
    other = data.draw(st.characters().filter(lambda character: character != genuine[place]))
    with pytest.raises(InvalidTokenError):
        tokens.verify(genuine[:place] + other + genuine[place + 1 :])


def pem(*keys: ECKey | OKPKey) -> SecretStr:
    return SecretStr("\n".join(key.as_pem(private=True).decode() for key in keys))


@pytest.mark.parametrize(("kind", "curve", "algorithm"), [(ECKey, "P-256", "ES256"), (OKPKey, "Ed25519", "Ed25519")])
def test_other_services_verify_a_token_with_the_public_key(
    kind: Any, curve: str, algorithm: str, keys: KeyRing, clock: FakeClock
) -> None:
    signing = signing_keys(pem(kind.generate_key(curve)))
    tokens = AccessTokens(keys, issuer="us", audience="them", ttl_seconds=900, signing=signing, clock=clock)
    token = issued(tokens, clock)
    [published] = tokens.jwks()["keys"]
    assert "d" not in published
    assert (published["alg"], published["use"]) == (algorithm, "sig")
    header = json.loads(_unb64(token.partition(".")[0]))
    assert (header["alg"], header["kid"]) == (algorithm, published["kid"])
    decoded = jwt.decode(token, KeySet.import_key_set(cast(Any, tokens.jwks())), algorithms=[algorithm])
    assert decoded.claims["sub"] == str(USER)
    assert tokens.verify(token).user_id == USER


def test_tokens_of_every_key_that_is_still_there_are_accepted(keys: KeyRing, clock: FakeClock) -> None:
    old, new = ECKey.generate_key("P-256"), OKPKey.generate_key("Ed25519")

    def tokens(*private: ECKey | OKPKey) -> AccessTokens:
        signing = signing_keys(pem(*private)) if private else []
        return AccessTokens(keys, issuer="us", audience="them", ttl_seconds=900, signing=signing, clock=clock)

    shared, first, both, last = tokens(), tokens(old), tokens(new, old), tokens(new)
    assert both.verify(issued(first, clock)).user_id == USER
    assert both.verify(issued(shared, clock)).user_id == USER
    assert len(both.jwks()["keys"]) == 2
    assert shared.jwks() == {"keys": []}
    with pytest.raises(InvalidTokenError):
        last.verify(issued(first, clock))


def test_a_public_key_is_no_secret_to_sign_with(keys: KeyRing, clock: FakeClock) -> None:
    """The confusion of RFC 8725, 2.1: what everybody knows must never be taken for an HMAC key."""
    key = ECKey.generate_key("P-256")
    tokens = AccessTokens(
        keys, issuer="us", audience="them", ttl_seconds=900, signing=signing_keys(pem(key)), clock=clock
    )
    for public in (key.as_pem(private=False), json.dumps(tokens.jwks()["keys"][0]).encode()):
        for header in ({"alg": "HS256", "kid": key.thumbprint(), "typ": "at+jwt"}, header_of(tokens, clock)):
            with pytest.raises(InvalidTokenError):
                tokens.verify(forge(header, claims_at(clock), key=public))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        ECKey.generate_key("P-384").as_pem(private=True).decode(),
        ECKey.generate_key("P-256").as_pem(private=False).decode(),
    ],
    ids=["empty", "nonsense", "no key", "another curve", "a public key"],
)
def test_what_is_no_signing_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="AUTH_SIGNING_KEYS"):
        signing_keys(SecretStr(text))


def test_a_token_that_was_verified_before_still_ends(tokens: AccessTokens, clock: FakeClock) -> None:
    token = issued(tokens, clock)
    for _ in range(2):
        assert tokens.verify(token).user_id == USER
    clock.advance(-LEEWAY_SECONDS - 1)
    with pytest.raises(InvalidTokenError):
        tokens.verify(token)
    clock.advance(900 + 2 * LEEWAY_SECONDS + 1)
    with pytest.raises(TokenExpiredError):
        tokens.verify(token)


def test_only_so_many_tokens_are_remembered(
    tokens: AccessTokens, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svc_infra.security.tokens.MAX_REMEMBERED", 3)
    for _ in range(10):
        tokens.verify(issued(tokens, clock))
    assert len(tokens._remembered) == 3
