"""What the `/auth` routes take and give."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from svc_infra.security.accounts.email import MAX_EMAIL_CHARACTERS
from svc_infra.security.accounts.links import MAX_LINK_TOKEN_CHARACTERS
from svc_infra.security.passwords import MAX_PASSWORD_CHARACTERS, MIN_PASSWORD_CHARACTERS

MAX_REFRESH_TOKEN_CHARACTERS = 256
MAX_FACTOR_CODE_CHARACTERS = 64
MAX_CREDENTIAL_CHARACTERS = 16 * 1024
"""Of one member of what an authenticator answers."""

Email = Annotated[str, Field(min_length=3, max_length=MAX_EMAIL_CHARACTERS, json_schema_extra={"format": "email"})]
Password = Annotated[SecretStr, Field(min_length=1, max_length=MAX_PASSWORD_CHARACTERS)]
NewPassword = Annotated[
    SecretStr,
    Field(  # the policy itself says it to a person
        min_length=1, max_length=MAX_PASSWORD_CHARACTERS, json_schema_extra={"minLength": MIN_PASSWORD_CHARACTERS}
    ),
]
FactorCode = Annotated[SecretStr, Field(min_length=1, max_length=MAX_FACTOR_CODE_CHARACTERS)]
Base64Url = Annotated[str, Field(min_length=1, max_length=MAX_CREDENTIAL_CHARACTERS, pattern=r"^[A-Za-z0-9_-]+$")]
LinkToken = Annotated[SecretStr, Field(min_length=1, max_length=MAX_LINK_TOKEN_CHARACTERS)]


class Body(BaseModel):
    """What a client sends: nothing but the fields named."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Credentials(Body):
    """An e-mail address and a password."""

    email: Email
    password: Password


class NewCredentials(Credentials):
    """An e-mail address and a password for a new account."""

    password: NewPassword


class Login(Credentials):
    """An e-mail address and a password, and where the tokens go."""

    cookies: bool = Field(False, description="For browsers: put the tokens into cookies that no script can read.")


class RefreshBody(Body):
    """The refresh token that was given last; with cookies it is left out."""

    refresh_token: Annotated[str, Field(min_length=1, max_length=MAX_REFRESH_TOKEN_CHARACTERS)] | None = None


class EmailOnly(Body):
    """An address."""

    email: Email


class Link(Body):
    """What a mailed link carries behind the `#`."""

    token: LinkToken


class Reset(Link):
    """A mailed link, and the password to have from now on."""

    password: NewPassword


class Proof(Body):
    """The account's password, to prove again whose it is."""

    password: Password


class CodeProof(Body):
    """A code of an authenticator app, a recovery code, or one that was mailed."""

    code: FactorCode


class FromAuthenticator(BaseModel):
    """What an authenticator says; browsers add members that nobody needs."""

    model_config = ConfigDict(strict=True)


class AssertionResponse(FromAuthenticator):
    """That a passkey is here (Web Authentication, 5.2.2)."""

    clientDataJSON: Base64Url  # noqa: N815 - the names of the standard
    authenticatorData: Base64Url  # noqa: N815
    signature: Base64Url
    userHandle: Base64Url | None = None  # noqa: N815


class Assertion(FromAuthenticator):
    """What `(await navigator.credentials.get(...)).toJSON()` gives."""

    id: Base64Url
    rawId: Base64Url  # noqa: N815
    type: Literal["public-key"]
    response: AssertionResponse


class CredentialProof(Body):
    """A passkey."""

    credential: Assertion


Reauthentication = Proof | CodeProof | CredentialProof
"""The password, or any other factor of the account."""


class PasswordChange(Body):
    """The password until now, and the one from now on."""

    current_password: Password
    new_password: NewPassword


class EmailChange(Proof):
    """The account's password, and its next address."""

    new_email: Email


class Disable(Proof):
    """The account's password, and why the account is given up."""

    reason: Annotated[str, Field(max_length=200)] = ""


class Tokens(BaseModel):
    """What a client needs to stay logged in (RFC 6749, 5.1)."""

    access_token: str
    refresh_token: str
    token_type: str = "bearer"  # noqa: S105 - not a secret
    expires_in: int = Field(description="Seconds that the access token is good for.")


class CookieTokens(BaseModel):
    """What a page needs whose tokens are in cookies."""

    token_type: Literal["cookie"] = "cookie"  # noqa: S105 - not a secret
    csrf_token: str = Field(description="Goes into the header X-CSRF-Token of every request that changes something.")
    expires_in: int = Field(description="Seconds until the page must refresh.")


class SecondStepNeeded(BaseModel):
    """A login that needs a second factor: `POST /auth/mfa/verify` takes it, with the token."""

    mfa_token: str
    methods: list[str] = Field(description="What can be proven: `totp`, `webauthn`, `recovery_code`, `email`.")
    expires_in: int = Field(description="Seconds that it may take.")


class RenewedToken(BaseModel):
    """The access token of a login that was proven again; those before it are refused, the refresh token stays."""

    access_token: str
    token_type: str = "bearer"  # noqa: S105 - not a secret
    expires_in: int = Field(description="Seconds that the access token is good for.")


class RenewedCookie(BaseModel):
    """That the access token in the cookie was replaced."""

    token_type: Literal["cookie"] = "cookie"  # noqa: S105 - not a secret
    expires_in: int = Field(description="Seconds until the page must refresh.")


class Profile(Body):
    """What an account says about its owner: what the owner may change without proving anything."""

    full_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class Registered(BaseModel):
    """A new account."""

    id: UUID
    email: str
    roles: list[str] = []


class Account(Registered):
    """An account as its owner sees it."""

    model_config = ConfigDict(from_attributes=True)

    is_verified: bool


class Session(BaseModel):
    """One login of the account."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    user_agent: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    current: bool = False
