"""Optional dependencies, loaded when used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from svc_infra.errors import MissingExtraError

_EXTRA_OF = {  # what differs from the module's own name
    "aiosmtplib": "mail",
    "asyncpg": "postgres",
    "bcrypt": "auth",
    "obstore": "s3",
    "opentelemetry": "otel",
    "pymongo": "mongo",
    "pyotp": "mfa",
    "rich": "cli",
    "segno": "mfa",
    "typer": "cli",
    "webauthn": "mfa",
}


def need(module: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: The module's full name, such as `redis.asyncio`.

    Returns:
        The module.

    Raises:
        MissingExtraError: It is not installed; the message is the pip line that installs it.
    """
    top = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise MissingExtraError(top, _EXTRA_OF.get(top, top)) from error
