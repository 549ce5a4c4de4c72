"""Lists that are long: adding to the end, and reading a part, without the rest.

What is added goes behind the last piece of the tree, which is cut anew together with it; the nodes
above it are made anew, one on each level. The outcome is the tree that saving the whole list would
make.
"""

from __future__ import annotations

from itertools import accumulate, islice
from typing import TYPE_CHECKING

from msgpack import UnpackException

from kvsage.engine.assembling import Assembler, items_of, put_entry
from kvsage.engine.content import Mismatch
from kvsage.engine.cutting import (
    ARRAY,
    Cutter,
    array_header,
    counted,
    ends_of,
    is_dense,
    is_headed,
)
from kvsage.engine.tree import TOP_MAX, Piece, group, held, pieces_of
from kvsage.errors import CorruptionError, ValueTooLargeError
from kvsage.index.keydir import decode_row
from kvsage.log.format import CODEC_MASK, IS_TREE, MSGPACK, is_node
from kvsage.serialization import pack
from kvsage.store import not_a_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvsage.engine.content import Content
    from kvsage.engine.engine import Engine
    from kvsage.engine.preparing import Preparer
    from kvsage.engine.tree import Tree
    from kvsage.index.env import Txn
    from kvsage.log.format import LogEntry, TreeItem

ROOM = 16 << 10  # for what is cut anew beside the items; nobody has looked yet
EMPTY = array_header(0)


class Growth:
    """Items on their way to the end of a list.

    Attributes:
        length: of the list, once they are there.
        room: what their entries take in the log, about.
    """

    __slots__ = ("_items", "_preparer", "length", "room")

    def __init__(self, preparer: Preparer, items: list[bytes]) -> None:
        self._preparer = preparer
        self._items = items
        self.length = 0
        self.room = ROOM + sum(map(len, items))

    def on(
        self, engine: Engine, txn: Txn, key: bytes
    ) -> tuple[int, int, bytes, Content | Tree | None]:
        """Flags, expiry and value of the entry that holds the list with the items.

        The value is here, or it is the content. Nobody else may write meanwhile.

        Args:
            engine: whose list.
            txn: the write transaction of the commit.
            key: of the list; where it is absent or has expired, the list is empty, and permanent.

        Raises:
            UnsupportedError: there is something other than a list.
            ValueTooLargeError: it would become too long.
            CorruptionError: what is needed of it cannot be read.
        """
        data = txn.get(key, None, engine.index.keydir)
        row = None if data is None else decode_row(data)
        if row is None or 0 < row.expires_ms <= engine.clock() * 1000:
            return MSGPACK, 0, *self._appended(key, EMPTY)
        try:
            entry = put_entry(engine, key, row)
            return MSGPACK, row.expires_ms, *self._grown(Assembler(engine, txn), key, entry)
        except Mismatch as error:
            raise CorruptionError(
                f"the list of {key.decode()!r} is damaged", segment=row.segment, offset=row.offset
            ) from error

    def _grown(
        self, assembler: Assembler, key: bytes, entry: LogEntry
    ) -> tuple[bytes, Content | Tree | None]:
        if entry.flags & IS_TREE and entry.flags & CODEC_MASK == MSGPACK:
            tree = self._grown_tree(assembler, key, items_of(entry.value))
            if tree is not None:
                return b"", tree
        data = assembler.value(entry.flags, entry.value)
        if entry.flags & CODEC_MASK != MSGPACK:
            value = self._preparer.codec.decode(key.decode(), entry.flags, data)
            if not isinstance(value, list):
                raise not_a_list(key.decode(), value)
            data = pack(value)
        return self._appended(key, data)

    def _appended(self, key: bytes, data: bytes) -> tuple[bytes, Content | Tree | None]:
        """The items behind a list that is serialized whole."""
        kind, header, count = counted(data)
        if kind != ARRAY or is_headed(data, header):
            codec = self._preparer.codec
            raise not_a_list(key.decode(), codec.decode(key.decode(), MSGPACK, data))
        self.length = count + len(self._items)
        data = b"".join([array_header(self.length), memoryview(data)[header:], *self._items])
        self._check(key, len(data))
        if len(data) < self._preparer.content_bytes_min:
            return data, None
        return b"", self._preparer.large(MSGPACK, data)

    def _check(self, key: bytes, size: int) -> None:
        limit = self._preparer.codec.value_bytes_max
        if size > limit:
            raise ValueTooLargeError(
                f"the list of {key.decode()!r} would take {size} bytes; at most {limit} "
                "(value_bytes_max, bytes_max) are stored"
            )

    def _grown_tree(
        self, assembler: Assembler, key: bytes, items: Sequence[TreeItem]
    ) -> Tree | None:
        """The tree with the items; None where it must be cut anew as a whole."""
        count = list_count(items)
        if count is None or len(items) == 1:
            return None
        _, *top = held(items)
        added, before = b"".join(self._items), sum([piece.length for piece in top])
        self.length = count + len(self._items)
        if is_dense(count, before) or is_dense(self.length, before + len(added)):
            return None  # text is cut by what comes behind, too
        header = array_header(self.length)
        length = len(header) + before + len(added)
        self._check(key, length)
        levels = [top]
        while levels[-1][-1].level:
            levels.append(held(grouped_in(assembler, levels[-1][-1])))
        *pieces, last = levels.pop()
        base = b""
        if last.key and is_node(last.key):
            pieces.append(last)  # an element that is large stays as it is
        else:
            base = last.literal or assembler.content(last.key)
        raw = base + added
        ends = element_ends(base, last.elements) if base else []
        lengths = accumulate(map(len, self._items), initial=len(base))
        cutter = Cutter(raw, self._preparer.sizes)
        parts = cutter.elements([*ends, *islice(lengths, 1, None)], 0)
        pieces += pieces_of(raw, parts)
        while levels:
            pieces = levels.pop()[:-1] + group(pieces)
        while len(pieces) > TOP_MAX:
            pieces = group(pieces)
        root = [Piece(b"", len(header), 0, 0, header), *pieces]
        return self._preparer.tree(root, raw, length)


