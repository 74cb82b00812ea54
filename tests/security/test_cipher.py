from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import MetaData, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typer.testing import CliRunner

from svc_infra.cli.app import commands
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.columns import HasId
from svc_infra.errors import ConfigurationError, SvcInfraError
from svc_infra.security import EncryptedField, FieldCipher, KeyRing
from svc_infra.security.audit import AuditKeys, verify
from svc_infra.security.cipher import SealedColumns
from svc_infra.webhooks.models import WebhookEndpoint
from svc_infra.webhooks.subscribe import secret_context
from svc_infra.wiring import Wiring
from tests.security.conftest import SECRET

NEWER = SecretStr("another secret of more than 32 bytes, at last")
CIPHER = FieldCipher(KeyRing(SECRET))


class Base(DeclarativeBase):
    metadata = MetaData()


class Note(HasId, Base):
    __tablename__ = "notes"

    text: Mapped[str | None] = mapped_column(EncryptedField("notes.text"))
    other: Mapped[str | None] = mapped_column(EncryptedField("notes.other"))


@given(plain=st.text(alphabet=st.characters(exclude_categories=["Cs"])), context=st.text(max_size=20))
def test_what_was_sealed_opens_where_it_belongs_and_nowhere_else(plain: str, context: str) -> None:
    if not context.isprintable():
        context = "notes"
    sealed = CIPHER.seal(plain, context=context)
    assert CIPHER.open(sealed, context=context) == plain
    with pytest.raises(SvcInfraError):
        CIPHER.open(sealed, context=context + "x")


def test_sealing_twice_gives_two_texts() -> None:
    assert CIPHER.seal("a") != CIPHER.seal("a")


@pytest.mark.parametrize("sealed", ["", ".", "plain", "0000000000000000.AAAA", "é"])
def test_what_another_key_sealed_names_the_mend(sealed: str) -> None:
    with pytest.raises(ConfigurationError, match="_PREVIOUS"):
        CIPHER.open(sealed)


@pytest.mark.parametrize("cut", ["", "A", "AAAA", "!" * 40, "é" * 40])
def test_what_was_changed_does_not_open(cut: str) -> None:
    name = CIPHER.seal("a").partition(".")[0]
    with pytest.raises(SvcInfraError, match="changed"):
        CIPHER.open(f"{name}.{cut}")


def test_a_cipher_of_another_purpose_has_other_keys() -> None:
    with pytest.raises(ConfigurationError):
        FieldCipher(KeyRing(SECRET), "other").open(CIPHER.seal("a"))


def test_the_newest_key_seals_and_all_of_them_open() -> None:
    both = FieldCipher(KeyRing(NEWER, SECRET))
    old = CIPHER.seal("a", context="c")
    assert both.open(old, context="c") == "a"
    new = both.resealed(old, context="c")
    assert FieldCipher(KeyRing(NEWER)).open(new, context="c") == "a"
    assert both.resealed(new, context="c") == new


def wired(*secrets: SecretStr) -> Wiring:
    wiring = Wiring(Settings())
    wiring.provide(FieldCipher, FieldCipher(KeyRing(*secrets)))
    return wiring


@pytest.fixture
async def notes_db(db: AsyncDatabase) -> AsyncDatabase:
    async with db.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return db


async def test_a_column_is_sealed_in_the_database_and_plain_in_python(notes_db: AsyncDatabase) -> None:
    with wired(SECRET).active():
        async with notes_db.session() as session:
            session.add(note := Note(text="geheim 🐎"))
        async with notes_db.session(read_only=True) as session:
            [stored] = (await session.execute(text("SELECT text FROM notes"))).scalars()
            assert "geheim" not in stored
            found = await session.get_one(Note, note.id)
            assert (found.text, found.other) == ("geheim 🐎", None)
        async with notes_db.session() as session:
            await session.execute(text("UPDATE notes SET other = text"))
        with pytest.raises(SvcInfraError):
            async with notes_db.session(read_only=True) as session:
                await session.get_one(Note, note.id)
    with pytest.raises(Exception, match="outside of any app"):
        async with notes_db.session(read_only=True) as session:
            await session.get_one(Note, note.id)


