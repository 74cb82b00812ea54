"""Keys: made, verified, rotated, revoked."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import (
    ConfigurationError,
    ConflictError,
    ForbiddenError,
    InvalidTokenError,
    NotFoundError,
    ValidationError,
)
from svc_infra.middleware.gcra import Rate
from svc_infra.security.access import Policy
from svc_infra.security.audit import AuditTrail
from svc_infra.security.keyring import KeyRing
from svc_infra.security.keys.form import KeyForm, is_key, mark_of
from svc_infra.security.keys.live import LiveKey, LiveKeys
from svc_infra.security.keys.models import ApiKey
from svc_infra.security.keys.uses import KeyUses
from svc_infra.security.organizations import Organizations
from svc_infra.security.principal import Principal
from svc_infra.security.remembered import SAYS_WHAT_CHANGED
from svc_infra.types import Clock, SystemClock, new_id

MAX_KEYS = 100
"""Keys of one owner that are alive."""
MAX_SCOPES = 50
DEFAULT_TTL_SECONDS = 365 * 86400.0
MAX_TTL_SECONDS = 5 * 365 * 86400.0
DEFAULT_OVERLAP_SECONDS = 86400.0
MAX_OVERLAP_SECONDS = 30 * 86400.0
MAX_RATE_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRequest:
    """What somebody wants a key for.

    Attributes:
        name: What it is for.
        scopes: What it is limited to.
        ttl_seconds: How long it is good for.
        organization_id: The only organization that it is good for.
        service: Whether it belongs to a service of that organization, and not to who makes it.
        rate: How often it may be used, such as `100/minute`, instead of what its routes say.
    """

    name: str
    scopes: Collection[str] = ()
    ttl_seconds: float = DEFAULT_TTL_SECONDS
    organization_id: UUID | None = None
    service: bool = False
    rate: str | None = None


@dataclass(frozen=True, slots=True)
class VerifiedKey:
    """A key that was shown, and is alive.

    Attributes:
        principal: Whom it stands for.
        rate: How often it may be used; None for what its routes say.
    """

    principal: Principal
    rate: str | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made: the only time that it can be seen."""

    key: str = field(repr=False)
    row: ApiKey


