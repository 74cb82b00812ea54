"""What the environment says: the process's own variables, and below them those of the `.env` file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from dotenv.parser import parse_stream

from svc_infra.errors import ConfigurationError

MAX_FILE_BYTES = 1024 * 1024  # of a `.env` or a secret's file
ENV_FILE = "APP_ENV_FILE"


@dataclass(frozen=True, slots=True)
class Variables:
    """Variables by name, as they were when they were read; a blank value counts as not set."""

    process: Mapping[str, str] = field(repr=False)
    file: Mapping[str, str] = field(repr=False)
    path: Path | None

    @classmethod
    def read(cls) -> Variables:
        """Read the process's environment, and the file that `APP_ENV_FILE` names or else `.env` where it lies here.

        Raises:
            ConfigurationError: The file cannot be read or understood.
        """
        named = os.environ.get(ENV_FILE, "").strip()
        path = Path(named or ".env")
        if not named and not path.is_file():
            return cls(_set(os.environ.items()), {}, None)
        return cls(_set(os.environ.items()), _parsed(path, named_by=ENV_FILE if named else None), path)

    def get(self, name: str) -> str | None:
        """A variable's value, or None when it is not set."""
        return self.process.get(name, self.file.get(name))

    def source(self, name: str) -> str | None:
        """Where a variable's value comes from, or None when it is not set."""
        if name in self.process:
            return "environment variable"
        return str(self.path) if name in self.file else None

    def names(self) -> set[str]:
        """Every variable that is set."""
        return {*self.process, *self.file}


def read_text(path: Path, *, named_by: str | None = None) -> str:
    """A small text file's content.

    Args:
        path: The file, at most 1 MiB of UTF-8.
        named_by: The variable that names it, for the message.

    Raises:
        ConfigurationError: It cannot be read; the message names the file and the variable, and nothing of its content.
    """
    named = f"{path}, which {named_by} names," if named_by else f"{path}"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{named} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{named} is larger than {MAX_FILE_BYTES} bytes.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{named} is not UTF-8 text.") from None


def _set(variables: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: value for name, value in variables if value.strip()}


def _parsed(path: Path, *, named_by: str | None) -> dict[str, str]:
    """The file's variables, taken literally: a `$` in a password stays a `$`."""
    found: dict[str, str] = {}
    for binding in parse_stream(StringIO(read_text(path, named_by=named_by))):
        if binding.error or (binding.key is not None and binding.value is None):
            raise ConfigurationError(f"{path}, line {binding.original.line}, is not of the form NAME=value.")
        if binding.key is not None and binding.value is not None:
            found[binding.key] = binding.value
    return _set(found.items())
