"""Where a login comes from, what it is given, and what ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession


@dataclass(frozen=True, slots=True)
class Device:
    """Where a login comes from; empty where unknown.

    Attributes:
        user_agent: What it calls itself.
        ip: Its address.
        keeps_cookies: Whether it is a browser that keeps the tokens in cookies.
        held_token: The refresh token that it keeps until now; its login ends when another one begins there.
    """

    user_agent: str = ""
    ip: str = ""
    keeps_cookies: bool = False
    held_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """What a client needs to stay logged in."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in_seconds: int
    session_id: UUID
    session_ends_in_seconds: int


@dataclass(frozen=True, slots=True)
class Renewed:
    """The access token of a login that was proven again; the refresh token stays."""

    access_token: str = field(repr=False)
    expires_in_seconds: int


@dataclass(frozen=True, slots=True)
class Ended:
    """What a unit of work ends.

    Attributes:
        session_ids: The logins that were alive.
        user_id: Whose logins are ended, alive or not; None where it is one login.
        reason: Why, in a word or two.
    """

    session_ids: Sequence[UUID]
    user_id: UUID | None
    reason: str


OnEnd = Callable[[AsyncSession, Ended], Awaitable[object]]
