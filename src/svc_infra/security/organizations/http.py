"""The `/orgs` routes, and what they require of a member."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, params
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr

from svc_infra.db.http import DbSession, ReadSession
from svc_infra.errors import ForbiddenError, NotFoundError
from svc_infra.security.access import check_permission_name, declares, policy_of
from svc_infra.security.accounts import MAX_EMAIL_CHARACTERS, Accounts
from svc_infra.security.http import Identity, LoggedIn, PrivateRoute, shared
from svc_infra.security.organizations.invitations import MAX_TOKEN_CHARACTERS, Invitations
from svc_infra.security.organizations.members import MAX_LISTED, Members
from svc_infra.security.organizations.organizations import MAX_NAME_CHARACTERS, MAX_SLUG_CHARACTERS, Organizations
from svc_infra.security.organizations.teams import Teams
from svc_infra.wiring import wiring_of

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
Role = Annotated[str, Field(min_length=1, max_length=32)]
After = Annotated[UUID | None, Query(description="The `user_id` of the last one of the page before.")]
Limit = Annotated[int, Query(ge=1, le=MAX_LISTED)]


def RequireOrganizationPermission(*permissions: str) -> params.Depends:  # noqa: N802 - reads like its relatives
    """A dependency that refuses whose role in the organization of the path, `{organization_id}`, permits less (403).

    For who is no member, and for a key that is bound to another organization, there is no such organization (404).

    Raises:
        ConfigurationError: A permission is not written as `<resource>.<action>`.
    """
    for permission in permissions:
        check_permission_name(permission)

    @declares(f"organization permission {' and '.join(permissions)}")
    async def check(organization_id: UUID, request: Request, user: Identity, session: ReadSession) -> None:
        role = await Organizations(session).role(organization_id, user.id)
        if role is None or user.tenant_id not in (None, str(organization_id)):
            raise NotFoundError("Organization", organization_id)
        held = policy_of(wiring_of(request.app)).organization_permissions(role)
        missing = [one for one in permissions if one not in held or not user.carries(one)]
        if missing:
            raise ForbiddenError(f"This needs the permission {', '.join(missing)} in the organization.")

    return params.Depends(check)


class Body(BaseModel):
    """What a client sends: nothing but the fields named."""

    model_config = ConfigDict(extra="forbid")


class Shown(BaseModel):
    """What a client sees of a row."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID


class NewOrganization(Body):
    """An organization to be made."""

    name: Name
    slug: Annotated[str, Field(min_length=1, max_length=MAX_SLUG_CHARACTERS)] | None = None


class NameIn(Body):
    """A name."""

    name: Name


class RoleIn(Body):
    """A role in the organization."""

    role: Role


class InvitationIn(RoleIn):
    """Who is invited, and to what."""

    email: Annotated[str, Field(min_length=3, max_length=MAX_EMAIL_CHARACTERS)]
    role: Role = "member"


class Acceptance(Body):
    """What the mailed link carries behind the `#`."""

    token: Annotated[SecretStr, Field(min_length=1, max_length=MAX_TOKEN_CHARACTERS)]


class OrganizationOut(Shown):
    """An organization."""

    name: str
    slug: str


class MyOrganization(OrganizationOut):
    """An organization, and the caller's role in it."""

    role: str


class MemberOut(BaseModel):
    """Somebody who belongs to the organization."""

    model_config = ConfigDict(from_attributes=True)

    user_id: UUID
    email: str
    role: str


class Joined(BaseModel):
    """A membership just made."""

    model_config = ConfigDict(from_attributes=True)

    organization_id: UUID
    role: str


class InvitationOut(Shown):
    """An invitation; its link is in the mail alone."""

    email: str
    role: str
    created_at: AwareDatetime
    expires_at: AwareDatetime


class TeamOut(Shown):
    """A team."""

    name: str


def organizations_router(prefix: str) -> APIRouter:
    """The routes of organizations."""
    router = APIRouter(prefix=prefix, tags=["organizations"], route_class=PrivateRoute)
    _add_organizations(router)
    _add_members(router)
    _add_invitations(router)
    _add_teams(router)
    return router


def _needs(permission: str) -> list[params.Depends]:
    return [RequireOrganizationPermission(permission)]


def _add_organizations(router: APIRouter) -> None:
    @router.post("", status_code=201)
    async def create_organization(body: NewOrganization, user: LoggedIn, session: DbSession) -> OrganizationOut:
        """Make an organization; its maker owns it."""
        made = await Organizations(session).create(name=body.name, owner_id=user.id, slug=body.slug)
        return OrganizationOut.model_validate(made)

    @router.get("")
    async def list_organizations(user: Identity, session: ReadSession) -> list[MyOrganization]:
        """The caller's organizations; with a key that is bound to one, that one."""
        return [
            MyOrganization(id=found.id, name=found.name, slug=found.slug, role=role)
            for found, role in await Organizations(session).of_user(user.id)
            if user.tenant_id in (None, str(found.id))
        ]

    @router.get("/{organization_id}", dependencies=_needs("organization.read"))
    async def get_organization(organization_id: UUID, session: ReadSession) -> OrganizationOut:
        """An organization."""
        return OrganizationOut.model_validate(await Organizations(session).get(organization_id))

    @router.patch("/{organization_id}", dependencies=_needs("organization.write"))
    async def rename_organization(organization_id: UUID, body: NameIn, session: DbSession) -> OrganizationOut:
        """Give an organization another name; its slug stays."""
        return OrganizationOut.model_validate(await Organizations(session).rename(organization_id, body.name))

    @router.delete("/{organization_id}", status_code=204, dependencies=_needs("organization.delete"))
    async def delete_organization(organization_id: UUID, session: DbSession) -> None:
        """End an organization."""
        await Organizations(session).delete(organization_id)


