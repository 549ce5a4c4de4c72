"""Rows about the log as a whole, in LMDB's unnamed database.

Each commit rewrites that database's page anyway, for the roots of the named ones, so what is kept
here costs a commit nothing more.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvsage.index.env import Txn
from kvsage.index.keydir import StructError, damaged

META_KEY = b"meta"
META = Struct("<IIIQQQQQB")
assert META.size == 53


class Meta(NamedTuple):
    """Up to where the index has applied the log.

    Attributes:
        segment: id of the active segment.
        offset: its tail, where the next batch goes.
        last: where the batch before the tail begins, or 0 where none does.
        chain: checksum of what stands before the tail.
        seq: number of the last commit applied.
        flushed_seq: number of the last commit known to be on disk.
        timeline: in which commits are numbered now.
        epoch: random for each building of the index; LMDB's transaction ids mean nothing beyond it.
        poisoned: a flush beyond ``flushed_seq`` has failed: nobody writes until an opener has
            written what came after it anew.
    """

    segment: int
    offset: int
    last: int
    chain: int
    seq: int
    flushed_seq: int
    timeline: int
    epoch: int
    poisoned: int


def decode_meta(data: bytes) -> Meta:
    """The row in ``data``.

    Raises:
        CorruptionError: a row of another length.
    """
    try:
        return Meta._make(META.unpack(data))
    except StructError as error:
        raise damaged(error) from error


def decode_segment_row(data: bytes) -> SegmentRow:
    """The row in ``data``.

    Raises:
        CorruptionError: a row of another length.
    """
    try:
        return SegmentRow._make(SEGMENT_ROW.unpack(data))
    except StructError as error:
        raise damaged(error) from error


def get_meta(txn: Txn) -> Meta | None:
    """The row, or None in an index that is not built yet."""
    data = txn.get(META_KEY)
    return None if data is None else decode_meta(data)


def put_meta(txn: Txn, meta: Meta) -> None:
    """Set the row."""
    txn.put(META_KEY, META.pack(*meta))


SEGMENT_PREFIX = b"segment:"
SEGMENT_ID = Struct(">I")
SEGMENT_ROW = Struct("<IIQQB")


class SegmentRow(NamedTuple):
    """One file of the log.

    Attributes:
        start: where its batches begin.
        end: where they end; of the active segment, where they ended when it was last opened.
        after_seq: number of the last commit before it.
        dead_bytes: bytes of its entries that nothing refers to.
        kind: of ``log.format.FileKind``.
    """

    start: int
    end: int
    after_seq: int
    dead_bytes: int
    kind: int


def segment_key(segment: int) -> bytes:
    """The key of a file's row."""
    return SEGMENT_PREFIX + SEGMENT_ID.pack(segment)


def get_segment(txn: Txn, segment: int) -> SegmentRow | None:
    """The row of a file."""
    data = txn.get(segment_key(segment))
    return None if data is None else decode_segment_row(data)


def put_segment(txn: Txn, segment: int, row: SegmentRow) -> None:
    """Set the row of a file."""
    txn.put(segment_key(segment), SEGMENT_ROW.pack(*row))


def add_dead(txn: Txn, dead: dict[int, int]) -> None:
    """Count ``dead`` bytes by file id."""
    for segment, count in dead.items():
        key = SEGMENT_PREFIX + SEGMENT_ID.pack(segment)
        data = txn.get(key)
        if data is not None:
            start, end, after_seq, dead_bytes, kind = SEGMENT_ROW.unpack(data)
            txn.put(key, SEGMENT_ROW.pack(start, end, after_seq, dead_bytes + count, kind))


def all_segments(txn: Txn) -> Iterator[tuple[int, SegmentRow]]:
    """Every file's id and row, in the order of the ids."""
    cursor = txn.cursor()
    found = cursor.set_range(SEGMENT_PREFIX)
    while found and cursor.key().startswith(SEGMENT_PREFIX):
        segment = int(SEGMENT_ID.unpack(cursor.key()[len(SEGMENT_PREFIX) :])[0])
        yield segment, decode_segment_row(cursor.value())
        found = cursor.next()
