"""What keeps idempotency keys: new, in progress with a lease, done with an answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import ConfigurationError
from svc_infra.idempotency.answer import Answer

DEFAULT_LEASE_SECONDS = 60.0
DEFAULT_TTL_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to answer for a key, until the lease ends and another request takes it over.

    Attributes:
        key: The name under which the key is stored.
        token: The fencing token: what is done with another one than the key's newest is refused.
    """

    key: str
    token: str


class Refusal(Enum):
    """Why a key cannot be claimed now."""

    IN_PROGRESS = auto()
    REUSED = auto()


class IdempotencyStore(Protocol):
    """Keeps keys. Every method raises `UnavailableError` when the store cannot be reached."""

    async def claim(self, key: str, fingerprint: str) -> Claim | Answer | Refusal:
        """Claim a key that is new, forgotten, or was left by a request whose lease has ended.

        Of any number of concurrent calls at most one gets a claim.

        Returns:
            The claim; or the answer, when the key is done; or `REUSED`, when the key stands for another request; or
            `IN_PROGRESS`, when another request holds it.
        """
        ...

    def joins(self, session: AsyncSession | None) -> bool:
        """Whether `finish` and `release` can be part of this unit of work."""
        ...

    async def finish(self, claim: Claim, answer: Answer, *, session: AsyncSession | None = None) -> bool:
        """Keep the answer, in the given unit of work or in one of its own.

        Returns:
            False when the claim does not hold the key any more; then nothing has changed.
        """
        ...

    async def release(self, claim: Claim, *, session: AsyncSession | None = None) -> bool:
        """Forget the key, as if it had never been used; the same in all else as `finish`."""
        ...

    async def purge(self, *, limit: int) -> int:
        """Delete what has been kept for long enough; returns how many keys, fewer than `limit` when none is left."""
        ...

    async def ping(self) -> None:
        """Ask the store for an answer."""
        ...

    async def close(self) -> None:
        """Close the connections that are the store's own."""
        ...


def check_times(lease_seconds: float, ttl_seconds: float) -> None:
    """Check that a key outlives its lease.

    Raises:
        ConfigurationError: It does not.
    """
    if not 0 < lease_seconds <= ttl_seconds:
        raise ConfigurationError(
            f"IDEMPOTENCY_LEASE_SECONDS is {lease_seconds:g} and must be positive and at most "
            f"IDEMPOTENCY_TTL_SECONDS, which is {ttl_seconds:g}."
        )
