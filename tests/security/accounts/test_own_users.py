"""An app whose users are a model of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import MetaData, String, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.db.columns import NAMING
from svc_infra.errors import ConfigurationError, ConflictError
from svc_infra.security import Accounts, HasAccount, MailQueue, Organizations
from svc_infra.security.add import add_auth_users
from svc_infra.testing import FakeClock
from svc_infra.types import Clock
from svc_infra.wiring import wiring_of
from tests.security.conftest import Mailbox, running

REVISION = """
import sqlalchemy as sa
from alembic import op
from svc_infra.db.columns import UtcDateTime
from svc_infra.security.references import refer_to_users
revision, down_revision = "0001_people", None

def upgrade():
    op.create_table(
        "people",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("email", sa.String(320), nullable=False, unique=True),
        sa.Column("password_hash", sa.String(255)),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("is_verified", sa.Boolean(), nullable=False),
        sa.Column("roles", sa.JSON(), nullable=False),
        sa.Column("last_login_at", UtcDateTime()),
        sa.Column("disabled_reason", sa.String(200)),
        sa.Column("city", sa.String(50), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
    )
    REFER

def downgrade():
    op.drop_table("people")
"""


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)


class Person(HasAccount, Base):
    __tablename__ = "people"

    city: Mapped[str] = mapped_column(String(50), default="Rome")


class PersonProfile(BaseModel):
    city: str = "Rome"


def app_with_people(url: str, folder: Path, clock: FakeClock, *, refer: str = 'refer_to_users("people")') -> FastAPI:
    migrations = folder / "migrations"
    migrations.mkdir()
    (migrations / "0001_people.py").write_text(REVISION.replace("REFER", refer))
    app = create_app(settings=Settings(app={"env": "test"}, auth={"hash_memory_kib": 64, "hash_passes": 1}))
    add_db(app, url=url, migrations=migrations)
    add_auth_users(app, user_model=Person, profile=PersonProfile)
    wiring_of(app).provide(MailQueue, Mailbox())
    wiring_of(app).provide(Clock, clock)
    return app


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_everything_works_on_the_apps_own_table(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock
) -> None:
    app = app_with_people(request.getfixturevalue(f"{engine}_url"), tmp_path, clock)
    async with running(app, clock) as client:
        person_id = await client.register()
        ana = await client.log_in()
        token = client.mailbox.token("verify", "ana@example.com")
        assert (await client.http.post("/auth/verify", json={"token": token})).status_code == 204
        changed = await client.http.patch("/auth/me", json={"city": "Oslo"}, headers=ana.bearer)
        assert changed.json() == {
            "id": str(person_id),
            "email": "ana@example.com",
            "roles": [],
            "is_verified": True,
            "city": "Oslo",
        }
        db = wiring_of(app).get(AsyncDatabase)
        async with db.session() as session:
            person = await session.get_one(Person, person_id)
            person.roles.append("admin")
            acme = await Organizations(session).create(name="Acme", owner_id=person_id)
        assert (await ana.get("/auth/me")).json()["roles"] == ["admin"]
        assert (await ana.refresh()).status_code == 200
        accounts = wiring_of(app).get(Accounts)
        with pytest.raises(ConflictError, match="only owner"):
            async with db.session() as session:
                await accounts.delete(session, person_id)
        async with db.session() as session:
            await Organizations(session).delete(acme.id)
            await accounts.delete(session, person_id)
        async with db.session(read_only=True) as session:
            for table in ("people", "svc_users", "svc_sessions", "svc_memberships", "svc_account_links"):
                assert await session.scalar(select(func.count()).select_from(text(table))) == 0, table


async def test_an_app_whose_logins_refer_to_other_users_does_not_start(
    sqlite_url: str, tmp_path: Path, clock: FakeClock
) -> None:
    app = app_with_people(sqlite_url, tmp_path, clock, refer="pass")
    with pytest.raises(ConfigurationError, match=r"refer_to_users\('people'\)"):
        async with running(app, clock):
            pass


class Required(BaseModel):
    city: str


class Stolen(BaseModel):
    roles: list[str] = []


class Unknown(BaseModel):
    country: str = ""


@pytest.mark.parametrize("profile", [Required, Stolen, Unknown])
def test_a_profile_that_does_not_fit_the_users_is_refused(profile: type[BaseModel]) -> None:
    with pytest.raises(ConfigurationError, match="profile"):
        add_auth_users(create_app(settings=Settings()), user_model=Person, profile=profile)
