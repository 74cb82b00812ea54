"""Authenticator apps: codes of a time and a shared secret (RFC 6238), each accepted once."""

from __future__ import annotations

import hmac
import io
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import CursorResult, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from svc_infra._optional import need
from svc_infra.security.cipher import FieldCipher
from svc_infra.security.mfa.models import TotpFactor
from svc_infra.types import Clock, new_id

CODE_DIGITS = 6
STEP_SECONDS = 30
DRIFT_STEPS = 1
"""How far an app's clock may be from ours, each way."""
CONFIRM_SECONDS = 600.0
"""How long a new app may wait for its first code."""


class TotpFactors:
    """The authenticator apps of one app's accounts.

    Args:
        cipher: What seals the secrets.
        issuer: What the apps call this service.
        clock: Where the time comes from.
    """

    def __init__(self, cipher: FieldCipher, *, issuer: str, clock: Clock) -> None:
        self._otp = need("pyotp")
        self._segno = need("segno")
        self._cipher = cipher
        self._issuer = issuer
        self._clock = clock

    async def begin(self, session: AsyncSession, user_id: UUID, name: str) -> tuple[TotpFactor, str]:
        """A new app in this unit of work, and its secret; one that never gave its first code goes."""
        mine = delete(TotpFactor).where(TotpFactor.user_id == user_id, TotpFactor.confirmed_at.is_(None))
        await session.execute(mine.execution_options(synchronize_session=False))
        secret: str = self._otp.random_base32()  # 160 bits from the system's generator (RFC 4226, 4)
        factor = TotpFactor(id=new_id(), user_id=user_id, name=name, created_at=self._clock.now())
        factor.secret = self._cipher.seal(secret, context=secret_context(factor.id))
        session.add(factor)
        await session.flush()
        return factor, secret

    def uri(self, secret: str, account: str) -> str:
        """What a QR code tells an app."""
        return str(self._otp.TOTP(secret).provisioning_uri(name=account, issuer_name=self._issuer))

    def qr_svg(self, uri: str) -> str:
        """A picture for the page itself: no other host draws it, or learns the secret."""
        picture = io.BytesIO()
        self._segno.make(uri, error="m").save(picture, kind="svg", scale=4, xmldecl=False, nl=False, light="#fff")
        return picture.getvalue().decode()

    async def confirm(self, session: AsyncSession, user_id: UUID, factor_id: UUID, code: str) -> TotpFactor | None:
        """The new app, once it has given its first code in this unit of work; None for a wrong one."""
        now = self._clock.now()
        wanted = select(TotpFactor).options(undefer(TotpFactor.secret))
        factor = (
            await session.scalars(
                wanted.where(
                    TotpFactor.id == factor_id,
                    TotpFactor.user_id == user_id,
                    TotpFactor.confirmed_at.is_(None),
                    TotpFactor.created_at > now - timedelta(seconds=CONFIRM_SECONDS),
                )
            )
        ).one_or_none()
        step = self._step(factor, code, now) if factor is not None else None
        if factor is None or step is None:
            return None
        claim = update(TotpFactor).where(TotpFactor.id == factor_id, TotpFactor.confirmed_at.is_(None))
        claim = claim.values(confirmed_at=now, last_step=step).execution_options(synchronize_session="fetch")
        return factor if _changed(await session.execute(claim)) else None

    async def use(self, session: AsyncSession, user_id: UUID, code: str) -> TotpFactor | None:
        """The app whose code this is, which is used up in this unit of work; of many at once, one succeeds."""
        now = self._clock.now()
        wanted = select(TotpFactor).where(TotpFactor.user_id == user_id, TotpFactor.confirmed_at.is_not(None))
        for factor in await session.scalars(wanted.options(undefer(TotpFactor.secret)).order_by(TotpFactor.id)):
            step = self._step(factor, code, now)
            if step is None:
                continue
            claim = update(TotpFactor).where(
                TotpFactor.id == factor.id, or_(TotpFactor.last_step.is_(None), TotpFactor.last_step < step)
            )
            claim = claim.values(last_step=step, last_used_at=now).execution_options(synchronize_session=False)
            if _changed(await session.execute(claim)):
                return factor
        return None

    def _step(self, factor: TotpFactor, code: str, now: datetime) -> int | None:
        """The time step that this is the code of; None when it is none that may be shown now."""
        secret = self._cipher.open(factor.secret or "", context=secret_context(factor.id))
        generator, current = self._otp.TOTP(secret, digits=CODE_DIGITS, interval=STEP_SECONDS), self._at(now)
        steps = range(current - DRIFT_STEPS, current + DRIFT_STEPS + 1)
        shown = code.encode("utf-8", "replace")
        matching = [step for step in steps if hmac.compare_digest(generator.generate_otp(step).encode(), shown)]
        return matching[-1] if matching else None

    def _at(self, now: datetime) -> int:
        return int(now.timestamp()) // STEP_SECONDS


def secret_context(factor_id: UUID) -> str:
    """Where a sealed secret belongs: it opens for this app alone."""
    return f"mfa_factors.secret:{factor_id}"


def _changed(result: Any) -> bool:
    return cast("CursorResult[Any]", result).rowcount == 1
