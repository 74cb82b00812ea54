"""Password hashes: argon2id, computed beside the event loop in a bounded pool."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import NamedTuple, TypeVar

from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher

from svc_infra._optional import need
from svc_infra.errors import RateLimitedError
from svc_infra.security.passwords.policy import MAX_PASSWORD_BYTES, MAX_PASSWORD_CHARACTERS, refused

T = TypeVar("T")

BCRYPT_BYTES = 72
"""What bcrypt reads of a password; what made the old hashes cut it there."""

_BCRYPT = ("$2a$", "$2b$", "$2y$")

_log = logging.getLogger(__name__)


class Verification(NamedTuple):
    """Whether the password is right, and the hash to store instead when today's parameters ask for more work."""

    matches: bool
    new_hash: str | None = None


class PasswordHasher:
    """Hashes and verifies passwords with argon2id (RFC 9106).

    Hashing is meant to be slow, so it runs in threads (argon2 releases the interpreter lock) and what does not fit is
    refused at once: other requests stay fast however many logins arrive.

    A bcrypt hash of an older system is verified too, with the extra `auth`, and replaced at the first login. Until then
    its owner's logins take as long as bcrypt does, which tells that the account is such an old one.

    Args:
        concurrency: Passwords hashed at the same time; one thread each.
        max_waiting: Passwords that may wait for a thread; one more is refused.
        memory_kib: Memory for one hash, in KiB. The default costs are OWASP's (Password Storage Cheat Sheet).
        passes: Passes over that memory.
    """

    def __init__(
        self, *, concurrency: int = 2, max_waiting: int = 64, memory_kib: int = 19 * 1024, passes: int = 2
    ) -> None:
        self._argon2 = PasswordHash((Argon2Hasher(memory_cost=memory_kib, time_cost=passes, parallelism=1),))
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="svc-infra-passwords")
        self._places = BoundedSemaphore(concurrency + max_waiting)
        self._nobodys_hash = self._argon2.hash(secrets.token_bytes(32))

    async def hash(self, password: str) -> str:
        """The hash to store, with a salt of its own.

        Raises:
            ValidationError: The password is longer than `MAX_PASSWORD_BYTES` or is no text.
            RateLimitedError: Too many passwords are waiting.
        """
        encoded = _encoded(password)
        if encoded is None:
            raise refused(f"A password has at most {MAX_PASSWORD_CHARACTERS} characters.")
        return await self._in_thread(lambda: self._argon2.hash(encoded))

    async def verify(self, password: str, password_hash: str | None) -> Verification:
        """Compare a password with a stored hash.

        Args:
            password: What the caller sent.
            password_hash: None for an unknown account, or one without a password: the same work is done, in vain.

        Raises:
            RateLimitedError: Too many passwords are waiting.
        """
        encoded = _encoded(password)
        if encoded is None:
            return Verification(matches=False)
        return await self._in_thread(lambda: self._verify(encoded, password_hash))

    def close(self) -> None:
        """Let the threads end; what waits is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, password: bytes, password_hash: str | None) -> Verification:
        if password_hash is not None and password_hash.startswith(_BCRYPT):
            matches = _bcrypt_matches(password, password_hash)
            return Verification(matches, self._argon2.hash(password) if matches else None)
        if password_hash is not None:
            try:
                return Verification(*self._argon2.verify_and_update(password, password_hash))
            except UnknownHashError:
                _log.warning("auth.password_hash_unknown")  # refused below, like an account without a password
        self._argon2.verify(password, self._nobodys_hash)
        return Verification(matches=False)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if not self._places.acquire(blocking=False):
            raise RateLimitedError("Too many logins at once: try again shortly.", retry_after_seconds=1)
        future: Future[T] = self._threads.submit(work)
        # Released when the work ends, not when its caller does: a client that hangs up must not make room for more.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)


def _bcrypt_matches(password: bytes, password_hash: str) -> bool:
    try:
        return bool(need("bcrypt").checkpw(password[:BCRYPT_BYTES], password_hash.encode()))
    except ValueError:
        _log.warning("auth.password_hash_unknown")
        return False


def _encoded(password: str) -> bytes | None:
    if len(password) > MAX_PASSWORD_BYTES:
        return None
    try:
        encoded = password.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can carry
        return None
    return encoded if len(encoded) <= MAX_PASSWORD_BYTES else None
