"""Identity: who is calling, and what they may do.

- `accounts`: register, log in, recover, the `/auth` routes · `passwords`: which are accepted, argon2id in a pool
- `sessions`: logins, refresh token families with reuse detection · `tokens`: access tokens
- `oauth`: logging in with other providers · `mfa`: second factors and passkeys · `methods`: how a login was proven
- `lockout`: how often somebody may guess, at whatever factor
- `audit`: who did what · `organizations`: tenants, members, invitations, teams · `ownership`: each has an owner
- `keys`: API keys · `principal`: who a request acts for
- `access`: roles, what routes require, and that each says so; `permissions`: all of it by one import
- `keyring`: the keys, and those before them · `cipher`: encrypted columns · `cookies`: signed, sealed, and CSRF
- `models`: the tables · `references`: an app's own users instead of them · `remembered`: what each request asks
- `http`: `Identity` and its relatives · `aliases`: older paths
- `add`: `add_auth_users`, `add_security`, `purge_sessions`
"""

from svc_infra.security.accounts import Accounts, Credentials, MailQueue
from svc_infra.security.cipher import EncryptedField, FieldCipher
from svc_infra.security.cookies import Cookies
from svc_infra.security.keyring import KeyRing
from svc_infra.security.keys import ApiKeys
from svc_infra.security.lockout import Lockout
from svc_infra.security.models import HasAccount
from svc_infra.security.organizations import Invitations, Members, OrganizationRole, Organizations, Teams
from svc_infra.security.principal import Principal
from svc_infra.security.sessions import Device, Sessions, TokenPair

__all__ = [
    "Accounts", "ApiKeys", "Cookies", "Credentials", "Device", "EncryptedField", "FieldCipher", "HasAccount",
    "Invitations", "KeyRing", "Lockout", "MailQueue", "Members", "OrganizationRole", "Organizations", "Principal",
    "Sessions", "Teams", "TokenPair",
]  # fmt: skip
