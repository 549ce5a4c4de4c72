"""What a store holds and what it costs, from one read of the index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kvsage.index.contents import decode_content_row
from kvsage.index.segments import all_segments, get_meta
from kvsage.log.format import FileKind
from kvsage.types import ReaderStats, SegmentStats, StoreStats

if TYPE_CHECKING:
    from kvsage.engine.engine import Engine


def collect(engine: Engine) -> StoreStats:
    """The figures, as of now."""
    index = engine.index
    contents = references = content_bytes = stored_bytes = logical_bytes = 0
    with index.reading() as txn:
        meta = get_meta(txn)
        assert meta is not None
        keys = int(txn.stat(index.keydir)["entries"])
        for _, data in txn.cursor(index.contents):
            row = decode_content_row(data)
            contents += 1
            references += row.references
            content_bytes += row.raw_length
            stored_bytes += row.length
            logical_bytes += row.raw_length * row.references
        segments = tuple(
            SegmentStats(
                segment,
                (meta.offset if segment == meta.segment else row.end) - row.start,
                row.dead_bytes,
                "copy"
                if row.kind == FileKind.COPY
                else "active"
                if segment == meta.segment
                else "sealed",
            )
            for segment, row in all_segments(txn)
        )
    log_bytes = sum(segment.bytes for segment in segments)
    dead_bytes = sum(segment.dead_bytes for segment in segments)
    return StoreStats(
        keys=keys,
        contents=contents,
        content_references=references,
        content_bytes=content_bytes,
        content_stored_bytes=stored_bytes,
        logical_bytes=logical_bytes,
        log_bytes=log_bytes,
        live_bytes=log_bytes - dead_bytes,
        dead_bytes=dead_bytes,
        disk_bytes=disk_bytes(engine.path),
        index_bytes=disk_bytes(engine.index_path),
        commits=meta.seq,
        segments=segments,
        readers=tuple(ReaderStats(pid, transaction) for pid, transaction in index.readers()),
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
