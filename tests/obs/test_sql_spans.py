"""Statements as parts of a trace, and what of them is shown."""

from __future__ import annotations

import asyncio
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import column, create_engine, insert, select, table, text
from sqlalchemy.ext.asyncio import create_async_engine

from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.errors import SvcInfraError, UnavailableError
from svc_infra.obs.add import add_observability
from svc_infra.obs.metrics import Metrics
from svc_infra.obs.tracing.sql import MAX_STATEMENT_CHARS, without_values
from svc_infra.wiring import wiring_of
from tests.middleware.asgi import call, lifespan
from tests.obs.test_add import labels, scrape
from tests.obs.traced_app import KEPT, NOT_KEPT, Kept, id_of, parent_of, service

USERS = table("users", column("id"), column("name"))


async def test_statements_of_a_trace_that_is_kept_are_spans_without_values(db: AsyncDatabase) -> None:
    kept = Kept()
    app = service(kept)
    add_db(app, database=db)

    @app.get("/sql")
    async def sql() -> None:
        async with db.session() as session:
            await session.execute(text("CREATE TABLE users (id int, name text)"))
            await session.execute(insert(USERS), [{"id": 1, "name": "secret"}, {"id": 2, "name": "secret"}])
        async with db.session(read_only=True) as session:
            await session.execute(select(USERS).where(USERS.c.name == "secret"))
            await session.execute(text("SELECT 'secret', 12345 /* secret */ FROM users -- secret"))
        async with db.session() as session:
            with pytest.raises(Exception, match="nowhere"):
                await session.execute(text("SELECT 'secret' FROM nowhere"))
            await session.rollback()

    async with lifespan(app):
        await call(app, "GET", "/sql", headers=[KEPT])
        async with db.session() as session:
            await session.execute(text("DROP TABLE users"))
        await call(app, "GET", "/sql", headers=[NOT_KEPT])
    request = kept.named("GET /sql")
    statements = [one for one in kept.get_finished_spans() if one is not request]
    seen = [(one.attributes or {})["db.operation.name"] for one in statements]
    assert seen == ["CREATE", "INSERT", "SELECT", "SELECT", "SELECT"]
    for one in statements:
        attributes = one.attributes or {}
        assert (one.kind, parent_of(one)) == (SpanKind.CLIENT, id_of(request))
        assert attributes["db.system.name"] == attributes["db.system"] == db.dialect
        assert "secret" not in one.to_json()
        assert "12345" not in str(attributes["db.query.text"])
    assert [one.status.status_code for one in statements] == [StatusCode.UNSET] * 4 + [StatusCode.ERROR]
    assert str((statements[3].attributes or {})["db.query.text"]) == "SELECT ?, ?  FROM users"


async def test_a_statement_that_is_cancelled_ends_its_span(postgres_db: AsyncDatabase) -> None:
    kept = Kept()
    app = service(kept)
    add_db(app, database=postgres_db)

    @app.get("/slow")
    async def slow() -> None:
        try:
            async with asyncio.timeout(0.1), postgres_db.session() as session:
                await session.execute(text("SELECT pg_sleep(60)"))
        except (TimeoutError, SvcInfraError):
            return

    async with lifespan(app):
        await call(app, "GET", "/slow", headers=[KEPT])
    assert parent_of(kept.named(f"SELECT {postgres_db.url.database}")) == id_of(kept.named("GET /slow"))


async def test_pools_are_shown_by_the_name_of_their_engine(db: AsyncDatabase, tmp_path: object) -> None:
    app = service(Kept())
    add_db(app, database=db)
    other, third = create_async_engine("sqlite+aiosqlite:///:memory:"), create_engine(f"sqlite:///{tmp_path}/x.db")
    add_observability(app, db_engines={"reports": third})
    add_observability(app, db_engines=[other])
    async with lifespan(app), db.session() as session:
        await session.execute(text("SELECT 1"))
        samples = await scrape(app)
    names = {"db", "reports"} | ({"db_reader"} if db.dialect == "sqlite" else set())
    sizes = {dict(pairs)["engine"]: value for (name, pairs), value in samples.items() if name == "db_pool_size"}
    assert set(sizes) == names
    assert samples["db_pool_checked_out", labels(engine="db")] == 1
    assert samples["db_pool_overflow", labels(engine="db")] == 0
    assert samples["db_pool_waiting", labels(engine="db")] == 0
    await other.dispose()
    third.dispose()


async def test_who_waits_for_a_connection_and_who_gets_none_is_counted(sqlite_url: str) -> None:
    app = service(Kept())
    db = AsyncDatabase(sqlite_url, pool_timeout=0.5)
    add_db(app, database=db)
    metrics = wiring_of(app).get(Metrics).registry

    async def write() -> None:
        async with db.session() as session:
            await session.execute(text("SELECT 1"))

    async with db.session() as session:
        await session.execute(text("SELECT 1"))
        second = asyncio.create_task(write())
        while metrics.get_sample_value("db_pool_waiting", {"engine": "db"}) != 1:
            await asyncio.sleep(0)
        with pytest.raises(UnavailableError):
            await second
    assert metrics.get_sample_value("db_pool_waiting", {"engine": "db"}) == 0
    assert metrics.get_sample_value("db_pool_timeouts_total", {"engine": "db"}) == 1
    await db.dispose()


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT * FROM t WHERE a = 'x' AND b = 12.5e3", "SELECT * FROM t WHERE a = ? AND b = ?"),
        ("SELECT t1.a2 FROM t1 WHERE c = $1::VARCHAR AND d = :d_1 AND e = ?", None),
        ("SELECT 'it''s', E'a\\'b', 'C:\\' , 'z'", "SELECT ?, ?, ? , ?"),
        ("SELECT $$secret$$, $tag$se$$cret$tag$, x'ff', N'ü', U&'a'", "SELECT ?, ?, ?, ?, ?"),
        ('SELECT "My Col""umn 1", -5, 0xFF FROM "T 1"', 'SELECT "My Col""umn 1", -?, ? FROM "T 1"'),
        ("SELECT 1 -- secret\nFROM t /* secret */", "SELECT ? \nFROM t"),
        ("SELECT 1 /* a /* b */ secret */", "SELECT ?"),
        ("SELECT 'never ends, secret", "SELECT ?"),
        ("SELECT %(name)s, a::int, b[1]", "SELECT %(name)s, a::int, b[?]"),
        ("INSERT INTO t VALUES (1,'a'),(2,'b')", "INSERT INTO t VALUES (?,?),(?,?)"),
    ],
)
def test_a_statement_is_shown_without_its_values(statement: str, shown: str | None) -> None:
    assert without_values(statement) == (statement if shown is None else shown)


@given(st.lists(st.text(alphabet="ab1 '\"$-/*\\\n", max_size=12), max_size=6))
def test_no_string_gets_out(strings: list[str]) -> None:
    quoted = ", ".join("'" + one.replace("'", "''") + "'" for one in strings)
    assert without_values(f"SELECT {quoted} FROM t") == f"SELECT {', '.join('?' for _ in strings)} FROM t"


@pytest.mark.parametrize("part", ["'", "/*", "$$", "$a$", "--", "''", "e'\\", '"', "a.", "1.", "/* */", "U&'"])
def test_a_hostile_statement_takes_no_time(part: str) -> None:
    started = process_time()
    without_values((part * MAX_STATEMENT_CHARS)[:MAX_STATEMENT_CHARS])
    assert process_time() - started < 1
    assert without_values("x" * (MAX_STATEMENT_CHARS + 1)) == ""
