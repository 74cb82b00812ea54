from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, text

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase, write_last
from svc_infra.db.add import add_db
from svc_infra.errors import ConfigurationError, ConflictError, SvcInfraError
from svc_infra.obs.context import Context, enter, leave
from svc_infra.security import audit
from svc_infra.security.audit import AuditEntry, AuditKeys, AuditTrail
from svc_infra.security.audit.add import add_audit
from svc_infra.security.audit.models import AuditChain
from svc_infra.security.keyring import KeyRing
from svc_infra.testing import FakeClock
from svc_infra.types import Clock
from svc_infra.wiring import wiring_of
from tests.security.audit.conftest import Trail, actions_of
from tests.security.conftest import SECRET, running


async def test_an_entry_says_who_did_what_from_where_in_which_request(trail: Trail, as_ana: Context) -> None:
    await trail.write("invoice.voided", target="invoice:42", before={"state": "open"}, after={"state": "void"})
    [entry] = await trail.entries()
    assert {name: entry[name] for name in entry if name not in ("id", "key_id", "mac")} == {
        "tenant_id": "",
        "sequence": 1,
        "at": trail.clock.now().isoformat(),
        "action": "invoice.voided",
        "outcome": "success",
        "actor_id": "ana",
        "acting_as": "",
        "api_key_id": "",
        "target": "invoice:42",
        "client_ip": "192.0.2.7",
        "request_id": "r-1",
        "trace_id": "t" * 32,
        "before": '{"state":"open"}',
        "after": '{"state":"void"}',
    }


async def test_who_acts_as_somebody_else_is_the_one_who_did_it(trail: Trail) -> None:
    token = enter(Context(principal_id="ana", actor_id="admin"))
    await trail.write("profile.changed")
    leave(token)
    [entry] = await trail.entries()
    assert (entry["actor_id"], entry["acting_as"]) == ("admin", "ana")


async def test_what_is_done_with_a_key_names_the_key(trail: Trail) -> None:
    token = enter(Context(principal_id="ana", api_key_id="key-1"))
    await trail.write("profile.changed")
    leave(token)
    await trail.write("profile.changed")
    assert [entry["api_key_id"] for entry in await trail.entries()] == ["key-1", ""]
    assert await trail.broken() == []


async def test_an_entry_belongs_to_the_tenant_in_context_unless_another_one_is_named(trail: Trail) -> None:
    token = enter(Context(tenant_id="acme"))
    async with trail.db.session() as session:
        await trail.trail.record(session, "ticket.closed")
        await trail.trail.record(session, "ticket.moved", tenant_id="globex")
        await trail.trail.record(session, "service.changed", tenant_id="")
    leave(token)
    assert actions_of(await trail.entries("acme")) == ["ticket.closed"]
    assert actions_of(await trail.entries("globex")) == ["ticket.moved"]
    own = await trail.entries("")
    assert actions_of(own) == ["audit.chain_started", "audit.chain_started", "service.changed"]
    assert [entry["target"] for entry in own[:2]] == ["tenant:acme", "tenant:globex"]


async def test_only_what_changed_is_kept_and_no_secret(trail: Trail) -> None:
    before = {"name": "Ana", "email": "old@example.com", "password_hash": "argon-old", "note": "token=abc"}
    await trail.write("user.changed", before=before, after={**before, "email": "new@example.com", "password_hash": "x"})
    await trail.write("user.made", after=before)
    changed, made = await trail.entries()
    assert json.loads(changed["before"]) == {"email": "old@example.com", "password_hash": "[redacted]"}
    assert json.loads(changed["after"]) == {"email": "new@example.com", "password_hash": "[redacted]"}
    assert made["before"] is None
    assert json.loads(made["after"])["note"] == "token=[redacted]"


async def test_a_change_that_is_too_large_keeps_its_names(trail: Trail) -> None:
    await trail.write("import.done", after={f"field {number}": "x" * 10_000 for number in range(10)})
    [entry] = await trail.entries()
    assert json.loads(entry["after"]) == {f"field {number}": "[cut]" for number in range(10)}


@pytest.mark.parametrize("odd", ["\x00 zero", "\ud800 half", "ü" * 500, "'; DROP TABLE svc_users; --", "\u202e"])
async def test_any_text_is_stored_and_still_verifies(odd: str, trail: Trail) -> None:
    token = enter(Context(principal_id="ana", request_id=odd, client_ip=odd))
    await trail.write("thing.done", target=odd, before={odd: odd}, after={odd: 1e22, "inf": float("inf")})
    leave(token)
    assert len(await trail.entries()) == 1
    assert await trail.broken() == []


