"""What a task's function takes: what its jobs carry, and what the worker gives it."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from string import Formatter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, NotRequired, get_origin, get_type_hints
from urllib.parse import quote

import orjson
import pydantic
from pydantic_core import to_jsonable_python
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypedDict

from svc_infra.errors import ConfigurationError, ValidationError
from svc_infra.jobs.context import JobContext
from svc_infra.jobs.job import NAME_LIMIT_CHARS
from svc_infra.obs.logging import EventLogger, logger

if TYPE_CHECKING:
    from svc_infra.jobs.task import Task

KEY_DIGEST_CHARS = 32  # of the SHA-256 that ends a key which would be too long
KEY_SAFE = "@:.~+/"  # beside letters, digits, "_" and "-"; everything else of an argument is percent-encoded in a key


class Arguments:
    """What a task's function takes: the arguments that its jobs carry and those that the worker injects.

    A parameter is injected when it is annotated with `JobContext`, `AsyncSession`, a logger, or a class that cannot be
    read from JSON: an object of that class is what the app's wiring provides under it.

    Args:
        task: The task whose function to inspect.

    Attributes:
        context, session: The parameter that receives it, where there is one.
        given: Parameters that receive the same object for each job.
        provided: Parameters that receive what the wiring provides, and under which type.

    Raises:
        ConfigurationError: A parameter is variadic or positional-only, a type hint cannot be resolved or validated,
            a function in a thread asks for a session, or one in a process for anything.
    """

    def __init__(self, task: Task[..., Any]) -> None:
        self._name = task.name
        self.context: str | None = None
        self.session: str | None = None
        self.given: dict[str, object] = {}
        self.provided: dict[str, type] = {}
        self._defaults: dict[str, Any] = {}
        fields = self._sorted(task.function)
        self._fields = fields
        self._any = bool(fields)
        if self.session and not task.is_async:
            self._refuse("an AsyncSession needs an async function; use JobContext.db from one")
        if task.cpu and (self.context or self.session or self.given or self.provided):
            self._refuse("nothing can be injected into another process; leave `cpu` off, or enqueue what it needs")
        try:
            self._adapter = _adapter(fields)
        except pydantic.PydanticUserError as error:
            self._refuse(str(error).partition("\n")[0])

    @property
    def required(self) -> list[str]:
        """The parameters that jobs carry and that have no default, in their order."""
        return [name for name, field in self._fields.items() if get_origin(field) is not NotRequired]

    def encode(self, arguments: Mapping[str, Any], *, later: Collection[str] = ()) -> dict[str, Any]:
        """The payload for these arguments.

        Args:
            later: Parameters whose values are not known yet; the payload is without them.

        Raises:
            ValidationError: They do not fit the type hints, or are no JSON.
        """
        adapter = self._adapter
        if later:
            if unknown := sorted(set(later) - self._fields.keys()):
                raise ValidationError(f"{self._name} has no parameter {unknown[0]!r} that a job can carry.")
            adapter = _adapter({name: field for name, field in self._fields.items() if name not in later})
        try:
            payload = adapter.dump_python(adapter.validate_python(dict(arguments)), mode="json")
        except pydantic.ValidationError as error:
            raise self._invalid(error) from None  # its text would show values
        except ValueError as error:
            raise ValidationError(f"{self._name}: an argument cannot be stored as JSON.") from error
        return payload  # type: ignore[no-any-return]

    def decode(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments in this payload.

        Raises:
            ValidationError: They do not fit the type hints.
        """
        if not (self._any or payload):
            return {}
        try:
            return self._adapter.validate_json(orjson.dumps(dict(payload)))  # type: ignore[no-any-return]
        except pydantic.ValidationError as error:
            raise self._invalid(error) from None  # its text would show values

    def inject(self, arguments: dict[str, Any], context: JobContext, session: AsyncSession | None) -> None:
        """Add what the worker gives.

        Raises:
            ConfigurationError: The app does not provide it.
        """
        if self.context is not None:
            arguments[self.context] = context
        if self.session is not None:
            arguments[self.session] = session
        arguments.update(self.given)
        for name, kind in self.provided.items():
            arguments[name] = context.get(kind)

    def check_key(self, template: str) -> None:
        """Check that a key's placeholders, as in "account:{account_id}", are arguments.

        Raises:
            ConfigurationError: They are not.
        """
        try:
            parts = _parts(template)
        except ValueError as error:
            self._refuse(f"the key {template!r} cannot be read: {error}")
        for _, name, form, conversion in parts:
            if name is not None and (name not in self._defaults or form or conversion):
                self._refuse(f"the key {template!r} has the placeholder {name!r}, which is no argument of it")

    def key(self, template: str, payload: Mapping[str, Any]) -> str:
        """A key with a payload's arguments in the places of its placeholders; one that is too long ends in a digest."""
        if "{" not in template:
            return template
        made = "".join(
            literal + ("" if name is None else quote(_text(payload.get(name, self._defaults[name])), safe=KEY_SAFE))
            for literal, name, _, _ in _parts(template)
        )
        if len(made) <= NAME_LIMIT_CHARS:
            return made
        digest = hashlib.sha256(made.encode()).hexdigest()[:KEY_DIGEST_CHARS]
        return f"{made[: NAME_LIMIT_CHARS - KEY_DIGEST_CHARS - 1]}:{digest}"

    def _sorted(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Note what is injected; what is left, with its type."""
        hints = self._hints(function)
        fields: dict[str, Any] = {}
        loggers = {logging.Logger: logging.getLogger(function.__module__), EventLogger: logger}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                self._refuse(f"parameter {parameter.name!r} cannot be given by name")
            hint = hints.get(parameter.name, Any)
            kind = hint.__origin__ if get_origin(hint) is Annotated else hint
            if kind is JobContext:
                self.context = parameter.name
            elif kind is AsyncSession:
                self.session = parameter.name
            elif kind in (logging.Logger, EventLogger):
                self.given[parameter.name] = loggers[kind]
            elif isinstance(kind, type) and not _readable(hint):
                self.provided[parameter.name] = kind
            else:
                optional = parameter.default is not parameter.empty
                fields[parameter.name] = NotRequired[hint] if optional else hint
                self._defaults[parameter.name] = parameter.default if optional else None
        return fields

    def _hints(self, function: Callable[..., Any]) -> dict[str, Any]:
        inner = inspect.unwrap(function)  # a decorated function's hints name things of the module it was written in
        hints = {name: hint for name, hint in inspect.get_annotations(inner).items() if name != "return"}
        try:
            return get_type_hints(
                SimpleNamespace(__annotations__=hints), getattr(inner, "__globals__", {}), include_extras=True
            )
        except NameError as error:
            self._refuse(f"its type hint {error.name} is not defined at run time (is it only imported for typing?)")

    def _invalid(self, error: pydantic.ValidationError) -> ValidationError:
        problems = [
            {"loc": list(problem["loc"]), "detail": problem["msg"]}
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        named = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['detail']}" for one in problems[:3])
        return ValidationError(f"{self._name}: {named}", errors=problems)

    def _refuse(self, reason: str) -> NoReturn:
        raise ConfigurationError(f"Task {self._name}: {reason}.")


def storable(name: str, result: Any) -> Any:
    """What a task returned, as JSON.

    Raises:
        ValidationError: It is none.
    """
    try:
        return to_jsonable_python(result)
    except ValueError as error:
        raise ValidationError(f"{name} returned something that cannot be stored as JSON.") from error


def _adapter(fields: Mapping[str, Any]) -> pydantic.TypeAdapter[Any]:
    kind: Any = TypedDict("Arguments", dict(fields))  # type: ignore[misc]
    return pydantic.TypeAdapter(pydantic.with_config(extra="forbid")(kind))


def _readable(hint: Any) -> bool:
    """Whether values of this type can be read from JSON."""
    try:
        pydantic.TypeAdapter(hint)
    except pydantic.PydanticSchemaGenerationError:
        return False
    except pydantic.PydanticUserError:
        return True  # it could be, if it were written rightly: the task's own adapter says what is wrong
    return True


def _parts(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    return list(Formatter().parse(template))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(to_jsonable_python(value)).decode()
