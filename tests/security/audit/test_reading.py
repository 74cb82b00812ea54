"""Everything that someone who can write to the database, but has no key, could do to the trail."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import text

from svc_infra.db import AsyncDatabase
from svc_infra.db.sql import migrate
from svc_infra.errors import SvcInfraError
from svc_infra.security.audit import AuditKeys, AuditTrail
from svc_infra.security.keyring import KeyRing
from svc_infra.testing import FakeClock
from tests.security.audit.conftest import Trail
from tests.security.conftest import SECRET

COLUMNS = (
    "tenant_id, sequence, id, at, action, outcome, actor_id, acting_as, api_key_id, target, client_ip, request_id, "
    "trace_id, before, after, key_id, mac"
)
THIRD = "tenant_id = 'acme' AND sequence = 3"


async def written(trail: Trail) -> None:
    """Two chains with five entries each, and the service's own."""
    for tenant_id in ("acme", "globex"):
        await trail.write(*(f"step.number_{word}" for word in ("a", "b", "c", "d", "e")), tenant_id=tenant_id)
    assert await trail.broken() == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("action", "'other.done'"),
        ("outcome", "'failure'"),
        ("actor_id", "'mallory'"),
        ("acting_as", "'mallory'"),
        ("api_key_id", "'0'"),
        ("target", "'thing:2'"),
        ("client_ip", "'203.0.113.1'"),
        ("request_id", "'r-2'"),
        ("trace_id", "'x'"),
        ("before", "'{}'"),
        ("after", "'{}'"),
        ("mac", f"'{'0' * 64}'"),
        ("mac", "'\u00e9'"),
        ("key_id", "'0000000000000000'"),
        ("at", "'2031-01-01 00:00:00'"),
        ("id", "'019a0000000070008000000000000000'"),
    ],
)
async def test_a_changed_entry_is_named(column: str, value: str, trail: Trail) -> None:
    await written(trail)
    if trail.db.dialect == "sqlite":
        value = value.replace(f"'{'0' * 64}'", f"'{'0' * 64}'")
    await trail.tamper(f"UPDATE svc_audit_entries SET {column} = {value} WHERE tenant_id = 'acme' AND sequence = 3")
    assert await trail.broken() == [("acme", 3)]


@pytest.mark.parametrize("column", ["at", "id", "mac", "sequence"])
async def test_what_is_no_entry_at_all_is_named_too(column: str, sqlite_trail: Trail) -> None:
    """SQLite stores any text in any column."""
    await written(sqlite_trail)
    await sqlite_trail.tamper(f"UPDATE svc_audit_entries SET {column} = 'nonsense' WHERE {THIRD}")
    assert await sqlite_trail.broken() == [("acme", 3)]


ANCHOR = "UPDATE svc_audit_chains SET"


def copied_to(place: int) -> str:
    """Add a copy of the third entry."""
    values = COLUMNS.replace("sequence", str(place)).replace(" id,", " {id},")
    return f"INSERT INTO svc_audit_entries ({COLUMNS}) SELECT {values} FROM svc_audit_entries WHERE {THIRD}"


