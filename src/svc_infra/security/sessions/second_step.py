"""The port through which logins ask for a second factor."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.security.sessions.device import Device


@dataclass(frozen=True, slots=True)
class SecondStep:
    """A login that has proven one factor and must prove another one; nothing else can be done with it.

    Attributes:
        token: What the next step shows.
        methods: What can be proven: `totp`, `webauthn`, `recovery_code`, `email`.
        expires_in_seconds: How long it may take.
        browser_secret: What a cookie of the browser must show too; None for a client that keeps no cookies.
    """

    token: str = field(repr=False)
    methods: tuple[str, ...]
    expires_in_seconds: int
    browser_secret: str | None = field(default=None, repr=False)


class SecondFactors(Protocol):
    """Knows whose login needs a second factor; `svc_infra.security.mfa.add_mfa` provides one."""

    @property
    def enrol_url(self) -> str:
        """Where a factor is enrolled."""
        ...

    async def ask(
        self, session: AsyncSession, user_id: UUID, device: Device, *, methods: Sequence[str]
    ) -> SecondStep | None:
        """The second step of a login whose first factor was proven in this unit of work; None where none is needed.

        Args:
            session: The unit of work.
            user_id: Whose login.
            device: Where it comes from.
            methods: What was proven.
        """
        ...

    async def is_required(self, session: AsyncSession, user_id: UUID, roles: Collection[str]) -> bool:
        """Whether this account may do nothing without a second factor."""
        ...
