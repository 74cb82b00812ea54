"""A unit of work: one transaction, and what is to happen once it is committed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from inspect import isawaitable
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from svc_infra.errors import ConfigurationError
from svc_infra.obs import metrics

FINISH_SECONDS = 10.0
"""How long a cancelled unit of work may still take to commit or roll back before its connection is given up."""

T = TypeVar("T")
Callback = Callable[[], Awaitable[object] | object]
Write = Callable[[AsyncSession, list[Any]], Awaitable[object]]

_log = logging.getLogger(__name__)


class _Session(Session):
    """Remembers each callback, and what is written last, with the transaction or savepoint that it depends on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.callbacks: dict[Callback, SessionTransaction | None] = {}
        self.last: list[tuple[Write, Any, SessionTransaction | None]] = []


class UnitOfWork(AsyncSession):
    """The session that `AsyncDatabase.session()` hands out."""

    sync_session_class = _Session
    sync_session: _Session

    async def commit(self) -> None:
        """Write what `write_last` was given, commit, then run the callbacks of `after_commit`."""
        while last := self.sync_session.last:
            await self.flush()  # takes its locks before those of what is written last
            self.sync_session.last = []
            for write in dict.fromkeys(write for write, _, _ in last):
                await write(self, [item for one, item, _ in last if one == write])
        await super().commit()
        if callbacks := self.sync_session.callbacks:
            self.sync_session.callbacks = {}
            for callback in callbacks:
                await _run(callback)

    async def abandon(self) -> None:
        """Roll back; a connection that cannot do even that is thrown away."""
        try:
            await self.close()
        except Exception as error:  # noqa: BLE001  what ended the unit of work is what its caller must see
            _log.warning("db.rollback_failed", exc_info=error)
            await self.invalidate()

    @property
    def has_work(self) -> bool:
        """Whether there is anything to commit."""
        return self.in_transaction() or bool(self.sync_session.callbacks or self.sync_session.last)


def after_commit(session: AsyncSession | Session, callback: Callback) -> None:
    """Call back once this unit of work is committed; never, when it or the savepoint open now is rolled back.

    Callbacks run in the order of registration, one that is registered twice runs once. The commit stands whatever
    they do: one that raises is logged and counted (`db.after_commit_failed`) and the next one runs. A process that dies
    between the commit and the callback never runs it, so what must not be lost belongs in the outbox.

    Args:
        session: A unit of work of `AsyncDatabase.session()`, or the plain session in it, which ORM events know.
        callback: A function or coroutine function without arguments.

    Raises:
        ConfigurationError: The session is not one of `AsyncDatabase`.
    """
    inner = session.sync_session if isinstance(session, UnitOfWork) else session
    if not isinstance(inner, _Session):
        raise ConfigurationError("after_commit needs a session that AsyncDatabase.session() made.")
    inner.callbacks.setdefault(callback, inner.get_nested_transaction())


def write_last(session: AsyncSession, write: Write, item: Any) -> None:
    """Have something written in the last moment of this unit of work, just before its commit.

    For rows that many transactions contend for: a lock on them is then held for the commit alone. What was given for
    the same function is written by one call, in order; it goes with the savepoint that is open now, when that is rolled
    back. When writing fails, nothing is committed.

    Args:
        session: A unit of work of `AsyncDatabase.session()`.
        write: Called with the session and all items.
        item: What to write.

    Raises:
        ConfigurationError: The session is not one of `AsyncDatabase`.
    """
    if not isinstance(session, UnitOfWork):
        raise ConfigurationError("write_last needs a session that AsyncDatabase.session() made.")
    inner = session.sync_session
    if not inner.in_transaction():
        inner.begin()  # so that a rollback before the first statement is one
    inner.last.append((write, item, inner.get_nested_transaction()))


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Do this work to its end even when the caller is cancelled meanwhile; then let the cancellation through.

    A commit that is interrupted leaves nobody knowing whether it happened, and a connection that must be thrown away.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _settled(task)
        raise


async def _settled(task: asyncio.Future[Any]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + FINISH_SECONDS
    while not task.done():
        try:
            if loop.time() >= deadline:
                task.cancel()
            await asyncio.wait({task}, timeout=max(0.1, deadline - loop.time()))
        except asyncio.CancelledError:
            continue  # cancelled again while finishing: the caller of this function raises the first one
    if not task.cancelled() and (error := task.exception()):
        _log.warning("db.finish_failed", exc_info=error)


async def _run(callback: Callback) -> None:
    try:
        result = callback()
        if isawaitable(result):
            await result
    except Exception:  # noqa: BLE001  the commit stands
        metrics.increment("db.after_commit_failed")
        _log.exception("db.after_commit_failed", extra={"callback": repr(callback)})


@event.listens_for(_Session, "after_soft_rollback")
def _forget(session: _Session, rolled_back: SessionTransaction) -> None:
    def depends(transaction: SessionTransaction | None) -> bool:
        while transaction is not None and transaction is not rolled_back:
            transaction = transaction.parent
        return transaction is rolled_back

    if rolled_back.parent is None:
        session.callbacks.clear()
        session.last.clear()
    else:
        session.last = [one for one in session.last if not depends(one[2])]
        session.callbacks = {call: within for call, within in session.callbacks.items() if not depends(within)}
