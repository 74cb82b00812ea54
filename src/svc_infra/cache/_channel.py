"""How processes tell each other what is no longer true: publish and subscribe, without trust in silence.

Only names of keys and tags travel, never values. A message can be missed in one way only, by not being subscribed; so
every gap, noticed by an error or by a heartbeat that is not answered, is reported when it begins and when it ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from svc_infra.errors import UnavailableError
from svc_infra.redis import translating

if TYPE_CHECKING:
    from redis.asyncio import Redis

HEARTBEAT_SECONDS = 2.0
"""How often the connection is tried while it is quiet; it counts as lost when the answer takes as long again."""
RETRY_SECONDS = 1.0
"""The longest pause before the next attempt to subscribe."""

_log = logging.getLogger(__name__)
_decode = msgspec.msgpack.Decoder(tuple[str, list[str]]).decode


class Channel:
    """Listens for the names that other processes invalidate.

    Args:
        name: The channel's name.
        on_names: Called with the names in each message of another process.
        on_gap: Called when messages may have been missed: when the connection is lost, and when it is there again.
        heartbeat_seconds: See `HEARTBEAT_SECONDS`.
    """

    def __init__(
        self,
        name: str,
        on_names: Callable[[list[str]], None],
        on_gap: Callable[[], None],
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self.name = name
        self.listening = False
        self._on_names = on_names
        self._on_gap = on_gap
        self._heartbeat_seconds = heartbeat_seconds
        self._sender = uuid4().hex

    def message(self, names: list[str]) -> bytes:
        """What to publish."""
        return msgspec.msgpack.encode((self._sender, names))

    async def listen(self, client: Redis) -> None:
        """Listen until cancelled."""
        pause = 0.0
        try:
            while True:
                try:
                    with translating():
                        await self._follow(client)
                except Exception as error:  # noqa: BLE001 - whatever it is, the way on is to subscribe again
                    pause = 0.05 if self.listening else min(RETRY_SECONDS, 2 * pause + 0.05)
                    self.lost(error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
        finally:
            self.lost()

    async def _follow(self, client: Redis) -> None:
        asked = False
        async with client.pubsub() as subscription:
            await subscription.subscribe(self.name)
            while True:
                message = await subscription.get_message(timeout=self._heartbeat_seconds)
                if message is not None:
                    asked = False
                    self._take(message)
                elif asked or not self.listening:
                    raise UnavailableError("Redis has stopped answering.")
                else:
                    asked = True
                    await subscription.ping()

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":  # also when redis-py has reconnected by itself
            self._on_gap()
            self.listening = True
        elif message["type"] == "message":
            try:
                sender, names = _decode(message["data"])
            except msgspec.MsgspecError:
                _log.warning("cache.message_not_understood", extra={"channel": self.name})
                self._on_gap()
                return
            if sender != self._sender:
                self._on_names(names)

    def lost(self, error: Exception | None = None) -> None:
        """Say that nothing is heard any more, if it was."""
        if self.listening:
            self.listening = False
            self._on_gap()
            if error is not None:
                _log.info("cache.channel_lost", extra={"reason": str(error)})
