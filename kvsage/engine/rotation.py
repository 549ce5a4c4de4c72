"""Rotation: sealing the active segment and beginning the next, and what a dead writer left.

Both happen inside a commit, behind the writer gate and in the commit's own index transaction. A
writer may die, or its transaction may fail, at any point in between; the next writer finds by
``adopt`` what is in the log already, a batch or a whole new segment, and goes on from there.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from kvsage.engine.references import References, content_rows
from kvsage.errors import CorruptionError
from kvsage.index.contents import encode_content_row
from kvsage.index.keydir import ROW, content_keys_in, set_deleted, set_live
from kvsage.index.segments import (
    LISTED,
    Meta,
    SegmentRow,
    add_dead,
    get_floor,
    get_segment,
    listed_segments,
    put_floor,
    put_retired,
    put_segment,
    the_meta,
)
from kvsage.log.format import (
    BATCH_BYTES,
    DELETE,
    PUT,
    RETIRE,
    FileKind,
    ListedFile,
    LogEntry,
    SegmentHeader,
    decode_entry,
    decode_retire,
    possible,
    references_in,
    split_entries,
)
from kvsage.log.reader import Batch, SegmentReader
from kvsage.log.segment import inspect, list_files, next_segment
from kvsage.log.writer import create_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvsage.engine.engine import Engine
    from kvsage.index.env import Index, Txn


def adopt(engine: Engine, txn: Txn, meta: Meta) -> Meta:
    """Apply what the log holds past the index's end; its writer died before it could.

    Behind the writer gate, in the caller's transaction.
    """
    while True:
        fd = engine.log_fd(meta.segment)
        reader = SegmentReader(engine.disk, fd, meta.segment, engine.salt)
        for batch in reader.batches(meta.offset, meta.chain, meta.seq):
            engine.flush_log(fd)  # durable before visible
            _apply(engine, txn, meta.segment, batch)
            meta = meta._replace(
                offset=batch.end,
                last=batch.offset,
                chain=batch.header.checksum,
                seq=batch.header.seq,
                flushed_seq=batch.header.seq,
            )
        if reader.size > meta.offset:
            return meta
        sealed = _sealed_behind(engine, txn, meta)
        if sealed is None:
            return meta
        meta = sealed


def _sealed_behind(engine: Engine, txn: Txn, meta: Meta) -> Meta | None:
    """The segment that a writer began behind this one before it died or gave up, if any."""
    for segment, path in list_files(engine.disk, engine.log_path).items():
        if segment <= meta.segment or path.suffix != ".seg":
            continue
        file = inspect(engine.disk, segment, path, engine.identity.uuid)
        header = file.header
        if header is None or (header.after_seq, header.chain) != (meta.seq, meta.chain):
            continue
        if header.timeline == meta.timeline:
            # Whoever made it may have died before its name was on disk.
            engine.disk.sync_directory(engine.log_path)
            return _enter_segment(txn, meta, header, (file.chain, file.start))
    return None


def _enter_segment(txn: Txn, meta: Meta, header: SegmentHeader, place_: tuple[int, int]) -> Meta:
    """Rows for a segment sealed at the index's end and for the one behind it."""
    chain, start = place_
    sealed = get_segment(txn, meta.segment)
    assert sealed is not None
    put_segment(txn, meta.segment, filled(sealed, meta))
    row = empty_row(start, header.after_seq)._replace(born=txn.id())
    put_segment(txn, header.segment, row)
    return meta._replace(
        segment=header.segment,
        offset=start,
        last=0,
        chain=chain,
        flushed_seq=meta.seq,
        timeline=header.timeline,
    )


def empty_row(start: int, after_seq: int) -> SegmentRow:
    """The row of a segment that holds nothing yet."""
    return SegmentRow(start, start, after_seq, after_seq, 0, 0, FileKind.SEGMENT, LISTED)


def filled(row: SegmentRow, meta: Meta) -> SegmentRow:
    """The row of the active segment, as filled as it is; it holds one batch for each commit."""
    batches = meta.seq - row.after_seq
    entry_bytes = meta.offset - row.start - batches * BATCH_BYTES
    return row._replace(end=meta.offset, last_seq=meta.seq, entry_bytes=entry_bytes)


