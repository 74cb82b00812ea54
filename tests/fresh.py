"""Runs programs one by one, each as if in an interpreter of its own: in a copy of one that has loaded libraries.

Only libraries of others are loaded before, so that what a program imports of the package is imported anew, and what it
forgets to import is missing. Each line that comes in is a folder and a program; each that goes out is its exit code.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

LIBRARIES = (
    "alembic.command",
    "fastapi",
    "httpx2",
    "sqlalchemy.ext.asyncio",
    "aiosqlite",
    "pydantic_settings",
    "redis",
)
PATIENCE_SECONDS = 60


class Interpreter:
    """Runs programs.

    Args:
        process: This module, running.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, program: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a program in a folder, from which it can import."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps([str(folder), program])}\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        out, errors = ((folder / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess([program], code, out, errors)


@contextmanager
def interpreter(environment: Mapping[str, str], *options: str) -> Iterator[Interpreter]:
    """An interpreter with these variables and options of Python's."""
    command = [sys.executable, *options, __file__]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=dict(environment), stdin=pipe, stdout=pipe, text=True) as process:
        yield Interpreter(process)
        assert process.stdin is not None
        process.stdin.close()


def main() -> None:
    """Load, then run what comes in."""
    sys.path[0] = ""
    for library in LIBRARIES:
        import_module(library)
    gc.freeze()
    with os.fdopen(os.dup(1), "w") as answers:
        for line in sys.stdin:
            folder, program = json.loads(line)
            if (child := os.fork()) == 0:
                _enter(folder)
                exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
                return
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _enter(folder: str) -> None:
    """Live in a folder, write into files there, and end when it takes too long."""
    os.environ["HOME"] = folder
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    signal.alarm(PATIENCE_SECONDS)


if __name__ == "__main__":
    main()
