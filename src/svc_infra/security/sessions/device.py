"""Where a login comes from, and what it is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Device:
    """Where a login comes from; empty where unknown.

    Attributes:
        user_agent: What it calls itself.
        ip: Its address.
        keeps_cookies: Whether it is a browser that keeps the tokens in cookies.
    """

    user_agent: str = ""
    ip: str = ""
    keeps_cookies: bool = False


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
