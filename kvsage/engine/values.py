"""Values as entries hold them: a codec in the flags, and bytes.

Text and bytes are stored as they are; anything else as MessagePack, or as pickle where the caller
opened the store so. What a record says of itself never makes kvsage unpickle it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvsage.errors import CorruptionError, SerializationError, ValueTooLargeError
from kvsage.log.format import BYTES, CODEC_MASK, JSON, MSGPACK, PICKLE, STR
from kvsage.serialization import Serializer, pack, unpack

if TYPE_CHECKING:
    from kvsage.options import StoreOptions


class Codec:
    """Encodes and decodes for one handle."""

    __slots__ = ("_pickle", "value_bytes_max")

    def __init__(self, options: StoreOptions) -> None:
        self._pickle = options.format == "pickle"
        self.value_bytes_max = options.value_bytes_max

    def encode(self, key: str, value: Any) -> tuple[int, bytes]:
        """Codec and bytes of a value.

        Raises:
            SerializationError, ValueTooLargeError: naming the key.
        """
        kind = type(value)
        try:
            if kind is str:
                codec, data = STR, value.encode()
            elif kind is bytes:
                codec, data = BYTES, value
            elif self._pickle:
                codec, data = PICKLE, Serializer.serialize(value, format="pickle")
            else:
                codec, data = MSGPACK, pack(value)
        except (SerializationError, UnicodeEncodeError) as error:
            raise SerializationError(f"the value of {key!r} cannot be stored: {error}") from error
        if len(data) > self.value_bytes_max:
            raise ValueTooLargeError(
                f"the value of {key!r} takes {len(data)} bytes; at most {self.value_bytes_max} "
                "(value_bytes_max, bytes_max) are stored"
            )
        return codec, data

    def packed(self, key: str, item: Any) -> bytes:
        """An item of a list, as it stands in it.

        Raises:
            SerializationError: naming the key.
        """
        try:
            return pack([item])[1:]  # as deep as it will be: what can be loaded can be saved
        except SerializationError as error:
            raise SerializationError(f"an item for {key!r} cannot be stored: {error}") from error

    def decode(self, key: str, flags: int, data: bytes) -> Any:
        """The value.

        Raises:
            SerializationError: it cannot be read back, naming the key.
            CorruptionError: a codec that format 1 does not have.
        """
        codec = flags & CODEC_MASK
        try:
            if codec == MSGPACK:
                return unpack(data)
            if codec == STR:
                return data.decode()
            if codec == BYTES:
                return data
            if codec == JSON:
                return Serializer.deserialize(data, format="json")
            if codec == PICKLE and self._pickle:
                return Serializer.deserialize(data, format="pickle")
        except (SerializationError, UnicodeDecodeError) as error:
            raise SerializationError(f"the value of {key!r} cannot be read: {error}") from error
        if codec == PICKLE:
            raise SerializationError(
                f"the value of {key!r} is a pickle, which can run code: open the store with "
                'format="pickle" if you trust whoever wrote it'
            )
        raise CorruptionError(f"the value of {key!r} has an unknown codec ({codec})")
