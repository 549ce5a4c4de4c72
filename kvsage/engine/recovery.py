"""Opening: may the index be trusted, and what to do when it may not; and the clean close.

An opener holds ``OPEN``. It trusts the index, or it becomes the only process that has the store
open and builds the index anew (``rebuild.py``). Nothing here waits for a user: a torn tail is cut,
and damage is raised and left as it is.

``LOCK`` is only ever locked by the holder of ``OPEN``: shared by every open process, exclusive by
one that rebuilds, repairs or closes clean. So letting it go and taking it anew is safe.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kvsage.engine.rebuild import listed_after, rebuild
from kvsage.engine.rotation import adopt, new_header
from kvsage.engine.trust import looks_trusted, write_trust
from kvsage.errors import CorruptionError, KvsageError, PoisonedError, StoreLockedError
from kvsage.fs.locks import try_lock, unlock, wait_for_lock
from kvsage.index.env import Index, LmdbError
from kvsage.index.segments import (
    Meta,
    get_meta,
    put_meta,
    the_meta,
)
from kvsage.index.trust import Trust, read_trust
from kvsage.log.format import (
    CHECKSUM_BYTES,
    END_BYTES,
    EndMark,
    ListedFile,
    Retire,
    decode_end,
    encode_batch,
    encode_end,
    encode_header,
    place,
)
from kvsage.log.reader import Batch, SegmentReader, retires_in
from kvsage.log.segment import read_header
from kvsage.log.writer import create_file, make_room

if TYPE_CHECKING:
    from kvsage.engine.engine import Engine
    from kvsage.log.format import SegmentHeader


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
    judged, trust, meta = None, read_trust(engine.disk, engine.trust_path), None
    # Another process's first write makes a clean INDEX say "not clean" and moves the log's end:
    # what was judged in between is judged again. That happens once, since nobody can close clean.
    while trust != judged:
        judged, meta = trust, None
        if looks_trusted(engine.path, trust, engine.identity.uuid):
            _join(engine)
            index, meta = _open_trusted(engine, trust)
            if index is not None and meta is not None and not meta.poisoned:
                engine.index = index
                engine.used = trust is not None and not trust.clean
                return
            if index is not None:
                index.close()
        trust = read_trust(engine.disk, engine.trust_path)
    _stay_alone(engine, meta)
    if meta is not None:
        write_anew(engine, meta)
    rebuild(engine, trust, fresh=fresh)
    unlock(engine.lock.fd)
    _join(engine)
    engine.index = Index(engine.index_path, engine.options.index_map_bytes)
    engine.used = True


def _open_trusted(engine: Engine, trust: Trust | None) -> tuple[Index | None, Meta | None]:
    """The index that INDEX vouches for, and where the log ends if the two agree."""
    try:
        index = Index(engine.index_path, engine.options.index_map_bytes)
    except CorruptionError:
        return None, None  # overwritten in place
    return index, _agreeing(engine, index, trust)


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


def _agreeing(engine: Engine, index: Index, trust: Trust | None) -> Meta | None:
    """Where the index says that the log ends, if the log agrees."""
    try:
        with index.reading() as txn:
            meta = get_meta(txn)
        if meta is None or trust is None or meta.epoch != trust.epoch:
            return None
        fd = engine.log_fd(meta.segment)
        header = read_header(engine.disk, fd, engine.identity.uuid)
    except (KvsageError, FileNotFoundError, LmdbError):
        return None
    if header is None or header[0].segment != meta.segment:
        return None
    engine.timelines = header[0].timelines
    return meta if _ends_there(engine, fd, meta, trust, header) else None


def _ends_there(
    engine: Engine,
    fd: int,
    meta: Meta,
    trust: Trust,
    found: tuple[SegmentHeader, int, int],
) -> bool:
    """Whether the last thing before the index's end of the log is what the index says."""
    if trust.clean:
        data = engine.disk.read(fd, END_BYTES, meta.offset)
        mark = decode_end(data, engine.salt, meta.segment, meta.offset)
        end = (meta.segment, meta.offset, meta.seq, meta.chain)
        return end == trust[-len(end) :] and mark == EndMark(meta.offset, meta.seq, meta.chain)
    if not meta.last:
        _, chain, start = found
        return (meta.offset, meta.chain) == (start, chain)
    # Its header alone: damage further in is no reason to distrust the index. Reads report that.
    batch = SegmentReader(engine.disk, fd, meta.segment, engine.salt).header_at(meta.last)
    return batch is not None and (batch.checksum, batch.seq) == (meta.chain, meta.seq)


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
        meta = the_meta(txn)
        if meta.poisoned:
            return
        meta = adopt(engine, txn, meta)
        fd = engine.log_fd(meta.segment)
        make_room(disk, fd, meta.offset + END_BYTES, engine.options.segment_bytes_max)
        mark = EndMark(meta.offset, meta.seq, meta.chain)
        disk.write(fd, (encode_end(engine.salt, meta.segment, mark),), meta.offset)
        disk.truncate(fd, meta.offset + END_BYTES)
        engine.flush_log(fd, whole=True)
        meta = meta._replace(flushed_seq=meta.seq)
        put_meta(txn, meta)
    index.sync()
    disk.sync_directory(engine.index_path)
    write_trust(engine, meta, clean=True)


