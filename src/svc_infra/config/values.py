"""Kinds of values that several sections have."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated

from pydantic import BeforeValidator, Field

PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def checked_networks(values: tuple[str, ...]) -> tuple[str, ...]:
    """Networks, or the word for a socket file.

    Raises:
        ValueError: One is neither.
    """
    for value in values:
        if value != "unix":
            ip_network(value)
    return values


def checked_site_data(values: tuple[str, ...]) -> tuple[str, ...]:
    """What `Clear-Site-Data` may name, or the word for nothing.

    Raises:
        ValueError: One is something else.
    """
    if not {"cache", "cookies", "storage"}.issuperset(values) and values != ("off",):
        raise ValueError("name cache, cookies and storage, or off alone")
    return values


def in_capitals(value: object) -> object:
    """A text in capitals."""
    return value.upper() if isinstance(value, str) else value


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ManySeconds = Annotated[tuple[PositiveSeconds, ...], BeforeValidator(_split)]
"""Written with commas in the environment."""
Many = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""Written with commas in the environment."""
