"""What becomes of the ticks that are due: a function of what is known, without any effect."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from svc_infra.jobs.schedules.schedule import Schedule
from svc_infra.jobs.schedules.store import Outcome, Record, Tick

ON_TIME = timedelta(seconds=60)
"""How late a tick may be stored and still not count as missed."""
CLOCK_STEP = timedelta(seconds=60)
"""How far what has been decided may be ahead of the clock before the clock is believed to have been put back."""
MISSES_COUNTED = 10_000
"""How many misses in a row are counted; further ones are covered by the same entry."""
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Decision:
    """The schedule as it is to be stored, and the ticks to record; those that are `STORED` get their jobs."""

    after: Record
    ticks: list[Tick]


def decide(schedule: Schedule, record: Record, now: datetime, *, busy: bool) -> Decision | None:
    """Decide about everything that is due.

    Args:
        schedule: What the record defines.
        record: What is known of it.
        now: The time.
        busy: Whether the job of the last tick waits or runs.

    Returns:
        None when there is nothing to decide.
    """
    if record.decided_until > now + CLOCK_STEP:  # ticks that have a job stay recorded: none gets a second one
        return Decision(replace(record, decided_until=now), [])
    due = schedule.times.latest(record.decided_until, now, schedule.kept)
    outcomes, waiting = _outcomes(schedule, record, due, now, busy=busy)
    if not due and not outcomes:
        return None
    ticks = [_tick(schedule, moment, outcome, now) for moment, outcome in sorted(outcomes.items())]
    if due:
        ticks = [_with_misses(schedule, record, one) if one.due == due[0] else one for one in ticks]
    stored = [tick for tick in ticks if tick.outcome is Outcome.STORED]
    after = replace(
        record,
        paused_at=None if due else record.paused_at,
        decided_until=max([record.decided_until, *due]),
        explained_until=max([record.explained_until, *due]),
        waiting_due=waiting,
        job_id=stored[-1].job_id if stored else record.job_id,
        job_at=now if stored else record.job_at,
    )
    return Decision(after, ticks)


def pass_over(schedule: Schedule, record: Record, now: datetime, reason: Outcome) -> Decision:
    """Decide that nothing of what is due runs.

    Args:
        reason: Why.
    """
    due = schedule.times.latest(record.decided_until, now)
    ticks = [_with_misses(schedule, record, _tick(schedule, moment, reason, now), reason) for moment in due]
    until = max(record.decided_until, now)
    return Decision(replace(record, decided_until=until, explained_until=max(record.explained_until, until)), ticks)


def _outcomes(
    schedule: Schedule, record: Record, due: list[datetime], now: datetime, *, busy: bool
) -> tuple[dict[datetime, Outcome], datetime | None]:
    """What becomes of the tick that waits and of those that are due; and which one waits now."""
    outcomes: dict[datetime, Outcome] = {}
    waiting = record.waiting_due
    if due and schedule.missed == "skip" and now - due[-1] > ON_TIME:
        outcomes[due[-1]] = _reason(record)
        due = []
    if due and schedule.overlap == "cancel_previous":
        outcomes.update(dict.fromkeys([waiting, *due[:-1]] if waiting else due[:-1], Outcome.REPLACED))
        waiting, due = None, due[-1:]
    if waiting is not None and not busy:
        outcomes[waiting] = Outcome.STORED
        waiting, busy = None, True
    for moment in due:
        if not busy or schedule.overlap == "allow":
            outcomes[moment] = Outcome.STORED
            busy = True
        elif schedule.overlap == "skip" or waiting is not None:
            outcomes[moment] = Outcome.OVERLAP
        else:
            outcomes[moment] = Outcome.WAITING
            waiting = moment
    return outcomes, waiting


def _tick(schedule: Schedule, due: datetime, outcome: Outcome, now: datetime) -> Tick:
    job_id = schedule.key(due) if outcome is Outcome.STORED else None
    return Tick(due=due, outcome=outcome, job_id=job_id, decided_at=now)


def _with_misses(schedule: Schedule, record: Record, tick: Tick, reason: Outcome | None = None) -> Tick:
    """The tick, and with it those before it that are passed over."""
    since = max(record.decided_until, record.explained_until)
    first = schedule.times.following(since)
    if first is None or first >= tick.due:
        return tick
    missed = schedule.times.count(since, tick.due - _INSTANT, MISSES_COUNTED)
    return replace(tick, missed=missed, missed_since=first, reason=reason or _reason(record))


def _reason(record: Record) -> Outcome:
    return Outcome.LATE if record.paused_at is None else Outcome.PAUSED
