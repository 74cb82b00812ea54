"""How entries are chained: each is authenticated together with the one before it, and the last one by the anchor."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from svc_infra.config import Secrets
from svc_infra.security.keyring import KeyRing

RETIRED = "AUTH_SECRETS_RETIRED"
"""The secret that holds what `AUTH_SECRET` once was, one in each line; nothing but the audit trail reads it."""
COVERED = (
    "tenant_id", "sequence", "id", "at", "action", "outcome", "actor_id", "acting_as", "api_key_id", "target",
    "client_ip", "request_id", "trace_id", "before", "after",
)  # fmt: skip
"""What the MAC of an entry covers, beside the MAC of the entry before it and the id of its key."""

_FORMAT = 1  # the first thing under each MAC: another way of writing entries can never be taken for this one


class AuditKeys:
    """The keys of the audit trail: the newest signs, and an entry names the one that it was signed with.

    Args:
        keys: The app's secrets, those included that nothing else accepts any more.
    """

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys.by_id("audit")
        self.newest = next(iter(self._keys))

    @classmethod
    def read(cls, secrets: Secrets) -> AuditKeys:
        """The keys that an app's secrets make.

        Raises:
            MissingSecretError: `AUTH_SECRET` is missing outside local and test.
        """
        return cls(KeyRing.read(secrets, retired=RETIRED))

    def knows(self, key_id: str) -> bool:
        """Whether this is one of the keys."""
        return key_id in self._keys

    def entry_mac(self, key_id: str, previous_mac: str, entry: Mapping[str, Any]) -> str:
        """The MAC of an entry that follows the one with this MAC; the first one follows an empty one."""
        return self._mac(key_id, ["entry", previous_mac, *(entry[name] for name in COVERED)])

    def seal(self, key_id: str, tenant_id: str, sequence: int, mac: str) -> str:
        """The MAC of an anchor."""
        return self._mac(key_id, ["anchor", tenant_id, sequence, mac])

    def _mac(self, key_id: str, covered: list[Any]) -> str:
        text = json.dumps([_FORMAT, key_id, *covered], default=_plain)
        return hmac.digest(self._keys[key_id], text.encode(), "sha256").hex()


def is_same(stored: str, expected: str) -> bool:
    """Whether two MACs are the same; what somebody has put into the database may be any text."""
    return hmac.compare_digest(stored.encode("utf-8", "replace"), expected.encode())


def _plain(value: Any) -> str:
    return value.isoformat(timespec="microseconds") if isinstance(value, datetime) else str(value)
