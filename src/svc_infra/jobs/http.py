"""The app's queue as FastAPI dependencies."""

from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection

from svc_infra.jobs.queue import JobQueue, JobStore
from svc_infra.wiring import wiring_of

__all__ = ["JobQueueDep", "JobStoreDep"]


def _queue(connection: HTTPConnection) -> JobQueue:
    return wiring_of(connection.app).get(JobQueue)


def _store(connection: HTTPConnection) -> JobStore:
    return wiring_of(connection.app).get(JobStore)


JobQueueDep = Annotated[JobQueue, Depends(_queue)]
"""The queue that the app's jobs go to."""

JobStoreDep = Annotated[JobStore, Depends(_store)]
"""The same queue, for asking what it keeps."""
