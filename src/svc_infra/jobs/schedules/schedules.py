"""An app's schedules: what they are, and what can be done with them while it runs."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError as PydanticError

from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError, ValidationError
from svc_infra.jobs.queue import JobQueue
from svc_infra.jobs.schedules.decision import Decision, pass_over
from svc_infra.jobs.schedules.definition import Definition
from svc_infra.jobs.schedules.memory import InMemoryScheduleStore
from svc_infra.jobs.schedules.schedule import Schedule
from svc_infra.jobs.schedules.store import SCHEDULES_LIMIT, Look, Outcome, Record, ScheduleStore, Tick
from svc_infra.jobs.task import Task
from svc_infra.obs import context
from svc_infra.types import Clock, new_id

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

CATCH_UP_SECONDS = 300.0
WRITE_TRIES = 10  # while schedulers, which write as well, come in between


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleInfo:
    """One schedule as it is now.

    Attributes:
        definition: None when this release cannot read it.
        declared: Whether the code or the YAML file of this process has it.
        edited: Whether it is another one now than was declared last.
        next_at: When it is due next; None when it never is again, is paused, or this process does not run it.
        waiting_due: The tick that waits for the job of an earlier one to end.
        job_id: The job stored last.
    """

    name: str
    definition: Definition | None
    declared: bool
    edited: bool
    paused: bool
    next_at: datetime | None
    waiting_due: datetime | None
    job_id: str | None


class Schedules:
    """The schedules of an app: those that its code and its YAML file declare, and those that were put at run time.

    What is changed here reaches every scheduler of the same store at its next look, within a second. A declared
    schedule that was edited stays as edited until a release declares it differently.

    Args:
        queue: Where the jobs go.
        schedules: The declared ones; `add` adds more.
        tasks: What schedules may run beside the tasks of the declared ones.
        store: Where schedules and ticks are kept; this process's memory when left out.
        clock: Where the time comes from when there is no store.
        catch_up_seconds: How far before it is first seen a schedule may have ticks that are due.

    Raises:
        ConfigurationError: Two schedules or two tasks have one name, or there are more than 1,000 schedules.
        ValidationError: A payload does not fit its task.
    """

    def __init__(
        self,
        queue: JobQueue,
        schedules: Iterable[Schedule] = (),
        *,
        tasks: Iterable[Task[..., Any]] = (),
        store: ScheduleStore | None = None,
        clock: Clock | None = None,
        catch_up_seconds: float = CATCH_UP_SECONDS,
    ) -> None:
        self.store: ScheduleStore = InMemoryScheduleStore(clock=clock) if store is None else store
        self._queue = queue
        self._catch_up = timedelta(seconds=catch_up_seconds)
        self._tasks: dict[str, Task[..., Any]] = {}
        self._declared: dict[str, tuple[Schedule, str]] = {}  # with its definition's text
        self._announced: set[str] = set()
        self._read: dict[str, tuple[str, Schedule]] = {}  # schedules made of the texts that the store has
        for task in tasks:
            self._know(task)
        for schedule in schedules:
            self.add(schedule)

    def add(self, schedule: Schedule) -> None:
        """Declare this schedule too; see the class for what it raises."""
        if schedule.name in self._declared:
            raise ConfigurationError(f"Two schedules are called {schedule.name}: give one of them `name=`.")
        if len(self._declared) >= SCHEDULES_LIMIT:
            raise ConfigurationError(f"An app has at most {SCHEDULES_LIMIT} schedules.")
        self._know(schedule.task)
        self._declared[schedule.name] = schedule, Definition.of(schedule).text()

    async def look(self, now: datetime | None = None) -> Look:
        """The time, unless it is given, and every schedule, after those that are declared here have been stored."""
        look = await self.store.look()
        now = look.now if now is None else now
        stored = [await self._announce(name, look.records.get(name), now) for name in self._declared]
        return Look(now, (await self.store.look()).records if any(stored) else look.records)

    def runs(self, record: Record) -> bool:
        """Whether this process runs it: a schedule that only another release's code has is left to that one."""
        return record.declared is None or record.name in self._declared

    def schedule(self, record: Record) -> Schedule:
        """The schedule that a record defines.

        Raises:
            ConfigurationError: It cannot be read by this release, or its task is not known here.
        """
        text, schedule = self._read.get(record.name, (None, None))
        if schedule is None or text != record.definition:
            if (definition := _definition(record)) is None:
                raise ConfigurationError(f"The schedule {record.name} was written by another release.")
            schedule = definition.schedule(record.name, self._tasks)
            self._read[record.name] = record.definition, schedule
        return schedule

    async def list(self) -> builtins.list[ScheduleInfo]:
        """Every schedule, by name."""
        look = await self.look()
        return [self._info(look.now, record) for _, record in sorted(look.records.items())]

    async def get(self, name: str) -> ScheduleInfo:
        """One schedule.

        Raises:
            NotFoundError: There is none of this name.
        """
        look = await self.look()
        return self._info(look.now, _known(look, name))

    async def next_runs(self, name: str, count: int = 10) -> builtins.list[datetime]:
        """When a schedule is due next: up to `count` times, paused or not, without jitter.

        Raises:
            NotFoundError: There is none of this name.
        """
        look = await self.look()
        record = _known(look, name)
        times = self.schedule(record).times
        found: builtins.list[datetime] = []
        following = times.following(max(look.now, record.decided_until))
        while following is not None and len(found) < count:
            found.append(following)
            following = times.following(following)
        return found

    async def ticks(self, name: str, limit: int = 50) -> builtins.list[Tick]:
        """What became of a schedule's ticks, the latest first; of one that was deleted too."""
        return await self.store.ticks(name, limit)

    def read(self, name: str, definition: Mapping[str, Any]) -> Schedule:
        """A schedule of a mapping, such as a request's body; see `Definition` for the keys.

        Raises:
            ValidationError: It is none.
        """
        try:
            return Definition.model_validate(definition).schedule(name, self._tasks)
        except PydanticError as error:
            problems = [{"loc": list(one["loc"]), "detail": one["msg"]} for one in error.errors(include_url=False)]
            raise ValidationError(f"The schedule {name} cannot be read.", errors=problems) from None
        except ConfigurationError as error:
            raise ValidationError(f"{name}: {error.detail}") from None

    async def put(self, schedule: Schedule) -> None:
        """Store a schedule, new or in place of the one of its name; what that one has not run yet does not run.

        Raises:
            ConfigurationError: Another task has the name of this one's.
            ConflictError: There are 1,000 schedules already.
            ValidationError: Its payload does not fit its task, it is longer than 16 KiB, or it would never be due.
        """
        self._know(schedule.task)
        text = Definition.of(schedule).text()
        look = await self.look()
        if schedule.times.following(look.now) is None:
            raise ValidationError(f"{schedule.name} would never be due.")
        if schedule.name not in look.records:
            if len(look.records) >= SCHEDULES_LIMIT:
                raise ConflictError(f"An app has at most {SCHEDULES_LIMIT} schedules.")
            if await self.store.insert(_new(schedule.name, text, None, look.now)):
                return
        await self._change(schedule.name, lambda record, now: self._redefined(record, now, text, record.declared))

    async def pause(self, name: str) -> None:
        """Let a schedule store nothing until `resume`; one that is paused stays so.

        Raises:
            NotFoundError: There is none of this name.
        """
        await self._change(name, _paused)

    async def resume(self, name: str) -> None:
        """Let a paused schedule go on; what was due meanwhile follows its policy for missed ticks.

        Raises:
            NotFoundError: There is none of this name.
        """
        await self._change(name, self._resumed)

    async def delete(self, name: str) -> None:
        """Delete a schedule; one that is declared comes back as it is declared.

        Raises:
            NotFoundError: There is none of this name.
        """
        for _ in range(WRITE_TRIES):
            if await self.store.delete(_known(await self.look(), name)):
                return
        raise _contended(name)

    async def run_now(self, name: str) -> str:
        """Store a job of this schedule now, whatever its times, its policies and whether it is paused.

        Returns:
            The job's id.

        Raises:
            NotFoundError: There is none of this name.
        """
        look = await self.look()
        schedule = self.schedule(_known(look, name))
        job_id = await self.store_job(schedule, look.now, job_id=str(new_id()))
        await self._change(name, lambda record, now: Decision(replace(record, job_id=job_id, job_at=now), []))
        return job_id

    async def store_job(
        self,
        schedule: Schedule,
        due: datetime,
        *,
        job_id: str,
        delay_seconds: float = 0.0,
        session: AsyncSession | None = None,
    ) -> str:
        """Store one job of a schedule; returns the id."""
        call = schedule.task.options(on=self._queue, job_id=job_id, delay_seconds=delay_seconds, session=session)
        token = context.enter(_TickContext(due))
        try:
            return await call.enqueue(**schedule.payload)
        finally:
            context.leave(token)

    def _know(self, task: Task[..., Any]) -> None:
        if self._tasks.setdefault(task.name, task) is not task:
            raise ConfigurationError(f"Two tasks are called {task.name}: give one of them another name.")

    async def _announce(self, name: str, record: Record | None, now: datetime) -> bool:
        """Store a declared schedule that is new or another one than before; whether it was."""
        _, text = self._declared[name]
        if record is None:
            return await self.store.insert(_new(name, text, text, now - self._catch_up))
        if name in self._announced or record.declared == text:
            self._announced.add(name)
            return False
        if record.declared is None:  # it was put first: that counts as an edit
            decision = Decision(replace(record, declared=text), [])
        else:
            decision = self._redefined(record, now, text, text)
        return await self.store.write(record, decision.after, decision.ticks) is not None

    async def _change(self, name: str, change: Callable[[Record, datetime], Decision]) -> None:
        for _ in range(WRITE_TRIES):
            look = await self.look()
            decision = change(_known(look, name), look.now)
            if await self.store.write(_known(look, name), decision.after, decision.ticks) is not None:
                return
        raise _contended(name)

    def _redefined(self, record: Record, now: datetime, text: str, declared: str | None) -> Decision:
        """The new times begin now; what is left of the old ones is passed over."""
        try:
            decision = pass_over(self.schedule(record), record, now, Outcome.EDITED)
        except (ConfigurationError, ValidationError):  # the old one could not be read here, so nobody knows its times
            decision = Decision(replace(record, decided_until=now, explained_until=now), [])
        ticks = decision.ticks
        if record.waiting_due is not None:
            ticks = [*ticks, Tick(due=record.waiting_due, outcome=Outcome.EDITED, decided_at=now)]
        return Decision(replace(decision.after, waiting_due=None, definition=text, declared=declared), ticks)

    def _resumed(self, record: Record, now: datetime) -> Decision:
        resumed = replace(record, paused=False)
        if record.paused and (schedule := self.schedule(record)).missed == "skip":
            return pass_over(schedule, resumed, now, Outcome.PAUSED)
        return Decision(resumed, [])

    def _info(self, now: datetime, record: Record) -> ScheduleInfo:
        next_at = None
        with suppress(ConfigurationError, ValidationError):  # a task or a key of another release: that one runs it
            if self.runs(record) and not record.paused:
                next_at = self.schedule(record).times.following(max(now, record.decided_until))
        return ScheduleInfo(
            name=record.name,
            definition=_definition(record),
            declared=record.name in self._declared,
            edited=record.declared is not None and record.declared != record.definition,
            paused=record.paused,
            next_at=next_at,
            waiting_due=record.waiting_due,
            job_id=record.job_id,
        )


def _new(name: str, text: str, declared: str | None, since: datetime) -> Record:
    return Record(name=name, definition=text, declared=declared, decided_until=since, explained_until=since)


def _known(look: Look, name: str) -> Record:
    if (record := look.records.get(name)) is None:
        raise NotFoundError("Schedule", name)
    return record


def _contended(name: str) -> ConflictError:
    return ConflictError(f"The schedule {name} is being changed by others: try again.")


def _definition(record: Record) -> Definition | None:
    try:
        return Definition.model_validate_json(record.definition)
    except PydanticError:  # a newer release wrote it
        return None


def _paused(record: Record, now: datetime) -> Decision:
    return Decision(replace(record, paused=True, paused_at=record.paused_at or now), [])


class _TickContext(context.Context):
    """What a tick's job carries: whose it is, where somebody asked for it, and when it was due."""

    __slots__ = ("due",)

    def __init__(self, due: datetime) -> None:
        here = context.current()
        super().__init__(**{field.name: getattr(here, field.name) for field in fields(here)})
        self.due = due

    def carried(self) -> dict[str, str]:
        """With the time that `JobContext.scheduled_at` gives."""
        return {**super().carried(), "scheduled_at": self.due.isoformat()}