# -- after a failed flush -----------------------------------------------------------------------


def write_anew(engine: Engine, meta: Meta) -> None:
    """Write every commit after the last one known to be on disk into a segment of its own.

    What a failed flush left in memory can still be read; whether the disk has it nobody knows. The
    new segment's header lists the old one only up to where it is surely on disk.
    """
    disk = engine.disk
    fd = engine.log_fd(meta.segment)
    found = read_header(disk, fd, engine.identity.uuid)
    assert found is not None, "the index agreed with it a moment ago"
    old, old_chain, cut = found
    reader = SegmentReader(disk, fd, meta.segment, engine.salt)
    behind: list[Batch] = []
    retires: list[Retire] = []
    seq, chain = old.after_seq, old_chain
    for batch in reader.batches(cut, old_chain, old.after_seq):
        if batch.header.seq <= meta.flushed_seq:
            cut, seq, chain = batch.end, batch.header.seq, batch.header.checksum
            retires += retires_in(batch)
        else:
            behind.append(batch)
    if seq < meta.flushed_seq:
        raise CorruptionError("a batch does not check", segment=meta.segment, offset=cut)
    if not behind and cut == meta.offset:
        # The flush that failed was of a commit that was made void: all there is, is on disk.
        return
    engine.timelines = old.timelines
    ends = {**listed_after(old.files, retires), meta.segment: cut}
    files = tuple(ListedFile(segment, end) for segment, end in sorted(ends.items()))
    floor_seq = max([old.floor_seq, *(retire.floor_seq for retire in retires)])
    header = new_header(engine, meta._replace(seq=seq, chain=chain), files, floor_seq)
    moved = _chained(engine, header, behind, seq)
    create_file(disk, engine.log_path, header, moved)


def _chained(
    engine: Engine, header: SegmentHeader, batches: list[Batch], flushed_seq: int
) -> bytes:
    """The bytes of ``batches`` as they stand behind a header, one chained to the other."""
    encoded = encode_header(header)
    start, chain = len(encoded), int.from_bytes(encoded[-CHECKSUM_BYTES:], "little")
    pieces: list[bytes] = []
    for batch in batches:
        moved = batch.header._replace(flushed_seq=flushed_seq, chain=chain)
        seed = place(engine.salt, header.segment, start)
        chain, head, rest = encode_batch(moved, batch.body, seed)
        pieces += (head, rest)
        start += len(head) + len(rest)
    return b"".join(pieces)
