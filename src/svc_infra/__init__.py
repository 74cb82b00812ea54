"""svc-infra: everything between a FastAPI developer's handlers and production.

This front door is lazy (PEP 562): a name loads its room on first use, so `import svc_infra` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svc_infra.app.factory import create_app, easy_service_app, router
    from svc_infra.db.http import get_db
    from svc_infra.errors import SvcInfraError
    from svc_infra.security.http import get_current_user

__all__ = ["SvcInfraError", "__version__", "create_app", "easy_service_app", "get_current_user", "get_db", "router"]

__version__ = "0.1.0"

_HOMES = {
    "SvcInfraError": "svc_infra.errors",
    "create_app": "svc_infra.app.factory",
    "easy_service_app": "svc_infra.app.factory",
    "get_current_user": "svc_infra.security.http",
    "get_db": "svc_infra.db.http",
    "router": "svc_infra.app.factory",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
