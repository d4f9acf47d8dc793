"""Column types that give the same value back on SQLite and PostgreSQL, whatever a file's metadata holds."""

from __future__ import annotations

import json
import sys
import zlib
from array import array
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, LargeBinary, Text
from sqlalchemy.types import TypeDecorator

_UNSTORABLE = {0: "�"} | dict.fromkeys(range(0xD800, 0xE000), "�")


class SafeText(TypeDecorator[str]):
    """Text; NUL and lone surrogates, which PostgreSQL and UTF-8 cannot hold, become the replacement character."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.translate(_UNSTORABLE)


class JsonText(TypeDecorator[Any]):
    """A JSON document as text. ASCII escapes keep what text columns cannot hold; NaN, which is not JSON, is refused."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, allow_nan=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC; SQLite forgets time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class FilePath(TypeDecorator[str]):
    """A path as Python spells it, stored as bytes: file names need not be valid Unicode, text columns must be."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        return None if value is None else value.encode("utf-8", "surrogatepass")

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        return None if value is None else bytes(value).decode("utf-8", "surrogatepass")


class Unsigned64(TypeDecorator[int]):
    """An inode, device or seed of up to 64 bits; databases know signed integers only."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        if value is None:
            return None
        if not 0 <= value < 1 << 64:
            raise ValueError(f"expected an unsigned 64-bit integer, got {value}")
        return value - (1 << 64) if value >= 1 << 63 else value

    def process_result_value(self, value: int | None, dialect: Dialect) -> int | None:
        return value + (1 << 64) if value is not None and value < 0 else value


class Norms(TypeDecorator[Mapping[str, float]]):
    """Layer name -> norm in float32, compressed: about 4 kB for the 722 layers of SDXL."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Mapping[str, float] | None, dialect: Dialect) -> bytes | None:
        if value is None:
            return None
        if any("\n" in name for name in value):
            raise ValueError("expected layer names without line breaks")
        names = "\n".join(value).encode("utf-8", "surrogatepass")
        return zlib.compress(len(names).to_bytes(4, "little") + names + _little_endian(array("f", value.values())))

    def process_result_value(self, value: Any, dialect: Dialect) -> Mapping[str, float] | None:
        if value is None:
            return None
        data = zlib.decompress(value)
        end = 4 + int.from_bytes(data[:4], "little")
        floats = array("f")
        floats.frombytes(data[end:])
        if sys.byteorder == "big":
            floats.byteswap()
        names = data[4:end].decode("utf-8", "surrogatepass").split("\n") if floats else []
        return dict(zip(names, floats, strict=True))


def _little_endian(floats: array[float]) -> bytes:
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tobytes()
