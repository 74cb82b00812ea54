"""Schedules in a YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError as PydanticError

from svc_infra._optional import need
from svc_infra.errors import ConfigurationError, ValidationError
from svc_infra.jobs.schedules.definition import Definition
from svc_infra.jobs.schedules.schedule import Schedule
from svc_infra.jobs.task import Task, by_name

DOCUMENT_LIMIT_BYTES = 1024 * 1024


def load_schedules(path: str | Path, tasks: Iterable[Task[..., Any]]) -> list[Schedule]:
    """Read schedules from a YAML file: a mapping of each one's name to its definition.

    ```yaml
    weekly-report:
      task: reports.send
      cron: "0 7 * * MON"
      tz: Europe/Berlin
      payload: {kind: long}
      overlap: skip
    ```

    Args:
        path: The file; up to 1 MiB.
        tasks: Those that it names.

    Returns:
        The schedules, for `add_jobs` or `Scheduler`.

    Raises:
        ConfigurationError: The file cannot be read, or something in it is wrong; the message has its line and its key.
        MissingExtraError: PyYAML is not installed.
    """
    yaml = need("yaml")
    path = Path(path)
    try:
        text = path.read_bytes()
        if len(text) > DOCUMENT_LIMIT_BYTES:
            raise ConfigurationError(f"{path} is {len(text):,} bytes long; the limit is {DOCUMENT_LIMIT_BYTES:,}.")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"{path}{where}: no YAML: {getattr(error, 'problem', None) or error}.") from None
    lines = _Lines(path, root)
    if content is None:
        return []
    if not isinstance(content, dict):
        raise lines.wrong((), "a file of schedules maps names to definitions")
    known = by_name(tasks)
    return [_schedule(name, definition, known, lines) for name, definition in content.items()]


def _schedule(name: Any, definition: Any, tasks: dict[str, Task[..., Any]], lines: _Lines) -> Schedule:
    if not isinstance(name, str):
        raise lines.wrong((name,), "a schedule's name is text: put it in quotes")
    try:
        return Definition.model_validate(definition).schedule(name, tasks)
    except PydanticError as error:
        first = error.errors(include_url=False)[0]
        known = f": use {', '.join(Definition.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise lines.wrong((name, *first["loc"]), f"{first['msg'].rstrip('.')}{known}") from None
    except (ConfigurationError, ValidationError) as error:
        raise lines.wrong((name,), error.detail.rstrip(".")) from None


class _Lines:
    """Where each key of the file is; refuses a mapping that has one twice, of which YAML would drop the first."""

    def __init__(self, path: Path, root: Any) -> None:
        self._path = path
        self._lines: dict[tuple[Any, ...], int] = {}
        for keys, line in _keys(root, ()):
            if self._lines.setdefault(keys, line) != line:
                raise self.wrong(keys, f"is here for the second time, after line {self._lines[keys]}", line)

    def wrong(self, keys: tuple[Any, ...], what: str, line: int | None = None) -> ConfigurationError:
        """The error of a key, or of the nearest one around it that is in the file."""
        if line is None:
            line = next((self._lines[keys[:end]] for end in range(len(keys), 0, -1) if keys[:end] in self._lines), 1)
        named = f"{'.'.join(map(str, keys))}: " if keys else ""
        return ConfigurationError(f"{self._path}, line {line}: {named}{what}.")


def _keys(node: Any, above: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], int]]:
    if getattr(node, "id", None) == "mapping" and len(above) < 3:  # the keys inside of a payload are the task's own
        for key, value in node.value:
            keys = (*above, key.value)
            yield keys, key.start_mark.line + 1
            yield from _keys(value, keys)
