"""Lines that a thread writes, so that no request waits for a terminal, a pipe or a disk."""

from __future__ import annotations

import errno
import os
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import Event, Lock, Thread
from typing import Any, Generic, Protocol, TextIO, TypeVar
from weakref import ref

T = TypeVar("T")

MAX_LINES = 8192
"""Most lines that wait to be written; those that come when so many wait are dropped and counted."""
FLUSH_LINES = 512
"""When so many wait, they are written without waiting for more."""
FLUSH_SECONDS = 0.2
"""Longest wait of a line, and the most that is lost when the process is killed."""
BATCH_LINES = 64
"""So many are made at once. Making them keeps the interpreter busy, so a batch is the longest that requests wait."""


class Told(Protocol):
    """What a line tells that is made later, such as the end of a request."""

    def line(self, at: float, pid: int) -> dict[str, Any]:
        """The line without the facts of its context; nothing in it is long, and nothing is secret.

        Args:
            at: The time, in seconds since 1970.
            pid: The process.
        """
        ...


class LineBuffer(Generic[T]):
    """Collects what is to be written as lines on standard error.

    Making many lines one after the other costs less than making each on its request's way, so they wait until there is
    a batch of them. Who brings the last one makes them all: a thread that made thousands would keep the interpreter
    from the event loop for all that time, because Python runs one thread at a time.

    Args:
        make: Makes a line, which ends in a newline, and never fails.
        make_dropped: Makes the line that tells how many lines were dropped since the last such line.
        max_lines: Most lines that wait.
        flush_lines: Written without waiting for more when so many wait.
        flush_seconds: Longest wait of a line.
    """

    def __init__(
        self,
        make: Callable[[T], bytes],
        make_dropped: Callable[[int], bytes],
        *,
        max_lines: int = MAX_LINES,
        flush_lines: int = FLUSH_LINES,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self.dropped = 0
        self.pid = os.getpid()
        self._make = make
        self._make_dropped = make_dropped
        self._max_lines = max_lines
        self._flush_lines = flush_lines
        self._flush_seconds = flush_seconds
        self._thread: Thread | None = None
        self._is_begun = False
        self._unmade: deque[T] = deque()  # whose ends are safe to use from several threads without a lock
        self._made: list[bytes] = []
        self._made_lines = 0
        self._stream: TextIO | None = sys.stderr
        self._told = 0
        self._lock, self._writing = Lock(), Lock()
        self._begun, self._full = Event(), Event()
        os.register_at_fork(after_in_child=partial(_start_over, ref(self)))

    def put(self, line: T) -> None:
        """Take what is to become a line; it is dropped and counted where too many wait already."""
        self._unmade.append(line)
        if len(self._unmade) >= BATCH_LINES:
            self._make_batch()
        if not self._is_begun:
            self._begin()

    def flush(self) -> None:
        """Write what waits."""
        with self._writing:
            self._is_begun = False  # before anything is taken: what comes now is seen here, or begins anew
            with self._lock:
                self._make_waiting()
                made, lines = self._made, self._made_lines
                self._made, self._made_lines = [], 0
                stream, dropped = self._stream, self.dropped
            if lines:
                self._write(stream, b"".join(made), lines=lines)
            if dropped != self._told:
                self._write(stream, self._make_dropped(dropped - self._told), lines=0)
                self._told = dropped

    def start_over(self) -> None:
        """Begin anew in the child of a fork: what waits is the parent's to write, and its thread is not here."""
        self.pid = os.getpid()
        self._thread = None
        self._is_begun = False
        self._unmade.clear()
        self._made, self._made_lines = [], 0
        self._told = self.dropped
        self._lock, self._writing = Lock(), Lock()
        self._begun, self._full = Event(), Event()

    def _make_batch(self) -> None:
        with self._lock:
            if len(self._unmade) < BATCH_LINES:  # another thread has just made them
                return
            self._make_waiting()
            is_full = self._made_lines >= self._flush_lines
        if is_full:
            self._full.set()

    def _make_waiting(self) -> None:
        count, take = len(self._unmade), self._unmade.popleft
        taken = [take() for _ in range(count)]
        if self._made_lines + count > self._max_lines:
            self.dropped += count
        else:
            self._made.append(b"".join(map(self._make, taken)))
            self._made_lines += count

    def _begin(self) -> None:
        self._is_begun = True
        self._stream = sys.stderr
        if self._thread is None:
            self._thread = Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()
        self._begun.set()

    def _run(self) -> None:
        begun, full = self._begun, self._full
        while begun.wait():
            full.wait(self._flush_seconds)
            begun.clear()
            full.clear()
            self.flush()

    def _write(self, stream: TextIO | None, content: bytes, *, lines: int) -> None:
        try:
            _write(stream, content)
        except (OSError, ValueError):  # standard error is full or closed: only the counter can say so
            with self._lock:
                self.dropped += lines


def _start_over(buffer: ref[LineBuffer[T]]) -> None:
    alive = buffer()
    if alive is not None:
        alive.start_over()


def _write(stream: TextIO | None, content: bytes) -> None:
    if stream is None:  # a process without a terminal may have no standard error
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    binary = getattr(stream, "buffer", None)
    if binary is None:
        stream.write(content.decode())
    else:
        binary.write(content)
        binary.flush()
