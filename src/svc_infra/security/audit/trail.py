"""Writing the audit trail: entries in the caller's transaction, appended to their chain in its last moment."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from sqlalchemy import Table, select, update
from sqlalchemy.dialects.postgresql import insert  # SQLite compiles its ON CONFLICT too
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db import write_last
from svc_infra.errors import ConfigurationError, SvcInfraError
from svc_infra.obs import context
from svc_infra.obs.redact import cleaned, to_json
from svc_infra.security.audit.chain import AuditKeys, is_same
from svc_infra.security.audit.models import MAX_TARGET_CHARACTERS, AuditChain, AuditEntry
from svc_infra.types import Clock, SystemClock, new_id
from svc_infra.wiring import current_wiring

MAX_CHANGES_BYTES = 64 * 1024
"""The largest `before` or `after` as JSON; of a larger one only the names are kept."""
MAX_ACTION_CHARACTERS = 100
OWN_CHAIN = ""
"""The chain of the service itself; it also records when the chain of a tenant began."""
CHAIN_STARTED = "audit.chain_started"

Outcome = Literal["success", "failure"]

_ACTION = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_ENTRIES, _CHAINS = cast(Table, AuditEntry.__table__), cast(Table, AuditChain.__table__)

_log = logging.getLogger(__name__)


class AuditTrail:
    """The audit trail of one app.

    Args:
        keys: What entries are authenticated with.
        clock: Where the time comes from.
    """

    def __init__(self, keys: AuditKeys, *, clock: Clock | None = None) -> None:
        self._keys = keys
        self._clock = clock or SystemClock()

    async def record(
        self,
        session: AsyncSession,
        action: str,
        *,
        target: str | None = None,
        tenant_id: str | None = None,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        outcome: Outcome = "success",
    ) -> None:
        """Add an entry to this unit of work: there with its commit, gone with its rollback.

        Who did it, as whom, with which key, from where and in which request is what `svc_infra.obs.context` says now.
        The chain is locked only for the commit itself, so an entry can be read by nobody before that.

        Args:
            session: A unit of work of `AsyncDatabase.session()`.
            action: What was done, such as `invoice.voided`.
            target: To what, such as `invoice:42`.
            tenant_id: In whose chain; by default that of the tenant in context, and the service's own without one.
            before, after: What changed; what is the same in both is left out, and secrets are redacted by their names.
            outcome: Whether it was done or refused. A refusal is recorded by a unit of work that is committed.

        Raises:
            ConfigurationError: The action is not written as `noun.verb`, or the session is not one of `AsyncDatabase`.
        """
        if not _ACTION.fullmatch(action) or len(action) > MAX_ACTION_CHARACTERS:
            raise ConfigurationError(f"{action!r} is no audit action: write it as noun.verb, such as invoice.voided.")
        here = context.current()
        entry = {
            "tenant_id": here.tenant_id if tenant_id is None else tenant_id,
            "id": new_id(),
            "at": self._clock.now(),
            "action": action,
            "outcome": outcome,
            "actor_id": here.actor_id or here.principal_id,
            "acting_as": here.principal_id if here.actor_id else "",
            "api_key_id": here.api_key_id,
            "target": _text(target or "", MAX_TARGET_CHARACTERS),
            "client_ip": _text(here.client_ip, 64),
            "request_id": _text(here.request_id, 128),
            "trace_id": _text(here.trace_id, 32),
            "before": _changes(before, after),
            "after": _changes(after, before),
        }
        write_last(session, self._append, entry)

    async def reseal(self, session: AsyncSession) -> int:
        """Seal every anchor with the newest key, after the secret was changed.

        Returns:
            How many there are.

        Raises:
            SvcInfraError: The seal of one is wrong.
        """
        tenants = sorted(await session.scalars(select(AuditChain.tenant_id)))
        for tenant_id in tenants:
            await self._anchor(session, tenant_id, *await self._locked(session, tenant_id))
        return len(tenants)

    async def _append(self, session: AsyncSession, entries: Sequence[dict[str, Any]]) -> None:
        chains: dict[str, list[dict[str, Any]]] = {}
        for entry in entries:
            chains.setdefault(entry["tenant_id"], []).append(entry)
        own = None
        if await self._new(
            session, chains
        ):  # the own chain before any other one, here as below: nobody waits in a ring
            own = await self._locked(session, OWN_CHAIN)
            started = [self._started(tenant_id) for tenant_id in sorted(await self._new(session, chains))]
            chains[OWN_CHAIN] = [*started, *chains.get(OWN_CHAIN, ())]
        for tenant_id in sorted(tenant_id for tenant_id, some in chains.items() if some):
            locked = own if own and tenant_id == OWN_CHAIN else await self._locked(session, tenant_id)
            await self._extend(session, tenant_id, *locked, chains[tenant_id])

    async def _new(self, session: AsyncSession, chains: Mapping[str, Any]) -> set[str]:
        """The tenants among these that have no chain yet."""
        others = chains.keys() - {OWN_CHAIN}
        if not others:
            return set()
        return others - set(await session.scalars(select(AuditChain.tenant_id).where(AuditChain.tenant_id.in_(others))))

    def _started(self, tenant_id: str) -> dict[str, Any]:
        entry = dict.fromkeys(("actor_id", "acting_as", "api_key_id", "client_ip", "request_id", "trace_id"), "")
        return entry | {
            "tenant_id": OWN_CHAIN, "id": new_id(), "at": self._clock.now(), "action": CHAIN_STARTED,
            "outcome": "success", "target": f"tenant:{tenant_id}", "before": None, "after": None,
        }  # fmt: skip

    async def _locked(self, session: AsyncSession, tenant_id: str) -> tuple[int, str]:
        """Lock the chain until this transaction ends; its last sequence and MAC."""
        anchor = select(_CHAINS).where(AuditChain.tenant_id == tenant_id).with_for_update()
        found = (await session.execute(anchor)).one_or_none()
        if found is None:
            newest = self._keys.newest
            first = {"sequence": 0, "mac": "", "key_id": newest, "seal": self._keys.seal(newest, tenant_id, 0, "")}
            await session.execute(insert(_CHAINS).values(tenant_id=tenant_id, **first).on_conflict_do_nothing())
            found = (await session.execute(anchor)).one()
        if not self._keys.knows(found.key_id):
            raise ConfigurationError(
                f"The audit chain of {tenant_id or 'the service'!r} is sealed with a secret that is not here: put the "
                "old AUTH_SECRET into AUTH_SECRET_PREVIOUS or AUTH_SECRETS_RETIRED."
            )
        if not is_same(
            found.seal, self._keys.seal(found.key_id, tenant_id, found.sequence, found.mac)
        ):  # what is appended to a chain that was cut would make it whole again
            _log.error("audit.anchor_forged", extra={"chain": tenant_id})
            raise SvcInfraError(
                "The audit trail was tampered with, so nothing is added to it: run svc-infra audit verify."
            )
        return found.sequence, found.mac

    async def _extend(
        self, session: AsyncSession, tenant_id: str, sequence: int, mac: str, entries: Sequence[dict[str, Any]]
    ) -> None:
        newest, rows = self._keys.newest, []
        for entry in entries:
            sequence += 1
            row = {**entry, "sequence": sequence, "key_id": newest}
            mac = row["mac"] = self._keys.entry_mac(newest, mac, row)
            rows.append(row)
        await session.execute(_ENTRIES.insert(), rows)
        await self._anchor(session, tenant_id, sequence, mac)

    async def _anchor(self, session: AsyncSession, tenant_id: str, sequence: int, mac: str) -> None:
        newest = self._keys.newest
        sealed = {"key_id": newest, "seal": self._keys.seal(newest, tenant_id, sequence, mac)}
        here = AuditChain.tenant_id == tenant_id
        await session.execute(update(_CHAINS).where(here).values(sequence=sequence, mac=mac, **sealed))


async def record(
    session: AsyncSession,
    action: str,
    *,
    target: str | None = None,
    tenant_id: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    outcome: Outcome = "success",
) -> None:
    """As `AuditTrail.record`, in the trail of the app whose request, job or script runs here.

    Raises:
        ConfigurationError: Nothing runs here, the app has no trail (`add_auth_users`), or as for `AuditTrail.record`.
    """
    wiring = current_wiring()
    if wiring is None:
        raise ConfigurationError("audit.record was called outside of any app: use `with wiring.active()`.")
    trail = wiring.get(AuditTrail)
    await trail.record(session, action, target=target, tenant_id=tenant_id, before=before, after=after, outcome=outcome)


def _changes(fields: Mapping[str, Any] | None, others: Mapping[str, Any] | None) -> str | None:
    """JSON of the fields that are not the same on the other side."""
    if fields is None:
        return None
    changed = {name: value for name, value in fields.items() if others is None or value != others.get(name, fields)}
    text = to_json(cleaned(changed)).decode()
    return text if len(text) <= MAX_CHANGES_BYTES else to_json(dict.fromkeys(changed, "[cut]")).decode()


def _text(value: str, limit: int) -> str:
    """Text that every database stores as it is."""
    return value.replace("\x00", "").encode("utf-8", "replace").decode()[:limit]
