"""Rows of the contents: where a content lies, how long it is raw, and how often it is referred to.

A content is a whole value, a leaf of a tree, or a node of one. Behind the row of a node stand the
content keys that it refers to, so that references can be counted without reading the log.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from kvsage.index.keydir import CONTENT_KEY_BYTES, StructError, damaged

CONTENT_ROW = Struct("<IIIQQQII")
assert CONTENT_ROW.size == 44

ROW_BYTES = CONTENT_ROW.size
_pack, _unpack = CONTENT_ROW.pack, CONTENT_ROW.unpack_from
_make = tuple.__new__  # a third of the time of the class's own call


class ContentRow(NamedTuple):
    """One content, by its content key (hash and number).

    Attributes:
        segment: id of the file where its entry lies.
        offset: of the entry in it.
        length: of the entry.
        seq: of the commit that wrote it.
        raw_length: of its bytes; of a node, of all that it stands for.
        references: how many rows of keys and of nodes name it, counting each time.
        start: where it stands in the raw bytes of its entry.
        share: its part of the entry's bytes: all of them, unless the entry is a pack.
        children: of a node, the content keys that it refers to, one behind the other.
    """

    segment: int
    offset: int
    length: int
    seq: int
    raw_length: int
    references: int
    start: int
    share: int
    children: bytes = b""


def decode_content_row(data: bytes) -> ContentRow:
    """The row in ``data``.

    Raises:
        CorruptionError: a row of another length.
    """
    if len(data) < ROW_BYTES or (len(data) - ROW_BYTES) % CONTENT_KEY_BYTES:
        raise damaged(StructError(f"a content's row of {len(data)} bytes"))
    return _make(ContentRow, (*_unpack(data), data[ROW_BYTES:]))


def encode_content_row(row: ContentRow, references: int | None = None) -> bytes:
    """The bytes of a row, with another number of references where one is given."""
    segment, offset, length, seq, raw_length, counted, start, share, children = row
    held = counted if references is None else references
    return _pack(segment, offset, length, seq, raw_length, held, start, share) + children