async def test_an_entry_goes_with_the_rollback_of_its_unit_of_work(trail: Trail) -> None:
    for statement in ("SELECT 1", None):
        with pytest.raises(KeyError):
            async with trail.db.session() as session:
                await trail.trail.record(session, "thing.done")
                if statement:
                    await session.execute(text(statement))
                raise KeyError
        async with trail.db.session() as session:
            await trail.trail.record(session, "thing.done")
            await session.rollback()
    assert await trail.entries(None) == []


async def test_an_entry_goes_with_its_savepoint_and_no_other_does(trail: Trail) -> None:
    async with trail.db.session() as session:
        await trail.trail.record(session, "first.done")
        with pytest.raises(KeyError):
            async with session.begin_nested():
                await trail.trail.record(session, "second.done")
                async with session.begin_nested():
                    await trail.trail.record(session, "third.done")
                raise KeyError
        async with session.begin_nested():
            await trail.trail.record(session, "fourth.done")
    assert actions_of(await trail.entries()) == ["first.done", "fourth.done"]


async def test_a_unit_of_work_that_only_records_is_committed(trail: Trail) -> None:
    async with trail.db.session() as session:
        await trail.trail.record(session, "thing.done")
    assert len(await trail.entries()) == 1


async def test_when_an_entry_cannot_be_written_nothing_is_committed(trail: Trail) -> None:
    await trail.tamper("ALTER TABLE svc_audit_entries RENAME TO gone")
    with pytest.raises(SvcInfraError):
        async with trail.db.session() as session:
            await session.execute(text("CREATE TABLE made (x integer)"))
            await trail.trail.record(session, "thing.done")
    async with trail.db.session() as session:
        await session.execute(text("CREATE TABLE made (x integer)"))  # it is not there


async def test_the_chain_is_locked_for_the_commit_alone(postgres_db: AsyncDatabase) -> None:
    trail = AuditTrail(AuditKeys(KeyRing(SECRET)))
    async with postgres_db.session() as slow:
        await trail.record(slow, "report.made")
        await slow.execute(text("SELECT 1"))
        async with asyncio.timeout(10), postgres_db.session() as quick:
            await trail.record(quick, "ticket.closed")
    async with postgres_db.session(read_only=True) as session:
        found = await session.scalars(select(AuditEntry.action).order_by(AuditEntry.sequence))
        assert list(found) == ["ticket.closed", "report.made"]


@pytest.mark.parametrize("tenants", [1, 3])
async def test_fifty_writers_at_once_make_one_chain_without_a_gap(
    tenants: int, postgres_db: AsyncDatabase, clock: FakeClock
) -> None:
    keys = AuditKeys(KeyRing(SECRET))
    world = Trail(postgres_db, keys, AuditTrail(keys, clock=clock), clock)

    async def write(number: int) -> None:
        async with postgres_db.session() as session:
            for part in range(2):
                await world.trail.record(
                    session, "thing.done", target=f"{number}.{part}", tenant_id=f"t{number % tenants}"
                )
            await world.trail.record(session, "other.done", tenant_id=f"t{(number + 1) % tenants}")

    await asyncio.gather(*(write(number) for number in range(50)))
    assert await world.broken() == []
    chains = [await world.entries(f"t{number}") for number in range(tenants)]
    assert sum(map(len, chains)) == 150
    for chain in chains:
        assert [entry["sequence"] for entry in chain] == list(range(1, len(chain) + 1))


async def test_the_database_gives_out_no_place_twice(trail: Trail) -> None:
    await trail.write("thing.done")
    [entry] = await trail.entries()
    with pytest.raises(ConflictError):
        async with trail.db.session() as session:
            session.add(AuditEntry(**{**entry, "id": uuid4(), "at": trail.clock.now()}))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE svc_audit_entries SET action = 'nothing.done'",
        "DELETE FROM svc_audit_entries",
        "DELETE FROM svc_audit_chains",
        "UPDATE svc_audit_chains SET sequence = 0",
        "UPDATE svc_audit_chains SET tenant_id = 'other'",
    ],
)
async def test_the_database_refuses_to_change_what_was_written(statement: str, trail: Trail) -> None:
    await trail.write("thing.done")
    with pytest.raises(ConflictError):
        async with trail.db.session() as session:
            await session.execute(text(statement))
    assert actions_of(await trail.entries()) == ["thing.done"]
    assert await trail.broken() == []


@pytest.mark.parametrize("table", ["svc_audit_entries", "svc_audit_chains"])
async def test_postgresql_refuses_to_empty_the_tables(table: str, postgres_db: AsyncDatabase) -> None:
    with pytest.raises(ConflictError):
        async with postgres_db.session() as session:
            await session.execute(text(f"TRUNCATE {table}"))


