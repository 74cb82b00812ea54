"""Who may call what, as a table that is checked against the running app."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from svc_infra.route_policy import PUBLIC
from svc_infra.security.access.http import route_policies, routes_without_policy

__all__ = ["Matrix", "check_matrix", "routes_without_policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """What each route answers to each caller.

    Attributes:
        callers: The headers of each caller, by a name such as `member` or `owner of another tenant`.
        rows: The statuses of a route, such as `GET /projects/{project_id}`, one for each caller in their order. The
            rows are checked from the first to the last, and each from the left to the right.
        values: What stands in the paths: the parameters by their names.
        requests: What else a route is sent, such as `{"json": {...}}`, as `httpx2` takes it.
        elsewhere: Beginnings of paths whose routes are checked elsewhere.
    """

    callers: Mapping[str, Mapping[str, str]]
    rows: Mapping[str, Sequence[int]]
    values: Mapping[str, str] = field(default_factory=dict)
    requests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    elsewhere: Collection[str] = ()


async def check_matrix(app: Any, matrix: Matrix) -> None:
    """Call every route as every caller.

    Args:
        app: An app that is running.
        matrix: What it should answer. Each route of the app that is not public has to have a row.

    Raises:
        AssertionError: Some answers have another status, or routes have no row, or rows no route; all of them are told.
    """
    complaints = list(_unmatched(app, matrix))
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="https://matrix.test") as http:
        for route, statuses in matrix.rows.items():
            if len(statuses) != len(matrix.callers):
                complaints.append(f"{route}: {len(statuses)} statuses for {len(matrix.callers)} callers")
                continue
            method, _, path = route.partition(" ")
            address = re.sub(r"\{(\w+)[^}]*\}", lambda found: matrix.values[found[1]], path)
            for (caller, headers), expected in zip(matrix.callers.items(), statuses, strict=True):
                answer = await http.request(method, address, headers=dict(headers), **matrix.requests.get(route, {}))
                if answer.status_code != expected:
                    complaints.append(f"{route}: {caller} got {answer.status_code} instead of {expected}")
    if complaints:
        raise AssertionError("\n".join(["The app and the matrix differ:", *complaints]))


def _unmatched(app: Any, matrix: Matrix) -> Iterator[str]:
    known = set()
    for route in route_policies(app):
        for method in route.methods:
            address = f"{method} {route.path}"
            known.add(address)
            is_elsewhere = any(route.path.startswith(prefix) for prefix in matrix.elsewhere)
            if address not in matrix.rows and PUBLIC not in route.policies and not is_elsewhere:
                yield f"{address} has no row"
    for address in matrix.rows:
        if address not in known:
            yield f"{address} is no route of the app"
