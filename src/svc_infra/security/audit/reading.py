"""Reading the audit trail: whether it is whole, and all of it as plain values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import SvcInfraError
from svc_infra.security.audit.chain import AuditKeys, is_same
from svc_infra.security.audit.models import AuditChain, AuditEntry
from svc_infra.security.audit.trail import CHAIN_STARTED, OWN_CHAIN

BATCH_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known about one chain.

    Attributes:
        tenant_id: Whose it is; empty for the service's own.
        entries: How many entries are proven to be as they were written.
        mac: That of the last of them.
        broken_at: The sequence of the first entry that is not; None for a whole chain.
        reason: What is wrong with it; empty for a whole chain.
    """

    tenant_id: str
    entries: int
    mac: str
    broken_at: int | None = None
    reason: str = ""


async def verify(
    session: AsyncSession,
    keys: AuditKeys,
    *,
    tenant_id: str | None = None,
    known: Mapping[tuple[str, int], str] | None = None,
) -> list[Verdict]:
    """Check every entry of every chain, also while others are writing.

    Whoever can write to the database but has no key can neither change, remove, add nor reorder entries unnoticed, nor
    cut a chain's end. Putting back a whole older state of the database is noticed only by what was kept outside of it.

    Args:
        session: A unit of work; may be read-only.
        keys: What the entries were authenticated with.
        tenant_id: Only this chain.
        known: MACs of entries by chain and sequence, as an earlier run printed them.

    Returns:
        One verdict for each chain, sorted.
    """
    wanted = AuditChain.tenant_id == tenant_id if tenant_id is not None else AuditChain.tenant_id.is_not(None)
    last = select(func.max(AuditEntry.sequence)).where(AuditEntry.tenant_id == AuditChain.tenant_id).scalar_subquery()
    anchors = (await session.execute(select(AuditChain.__table__, last.label("last")).where(wanted))).all()
    verdicts = [await _chain(session, keys, anchor, known or {}) for anchor in anchors]
    seen = {anchor.tenant_id for anchor in anchors}
    lost = await _without_anchor(session) | {one for one, _ in known or {}} | ({OWN_CHAIN} if seen else set())
    wanted_too = {one for one in lost - seen if tenant_id in (None, one)}
    verdicts += [Verdict(one, 0, "", 1, "The anchor of the chain is missing.") for one in wanted_too]
    return sorted(verdicts, key=lambda verdict: verdict.tenant_id)


async def entries(
    session: AsyncSession, *, tenant_id: str | None = None, after_sequence: int | None = None
) -> AsyncIterator[dict[str, Any]]:
    """Every entry as plain values that JSON knows, chain by chain, oldest first.

    Args:
        session: A unit of work; may be read-only.
        tenant_id: Only this chain; every chain when left out.
        after_sequence: Only what follows this place in its chain.
    """
    chains = [tenant_id] if tenant_id is not None else await session.scalars(_tenants().order_by(AuditEntry.tenant_id))
    for chain in list(chains):
        async for row in _rows(session, chain, after_sequence):
            if row is None:
                raise SvcInfraError(f"An entry of the chain {chain!r} cannot be read: run svc-infra audit verify.")
            yield {**row, "id": str(row["id"]), "at": row["at"].isoformat()}


async def _chain(session: AsyncSession, keys: AuditKeys, anchor: Any, known: Mapping[tuple[str, int], str]) -> Verdict:
    tenant_id, sequence, mac = anchor.tenant_id, 0, ""

    def broken(at: int, reason: str) -> Verdict:
        return Verdict(tenant_id, sequence, mac, at, reason)

    async for row in _rows(session, tenant_id, None, anchor.sequence):
        place = sequence + 1
        if row is None:
            return broken(place, f"Entry {place} cannot even be read.")
        if row["sequence"] != place:
            return broken(place, f"Entry {place} is missing.")
        if not keys.knows(row["key_id"]):
            return broken(place, f"Entry {place} was signed with a key that is not here: {row['key_id']}.")
        if not is_same(row["mac"], keys.entry_mac(row["key_id"], mac, row)):
            return broken(place, f"Entry {place} is not what was written after entry {sequence}.")
        if not is_same(known.get((tenant_id, place), row["mac"]), row["mac"]):
            return broken(place, f"Entry {place} is another one than before.")
        sequence, mac = place, row["mac"]
    place = sequence + 1
    if not keys.knows(anchor.key_id):
        return broken(place, f"The anchor was sealed with a key that is not here: {anchor.key_id}.")
    if not is_same(anchor.seal, keys.seal(anchor.key_id, tenant_id, anchor.sequence, anchor.mac)):
        return broken(place, "The anchor is not what was written.")
    if sequence < max([anchor.sequence, *(place for chain, place in known if chain == tenant_id)]):
        return broken(place, f"Entry {place} and all after it are missing.")
    if not is_same(anchor.mac, mac) or (anchor.last or 0) != sequence:
        return broken(place, f"Entry {place} was added behind the end of the chain.")
    return Verdict(tenant_id, sequence, mac)


async def _without_anchor(session: AsyncSession) -> set[str]:
    """The chains that have entries, or that are known to have begun, and no anchor."""
    begun = select(AuditEntry.target).where(AuditEntry.tenant_id == OWN_CHAIN, AuditEntry.action == CHAIN_STARTED)
    started = {target.removeprefix("tenant:") for target in await session.scalars(begun)}
    found = started | set(await session.scalars(_tenants()))
    anchored = set(await session.scalars(select(AuditChain.tenant_id)))  # read last: each is older than its entries
    return found - anchored


def _tenants() -> Any:
    return select(AuditEntry.tenant_id).distinct()


async def _rows(
    session: AsyncSession, tenant_id: str, after: int | None, until: int | None = None
) -> AsyncIterator[Mapping[str, Any] | None]:
    """The entries in order; None, and nothing more, for one that is no entry: SQLite stores any text in any column."""
    table, size = AuditEntry.__table__, BATCH_ENTRIES
    while True:
        wanted = [AuditEntry.tenant_id == tenant_id]
        if after is not None:
            wanted.append(AuditEntry.sequence > after)
        if until is not None:
            wanted.append(AuditEntry.sequence <= until)
        try:
            found = await session.execute(select(table).where(*wanted).order_by(AuditEntry.sequence).limit(size))
            batch = found.all()
        except (ValueError, TypeError):
            if size > 1:
                size = 1  # and again, one by one, up to the place
                continue
            yield None
            return
        for row in batch:
            yield row._asdict()
        if len(batch) < size:
            return
        after = batch[-1].sequence
