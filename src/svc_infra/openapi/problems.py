"""The types of problem that this process knows: what each is called, when it happens and what to do about it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain

from starlette.exceptions import HTTPException

from svc_infra.errors import error_types
from svc_infra.middleware.problem import as_problem, problem_type

_ADVICE = {
    400: "Correct the request as its detail says. Sent again unchanged, it fails again.",
    401: "Send a valid credential, or sign in again to get one.",
    403: "Use a credential that may do this, or ask an administrator for the permission.",
    404: "Check the address and the identifier in it.",
    405: "Use one of the methods that the Allow header names.",
    409: "Read the current state, then decide whether the request still makes sense.",
    412: "Read the current state, then send the request with its new ETag if it still makes sense.",
    413: "Send less, or send it in parts.",
    415: "Send the body in the format that the API reference names, and say so in the Content-Type header.",
    416: "Ask for a part within the length that the Content-Range header says, or for the whole.",
    422: "Correct each value that `errors` lists, then send the request again.",
    428: "Read the current state, and send its ETag in the If-Match header.",
    429: "Wait for as long as the Retry-After header says, then try again.",
    503: "Wait for as long as the Retry-After header says, or a few seconds, then try again.",
}
_CALLER_ADVICE = "Correct the request. Sent again unchanged, it fails again."
_SERVICE_ADVICE = "The request may be right: try again later. If it keeps failing, report it with its request_id."


@dataclass(frozen=True, slots=True)
class ProblemType:
    """What a problem's page says."""

    code: str
    status: int
    title: str
    when: str

    @property
    def path(self) -> str:
        """The page's path, which is the problem's `type`."""
        return problem_type(self.code)

    @property
    def advice(self) -> str:
        """What to do about it."""
        return _ADVICE.get(self.status, _CALLER_ADVICE if self.status < 500 else _SERVICE_ADVICE)


def problem_types() -> list[ProblemType]:
    """Every type of the error tree, an application's own included; where two share a code, the one drawn first."""
    types: dict[str, ProblemType] = {}
    for kind in error_types():
        when = inspect.cleandoc(kind.__doc__ or f"{kind.title}.").partition("\n\n")[0]
        types.setdefault(kind.code, ProblemType(kind.code, kind.status, kind.title, when))
    return list(types.values())


def find_problem_type(code: str) -> ProblemType | None:
    """The type of this code: one of the error tree, or what a bare status is answered with."""
    return next((kind for kind in chain(problem_types(), _of_statuses()) if kind.code == code), None)


def _of_statuses() -> Iterator[ProblemType]:
    descriptions = {int(status): status.description for status in HTTPStatus}
    for status in range(400, 600):
        problem = as_problem(HTTPException(status, ""))
        when = descriptions.get(status) or f"The request was answered with status {status}"
        yield ProblemType(problem.code, status, problem.title, f"{when}.")
