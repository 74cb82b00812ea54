"""Every error that svc-infra raises, drawn once.

SvcInfraError                        500  internal_error
├── ConfigurationError               500  configuration_error       raised at start-up; names the setting and the mend
│   ├── MissingSecretError           500  missing_secret
│   ├── MissingExtraError            500  missing_extra             (alias: MissingExtra)
│   └── MigrationRequiredError       500  migration_required
├── BadRequestError                  400  bad_request
│   ├── TenantRequiredError          400  tenant_required
│   ├── IdempotencyKeyRequiredError  400  idempotency_key_required
│   └── IdempotencyKeyMalformedError 400  idempotency_key_malformed
├── UnauthorizedError                401  unauthorized
│   ├── InvalidCredentialsError      401  invalid_credentials
│   ├── InvalidTokenError            401  invalid_token
│   │   └── TokenExpiredError        401  token_expired
│   ├── InvalidSignatureError        401  invalid_signature
│   └── StaleAuthenticationError     401  insufficient_user_authentication
├── ForbiddenError                   403  forbidden
│   ├── SecondFactorRequiredError    403  second_factor_required
│   ├── TenantRefusedError           403  tenant_refused
│   └── ImpersonationEndedError      403  impersonation_ended
├── NotFoundError                    404  not_found
├── MethodNotAllowedError            405  method_not_allowed
├── RequestTimeoutError              408  request_timeout
├── ConflictError                    409  conflict
│   ├── StaleAttemptError            409  stale_attempt
│   └── IdempotencyKeyInUseError     409  idempotency_key_in_use
├── PreconditionFailedError          412  precondition_failed
├── PayloadTooLargeError             413  payload_too_large
├── UriTooLongError                  414  uri_too_long
├── UnsupportedMediaTypeError        415  unsupported_media_type
├── ValidationError                  422  validation_error
│   ├── EgressRefusedError           422  egress_refused
│   └── IdempotencyKeyReusedError    422  idempotency_key_reused
├── PreconditionRequiredError        428  precondition_required
├── RateLimitedError                 429  rate_limited
├── QuotaExceededError               429  quota_exceeded
├── HeadersTooLargeError             431  headers_too_large
├── UpstreamError                    502  upstream_error
├── UnavailableError                 503  unavailable
└── DeadlineExceededError            504  deadline_exceeded         also a builtin TimeoutError

An error's docstring is its message unless the raiser knows more, its name is its title unless HTTP has another. `code`
is stable and machine-readable; over HTTP it names the problem type (RFC 9457), whose page the app serves itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

_BEFORE_A_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")


class SvcInfraError(Exception):
    """Something failed inside the service.

    Args:
        detail: One sentence for a person; the class's docstring when left out. Shown to the client for every status
            below 500, and for 500s only outside production.
        errors: One mapping for each thing that is wrong (`detail`, and where it is: `pointer` or `loc`).
        headers: Response headers that belong to the error, beside those that all of its class have.
        retry_after_seconds: When it may be tried again, as the header `Retry-After`.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal Server Error"
    own_headers: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "title" not in vars(cls):
            cls.title = _BEFORE_A_WORD.sub(" ", cls.__name__.removesuffix("Error"))

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        self.detail = detail if detail is not None else (type(self).__doc__ or self.title).strip().splitlines()[0]
        self.errors = tuple(errors)
        self.headers = {**self.own_headers, **(headers or {})}
        self.retry_after_seconds = retry_after_seconds
        if retry_after_seconds is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_seconds)))
        self.members: dict[str, Any] = {}  # further ones of the problem; they are shown to everybody
        super().__init__(self.detail)


class ConfigurationError(SvcInfraError):
    """The service is configured wrongly."""

    code = "configuration_error"
    title = "Configuration Error"


class MissingSecretError(ConfigurationError):
    """A secret that this environment needs is not set."""

    code = "missing_secret"


class MissingExtraError(ConfigurationError):
    """An optional dependency is not installed."""

    code = "missing_extra"

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed: run `pip install 'svc-infra[{extra}]'`.")
        self.module = module
        self.extra = extra


MissingExtra = MissingExtraError


class MigrationRequiredError(ConfigurationError):
    """The database schema is older than this code: run `svc-infra sql upgrade`."""

    code = "migration_required"


class BadRequestError(SvcInfraError):
    """The request cannot be understood."""

    status = 400
    code = "bad_request"


class TenantRequiredError(BadRequestError):
    """This request must name a tenant: send `X-Tenant-Id`."""

    code = "tenant_required"


class IdempotencyKeyRequiredError(BadRequestError):
    """This request needs an `Idempotency-Key`: a value of your own, new for each request."""

    code = "idempotency_key_required"


class IdempotencyKeyMalformedError(BadRequestError):
    """The `Idempotency-Key` is not of the form that it must have."""

    code = "idempotency_key_malformed"


class UnauthorizedError(SvcInfraError):
    """This request needs a valid credential."""

    status = 401
    code = "unauthorized"
    own_headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class InvalidCredentialsError(UnauthorizedError):
    """The e-mail address or the password is wrong."""

    code = "invalid_credentials"


