"""Who a request acts for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The verified caller of one request.

    Attributes:
        id: The user's id.
        email: The user's address.
        roles: The user's roles at the time of the request.
        permissions: What those roles permit in this app.
        scopes: What the credential is limited to; None when it carries everything that the roles permit.
        via: The kind of credential.
        session_id: The login that the credential belongs to.
        tenant_id: The only tenant that the credential is good for; None when it is not bound to one.
    """

    id: UUID
    email: str
    roles: frozenset[str] = frozenset()
    permissions: frozenset[str] = frozenset()
    scopes: frozenset[str] | None = None
    via: Literal["jwt", "cookie"] = "jwt"
    session_id: UUID | None = None
    tenant_id: str | None = None

    def may(self, permission: str) -> bool:
        """Whether both the roles and the credential's scopes permit this."""
        return permission in self.permissions and (self.scopes is None or permission in self.scopes)
