"""Rows about the log as a whole, in LMDB's unnamed database.

Each commit rewrites that database's page anyway, for the roots of the named ones, so what is kept
here costs a commit nothing more.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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


def the_meta(txn: Txn) -> Meta:
    """The row, of an index that is built.

    Raises:
        CorruptionError: there is none.
    """
    meta = get_meta(txn)
    if meta is None:
        raise damaged(StructError("the row of the log's end is missing"))
    return meta


def put_meta(txn: Txn, meta: Meta) -> None:
    """Set the row."""
    txn.put(META_KEY, META.pack(*meta))


SEGMENT_PREFIX = b"segment:"
SEGMENT_ID = Struct(">I")
SEGMENT_ROW = Struct("<IIQQQQBBQ")
assert SEGMENT_ROW.size == 50

LISTED, JOINING = 0, 1
"""State of a file: it counts, or it is a copy that rows lead to and no RETIRE names yet."""


class SegmentRow(NamedTuple):
    """One file of the log.

    Of the active segment ``end``, ``last_seq`` and ``entry_bytes`` are set when it is sealed.

    Attributes:
        start: where its batches begin.
        end: where they end.
        after_seq: number of the last commit before it; of a copy, where compaction began to judge.
        last_seq: the highest seq of an entry in it.
        entry_bytes: bytes of its entries; of a copy without ORIGINS, which nothing refers to.
        dead_bytes: how many of those nothing refers to any more.
        kind: of ``log.format.FileKind``.
        state: LISTED or JOINING.
        born: number of LMDB's transaction from which on rows may lead to it; 0 where the index was
            built with it.
    """

    start: int
    end: int
    after_seq: int
    last_seq: int
    entry_bytes: int
    dead_bytes: int
    kind: int
    state: int
    born: int = 0


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
            at = DEAD_BYTES_AT
            (dead_bytes,) = DEAD_BYTES.unpack_from(data, at)
            total = DEAD_BYTES.pack(dead_bytes + count)
            txn.put(key, data[:at] + total + data[at + len(total) :])


DEAD_BYTES = Struct("<Q")
DEAD_BYTES_AT = Struct("<IIQQQ").size


def all_segments(txn: Txn) -> Iterator[tuple[int, SegmentRow]]:
    """Every file's id and row, in the order of the ids, joining copies too."""
    for segment, data in _numbered(txn, SEGMENT_PREFIX):
        yield segment, decode_segment_row(data)


def listed_segments(txn: Txn) -> Iterator[tuple[int, SegmentRow]]:
    """Id and row of every file that counts, in the order of the ids."""
    return ((segment, row) for segment, row in all_segments(txn) if row.state == LISTED)


def _numbered(txn: Txn, prefix: bytes) -> Iterator[tuple[int, bytes]]:
    cursor = txn.cursor()
    found = cursor.set_range(prefix)
    while found and cursor.key().startswith(prefix):
        yield int(SEGMENT_ID.unpack(cursor.key()[len(prefix) :])[0]), cursor.value()
        found = cursor.next()


# -- files that count no more, and what compaction dropped ----------------------------------------

RETIRED_PREFIX = b"retired:"
RETIRED = Struct("<QBQ")
FLOOR_KEY = b"floor"
FLOOR = Struct("<Q")


def put_retired(txn: Txn, segment: int) -> None:
    """A file counts no more from this write transaction on; readers before it may need it."""
    row = get_segment(txn, segment)
    born = 0 if row is None else row.born
    txn.delete(segment_key(segment))
    txn.put(RETIRED_PREFIX + SEGMENT_ID.pack(segment), RETIRED.pack(txn.id(), 0, born))


def forgotten(txn: Txn, segments: Iterable[int]) -> None:
    """No row leads into these retired files any more."""
    for segment in segments:
        key = RETIRED_PREFIX + SEGMENT_ID.pack(segment)
        data = txn.get(key)
        if data is not None:
            transaction, _, born = RETIRED.unpack(data)
            txn.put(key, RETIRED.pack(transaction, 1, born))


def drop_retired(txn: Txn, segments: Iterable[int]) -> None:
    """These retired files have been removed."""
    for segment in segments:
        txn.delete(RETIRED_PREFIX + SEGMENT_ID.pack(segment))


class Retired(NamedTuple):
    """A file that counts no more.

    Attributes:
        transaction: number of LMDB's transaction that retired it.
        forgotten: whether no row leads there any more: deletions that compaction has dropped are
            forgotten only after their files are retired.
        born: as of its ``SegmentRow``.
    """

    transaction: int
    forgotten: int
    born: int


def all_retired(txn: Txn) -> dict[int, Retired]:
    """The files that count no more and are still there, by id."""
    rows = _numbered(txn, RETIRED_PREFIX)
    return {segment: Retired._make(RETIRED.unpack(data)) for segment, data in rows}


def get_floor(txn: Txn) -> int:
    """The highest seq of a deletion that compaction has dropped."""
    data = txn.get(FLOOR_KEY)
    return 0 if data is None else int(FLOOR.unpack(data)[0])


def put_floor(txn: Txn, seq: int) -> None:
    """Raise the floor to ``seq``."""
    if seq > get_floor(txn):
        txn.put(FLOOR_KEY, FLOOR.pack(seq))


DELETIONS_KEY = b"deletions"
DELETIONS = Struct("<Q")


def get_deletions_left(txn: Txn) -> int:
    """How many deletions were left when everything was compacted last; 0 where it never was."""
    data = txn.get(DELETIONS_KEY)
    return 0 if data is None else int(DELETIONS.unpack(data)[0])


def put_deletions_left(txn: Txn, count: int) -> None:
    """Set that number."""
    txn.put(DELETIONS_KEY, DELETIONS.pack(count))
