"""What an app's operations are called, and that no two of them are called the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from svc_infra.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Attributes:
        method: Upper case.
        path: As the router matches it, converters included.
        documented_path: As OpenAPI shows it.
        operation_id: Its name in OpenAPI and in generated clients; None when it is not documented.
        home: The function that serves it, as `module.name`.
    """

    method: str
    path: str
    documented_path: str
    operation_id: str | None
    home: str

    def __str__(self) -> str:
        return f"{self.method} {self.path} ({self.home})"


def operation_id(methods: Iterable[str], path: str) -> str:
    """The name that a method and a path make: `GET /projects/{id}/tickets` is `get_projects_by_id_tickets`.

    It follows from the address alone, so renaming a function or a module changes no generated client.

    Args:
        methods: One method, or the several of one route.
        path: The path with its parameters in braces.
    """
    words = re.sub(r"\{(\w+)[^}]*\}", r"_by_\1_", path)
    name = "_".join(word for word in re.split(r"[\W_]+", words) if word) or "root"
    return "_".join([*sorted(method.lower() for method in methods), name])


def refuse_duplicates(operations: Sequence[Operation]) -> None:
    """Check that every operation has an address and a name of its own.

    Raises:
        ConfigurationError: Two do not; the message names both.
    """
    addresses: dict[tuple[str, str], Operation] = {}
    names: dict[str, Operation] = {}
    for operation in operations:
        twin = addresses.setdefault((operation.method, operation.path), operation)
        if twin is not operation:
            mend = "remove one of them, or include its router only once"
            raise ConfigurationError(f"{twin} and {operation} have the same address: {mend}.")
        if operation.operation_id is None:
            continue
        twin = names.setdefault(operation.operation_id, operation)
        if twin is not operation:
            mend = "give one of them another operation_id"
            raise ConfigurationError(f"{twin} and {operation} are both {operation.operation_id!r}: {mend}.")
