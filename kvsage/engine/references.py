"""Counting what refers to contents, inside a commit.

Rows of keys refer to contents, and so do nodes of trees. What one operation adds and takes away is
summed up before anything is written: a tree that takes the place of one that is almost the same
changes the counts of a few contents, however many it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvsage.errors import CorruptionError
from kvsage.index.contents import ContentRow, decode_content_row, encode_content_row
from kvsage.log.format import (
    CONTENT,
    CONTENT_HEAD,
    NODE,
    PACK,
    decode_pack,
    keys_in_tree,
    split_keys,
    tree_length,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvsage.index.env import Index, Txn
    from kvsage.log.format import LogEntry


def content_rows(
    entry: LogEntry, place: tuple[int, int, int]
) -> Iterator[tuple[bytes, ContentRow]]:
    """The contents that a possible entry brings, with rows that nothing refers to yet.

    Args:
        entry: a CONTENT, NODE or PACK; any other brings none.
        place: file id, offset and length of it.
    """
    length, value = place[2], entry.value
    if entry.kind == CONTENT:
        (raw_length,) = CONTENT_HEAD.unpack_from(value)
        yield entry.key, ContentRow(*place, entry.seq, raw_length, 0, 0, length)
    elif entry.kind == NODE:
        counts = (entry.seq, tree_length(value), 0, 0, length)
        yield entry.key, ContentRow(*place, *counts, keys_in_tree(value))
    elif entry.kind == PACK:
        pack = decode_pack(value)
        for key, start, raw_length, share in () if pack is None else pack.contents:
            yield key, ContentRow(*place, entry.seq, raw_length, 0, start, share)


class References:
    """The references that one operation changes."""

    __slots__ = ("_by", "_index", "_rows", "_txn", "new")

    def __init__(self, index: Index, txn: Txn) -> None:
        self._index = index
        self._txn = txn
        self._rows: dict[bytes, ContentRow | None] = {}
        self._by: dict[bytes, int] = {}  # how many more there are
        self.new: set[bytes] = set()  # whose rows are not in the index yet

    def row(self, key: bytes) -> ContentRow | None:
        """The row of a content, as it is before the operation or as it was added by it."""
        try:
            return self._rows[key]
        except KeyError:
            data = self._txn.get(key, None, self._index.contents)
            row = self._rows[key] = None if data is None else decode_content_row(data)
            return row

    def add(self, key: bytes, row: ContentRow) -> None:
        """A content that is new; it refers to its children."""
        self._rows[key] = row
        self.new.add(key)
        self._by.setdefault(key, 0)
        if row.children:
            self.hold(row.children)

    def hold(self, keys: bytes) -> None:
        """One reference more to each of some content keys, which stand one behind the other."""
        by = self._by
        for key in split_keys(keys):
            by[key] = by.get(key, 0) + 1

    def release(self, keys: bytes) -> None:
        """One reference less to each of them."""
        by = self._by
        for key in split_keys(keys):
            by[key] = by.get(key, 0) - 1

    def settle(self, dead: dict[int, int]) -> None:
        """Write the rows that change; a content that nothing refers to any more ends.

        Args:
            dead: where the bytes of contents that end are counted, by file id.

        Raises:
            CorruptionError: something is referred to that is not there.
        """
        self._fall()
        by, contents = self._by, self._index.contents
        changed: list[tuple[bytes, bytes]] = []
        for key, change in by.items():
            if not change and key not in self.new:
                continue
            row = self.row(key)
            if row is None:
                if change > 0:
                    raise CorruptionError(f"the content {key[:16].hex()} is missing")
            elif row.references + change > 0:
                changed.append((key, encode_content_row(row, row.references + change)))
            else:
                dead[row.segment] = dead.get(row.segment, 0) + row.share
                if key not in self.new:
                    self._txn.delete(key, db=contents)
        self._put(changed)

    def _put(self, rows: list[tuple[bytes, bytes]]) -> None:
        contents = self._index.contents
        if len(rows) == 1:  # a cursor would take longer to make than to use
            self._txn.put(*rows[0], db=contents)
        elif rows:
            rows.sort()  # rows that stand side by side change a page together
            self._txn.cursor(contents).putmulti(rows)

    def _fall(self) -> None:
        """Nodes that end let go of what they refer to.

        A content that is to lose references and is not there says that the index is damaged; a
        rebuild counts anew.
        """
        by = self._by
        falling = [key for key, change in by.items() if change < 0]
        gone: set[bytes] = set()
        while falling:
            key = falling.pop()
            row = None if by[key] >= 0 else self.row(key)
            if row is None or key in gone or row.references + by[key] > 0:
                continue
            gone.add(key)
            self.release(row.children)
            falling += split_keys(row.children)


def release(index: Index, txn: Txn, keys: bytes, dead: dict[int, int]) -> None:
    """One reference less to each of some content keys."""
    references = References(index, txn)
    references.release(keys)
    references.settle(dead)
