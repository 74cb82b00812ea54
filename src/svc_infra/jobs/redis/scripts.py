"""The queue's steps, each one script; what they share, and how jobs are kept, is told in `lua/prelude.lua`."""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any

from svc_infra._optional import need
from svc_infra.jobs.redis.hashes import micros
from svc_infra.jobs.redis.kept import KeptConnection
from svc_infra.redis import translating
from svc_infra.types import Clock


class Scripts:
    """Runs the steps on one server.

    Args:
        client: A client that answers in bytes.
        prefix: What keys begin with, hash tag included.
        clock: Where the time comes from; None for the server's own.
    """

    def __init__(self, client: Any, prefix: str, clock: Clock | None) -> None:
        self.client = client
        self.prefix = prefix
        self._clock = clock
        self._kept = KeptConnection(client)

    async def close(self) -> None:
        """Give back the connection that is kept."""
        await self._kept.close()

    @property
    def server_time(self) -> bool:
        """Whether the server's own clock counts."""
        return self._clock is None

    async def run(self, name: str, *arguments: str | int | bytes) -> Any:
        """Run one script: by its digest, and again with its text when the server does not know it.

        Raises:
            UnavailableError, ConfigurationError, SvcInfraError: See `svc_infra.redis.translating`.
        """
        command = self.command(name, *arguments)
        with translating():
            try:
                if self._kept.can_ask:
                    return (await self._kept.ask(command))[0]
                return await self.client.execute_command(*command)
            except need("redis.exceptions").NoScriptError:
                return await self.client.eval(script(name)[0], *command[2:])

    def command(self, name: str, *arguments: str | int | bytes) -> tuple[str | int | bytes, ...]:
        """The command that runs a script which the server knows."""
        now = "" if self._clock is None else micros(self._clock.now())
        return ("EVALSHA", script(name)[1], 1, self.prefix, now, *arguments)


@cache
def script(name: str) -> tuple[str, str]:
    """The text of a step, and the digest that a server knows it by."""
    folder = files(__package__) / "lua"
    text = "\n".join((folder / f"{part}.lua").read_text() for part in ("prelude", name))
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()
