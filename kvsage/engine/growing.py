"""Lists that are long: adding to the end, and reading a part, without the rest.

What is added goes into the tail, which stands in the root. When that makes a piece, or several,
they are hung into the tree, with one new node on each level. The outcome is the tree that saving
the whole list would make.
"""

from __future__ import annotations

from itertools import accumulate, islice
from typing import TYPE_CHECKING, NamedTuple

from msgpack import UnpackException

from kvsage.engine.assembling import Assembler, items_of, put_entry
from kvsage.engine.content import Mismatch, inflate_tree
from kvsage.engine.cutting import (
    ARRAY,
    Cutter,
    array_header,
    counted,
    ends_of,
    ends_run,
    is_dense,
    is_headed,
)
from kvsage.engine.tree import TOP_MAX, Piece, group, held, pieces_of
from kvsage.errors import CorruptionError, KvsageError, ValueTooLargeError
from kvsage.index.keydir import content_keys_in, decode_row
from kvsage.log.format import (
    CODEC_MASK,
    IS_TREE,
    LITERAL,
    MSGPACK,
    STORED_RAW,
    TREE_HEAD,
    TREE_ITEM,
)
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


class Grown(NamedTuple):
    """A list that has grown.

    Attributes:
        flags: of its entry, without those of a content.
        expires_ms: when it expires, or 0.
        value: of its entry, unless that is content.
        content: what is stored as content.
        refers: the content keys that the entry refers to, where they are those that it had.
    """

    flags: int
    expires_ms: int
    value: bytes
    content: Content | Tree | None = None
    refers: bytes = b""


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

    def on(self, engine: Engine, txn: Txn, key: bytes) -> Grown:
        """The list with the items. Nobody else may write meanwhile.

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
        if data is None or row is None or 0 < row.expires_ms <= engine.clock() * 1000:
            return self._appended(key, EMPTY, 0)
        try:
            entry = put_entry(engine, key, row)
            if entry.flags == MSGPACK | IS_TREE:
                longer = self._with_tail(key, entry.value)
                if longer is not None:  # as it is: compressing it would double what an append costs
                    return Grown(entry.flags, row.expires_ms, longer, None, content_keys_in(data))
            return self._grown(Assembler(engine, txn), key, entry)
        except KvsageError:  # some are ValueErrors
            raise
        except (Mismatch, UnpackException, ValueError, OverflowError) as error:
            # Other than a Mismatch: of a list whose header claims what it does not hold.
            segment, offset = row[:2]
            if isinstance(error, Mismatch) and error.args:
                segment, offset = error.args
            raise CorruptionError(
                f"the list of {key.decode()!r} is damaged", segment=segment, offset=offset
            ) from error

    def _grown(self, assembler: Assembler, key: bytes, entry: LogEntry) -> Grown:
        if entry.flags == MSGPACK | IS_TREE:
            tree = self._grown_tree(assembler, key, items_of(entry.value))
            if tree is not None:
                return Grown(MSGPACK, entry.expires_ms, b"", tree)
        data = assembler.value(entry.flags, entry.value)
        if entry.flags & CODEC_MASK != MSGPACK:
            value = self._preparer.codec.decode(key.decode(), entry.flags, data)
            if not isinstance(value, list):
                raise not_a_list(key.decode(), value)
            data = pack(value)
        return self._appended(key, data, entry.expires_ms)

    def _appended(self, key: bytes, data: bytes, expires_ms: int) -> Grown:
        """The items behind a list that is serialized whole."""
        kind, header, count = counted(data)
        if kind != ARRAY or is_headed(data, header):
            codec = self._preparer.codec
            raise not_a_list(key.decode(), codec.decode(key.decode(), MSGPACK, data))
        self.length = count + len(self._items)
        data = b"".join([array_header(self.length), memoryview(data)[header:], *self._items])
        self._check(key, len(data))
        if len(data) < self._preparer.content_bytes_min:
            return Grown(MSGPACK, expires_ms, data)
        return Grown(MSGPACK, expires_ms, b"", self._preparer.large(MSGPACK, data))

    def _check(self, key: bytes, size: int) -> None:
        """Refuse a list that would take more than one value may."""
        limit = self._preparer.codec.value_bytes_max
        if size > limit:
            raise ValueTooLargeError(
                f"the list of {key.decode()!r} would take {size} bytes; at most {limit} "
                "(value_bytes_max, bytes_max) are stored"
            )

    def _with_tail(self, key: bytes, value: bytes) -> bytes | None:
        """The root with the items in its tail; None where they do not all fit there.

        Flat, and without a look at the other items: this is what nearly every append is. What is
        not as it must be there is left to the other way, which looks at all of it.
        """
        length, items, stored = TREE_HEAD.unpack_from(value)
        if stored != STORED_RAW:
            value = inflate_tree(value)
        at = TREE_HEAD.size + TREE_ITEM.size * items
        last_at = at - TREE_ITEM.size
        if items == 1 or len(value) <= at:
            return None
        first_key, first_length, _, _ = TREE_ITEM.unpack_from(value, TREE_HEAD.size)
        last_key, tail_length, elements, _ = TREE_ITEM.unpack_from(value, last_at)
        if not first_key == last_key == LITERAL or not elements:
            return None
        kind, header, count = counted(value[at : at + first_length])
        if kind != ARRAY or header != first_length or len(value) < at + header + tail_length:
            return None
        added = self._room_in_tail(tail_length)
        self.length = count + len(self._items)
        if added is None or is_dense(self.length, length - header + added):
            return None
        head = array_header(self.length)
        total = length - header + len(head) + added
        self._check(key, total)
        return b"".join(
            [
                TREE_HEAD.pack(total, items, STORED_RAW),
                TREE_ITEM.pack(LITERAL, len(head), 0, 0),
                value[TREE_HEAD.size + TREE_ITEM.size : last_at],
                TREE_ITEM.pack(LITERAL, tail_length + added, elements + len(self._items), 0),
                head,
                value[at + header :],
                *self._items,
            ]
        )

    def _room_in_tail(self, size: int) -> int | None:
        """Bytes of the items, where none of them ends the run of elements in a tail."""
        least, spread, most, whole = self._preparer.sizes[:4]
        before = size
        for item in self._items:
            size += len(item)
            if len(item) > whole or size >= most:
                return None
            if size >= least and ends_run(item, spread):
                return None
        return size - before

    def _grown_tree(
        self, assembler: Assembler, key: bytes, items: Sequence[TreeItem]
    ) -> Tree | None:
        """The tree with the items; None where it must be cut anew as a whole."""
        count = list_count(items)
        if count is None:
            return None
        _, *top = held(items)
        tail = top.pop() if top and top[-1].literal else None
        if not top:
            return None
        base = b"" if tail is None else tail.literal
        added = b"".join(self._items)
        before = len(base) + sum([piece.length for piece in top])
        self.length = count + len(self._items)
        if is_dense(count, before) or is_dense(self.length, before + len(added)):
            return None  # text is cut by what comes behind, too
        header = array_header(self.length)
        self._check(key, len(header) + before + len(added))
        raw = base + added
        ends = [] if tail is None else element_ends(base, tail.elements)
        lengths = accumulate(map(len, self._items), initial=len(base))
        cutter = Cutter(raw, self._preparer.sizes)
        pieces = pieces_of(raw, cutter.elements([*ends, *islice(lengths, 1, None)], 0))
        rest = [pieces.pop()] if pieces and pieces[-1].literal else []
        levels = [top]
        while levels[-1][-1].level:
            levels.append(held(grouped_in(assembler, levels[-1][-1])))
        pieces = levels.pop() + pieces
        while levels:
            pieces = levels.pop()[:-1] + group(pieces)
        while len(pieces) > TOP_MAX:
            pieces = group(pieces)
        root = [Piece(b"", len(header), 0, 0, header), *pieces, *rest]
        return self._preparer.tree(root, raw)


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
