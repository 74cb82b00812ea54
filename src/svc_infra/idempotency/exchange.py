"""One request on a guarded route: what it has claimed, and what becomes of that."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response
from starlette.types import Message, Send

from svc_infra.db import after_commit
from svc_infra.db.unit_of_work import finished
from svc_infra.errors import ConfigurationError, IdempotencyKeyInUseError, IdempotencyKeyReusedError, SvcInfraError
from svc_infra.idempotency.answer import Answer
from svc_infra.idempotency.key import KEY_HEADER
from svc_infra.idempotency.store import Claim, IdempotencyStore, Refusal
from svc_infra.obs import metrics

RETRY_AFTER_SECONDS = 1
"""What a request is told that came while another one with its key was being handled."""
FIRST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 0.25

_log = logging.getLogger(__name__)


class Exchange:
    """Takes a request from the claim of its key to the answer that is kept for it.

    In this order: `begin`; the handler; `conclude`, with the handler's unit of work still open; its commit or rollback;
    `send`; `close`. The answer is kept with the commit where the store can, else right after it, and where there is no
    unit of work before it is sent.

    Args:
        send: Where the answer goes.
        max_answer_bytes: The largest answer that is kept.
    """

    def __init__(self, send: Send, *, max_answer_bytes: int) -> None:
        self._forward = send
        self._max_answer_bytes = max_answer_bytes
        self._store: IdempotencyStore | None = None
        self._claim: Claim | None = None  # the one that nothing has settled yet
        self._concluded: Answer | None = None
        self._is_decided = True
        self._start: Message | None = None

    async def begin(
        self, store: IdempotencyStore, key: str, fingerprint: str, *, wait_seconds: float = 0
    ) -> Answer | None:
        """Claim a key.

        Args:
            store: Where it is kept.
            key: Its name there.
            fingerprint: Which request it stands for.
            wait_seconds: How long to wait for another request that holds it.

        Returns:
            The answer that was kept for the key; None when the request must be handled.

        Raises:
            IdempotencyKeyInUseError: Another request still holds the key.
            IdempotencyKeyReusedError: The key stands for another request.
            UnavailableError: The store cannot be reached.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        pause = FIRST_PAUSE_SECONDS
        while (outcome := await finished(self._claimed(store, key, fingerprint))) is Refusal.IN_PROGRESS:
            left = deadline - loop.time()
            if left <= 0:
                _count("in_progress")
                raise IdempotencyKeyInUseError(retry_after_seconds=RETRY_AFTER_SECONDS)
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        if isinstance(outcome, Claim):
            _count("first")
            return None
        if isinstance(outcome, Answer):
            _count("replayed")
            return outcome
        _count("reused")
        raise IdempotencyKeyReusedError

    async def _claimed(self, store: IdempotencyStore, key: str, fingerprint: str) -> Claim | Answer | Refusal:
        """Claim once; whoever is cancelled meanwhile still knows of the claim, and `close` lets go of it."""
        outcome = await store.claim(key, fingerprint)
        if isinstance(outcome, Claim):
            self._store, self._claim = store, outcome
        return outcome

    def leave_running(self) -> None:
        """The request has ended and its handler has not: nobody else gets the key before the lease ends."""
        self._claim = None

    def leave_undecided(self) -> None:
        """The request failed for a reason that no handler decided on: its answer is not kept."""
        self._is_decided = False

    async def conclude(self, response: Response, session: AsyncSession | None) -> None:
        """Take the handler's answer, before its unit of work commits; the answer becomes part of that where it can.

        Args:
            response: The answer, complete.
            session: The handler's unit of work, if it has one.

        Raises:
            ConfigurationError: The answer is streamed or too large to be kept.
            IdempotencyKeyInUseError: The lease has ended and another request holds the key; nothing may be committed.
        """
        if self._claim is None or self._store is None:
            return
        answer = self._concluded = self._kept(response)
        if session is None:
            return
        if not self._store.joins(session):  # whatever happens to the request between the commit and its answer
            after_commit(session, lambda: self._settle(answer if answer.is_final else None))
            return
        end = self._store.finish(self._claim, answer, session=session) if answer.is_final else None
        if not await (end or self._store.release(self._claim, session=session)):
            self._claim = None
            _count("lost")
            raise IdempotencyKeyInUseError(
                "This request took too long, and another one with its key is being handled.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        after_commit(session, self._settled)

    async def send(self, message: Message) -> None:
        """Pass an answer on; one that is still to be kept is kept first."""
        if self._claim is None:
            await self._forward(message)
        elif message["type"] == "http.response.start":
            self._start = message
        elif self._start is not None:
            start, self._start = self._start, None
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            sent = start["status"], start.get("headers", ()), message.get("body", b"")
            answer = Answer.of(*sent) if whole else None
            await self._settle(answer if answer is not None and self._keeps(answer) else None)
            await self._forward(start)
            await self._forward(message)
        else:
            await self._forward(message)

    async def close(self) -> None:
        """Let go of a key for which there was no answer."""
        if self._claim is not None:
            await self._settle(None)

    def _kept(self, response: Response) -> Answer:
        if type(response).__call__ is not Response.__call__:
            raise ConfigurationError(
                f"A route with an {KEY_HEADER} answered with a {type(response).__name__}, which is streamed and cannot "
                "be kept: return the whole answer, or take the key off the route."
            )
        answer = Answer.of(response.status_code, response.raw_headers, bytes(response.body))
        if answer.is_final and answer.size_bytes > self._max_answer_bytes:
            raise ConfigurationError(
                f"A route with an {KEY_HEADER} answered with {answer.size_bytes} bytes, and "
                f"IDEMPOTENCY_MAX_ANSWER_BYTES allows {self._max_answer_bytes}."
            )
        return answer

    def _keeps(self, answer: Answer) -> bool:
        """Whether an answer that is about to be sent is the handler's own, and not that of a commit that failed."""
        if self._concluded is not None:
            return answer == self._concluded and answer.is_final
        return self._is_decided and answer.is_final and answer.size_bytes <= self._max_answer_bytes

    async def _settle(self, answer: Answer | None) -> None:
        claim, self._claim = self._claim, None
        if claim is None or self._store is None:
            return
        end = self._store.release(claim) if answer is None else self._store.finish(claim, answer)
        try:
            held = await finished(end)
        except SvcInfraError as error:  # what has happened has happened: the client must hear of it, the lease will end
            _count("not_kept")
            _log.error("idempotency.answer_not_kept", exc_info=error)
            return
        if not held:
            _count("lost")
            _log.warning("idempotency.lease_lost", extra={"status": None if answer is None else answer.status})

    def _settled(self) -> None:
        self._claim = None


def _count(outcome: str) -> None:
    metrics.increment("idempotency.requests", outcome=outcome)
