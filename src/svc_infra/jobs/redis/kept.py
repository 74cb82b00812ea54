"""A connection to Redis that stays out of the pool between two uses."""

from __future__ import annotations

from typing import Any

from svc_infra._optional import need

KEEPING_LIMIT_CONNECTIONS = 8
"""Of a smaller pool none is kept: who waits for one of its connections would not get it."""


class KeptConnection:
    """Asks the server on a connection that the last use has left: half of what a lone command costs is the pool's.

    While that one is in use, others come from the pool.

    Args:
        client: Whose pool it is.
    """

    def __init__(self, client: Any) -> None:
        pool = getattr(client, "connection_pool", None)  # a cluster's client has one for each of its servers
        self._pool: Any = pool if pool is not None and pool.max_connections >= KEEPING_LIMIT_CONNECTIONS else None
        self._refusals: type[Exception] = need("redis.exceptions").ResponseError
        self._idle: Any = None

    @property
    def can_ask(self) -> bool:
        """Whether the client's pool has connections to keep."""
        return self._pool is not None

    async def ask(self, *commands: tuple[str | int | float | bytes, ...]) -> list[Any]:
        """Send these commands together; their answers. A connection whose user is cancelled is closed.

        Raises:
            redis.exceptions.RedisError: See `svc_infra.redis.translating`.
        """
        connection, self._idle = self._idle, None
        answers: list[Any] = []
        try:
            if connection is None:
                connection = await self._pool.get_connection()
            else:
                await self._pool.ensure_connection(connection)  # the server may have closed it meanwhile
            await connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    answers.append(await connection.read_response())
                except self._refusals as error:  # an answer like any other: the connection is in order
                    answers.append(error)
        except BaseException:
            if connection is not None:
                await connection.disconnect(nowait=True)
                await self._pool.release(connection)
            raise
        spare, self._idle = self._idle, connection  # its return to the pool would be in the way of what comes next
        if spare is not None:
            await self._pool.release(spare)
        for answer in answers:
            if isinstance(answer, self._refusals):
                raise answer
        return answers

    async def close(self) -> None:
        """Give the connection back to the pool."""
        idle, self._idle = self._idle, None
        if idle is not None:
            await self._pool.release(idle)
