"""Rotation: sealing the active segment and beginning the next, and what a dead writer left.

Both happen inside a commit, behind the writer gate and in the commit's own index transaction. A
writer may die, or its transaction may fail, at any point in between; the next writer finds by
``adopt`` what is in the log already, a batch or a whole new segment, and goes on from there.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from kvsage.engine.content import hold, release
from kvsage.errors import CorruptionError
from kvsage.index.contents import ContentRow, encode_content_row
from kvsage.index.keydir import set_deleted, set_live
from kvsage.index.segments import (
    Meta,
    SegmentRow,
    add_dead,
    all_segments,
    get_segment,
    put_segment,
)
from kvsage.log.format import (
    BATCH_BYTES,
    CONTENT,
    CONTENT_HEAD,
    CONTENT_KEY,
    DELETE,
    IS_CONTENT,
    PUT,
    FileKind,
    ListedFile,
    SegmentHeader,
    decode_entry,
    possible,
    split_entries,
)
from kvsage.log.reader import Batch, SegmentReader
from kvsage.log.segment import inspect, list_files
from kvsage.log.writer import create_file

if TYPE_CHECKING:
    from kvsage.engine.engine import Engine
    from kvsage.index.env import Txn


def adopt(engine: Engine, txn: Txn, meta: Meta) -> Meta:
    """Apply what the log holds past the index's end; its writer died before it could.

    Behind the writer gate, in the caller's transaction.
    """
    while True:
        fd = engine.files.fd(meta.segment)
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
    put_segment(txn, meta.segment, sealed._replace(end=meta.offset))
    row = SegmentRow(start, start, header.after_seq, 0, FileKind.SEGMENT)
    put_segment(txn, header.segment, row)
    return meta._replace(
        segment=header.segment,
        offset=start,
        last=0,
        chain=chain,
        flushed_seq=meta.seq,
        timeline=header.timeline,
    )


def begin_segment(engine: Engine, txn: Txn, meta: Meta) -> Meta:
    """Seal the active segment and begin the next one.

    Order: the old one is cut at its end and flushed, so that the new header proves every commit
    before it to be durable; then the new one appears, whole, with its name. If the caller's
    transaction does not commit, the next writer finds the new segment by ``adopt``.
    """
    disk = engine.disk
    fd = engine.files.fd(meta.segment)
    disk.truncate(fd, meta.offset)
    engine.flush_log(fd, whole=True)
    files = [ListedFile(segment, row.end) for segment, row in all_segments(txn)]
    files = [file for file in files if file.segment != meta.segment]
    files.append(ListedFile(meta.segment, meta.offset))
    header = new_header(engine, meta, tuple(sorted(files)))
    _, chain, start = create_file(disk, engine.log_path, header)
    return _enter_segment(txn, meta, header, (chain, start))


def new_header(engine: Engine, meta: Meta, files: tuple[ListedFile, ...]) -> SegmentHeader:
    """The header of the next segment behind ``meta``, in the engine's newest timeline."""
    taken = list_files(engine.disk, engine.log_path)
    return SegmentHeader(
        FileKind.SEGMENT,
        engine.identity.uuid,
        max(taken, default=0) + 1,
        secrets.randbits(64),
        engine.timelines[-1].timeline,
        meta.seq,
        meta.chain,
        0,
        max(0, int(engine.clock() * 1000)),
        files,
        engine.timelines,
    )


def _apply(engine: Engine, txn: Txn, segment: int, batch: Batch) -> None:
    """Rows for the entries of a batch that is newer than everything in the index."""
    index = engine.index
    dead: dict[int, int] = {}
    for offset, framed in split_entries(batch.body, batch.header.entries):
        entry = decode_entry(framed)
        at = batch.offset + BATCH_BYTES + offset
        if entry is None or not possible(entry):
            raise CorruptionError("an entry does not check", segment=segment, offset=at)
        row = (segment, at, len(framed), entry.seq, entry.expires_ms, entry.flags)
        if entry.kind == CONTENT:
            (raw_length,) = CONTENT_HEAD.unpack_from(entry.value)
            content = ContentRow(segment, at, len(framed), entry.seq, raw_length, 0)
            txn.put(entry.key, encode_content_row(content), db=index.contents)
            continue
        if entry.kind not in {PUT, DELETE}:
            continue
        holds = entry.kind == PUT and entry.flags & IS_CONTENT
        if holds and not hold(index, txn, entry.value[: CONTENT_KEY.size]):
            raise CorruptionError("a content is missing", segment=segment, offset=at)
        set_row = set_live if entry.kind == PUT else set_deleted
        old = set_row(index, txn, entry.key, row, dead)
        if old is not None and old[5] & IS_CONTENT:
            release(engine, txn, entry.key, old, dead)
    add_dead(txn, dead)
