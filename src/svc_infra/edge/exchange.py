"""One request and the answer to it: how far it is, what may still be read, and what may still be sent."""

from __future__ import annotations

import asyncio
import re
import sys
from asyncio import current_task
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from time import monotonic

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from svc_infra.edge.admission import Admission
from svc_infra.errors import (
    DeadlineExceededError,
    PayloadTooLargeError,
    RequestTimeoutError,
    SvcInfraError,
    UnavailableError,
)
from svc_infra.middleware.problem import Headers as AnswerHeaders
from svc_infra.middleware.problem import as_problem, respond
from svc_infra.middleware.security_headers import SecurityHeaders, by_name
from svc_infra.obs.context import Context
from svc_infra.obs.logging import logger
from svc_infra.wiring import Phase, Wiring

SLOW_READ_SECONDS = 0.01
"""A handler that waits for a part of its body for longer leaves its place to others, and gets its time anew."""

_CLOSE = (b"connection", b"close")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""What no header's value may hold: RFC 9110, section 5.5."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every exchange of one app."""

    wiring: Wiring
    admission: Admission
    security: SecurityHeaders
    expose: bool
    max_body_bytes: int
    body_timeout_seconds: float
    min_body_bytes_per_second: int


class Exchange:
    """One request and the answer to it."""

    __slots__ = (
        "_cancelling",
        "_closes",
        "_cut",
        "_has_all",
        "_has_left",
        "_read_bytes",
        "_receive",
        "_rules",
        "_scope",
        "_send",
        "_task",
        "_waited_seconds",
        "admitted",
        "answer_headers",
        "began",
        "complete",
        "context",
        "disconnected",
        "error",
        "expired",
        "root_path",
        "sent_bytes",
        "status",
        "varies",
    )

    def __init__(self, rules: Rules, scope: Scope, receive: Receive, send: Send, context: Context) -> None:
        self._rules = rules
        self._scope = scope
        self._receive = receive
        self._send = send
        self.context = context
        self._task = task = current_task()
        self._cancelling = task.cancelling() if task is not None else 0
        self._closes = False
        self._cut: SvcInfraError | None = None
        self._has_all = False
        self._has_left = False
        self._read_bytes = 0
        self._waited_seconds = 0.0
        self.admitted = False
        self.answer_headers: list[Callable[[], AnswerHeaders]] = []
        self.began = 0.0
        self.complete = False
        self.disconnected = False
        self.error: BaseException | None = None
        self.expired = False
        self.root_path: str = scope.get("root_path", "")
        self.sent_bytes = 0
        self.status = 0
        self.varies = False
        """Another origin would get other headers."""

    def share(self, rules: CORSMiddleware, headers: Headers) -> None:
        """Tell the page that asks what it may read of whatever answer follows."""
        self._send = partial(rules.send, send=self._send, request_headers=headers)

    def expire(self) -> None:
        """Cancel the handler, whose time is over."""
        if self._task is not None:
            self.expired = True
            self._task.cancel()

    def leave(self) -> None:
        """Put everything back as it was, where the handler has ended in an unusual way."""
        if not self.status:
            self._rules.admission.leave(self)
        if self.expired and self._task is not None:  # the handler has swallowed its end
            self._task.uncancel()

    async def receive(self) -> Message:
        """Pass on what the client sends, up to the limit and as fast as it must."""
        if self._cut is not None:
            raise self._stop(self._cut)
        message = await (self._receive() if self._has_all else self._read())
        if message["type"] == "http.request":
            self._read_bytes += len(message.get("body", b""))
            self._has_all = not message.get("more_body", False)
            if self._read_bytes > self._rules.max_body_bytes:
                raise self._stop(PayloadTooLargeError())
        else:
            self.disconnected = True
        return message

    def send(self, message: Message, *, own: bool = False) -> Awaitable[None]:
        """Pass on what is answered; no coroutine of its own, which would cost more than it does.

        Args:
            message: What the app sends. Where it only got a part of the body, the client is told that instead.
            own: It is the edge's own answer.
        """
        if self._cut is not None and not own:
            return self._refuse(self._cut)
        kind = message["type"]
        if kind == "http.response.start":
            message = self._begun(message)
        elif kind == "http.response.body":
            if message.get("body"):
                if self._scope["method"] == "HEAD":
                    message = {**message, "body": b""}
                else:
                    self.sent_bytes += len(message["body"])
            self.complete = not message.get("more_body", False)
        elif kind == "http.response.pathsend":
            self.complete = True
        return self._send(message)

    def finish(self) -> None:
        """Refuse to take no answer for one, where the app has returned without.

        Raises:
            SvcInfraError: It has.
        """
        if not self.status and not self.disconnected:
            raise self._cut or SvcInfraError("The app returned without an answer.")

    async def fail(self, error: Exception) -> bool:
        """Answer an error that escaped from the app.

        Returns:
            False when the answer had begun and cannot be completed: the server must close the connection.
        """
        if self.status:
            if isinstance(error, ClientDisconnect):
                return True
            self._report(error)
            return self.complete
        if self.admitted and as_problem(error).status >= 500:
            self._report(error)
        await self._respond(error)
        return True

    def after_cancelling(self, error: BaseException) -> BaseException:
        """What has ended a handler that was cancelled: its deadline, unless somebody else has cancelled it too."""
        cancelled_too = self._task is not None and self._task.uncancel() > self._cancelling
        self.expired = False
        if self.status or cancelled_too:
            return error
        late = DeadlineExceededError("The answer did not begin in the time that the handler was given.")
        late.__cause__ = error  # its traceback shows where the handler was
        return late

    async def _read(self) -> Message:
        rules, started = self._rules, monotonic()
        allowed = rules.body_timeout_seconds + self._read_bytes / rules.min_body_bytes_per_second
        leaving = asyncio.get_running_loop().call_later(SLOW_READ_SECONDS, self._leave_place)
        is_over = True
        try:
            async with asyncio.timeout(allowed - self._waited_seconds):
                message = await self._receive()
        except TimeoutError:
            raise self._stop(RequestTimeoutError()) from None
        else:
            is_over = message["type"] != "http.request"
            return message
        finally:
            leaving.cancel()
            self._waited_seconds += monotonic() - started
            if self._has_left:
                await self._go_on(always=is_over)  # who has left or was told to is let through

    def _leave_place(self) -> None:
        self._has_left = True
        self._rules.admission.leave(self)

    async def _go_on(self, *, always: bool) -> None:
        """Have the handler's time and place again, unless its answer has begun."""
        admission, deadline = self._rules.admission, self.context.deadline
        self._has_left = False
        if self.status or admission.resume(self, always=always):
            return
        try:
            await admission.wait(self)
        except UnavailableError as error:
            raise self._stop(error) from None
        self.context.deadline = max(deadline, self.context.deadline)

    def _stop(self, reason: SvcInfraError) -> HTTPException:
        """Starlette's own class, which frameworks let pass where they take any other error for an unreadable body."""
        self._cut = reason
        self._closes = isinstance(reason, RequestTimeoutError)  # the rest may still come
        return HTTPException(reason.status, reason.detail, headers=reason.headers)

    async def _respond(self, error: Exception) -> None:
        await respond(self._scope, partial(self.send, own=True), error, expose=self._rules.expose)

    async def _refuse(self, reason: SvcInfraError) -> None:
        if not self.status:
            await self._respond(reason)

    def _begun(self, message: Message) -> Message:
        """The beginning of the answer with the headers that every answer has; the handler's time ends here."""
        rules, scope = self._rules, self._scope
        headers = list(message.get("headers", ()))
        if _CONTROL.search(b"".join([value for _, value in headers])):  # the server would close without an answer
            names = ", ".join(sorted({name.decode("latin-1") for name, value in headers if _CONTROL.search(value)}))
            raise SvcInfraError(f"The app answered with control characters in a header: {names}.")
        self.began = monotonic()
        self.status = message["status"]
        rules.admission.leave(self)
        self.context.deadline = inf  # what a stream or a background task calls has its own time
        if self.status >= 500 and self.admitted and self.error is None and (cause := sys.exc_info()[1]) is not None:
            self._report(cause)  # an exception handler inside the app is answering this one
        present = dict(headers)
        if not b"".join(present).islower():  # ASGI wants it so, and nearly everybody does it
            present = by_name(headers)
        if b"x-request-id" in present:
            headers = [header for header in headers if header[0].lower() != b"x-request-id"]
        for more in self.answer_headers:
            headers += more()
        if self.varies:
            headers.append((b"vary", b"Origin"))
        headers.append((b"x-request-id", self.context.request_id.encode()))
        headers += rules.security.missing(present, scope["scheme"] == "https")
        if (self._closes or rules.wiring.phase is Phase.DRAINING) and scope["http_version"][0] == "1":
            headers.append(_CLOSE)  # an idle connection would be closed while the client sends its next request
        return {**message, "headers": headers}

    def _report(self, error: BaseException) -> None:
        self.error = error
        logger.error("request.failed", exc_info=error, method=self._scope["method"], path=self._scope["path"])
