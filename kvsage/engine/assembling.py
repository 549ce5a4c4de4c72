"""Contents read back: whole ones, those in packs, and the bytes that a tree stands for.

What is read is checked to be whole and to be the content of the key asked for. A tree that claims
more than it holds, or that refers to itself, ends in an error, and takes no memory beyond what its
root says that it stands for, and one pack.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest

from kvsage.engine.content import (
    EXPANDED,
    NODE_VALUE,
    Mismatch,
    Missing,
    decode_content,
    inflate_tree,
    place_of,
    unpack_pack,
)
from kvsage.errors import CorruptionError
from kvsage.index.contents import ContentRow, decode_content_row
from kvsage.log.format import (
    CHECKSUM_BYTES,
    CONTENT,
    CONTENT_KEY,
    CONTENT_REF,
    ENTRY,
    ENTRY_BYTES,
    IS_CONTENT,
    IS_TREE,
    NODE,
    PACK,
    PUT,
    TreeItem,
    decode_tree,
    is_node,
)
from kvsage.options import VALUE_BYTES_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvsage.engine.engine import Engine
    from kvsage.index.env import Txn
    from kvsage.index.keydir import Row
    from kvsage.log.format import LogEntry

EXPANDED_BYTES_MAX = 256 << 10  # what a node stands for is kept in one piece up to this
DEPTH_MAX = 160  # nodes within nodes: a dozen in any tree that is not made up of nesting alone


def raw_content(engine: Engine, key: bytes, row: ContentRow) -> bytes:
    """The raw bytes of a content that is no node, from the cache or from the log.

    Raises:
        Mismatch: the log does not hold it there.
        CorruptionError: it cannot be decompressed.
    """
    place = place_of(row)
    raw = engine.raw_cache.get(place)
    if raw is not None:
        return raw
    with distrusting(engine, row):
        kind, flags, value = content_entry(engine, key, row)
        if kind == CONTENT:
            raw = decode_content(flags, value)
            engine.raw_cache.put(place, raw)
        elif kind == PACK:
            segment, offset, start = place
            unpacked = unpack_pack(flags, value)
            engine.raw_cache.put_all(((segment, offset, one.start), data) for one, data in unpacked)
            raw = next((d for one, d in unpacked if (one.start, one.key) == (start, key)), None)
        if raw is None or len(raw) != row.raw_length:
            raise Mismatch(row.segment, row.offset)
    return raw


@contextlib.contextmanager
def distrusting(engine: Engine, row: ContentRow) -> Iterator[None]:
    """Let nothing that is remembered hide what cannot be read, and say where that is."""
    try:
        yield
    except Mismatch:
        engine.raw_cache.distrust()
        raise
    except CorruptionError as error:
        engine.raw_cache.distrust()
        raise placed(error, row) from error


def placed(error: CorruptionError, row: ContentRow | Row) -> CorruptionError:
    """An error with its place, which is that of a row where it has none."""
    if error.segment is not None:
        return error
    return CorruptionError(str(error), segment=row.segment, offset=row.offset)


def content_entry(engine: Engine, key: bytes, row: ContentRow) -> tuple[int, int, memoryview]:
    """Kind, flags and value of the entry that holds a content.

    As ``Engine.read_entry`` does it, without a copy of what may be megabytes.

    Raises:
        Mismatch: the log does not hold it there.
    """
    segment, offset, length, seq = row[:4]
    try:
        fd = engine.files.fds.get(segment) or engine.files.fd(segment)
    except FileNotFoundError:
        raise Mismatch(segment, offset) from None
    entry = engine.disk.read(fd, length, offset)
    if len(entry) != length or length < ENTRY_BYTES:
        raise Mismatch(segment, offset)
    checksum, its_seq, _, size, key_length, kind, flags = ENTRY.unpack_from(entry)
    view = memoryview(entry)
    if (
        xxh3_64_intdigest(view[CHECKSUM_BYTES:]) != checksum
        or its_seq != seq
        or ENTRY_BYTES + key_length + size != length
        or entry[ENTRY_BYTES : ENTRY_BYTES + key_length] != (b"" if kind == PACK else key)
    ):
        raise Mismatch(segment, offset)
    return kind, flags, view[ENTRY_BYTES + key_length :]


def node_value(engine: Engine, key: bytes, row: ContentRow) -> bytes:
    """The value of a node with its literal bytes as they are, from the cache or from the log.

    Raises:
        Mismatch: the log does not hold it there.
        CorruptionError: it is no node.
    """
    place = (row.segment, row.offset, NODE_VALUE)
    value = engine.raw_cache.get(place)
    if value is None:
        with distrusting(engine, row):
            kind, _, view = content_entry(engine, key, row)
            if kind != NODE:
                raise Mismatch(row.segment, row.offset)
            value = inflate_tree(bytes(view))
        engine.raw_cache.put(place, value)
    return value


def put_entry(engine: Engine, key: bytes, row: Row) -> LogEntry:
    """The entry of a key that is there.

    Raises:
        Mismatch: the log does not hold it there.
    """
    entry = engine.read_entry(key, row)
    if (entry.kind, entry.flags, entry.expires_ms) != (PUT, row.flags, row.expires_ms):
        raise Mismatch(row.segment, row.offset)
    return entry


def content_row(engine: Engine, txn: Txn, key: bytes) -> ContentRow:
    """The row of a content.

    Raises:
        Missing: there is none.
    """
    data = txn.get(key, None, engine.index.contents)
    if data is None:
        raise Missing
    return decode_content_row(data)


class Assembler:
    """Joins the pieces of trees, in one read transaction.

    Attributes:
        newest: the highest seq of a content that was read.
    """

    def __init__(self, engine: Engine, txn: Txn) -> None:
        self._engine = engine
        self._txn = txn
        self.newest = 0

    def value(self, flags: int, value: bytes) -> bytes:
        """The serialized value that the value of a PUT holds or refers to.

        Raises:
            Mismatch: some of it is not there.
            CorruptionError: some of it cannot be decompressed; where.
        """
        if flags & IS_TREE:
            return b"".join(self.joined(items_of(value)))
        if not flags & IS_CONTENT:
            return value
        if len(value) != CONTENT_REF.size:
            raise Mismatch
        return self.content(value[: CONTENT_KEY.size])

    def content(self, key: bytes, length: int | None = None) -> bytes:
        """The raw bytes of a content that is no node.

        Args:
            key: its content key.
            length: how long it is, where that is known.

        Raises:
            Mismatch: it is not there, or of another length.
            CorruptionError: it cannot be decompressed; where.
        """
        row = content_row(self._engine, self._txn, key)
        if length is not None and row.raw_length != length:
            raise Mismatch(row.segment, row.offset)
        self.newest = max(self.newest, row.seq)
        return raw_content(self._engine, key, row)

    def joined(self, items: Iterable[TreeItem]) -> list[bytes]:
        """What some items stand for, in pieces."""
        pieces: list[bytes] = []
        self._gather(items, pieces, 0)
        return pieces

    def _gather(self, items: Iterable[TreeItem], pieces: list[bytes], depth: int) -> None:
        if depth > DEPTH_MAX:
            raise CorruptionError("the nodes of a tree refer to each other without end")
        for key, length, _, _, literal in items:
            if literal:
                piece = literal
            elif not is_node(key):
                piece = self.content(key, length)
            elif length > EXPANDED_BYTES_MAX:
                self._gather(self.node(key, length), pieces, depth + 1)
                continue
            else:
                piece = self._expanded(key, length, depth)
            if len(piece) != length:
                raise Mismatch
            pieces.append(piece)

    def node(self, key: bytes, length: int) -> list[TreeItem]:
        """The items of a node that stands for ``length`` bytes.

        Raises:
            Mismatch: it is not there, or stands for something else.
        """
        row = content_row(self._engine, self._txn, key)
        self.newest = max(self.newest, row.seq)
        return self._items(key, row, length)

    def _items(self, key: bytes, row: ContentRow, length: int) -> list[TreeItem]:
        if row.raw_length != length:  # before the literals are inflated, which are part of it
            raise Mismatch(row.segment, row.offset)
        items = decode_tree(node_value(self._engine, key, row))
        if items is None or sum([item.length for item in items]) != length:
            raise Mismatch(row.segment, row.offset)
        return items

    def _expanded(self, key: bytes, length: int, depth: int) -> bytes:
        """What a node stands for, from the cache or its pieces."""
        engine = self._engine
        row = content_row(engine, self._txn, key)
        self.newest = max(self.newest, row.seq)
        place = (row.segment, row.offset, EXPANDED)
        joined = engine.raw_cache.get(place)
        if joined is None:
            pieces: list[bytes] = []
            self._gather(self._items(key, row, length), pieces, depth + 1)
            joined = b"".join(pieces)
            engine.raw_cache.put(place, joined)
        return joined

    def expanded(self, key: bytes, length: int) -> bytes:
        """What a node stands for.

        Raises:
            Mismatch, CorruptionError: some of it cannot be read.
        """
        return self._expanded(key, length, 0)


def items_of(value: bytes) -> list[TreeItem]:
    """The items in the value of a PUT that is a tree.

    Raises:
        CorruptionError: it is none, or claims to be larger than any value can be.
    """
    items = decode_tree(inflate_tree(value))
    assert items is not None, "that was checked with it"
    length = sum([item.length for item in items])
    if length > VALUE_BYTES_LIMIT:
        raise CorruptionError(f"a tree claims {length} bytes, more than any value can have")
    return items