class InvalidTokenError(UnauthorizedError):
    """The token is not valid."""

    code = "invalid_token"


class TokenExpiredError(InvalidTokenError):
    """The token has expired: log in again or refresh it."""

    code = "token_expired"


class InvalidSignatureError(UnauthorizedError):
    """The signature does not match the body, the timestamp or the secret."""

    code = "invalid_signature"


class StaleAuthenticationError(UnauthorizedError):
    """This needs a login that was proven a moment ago: prove it again with `POST /auth/reauthenticate`."""

    code = "insufficient_user_authentication"  # the name that RFC 9470 gives it
    title = "Insufficient User Authentication"


class ForbiddenError(SvcInfraError):
    """The credential is valid but may not do this."""

    status = 403
    code = "forbidden"


class SecondFactorRequiredError(ForbiddenError):
    """This account must log in with a second factor: enrol one, or prove one that it has."""

    code = "second_factor_required"


class TenantRefusedError(ForbiddenError):
    """The caller is not a member of this tenant, or there is no such tenant."""

    code = "tenant_refused"


class ImpersonationEndedError(ForbiddenError):
    """This login does not act as another user any more: send the request again to act as yourself."""

    code = "impersonation_ended"


class NotFoundError(SvcInfraError):
    """There is nothing here."""

    status = 404
    code = "not_found"

    def __init__(self, what: str | None = None, identifier: object = None) -> None:
        """`NotFoundError("User", user_id)` reads "User 42 was not found."; one argument alone is the whole detail."""
        super().__init__(what if identifier is None else f"{what} {identifier} was not found.")
        self.what = what
        self.identifier = identifier


class MethodNotAllowedError(SvcInfraError):
    """This address does not answer to this method."""

    status = 405
    code = "method_not_allowed"


class RequestTimeoutError(SvcInfraError):
    """The request was not complete in the time that it was given."""

    status = 408
    code = "request_timeout"


class ConflictError(SvcInfraError):
    """The request conflicts with what is already stored."""

    status = 409
    code = "conflict"


class StaleAttemptError(ConflictError):
    """This attempt no longer holds the job: its lease ended and another attempt has been given out."""

    code = "stale_attempt"


class IdempotencyKeyInUseError(ConflictError):
    """Another request with this `Idempotency-Key` is being handled."""

    code = "idempotency_key_in_use"


class PreconditionFailedError(SvcInfraError):
    """This is not what there is now: read it again, then decide."""

    status = 412
    code = "precondition_failed"


class PayloadTooLargeError(SvcInfraError):
    """The request body is larger than this service accepts."""

    status = 413
    code = "payload_too_large"


class UriTooLongError(SvcInfraError):
    """The address is longer than this service accepts."""

    status = 414
    code = "uri_too_long"
    title = "URI Too Long"


class UnsupportedMediaTypeError(SvcInfraError):
    """Send the body as JSON, with the header `Content-Type: application/json`."""

    status = 415
    code = "unsupported_media_type"


class ValidationError(SvcInfraError):
    """The request is well formed but some of its values are not acceptable."""

    status = 422
    code = "validation_error"
    title = "Validation Error"


class EgressRefusedError(ValidationError):
    """This address may not be called from the service."""

    code = "egress_refused"


class IdempotencyKeyReusedError(ValidationError):
    """This `Idempotency-Key` was sent before with another request: use a new one."""

    code = "idempotency_key_reused"


class PreconditionRequiredError(SvcInfraError):
    """Say which version this is meant for: send `If-Match` with its ETag."""

    status = 428
    code = "precondition_required"


class RateLimitedError(SvcInfraError):
    """Too many requests: slow down."""

    status = 429
    code = "rate_limited"
    title = "Too Many Requests"

    def __init__(
        self,
        detail: str | None = None,
        *,
        retry_after_seconds: float | None = None,
        violated_policies: Sequence[str] = (),
    ) -> None:
        super().__init__(detail, retry_after_seconds=retry_after_seconds)
        if violated_policies:
            self.members["violated-policies"] = list(violated_policies)


class QuotaExceededError(SvcInfraError):
    """The quota for this period is used up."""

    status = 429
    code = "quota_exceeded"


class HeadersTooLargeError(SvcInfraError):
    """The request has more or larger headers than this service accepts."""

    status = 431
    code = "headers_too_large"
    title = "Request Header Fields Too Large"


class UpstreamError(SvcInfraError):
    """Another service that this one depends on gave no usable answer."""

    status = 502
    code = "upstream_error"
    title = "Bad Gateway"


class UnavailableError(SvcInfraError):
    """The service cannot do this right now: try again shortly."""

    status = 503
    code = "unavailable"
    title = "Service Unavailable"


class DeadlineExceededError(SvcInfraError, TimeoutError):
    """The work did not finish in the time that it was given."""

    status = 504
    code = "deadline_exceeded"
    title = "Gateway Timeout"


def error_types() -> Iterator[type[SvcInfraError]]:
    """The whole tree, parents before children, in the order in which it is drawn above."""
    pending: list[type[SvcInfraError]] = [SvcInfraError]
    while pending:
        kind = pending.pop(0)
        yield kind
        pending = list(kind.__subclasses__()) + pending
