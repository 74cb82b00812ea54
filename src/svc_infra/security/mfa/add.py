"""Wires second factors into an app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.security.accounts import Accounts, MailQueue, ProvesFactors
from svc_infra.security.add import KEYS, SECOND_FACTORS, clock_of
from svc_infra.security.audit import AuditTrail
from svc_infra.security.cipher import FieldCipher, SealedColumns
from svc_infra.security.keyring import KeyRing
from svc_infra.security.lockout import Lockout
from svc_infra.security.mfa.challenges import Challenges
from svc_infra.security.mfa.email_codes import EmailCodes
from svc_infra.security.mfa.enrolment import Enrolment
from svc_infra.security.mfa.factors import Factors
from svc_infra.security.mfa.gate import Gate, Requirement, required_by
from svc_infra.security.mfa.http import mfa_router
from svc_infra.security.mfa.login import FactorKinds, FactorLogin
from svc_infra.security.mfa.models import TotpFactor
from svc_infra.security.mfa.passkeys import Passkeys
from svc_infra.security.mfa.recovery import RecoveryCodes
from svc_infra.security.mfa.totp import TotpFactors, secret_context
from svc_infra.security.organizations import UserModel
from svc_infra.security.sessions import SecondFactors, Sessions
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI

_PART = "mfa"


def add_mfa(
    app: FastAPI, *, prefix: str = "/auth/mfa", passkeys: bool = True, required: Requirement | None = None
) -> None:
    """Let the users of an app prove more than a password. A second call changes nothing.

    Needs the extra `mfa`. `MFA_REQUIRED` says who must have a second factor; whoever has one always proves it.

    Args:
        app: An app with accounts (`add_auth_users`), added before or after.
        prefix: Where the routes are.
        passkeys: Take passkeys and security keys too.
        required: Who must have a second factor beside those whom `MFA_REQUIRED` names, such as
            `required_for_members(organization_id)`.

    Raises:
        MissingExtraError: At start-up: the extra is not installed.
        ConfigurationError: At start-up: there are no accounts, or outside local and test passkeys have no `MFA_RP_ID`.
    """
    wiring = wiring_of(app)
    if _PART in wiring.parts:
        return
    wiring.add(
        Part(SECOND_FACTORS, run=lambda: _asking(wiring, prefix, passkeys, required), after=("db", KEYS, "audit"))
    )
    wiring.add(Part(_PART, run=lambda: _running(wiring), after=("security",)))
    app.include_router(mfa_router(prefix))


@asynccontextmanager
async def _asking(wiring: Wiring, prefix: str, has_passkeys: bool, required: Requirement | None) -> AsyncIterator[None]:
    """What logins ask, made before they are."""
    settings, clock = wiring.settings.mfa, clock_of(wiring)
    if not wiring.has(UserModel):
        raise ConfigurationError("Second factors belong to accounts: call add_auth_users(app) too.")
    challenges, recovery = Challenges(clock=clock), RecoveryCodes(clock=clock)
    gate = Gate(
        wiring.get(UserModel).kind,
        challenges,
        recovery,
        wiring.get(AuditTrail),
        required_by(settings, required),
        ttl_seconds=settings.step_ttl_seconds,
        has_passkeys=has_passkeys,
        enrol_url=prefix,
    )
    wiring.provide(Challenges, challenges)
    wiring.provide(RecoveryCodes, recovery)
    wiring.provide(Gate, gate)
    wiring.provide(SecondFactors, gate)
    yield


@asynccontextmanager
async def _running(wiring: Wiring) -> AsyncIterator[None]:
    settings, clock = wiring.settings, clock_of(wiring)
    db, user_model, trail = wiring.get(AsyncDatabase), wiring.get(UserModel).kind, wiring.get(AuditTrail)
    challenges, recovery, mail = wiring.get(Challenges), wiring.get(RecoveryCodes), wiring.get(MailQueue)
    gate, cipher, sessions = wiring.get(Gate), wiring.get(FieldCipher), wiring.get(Sessions)
    interval = settings.auth.mail_interval_seconds
    kinds = FactorKinds(
        totp=TotpFactors(cipher, issuer=settings.mfa.issuer or settings.app.name, clock=clock),
        recovery=recovery,
        email_codes=EmailCodes(wiring.get(KeyRing), challenges, mail, interval_seconds=interval, clock=clock),
        passkeys=_passkeys(wiring, challenges) if gate.has_passkeys else None,
    )
    factors = Factors(db, user_model, recovery, challenges, trail, mail, gate.is_required, clock=clock)
    login = FactorLogin(
        db,
        user_model,
        wiring.get(Accounts),
        sessions,
        wiring.get(Lockout),
        challenges,
        kinds,
        trail,
        mail,
        clock=clock,
    )
    enrolment = Enrolment(db, factors, kinds, sessions, trail, offers_email=settings.mfa.email_codes, clock=clock)
    wiring.get(SealedColumns).add(TotpFactor.secret, cipher, secret_context)
    wiring.provide(Factors, factors)
    wiring.provide(Enrolment, enrolment)
    wiring.provide(ProvesFactors, login)
    yield


def _passkeys(wiring: Wiring, challenges: Challenges) -> Passkeys:
    settings, is_trusted = wiring.settings.mfa, wiring.settings.environment.is_trusted
    rp_id = settings.rp_id or ("localhost" if is_trusted else None)
    if rp_id is None:
        raise ConfigurationError(
            "Passkeys belong to a domain: set MFA_RP_ID, such as example.com, or call add_mfa(app, passkeys=False)."
        )
    origins = settings.origins or (f"https://{rp_id}",)
    for origin in origins:
        if not is_trusted and not origin.startswith("https://"):
            raise ConfigurationError(f"MFA_ORIGINS has {origin}, which is not https: browsers give it no passkeys.")
    name = settings.issuer or wiring.settings.app.name
    return Passkeys(challenges, rp_id=rp_id, rp_name=name, origins=origins, clock=clock_of(wiring))