def _add_members(router: APIRouter) -> None:
    @router.get("/{organization_id}/members", dependencies=_needs("organization.member.read"))
    async def list_members(
        organization_id: UUID, request: Request, session: ReadSession, after: After = None, limit: Limit = MAX_LISTED
    ) -> list[MemberOut]:
        """Who belongs to the organization, oldest membership first."""
        members = await shared(request, Members).list(session, organization_id, after=after, limit=limit)
        return [MemberOut.model_validate(member) for member in members]

    @router.patch(
        "/{organization_id}/members/{user_id}", status_code=204, dependencies=_needs("organization.member.write")
    )
    async def set_role(
        organization_id: UUID, user_id: UUID, body: RoleIn, request: Request, user: LoggedIn, session: DbSession
    ) -> None:
        """Give a member another role, which permits no more than the caller's; not with a key, which has no role."""
        await shared(request, Members).set_role(session, organization_id, user_id, body.role, actor_id=user.id)

    @router.delete(
        "/{organization_id}/members/{user_id}", status_code=204, dependencies=_needs("organization.member.write")
    )
    async def remove_member(
        organization_id: UUID, user_id: UUID, request: Request, user: Identity, session: DbSession
    ) -> None:
        """End a membership."""
        await shared(request, Members).remove(session, organization_id, user_id, actor_id=user.id)

    @router.post("/{organization_id}/leave", status_code=204)
    async def leave(organization_id: UUID, request: Request, user: LoggedIn, session: DbSession) -> None:
        """End the caller's own membership; the last owner stays."""
        await shared(request, Members).remove(session, organization_id, user.id, actor_id=user.id)


def _add_invitations(router: APIRouter) -> None:
    needed = _needs("organization.invitation.write")

    @router.post("/{organization_id}/invitations", status_code=201, dependencies=needed)
    async def invite(
        organization_id: UUID, body: InvitationIn, request: Request, user: LoggedIn, session: DbSession
    ) -> InvitationOut:
        """Invite an address; the link is mailed to it."""
        invitation = await shared(request, Invitations).invite(
            session, organization_id, body.email, body.role, inviter_id=user.id
        )
        return InvitationOut.model_validate(invitation)

    @router.get("/{organization_id}/invitations", dependencies=needed)
    async def list_invitations(organization_id: UUID, request: Request, session: ReadSession) -> list[InvitationOut]:
        """The invitations that can still be accepted."""
        found = await shared(request, Invitations).open(session, organization_id)
        return [InvitationOut.model_validate(invitation) for invitation in found]

    @router.delete("/{organization_id}/invitations/{invitation_id}", status_code=204, dependencies=needed)
    async def revoke_invitation(
        organization_id: UUID, invitation_id: UUID, request: Request, session: DbSession
    ) -> None:
        """End an invitation."""
        await shared(request, Invitations).revoke(session, organization_id, invitation_id)

    @router.post("/invitations/accept")
    async def accept_invitation(body: Acceptance, request: Request, user: LoggedIn, session: DbSession) -> Joined:
        """Become a member by means of a link that was mailed to the caller's own, proven address."""
        account = await shared(request, Accounts).get(session, user.id)
        if account is None:
            raise NotFoundError("User", user.id)
        token = body.token.get_secret_value()
        return Joined.model_validate(await shared(request, Invitations).accept(session, token, account))


def _add_teams(router: APIRouter) -> None:
    read, write = _needs("organization.member.read"), _needs("organization.team.write")

    @router.post("/{organization_id}/teams", status_code=201, dependencies=write)
    async def create_team(organization_id: UUID, body: NameIn, session: DbSession) -> TeamOut:
        """Make a team."""
        return TeamOut.model_validate(await Teams(session, organization_id).create(body.name))

    @router.get("/{organization_id}/teams", dependencies=read)
    async def list_teams(organization_id: UUID, session: ReadSession) -> list[TeamOut]:
        """The teams of the organization."""
        return [TeamOut.model_validate(team) for team in await Teams(session, organization_id).all()]

    @router.delete("/{organization_id}/teams/{team_id}", status_code=204, dependencies=write)
    async def delete_team(organization_id: UUID, team_id: UUID, session: DbSession) -> None:
        """End a team; its members stay in the organization."""
        await Teams(session, organization_id).delete(team_id)

    @router.get("/{organization_id}/teams/{team_id}/members", dependencies=read)
    async def list_team(organization_id: UUID, team_id: UUID, session: ReadSession) -> list[UUID]:
        """The ids of who belongs to a team."""
        return await Teams(session, organization_id).members(team_id)

    @router.put("/{organization_id}/teams/{team_id}/members/{user_id}", status_code=204, dependencies=write)
    async def join_team(organization_id: UUID, team_id: UUID, user_id: UUID, session: DbSession) -> None:
        """Put a member of the organization into a team."""
        await Teams(session, organization_id).add(team_id, user_id)

    @router.delete("/{organization_id}/teams/{team_id}/members/{user_id}", status_code=204, dependencies=write)
    async def quit_team(organization_id: UUID, team_id: UUID, user_id: UUID, session: DbSession) -> None:
        """Take somebody out of a team."""
        await Teams(session, organization_id).remove(team_id, user_id)