def files_now(txn: Txn) -> tuple[Meta, dict[int, SegmentRow]]:
    """The rows of the files that count, in the order of their ids, the active one's as filled."""
    meta = the_meta(txn)
    rows = {
        segment: filled(row, meta) if segment == meta.segment else row
        for segment, row in listed_segments(txn)
    }
    return meta, rows


def log_bytes(rows: Iterable[SegmentRow]) -> int:
    """What all commits in some files take, without the files' headers."""
    return sum(row.end - row.start for row in rows)


def live_bytes(row: SegmentRow) -> int:
    """What the index leads to in a file."""
    return row.entry_bytes - row.dead_bytes


def retire(txn: Txn, value: bytes) -> None:
    """Let files count no more and the copy in their place count, as a RETIRE entry says."""
    said = decode_retire(value)
    assert said is not None
    if said.copy:
        row = get_segment(txn, said.copy)
        assert row is not None
        put_segment(txn, said.copy, row._replace(state=LISTED))
    for segment in said.files:
        put_retired(txn, segment)
    put_floor(txn, said.floor_seq)


def begin_segment(engine: Engine, txn: Txn, meta: Meta) -> Meta:
    """Seal the active segment and begin the next one.

    Order: the old one is cut at its end and flushed, so that the new header proves every commit
    before it to be durable; then the new one appears, whole, with its name. If the caller's
    transaction does not commit, the next writer finds the new segment by ``adopt``.
    """
    disk = engine.disk
    fd = engine.log_fd(meta.segment)
    disk.truncate(fd, meta.offset)
    engine.flush_log(fd, whole=True)
    files = [
        ListedFile(segment, meta.offset if segment == meta.segment else row.end)
        for segment, row in listed_segments(txn)
    ]
    header = new_header(engine, meta, tuple(files), get_floor(txn))
    _, chain, start = create_file(disk, engine.log_path, header)
    return _enter_segment(txn, meta, header, (chain, start))


def new_header(
    engine: Engine, meta: Meta, files: tuple[ListedFile, ...], floor_seq: int
) -> SegmentHeader:
    """The header of the next segment behind ``meta``, in the engine's newest timeline."""
    return SegmentHeader(
        FileKind.SEGMENT,
        engine.identity.uuid,
        next_segment(engine.disk, engine.log_path),
        secrets.randbits(64),
        engine.timelines[-1].timeline,
        meta.seq,
        meta.chain,
        floor_seq,
        max(0, int(engine.clock() * 1000)),
        files,
        engine.timelines,
    )


def _apply(engine: Engine, txn: Txn, segment: int, batch: Batch) -> None:
    """Rows for the entries of a batch that is newer than everything in the index."""
    dead: dict[int, int] = {}
    for offset, framed in split_entries(batch.body, batch.header.entries):
        entry = decode_entry(framed)
        at = batch.offset + BATCH_BYTES + offset
        if entry is None or not possible(entry):
            raise CorruptionError("an entry does not check", segment=segment, offset=at)
        place = (segment, at, len(framed))
        if entry.kind == RETIRE:
            retire(txn, entry.value)
            dead[segment] = dead.get(segment, 0) + len(framed)
        elif entry.kind in {PUT, DELETE}:
            _apply_key(engine.index, txn, entry, place, dead)
        else:
            _apply_contents(engine.index, txn, entry, place, dead)
    add_dead(txn, dead)


def _apply_contents(
    index: Index, txn: Txn, entry: LogEntry, place: tuple[int, int, int], dead: dict[int, int]
) -> None:
    """Rows for contents, to which entries behind them will refer."""
    for key, row in content_rows(entry, place):
        if txn.get(key, None, index.contents) is not None:
            raise CorruptionError("a content is there twice", segment=place[0], offset=place[1])
        if row.children:
            references = References(index, txn)
            references.hold(row.children)
            references.settle(dead)
        txn.put(key, encode_content_row(row), db=index.contents)


def _apply_key(
    index: Index, txn: Txn, entry: LogEntry, place: tuple[int, int, int], dead: dict[int, int]
) -> None:
    """The row of a PUT or DELETE at ``place``: file id, offset, length."""
    row = ROW.pack(*place, entry.seq, entry.expires_ms, entry.flags)
    refers = references_in(entry)
    set_row = set_live if entry.kind == PUT else set_deleted
    before = set_row(index, txn, entry.key, row + refers, dead)
    references = References(index, txn)
    references.hold(refers)
    references.release(b"" if before is None else content_keys_in(before))
    references.settle(dead)
