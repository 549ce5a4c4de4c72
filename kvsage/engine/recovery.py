"""Opening: may the index be trusted, and what to do when it may not; and the clean close.

An opener holds ``OPEN``. It trusts the index, or it becomes the only process that has the store
open and builds the index anew (``rebuild.py``). Nothing here waits for a user: a torn tail is cut,
and damage is raised and left as it is.

``LOCK`` is only ever locked by the holder of ``OPEN``: shared by every open process, exclusive by
one that rebuilds, repairs or closes clean. So letting it go and taking it anew is safe.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import TYPE_CHECKING

from kvsage.errors import CorruptionError, KvsageError, PoisonedError, StoreLockedError
from kvsage.engine.content import hold, release
from kvsage.fs.locks import try_lock, unlock, wait_for_lock
from kvsage.index.env import Index, LmdbError, Txn
from kvsage.index.contents import ContentRow, encode_content_row
from kvsage.index.keydir import set_deleted, set_live
from kvsage.index.segments import (
    Meta,
    SegmentRow,
    add_dead,
    all_segments,
    get_meta,
    get_segment,
    put_meta,
    put_segment,
)
from kvsage.index.trust import Trust, boot_id, encode_trust, read_trust
from kvsage.log.format import (
    BATCH_BYTES,
    CHECKSUM_BYTES,
    CONTENT,
    CONTENT_HEAD,
    CONTENT_KEY,
    DELETE,
    END_BYTES,
    IS_CONTENT,
    PUT,
    EndMark,
    FileKind,
    ListedFile,
    SegmentHeader,
    Timeline,
    decode_end,
    decode_entry,
    encode_batch,
    encode_end,
    encode_header,
    place,
    split_entries,
)
from kvsage.log.reader import Batch, SegmentReader
from kvsage.log.segment import inspect, list_files, read_header
from kvsage.log.writer import create_file, make_room

if TYPE_CHECKING:
    from kvsage.engine.engine import Engine


# -- the trust decision -------------------------------------------------------------------------


def open_index(engine: Engine, *, fresh: bool) -> None:
    """Open the index, built anew if need be; the caller holds ``OPEN``.

    Args:
        engine: whose index.
        fresh: the store was created a moment ago, so nobody has seen any of its seqs.

    Raises:
        CorruptionError: the index cannot be trusted and the log is damaged.
        StoreLockedError: the index must be rebuilt and other processes have the store open.
    """
    trust = read_trust(engine.disk, engine.trust_path)
    if _looks_trusted(engine, trust):
        _join(engine)
        index = Index(engine.index_path, engine.options.index_map_bytes)
        meta = _agreeing(engine, index, trust)
        if meta is not None and not meta.poisoned:
            engine.index = index
            engine.used = trust is not None and not trust.clean
            return
        index.close()
        _stay_alone(engine, meta)
        if meta is not None:
            write_anew(engine, meta)
    else:
        _stay_alone(engine, None)
    from kvsage.engine.rebuild import rebuild  # noqa: PLC0415  # only when there is need

    rebuild(engine, trust, fresh=fresh)
    unlock(engine.lock.fd)
    _join(engine)
    engine.index = Index(engine.index_path, engine.options.index_map_bytes)
    engine.used = True


def _join(engine: Engine) -> None:
    """Be one of the processes that have the store open."""
    if not try_lock(engine.lock.fd, shared=True):
        raise StoreLockedError("another process is repairing the store")


def _stay_alone(engine: Engine, meta: Meta | None) -> None:
    """Be the only process that has the store open."""
    unlock(engine.lock.fd)
    deadline = time.monotonic() + engine.options.lock_timeout
    try:
        wait_for_lock(
            engine.lock.fd,
            deadline,
            "the index must be built anew, and other processes still have the store open",
        )
    except StoreLockedError as error:
        if meta is not None and meta.poisoned:
            raise PoisonedError(
                "a flush to disk failed, and other processes still have the store open: "
                "close it in all of them first"
            ) from error
        raise


def _looks_trusted(engine: Engine, trust: Trust | None) -> bool:
    """Whether INDEX vouches for the very file that is there."""
    if trust is None or trust.uuid != engine.identity.uuid:
        return False
    try:
        status = os.stat(engine.index_path / "data.mdb")
    except OSError:
        return False
    if (status.st_dev, status.st_ino) != (trust.device, trust.inode):
        return False
    if trust.clean:
        return status.st_size == trust.size
    return bool(trust.boot) and trust.boot == boot_id()


def _agreeing(engine: Engine, index: Index, trust: Trust | None) -> Meta | None:
    """Where the index says that the log ends, if the log agrees."""
    try:
        with index.reading() as txn:
            meta = get_meta(txn)
        if meta is None or trust is None or meta.epoch != trust.epoch:
            return None
        fd = engine.files.fd(meta.segment)
        header = read_header(engine.disk, fd, engine.identity.uuid)
    except (KvsageError, FileNotFoundError, LmdbError):
        return None
    if header is None or header[0].segment != meta.segment:
        return None
    engine.timelines = header[0].timelines
    if trust.clean:
        if (meta.segment, meta.offset, meta.seq, meta.chain) != trust[7:]:
            return None
        mark = engine.disk.read(fd, END_BYTES, meta.offset)
        end = decode_end(mark, engine.salt, meta.segment, meta.offset)
        return meta if end == EndMark(meta.offset, meta.seq, meta.chain) else None
    if not meta.last:
        return meta if (meta.offset, meta.chain) == (header[2], header[1]) else None
    # A damaged last batch is no reason to distrust the index: reads report it, and only it.
    reader = SegmentReader(engine.disk, fd, meta.segment, engine.salt)
    batch = reader.header_at(meta.last)
    agrees = batch is not None and (batch.checksum, batch.seq) == (meta.chain, meta.seq)
    return meta if agrees else None


def mark_used(engine: Engine) -> None:
    """Let INDEX say "not clean", durably, before the first change to a cleanly closed index.

    Behind the writer gate. No other process can close clean while this one has the store open, so
    once is enough.
    """
    trust = read_trust(engine.disk, engine.trust_path)
    if trust is None or trust.clean:
        with engine.index.reading() as txn:
            meta = get_meta(txn)
        assert meta is not None
        write_trust(engine, meta, clean=False)
    engine.used = True


def write_trust(engine: Engine, meta: Meta, *, clean: bool) -> None:
    """Replace INDEX."""
    status = os.stat(engine.index_path / "data.mdb")
    end = (meta.segment, meta.offset, meta.seq, meta.chain) if clean else (0, 0, 0, 0)
    trust = Trust(
        clean,
        engine.identity.uuid,
        boot_id(),
        status.st_dev,
        status.st_ino,
        status.st_size if clean else 0,
        meta.epoch,
        *end,
    )
    engine.disk.replace(engine.trust_path, encode_trust(trust))


def close_clean(engine: Engine) -> None:
    """Leave a store that the next opener can trust at once, if nobody else has it open.

    The caller holds ``OPEN`` and has flushed the log. Nothing is owed here: on any doubt the index
    stays "not clean", which costs a rebuild after a power cut and nothing else.
    """
    unlock(engine.lock.fd)
    if not engine.used or engine.poisoned or not try_lock(engine.lock.fd):
        return
    index, disk = engine.index, engine.disk
    with index.writing() as txn:
        meta = get_meta(txn)
        assert meta is not None
        if meta.poisoned:
            return
        meta = adopt(engine, txn, meta)
        fd = engine.files.fd(meta.segment)
        make_room(disk, fd, meta.offset + END_BYTES, engine.options.segment_bytes_max)
        mark = EndMark(meta.offset, meta.seq, meta.chain)
        disk.write(fd, (encode_end(engine.salt, meta.segment, mark),), meta.offset)
        disk.truncate(fd, meta.offset + END_BYTES)
        disk.sync(fd)
        meta = meta._replace(flushed_seq=meta.seq)
        put_meta(txn, meta)
    index.sync()
    disk.sync_directory(engine.index_path)
    write_trust(engine, meta, clean=True)


# -- inside a commit: what a dead writer left, and the next segment -----------------------------


def adopt(engine: Engine, txn: Txn, meta: Meta) -> Meta:
    """Apply what the log holds past the index's end; its writer died before it could.

    Behind the writer gate, in the caller's transaction.
    """
    while True:
        fd = engine.files.fd(meta.segment)
        reader = SegmentReader(engine.disk, fd, meta.segment, engine.salt)
        for batch in reader.batches(meta.offset, meta.chain, meta.seq):
            engine.disk.sync_data(fd)  # durable before visible
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
    disk.sync(fd)
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
        int(engine.clock() * 1000),
        files,
        engine.timelines,
    )


def _apply(engine: Engine, txn: Txn, segment: int, batch: Batch) -> None:
    """Rows for the entries of a batch that is newer than everything in the index."""
    index, dead = engine.index, {}
    for offset, framed in split_entries(batch.body, batch.header.count):
        entry = decode_entry(framed)
        if entry is None:
            raise CorruptionError("an entry does not check", segment=segment, offset=batch.offset)
        at = batch.offset + BATCH_BYTES + offset
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


# -- after a failed flush -----------------------------------------------------------------------


def write_anew(engine: Engine, meta: Meta) -> None:
    """Write every commit after the last one known to be on disk into a segment of its own.

    What a failed flush left in memory can still be read; whether the disk has it nobody knows. The
    new segment's header lists the old one only up to where it is surely on disk.
    """
    disk = engine.disk
    fd = engine.files.fd(meta.segment)
    found = read_header(disk, fd, engine.identity.uuid)
    assert found is not None, "the index agreed with it a moment ago"
    old, old_chain, cut = found
    reader = SegmentReader(disk, fd, meta.segment, engine.salt)
    behind: list[Batch] = []
    seq, chain = old.after_seq, old_chain
    for batch in reader.batches(cut, old_chain, old.after_seq):
        if batch.header.seq <= meta.flushed_seq:
            cut, seq, chain = batch.end, batch.header.seq, batch.header.checksum
        else:
            behind.append(batch)
    if not behind and cut == meta.offset:
        # The flush that failed was of a commit that was made void: all there is, is on disk.
        return
    engine.timelines = old.timelines
    files = (*old.files, ListedFile(meta.segment, cut))
    header = new_header(engine, meta._replace(seq=seq, chain=chain), files)
    encoded = encode_header(header)
    start, chain = len(encoded), int.from_bytes(encoded[-CHECKSUM_BYTES:], "little")
    pieces: list[bytes] = []
    for batch in behind:
        moved = batch.header._replace(flushed_seq=seq, chain=chain)
        chain, head, rest = encode_batch(
            moved, batch.body, place(engine.salt, header.segment, start)
        )
        pieces += (head, rest)
        start += len(head) + len(rest)
    create_file(disk, engine.log_path, header, b"".join(pieces))
