"""`svc-infra flows ...`: looking after an app's workflows, chains and batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Annotated, TypeAlias

import typer

from svc_infra.cli.tables import print_table, text
from svc_infra.cli.targets import App, ask, idle
from svc_infra.errors import ConfigurationError, NotFoundError
from svc_infra.jobs.flows import Flow, Flows, FlowState, FlowStep, StepState

app = typer.Typer(name="flows", help="Look after an app's workflows, chains and batches.", no_args_is_help=True)

Ids: TypeAlias = Annotated[list[str], typer.Argument(metavar="ID...", help="The flows.")]


@app.command("list")
def list_(
    target: App,
    state: Annotated[FlowState | None, typer.Option(help="Only those in this state.")] = None,
    name: Annotated[str | None, typer.Option(help="Only those of this name.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    before: Annotated[str | None, typer.Option(metavar="ID", help="Only those older than this flow.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show this many, newest first.")] = 50,
) -> None:
    """List flows, newest first."""

    async def show(flows: Flows) -> None:
        found = await flows.list(state=state, name=name, tenant=tenant, before=before, limit=limit)
        columns = ["ID", "Kind", "Name", "State", "Succeeded", "Failed", "Started", "Ended"]
        print_table(columns, [_row(one) for one in found])

    _ask(target, show)


@app.command()
def show(
    target: App,
    flow_id: Annotated[str, typer.Argument(metavar="ID", help="The flow.")],
    state: Annotated[StepState | None, typer.Option(help="Only the steps in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show this many steps.")] = 100,
    skip: Annotated[int, typer.Option(min=0, help="After so many.")] = 0,
) -> None:
    """Show everything about one flow, and each step with what it waits for and what became of it."""

    async def show_one(flows: Flows) -> None:
        if (flow := await flows.get(flow_id)) is None:
            raise NotFoundError("Flow", flow_id)
        print_table(["Field", "Value"], [(field.name, text(getattr(flow, field.name))) for field in fields(Flow)])
        print()
        steps = await flows.steps(flow_id, state=state, limit=limit, skip=skip)
        columns = ["Step", "Task", "State", "After", "Job", "Ended", "Error"]
        print_table(columns, [_step_row(step) for step in steps])

    _ask(target, show_one)


@app.command()
def cancel(target: App, flow_ids: Ids) -> None:
    """Cancel flows: nothing more of them starts, and what runs is asked to end."""
    _each(target, flow_ids, "is cancelled", lambda flows, flow_id: flows.cancel(flow_id))


@app.command()
def retry(target: App, flow_ids: Ids) -> None:
    """Let failed or cancelled flows go on from the steps that have not succeeded."""
    _each(target, flow_ids, "goes on", lambda flows, flow_id: flows.retry(flow_id))


def _row(flow: Flow) -> tuple[str, ...]:
    return (
        flow.id,
        flow.kind,
        flow.name,
        "being cancelled" if flow.cancel_requested and flow.finished_at is None else str(flow.state),
        f"{flow.succeeded:,}/{flow.total:,}",
        f"{flow.failed:,}",
        text(flow.created_at),
        text(flow.finished_at),
    )


def _step_row(step: FlowStep) -> tuple[str, ...]:
    return (
        step.name,
        step.task,
        str(step.state),
        ", ".join(step.after),
        text(step.job_id),
        text(step.finished_at),
        (step.error or "").partition("\n")[0],
    )


def _each(target: str, flow_ids: list[str], done: str, change: Callable[[Flows, str], Awaitable[None]]) -> None:
    async def change_each(flows: Flows) -> None:
        for flow_id in flow_ids:
            await change(flows, flow_id)
            print(f"Flow {flow_id} {done}.")

    _ask(target, change_each)


def _ask(target: str, question: Callable[[Flows], Awaitable[None]]) -> None:
    wiring = idle(target)
    if "flows" not in wiring.parts:
        raise ConfigurationError(f"{target} has no flows: call add_flows(app) in it.")
    ask(wiring, lambda _: question(wiring.get(Flows)))