async def test_after_a_rotation_the_old_key_can_go(notes_db: AsyncDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svc_infra.security.cipher.rotation.BATCH_ROWS", 3)
    with wired(SECRET).active():
        async with notes_db.session() as session:
            session.add_all([Note(id=uuid4(), text=f"note {number}") for number in range(7)])
            session.add(Note(other="alone"))
    both = FieldCipher(KeyRing(NEWER, SECRET))
    counted = await SealedColumns(both).rotate(notes_db)
    assert {name: count for name, count in counted.items() if name.startswith("notes.")} == {
        "notes.text": 7,
        "notes.other": 1,
    }
    assert sum((await SealedColumns(both).rotate(notes_db)).values()) == 0
    with wired(NEWER).active():
        async with notes_db.session(read_only=True) as session:
            found = (await session.execute(Note.__table__.select())).all()
    assert sorted(str(row.text) for row in found) == sorted([*(f"note {number}" for number in range(7)), "None"])


async def test_a_value_whose_key_is_lost_stops_the_rotation_and_stays(notes_db: AsyncDatabase) -> None:
    with wired(SECRET).active():
        async with notes_db.session() as session:
            session.add(Note(text="a"))
    with pytest.raises(ConfigurationError):
        await SealedColumns(FieldCipher(KeyRing(NEWER))).rotate(notes_db)
    with wired(SECRET).active():
        async with notes_db.session(read_only=True) as session:
            assert (await session.execute(Note.__table__.select())).one().text == "a"


APP = """
from svc_infra import create_app
from svc_infra.db.add import add_db
from svc_infra.jobs.add import add_jobs
from svc_infra.mail import add_mail
from svc_infra.security.add import add_auth_users
from svc_infra.tenancy.add import add_tenancy
from svc_infra.webhooks.add import add_webhooks

def create():
    app = create_app()
    for add in (add_db, add_jobs, add_mail, add_auth_users, add_tenancy, add_webhooks):
        add(app)
    return app
"""


def test_the_command_seals_everything_anew(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rotated_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    old, new = SECRET.get_secret_value(), NEWER.get_secret_value()
    monkeypatch.setenv("SQL_URL", sqlite_url)
    monkeypatch.setenv("APP_ENV", "test")
    for name in ("AUTH_SECRET", "WEBHOOKS_KEY"):
        monkeypatch.setenv(name, old)
    run = CliRunner().invoke
    assert run(commands(), ["secrets", "rotate", "rotated_app:create"]).exit_code == 0
    endpoint_id = uuid4()

    async def add_endpoint() -> None:
        db = AsyncDatabase(sqlite_url)
        sealed = FieldCipher(KeyRing(SECRET), "webhooks").seal("whsec_a", context=secret_context(endpoint_id))
        async with db.session() as session:
            session.add(
                WebhookEndpoint(
                    id=endpoint_id, tenant_id="t", url="https://x.example", topics=["*"], sealed_secret=sealed
                )
            )
        await db.dispose()

    async def look() -> str:
        db = AsyncDatabase(sqlite_url)
        async with db.session(read_only=True) as session:
            endpoint = await session.get_one(WebhookEndpoint, endpoint_id)
            verdicts = await verify(session, AuditKeys(KeyRing(NEWER, SECRET)))
            assert [one.broken_at for one in verdicts] == [None]
        await db.dispose()
        return FieldCipher(KeyRing(NEWER), "webhooks").open(endpoint.sealed_secret, context=secret_context(endpoint_id))

    asyncio.run(add_endpoint())
    for name in ("AUTH_SECRET", "WEBHOOKS_KEY"):
        monkeypatch.setenv(name, new)
        monkeypatch.setenv(f"{name}_PREVIOUS", old)
    done = run(commands(), ["secrets", "rotate", "rotated_app:create"])
    assert done.exit_code == 0, done.output
    assert "svc_webhook_endpoints.sealed_secret: 1 values sealed anew." in done.output
    assert "1 audit chains sealed anew." in done.output
    assert asyncio.run(look()) == "whsec_a"
