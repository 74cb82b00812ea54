"""Identity: who is calling, and what they may do.

- `accounts`: register and log in · `passwords`: argon2id in a bounded pool
- `sessions`: logins, refresh token families with reuse detection · `tokens`: access tokens and the key ring
- `organizations`: the tenants and their members
- `principal`: who a request acts for · `permissions`: roles, permissions and the dependencies that require them
- `models`: the tables · `http`: `Identity`, `RequireUser`, the routes · `add`: `add_auth_users`
"""

from svc_infra.security.accounts import Accounts
from svc_infra.security.organizations import OrganizationRole, Organizations
from svc_infra.security.principal import Principal
from svc_infra.security.sessions import Device, Sessions, TokenPair

__all__ = ["Accounts", "Device", "OrganizationRole", "Organizations", "Principal", "Sessions", "TokenPair"]
