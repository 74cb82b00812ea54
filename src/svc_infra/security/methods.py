"""How a login was proven: the methods that tokens name (RFC 8176), and the level that they reach."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from svc_infra.errors import StaleAuthenticationError

PASSWORD = "pwd"  # noqa: S105 - the name of a method
FEDERATED = "fed"
"""Another provider has said who it is."""
ONE_TIME_CODE = "otp"
"""An authenticator app."""
KEY = "pop"
"""A passkey or a security key."""
PRESENCE = "user"
RECOVERY = "recovery"
"""A recovery code. RFC 8176 has no name for it, nor for the next one."""
EMAIL = "email"
MULTIPLE = "mfa"

FRESH_SECONDS = 900.0
"""How long ago a login may have been proven that changes how one can log in."""

_ORDER = (PASSWORD, FEDERATED, KEY, PRESENCE, ONE_TIME_CODE, RECOVERY, EMAIL, MULTIPLE)
_FIRST, _SECOND = {PASSWORD, FEDERATED}, {ONE_TIME_CODE, KEY, RECOVERY}


def combined(*proven: Iterable[str]) -> tuple[str, ...]:
    """Everything that was proven, in one order; a first and a strong second factor together are `mfa`.

    A code by mail is weak, because mail also resets the password: with it there is still only one factor.
    """
    methods = {method for some in proven for method in some}
    if methods & _FIRST and methods & _SECOND:
        methods.add(MULTIPLE)
    return tuple(sorted(methods, key=_ORDER.index))


def level(methods: Collection[str]) -> str:
    """The authenticator assurance level (NIST SP 800-63B) that these methods reach, as the claim `acr`."""
    return "aal2" if MULTIPLE in methods else "aal1"


def not_fresh(*, max_age_seconds: float = FRESH_SECONDS) -> StaleAuthenticationError:
    """The refusal of a login that was proven longer ago than this, in the words of RFC 9470."""
    return StaleAuthenticationError(headers=_challenge(f'max_age="{max_age_seconds:.0f}"'))


def not_proven_enough() -> StaleAuthenticationError:
    """The refusal of a login that was proven with one factor only, in the words of RFC 9470."""
    detail = "This needs a login that was proven with a factor of the account: `POST /auth/reauthenticate` with one."
    return StaleAuthenticationError(detail, headers=_challenge(f'acr_values="{level((MULTIPLE,))}"'))


def _challenge(wanted: str) -> dict[str, str]:
    return {"WWW-Authenticate": f'Bearer error="{StaleAuthenticationError.code}", {wanted}'}
