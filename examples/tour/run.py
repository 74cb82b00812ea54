"""Runs the tour and prints it as a table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from svc_infra.testing import WebhookReceiver
from tour.service import Service, workplace
from tour.steps import Tour


@dataclass(frozen=True, slots=True)
class Step:
    """How one step went; `error` is empty when it went well."""

    name: str
    milliseconds: float
    error: str


async def tour(*, sql_url: str | None = None, redis_url: str | None = None) -> list[Step]:
    """Start the tracker on a free port and run every step; the first failure ends the tour.

    Args:
        sql_url: PostgreSQL instead of a SQLite file.
        redis_url: Redis or Valkey for the jobs instead of the SQL database.

    Returns:
        The steps that ran, in order.
    """
    done: list[Step] = []
    with workplace() as folder:
        service, receiver = Service(Path(folder), sql_url=sql_url, redis_url=redis_url), WebhookReceiver()
        visit = Tour(service, receiver)
        try:
            for name, step in [("start the service", service.start), *visit.steps(), ("stop", visit.stop)]:
                started = time.perf_counter()
                error = ""
                try:
                    await step()
                except Exception as failure:  # noqa: BLE001 - a failed step is the result, shown with its reason
                    error = f"{type(failure).__name__}: {failure}\n{_tail(service.log)}"
                done.append(Step(name, (time.perf_counter() - started) * 1000, error))
                if error:
                    break
        finally:
            await visit.client.aclose()
            await receiver.down()
            await service.kill()
    return done


def printed(steps: list[Step]) -> str:
    """The table: step, ✓ or ✗, milliseconds; below it the reason of the ✗."""
    width = max(len(step.name) for step in steps)
    lines = [f"{'✗' if step.error else '✓'}  {step.name.ljust(width)}  {step.milliseconds:8.0f} ms" for step in steps]
    return "\n".join([*lines, *(f"\n{step.error}" for step in steps if step.error)])


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join([line for line in lines if "svc_infra.access" not in line][-20:])
