"""Choosing: which files compaction should take, in groups that each make one copy.

Rules:

- The active segment is never chosen, nor a file that was found to be damaged.
- What a copy will hold fits in one segment, or comes from one file: no file grows without end.
- A copy costs flushes and a RETIRE however small it is, so little garbage waits for more of it,
  and small files wait for one another.
- Where everything is compacted, files judged first come first: their garbage is what deletions in
  the others may be kept for.

Nothing is changed here; a choice is made of what one read of the index shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvsage.engine.rotation import files_now, live_bytes
from kvsage.index.keydir import PLACE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from kvsage.engine.engine import Engine
    from kvsage.index.env import Txn
    from kvsage.index.segments import SegmentRow

GARBAGE_SHARE = 1 / 3  # of all sealed files together: the log is then 1.5 times what is live
FILE_GARBAGE_SHARE = 1 / 2  # of one file
JOINED_SHARE = 1 / 8  # files smaller than this share of a segment are put together
JOINED_FILES = 8  # as soon as there are so many of them
SOURCES_MAX = 64
WORTH_BYTES = 16 << 10  # less garbage than this is not worth a copy


def choose(engine: Engine, damaged: Collection[int | None] = ()) -> list[int]:
    """The files that compaction should take next of its own accord; empty where all is well.

    Args:
        engine: whose files.
        damaged: files to leave alone.
    """
    with engine.index.reading() as txn:
        rows = _sealed(txn, damaged)
    total = sum(row.entry_bytes for row in rows.values())
    dead = sum(row.dead_bytes for row in rows.values())
    limit = engine.segment_limit
    worth = [s for s, row in rows.items() if row.dead_bytes >= min(WORTH_BYTES, row.entry_bytes)]
    worst = sorted(worth, key=lambda segment: _share(rows[segment]), reverse=True)
    if worst and (_share(rows[worst[0]]) >= FILE_GARBAGE_SHARE or dead >= GARBAGE_SHARE * total):
        return fitting(rows, [s for s in worst if _share(rows[s]) >= GARBAGE_SHARE / 2], limit)
    small = [s for s, row in rows.items() if row.end - row.start < limit * JOINED_SHARE]
    if len(small) >= JOINED_FILES:
        return fitting(rows, small, limit)
    return []


def _sealed(txn: Txn, damaged: Collection[int | None] = ()) -> dict[int, SegmentRow]:
    """The rows of the files that may be chosen."""
    meta, rows = files_now(txn)
    return {s: row for s, row in rows.items() if s != meta.segment and s not in damaged}


def _share(row: SegmentRow) -> float:
    """Which part of a file is garbage; all of one that holds nothing but framing."""
    return row.dead_bytes / row.entry_bytes if row.entry_bytes else 1.0


def fitting(rows: Mapping[int, SegmentRow], candidates: Sequence[int], limit: int) -> list[int]:
    """As many of the candidates, from the first, as are live in one segment's size.

    Args:
        rows: of the candidates at least.
        candidates: ids of files.
        limit: bytes of a segment.
    """
    chosen: list[int] = []
    live = 0
    for segment in candidates[:SOURCES_MAX]:
        live += live_bytes(rows[segment])
        if chosen and live > limit:
            break
        chosen.append(segment)
    return chosen


def grouped(
    rows: Mapping[int, SegmentRow], candidates: Sequence[int], limit: int
) -> Iterator[list[int]]:
    """All candidates in their order, as many at a time as ``fitting`` says; the same arguments."""
    while candidates:
        group = fitting(rows, candidates, limit)
        yield group
        candidates = candidates[len(group) :]


def wholly_dead(engine: Engine) -> list[int]:
    """Sealed files that hold nothing live: they go without a copy, on a full disk too."""
    with engine.index.reading() as txn:
        rows = _sealed(txn)
    return [segment for segment, row in rows.items() if row.dead_bytes == row.entry_bytes]


def everything(engine: Engine, damaged: Collection[int | None] = ()) -> list[list[int]]:
    """Every sealed file that holds garbage or deletions, in groups that each make one copy.

    Those judged first come first, since deletions in the others may be there for their sake.

    Args:
        engine: whose files.
        damaged: files to leave alone.
    """
    with engine.index.reading() as txn:
        rows = _sealed(txn, damaged)
        deletions = {
            PLACE.unpack_from(row)[0]
            for row in txn.cursor(engine.index.tombstones).iternext(keys=False, values=True)
        }
    left = [
        segment
        for segment, row in rows.items()
        if row.dead_bytes or not row.entry_bytes or segment in deletions
    ]
    left.sort(key=lambda segment: rows[segment].after_seq)
    return list(grouped(rows, left, engine.segment_limit))
