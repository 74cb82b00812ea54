"""Addresses that hide their password when they are printed."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token|key)[^=&]*=)[^&]*", re.IGNORECASE)


def mask_url(url: str) -> str:
    """The URL with its password, and every query parameter that is named like a secret, replaced by `***`.

    Works on URLs that no parser would take: whatever stands between the first colon and the last `@` is hidden.
    """
    start = len(scheme.group()) if (scheme := _SCHEME.match(url)) else 0
    credentials, at, host = url[start:].rpartition("@")
    user, colon, _ = credentials.partition(":")
    masked = f"{url[:start]}{user}:***@{host}" if colon else f"{url[:start]}{credentials}{at}{host}"
    return _SECRET_PARAMETER.sub(r"\1***", masked)


class Url(str):
    """A URL; `str(url)` is the whole of it, `repr(url)` and JSON hide the password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(mask_url(self))


UrlSetting = Annotated[str, AfterValidator(Url), PlainSerializer(mask_url, return_type=str, when_used="json")]
