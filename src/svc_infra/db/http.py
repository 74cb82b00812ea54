"""The app's database as FastAPI dependencies."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db.database import AsyncDatabase
from svc_infra.wiring import wiring_of

__all__ = ["DbSession", "ReadSession", "get_db"]

_SESSION = "svc_infra.db.session"


async def get_db(connection: HTTPConnection) -> AsyncDatabase:
    """The app's database.

    Raises:
        ConfigurationError: `add_db(app)` was not called.
    """
    return wiring_of(connection.app).get(AsyncDatabase)


def session_of(connection: HTTPConnection) -> AsyncSession | None:
    """The unit of work that this request's handler or one of its dependencies was given; None when none was."""
    session: AsyncSession | None = connection.scope.get(_SESSION)
    return session


async def _writing(
    connection: HTTPConnection, db: Annotated[AsyncDatabase, Depends(get_db)]
) -> AsyncIterator[AsyncSession]:
    async with db.session() as session:
        connection.scope[_SESSION] = session
        yield session


async def _reading(db: Annotated[AsyncDatabase, Depends(get_db)]) -> AsyncIterator[AsyncSession]:
    async with db.session(read_only=True) as session:
        yield session


DbSession = Annotated[AsyncSession, Depends(_writing, scope="function")]
"""The request's unit of work: commits when the handler returns, before the response is sent, so a commit that fails is
an error response; rolls back when the handler raises. A response that streams is sent after it has ended."""

ReadSession = Annotated[AsyncSession, Depends(_reading, scope="function")]
"""Like `DbSession`, for handlers that only read: writes are refused."""