@pytest.mark.parametrize("action", ["", "done", "Invoice.voided", "invoice.", "invoice voided", "a." + "b" * 100])
async def test_an_action_of_another_form_is_refused(action: str, trail: Trail) -> None:
    async with trail.db.session() as session:
        with pytest.raises(ConfigurationError):
            await trail.trail.record(session, action)


async def test_entries_of_an_older_secret_verify_and_new_ones_are_signed_with_the_newest(trail: Trail) -> None:
    await trail.write("first.done", "second.done")
    newer = AuditKeys(KeyRing(SecretStr("another secret of more than 32 bytes, at last"), SECRET))
    rotated = Trail(trail.db, newer, AuditTrail(newer, clock=trail.clock), trail.clock)
    await rotated.write("third.done")
    assert await rotated.broken() == []
    found = await rotated.entries()
    assert [entry["key_id"] == newer.newest for entry in found] == [False, False, True]


async def test_a_chain_whose_secret_is_lost_is_not_written_to_until_it_is_back(trail: Trail) -> None:
    await trail.write("first.done")
    lost = AuditKeys(KeyRing(SecretStr("another secret of more than 32 bytes, at last")))
    without = Trail(trail.db, lost, AuditTrail(lost), trail.clock)
    with pytest.raises(ConfigurationError, match="AUTH_SECRETS_RETIRED"):
        await without.write("second.done")
    assert await without.broken() == [("", 1)]


async def test_sealing_again_lets_a_secret_go_for_writing(trail: Trail) -> None:
    await trail.write("first.done")
    await trail.write("second.done", tenant_id="acme")
    newer = SecretStr("another secret of more than 32 bytes, at last")
    both = AuditTrail(AuditKeys(KeyRing(newer, SECRET)))
    async with trail.db.session() as session:
        assert await both.reseal(session) == 2
    async with trail.db.session() as session:
        await AuditTrail(AuditKeys(KeyRing(newer))).record(session, "third.done")
    assert [one.broken_at for one in await trail.verdicts(AuditKeys(KeyRing(newer, SECRET)))] == [None, None]


async def test_the_port_writes_to_the_trail_of_the_app_that_runs_here(
    sqlite_db: AsyncDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_SECRETS_RETIRED", f"\n  something that was used long ago \n{SECRET.get_secret_value()}")
    older = AuditTrail(AuditKeys(KeyRing(SECRET)))
    async with sqlite_db.session() as session:
        await older.record(session, "first.done")
    app = create_app(settings=Settings(app={"env": "test"}))
    add_db(app, database=sqlite_db)
    add_audit(app)
    add_audit(app)
    wiring_of(app).provide(Clock, clock)
    async with sqlite_db.session() as session:
        with pytest.raises(ConfigurationError, match="outside of any app"):
            await audit.record(session, "thing.done")
    async with running(app, clock):
        with wiring_of(app).active():
            async with sqlite_db.session() as session:
                await audit.record(session, "thing.done", target="thing:1")
    async with sqlite_db.session(read_only=True) as session:
        assert await session.scalar(select(func.count()).select_from(AuditEntry)) == 2
        assert (await session.get_one(AuditChain, "")).sequence == 2


async def test_a_request_leaves_its_address_and_id(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = create_app(settings=Settings(app={"env": "test"}))
    add_db(app, database=sqlite_db)
    add_audit(app)

    @app.post("/things")
    async def make() -> None:
        async with sqlite_db.session() as session:
            await audit.record(session, "thing.made")

    async with running(app, clock) as client:
        await client.http.post("/things", headers={"X-Request-Id": "mine"})
    async with sqlite_db.session(read_only=True) as session:
        entry = await session.get_one(AuditEntry, ("", 1))
        assert (entry.client_ip, entry.request_id) == ("127.0.0.1", "mine")


async def test_the_same_function_writes_all_its_items_at_once_and_what_it_adds_too(db: AsyncDatabase) -> None:
    seen: list[list[Any]] = []

    async def inner(session: Any, items: list[Any]) -> None:
        seen.append(items)

    async def outer(session: Any, items: list[Any]) -> None:
        seen.append(items)
        write_last(session, inner, "more")

    async with db.session() as session:
        write_last(session, outer, 1)
        write_last(session, inner, 2)
        write_last(session, outer, 3)
    assert seen == [[1, 3], [2], ["more"]]
    with pytest.raises(ConfigurationError):
        write_last(Path(), outer, 1)  # type: ignore[arg-type]