def list_count(items: Sequence[TreeItem]) -> int | None:
    """How many elements a list has that is a tree of these items; None where it is no list."""
    head = items[0].literal
    if not head:
        return None
    kind, header, count = counted(head)
    return count if kind == ARRAY and header == len(head) else None


def grouped_in(assembler: Assembler, item: TreeItem | Piece) -> list[TreeItem]:
    """The items of a node that groups those of the level below.

    Raises:
        Mismatch: it groups others, or nothing.
    """
    items = assembler.node(item.key, item.length)
    if any(one.level != item.level - 1 for one in items):
        raise Mismatch
    return items


def element_ends(data: bytes, count: int) -> list[int]:
    """Where each of the first elements in a piece ends.

    Raises:
        Mismatch: it does not hold so many.
    """
    try:
        return ends_of(memoryview(data), count)
    except (UnpackException, ValueError) as error:
        raise Mismatch from error


def part_of(
    assembler: Assembler, items: Sequence[TreeItem], start: int | None, stop: int | None
) -> bytes | None:
    """A slice of a list that is a tree, as MessagePack; None where all of it must be read.

    Args:
        assembler: reads it.
        items: of its root.
        start: as for a slice.
        stop: as for a slice.

    Raises:
        Mismatch, CorruptionError: some of it cannot be read.
    """
    count = list_count(items)
    if count is None or sum([item.elements for item in items]) != count:
        return None  # no list, or one of elements that are too small to have been counted
    first, last, _ = slice(start, stop).indices(count)
    pieces: list[bytes] = []
    _collect(assembler, items[1:], (first, last), 0, pieces)
    return b"".join([array_header(max(0, last - first)), *pieces])


def _collect(
    assembler: Assembler,
    items: Sequence[TreeItem],
    wanted: tuple[int, int],
    at: int,
    pieces: list[bytes],
) -> None:
    """The bytes of the elements wanted, of items of which the first begins with element ``at``."""
    first, last = wanted
    for item in items:
        begin, end = max(first, at), min(last, at + item.elements)
        if begin < end:
            if item.level:
                inside = grouped_in(assembler, item)
                if sum([one.elements for one in inside]) != item.elements:
                    raise Mismatch
                _collect(assembler, inside, wanted, at, pieces)
            else:
                data = b"".join(assembler.joined([item]))
                if end - begin < item.elements:
                    ends = [0, *element_ends(data, end - at)]
                    data = data[ends[begin - at] : ends[end - at]]
                pieces.append(data)
        at += item.elements
