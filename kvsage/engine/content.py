"""Content: bytes that are stored once, however many keys hold them.

A content is found by the xxh3_128 of its raw bytes. That hash is quick and can be collided on
purpose, so it only ever proposes: two contents are one when their bytes are equal. What this
process loaded or compared lately is compared from a bounded cache, anything else by reading it
back.
Contents that differ and share a hash are kept side by side, numbered.

Contents that are written together may be compressed together, in a pack.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from struct import error as struct_error
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import zstandard
from xxhash import xxh3_128_digest

from kvsage.errors import CorruptionError
from kvsage.index.keydir import CONTENT_KEY_BYTES
from kvsage.log.format import (
    CONTENT_HEAD,
    CONTENT_KEY,
    CONTENT_REF,
    ENTRY_BYTES,
    STORED_RAW,
    STORED_ZSTD,
    TREE_HEAD,
    TREE_ITEM,
    decode_pack,
    is_node,
    split_tree,
)
from kvsage.options import VALUE_BYTES_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvsage.index.contents import ContentRow
    from kvsage.log.format import Packed

CACHE_BYTES_MAX = 16 << 20
CACHED_BYTES_MAX = 1 << 20  # one content this large or larger is not worth what it would push out
HEX_DIGITS = 32
WINDOW_LOG_MAX = 27  # 128 MiB: what zstd levels up to 19 use, and no frame may ask for more

DEFLATED_BYTES_LEAST = 512  # fewer literal bytes are not worth the time
CONTENT_OVERHEAD = ENTRY_BYTES + CONTENT_KEY.size + CONTENT_HEAD.size + CONTENT_REF.size

assert CONTENT_KEY.size == CONTENT_KEY_BYTES  # log and index do not know each other

_local = threading.local()


class Mismatch(Exception):  # noqa: N818  # a signal inside the engine; nobody outside sees it
    """What the index points to is not there: the log moved on, or something is damaged."""


class Missing(Mismatch):
    """The index has no such content."""


def compress(raw: bytes, level: int) -> tuple[int, bytes]:
    """How ``raw`` is best stored, and the bytes to store."""
    compressors = _local.__dict__.setdefault("compressors", {})
    compressor = compressors.get(level)
    if compressor is None:  # a context is dear to make and may not be shared between threads
        compressor = compressors[level] = zstandard.ZstdCompressor(level=level)
    stored = compressor.compress(raw)
    return (STORED_ZSTD, stored) if len(stored) < len(raw) else (STORED_RAW, raw)


def decompress(flags: int, stored: bytes | memoryview, raw_length: int) -> bytes:
    """The raw bytes.

    Raises:
        CorruptionError: the stored bytes are not ``raw_length`` bytes of content. A frame that
            declares anything else is refused before memory is taken for it.
    """
    if raw_length > VALUE_BYTES_LIMIT:
        raise CorruptionError(f"a content claims {raw_length} bytes, more than any value can have")
    if flags == STORED_RAW:
        raw = bytes(stored)
    elif flags == STORED_ZSTD:
        try:
            if zstandard.frame_content_size(stored) != raw_length:
                raise CorruptionError("a content's frame declares another length than its record")
            decompressor = getattr(_local, "decompressor", None)
            if decompressor is None:
                decompressor = _local.decompressor = zstandard.ZstdDecompressor(
                    max_window_size=1 << WINDOW_LOG_MAX
                )
            raw = decompressor.decompress(stored)
        except zstandard.ZstdError as error:
            raise CorruptionError("a content's frame cannot be decompressed") from error
    else:
        raise CorruptionError(f"a content is stored in an unknown way ({flags})")
    if len(raw) != raw_length:
        raise CorruptionError("a content has another length than its record says")
    return raw


def decode_content(flags: int, value: bytes | memoryview) -> bytes:
    """The raw bytes that a CONTENT entry holds.

    Raises:
        CorruptionError: it holds something else.
    """
    if len(value) < CONTENT_HEAD.size:
        raise CorruptionError("a content entry is too short")
    (raw_length,) = CONTENT_HEAD.unpack_from(value)
    return decompress(flags, memoryview(value)[CONTENT_HEAD.size :], raw_length)


def unpack_pack(flags: int, value: bytes | memoryview) -> list[tuple[Packed, bytes]]:
    """The contents of a PACK entry, with their raw bytes.

    Raises:
        CorruptionError: it holds something else.
    """
    pack = decode_pack(value)
    if pack is None:
        raise CorruptionError("the contents of a pack do not fill it")
    raw = decompress(flags, memoryview(value)[pack.data_at :], pack.length)
    return [(one, raw[one.start : one.start + one.length]) for one in pack.contents]


def deflate_tree(value: bytes, level: int) -> bytes:
    """A tree or node as it is stored: with its literal bytes compressed, where that is shorter."""
    length, count, _ = TREE_HEAD.unpack_from(value)
    at = TREE_HEAD.size + TREE_ITEM.size * count
    if len(value) - at < DEFLATED_BYTES_LEAST:
        return value
    stored_as, stored = compress(value[at:], level)
    if stored_as == STORED_RAW:
        return value
    return TREE_HEAD.pack(length, count, stored_as) + value[TREE_HEAD.size : at] + stored


def inflate_tree(value: bytes) -> bytes:
    """A tree or node with its literal bytes as they are.

    Raises:
        CorruptionError: it is none.
    """
    said = split_tree(value)
    if said is None:
        raise CorruptionError("the items of a tree do not fill it")
    stored_as, literal_length, at = said
    if stored_as == STORED_RAW:
        return value
    literal = decompress(stored_as, value[at:], literal_length)
    length, count, _ = TREE_HEAD.unpack_from(value)
    return TREE_HEAD.pack(length, count, STORED_RAW) + value[TREE_HEAD.size : at] + literal


class Content(NamedTuple):
    """Bytes on their way into a commit.

    Attributes:
        hash: xxh3_128 of them.
        raw: the bytes.
        flags: how they are stored, or None while nobody has compressed them, because a content
            with the same hash was there.
        stored: what is stored.
        equal_to: where a content lies that was found equal (file id, offset, start), or None.
    """

    hash: bytes
    raw: bytes
    flags: int | None
    stored: bytes
    equal_to: tuple[int, int, int] | None

    @property
    def room(self) -> int:
        """What its entries take in the log, about."""
        return CONTENT_OVERHEAD + len(self.stored)


def content_hash(raw: bytes) -> bytes:
    """The hash by which a content is found."""
    return xxh3_128_digest(raw)


def address_of(content_key: bytes) -> str:
    """The address that a caller knows a content by."""
    digest, number = CONTENT_KEY.unpack(content_key)
    return f"{digest.hex()}-{number}" if number else digest.hex()


def content_key_of(address: object) -> bytes | None:
    """The content key of an address; None where it is no address."""
    if not isinstance(address, str):
        return None
    digest, dash, number = address.partition("-")
    canonical = len(digest) == HEX_DIGITS and digest == digest.lower()
    if not canonical or (dash and not (number.isascii() and number.isdecimal())):
        return None
    try:
        key = CONTENT_KEY.pack(bytes.fromhex(digest), int(number) if dash else 0)
    except (ValueError, OverflowError, struct_error):
        return None
    return key if address_of(key) == address and not is_node(key) else None


Place: TypeAlias = tuple[int, int, int]
"""Where a content lies: file id and offset of its entry, and where it begins in its raw bytes."""

NODE_VALUE, EXPANDED = -1, -2  # in place of a start: the value of a node, and what it stands for


def place_of(row: ContentRow) -> Place:
    """Where a content lies."""
    return row.segment, row.offset, row.start


class RawCache:
    """Raw bytes of contents used lately; bounded, the oldest use goes first.

    They are known by the place of their entry, which is never used twice. A content key is: when a
    content is gone, another one with the same hash may get its number.

    Attributes:
        damage_met: how often something could not be read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all that follows
        self._kept: OrderedDict[Place, bytes] = OrderedDict()
        self._bytes = 0
        self.damage_met = 0

    def get(self, place: Place) -> bytes | None:
        """The bytes of the content at a place, if they are here."""
        with self._lock:
            raw = self._kept.get(place)
            if raw is not None:
                self._kept.move_to_end(place)
            return raw

    def put(self, place: Place, raw: bytes) -> None:
        """Keep the bytes for a while."""
        self.put_all(((place, raw),))

    def put_all(self, pairs: Iterable[tuple[Place, bytes]]) -> None:
        """Keep the bytes of several for a while."""
        kept = self._kept
        with self._lock:
            for place, raw in pairs:
                if len(raw) < CACHED_BYTES_MAX:
                    before = kept.pop(place, b"")
                    kept[place] = raw
                    self._bytes += len(raw) - len(before)
            while self._bytes > CACHE_BYTES_MAX:
                _, gone = kept.popitem(last=False)
                self._bytes -= len(gone)

    def distrust(self) -> None:
        """Damage was met: forget everything, so that a save looks for itself.

        What is saved again would else rely on a content that was whole when it was last compared.
        """
        with self._lock:
            self._forget()
            self.damage_met += 1

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._kept.clear()
        self._bytes = 0
