"""Organizations, which are the tenants: who belongs to them, in which role, and how others come to belong.

- `organizations`: made, found, ended · `members`: their roles, and that an owner stays
- `invitations`: mailed links that make a member, once · `teams`: members by name
- `models`: the tables · `http`: the `/orgs` routes · `add`: `add_organizations`
"""

from svc_infra.security.models import OrganizationRole
from svc_infra.security.organizations.invitations import Invitations
from svc_infra.security.organizations.members import Members
from svc_infra.security.organizations.models import Invitation, Team, TeamMember
from svc_infra.security.organizations.organizations import Belonging, Organizations, UserModel
from svc_infra.security.organizations.teams import Teams

__all__ = [
    "Belonging", "Invitation", "Invitations", "Members", "OrganizationRole", "Organizations", "Team", "TeamMember",
    "Teams", "UserModel",
]  # fmt: skip
