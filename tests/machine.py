"""What makes this machine quick at tests, whoever starts them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
NOBODY = Path(__file__).with_name("nobody.pem")
"""An authority whose key was never kept."""
ENOUGH_BYTES = 4 * 1024**3


def keep_compiled_modules() -> None:
    """Let Python keep what it compiles: a hundred processes of the tests import the package."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def keep_files_in_memory() -> None:
    """Put temporary files where no commit waits for a disk, if there is room and `TMPDIR` names no other place."""
    if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ENOUGH_BYTES:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


def trust_nobody() -> None:
    """Let clients trust one authority instead of the system's hundreds, which each client of each app reads anew.

    A test that speaks TLS brings its own authority.
    """
    os.environ["SSL_CERT_FILE"] = str(NOBODY)
