"""What a store holds and what it costs, from one read of the index.

All of it is there to be read but the figures of the contents, over which it walks: half a second
of computing for a million of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kvsage.engine.checkpoint import read_trailer
from kvsage.engine.metrics import percentile
from kvsage.engine.rotation import files_now, live_bytes, log_bytes
from kvsage.engine.snapshot import View
from kvsage.errors import CorruptionError
from kvsage.index.contents import CONTENT_ROW
from kvsage.index.keydir import StructError, damaged
from kvsage.index.segments import (
    JOINING,
    SegmentRow,
    all_retired,
    all_segments,
)
from kvsage.log.format import FileKind, is_node
from kvsage.types import ProcessStats, ReaderStats, SegmentStats, StoreStats

if TYPE_CHECKING:
    from kvsage.engine.engine import Engine
    from kvsage.index.env import Txn


def collect(engine: Engine) -> StoreStats:
    """The figures, as of now."""
    index = engine.index
    with index.reading() as txn:
        meta, counted = files_now(txn)
        keys, tombstones = (int(txn.stat(db)["entries"]) for db in (index.keydir, index.tombstones))
        expired = View(engine, txn, engine.clock() * 1000).expired_count()
        contents = _contents(engine, txn)
        segments = tuple(
            _segment(s, row, is_active=s == meta.segment)
            for s, row in (dict(all_segments(txn)) | counted).items()
        )
        files_waiting = len(all_retired(txn))
    checkpoint_seq, checkpoint_bytes = _checkpoint(engine)
    return StoreStats(
        keys=keys,
        expired=expired,
        tombstones=tombstones,
        contents=contents.number,
        content_nodes=contents.nodes,
        content_references=contents.references,
        content_bytes=contents.raw_bytes,
        content_stored_bytes=contents.stored_bytes,
        logical_bytes=contents.logical_bytes,
        log_bytes=sum(segment.bytes for segment in segments),
        live_bytes=sum(segment.live_bytes for segment in segments),
        dead_bytes=sum(segment.dead_bytes for segment in segments),
        disk_bytes=disk_bytes(engine.path),
        index_bytes=disk_bytes(engine.index_path),
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_seq=checkpoint_seq,
        commits=meta.seq,
        files_waiting=files_waiting,
        segments=segments,
        readers=_readers(engine),
        process=_process(engine),
    )


class _Contents(NamedTuple):
    number: int
    nodes: int
    references: int
    raw_bytes: int
    stored_bytes: int
    logical_bytes: int


def _contents(engine: Engine, txn: Txn) -> _Contents:
    """Sums over the contents."""
    number = nodes = references = raw_bytes = stored_bytes = logical_bytes = 0
    unpack = CONTENT_ROW.unpack_from  # without a ContentRow for each: in a third of the time
    try:
        for key, data in txn.cursor(engine.index.contents):
            _, _, _, _, raw_length, held, _, share = unpack(data)
            references += held
            stored_bytes += share
            logical_bytes += raw_length * held
            if is_node(key):
                nodes += 1
                logical_bytes -= raw_length  # which its children stand for, and it refers to them
            else:
                number += 1
                raw_bytes += raw_length
    except StructError as error:
        raise damaged(error) from error
    return _Contents(number, nodes, references, raw_bytes, stored_bytes, logical_bytes)


def _segment(segment: int, row: SegmentRow, *, is_active: bool) -> SegmentStats:
    return SegmentStats(
        segment,
        log_bytes((row,)),
        live_bytes(row),
        row.dead_bytes,
        "active"
        if is_active
        else "joining"
        if row.state == JOINING
        else "copy"
        if row.kind == FileKind.COPY
        else "sealed",
    )


def _readers(engine: Engine) -> tuple[ReaderStats, ...]:
    newest = engine.index.last_transaction()
    return tuple(
        ReaderStats(pid, number, None if number is None else max(0, newest - number))
        for pid, number in engine.index.readers()
    )


def _checkpoint(engine: Engine) -> tuple[int | None, int]:
    """Up to which commit the checkpoint stands, and its bytes."""
    try:
        said = read_trailer(engine.disk, engine.checkpoint_path)
    except CorruptionError:  # verify says so
        said = None
    try:
        size = engine.checkpoint_path.stat().st_size
    except FileNotFoundError:
        size = 0
    return None if said is None else said.seq, size


def _process(engine: Engine) -> ProcessStats:
    metrics, error = engine.metrics, engine.upkeep.last_error
    times_ms = [seconds * 1000 for seconds in metrics.flush_times_s()]
    return ProcessStats(
        batches=metrics.batches,
        operations=metrics.operations,
        flushes=metrics.flushes,
        flush_ms_p50=percentile(times_ms, 0.5),
        flush_ms_p99=percentile(times_ms, 0.99),
        flush_ms_max=percentile(times_ms, 1),
        swept=metrics.swept,
        evicted=metrics.evicted,
        compactions=metrics.compactions,
        compaction_bytes_copied=metrics.copied_bytes,
        compaction_bytes_reclaimed=metrics.reclaimed_bytes,
        compaction_s=metrics.compaction_s,
        checkpoints=metrics.checkpoints,
        upkeep_error=None if error is None else str(error),
    )


def disk_bytes(path: Path) -> int:
    """Bytes that a tree takes on disk, holes left out. Looks at names only, opens nothing."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(Path(directory, name)).st_blocks * 512
            except FileNotFoundError:
                continue  # a file that was replaced meanwhile
    return total
