"""What holds for every problem that an app answers with."""

from __future__ import annotations

from typing import Any

from svc_infra.openapi.schema import PROBLEM

SECRET = "marker-7f3a-secret"


def is_problem(response: Any, status: int, code: str, path: str) -> dict[str, Any]:
    """Check all that holds for every problem; its members."""
    assert response.status_code == status, response.text
    assert response.headers.get_list("content-type") == ["application/problem+json"]
    assert response.headers["content-length"] == str(len(response.content))
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"/problems/{code}"
    assert (problem["status"], problem["code"], problem["instance"]) == (status, code, path)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert set(PROBLEM["required"]) <= set(problem) <= set(PROBLEM["properties"])
    assert all(problem[name] for name in ("title", "detail", "trace_id"))
    return problem
