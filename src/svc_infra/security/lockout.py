"""How often someone may guess: a delay that grows with each failure, for each account and for each network.

Every factor asks here, under the account's address, so that guesses at one add up with guesses at the others. An
attempt is counted before it is made and taken back when it succeeds: a thousand guesses sent at once are a thousand
attempts, whichever answer comes first. An address that has no account is counted like one that has.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import cast

from sqlalchemy import Table, bindparam, case, delete, or_, select, update
from sqlalchemy.dialects.postgresql import insert  # SQLite compiles its ON CONFLICT too
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.config import AuthSettings
from svc_infra.db import AsyncDatabase
from svc_infra.errors import RateLimitedError
from svc_infra.obs.metrics import metrics
from svc_infra.security.keyring import KeyRing
from svc_infra.security.models import Attempts
from svc_infra.types import Clock, SystemClock

NETWORK_BITS = {4: 24, 6: 64}
"""How much of an address is one network: what one household or one cheap server has."""

_T = cast(Table, Attempts.__table__)
_OF = _T.c.key == bindparam("of")
_ONE_MORE = (  # written once: to put one together takes longer than to run it
    insert(_T)
    .values(key=bindparam("of"), failures=1, last_at=bindparam("now"))
    .on_conflict_do_update(
        index_elements=[_T.c.key],
        set_={
            "failures": case((_T.c.last_at < bindparam("forgotten_before"), 1), else_=_T.c.failures + 1),
            "last_at": bindparam("now"),
            "locked_until": None,
        },
        where=or_(_T.c.locked_until.is_(None), _T.c.locked_until <= bindparam("now")),
    )
    .returning(_T.c.failures)
)
_FEWER = case((_T.c.failures > 0, _T.c.failures - 1), else_=0)
_ONE_LESS = update(_T).where(_OF).values(failures=_FEWER).returning(_T.c.failures, _T.c.last_at, _T.c.locked_until)
_LOCK = update(_T).where(_OF).values(locked_until=bindparam("until"))
_FORGET = delete(_T).where(_OF)


class Lockout:
    """The failed attempts of one app.

    Args:
        db: Where they are counted.
        keys: Where the key for their names comes from.
        settings: `lockout_*`: how many are free, and how the delay grows.
        clock: Where the time comes from.
    """

    def __init__(
        self, db: AsyncDatabase, keys: KeyRing, settings: AuthSettings | None = None, *, clock: Clock | None = None
    ) -> None:
        self._db = db
        self._key = keys.derived("lockout")[0]
        self._settings = settings or AuthSettings()
        self._clock = clock or SystemClock()

    async def check(self, account: str, ip: str = "") -> None:
        """Count one attempt, unless there were too many; in a unit of work of its own, so it stays counted.

        Call `succeeded` or `passed` when it succeeds and `withdrawn` when it could not be made; a failed one needs
        nothing more.

        Args:
            account: The account's address, in its one form.
            ip: Where the attempt comes from; empty when unknown.

        Raises:
            RateLimitedError: Neither the right nor a wrong secret is looked at until the time that it tells.
        """
        keys, now = self._keys(account, ip), self._clock.now()
        async with self._db.session() as session:
            for kind, key in keys.items():
                if not await self._counted(session, kind, key, now):
                    raise await self._refusal(session, keys, now)  # and whatever was counted is not

    async def succeeded(self, session: AsyncSession, account: str, ip: str = "") -> None:
        """Forget the account's failures, and this attempt of the network, in this unit of work."""
        keys = self._keys(account, ip)
        await session.execute(_FORGET, {"of": keys.pop("account")})
        for kind, key in keys.items():
            await self._take_back(session, kind, key)

    async def passed(self, session: AsyncSession, account: str, ip: str = "") -> None:
        """Note in this unit of work that an attempt was right, though more is to be proven.

        The failures stay, or whoever knows the password could guess the second factor for ever; the next attempt need
        not wait, and the next failure locks for longer than the last one.
        """
        for kind, key in self._keys(account, ip).items():
            await self._take_back(session, kind, key)
            if kind == "account":
                await self._lock(session, key, None)

    async def withdrawn(self, account: str, ip: str = "") -> None:
        """Take an attempt back that was never made."""
        async with self._db.session() as session:
            for kind, key in self._keys(account, ip).items():
                await self._take_back(session, kind, key)

    async def failed(self, session: AsyncSession, account: str) -> bool:
        """Whether this failure is the one that locked the account, for whoever wants to tell its owner."""
        failures = await session.scalar(
            select(Attempts.failures).where(Attempts.key == self._keys(account, "")["account"])
        )
        metrics.increment("auth.failed")
        return failures == self._settings.lockout_threshold

    async def unlock(self, session: AsyncSession, account: str) -> None:
        """Forget the account's failures in this unit of work."""
        await session.execute(_FORGET, {"of": self._keys(account, "")["account"]})

    async def purge(self, session: AsyncSession, *, limit: int = 1000) -> int:
        """Delete what was forgotten; returns how much there was, up to the limit."""
        before = self._clock.now() - timedelta(
            seconds=max(self._settings.lockout_window_seconds, self._settings.lockout_max_seconds)
        )
        old = select(Attempts.key).where(Attempts.last_at < before).limit(limit)
        return len((await session.scalars(delete(Attempts).where(Attempts.key.in_(old)).returning(Attempts.key))).all())

    async def _counted(self, session: AsyncSession, kind: str, key: str, now: datetime) -> bool:
        """Whether there may be an attempt, which is counted in this unit of work; one statement, as each login asks."""
        forgotten_before = now - timedelta(seconds=self._settings.lockout_window_seconds)
        failures = await session.scalar(_ONE_MORE, {"of": key, "now": now, "forgotten_before": forgotten_before})
        if failures is None:
            return False
        if (end := self._end(kind, failures, now)) is not None:
            await self._lock(session, key, end)
        return True

    async def _refusal(self, session: AsyncSession, keys: Mapping[str, str], now: datetime) -> RateLimitedError:
        wanted = select(Attempts.key, Attempts.locked_until).where(Attempts.key.in_(keys.values()))
        ends = {row.key: row.locked_until for row in await session.execute(wanted.where(Attempts.locked_until > now))}
        metrics.increment("auth.locked_out", by=min(kind for kind, key in keys.items() if key in ends))
        return RateLimitedError(
            "Too many failed attempts: try again later.",
            retry_after_seconds=(max(ends.values()) - now).total_seconds(),
        )

    async def _take_back(self, session: AsyncSession, kind: str, key: str) -> None:
        row = (await session.execute(_ONE_LESS, {"of": key})).one_or_none()
        if row is not None and row.locked_until is not None:
            await self._lock(session, key, self._end(kind, row.failures, row.last_at))

    async def _lock(self, session: AsyncSession, key: str, until: datetime | None) -> None:
        await session.execute(_LOCK, {"of": key, "until": until})

    def _end(self, kind: str, failures: int, last_at: datetime) -> datetime | None:
        settings = self._settings
        free = settings.lockout_threshold if kind == "account" else settings.lockout_network_threshold
        beyond = failures - free
        if beyond < 0:
            return None
        seconds = min(settings.lockout_base_seconds * 2.0 ** min(beyond, 64), settings.lockout_max_seconds)
        return last_at + timedelta(seconds=seconds)

    def _keys(self, account: str, ip: str) -> dict[str, str]:
        """The account before the network, always: nobody waits in a ring."""
        network = _network(ip)
        named = {"account": account, **({"network": network} if network else {})}
        return {kind: hmac.digest(self._key, f"{kind}:{name}".encode(), "sha256").hex() for kind, name in named.items()}


def _network(ip: str) -> str:
    try:
        address = ip_address(ip)
    except ValueError:
        return ""
    return str(ip_network(f"{address}/{NETWORK_BITS[address.version]}", strict=False))
