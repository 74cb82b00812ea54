"""Wires organizations into an app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from svc_infra.errors import ConfigurationError
from svc_infra.security.access import policy_of
from svc_infra.security.accounts import MailQueue
from svc_infra.security.add import clock_of
from svc_infra.security.organizations.http import organizations_router
from svc_infra.security.organizations.invitations import DEFAULT_TTL_SECONDS, Invitations
from svc_infra.security.organizations.members import Members
from svc_infra.security.organizations.organizations import UserModel
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI

_PART = "organizations"


def add_organizations(
    app: FastAPI, *, prefix: str = "/orgs", invitation_ttl_seconds: float = DEFAULT_TTL_SECONDS
) -> None:
    """Give an app routes for organizations, members, invitations and teams. A second call changes nothing.

    Args:
        app: An app with accounts (`add_auth_users`), added before or after. Roles of its own for members are
            registered with `register_role(app, ..., in_organizations=True)`.
        prefix: Where the routes are.
        invitation_ttl_seconds: How long an invitation can be accepted.

    Raises:
        ConfigurationError: Invitations end before they begin. At start-up: the app has no accounts.
    """
    if invitation_ttl_seconds <= 0:
        raise ConfigurationError("invitation_ttl_seconds must be more than 0.")
    wiring = wiring_of(app)
    if _PART in wiring.parts:
        return
    app.include_router(organizations_router(prefix))
    wiring.add(Part(_PART, run=lambda: _running(wiring, invitation_ttl_seconds), after=("security",)))


@asynccontextmanager
async def _running(wiring: Wiring, invitation_ttl_seconds: float) -> AsyncIterator[None]:
    clock = clock_of(wiring)
    members = Members(policy_of(wiring), user_model=wiring.get(UserModel).kind, clock=clock)
    mail = wiring.get(MailQueue)
    wiring.provide(Members, members)
    wiring.provide(Invitations, Invitations(members, mail, ttl_seconds=invitation_ttl_seconds, clock=clock))
    yield
