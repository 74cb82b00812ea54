"""Organizations, which are the tenants, and who belongs to them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import ConflictError, NotFoundError, ValidationError
from svc_infra.security.audit import record
from svc_infra.security.models import HasAccount, Membership, Organization, OrganizationRole, User
from svc_infra.types import new_id
from svc_infra.wiring import current_wiring

MAX_NAME_CHARACTERS = 200
MAX_SLUG_CHARACTERS = 63
MAX_LISTED = 100
"""Organizations given in one list."""

_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class UserModel:
    """The class of the app's users, as `add_auth_users` was given it."""

    kind: type[HasAccount]


class Belonging(NamedTuple):
    """One organization of a user, and the user's role in it."""

    organization: Organization
    role: str


class Organizations:
    """The organizations that one unit of work sees and changes.

    Whether the caller may do what is asked is decided before: with `RequireTenantRole` on the route. What is changed is
    recorded in the organization's chain of the audit trail, so it is changed in requests, jobs and scripts of an app.

    Args:
        session: The unit of work.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def create(self, *, name: str, owner_id: UUID, slug: str | None = None) -> Organization:
        """Make an organization; its maker becomes the owner.

        Args:
            name: Shown to people; 1 to 200 characters.
            owner_id: The user who makes it.
            slug: Names it in addresses: lower-case letters, digits and hyphens, at most 63. Made from the name when
                left out, with a random end when another organization has that one.

        Raises:
            ValidationError: The name or the slug is not acceptable.
            ConflictError: The slug is taken.
        """
        name = _accepted(name)
        if slug is not None and (len(slug) > MAX_SLUG_CHARACTERS or not _SLUG.fullmatch(slug)):
            raise _invalid("slug", f"A slug has 1 to {MAX_SLUG_CHARACTERS} lower-case letters, digits and hyphens.")
        organization = await self._stored(name, _slugs_for(name) if slug is None else (slug,))
        facts = {"name": name, "slug": organization.slug}
        await self._record("organization.created", organization.id, None, facts)
        await self.add_member(organization.id, owner_id, OrganizationRole.OWNER)
        return organization

    async def add_member(self, organization_id: UUID, user_id: UUID, role: str = OrganizationRole.MEMBER) -> Membership:
        """Make a user a member.

        Raises:
            NotFoundError: There is no such organization or user.
            ConflictError: The user is a member already.
        """
        wiring = current_wiring()
        users = wiring.get(UserModel).kind if wiring is not None and wiring.has(UserModel) else User
        if await self._session.get(Organization, organization_id) is None:
            raise NotFoundError("Organization", organization_id)
        if await self._session.get(users, user_id) is None:
            raise NotFoundError("User", user_id)
        membership = Membership(id=new_id(), organization_id=organization_id, user_id=user_id, role=str(role))
        try:
            async with self._session.begin_nested():
                self._session.add(membership)
        except IntegrityError:
            raise ConflictError("This user is a member already.") from None
        await record(
            self._session,
            "membership.added",
            target=f"user:{user_id}",
            tenant_id=str(organization_id),
            after={"role": str(role)},
        )
        return membership

    async def of_user(self, user_id: UUID, *, limit: int = MAX_LISTED) -> list[Belonging]:
        """The organizations of a user, oldest membership first."""
        rows = await self._session.execute(
            select(Organization, Membership.role)
            .join(Membership, Membership.organization_id == Organization.id)
            .where(Membership.user_id == user_id)
            .order_by(Membership.id)
            .limit(limit)
        )
        return [Belonging(*row) for row in rows]

    async def role(self, organization_id: UUID, user_id: UUID) -> str | None:
        """The user's role, or None for who is no member, or when there is no such organization."""
        return await self._session.scalar(
            select(Membership.role).where(Membership.organization_id == organization_id, Membership.user_id == user_id)
        )

    async def get(self, organization_id: UUID) -> Organization:
        """An organization.

        Raises:
            NotFoundError: There is none.
        """
        organization = await self._session.get(Organization, organization_id)
        if organization is None:
            raise NotFoundError("Organization", organization_id)
        return organization

    async def rename(self, organization_id: UUID, name: str) -> Organization:
        """Give an organization another name; its slug stays.

        Raises:
            ValidationError: The name is not acceptable.
            NotFoundError: There is no such organization.
        """
        organization = await self.get(organization_id)
        before, organization.name = organization.name, _accepted(name)
        await self._record("organization.renamed", organization_id, {"name": before}, {"name": organization.name})
        return organization

    async def delete(self, organization_id: UUID) -> None:
        """End an organization, its memberships and all that belongs to it alone.

        Raises:
            NotFoundError: There is no such organization.
            ConflictError: At the commit: something of the app still refers to it.
        """
        organization = await self.get(organization_id)
        await self._session.delete(organization)
        await self._record("organization.deleted", organization_id, {"name": organization.name}, None)

    async def exists(self, organization_id: UUID) -> bool:
        """Whether there is such an organization."""
        return await self._session.get(Organization, organization_id) is not None

    async def _record(
        self, action: str, organization_id: UUID, before: Mapping[str, str] | None, after: Mapping[str, str] | None
    ) -> None:
        tenant_id = str(organization_id)
        target = f"organization:{tenant_id}"
        await record(self._session, action, target=target, tenant_id=tenant_id, before=before, after=after)

    async def _stored(self, name: str, slugs: tuple[str, ...]) -> Organization:
        for slug in slugs:
            organization = Organization(id=new_id(), name=name, slug=slug)
            with suppress(IntegrityError):
                async with self._session.begin_nested():
                    self._session.add(organization)
                return organization
        raise ConflictError("An organization with this slug already exists.")


def _accepted(name: str) -> str:
    name = name.strip()
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise _invalid("name", f"A name has 1 to {MAX_NAME_CHARACTERS} printable characters.")
    return name


def _slugs_for(name: str) -> tuple[str, str]:
    """The slug that the name makes, and the one to take when another organization has it."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_name)[: MAX_SLUG_CHARACTERS - 9].strip("-") or "organization"
    return slug, f"{slug}-{token_hex(4)}"


def _invalid(field: str, detail: str) -> ValidationError:
    return ValidationError(detail, errors=[{"pointer": f"#/{field}", "detail": detail}])
