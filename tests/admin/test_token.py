"""The token: good for one login, for a while, until stopped; and nothing that is not it, to the last bit."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svc_infra.admin.impersonation import Impersonations, Target, Terms
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConflictError
from svc_infra.security import Cookies, Device, KeyRing, Principal, Sessions
from svc_infra.security.access import Policy
from svc_infra.security.audit import AuditKeys, AuditTrail
from svc_infra.security.models import User
from svc_infra.testing import FakeClock
from svc_infra.types import new_id
from tests.security.conftest import SECRET, sessions_for

TTL = 900
EXAMPLES = int(os.environ.get("ADMIN_HISTORIES", "12"))
POLICY = Policy()


@dataclass
class Room:
    """The room without HTTP: admins who are logged in."""

    db: AsyncDatabase
    clock: FakeClock = field(default_factory=FakeClock)
    name: str = "impersonation"

    def __post_init__(self) -> None:
        keys = KeyRing(SECRET)
        self.sessions: Sessions = sessions_for(self.db, keys, self.clock)
        self.cookies = Cookies(keys, clock=self.clock)
        trail, terms = AuditTrail(AuditKeys(keys), clock=self.clock), Terms(self.name, TTL)
        self.room = Impersonations(self.db, trail, POLICY, self.cookies, terms, clock=self.clock)
        self.sessions.on_end(self.room.logins_ended)

    async def admin(self) -> Principal:
        user_id = new_id()
        async with self.db.session() as session:
            session.add(User(id=user_id, email=f"{user_id}@example.com", is_active=True, roles=["admin"]))
            await session.flush()
            pair = await self.sessions.open(session, user_id, Device())
        return Principal(
            id=user_id,
            email="",
            roles=frozenset({"admin"}),
            permissions=POLICY.permissions(["admin"]),
            session_id=pair.session_id,
        )

    async def start(self, admin: Principal, user_id: UUID | None = None) -> str:
        target = Target(str(user_id or uuid4()), "", frozenset())
        async with self.db.session() as session:
            return await self.room.start(session, admin, target, reason="why", read_only=False)


@pytest.fixture
def room(db: AsyncDatabase) -> Room:
    return Room(db)


@pytest.fixture
def sqlite_room(sqlite_db: AsyncDatabase) -> Room:
    return Room(sqlite_db)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("show"), st.integers(0, 2), st.integers(0, 7)),  # who shows which token
        st.tuples(st.just("stop"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("log out"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("wait"), st.just(0), st.sampled_from([1, TTL - 1, TTL, 60])),
        st.tuples(st.just("sweep"), st.just(0), st.just(0)),
    ),
    max_size=20,
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_every_history_follows_the_rules(steps: list[tuple[str, int, int]], room: Room) -> None:
    """Against a model: a token is good for who began it, for its time, until the same login does anything else."""
    first = await room.admin()
    admins = [first, await room.admin(), await room.admin()]
    issued: list[tuple[int, str, UUID, float]] = []
    newest: dict[int, int] = {}  # by admin: the token that may be good
    for action, number, which in steps:
        admin = admins[number]
        assert admin.session_id is not None
        if action == "start":
            user_id = uuid4()
            token = await room.start(admin, user_id)
            newest[number] = len(issued)
            issued.append((number, token, user_id, room.clock.now().timestamp() + TTL))
        elif action == "show" and issued:
            place = which % len(issued)
            owner, token, user_id, expires = issued[place]
            found = await room.room.find(admin, token)
            is_good = owner == number and newest.get(number) == place and room.clock.now().timestamp() < expires
            assert (found.target_id if found is not None else None) == (str(user_id) if is_good else None)
        elif action == "wait":
            room.clock.advance(which)
        elif action == "sweep":
            async with room.db.session() as session:
                await room.room.end_expired(session)
        elif action in ("stop", "log out"):
            async with room.db.session() as session:
                if action == "stop":
                    await room.room.stop(session, admin.session_id)
                else:
                    await room.sessions.revoke(session, admin.session_id, reason="logout")
            newest.pop(number, None)
            if action == "log out":
                admins[number] = await room.admin()


async def test_no_byte_of_it_can_be_another(sqlite_room: Room) -> None:
    admin = await sqlite_room.admin()
    token = await sqlite_room.start(admin)
    assert await sqlite_room.room.find(admin, token) is not None
    for place, character in enumerate(token):
        for other in {"A", "_", "=", ".", " ", "\x00", "é", chr(ord(character) ^ 1), character.swapcase()} - {
            character
        }:
            changed = token[:place] + other + token[place + 1 :]
            assert await sqlite_room.room.find(admin, changed) is None, (place, other)
        assert await sqlite_room.room.find(admin, token[:place]) is None
        assert await sqlite_room.room.find(admin, token[:place] + token[place + 1 :]) is None
    for longer in (f"{token}=", f"{token} ", f" {token}", f"{token}.{token}", token * 2, "", "x" * 100_000, "\ud800"):
        assert await sqlite_room.room.find(admin, longer) is None
    assert await sqlite_room.room.find(admin, token) is not None


async def test_it_says_what_is_documented_and_no_two_are_alike(sqlite_room: Room) -> None:
    admin, user_id = await sqlite_room.admin(), uuid4()
    tokens = [await sqlite_room.start(admin, user_id) for _ in range(2)]
    said = []
    for token in tokens:
        value = token.split(".")[0]
        said.append(json.loads(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))))
    assert set(said[0]) == {"actor_id", "target_id", "session_id", "issued_at", "expires_at", "nonce"}
    assert (said[0]["actor_id"], said[0]["target_id"]) == (str(admin.id), str(user_id))
    assert said[0]["expires_at"] - said[0]["issued_at"] == TTL
    assert said[0]["nonce"] != said[1]["nonce"]


async def test_what_is_signed_but_not_in_the_table_opens_nothing(sqlite_room: Room) -> None:
    """Also who has the secret needs a row: a forged claim differs from it, and an old one has ended."""
    admin, other = await sqlite_room.admin(), await sqlite_room.admin()
    token = await sqlite_room.start(admin)
    login = str(admin.session_id)
    value = sqlite_room.cookies.verify("impersonation", token, subject=login)
    claims = json.loads(value or "")

    def signed(subject: str = login, name: str = "impersonation", **changed: object) -> str:
        text = json.dumps({**claims, **changed})
        return sqlite_room.cookies.sign(name, text, max_age_seconds=9000, subject=subject)

    assert await sqlite_room.room.find(admin, signed()) is not None
    for changed in (
        {"actor_id": str(other.id)},
        {"target_id": str(other.id)},
        {"session_id": str(other.session_id)},
        {"expires_at": claims["expires_at"] + 1},
        {"issued_at": claims["issued_at"] - 1},
        {"nonce": uuid4().hex},
        {"more": 1},
    ):
        assert await sqlite_room.room.find(admin, signed(**changed)) is None, changed
    assert await sqlite_room.room.find(admin, signed(name="another")) is None
    as_other = signed(str(other.session_id), session_id=str(other.session_id), actor_id=str(other.id))
    assert await sqlite_room.room.find(other, as_other) is None
    sqlite_room.clock.advance(TTL)  # whatever the cookie says
    assert await sqlite_room.room.find(admin, signed()) is None


async def test_of_many_that_begin_at_once_with_one_login_one_is_good(room: Room) -> None:
    admin = await room.admin()
    answers = await asyncio.gather(*(room.start(admin) for _ in range(8)), return_exceptions=True)
    tokens = [answer for answer in answers if isinstance(answer, str)]
    assert all(isinstance(answer, ConflictError) for answer in answers if not isinstance(answer, str)), answers
    good = [token for token in tokens if await room.room.find(admin, token) is not None]
    assert len(good) == 1
