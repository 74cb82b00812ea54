"""Who was refused what is in the logs, although nothing was changed."""

from __future__ import annotations

from svc_infra.db import AsyncDatabase
from svc_infra.security.permissions import RequirePermission
from svc_infra.testing import FakeClock
from tests.obs.log_capture import captured
from tests.security.conftest import running, service


async def test_a_refusal_is_a_line_that_names_who_was_refused_what(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = service(sqlite_db, clock)

    @app.get("/report/{number}", dependencies=[RequirePermission("report.read")])
    async def report(number: int) -> None: ...

    async with running(app, clock) as client:
        ana_id = await client.register()
        ana = await client.log_in()
        with captured() as output:
            assert (await ana.get("/report/7")).status_code == 403
            assert (await client.http.get("/report/7")).status_code == 401
        refused, unknown = output.only("GET /report/7 403"), output.only("GET /report/7 401")
    assert (refused["status"], refused["route"]) == (403, "/report/{number}")
    assert (refused["principal_id"], refused["client_ip"]) == (str(ana_id), "127.0.0.1")
    assert "principal_id" not in unknown
    assert ana.tokens["access_token"] not in output.text
