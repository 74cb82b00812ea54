"""Where the documentation imports the app factory from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svc_infra.app import create_app, router

__all__ = ["create_app", "router"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from svc_infra import app

    return getattr(app, name)
