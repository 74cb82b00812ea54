from sqlalchemy import text

from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import current, pending, upgrade


async def test_tables(db: AsyncDatabase) -> None:
    assert await current(db)
    assert await pending(db) == []
    assert await upgrade(db) == []
    async with db.session() as s:
        await s.execute(text("select * from svc_outbox"))
