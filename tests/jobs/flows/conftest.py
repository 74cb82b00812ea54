"""Flows on each kind of queue."""

from tests.jobs.flows.flowing import flowing

__all__ = ["flowing"]
