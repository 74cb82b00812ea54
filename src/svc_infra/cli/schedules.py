"""`svc-infra schedules ...`: looking after an app's schedules while it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Annotated, Any, TypeAlias

import orjson
import typer

from svc_infra.cli.tables import print_table, text
from svc_infra.cli.targets import App, ask, idle
from svc_infra.errors import ValidationError
from svc_infra.jobs.schedules import ScheduleInfo, Schedules

app = typer.Typer(name="schedules", help="Look after an app's schedules.", no_args_is_help=True)

Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="The schedule.")]
Limit: TypeAlias = Annotated[int, typer.Option(min=1, max=1000, help="Show this many.")]


@app.command("list")
def list_(target: App) -> None:
    """List the schedules, and when each is due next (UTC)."""

    async def show_all(schedules: Schedules) -> None:
        rows = [
            (one.name, _task(one), _times(one), _state(one), text(one.next_at), text(one.job_id))
            for one in await schedules.list()
        ]
        print_table(["Name", "Task", "Times", "State", "Next", "Last job"], rows)

    _ask(target, show_all)


@app.command()
def show(target: App, name: Name, limit: Limit = 10) -> None:
    """Show everything about one schedule, and what became of its latest ticks."""

    async def show_one(schedules: Schedules) -> None:
        info = await schedules.get(name)
        definition = {} if info.definition is None else info.definition.model_dump(mode="json", exclude_none=True)
        known = {field.name: getattr(info, field.name) for field in fields(ScheduleInfo)} | definition
        print_table(["Field", "Value"], [(key, text(value)) for key, value in known.items() if key != "definition"])
        rows = [
            (text(tick.due), str(tick.outcome), text(tick.job_id), _missed(tick.missed, tick.reason))
            for tick in await schedules.ticks(name, limit)
        ]
        print_table(["Tick", "Outcome", "Job", "Missed before it"], rows)

    _ask(target, show_one)


@app.command("next")
def next_(target: App, name: Name, count: Annotated[int, typer.Option(min=1, max=1000)] = 10) -> None:
    """Print when a schedule is due next (UTC)."""

    async def show_next(schedules: Schedules) -> None:
        for moment in await schedules.next_runs(name, count):
            print(moment.isoformat())

    _ask(target, show_next)


@app.command()
def pause(target: App, name: Name) -> None:
    """Let a schedule store nothing until it is resumed."""
    _change(target, f"{name} is paused.", lambda schedules: schedules.pause(name))


@app.command()
def resume(target: App, name: Name) -> None:
    """Let a paused schedule go on; what was due meanwhile follows its policy for missed ticks."""
    _change(target, f"{name} goes on.", lambda schedules: schedules.resume(name))


@app.command("run-now")
def run_now(target: App, name: Name) -> None:
    """Store a job of a schedule now, and print its id."""

    async def store(schedules: Schedules) -> None:
        print(await schedules.run_now(name))

    _ask(target, store)


@app.command()
def put(
    target: App,
    name: Name,
    definition: Annotated[
        str, typer.Argument(metavar="JSON", help='Such as {"task": "report", "cron": "0 7 * * *", "tz": "Asia/Tokyo"}.')
    ],
) -> None:
    """Store a schedule, new or in place of the one of its name."""

    async def store(schedules: Schedules) -> None:
        await schedules.put(schedules.read(name, _json(definition)))
        print(f"{name} is due next at {text((await schedules.get(name)).next_at)} UTC.")

    _ask(target, store)


@app.command()
def delete(target: App, name: Name) -> None:
    """Delete a schedule; one that the app declares comes back as it is declared."""
    _change(target, f"{name} is deleted.", lambda schedules: schedules.delete(name))


def _change(target: str, done: str, change: Callable[[Schedules], Awaitable[None]]) -> None:
    async def change_and_say(schedules: Schedules) -> None:
        await change(schedules)
        print(done)

    _ask(target, change_and_say)


def _ask(target: str, question: Callable[[Schedules], Awaitable[None]]) -> None:
    wiring = idle(target)
    ask(wiring, lambda _: question(wiring.get(Schedules)))


def _json(given: str) -> dict[str, Any]:
    try:
        found = orjson.loads(given)
    except orjson.JSONDecodeError as error:
        raise ValidationError(f"The definition is no JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ValidationError("The definition is a JSON object.")
    return found


def _task(info: ScheduleInfo) -> str:
    return "" if info.definition is None else info.definition.task


def _times(info: ScheduleInfo) -> str:
    return "written by another release" if info.definition is None else info.definition.when()


def _state(info: ScheduleInfo) -> str:
    origin = "declared" if info.declared else "stored"
    return ", ".join([origin, *(["edited"] if info.edited else []), *(["paused"] if info.paused else [])])


def _missed(missed: int, reason: str | None) -> str:
    return f"{missed} {reason}" if missed else ""
