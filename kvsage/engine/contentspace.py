"""``store.content``: contents that a caller puts and finds by their address.

A content that was put is held by a key of kvsage's own, which refers to it as any key does; so it
is counted, kept through compaction and found by a rebuild like everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvsage.engine.commit import PRESENT, Operation
from kvsage.engine.content import Mismatch, address_of, content_key_of
from kvsage.engine.snapshot import View
from kvsage.errors import CorruptionError, KeyNotFoundError, SerializationError, ValueTooLargeError
from kvsage.index.keydir import CONTENT_ROOT
from kvsage.log.format import BY_USER, DELETE

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvsage.engine.engine import Engine
    from kvsage.engine.preparing import Preparer


class ContentSpace:
    """Contents by address.

    The address is the 32 hexadecimal digits of the content's xxh3_128, with ``-1``, ``-2`` ... for
    a content that shares its hash with another one.
    """

    def __init__(
        self,
        reading: Callable[[], Engine],
        writing: Callable[[], Engine],
        preparer: Preparer,
        *,
        full: bool,
    ) -> None:
        self._reading = reading
        self._writing = writing
        self._preparer = preparer
        self._full = full

    def put(self, data: bytes | str) -> str:
        """Keep a content; its address. Putting it again changes nothing.

        Args:
            data: the content; text is stored as UTF-8.

        Raises:
            SerializationError: neither bytes nor text.
            ValueTooLargeError: over ``value_bytes_max``.
        """
        engine = self._writing()
        if isinstance(data, str):
            try:
                raw = data.encode()
            except UnicodeEncodeError as error:
                raise SerializationError(f"not valid Unicode text: {error}") from error
        elif isinstance(data, (bytes, bytearray, memoryview)):
            raw = bytes(data)
        else:
            raise SerializationError(f"a content is bytes or str, not {type(data).__name__}")
        limit = self._preparer.codec.value_bytes_max
        if len(raw) > limit:
            raise ValueTooLargeError(
                f"the content takes {len(raw)} bytes; at most {limit} "
                "(value_bytes_max, bytes_max) are stored"
            )
        content = self._preparer.content(raw)
        return address_of(engine.committer.keep_content(content, full=self._full))

    def get(self, address: str) -> bytes:
        """The content at an address, held by a put or by any key.

        Raises:
            KeyNotFoundError: there is none.
            CorruptionError: it is damaged.
        """
        key = content_key_of(address)
        engine = self._reading()
        if key is not None:
            segment = offset = None
            for _ in range(2):
                with engine.index.reading() as txn:
                    if txn.get(key, None, engine.index.contents) is None:
                        break
                    try:
                        return View(engine, txn, 0).content(key)
                    except Mismatch as error:
                        segment, offset = error.args or (None, None)
                        continue
            else:
                raise CorruptionError(
                    f"the content {address} is damaged", segment=segment, offset=offset
                )
        raise KeyNotFoundError(f"no content {address!r}")

    def exists(self, address: str) -> bool:
        """Whether there is a content at an address, held by a put or by any key."""
        key = content_key_of(address)
        engine = self._reading()
        with engine.index.reading() as txn:
            return key is not None and txn.get(key, None, engine.index.contents) is not None

    def delete(self, address: str) -> bool:
        """Let go of a content that was put; whether it had been.

        It stays as long as any key holds the same bytes.
        """
        engine = self._writing()
        key = content_key_of(address)
        if key is None:
            return False
        operation = Operation(CONTENT_ROOT + key, DELETE, BY_USER, require=PRESENT)
        return engine.committer.commit((operation,), full=self._full)[0]
