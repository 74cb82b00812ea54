"""What each process did, written down as it does it, and what must be true of that and of what the queue kept."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from svc_infra.jobs import Job, JobState
from svc_infra.jobs.job import DEFAULT_MAX_CRASHES

TERMINAL = {JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED}


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        what: "stored" by a producer once the queue has answered, "began" and "ended" by a handler.
        job: The job's id.
        token: Of the attempt.
    """

    what: str
    job: str
    token: str = ""


class History:
    """A file of this process that a `kill -9` cannot tear: each event is one write.

    Args:
        folder: Where the files of all processes are.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, *events: Event) -> None:
        """Write these down."""
        os.write(self._file, "".join(f"{json.dumps(vars(event))}\n" for event in events).encode())

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


def events_in(folder: Path) -> list[Event]:
    """What all processes wrote."""
    return [
        Event(**json.loads(line)) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()
    ]


def faults_in(
    events: Iterable[Event],
    jobs: Mapping[str, Job],
    effects: Mapping[str, Sequence[str]],
    *,
    always_fail: frozenset[str],
    exactly_once: bool,
) -> list[str]:
    """What should not have happened.

    Args:
        jobs: All that the queue kept, by id.
        effects: By job the tokens of the attempts whose effects are there.
        always_fail: Whose handlers never succeed.
        exactly_once: Whether effects commit with the ends of their attempts.
    """
    began: dict[str, set[str]] = {}
    faults = []
    for event in events:
        if event.what == "stored" and event.job not in jobs:
            faults.append(f"{event.job} is lost")
        if event.what == "began":
            began.setdefault(event.job, set()).add(event.token)
    for job in jobs.values():
        seen = Counter(effects.get(job.id, ()))
        if job.state not in TERMINAL:
            faults.append(f"{job.id} is {job.state}")
        elif job.state is JobState.SUCCEEDED:
            attempt, token = job.result
            if attempt != job.attempts or token not in began.get(job.id, ()):
                faults.append(f"{job.id} was ended by attempt {attempt} of {job.attempts}, which is a stale one")
            if exactly_once and seen != Counter([token]):
                faults.append(f"{job.id} has had {seen.total()} effects, and should have had that of its last attempt")
            elif token not in seen:
                faults.append(f"{job.id} has succeeded without an effect")
        else:
            if job.id not in always_fail and job.crashes < DEFAULT_MAX_CRASHES:
                faults.append(f"{job.id} is {job.state}: {job.last_error}")
            if exactly_once and seen:
                faults.append(f"{job.id} is {job.state} and has had an effect")
    return faults
