"""The error tree is what its drawing says."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from svc_infra import errors
from svc_infra.errors import (
    DeadlineExceededError,
    MissingExtraError,
    NotFoundError,
    RateLimitedError,
    SvcInfraError,
    UnauthorizedError,
    UnavailableError,
    ValidationError,
    error_types,
)

OWN = [kind for kind in error_types() if kind.__module__ == errors.__name__]


def _drawn() -> list[tuple[int, str, int, str]]:
    """Depth, name, status and code of each line of the drawing."""
    drawing = (errors.__doc__ or "").split("\n\n")[1]
    lines = [re.match(r"([│├└─ ]*)(\w+) +(\d+)  (\w+)", line) for line in drawing.splitlines()]
    return [(len(line[1]) // 4, line[2], int(line[3]), line[4]) for line in lines if line is not None]


def test_the_drawing_is_the_tree() -> None:
    real = [(_depth(kind), kind.__name__, kind.status, kind.code) for kind in OWN]
    assert _drawn() == real
    assert len(_drawn()) == (errors.__doc__ or "").split("\n\n")[1].count("\n") + 1


def _depth(kind: type[SvcInfraError]) -> int:
    return (
        0
        if kind is SvcInfraError
        else 1 + _depth(next(base for base in kind.__bases__ if issubclass(base, SvcInfraError)))
    )


def test_every_code_is_used_once_and_is_a_url_segment() -> None:
    codes = [kind.code for kind in OWN]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)
    assert all(400 <= kind.status < 600 and kind.title for kind in OWN)


@pytest.mark.parametrize("kind", [kind for kind in OWN if kind is not MissingExtraError])
def test_an_errors_docstring_is_its_message(kind: Callable[..., SvcInfraError]) -> None:
    error = kind()
    assert error.detail == str(error) == (kind.__doc__ or "").splitlines()[0]
    assert error.detail.endswith((".", "`."))
    assert str(kind("Because.")) == "Because."


def test_not_found_names_what_and_which() -> None:
    assert str(NotFoundError("User", 42)) == "User 42 was not found."
    assert str(NotFoundError("Nobody here.")) == "Nobody here."
    assert str(NotFoundError("User", 0)) == "User 0 was not found."


def test_an_error_carries_what_is_wrong_and_its_headers() -> None:
    error = ValidationError(errors=[{"pointer": "/name", "detail": "is empty"}], headers={"X-Hint": "1"})
    assert error.errors == ({"pointer": "/name", "detail": "is empty"},)
    assert error.headers == {"X-Hint": "1"}
    assert UnauthorizedError().headers == {"WWW-Authenticate": "Bearer"}
    assert UnauthorizedError(headers={"WWW-Authenticate": "Basic"}).headers == {"WWW-Authenticate": "Basic"}


@pytest.mark.parametrize("kind", [RateLimitedError, UnavailableError])
@pytest.mark.parametrize("seconds", [0, 0.2, 1, 1.4, 2, 59.9])
def test_retry_after_is_whole_seconds_and_never_sooner_than_asked(
    kind: type[RateLimitedError | UnavailableError], seconds: float
) -> None:
    header = kind(retry_after_seconds=seconds).headers["Retry-After"]
    assert max(1, seconds) <= int(header) <= seconds + 2
    assert kind().headers == {}


def test_a_deadline_is_a_builtin_timeout_too() -> None:
    with pytest.raises(TimeoutError):
        raise DeadlineExceededError
