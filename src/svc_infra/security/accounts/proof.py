"""The port through which a login is proven again by another factor than the password."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from svc_infra.security.sessions import Device, Renewed


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorProof:
    """What proves a factor: one of the two.

    Attributes:
        code: Of an authenticator app, a recovery code, or one that was mailed.
        credential: What `navigator.credentials.get()` gave, as JSON.
    """

    code: str | None = field(default=None, repr=False)
    credential: Mapping[str, Any] | None = field(default=None, repr=False)


class ProvesFactors(Protocol):
    """Proves logins again; `svc_infra.security.mfa.add_mfa` provides one."""

    async def reauthenticate(self, user_id: UUID, session_id: UUID, proof: FactorProof, device: Device) -> Renewed:
        """Prove a login again, in units of work of its own.

        Raises:
            InvalidCredentialsError: This proves nothing.
            RateLimitedError: There were too many failed attempts.
        """
        ...
