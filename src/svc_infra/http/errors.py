"""Turns what HTTP clients raise into the errors of `svc_infra.errors`, whichever of the httpx family raised it."""

from __future__ import annotations

import ssl

from svc_infra.errors import DeadlineExceededError, SvcInfraError, UpstreamError

_LIBRARIES = frozenset({"httpcore", "httpcore2", "httpx", "httpx2"})


def translated(error: BaseException) -> SvcInfraError:
    """The library's error for a failed call; the URL, which may hold a secret, stays out of its message.

    Goes by the names of the error's classes, so that none of these libraries needs to be installed.
    """
    names = _names(error)
    if "TimeoutException" in names or isinstance(error, TimeoutError):
        return DeadlineExceededError("The other service did not answer in time.")
    if "InvalidURL" in names or "UnsupportedProtocol" in names or "LocalProtocolError" in names:
        return SvcInfraError("The request to the other service is malformed.")
    if "HTTPStatusError" in names:
        return UpstreamError("The other service answered with an error.")
    if isinstance(error.__cause__ or error.__context__, ssl.SSLError):
        return UpstreamError("The TLS certificate or handshake of the other service is not acceptable.")
    if "ConnectError" in names:
        return UpstreamError("The other service cannot be reached.")
    if "ProtocolError" in names or "DecodingError" in names:
        return UpstreamError("The other service did not answer in proper HTTP.")
    return UpstreamError("The connection to the other service broke off.")


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__ if kind.__module__.partition(".")[0] in _LIBRARIES}
