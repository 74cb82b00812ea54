"""An app whose effects can be counted. Tests run it in processes of its own: `python -m ... <listening socket>`."""

from __future__ import annotations

import socket
import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import text

from svc_infra import create_app
from svc_infra.db.add import add_db
from svc_infra.db.http import DbSession
from svc_infra.idempotency.add import add_idempotency
from svc_infra.idempotency.http import Idempotent

INSERT = text("INSERT INTO effects (number) VALUES (:number) RETURNING id")


class Effect(BaseModel):
    """What to write down."""

    number: int


def make() -> FastAPI:
    """The app, on `SQL_URL`."""
    app = create_app()
    add_db(app)
    add_idempotency(app)

    @app.post("/effects", status_code=201, dependencies=[Idempotent(caller=lambda request: "test")])
    async def effect(effect: Effect, session: DbSession) -> dict[str, int]:
        """Write it down; the answer names the row."""
        row = (await session.execute(INSERT, {"number": effect.number})).scalar_one()
        return {"number": effect.number, "row": row}

    return app


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        uvicorn.Server(uvicorn.Config(make(), log_config=None)).run(sockets=[listener])
