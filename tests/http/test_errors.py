"""What HTTP clients raise, translated."""

from __future__ import annotations

import ssl

import httpcore2
import httpx2
import pytest

from svc_infra.errors import DeadlineExceededError, SvcInfraError, UpstreamError
from svc_infra.http.errors import translated

REQUEST = httpx2.Request("GET", "https://example.com/?token=s3cr3t")


def _of_httpx(name: str, parent: type[Exception]) -> type[Exception]:
    """A class as httpx defines it, which is not installed here."""
    return type(name, (parent,), {"__module__": "httpx"})


HttpxTimeout = _of_httpx("ReadTimeout", _of_httpx("TimeoutException", Exception))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx2.ReadTimeout("s3cr3t", request=REQUEST), DeadlineExceededError),
        (httpx2.PoolTimeout("s3cr3t"), DeadlineExceededError),
        (httpx2.ConnectError("s3cr3t"), UpstreamError),
        (httpx2.ReadError("s3cr3t"), UpstreamError),
        (httpx2.RemoteProtocolError("s3cr3t"), UpstreamError),
        (httpx2.DecodingError("s3cr3t"), UpstreamError),
        (httpx2.TooManyRedirects("s3cr3t"), UpstreamError),
        (httpx2.HTTPStatusError("s3cr3t", request=REQUEST, response=httpx2.Response(500)), UpstreamError),
        (httpx2.LocalProtocolError("s3cr3t"), SvcInfraError),
        (httpx2.UnsupportedProtocol("s3cr3t"), SvcInfraError),
        (httpx2.InvalidURL("s3cr3t"), SvcInfraError),
        (httpcore2.ConnectTimeout("s3cr3t"), DeadlineExceededError),
        (httpcore2.ConnectError("s3cr3t"), UpstreamError),
        (HttpxTimeout("s3cr3t"), DeadlineExceededError),
        (_of_httpx("ConnectError", Exception)("s3cr3t"), UpstreamError),
    ],
)
def test_each_error_of_the_httpx_family_has_a_home_in_the_tree(error: Exception, kind: type[SvcInfraError]) -> None:
    assert type(translated(error)) is kind
    assert "s3cr3t" not in str(translated(error))


def test_of_all_that_httpx2_raises_exactly_the_timeouts_are_missed_deadlines() -> None:
    exported = [kind for name in httpx2.__all__ if isinstance(kind := getattr(httpx2, name), type)]
    errors = [kind for kind in exported if issubclass(kind, httpx2.HTTPError)]
    assert len(errors) > 10
    for kind in errors:
        missed = isinstance(translated(kind.__new__(kind)), DeadlineExceededError)
        assert missed == issubclass(kind, httpx2.TimeoutException)


def test_a_bad_certificate_is_told_from_a_closed_port() -> None:
    refused = httpcore2.ConnectError()
    refused.__cause__ = ssl.SSLCertVerificationError()
    assert "TLS" in translated(refused).detail
    assert "cannot be reached" in translated(httpcore2.ConnectError()).detail
