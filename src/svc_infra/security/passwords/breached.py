"""Whether a password is known from a breach, asked without telling it (k-anonymity)."""

from __future__ import annotations

import asyncio
import logging
from hashlib import sha1

from svc_infra.errors import SvcInfraError
from svc_infra.http import HttpClient
from svc_infra.obs.metrics import metrics
from svc_infra.security.passwords.policy import refused

RANGE_URL = "https://api.pwnedpasswords.com/range/"
PREFIX_CHARACTERS = 5
MAX_CONCURRENT = 20
"""Passwords asked about at the same time; the question about one more is skipped."""

_log = logging.getLogger(__name__)


class BreachedPasswords:
    """Asks Have I Been Pwned, which gets the first 20 bits of a SHA-1 hash and answers with all hashes that begin so.

    No answer in time lets the password pass: it is counted (`auth_breach_check_total`) and logged, because a service
    elsewhere must not decide whether this one takes registrations.

    Args:
        http: Sends the questions.
        url: Where they go.
        timeout_seconds: Longest wait for an answer.
    """

    def __init__(self, http: HttpClient, *, url: str = RANGE_URL, timeout_seconds: float = 1.5) -> None:
        self._http = http
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._free = asyncio.Semaphore(MAX_CONCURRENT)

    async def check(self, password: str, *, pointer: str = "#/password") -> None:
        """Refuse a password that was part of a breach.

        Raises:
            ValidationError: It was.
        """
        digest = sha1(password.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest().upper()
        found = None if self._free.locked() else await self._found(digest)
        metrics.increment("auth.breach_check", result={None: "skipped", True: "refused", False: "passed"}[found])
        if found:
            raise refused("This password is known from a data breach: choose another.", pointer)

    async def _found(self, digest: str) -> bool | None:
        prefix, suffix = digest[:PREFIX_CHARACTERS], digest[PREFIX_CHARACTERS:]
        try:
            async with self._free:
                answer = await self._http.request(
                    "GET", self._url + prefix, headers={"Add-Padding": "true"}, timeout_seconds=self._timeout_seconds
                )
        except SvcInfraError as error:
            _log.warning("auth.breach_check_failed", extra={"reason": error.detail})
            return None
        if answer.status != 200:
            _log.warning("auth.breach_check_failed", extra={"reason": f"status {answer.status}"})
            return None
        for line in answer.body.decode("ascii", "replace").split():
            known, _, times = line.partition(":")
            if known == suffix:
                return times != "0"  # padding is answered as seen zero times
        return False
