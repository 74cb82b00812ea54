"""What a server logs when an app cannot start."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db.add import add_db
from svc_infra.wiring import Part, wiring_of


async def _start(app: object, caplog: pytest.LogCaptureFixture) -> list[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit):
        await server.serve()
    return [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"]


async def test_an_unreachable_database_is_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(settings=Settings(sql={"url": "postgresql://user:hunter2@127.0.0.1:9/shop"}))
    add_db(app)
    sentence, closing = await _start(app, caplog)
    assert "127.0.0.1" in sentence
    assert "\n" not in sentence
    assert "hunter2" not in sentence
    assert closing == "Application startup failed. Exiting."


async def test_a_fault_in_the_code_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise ZeroDivisionError
        yield

    app = create_app()
    wiring_of(app).add(Part("broken", run=broken))
    assert "Traceback" in (await _start(app, caplog))[0]