class ApiKeys:
    """The keys of one app.

    Args:
        live: Knows which of them are alive.
        uses: Where uses are noted.
        trail: Where it is recorded what happens to them.
        keys: Where the secrets for their hashes come from. A key stored with the secret before the newest is stored
            anew when it is used.
        policy: What the roles permit.
        form: Draws them.
        max_rate: The largest that who makes a key may give it; None when only the app itself gives keys a rate.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        live: LiveKeys,
        uses: KeyUses,
        trail: AuditTrail,
        keys: KeyRing,
        policy: Policy,
        *,
        form: KeyForm | None = None,
        max_rate: Rate | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._live = live
        self._uses = uses
        self._trail = trail
        self._secrets = keys.derived("api-key")
        self._policy = policy
        self._form = form or KeyForm()
        self._max_rate = max_rate
        self._clock = clock or SystemClock()

    async def verify(self, key: str) -> VerifiedKey:
        """Who a key stands for, with at most one read.

        Raises:
            InvalidTokenError: It is no key, it has ended, or its owner is disabled, gone or has left the organization.
        """
        if not is_key(key):
            raise _refused()
        hashes = self._hashes(key)
        live = await self._live.find(mark_of(key), hashes)
        if live is None:
            raise _refused()
        is_old = not hmac.compare_digest(live.key_hash, hashes[0])
        self._uses.note(live.key_id, new_hash=hashes[0] if is_old else None)
        return VerifiedKey(self._principal(live), live.rate)

    def check_rate(self, rate: str | None) -> None:
        """Refuse a rate that somebody who makes a key may not give it; code of the app need not ask.

        Raises:
            ForbiddenError: Only the app itself gives keys a rate.
            ValidationError: It is no rate, or larger than they may be.
        """
        if rate is None:
            return
        if self._max_rate is None:
            raise ForbiddenError("How often a key may be used is up to the service: leave out the rate.")
        most, asked = self._max_rate, _parsed(rate)
        if asked.limit > most.limit or asked.limit * most.period_seconds > most.limit * asked.period_seconds:
            raise _wrong("rate", f"A key may be used at most {most.limit} times in {most.period_seconds} seconds.")

    async def create(self, session: AsyncSession, maker: Principal, request: KeyRequest) -> NewKey:
        """Make a key in this unit of work.

        Args:
            session: The unit of work.
            maker: Who is logged in; nobody can give a key more than they may do.
            request: What for.

        Raises:
            ValidationError: The request is not acceptable, or has scopes beyond what the maker may do.
            NotFoundError: The maker is no member of the organization.
            ForbiddenError: The maker may make no keys for services of the organization.
            ConflictError: The owner has too many keys.
        """
        scopes = sorted(set(request.scopes))
        if not request.name.strip() or not request.name.isprintable() or len(scopes) > MAX_SCOPES:
            raise ValidationError(f"A key needs a printable name, and at most {MAX_SCOPES} scopes.")
        if request.service and request.organization_id is None:
            raise _wrong("organization_id", "A service belongs to an organization: name it.")
        if request.rate is not None:
            _parsed(request.rate)
        permitted = await self._permitted(session, maker, request.organization_id, request.service)
        if beyond := [scope for scope in scopes if scope not in permitted]:
            raise _wrong("scopes", f"You may not do this yourself: {', '.join(beyond)}.")
        now = self._clock.now()
        row = ApiKey(
            id=new_id(),
            user_id=None if request.service else maker.id,
            organization_id=request.organization_id,
            name=request.name.strip(),
            scopes=scopes,
            rate=request.rate,
            created_by=maker.id,
            created_at=now,
            expires_at=now + timedelta(seconds=min(request.ttl_seconds, MAX_TTL_SECONDS)),
        )
        made = await self._stored(session, row)
        facts = {"name": row.name, "scopes": scopes, "rate": row.rate, "expires_at": row.expires_at.isoformat()}
        await self._record(session, "api_key.created", row, after=facts)
        return made

    async def list(self, session: AsyncSession, owner: ColumnElement[bool]) -> list[ApiKey]:
        """The keys of an owner that are alive, oldest first; see `keys_of_user` and `keys_of_services`."""
        alive = select(ApiKey).where(owner, self._alive()).order_by(ApiKey.id).limit(2 * MAX_KEYS)
        return list(await session.scalars(alive))

    async def managed(self, session: AsyncSession, caller: Principal, key_id: UUID) -> ApiKey:
        """A key that the caller may manage: an own one, or a service's of an organization whose keys they manage.

        Raises:
            NotFoundError: There is none.
            ForbiddenError: It is a service's of the caller's organization, and others manage its keys.
        """
        row = await session.get(ApiKey, key_id)
        if row is None or row.user_id not in (None, caller.id):
            raise NotFoundError("API key", key_id)
        if row.user_id is None:
            await self._permitted(session, caller, row.organization_id, service=True)
        return row

    async def require_manager(self, session: AsyncSession, caller: Principal, organization_id: UUID) -> None:
        """Refuse who does not manage the keys of this organization's services.

        Raises:
            NotFoundError: The caller is no member.
            ForbiddenError: Others manage them.
        """
        await self._permitted(session, caller, organization_id, service=True)

    async def rotate(
        self, session: AsyncSession, caller: Principal, row: ApiKey, *, overlap_seconds: float, rate: str | None = None
    ) -> NewKey:
        """Put a new key in the place of one, which ends after the overlap; of many at once, one succeeds.

        Args:
            session: The unit of work.
            caller: Who is logged in.
            row: The key that is replaced.
            overlap_seconds: How long both are good.
            rate: How often the new one may be used; None for as often as the old one.

        Raises:
            ConflictError: It has ended, or was replaced before.
            ForbiddenError: It has scopes beyond what the caller may do.
            ValidationError: The rate is none.
        """
        rate = row.rate if rate is None else rate
        if rate is not None:
            _parsed(rate)
        permitted = await self._permitted(session, caller, row.organization_id, row.user_id is None)
        if not permitted.issuperset(row.scopes):
            raise ForbiddenError("This key has scopes that you do not hold: make a new one.")
        now = self._clock.now()
        ends = min(row.expires_at, now + timedelta(seconds=min(overlap_seconds, MAX_OVERLAP_SECONDS)))
        claim = update(ApiKey).where(ApiKey.id == row.id, self._alive(), ApiKey.replaced_at.is_(None))
        claim = claim.values(replaced_at=now, expires_at=ends).returning(ApiKey.id)
        if await session.scalar(claim, execution_options={"synchronize_session": False, **SAYS_WHAT_CHANGED}) is None:
            raise ConflictError("This key has ended or was replaced before.")
        successor = ApiKey(
            id=new_id(),
            user_id=row.user_id,
            organization_id=row.organization_id,
            name=row.name,
            scopes=list(row.scopes),
            rate=rate,
            created_by=caller.id,
            created_at=now,
            expires_at=now + (row.expires_at - row.created_at),
        )
        made = await self._stored(session, successor)
        self._live.forget(session, row.owner_id)
        facts = {"successor": str(successor.id), "rate": rate, "ends_at": str(ends)}
        await self._record(session, "api_key.rotated", row, after=facts)
        return made

    async def revoke(self, session: AsyncSession, row: ApiKey, *, reason: str) -> bool:
        """End a key in this unit of work; effective with its commit.

        Returns:
            False when it had been revoked before.
        """
        claim = update(ApiKey).where(ApiKey.id == row.id, ApiKey.revoked_at.is_(None))
        claim = claim.values(revoked_at=self._clock.now(), revoke_reason=reason[:64]).returning(ApiKey.id)
        options = {"synchronize_session": False, **SAYS_WHAT_CHANGED}
        if await session.scalar(claim, execution_options=options) is None:
            return False
        self._live.forget(session, row.owner_id)
        await self._record(session, "api_key.revoked", row, after={"reason": reason[:64]})
        return True

    async def find(self, session: AsyncSession, key: str) -> ApiKey | None:
        """What is stored of a key, which may have ended."""
        if not is_key(key):
            return None
        return await session.scalar(select(ApiKey).where(ApiKey.key_hash.in_(self._hashes(key))))

    async def _stored(self, session: AsyncSession, row: ApiKey) -> NewKey:
        owner = keys_of_user(row.user_id) if row.user_id else keys_of_services(row.organization_id)
        alive = await session.scalar(select(func.count()).select_from(ApiKey).where(owner, self._alive()))
        if (alive or 0) >= MAX_KEYS:
            raise ConflictError(f"There are {MAX_KEYS} keys already: revoke one of them.")
        key = self._form.draw(row.owner_id)
        row.key_hash, row.hint = self._hashes(key)[0], key[-4:]
        session.add(row)
        await session.flush()
        return NewKey(key, row)

    async def _permitted(
        self, session: AsyncSession, maker: Principal, organization_id: UUID | None, service: bool
    ) -> frozenset[str]:
        """What a key that the maker makes may be good for."""
        if organization_id is None:
            return maker.permissions
        role = await Organizations(session).role(organization_id, maker.id)
        if role is None:
            raise NotFoundError("Organization", organization_id)
        there = self._policy.organization_permissions(role)
        if not service:
            return maker.permissions | there
        if "organization.key.write" not in there:
            raise ForbiddenError("This needs the permission organization.key.write in the organization.")
        return there

    def _principal(self, live: LiveKey) -> Principal:
        tenant_id = str(live.organization_id) if live.organization_id is not None else None
        granted = frozenset(live.scopes)
        if live.user_id is None:
            scopes = granted & self._policy.organization_permissions("owner")
            return Principal(
                id=live.key_id, email="", scopes=scopes, via="api_key", tenant_id=tenant_id, api_key_id=live.key_id,
                is_service=True,
            )  # fmt: skip
        permissions = self._policy.permissions(live.roles)
        scopes = granted & (permissions | self._policy.organization_permissions(live.membership_role))
        return Principal(
            id=live.user_id, email=live.email, permissions=permissions, scopes=scopes, via="api_key",
            tenant_id=tenant_id, api_key_id=live.key_id,
        )  # fmt: skip

    def _hashes(self, key: str) -> tuple[str, ...]:
        return tuple(hmac.digest(secret, key.encode(), "sha256").hex() for secret in self._secrets)

    def _alive(self) -> ColumnElement[bool]:
        return and_(ApiKey.revoked_at.is_(None), ApiKey.expires_at > self._clock.now())

    async def _record(self, session: AsyncSession, action: str, row: ApiKey, *, after: Mapping[str, object]) -> None:
        tenant_id = str(row.organization_id) if row.organization_id is not None else None
        await self._trail.record(session, action, target=f"api_key:{row.id}", tenant_id=tenant_id, after=after)


def keys_of_user(user_id: UUID | None) -> ColumnElement[bool]:
    """The keys that act as a user."""
    return ApiKey.user_id == user_id


def keys_of_services(organization_id: UUID | None) -> ColumnElement[bool]:
    """The keys of an organization's services."""
    return and_(ApiKey.organization_id == organization_id, ApiKey.user_id.is_(None))


def _parsed(rate: str) -> Rate:
    try:
        return Rate.parse(rate if len(rate) <= MAX_RATE_CHARACTERS else "")
    except ConfigurationError:
        raise _wrong("rate", "This is no rate: write it like 100/minute or 1000/15 minutes.") from None


def _refused() -> InvalidTokenError:
    return InvalidTokenError("This API key is not valid, or it has ended.")


def _wrong(name: str, detail: str) -> ValidationError:
    return ValidationError(detail, errors=[{"pointer": f"#/{name}", "detail": detail}])
