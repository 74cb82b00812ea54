"""The scripts and styles of the pages, served by the app itself."""

from __future__ import annotations

import os
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

MAX_AGE_SECONDS = 365 * 24 * 3600


class Assets(StaticFiles):
    """Our own files, and those of Swagger UI and ReDoc from the installed `fastapi_offline` package."""

    def __init__(self) -> None:
        super().__init__(directory=Path(__file__).with_name("static"), packages=[("fastapi_offline", "static")])

    @cached_property
    def version(self) -> str:
        """A digest of every file: pages put it into the addresses, so that a changed file has a new one."""
        digest = blake2b(digest_size=6)
        for folder in self.all_directories:
            for file in sorted(Path(folder).iterdir()):
                digest.update(file.read_bytes())
        return digest.hexdigest()

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """The file, or 304 when the browser has it."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = f"public, max-age={MAX_AGE_SECONDS}, immutable"
        return response
