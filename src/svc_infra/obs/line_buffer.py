"""Lines that are written in batches by a thread, so that no request waits for a terminal, a pipe or a disk."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import partial
from threading import Event, Lock, Thread
from typing import TextIO
from weakref import ref

MAX_BYTES = 4 * 1024 * 1024
"""Most bytes that wait to be written; lines that come when they are reached are dropped and counted."""
FLUSH_BYTES = 256 * 1024
"""So many bytes are written at once, without waiting for more."""
FLUSH_SECONDS = 0.2
"""Longest wait of a line, and the most that is lost when the process is killed."""


class LineBuffer:
    """Collects lines and writes them on standard error.

    Args:
        tell_dropped: Makes the line that tells how many lines were dropped since the last such line.
        max_bytes: Most bytes that wait.
        flush_bytes: Written at once when as many wait.
        flush_seconds: Longest wait of a line.
    """

    def __init__(
        self,
        tell_dropped: Callable[[int], bytes],
        *,
        max_bytes: int = MAX_BYTES,
        flush_bytes: int = FLUSH_BYTES,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self.dropped = 0
        self._tell_dropped = tell_dropped
        self._max_bytes = max_bytes
        self._flush_bytes = flush_bytes
        self._flush_seconds = flush_seconds
        self.pid = os.getpid()
        self._thread: Thread | None = None
        self._lines: list[bytes] = []
        self._size = 0
        self._stream: TextIO | None = sys.stderr
        self._told = 0
        self._lock, self._writing = Lock(), Lock()
        self._begun, self._full = Event(), Event()
        os.register_at_fork(after_in_child=partial(_start_over, ref(self)))

    def put(self, line: bytes) -> None:
        """Take a line, which ends in a newline, or drop and count it."""
        if self._thread is None:
            self._start()
        with self._lock:
            size = self._size
            total = size + len(line)
            if total > self._max_bytes:
                self.dropped += 1
                return
            self._lines.append(line)
            self._size = total
            if size == 0:
                self._stream = sys.stderr
        if size == 0:
            self._begun.set()
        if size < self._flush_bytes <= total:
            self._full.set()

    def flush(self) -> None:
        """Write what waits."""
        with self._writing:
            with self._lock:
                lines, self._lines, self._size = self._lines, [], 0
                stream, dropped = self._stream, self.dropped
            if dropped != self._told:
                lines.append(self._tell_dropped(dropped - self._told))
                self._told = dropped
            if not lines:
                return
            try:
                _write(stream, b"".join(lines))
            except (
                OSError,
                ValueError,
            ):  # standard error is full or closed: only the counter can say so
                with self._lock:
                    self.dropped += len(lines)

    def start_over(self) -> None:
        """Begin anew in the child of a fork: what waits is the parent's to write, and its thread is not here."""
        self.pid = os.getpid()
        self._thread = None
        self._lines, self._size, self._told = [], 0, self.dropped
        self._lock, self._writing = Lock(), Lock()
        self._begun, self._full = Event(), Event()

    def _start(self) -> None:
        self._thread = Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        begun, full = self._begun, self._full
        while begun.wait():
            full.wait(self._flush_seconds)
            begun.clear()
            full.clear()
            self.flush()


def _start_over(buffer: ref[LineBuffer]) -> None:
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
