"""Logins that are under way: each in a sealed cookie of its own, so that only the browser that began one can end it.

Nothing is stored before a browser comes back, so beginning costs no memory, and a restart in between changes nothing.
What is stored then is a hash of the state, so that it is good for one answer (RFC 9700, 2.1 and 4.7).
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from hashlib import sha256
from secrets import token_urlsafe
from typing import Self
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert  # SQLite compiles its ON CONFLICT too

from svc_infra.db import AsyncDatabase
from svc_infra.errors import BadRequestError, ValidationError
from svc_infra.security.cookies import Cookies
from svc_infra.security.oauth.models import SpentState
from svc_infra.types import Clock

COOKIE_PREFIX = "__Host-oauth-"
MAX_FLOWS = 5
"""Logins that one browser may have under way; a further one ends the oldest."""
MAX_NEXT_CHARACTERS = 512
MAX_STATE_CHARACTERS = 128
_SECRET_BYTES = 32
_PURGED_AT_ONCE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One login under way.

    Attributes:
        provider: With whom.
        redirect_uri: Where the browser comes back to, exactly.
        next: Where it goes then.
        began: When, in seconds since 1970.
        user_id, session_id: Whose account an identity is to be linked to, and the login that asked; empty for a login.
        held_token: The refresh token that the browser had in its cookies. They do not come back from another site.
        state, nonce, verifier: What the answer, the ID token and the exchange of the code are tied to this flow with.
    """

    provider: str
    redirect_uri: str
    next: str
    began: int
    user_id: str = ""
    session_id: str = ""
    held_token: str = field(default="", repr=False)
    state: str = field(default_factory=lambda: token_urlsafe(_SECRET_BYTES), repr=False)
    nonce: str = field(default_factory=lambda: token_urlsafe(_SECRET_BYTES), repr=False)
    verifier: str = field(default_factory=lambda: token_urlsafe(_SECRET_BYTES), repr=False)

    @property
    def links_to(self) -> tuple[UUID, UUID] | None:
        """The account and the login that asked to link; None for a login."""
        return (UUID(self.user_id), UUID(self.session_id)) if self.user_id else None

    @property
    def cookie_name(self) -> str:
        """The name of its cookie."""
        return _cookie_name(self.state)

    @classmethod
    def read(cls, text: str) -> Self:
        """What `asdict` of one was, as JSON."""
        return cls(**json.loads(text))


class Flows:
    """The logins under way of one app.

    Args:
        db: Where used states are kept.
        cookies: What seals flows.
        ttl_seconds: How long a login may take.
        clock: Where the time comes from.
    """

    def __init__(self, db: AsyncDatabase, cookies: Cookies, *, ttl_seconds: float, clock: Clock) -> None:
        self._db = db
        self._cookies = cookies
        self._ttl_seconds = ttl_seconds
        self._clock = clock

    def sealed(self, flow: Flow) -> str:
        """The value of its cookie."""
        return self._cookies.seal(flow.cookie_name, json.dumps(asdict(flow)), max_age_seconds=self._ttl_seconds)

    def superfluous(self, cookies: Mapping[str, str]) -> list[str]:
        """The names of a browser's cookies that must go before one more flow begins: dead ones, and the oldest."""
        names = [name for name in cookies if name.startswith(COOKIE_PREFIX)]
        opened = {name: self._opened(name, cookies) for name in names}
        alive = sorted((flow.began, name) for name, flow in opened.items() if flow is not None)
        return [name for name, flow in opened.items() if flow is None] + [
            name for _, name in alive[: max(0, len(alive) - MAX_FLOWS + 1)]
        ]

    async def end(self, state: str, cookies: Mapping[str, str]) -> Flow:
        """The flow that this browser has begun with this state; it cannot be had again.

        Raises:
            BadRequestError: This browser has begun none, it is too old, or it was ended before.
        """
        flow = self._opened(_cookie_name(state), cookies)
        if flow is None or not hmac.compare_digest(flow.state.encode(), state.encode("utf-8", "replace")):
            raise _unknown()
        if not await self.spend(state):
            raise _unknown()
        return flow

    def began_in(self, state_hash: str, cookies: Mapping[str, str]) -> bool:
        """Whether this browser has begun the login with this state, a moment ago."""
        flow = self._opened(_cookie_name_of(state_hash), cookies)
        return flow is not None and hmac.compare_digest(hashed_state(flow.state), state_hash)

    async def spend(self, state: str) -> bool:
        """Use a state up, in a unit of work of its own; False when it was before."""
        now = self._clock.now()
        async with self._db.session() as session:
            old = select(SpentState.state_hash).where(SpentState.expires_at < now).limit(_PURGED_AT_ONCE)
            old = old.with_for_update(skip_locked=True)
            await session.execute(delete(SpentState).where(SpentState.state_hash.in_(old)))
            spent = {"state_hash": hashed_state(state), "expires_at": now + timedelta(seconds=self._ttl_seconds)}
            first = insert(SpentState).values(spent).on_conflict_do_nothing().returning(SpentState.state_hash)
            return await session.scalar(first) is not None

    def _opened(self, name: str, cookies: Mapping[str, str]) -> Flow | None:
        text = self._cookies.open(name, cookies.get(name, ""))
        return None if text is None else Flow.read(text)


def checked_next(path: str, origins: tuple[str, ...]) -> str:
    """Where a browser may be sent after a login: a path of this host, or a page of these origins.

    Raises:
        ValidationError: Anywhere else (CWE-601).
    """
    if _is_plain(path) and ((path.startswith("/") and not path.startswith("//")) or _origin(path) in origins):
        return path
    detail = "After a login one goes to a path such as /home, or to a page of an allowed origin."
    raise ValidationError(detail, errors=[{"pointer": "#/next", "detail": detail}])


def _is_plain(text: str) -> bool:
    """Whether every browser reads it as we do: backslashes, blanks and control characters are read in many ways."""
    return len(text) <= MAX_NEXT_CHARACTERS and text.isascii() and text.isprintable() and not set(text) & set(' "\\')


def _origin(url: str) -> str:
    scheme, _, rest = url.partition("://")
    end = min((rest.find(one) for one in "/?#" if one in rest), default=len(rest))
    return f"{scheme}://{rest[:end]}"


def _cookie_name(state: str) -> str:
    return _cookie_name_of(hashed_state(state))


def _cookie_name_of(state_hash: str) -> str:
    return f"{COOKIE_PREFIX}{state_hash[:16]}"


def hashed_state(state: str) -> str:
    """What is stored of a state."""
    return sha256(state.encode("utf-8", "replace")).hexdigest()


def _unknown() -> BadRequestError:
    return BadRequestError("This login was not begun in this browser, took too long or is over: start it again.")
