"""An app with flows: in whatever order its rooms were added, on each kind of queue."""

from __future__ import annotations

import pytest
from fastapi import FastAPI

from svc_infra.config import Settings
from svc_infra.db.add import add_db
from svc_infra.errors import ConfigurationError
from svc_infra.jobs import InMemoryJobQueue, RedisJobQueue, SqlJobQueue
from svc_infra.jobs.add import add_jobs
from svc_infra.jobs.flows import Chain, Flows, FlowState
from svc_infra.jobs.flows.add import add_flows
from svc_infra.jobs.queue import JobQueue
from svc_infra.wiring import wiring_of
from tests.jobs.flows.flows_app import pack

JOBS = {"poll_interval_seconds": 0.01, "drain_seconds": 0.5}


@pytest.mark.parametrize(
    ("driver", "kind"), [("sql", SqlJobQueue), ("redis", RedisJobQueue), ("memory", InMemoryJobQueue)]
)
async def test_an_app_runs_its_flows_in_whatever_order_its_rooms_were_added(
    driver: str, kind: type, sqlite_url: str, valkey_url: str
) -> None:
    app = FastAPI()
    settings = Settings(
        app={"env": "test"}, sql={"url": sqlite_url}, redis={"url": valkey_url}, jobs={"driver": driver, **JOBS}
    )
    wiring = wiring_of(app, settings=settings)
    add_flows(app)
    add_db(app)
    add_jobs(app, tasks=[pack])
    add_flows(app)
    async with app.router.lifespan_context(app):
        assert isinstance(wiring.get(JobQueue), kind)
        with wiring.active():
            flow_id = await Chain("pair").then(pack, {"parcel": 7}).then(pack).start()
        flow = await wiring.get(Flows).wait_for(flow_id, 20)
        steps = await wiring.get(Flows).steps(flow_id)
    assert flow.state is FlowState.SUCCEEDED
    assert [step.result for step in steps] == [7, 7]


async def test_flows_need_jobs_and_a_database(sqlite_url: str) -> None:
    app = FastAPI()
    wiring_of(app, settings=Settings(app={"env": "test"}, sql={"url": sqlite_url}, jobs={"driver": "memory"}))
    add_flows(app)
    with pytest.raises(ConfigurationError, match="add_jobs"):
        async with app.router.lifespan_context(app):
            pass
    add_jobs(app)
    with pytest.raises(ConfigurationError, match="add_db"):
        async with app.router.lifespan_context(app):
            pass
