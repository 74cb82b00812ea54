"""Passkeys and security keys (Web Authentication, Level 3)."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from secrets import token_bytes
from typing import Any, cast
from uuid import UUID

from sqlalchemy import CursorResult, and_, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra._optional import need
from svc_infra.errors import ConflictError, InvalidCredentialsError
from svc_infra.security.mfa.challenges import ChallengeKind, Challenges, hashed
from svc_infra.security.mfa.models import Challenge, Passkey
from svc_infra.security.models import HasAccount
from svc_infra.types import Clock, new_id

CEREMONY_SECONDS = 300.0
"""How long a browser may take."""
USER_HANDLE_BYTES = 32
_CHALLENGE_BYTES = 32
_TRANSPORTS = frozenset({"ble", "cable", "hybrid", "internal", "nfc", "smart-card", "usb"})


class Passkeys:
    """The passkeys of one app's accounts.

    Args:
        challenges: Where what must be signed waits.
        rp_id: The domain that passkeys belong to.
        rp_name: What browsers call this service.
        origins: The origins of the pages that they may be used from. None of this ever comes from a request.
        clock: Where the time comes from.
    """

    def __init__(
        self, challenges: Challenges, *, rp_id: str, rp_name: str, origins: Sequence[str], clock: Clock
    ) -> None:
        self._webauthn = need("webauthn")
        self._structs = need("webauthn.helpers.structs")
        self._challenges = challenges
        self._rp_id = rp_id
        self._rp_name = rp_name
        self._origins = list(origins)
        self._clock = clock

    async def enrol_options(self, session: AsyncSession, user: HasAccount, session_id: UUID) -> dict[str, Any]:
        """What `navigator.credentials.create()` is asked with, for this login alone."""
        own = await self.of(session, user.id)
        structs, challenge = self._structs, token_bytes(_CHALLENGE_BYTES)
        handle = (own[0].user_handle or "") if own else _b64(token_bytes(USER_HANDLE_BYTES))
        options = self._webauthn.generate_registration_options(
            rp_id=self._rp_id,
            rp_name=self._rp_name,
            user_id=_unb64(handle),
            user_name=user.email,
            challenge=challenge,
            timeout=int(CEREMONY_SECONDS * 1000),
            authenticator_selection=structs.AuthenticatorSelectionCriteria(
                resident_key=structs.ResidentKeyRequirement.PREFERRED,
                require_resident_key=None,
                user_verification=structs.UserVerificationRequirement.PREFERRED,
            ),
            exclude_credentials=[self._described(one) for one in own],
        )
        await self._challenges.make(
            session,
            ChallengeKind.ENROL,
            hashed(_b64(challenge)),
            ttl_seconds=CEREMONY_SECONDS,
            user_id=user.id,
            flow_id=session_id,
            note=handle,
        )
        return self._plain(options)

    async def enrol(
        self, session: AsyncSession, challenge: Challenge, credential: Mapping[str, Any], name: str
    ) -> Passkey:
        """The new passkey, in this unit of work.

        Args:
            session: The unit of work.
            challenge: What `taken` gave.
            credential: What the browser answered.
            name: What its owner calls it.

        Raises:
            InvalidCredentialsError: The answer is not what was asked for.
            ConflictError: The passkey is enrolled already.
        """
        try:
            verified = self._webauthn.verify_registration_response(
                credential=dict(credential),
                expected_challenge=_unb64(_challenge_in(credential)),
                expected_rp_id=self._rp_id,
                expected_origin=self._origins,
            )
        except Exception as error:
            raise refused() from error
        transports = _TRANSPORTS.intersection(credential["response"].get("transports") or ())
        now = self._clock.now()
        passkey = Passkey(
            id=new_id(),
            user_id=challenge.user_id,
            name=name,
            created_at=now,
            confirmed_at=now,
            credential_id=_b64(verified.credential_id),
            public_key=_b64(verified.credential_public_key),
            user_handle=challenge.note,
            sign_count=verified.sign_count,
            transports=" ".join(sorted(transports)),
        )
        try:
            async with session.begin_nested():
                session.add(passkey)
        except IntegrityError:
            raise ConflictError("This passkey is enrolled already.") from None
        return passkey

    async def options(
        self,
        session: AsyncSession,
        *,
        user_id: UUID | None = None,
        flow_id: UUID | None = None,
        browser_secret: str | None = None,
    ) -> dict[str, Any]:
        """What `navigator.credentials.get()` is asked with.

        Args:
            session: The unit of work.
            user_id: Whose passkey is wanted; None where it shall say that itself, and verify its user.
            flow_id: The second step or the login that it is for.
            browser_secret: What a cookie of the browser will show.
        """
        need_of, challenge = self._structs.UserVerificationRequirement, token_bytes(_CHALLENGE_BYTES)
        own = await self.of(session, user_id) if user_id is not None else []
        options = self._webauthn.generate_authentication_options(
            rp_id=self._rp_id,
            challenge=challenge,
            timeout=int(CEREMONY_SECONDS * 1000),
            allow_credentials=[self._described(one) for one in own] or None,
            user_verification=need_of.REQUIRED if user_id is None else need_of.PREFERRED,
        )
        await self._challenges.make(
            session,
            ChallengeKind.PASSKEY,
            hashed(_b64(challenge)),
            ttl_seconds=CEREMONY_SECONDS,
            user_id=user_id,
            flow_id=flow_id,
            browser_secret=browser_secret,
        )
        return self._plain(options)

    async def taken(
        self,
        session: AsyncSession,
        kind: ChallengeKind,
        credential: Mapping[str, Any],
        *,
        user_id: UUID | None,
        flow_id: UUID | None,
        browser_secret: str | None = None,
    ) -> Challenge | None:
        """The challenge that this answers, taken in this unit of work, which must be committed whatever comes next.

        None when nobody was asked that, somebody else was, or it was answered before.
        """
        wanted = (
            Challenge.secret_hash == hashed(_challenge_in(credential)),
            Challenge.user_id == user_id if user_id is not None else Challenge.user_id.is_(None),
            Challenge.flow_id == flow_id if flow_id is not None else Challenge.flow_id.is_(None),
        )
        challenge = await self._challenges.find(session, kind, *wanted, browser_secret=browser_secret)
        return challenge if challenge is not None and await self._challenges.spend(session, challenge) else None

    async def use(
        self, session: AsyncSession, user_id: UUID, credential: Mapping[str, Any], *, alone: bool
    ) -> Passkey | None:
        """The passkey that has signed, in this unit of work; None when it proves nothing.

        Args:
            session: The unit of work.
            user_id: Whose it must be.
            credential: What the browser answered to a challenge that was taken.
            alone: Whether it is all that the login is proven with: then its user must be verified, by it.
        """
        passkey = await self.find(session, credential)
        if passkey is None or passkey.user_id != user_id:
            return None
        handle = credential["response"].get("userHandle")
        if handle != passkey.user_handle and (alone or handle is not None):
            return None
        try:
            verified = self._webauthn.verify_authentication_response(
                credential=dict(credential),
                expected_challenge=_unb64(_challenge_in(credential)),
                expected_rp_id=self._rp_id,
                expected_origin=self._origins,
                credential_public_key=_unb64(passkey.public_key or ""),
                credential_current_sign_count=passkey.sign_count or 0,
                require_user_verification=alone,
            )
        except Exception:  # noqa: BLE001 - whatever its parsers stumble over proves nothing; the refusal is on record
            return None
        count = verified.new_sign_count
        grown = or_(Passkey.sign_count < count, and_(Passkey.sign_count == 0, count == 0))
        claim = update(Passkey).where(Passkey.id == passkey.id, grown)
        claim = claim.values(sign_count=count, last_used_at=self._clock.now())
        done = await session.execute(claim.execution_options(synchronize_session=False))
        return passkey if cast("CursorResult[Any]", done).rowcount == 1 else None

    async def find(self, session: AsyncSession, credential: Mapping[str, Any]) -> Passkey | None:
        """The passkey that a browser says has answered."""
        wanted = select(Passkey).where(Passkey.credential_id == str(credential["id"]))
        return (await session.scalars(wanted.execution_options(populate_existing=True))).one_or_none()

    async def of(self, session: AsyncSession, user_id: UUID) -> list[Passkey]:
        """The passkeys of an account."""
        return list(await session.scalars(select(Passkey).where(Passkey.user_id == user_id).order_by(Passkey.id)))

    def _described(self, passkey: Passkey) -> Any:
        kinds = [self._structs.AuthenticatorTransport(one) for one in (passkey.transports or "").split()]
        return self._structs.PublicKeyCredentialDescriptor(
            id=_unb64(passkey.credential_id or ""), transports=kinds or None
        )

    def _plain(self, options: Any) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self._webauthn.options_to_json(options)))


def refused() -> InvalidCredentialsError:
    """What is said of every answer that is not believed."""
    return InvalidCredentialsError("This passkey's answer is not valid: begin again.")


def _challenge_in(credential: Mapping[str, Any]) -> str:
    """What the browser says that the authenticator was to sign, in a page of its own."""
    try:
        said = json.loads(_unb64(credential["response"]["clientDataJSON"]))
        challenge = said["challenge"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise refused() from None
    if not isinstance(challenge, str) or said.get("crossOrigin") not in (None, False):
        raise refused()
    return challenge.rstrip("=")


def _b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
