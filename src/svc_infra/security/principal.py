"""Who a request acts for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

Via = Literal["jwt", "cookie", "api_key", "impersonated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The verified caller of one request.

    Attributes:
        id: The user's id; of a service, its key's; of a user whom the app finds for an admin (`add_admin`), the app's.
        email: The user's address; empty for a service.
        roles: The user's roles at the time of the request; none with a key, which carries scopes only.
        permissions: What the user's roles permit in this app; nothing for a service.
        scopes: What the credential is limited to; None when it carries everything that the caller may.
        via: The kind of credential.
        session_id: The login that the credential belongs to.
        methods: How the login was proven (RFC 8176), such as `pwd`, `otp` and `mfa`; nothing for a key.
        authenticated_at: When that was last done; None for a key, which is never fresh.
        lacks_second_factor: Whether the account must have a second factor that the login was not proven with. It may do
            nothing but enrol or prove one, and has neither roles nor permissions.
        tenant_id: The only tenant that the credential is good for; None when it is not bound to one.
        api_key_id: The key that was shown; None for a login.
        is_service: Whether this is a service of the tenant, and no user.
        actor: The admin who acts as this user, and whose roles and permissions these are; None for everybody else.
    """

    id: UUID
    email: str
    roles: frozenset[str] = frozenset()
    permissions: frozenset[str] = frozenset()
    scopes: frozenset[str] | None = None
    via: Via = "jwt"
    session_id: UUID | None = None
    methods: tuple[str, ...] = ()
    authenticated_at: datetime | None = None
    lacks_second_factor: bool = False
    tenant_id: str | None = None
    api_key_id: UUID | None = None
    is_service: bool = False
    actor: Principal | None = None

    def may(self, permission: str) -> bool:
        """Whether both the roles and the credential's scopes permit this."""
        return permission in self.permissions and self.carries(permission)

    def carries(self, scope: str) -> bool:
        """Whether the credential is good for this, whatever the roles permit."""
        return self.scopes is None or scope in self.scopes
