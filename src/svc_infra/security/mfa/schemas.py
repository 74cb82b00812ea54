"""What the `/auth/mfa` routes take and give."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from svc_infra.security.accounts.schemas import (
    Assertion,
    Base64Url,
    Body,
    CodeProof,
    CredentialProof,
    FromAuthenticator,
)

MAX_NAME_CHARACTERS = 100
MAX_TOKEN_CHARACTERS = 128

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
StepToken = Annotated[str, Field(min_length=1, max_length=MAX_TOKEN_CHARACTERS)]


class Step(Body):
    """The second step of a login."""

    mfa_token: StepToken


class StepWithCode(CodeProof, Step):
    """The second step of a login, and a code that ends it."""


class StepWithCredential(CredentialProof, Step):
    """The second step of a login, and a passkey that ends it."""


class Named(Body):
    """What a factor is called."""

    name: Name


class NewTotpBody(Body):
    """A new authenticator app."""

    name: Name = "Authenticator app"


class AttestationResponse(FromAuthenticator):
    """That a passkey was made (Web Authentication, 5.2.1)."""

    clientDataJSON: Base64Url  # noqa: N815 - the names of the standard
    attestationObject: Base64Url  # noqa: N815
    transports: Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=16)] | None = None


class Attestation(FromAuthenticator):
    """What `(await navigator.credentials.create(...)).toJSON()` gives."""

    id: Base64Url
    rawId: Base64Url  # noqa: N815
    type: Literal["public-key"]
    response: AttestationResponse


class NewPasskeyBody(Body):
    """A new passkey."""

    credential: Attestation
    name: Name = "Passkey"


class PasskeyLoginOptions(Body):
    """A login by a passkey that begins."""

    cookies: bool = Field(False, description="For browsers: put the tokens into cookies that no script can read.")


class PasskeyLogin(PasskeyLoginOptions):
    """A login by a passkey."""

    credential: Assertion


class FactorShown(BaseModel):
    """A factor as its owner sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    kind: Literal["totp", "webauthn", "email"]
    name: str
    created_at: datetime
    last_used_at: datetime | None


class Overview(BaseModel):
    """The second factors of an account."""

    factors: list[FactorShown]
    recovery_codes_left: int
    required: bool = Field(description="Whether the account can do nothing without one.")


class TotpShown(BaseModel):
    """A new authenticator app: shown this once, and good for nothing until it has given a code."""

    id: UUID
    secret: str = Field(description="For apps without a camera.")
    otpauth_uri: str
    qr_svg: str = Field(description="The URI as a picture, to be put into the page.")


class EnrolledShown(BaseModel):
    """A factor that counts from now on."""

    factor: FactorShown
    recovery_codes: list[str] = Field(
        description="To be kept elsewhere, shown this once; empty where the account has some."
    )


class RecoveryCodesShown(BaseModel):
    """New recovery codes: shown this once."""

    codes: list[str]


class PasskeyOptions(BaseModel):
    """What `navigator.credentials` is asked with: `PublicKeyCredential.parse…OptionsFromJSON(public_key)`."""

    public_key: dict[str, Any]
