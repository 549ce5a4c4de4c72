"""What is done to an operation before the writer gate, where others need not wait for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kvsage.engine.commit import ANYTHING, PRESENT, TOUCH, Operation
from kvsage.engine.content import Content, Mismatch, compress, content_hash
from kvsage.engine.values import Codec
from kvsage.errors import CorruptionError, InvalidTTLError
from kvsage.index.contents import decode_content_row
from kvsage.index.env import LmdbError
from kvsage.log.format import BY_USER, CONTENT_KEY, DELETE, PUT
from kvsage.store import encode_key
from kvsage.types import TTL, ttl_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvsage.engine.engine import Engine
    from kvsage.options import StoreOptions


_make = tuple.__new__  # a third of the time of the class's own call


class Preparer:
    """Turns values into operations, under one handle's options."""

    def __init__(self, engine: Engine, options: StoreOptions) -> None:
        self._engine = engine
        self.codec = Codec(options)
        bytes_max = engine.options.bytes_max
        if bytes_max is not None and bytes_max < self.codec.value_bytes_max:
            self.codec.value_bytes_max = bytes_max  # more could not stay for a moment
        self.content_bytes_min = options.content_bytes_min
        self._level = options.compression_level
        default = options.ttl_default
        self._ttl_default_s = None if default is None else ttl_seconds(default)

    def expires_ms(self, key: str, ttl: TTL | None) -> int:
        """The instant at which a save with ``ttl`` expires, or 0; None means the default."""
        if ttl is not None:
            return self.expires_at_ms(key, ttl)
        seconds = self._ttl_default_s
        return 0 if seconds is None else self._from_now(seconds)

    def expires_at_ms(self, key: str, ttl: TTL | None) -> int:
        """The same, where None means never."""
        if ttl is None:
            return 0
        try:
            return self._from_now(ttl_seconds(ttl))
        except InvalidTTLError as error:
            raise InvalidTTLError(f"the ttl of {key!r}: {error}") from error

    def _from_now(self, seconds: float) -> int:
        return max(1, math.ceil((self._engine.clock() + seconds) * 1000))

    def save(self, key: str, value: Any, ttl: TTL | None, require: int) -> Operation:
        """The operation that saves a value."""
        encoded = encode_key(key)
        expires_ms = self.expires_ms(key, ttl)
        codec, data = self.codec.encode(key, value)
        return self.put(encoded, codec, data, expires_ms, require)

    def put(
        self, encoded: bytes, codec: int, data: bytes, expires_ms: int, require: int
    ) -> Operation:
        """The operation that saves a serialized value."""
        if len(data) < self.content_bytes_min:
            return Operation(encoded, PUT, codec, expires_ms, data, None, require)
        return Operation(encoded, PUT, codec, expires_ms, b"", self.content(data), require)

    def save_many(self, mapping: Mapping[str, Any], expires_ms: int) -> list[Operation]:
        """The operations that save every pair, alike in expiry; ``save`` for each, flat."""
        encode, least = self.codec.encode, self.content_bytes_min
        operations = []
        for key, value in mapping.items():
            flags, data = encode(key, value)
            encoded = encode_key(key)
            if len(data) < least:
                fields = (encoded, PUT, flags, expires_ms, data, None, ANYTHING)
                operations.append(_make(Operation, fields))
            else:
                operations.append(self.put(encoded, flags, data, expires_ms, ANYTHING))
        return operations

    @staticmethod
    def delete(encoded: bytes) -> Operation:
        """The operation that removes a key at its user's wish, if it is there."""
        return Operation(encoded, DELETE, BY_USER, require=PRESENT)

    def touch(self, key: str, ttl: TTL | None) -> Operation:
        """The operation that gives a key that is there another expiry."""
        encoded = encode_key(key)
        return Operation(encoded, TOUCH, 0, self.expires_at_ms(key, ttl), require=PRESENT)

    def content(self, raw: bytes) -> Content:
        """A content, compressed unless one like it is there to be referred to."""
        digest = content_hash(raw)
        equal_to = self._equal(digest, raw)
        if equal_to is not None:
            return Content(digest, raw, None, b"", equal_to)
        flags, stored = compress(raw, self._level)
        return Content(digest, raw, flags, stored, None)

    def _equal(self, digest: bytes, raw: bytes) -> tuple[int, int] | None:
        """Where a content with the very same bytes lies, compared byte by byte."""
        engine = self._engine
        txn = engine.index.begin_read()
        try:
            number = 0
            while True:
                key = CONTENT_KEY.pack(digest, number)
                data = txn.get(key, None, engine.index.contents)
                if data is None:
                    return None
                row = decode_content_row(data)
                if row.raw_length == len(raw) and engine.raw_content(key, row) == raw:
                    return row.segment, row.offset
                number += 1
        except (Mismatch, CorruptionError):
            return None  # what is damaged is equal to nothing
        except LmdbError as error:
            raise engine.index.error(error, "reading") from error
        finally:
            txn.abort()
