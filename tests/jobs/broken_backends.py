"""Each backend with one thing wrong: what a proof is worth is seen from what it catches."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pytest

from svc_infra.jobs.backends.entry import Entry
from svc_infra.jobs.backends.memory import InMemoryJobQueue
from svc_infra.jobs.redis import scripts as redis
from svc_infra.jobs.redis.scripts import script as original
from svc_infra.jobs.sql import postgres_steps, sqlite
from svc_infra.jobs.sql.statements import JobStatements

FAULTS: dict[tuple[str, str], tuple[Any, str, str, str]] = {
    # backend, what is wrong: where, what says it, and what it says instead of what
    ("memory", "any attempt may end a job"): (InMemoryJobQueue, "_held", " or entry.job.token != job.token", ""),
    ("memory", "no lease ever ends"): (InMemoryJobQueue, "_sweep", "ended[:SWEEP_LIMIT_JOBS]", "ended[:0]"),
    ("memory", "errors are not counted"): (InMemoryJobQueue, "_fail", ">= kept.max_attempts", "> 1000"),
    ("memory", "a unique key is kept"): (Entry, "holds", "return fresh and", "return"),
    ("memory", "a release spends an attempt"): (InMemoryJobQueue, "_release", "attempts - 1", "attempts"),
    ("sqlite", "any attempt may end a job"): (sqlite, "_SUCCEED", "AND token = ?", "AND ? <> ''"),
    ("sqlite", "no lease ever ends"): (sqlite, "_ENDED", "lease_expires_at <= ?", "lease_expires_at < '' || ?"),
    ("sqlite", "errors are not counted"): (JobStatements, "fail", ">= _c.max_attempts", "> 1000"),
    ("sqlite", "a unique key is kept"): (JobStatements, "free_key", "sa.or_(old, outside)", "sa.false()"),
    ("sqlite", "a release spends an attempt"): (JobStatements, "release", "attempts - 1", "attempts"),
    ("postgres", "any attempt may end a job"): (postgres_steps, "_ACK", " AND j.token = n.token", ""),
    ("postgres", "no lease ever ends"): (postgres_steps, "_SWEEP", "lease_expires_at <=", "false AND $1 <="),
    ("postgres", "errors are not counted"): (JobStatements, "fail", ">= _c.max_attempts", "> 1000"),
    ("postgres", "a unique key is kept"): (JobStatements, "free_key", "sa.or_(old, outside)", "sa.false()"),
    ("postgres", "a release spends an attempt"): (JobStatements, "release", "attempts - 1", "attempts"),
    ("valkey", "any attempt may end a job"): (redis, "prelude", "job[1] == 'running' and job[2] == token", "job[1]"),
    ("valkey", "no lease ever ends"): (redis, "reserve", "member in ipairs(ended)", "member in ipairs({})"),
    ("valkey", "errors are not counted"): (redis, "fail", ">= tonumber(job[8])", "> 1000"),
    ("valkey", "a unique key is kept"): (redis, "prelude", "now - job[2] >= window", "false"),
    ("valkey", "a release spends an attempt"): (redis, "release", "'attempts', -1", "'attempts', 0"),
}


def break_it(backend: str, fault: str, patch: pytest.MonkeyPatch) -> None:
    """Make this backend wrong until `patch` is undone."""
    owner, name, right, wrong = FAULTS[backend, fault]
    if owner is redis:
        patch.setattr(redis, "script", _scripts(right, wrong))
    elif isinstance(text := inspect.getattr_static(owner, name), str):
        patch.setattr(owner, name, _changed(text, right, wrong))
    else:
        patch.setattr(owner, name, _function(owner, name, right, wrong))


def _function(owner: type, name: str, right: str, wrong: str) -> Any:
    found = inspect.getattr_static(owner, name)
    function: Callable[..., Any] = found.func if isinstance(found, cached_property) else found
    source = _changed(textwrap.dedent(inspect.getsource(function)), right, wrong).removeprefix("@cached_property\n")
    names: dict[str, Any] = {}
    exec("from __future__ import annotations\n" + source, function.__globals__, names)
    if not isinstance(found, cached_property):
        return names[name]
    again = cached_property(names[name])
    again.__set_name__(owner, name)
    return again


def _scripts(right: str, wrong: str) -> Callable[[str], tuple[str, str]]:
    """All scripts with this change, under digests that the server does not know, so that it is sent the text."""

    def script(name: str) -> tuple[str, str]:
        text, digest = original(name)
        return text.replace(right, wrong), "f" * len(digest)

    assert any(right in original(name)[0] for name in ("reserve", "fail", "release"))
    return script


def _changed(text: str, right: str, wrong: str) -> str:
    assert text.count(right) == 1, f"{right!r} is not there once"
    return text.replace(right, wrong)
