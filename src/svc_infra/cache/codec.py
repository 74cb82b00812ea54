"""Values as bytes: typed, versioned, and without pickle.

A stored value is a header (format, type, end of freshness, cost), its tags with their tokens, and MessagePack. What has
another format or type, or cannot be read, is a miss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from types import NoneType
from typing import Any
from uuid import UUID

import msgspec
import orjson
from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

from svc_infra.errors import ConfigurationError, ValidationError

FORMAT = 1
"""The first byte of every stored value but a counter, which is stored as its digits."""
FRESH_UNTIL_OFFSET_BYTES = 9
MAX_CODECS = 1024

_HEADER = Struct(">B8sddI")
_ATOMS = frozenset([NoneType, bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID])


@dataclass(slots=True)
class Stored:
    """A value as it is stored.

    Attributes:
        identity: Which type it is of.
        fresh_until: Unix time.
        seconds: What it took to compute it.
        tags: The token that each of its tags had when its computation began.
        payload: The value itself; empty for None.
    """

    identity: bytes
    fresh_until: float
    seconds: float
    tags: Mapping[str, bytes]
    payload: bytes

    def pack(self) -> bytes:
        """The bytes to store."""
        tags = msgspec.msgpack.encode(self.tags) if self.tags else b""
        return _HEADER.pack(FORMAT, self.identity, self.fresh_until, self.seconds, len(tags)) + tags + self.payload

    @classmethod
    def unpack(cls, raw: bytes) -> Stored | None:
        """What is stored; None when this release cannot read it."""
        if len(raw) < _HEADER.size or raw[0] != FORMAT:
            return None
        _, identity, fresh_until, seconds, length = _HEADER.unpack_from(raw)
        start = _HEADER.size + length
        try:
            tags = _tags.decode(raw[_HEADER.size : start]) if length else {}
        except msgspec.MsgspecError:
            return None
        return cls(identity, fresh_until, seconds, tags, raw[start:])


_tags = msgspec.msgpack.Decoder(dict[str, bytes])


class Codec:
    """Turns values of one type into bytes and back.

    Args:
        kind: What `msgspec` understands, with pydantic models in any place; `Any` for plain values: None, bool, int,
            float, str, bytes, lists, dictionaries, aware datetimes.

    Raises:
        ConfigurationError: Values of this type cannot be stored.
    """

    def __init__(self, kind: Any) -> None:
        kind = Any if kind is object else kind
        try:
            schema = msgspec.json.schema(kind, schema_hook=_schema_of)
            self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(kind, dec_hook=_from_plain)
        except TypeError as error:
            raise ConfigurationError(
                f"Values of {kind} cannot be cached ({str(error).splitlines()[0]}): use plain values, dataclasses, "
                "msgspec Structs or pydantic models, and of each no more than one in a union."
            ) from error
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_to_plain)
        self.kind = kind
        self.identity = blake2b(orjson.dumps(schema, option=orjson.OPT_SORT_KEYS), digest_size=8).digest()

    def encode(self, value: Any) -> bytes:
        """The value as bytes that decode to an equal value of the same type.

        Raises:
            ValidationError: It is not of this codec's type, or would come back as something else.
        """
        if value is None:
            return b""
        try:
            payload = self._encoder.encode(value)
            back = self._decoder.decode(payload)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValidationError(f"A {type(value).__name__} cannot be cached as {self.kind}: {error}") from error
        if type(back) is not type(value) or (back != value and value == value):  # noqa: PLR0124 - NaN is stored well
            raise ValidationError(
                f"This {type(value).__name__} would come out of the cache as another value: declare what it is."
            )
        return payload

    def decode(self, payload: bytes) -> Any:
        """The value.

        Raises:
            ValueError: These bytes hold no value of this type.
        """
        if not payload:
            return None
        try:
            return self._decoder.decode(payload)
        except (msgspec.MsgspecError, TypeError, RecursionError) as error:
            raise ValueError(f"no {self.kind}") from error


@lru_cache(maxsize=MAX_CODECS)
def codec_of(kind: Any) -> Codec:
    """The codec of a type; one for each, so that two can be compared by identity."""
    return Codec(kind)


def is_immutable(value: Any) -> bool:
    """Whether no caller can change this value for another, looking into tuples and frozen classes."""
    kind = type(value)
    if kind in _ATOMS or isinstance(value, Enum):
        return True
    if kind is tuple or kind is frozenset or (isinstance(value, tuple) and hasattr(kind, "_fields")):
        return all(map(is_immutable, value))
    if is_dataclass(value):
        frozen = kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        return frozen and all(is_immutable(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, msgspec.Struct):
        return kind.__struct_config__.frozen and all(is_immutable(getattr(value, n)) for n in kind.__struct_fields__)
    if isinstance(value, BaseModel):
        return bool(kind.model_config.get("frozen")) and all(map(is_immutable, value.__dict__.values()))
    return False


def _to_plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(round_trip=True, by_alias=False)
    raise TypeError(f"{type(value).__qualname__} is no type of data")


def _from_plain(kind: Any, plain: Any) -> Any:
    return kind.model_validate(plain, strict=False, by_alias=False, by_name=True)  # only models get past `schema`


def _schema_of(kind: type) -> dict[str, Any]:
    if not issubclass(kind, BaseModel):
        raise TypeError(f"{kind.__qualname__} is no type of data")
    try:
        return kind.model_json_schema()
    except PydanticInvalidForJsonSchema:
        return {"title": kind.__qualname__}