ATTACKS: dict[str, tuple[list[str], list[tuple[str, int]]]] = {
    "delete one in the middle": ([f"DELETE FROM svc_audit_entries WHERE {THIRD}"], [("acme", 3)]),
    "delete one and close the gap": (
        [
            f"DELETE FROM svc_audit_entries WHERE {THIRD}",
            "UPDATE svc_audit_entries SET sequence = 3 WHERE tenant_id = 'acme' AND sequence = 4",
            "UPDATE svc_audit_entries SET sequence = 4 WHERE tenant_id = 'acme' AND sequence = 5",
            f"{ANCHOR} sequence = 4 WHERE tenant_id = 'acme'",
        ],
        [("acme", 3)],
    ),
    "reorder": (
        [
            f"UPDATE svc_audit_entries SET sequence = 99 WHERE {THIRD}",
            "UPDATE svc_audit_entries SET sequence = 3 WHERE tenant_id = 'acme' AND sequence = 4",
            "UPDATE svc_audit_entries SET sequence = 4 WHERE tenant_id = 'acme' AND sequence = 99",
        ],
        [("acme", 3)],
    ),
    "put nonsense into the anchor": (
        [f"{ANCHOR} seal = '\u00e9', mac = '\u00e9' WHERE tenant_id = 'acme'"],
        [("acme", 6)],
    ),
    "cut the end": (["DELETE FROM svc_audit_entries WHERE tenant_id = 'acme' AND sequence > 3"], [("acme", 4)]),
    "cut the end and move the anchor": (
        [
            "DELETE FROM svc_audit_entries WHERE tenant_id = 'acme' AND sequence > 3",
            f"{ANCHOR} sequence = 3, mac = (SELECT mac FROM svc_audit_entries WHERE {THIRD}) WHERE tenant_id = 'acme'",
        ],
        [("acme", 4)],
    ),
    "empty a chain": (["DELETE FROM svc_audit_entries WHERE tenant_id = 'acme'"], [("acme", 1)]),
    "remove a chain with its anchor": (
        [
            "DELETE FROM svc_audit_entries WHERE tenant_id = 'acme'",
            "DELETE FROM svc_audit_chains WHERE tenant_id = 'acme'",
        ],
        [("acme", 1)],
    ),
    "remove the anchor": (["DELETE FROM svc_audit_chains WHERE tenant_id = 'acme'"], [("acme", 1)]),
    "remove the service's own chain": (
        ["DELETE FROM svc_audit_entries WHERE tenant_id = ''", "DELETE FROM svc_audit_chains WHERE tenant_id = ''"],
        [("", 1)],
    ),
    "add one at the end": (
        [copied_to(6)],
        [("acme", 6)],
    ),
    "add one before the first": (
        [copied_to(0)],
        [("acme", 1)],
    ),
    "swap two chains' entries": (
        [
            f"UPDATE svc_audit_entries SET tenant_id = 'x' WHERE {THIRD}",
            "UPDATE svc_audit_entries SET tenant_id = 'acme' WHERE tenant_id = 'globex' AND sequence = 3",
            "UPDATE svc_audit_entries SET tenant_id = 'globex' WHERE tenant_id = 'x'",
        ],
        [("acme", 3), ("globex", 3)],
    ),
    "swap two chains": (
        [
            f"UPDATE {table} SET tenant_id = '{new}' WHERE tenant_id = '{old}'"
            for table in ("svc_audit_entries", "svc_audit_chains")
            for old, new in (("acme", "x"), ("globex", "acme"), ("x", "globex"))
        ],
        [("acme", 1), ("globex", 1)],
    ),
    "an anchor that points back": ([f"{ANCHOR} sequence = 4 WHERE tenant_id = 'acme'"], [("acme", 5)]),
    "an anchor that points ahead": ([f"{ANCHOR} sequence = 6 WHERE tenant_id = 'acme'"], [("acme", 6)]),
    "another seal": ([f"{ANCHOR} seal = mac WHERE tenant_id = 'acme'"], [("acme", 6)]),
    "the seal of another chain": (
        [f"{ANCHOR} seal = (SELECT seal FROM svc_audit_chains WHERE tenant_id = 'globex') WHERE tenant_id = 'acme'"],
        [("acme", 6)],
    ),
    "a seal of an unknown key": ([f"{ANCHOR} key_id = '0000' WHERE tenant_id = 'acme'"], [("acme", 6)]),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_every_attack_is_found_where_it_happened(name: str, trail: Trail) -> None:
    await written(trail)
    statements, places = ATTACKS[name]
    fresh = "gen_random_uuid()" if trail.db.dialect == "postgresql" else "'019a0000000070008000000000000000'"
    await trail.tamper(*(statement.replace("{id}", fresh) for statement in statements))
    assert await trail.broken() == places


async def test_nothing_is_added_to_a_chain_whose_anchor_was_forged(trail: Trail) -> None:
    await written(trail)
    await trail.tamper(*ATTACKS["cut the end and move the anchor"][0])
    with pytest.raises(SvcInfraError, match="tampered"):
        await trail.write("next.done", tenant_id="acme")
    assert await trail.broken() == [("acme", 4)]


async def test_a_chain_made_with_another_key_is_found(trail: Trail) -> None:
    forger = AuditKeys(KeyRing(SecretStr("a secret that only the forger knows, of 32 bytes")))
    forged = Trail(trail.db, forger, AuditTrail(forger), trail.clock)
    await forged.write("thing.done", "other.done", tenant_id="acme")
    assert await trail.broken() == [("", 1), ("acme", 1)]


async def test_an_older_state_of_a_chain_is_found_by_what_was_noted_outside(trail: Trail) -> None:
    await trail.write("a.done", "b.done")
    async with trail.db.session(read_only=True) as session:
        anchor = (await session.execute(text("SELECT sequence, mac, seal FROM svc_audit_chains"))).one()._asdict()
    await trail.write("c.done")
    known = {(one.tenant_id, one.entries): one.mac for one in await trail.verdicts()}
    assert await trail.broken(known=known) == []
    back = "UPDATE svc_audit_chains SET sequence = :sequence, mac = :mac, seal = :seal"
    await trail.tamper("DELETE FROM svc_audit_entries WHERE sequence = 3", (back, anchor))
    assert await trail.broken() == []  # the database alone cannot tell
    assert await trail.broken(known=known) == [("", 3)]
    await trail.write("d.done")
    assert await trail.broken() == []
    assert await trail.broken(known=known) == [("", 3)]


async def test_one_chain_can_be_checked_alone(trail: Trail) -> None:
    await written(trail)
    await trail.tamper(f"DELETE FROM svc_audit_entries WHERE {THIRD}")
    assert await trail.broken(tenant_id="globex") == []
    assert await trail.broken(tenant_id="") == []
    assert await trail.broken(tenant_id="acme") == [("acme", 3)]
    assert await trail.verdicts(tenant_id="nobody") == []


async def test_an_empty_trail_is_whole(trail: Trail) -> None:
    assert await trail.verdicts() == []


async def test_a_long_chain_is_read_in_parts(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svc_infra.security.audit.reading.BATCH_ENTRIES", 3)
    async with trail.db.session() as session:
        for _ in range(10):
            await trail.trail.record(session, "step.done")
    [whole] = await trail.verdicts()
    assert (whole.entries, whole.broken_at) == (10, None)
    assert [entry["sequence"] for entry in await trail.entries()] == list(range(1, 11))
    await trail.tamper("DELETE FROM svc_audit_entries WHERE sequence = 7")
    assert await trail.broken() == [("", 7)]


STEPS = st.lists(
    st.tuples(st.sampled_from(["edit", "delete", "move", "copy", "cut"]), st.integers(1, 6), st.integers(1, 6)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=15, deadline=None)
@given(steps=STEPS)
async def test_whatever_is_done_to_the_entries_the_first_difference_is_named(steps: list[tuple[str, int, int]]) -> None:
    """Against a model: the chain is a list, and it is whole only while it is the list that was written."""
    db = AsyncDatabase("sqlite://")
    await migrate.upgrade(db)
    keys = AuditKeys(KeyRing(SECRET))
    trail = Trail(db, keys, AuditTrail(keys, clock=FakeClock()), FakeClock())
    await trail.write(*(f"step.number_{letter}" for letter in "abcdef"))
    original = {number: (number, f"step.number_{'abcdef'[number - 1]}") for number in range(1, 7)}
    model: dict[int, tuple[int, str]] = dict(original)
    statements: list[Any] = []
    for kind, one, other in steps:
        if kind == "edit" and one in model:
            statements.append(f"UPDATE svc_audit_entries SET action = 'x.y' WHERE sequence = {one}")
            model[one] = (model[one][0], "x.y")
        elif kind == "delete":
            statements.append(f"DELETE FROM svc_audit_entries WHERE sequence = {one}")
            model.pop(one, None)
        elif kind == "move" and one in model and other not in model:
            statements.append(f"UPDATE svc_audit_entries SET sequence = {other} WHERE sequence = {one}")
            model[other] = model.pop(one)
        elif kind == "cut":
            statements.append(f"DELETE FROM svc_audit_entries WHERE sequence >= {one}")
            model = {place: entry for place, entry in model.items() if place < one}
    await trail.tamper(*statements)
    wrong = [place for place in range(1, 7) if model.get(place) != original[place]]
    assert await trail.broken() == ([("", wrong[0])] if wrong else [])
    await db.dispose()
