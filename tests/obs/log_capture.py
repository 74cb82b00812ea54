"""Logging as `setup_logging` leaves it in a real process, for the length of a block."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import pytest

from svc_infra.obs.logging import flush_logs, setup_logging


@dataclass
class Captured:
    """What was written to standard error."""

    stream: StringIO = field(default_factory=StringIO)

    @property
    def text(self) -> str:
        flush_logs()
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        assert self.text == "" or self.text.endswith("\n")
        return [json.loads(line) for line in self.text.split("\n")[:-1]]

    def only(self, message: str) -> dict[str, Any]:
        """The one line with this message."""
        (line,) = [line for line in self.lines if line["message"] == message]
        return line


@contextmanager
def kept_logging() -> Iterator[logging.Logger]:
    """Give back the root logger as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield root
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    with kept_logging():
        yield


@contextmanager
def captured(level: str | None = "INFO", fmt: str | None = "json", **options: Any) -> Iterator[Captured]:
    """Set up logging, without the handlers that pytest adds, and catch what is written."""
    output = Captured()
    with kept_logging() as root:
        root.handlers.clear()
        kept, sys.stderr = sys.stderr, output.stream
        try:
            setup_logging(level, fmt, **options)
            yield output
            flush_logs()
        finally:
            sys.stderr = kept
