"""Keys: from a function and its arguments, the same in every process and on every day."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from pathlib import PurePath
from string import Formatter
from types import NoneType
from typing import Any
from urllib.parse import quote
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from pydantic import BaseModel

from svc_infra.errors import ConfigurationError

MAX_KEY_CHARACTERS = 250
"""Longer keys are cut and end in a hash of the whole."""

PLAIN = frozenset([NoneType, bool, int, float, str, bytes])
"""Types whose `repr` says everything, the same everywhere."""

_WRITTEN_AS_THEY_SHOW = frozenset([date, timedelta, Decimal, UUID])
_TIMEZONES = frozenset([NoneType, timezone, ZoneInfo])


class Arguments:
    """What a function takes, and what of it makes the key.

    Args:
        function: The function.
        ignore: Parameters that do not change the result, such as a session.

    Raises:
        ConfigurationError: There is no such parameter.
    """

    def __init__(self, function: Callable[..., Any], ignore: Iterable[str] = ()) -> None:
        self.name = f"{function.__module__}.{function.__qualname__}"
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters.values()
        self.names = frozenset(self._signature.parameters)
        self.check(ignore, "ignore")
        self._ignored = frozenset(ignore)
        self._positional = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
        self._defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
        self._is_simple = all(one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) for one in parameters)
        self.arity = len(self._positional) if not self._ignored and len(self._positional) == len(parameters) else -1
        """How many arguments a call has whose positional arguments are the key's values; -1: none is like that."""

    def check(self, used: Iterable[str], where: str) -> None:
        """Refuse names that are no parameters.

        Raises:
            ConfigurationError: They are not.
        """
        if unknown := sorted(set(used) - self.names):
            raise ConfigurationError(f"{where} names {', '.join(unknown)}, which {self.name} does not take.")

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Every argument by its parameter, defaults included.

        Raises:
            TypeError: The function does not take these.
        """
        given = dict(zip(self._positional, args, strict=False)) if len(args) <= len(self._positional) else {}
        if self._is_simple and len(given) == len(args) and not given.keys() & kwargs.keys():
            filled = {**self._defaults, **given, **kwargs}
            if filled.keys() == self.names:  # else Python says what is wrong with this call
                return {name: filled[name] for name in self._signature.parameters}
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def text(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """The arguments as the key shows them.

        Raises:
            TypeError: The function does not take these.
            ConfigurationError: One of them is no value.
        """
        named = self.named(args, kwargs)
        try:
            return text_of(tuple(value for name, value in named.items() if name not in self._ignored))
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.name}: {error.detail}") from None


def text_of(value: Any) -> str:
    """A value as text: equal values of one type give one text, and different ones never the same.

    Raises:
        ConfigurationError: It is an object that no text stands for.
    """
    kind = type(value)
    if kind in PLAIN or kind in _WRITTEN_AS_THEY_SHOW:
        return repr(value)
    if kind is tuple:
        return repr(value) if PLAIN.issuperset(map(type, value)) else f"({_joined(value)},)"
    if kind is list:
        return f"[{_joined(value)}]"
    if kind is dict:
        return f"{{{', '.join(sorted(f'{text_of(k)}: {text_of(v)}' for k, v in value.items()))}}}"
    if kind in (set, frozenset):
        return f"{kind.__name__}({', '.join(sorted(map(text_of, value)))})"
    if kind in (datetime, time) and type(value.tzinfo) in _TIMEZONES:
        return repr(value)
    return f"{kind.__module__}.{kind.__qualname__}({_inside(value)})"


def _inside(value: Any) -> str:
    """What a class of the application holds."""
    if isinstance(value, Enum):
        return text_of(value.value)
    for plain in (str, int, float, bytes):
        if isinstance(value, plain):
            return plain.__repr__(value)
    if isinstance(value, PurePath):
        return repr(str(value))
    if isinstance(value, tuple):
        return _joined(value)
    if is_dataclass(value) and not isinstance(value, type):
        return text_of({field.name: getattr(value, field.name) for field in fields(value)})
    if isinstance(value, msgspec.Struct):
        return text_of({name: getattr(value, name) for name in value.__struct_fields__})
    if isinstance(value, BaseModel):
        return text_of({**value.__dict__, **(value.model_extra or {})})
    raise ConfigurationError(
        f"{type(value).__qualname__} cannot be part of a key: give `key=`, or `ignore=` if it does not matter."
    )


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(map(text_of, values))


class Template:
    """Text with arguments in it, such as `user:{user_id}` or `{order.customer_id}`.

    Args:
        text: The template.
        arguments: Those of the function that it is for.

    Raises:
        ConfigurationError: It cannot be read, or names what the function does not take.
    """

    def __init__(self, text: str, arguments: Arguments) -> None:
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise ConfigurationError(f"{text!r} is no template: {error}.") from error
        if any(spec or conversion for _, _, spec, conversion in parts):
            raise ConfigurationError(f"{text!r} formats its values: a template only names them.")
        self._parts = [(literal, field) for literal, field, _, _ in parts]
        used = [field for _, field in self._parts if field is not None]
        arguments.check((field.partition(".")[0].partition("[")[0] for field in used), repr(text))

    def fill(self, named: Mapping[str, Any], *, quoted: bool) -> str:
        """The text with the values in it.

        Args:
            named: The arguments.
            quoted: Write every value so that it cannot be mistaken for the text around it, or for two values.
        """
        filled = []
        for literal, field in self._parts:
            filled.append(literal)
            if field is not None:
                value = str(Formatter().get_field(field, (), named)[0])
                filled.append(quote(value, safe="@ ", errors="surrogatepass") if quoted else value)
        return "".join(filled)


def shortened(key: str) -> str:
    """The key, cut and hashed when it is long."""
    if len(key) <= MAX_KEY_CHARACTERS:
        return key
    digest = blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{key[: MAX_KEY_CHARACTERS - 33]}#{digest}"
