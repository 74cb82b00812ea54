"""Keys that were found where they should not be: ended at once, and their owners told."""

from __future__ import annotations

from sqlalchemy import Select, select

from svc_infra.db import AsyncDatabase
from svc_infra.security.accounts import MailQueue
from svc_infra.security.keys.keys import ApiKeys
from svc_infra.security.keys.models import ApiKey
from svc_infra.security.models import HasAccount, Membership, OrganizationRole

MAX_TOLD = 20
"""Owners of an organization that are told of a leaked key of its services."""
MAX_PLACE_CHARACTERS = 500

_TEMPLATE = "key_leaked"


class LeakedKeys:
    """Ends leaked keys of one app.

    Args:
        db: Where they are kept.
        keys: The app's keys.
        user_model: The app's users.
        mail: How owners are told.
    """

    def __init__(self, db: AsyncDatabase, keys: ApiKeys, user_model: type[HasAccount], mail: MailQueue) -> None:
        self._db = db
        self._keys = keys
        self._user = user_model
        self._mail = mail

    async def report(self, key: str, *, found_at: str = "") -> bool:
        """End a key in a unit of work of its own: who has it may end it. Its owner is told the first time.

        Args:
            key: What was found; anything may be sent here.
            found_at: Where, such as an address; as the reporter says.

        Returns:
            Whether it is, or was, a key of this app.
        """
        async with self._db.session() as session:
            row = await self._keys.find(session, key)
            if row is not None and await self._keys.revoke(session, row, reason="leaked"):
                place = found_at[:MAX_PLACE_CHARACTERS] if found_at.isprintable() else ""
                values = {"name": row.name, "hint": row.hint, "found_at": place or "its finder did not say"}
                for address in await session.scalars(self._owners(row)):
                    await self._mail.send(session, _TEMPLATE, address, values)
            return row is not None

    def _owners(self, row: ApiKey) -> Select[str]:
        if row.user_id is not None:
            return select(self._user.email).where(self._user.id == row.user_id)
        owners = (Membership.organization_id == row.organization_id, Membership.role == OrganizationRole.OWNER)
        told = select(self._user.email).join(Membership, Membership.user_id == self._user.id)
        return told.where(*owners, self._user.is_active).order_by(Membership.id).limit(MAX_TOLD)
