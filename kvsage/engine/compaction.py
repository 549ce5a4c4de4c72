"""Compaction: what is live in files full of garbage moves into a copy, and the files go.

It runs beside readers and writers, one at a time among all processes, in steps that each hold the
writer gate for a few milliseconds. The order of things, and why:

1. Judge: an entry of a sealed file is live where the index leads to that very place. Deletions are
   kept while an older version of their key may stand anywhere, or somebody waits for them.
2. Write the live entries, each with its own seq, into a copy that is dated at the moment when the
   judging began. Flush it, give it its name, flush the directory.
3. Let the copy join the index, and in short transactions lead each row to it that still leads to
   the very entry that was copied. No header lists it yet: a recovery would read the old files.
4. Commit a RETIRE entry, flushed, and with it all that was committed before. THE COMMIT POINT: from
   here on the copy counts and the old files do not.
5. Forget the deletions that were dropped.
6. Unlink the old files once no reader of any process began while rows could lead to them.

A compactor may die at any step. Before 3 its copy is named by nothing, and the next one removes it;
after 3 the next one goes on where it stopped; a RETIRE that is in the log and not in the index is
applied by the next writer like any other batch.
"""

from __future__ import annotations

import heapq
import secrets
from itertools import chain, islice
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from kvsage.engine.checkpoint import read_trailer
from kvsage.engine.commit import Operation
from kvsage.engine.content import compress, unpack_pack
from kvsage.engine.rebuild import growing
from kvsage.engine.rotation import begin_segment
from kvsage.errors import CorruptionError
from kvsage.index.contents import decode_content_row, encode_content_row
from kvsage.index.env import LmdbError
from kvsage.index.keydir import PLACE, PLACE_AND_SEQ, SYSTEM
from kvsage.index.segments import (
    JOINING,
    SegmentRow,
    all_retired,
    all_segments,
    drop_retired,
    forgotten,
    get_floor,
    get_segment,
    put_deletions_left,
    put_meta,
    put_segment,
    the_meta,
)
from kvsage.log.format import (
    BATCH_BYTES,
    CHECKSUM_BYTES,
    CONTENT,
    DELETE,
    ENTRY,
    ENTRY_BYTES,
    ENTRY_KIND_AT,
    NODE,
    ORIGIN,
    ORIGINS,
    PACK,
    PUT,
    RETIRE,
    BatchHeader,
    FileKind,
    ListedFile,
    LogEntry,
    Retire,
    SegmentHeader,
    decode_pack,
    encode_batch,
    encode_entry,
    encode_header,
    encode_pack,
    encode_retire,
    place,
    split_entries,
)
from kvsage.log.reader import Batch, SegmentReader, origins_in
from kvsage.log.segment import inspect, list_files, next_segment, read_header, segment_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from typing import Any

    from kvsage.engine.engine import Engine
    from kvsage.engine.pace import Pace
    from kvsage.index.env import Index, Txn
    from kvsage.index.segments import Retired

Result = TypeVar("Result")

CHUNK = 128  # entries judged in one read transaction
PACK_CHUNK = 32  # of these is what a pack that is compressed anew counts for
FLUSH_BYTES = 4 << 20
BATCH_BYTES_MAX = 256 << 10  # of a copy: its checksum is computed in one piece, beside readers
RUN_ROWS = 1024  # sorted in one go
STEP_ROWS = 512  # moved behind the writer gate in one go: 2 ms or so

# Behind the key: kind, seq, offset in the copy, length, and of a content in a pack start and share.
MOVED = Struct("<BQIIII")


Live: TypeAlias = tuple[int, int, int, int, bytes, bytes]
"""An entry that moves: seq and which one of its commit it was (no two share both), when that was
(ms), kind, key, framed bytes."""


class Compacted(NamedTuple):
    """What compacting some files came to.

    Attributes:
        files: how many were retired.
        bytes_before: what their batches took.
        bytes_after: what those of the copy take.
        deletions_dropped: how many deletions were not needed any more.
    """

    files: int
    bytes_before: int
    bytes_after: int
    deletions_dropped: int


def compact_files(engine: Engine, sources: Collection[int], pace: Pace) -> Compacted:
    """Move what is live in sealed files into one copy and retire them.

    The caller holds the compaction lock.

    Raises:
        CorruptionError: a file does not check; nothing was changed.
        StoreFullError: no room for the copy; nothing was changed.
    """
    judge = Judge(engine, sources, pace)
    copy = _write_copy(engine, judge, sorted(sources))
    if copy is not None:
        _join(engine, copy)
        _move_rows(engine, copy, pace)
    said = Retire(
        0 if copy is None else copy.segment,
        0 if copy is None else copy.end,
        max(judge.floor_seq, judge.dropped_seq),
        tuple(sorted(sources)),
    )
    _retire(engine, said, judge.dropped_bytes)
    _forget(engine, judge.dropped, said.files, pace)
    before = sum(row.end - row.start for row in judge.rows.values())
    after = 0 if copy is None else copy.end - copy.start
    return Compacted(len(said.files), before, after, len(judge.dropped))


# -- judging ------------------------------------------------------------------------------------


class Judge:
    """Which entries of some files are live, as of now."""

    def __init__(self, engine: Engine, sources: Collection[int], pace: Pace) -> None:
        self._engine = engine
        self._pace = pace
        self.dropped: list[bytes] = []  # keys whose deletions are not copied
        self.dropped_bytes = self.dropped_seq = 0
        with engine.index.reading() as txn:
            meta = the_meta(txn)
            rows = dict(all_segments(txn))
            self.floor_seq = get_floor(txn)
            needed_seq = engine.deletes_needed_after(txn)
        self.seq = meta.seq
        self.rows = {segment: rows.pop(segment) for segment in sources}
        # An older version may stand in a file that was judged, or begun, before the deletion; not
        # in one without a dead entry, since a key that is deleted has no live one.
        judged = [row.after_seq for row in rows.values() if row.dead_bytes]
        try:
            checkpoint = read_trailer(engine.disk, engine.checkpoint_path)
        except CorruptionError:
            judged.append(0)
        else:
            judged += [] if checkpoint is None else [checkpoint.seq]
        # Deletions up to here hide nothing, and nobody waits for them.
        self._idle_seq = min([needed_seq, *judged])

    def live(self, segment: int, *, contents: bool = True) -> Iterator[Live]:  # noqa: C901, PLR0912, PLR0915  # see below
        """The live entries of a file, in their order.

        Args:
            segment: id of the file.
            contents: whether contents are asked for too, and not the entries of keys alone.

        Raises:
            CorruptionError: it does not check.
        """
        row, index = self.rows[segment], self._engine.index
        if row.dead_bytes == row.entry_bytes:
            return
        # Flat, since this loop is what compaction costs: in small steps it took twice as long.
        entry_at, get_place, txn, left = ENTRY.unpack_from, PLACE.pack, index.begin_read(), CHUNK
        live: list[Live] = []
        is_copy = row.kind == FileKind.COPY
        try:
            for batch in self._batches(segment, row):
                body, time_ms, base = batch.body, batch.header.time_ms, batch.offset + BATCH_BYTES
                at, entries = 0, batch.header.entries
                origins = origins_in(body, entries) if is_copy else []
                for number in range(entries):
                    # The batch checks, and so do its entries.
                    _, seq, _, size, key_length, kind, _ = entry_at(body, at)
                    start, here = at + ENTRY_BYTES, at
                    at = start + key_length + size
                    if kind in MOVING and (contents or kind in CHANGES):
                        key = body[start : start + key_length]
                        found = txn.get(key, None, database(index, kind, key))
                        if found is not None and found.startswith(get_place(segment, base + here)):
                            if kind == DELETE and seq <= self._idle_seq:
                                self._drop(key, seq, at - here)
                            else:
                                n, when = origins[number - 1] if origins else (number, time_ms)
                                live.append((seq, n, when, kind, key, body[here:at]))
                    elif kind == PACK and contents:
                        data = body[here:at]
                        found = self._live_of_pack(txn, (segment, base + here), data)
                        if found is not None:
                            n, when = origins[number - 1] if origins else (number, time_ms)
                            live.append((seq, n, when, kind, b"", found))
                            left -= 0 if found is data else PACK_CHUNK
                    left -= 1
                    if left <= 0:
                        txn.abort()
                        yield from live
                        live.clear()
                        self._pace.breathe()
                        txn, left = index.begin_read(), CHUNK
            yield from live
        except LmdbError as error:
            raise index.error(error, "compacting") from error
        finally:
            txn.abort()

    def _live_of_pack(self, txn: Txn, at: tuple[int, int], framed: bytes) -> bytes | None:
        """A PACK with those of its contents that are live; None where none is."""
        said = decode_pack(framed[ENTRY_BYTES:])
        if said is None:
            raise CorruptionError(
                "the contents of a pack do not fill it", segment=at[0], offset=at[1]
            )
        here, db = PLACE.pack(*at), self._engine.index.contents
        live = {
            one.key for one in said.contents if (txn.get(one.key, None, db) or b"").startswith(here)
        }
        if len(live) in {0, len(said.contents)}:
            return framed if live else None
        flags = framed[ENTRY_KIND_AT + 1]
        try:
            kept = [one for one in unpack_pack(flags, framed[ENTRY_BYTES:]) if one[0].key in live]
        except CorruptionError as error:
            raise CorruptionError(str(error), segment=at[0], offset=at[1]) from error
        joined = b"".join([raw for _, raw in kept])
        flags, stored = compress(joined, self._engine.options.compression_level)
        value = encode_pack([(one.key, one.length) for one, _ in kept], stored)
        _, seq, *_ = ENTRY.unpack_from(framed)
        return encode_entry(LogEntry(seq, 0, PACK, flags, b"", value))

    def _drop(self, key: bytes, seq: int, length: int) -> None:
        self.dropped.append(key)
        self.dropped_bytes += length
        self.dropped_seq = max(self.dropped_seq, seq)

    def _batches(self, segment: int, row: SegmentRow) -> Iterator[Batch]:
        """All batches of a file."""
        engine = self._engine
        fd = engine.log_fd(segment)
        header = read_header(engine.disk, fd, engine.identity.uuid)
        if header is None:
            raise CorruptionError("the header does not check", segment=segment, offset=0)
        reader = SegmentReader(engine.disk, fd, segment, engine.salt)
        end = row.start
        after_seq = 0 if row.kind == FileKind.COPY else row.after_seq
        for batch in reader.batches(row.start, header[1], after_seq, row.end):
            end = batch.end
            yield batch
        if end != row.end:
            raise CorruptionError("a batch does not check", segment=segment, offset=end)


CHANGES = frozenset((PUT, DELETE))
MOVING = CHANGES | {CONTENT, NODE}


def database(index: Index, kind: int, key: bytes) -> Any:
    """Where the row of an entry stands."""
    if kind == PUT:
        return index.system if key[0] == SYSTEM else index.keydir
    return index.tombstones if kind == DELETE else index.contents


# -- the copy -----------------------------------------------------------------------------------


class Copy:
    """A copy on its way into the index.

    Attributes:
        segment: its id.
        sources: the files whose live entries it holds.
        start: where its batches begin.
        end: where they end.
        judged_seq: the seq at which the judging began.
        last_seq: the highest seq of an entry.
        entry_bytes: bytes of its entries without ORIGINS.
        moved: key and ``MOVED`` of every entry.
    """

    def __init__(self, segment: int, sources: Sequence[int], start: int, judged_seq: int) -> None:
        self.segment = segment
        self.sources = frozenset(sources)
        self.start = self.end = start
        self.judged_seq = judged_seq
        self.last_seq = self.entry_bytes = 0
        self.moved: list[bytes] = []

    def batch(self, number: int, before: int, entries: list[Live], salt: int) -> tuple[int, bytes]:
        """The next batch and its checksum; the copy then ends behind it."""
        origins = b"".join([ORIGIN.pack(n, time_ms) for _, n, time_ms, _, _, _ in entries])
        head = encode_entry(LogEntry(0, 0, ORIGINS, 0, b"", origins))
        offset = self.end + BATCH_BYTES + len(head)
        for seq, _, _, kind, key, framed in entries:
            self.moved += moved_rows(kind, seq, key, framed, offset)
            offset += len(framed)
        self.entry_bytes += offset - self.end - BATCH_BYTES - len(head)
        last_seq, _, time_ms, _, _, _ = entries[-1]
        self.last_seq = max(self.last_seq, last_seq)
        body = b"".join([head, *[framed for *_, framed in entries]])
        header = BatchHeader(0, len(entries) + 1, 0, number, 0, time_ms, before)
        checksum, first, rest = encode_batch(header, body, place(salt, self.segment, self.end))
        self.end = offset
        return checksum, first + rest

    @property
    def row(self) -> SegmentRow:
        """Its row before any other row leads to it."""
        filled = (self.start, self.end, self.judged_seq, self.last_seq)
        return SegmentRow(*filled, self.entry_bytes, self.entry_bytes, FileKind.COPY, JOINING)


def moved_rows(kind: int, seq: int, key: bytes, framed: bytes, offset: int) -> list[bytes]:
    """Key and ``MOVED`` of the rows that an entry of a copy is for."""
    length = len(framed)
    if kind != PACK:
        return [key + MOVED.pack(kind, seq, offset, length, 0, length)]
    pack = decode_pack(framed[ENTRY_BYTES:])
    assert pack is not None
    return [
        one.key + MOVED.pack(kind, seq, offset, length, one.start, one.share)
        for one in pack.contents
    ]


def _write_copy(engine: Engine, judge: Judge, sources: Sequence[int]) -> Copy | None:
    """A copy of what is live, durable with its name; None where nothing is."""
    disk = engine.disk
    live = _in_order(judge, sources)
    first = next(live, None)
    if first is None:
        return None
    segment, fd = _begin_copy(engine)
    path = segment_path(engine.log_path, segment, FileKind.COPY)
    try:
        try:
            header = encode_header(_copy_header(engine, judge, segment, sources))
            disk.write(fd, (header,), 0)
            copy = Copy(segment, sources, len(header), judge.seq)
            before, number = int.from_bytes(header[-CHECKSUM_BYTES:], "little"), 0
            flushed = copy.end
            for entries in _grouped(first, live):
                number, offset = number + 1, copy.end
                before, data = copy.batch(number, before, entries, engine.salt)
                disk.write(fd, (data,), offset)
                if copy.end - flushed >= FLUSH_BYTES:
                    disk.sync_data(fd)  # little by little: a large flush makes others wait for it
                    flushed = copy.end
            disk.sync(fd)
        finally:
            disk.close(fd)
    except BaseException:
        disk.unlink(path.with_name(path.name + ".tmp"))
        raise
    disk.rename(path.with_name(path.name + ".tmp"), path)
    disk.sync_directory(engine.log_path)
    return copy


def _in_order(judge: Judge, sources: Sequence[int]) -> Iterator[Live]:
    """What is live in all sources; a copy may hold entries between those of any other file."""
    if any(judge.rows[source].kind == FileKind.COPY for source in sources):
        return heapq.merge(*map(judge.live, sources))
    return chain.from_iterable(map(judge.live, sources))


def _begin_copy(engine: Engine) -> tuple[int, int]:
    """The id of a new copy and its file.

    A new file may have to wait for somebody's flush, so it is made before the gate. Behind it is
    seen whether a writer took the same id at the same time; later ones see the copy's.
    """
    disk, log = engine.disk, engine.log_path
    while True:
        segment = next_segment(disk, log)
        path = segment_path(log, segment, FileKind.COPY)
        beside = path.with_name(path.name + ".tmp")
        fd = disk.open(beside, write=True, create=True)
        try:
            if behind_gate(engine, lambda: next_segment(disk, log, beside.name)) <= segment:  # noqa: B023
                return segment, fd
        except BaseException:
            disk.close(fd)
            disk.unlink(beside)
            raise
        disk.close(fd)
        disk.unlink(beside)


def _copy_header(
    engine: Engine, judge: Judge, segment: int, sources: Sequence[int]
) -> SegmentHeader:
    return SegmentHeader(
        FileKind.COPY,
        engine.identity.uuid,
        segment,
        secrets.randbits(64),
        engine.timelines[-1].timeline,
        0,
        0,
        judge.seq,
        max(0, int(engine.clock() * 1000)),
        tuple(ListedFile(source, judge.rows[source].end) for source in sources),
        (),
    )


def _grouped(first: Live, live: Iterable[Live]) -> Iterator[list[Live]]:
    """Entries in groups of about ``BATCH_BYTES_MAX``."""
    group, size = [first], len(first[-1])
    for entry in live:
        if size >= BATCH_BYTES_MAX:
            yield group
            group, size = [], 0
        group.append(entry)
        size += len(entry[-1])
    yield group


# -- the index ----------------------------------------------------------------------------------


def behind_gate(engine: Engine, step: Callable[[], Result]) -> Result:
    """``step`` while nobody writes, on a store that takes writes."""
    gate = engine.gate
    gate.refuse_nested()
    try:
        try:
            gate.enter()
            # What a dead writer left comes first; and INDEX says "not clean" from here on.
            engine.committer.commit_inside((), full=False)
            return step()
        finally:
            gate.leave()
    finally:
        gate.leave()


def _change(engine: Engine, step: Callable[[Txn], Result]) -> Result:
    """One short write transaction of the index alone."""

    def attempt() -> Result:
        with engine.index.writing() as txn:
            return step(txn)

    return behind_gate(engine, lambda: growing(engine.index, attempt))


def _join(engine: Engine, copy: Copy) -> None:
    _change(engine, lambda txn: put_segment(txn, copy.segment, copy.row._replace(born=txn.id())))


def _move_rows(engine: Engine, copy: Copy, pace: Pace) -> None:
    """Lead every row to the copy that still leads to an entry that was copied.

    In the order of the keys, since rows that stand side by side change a page together: that halves
    what it costs. Sorted in runs, because a sort lets nobody in.
    """
    runs = []
    for first in range(0, len(copy.moved), RUN_ROWS):
        runs.append(sorted(copy.moved[first : first + RUN_ROWS]))
        pace.breathe()
    moved = heapq.merge(*runs)
    while some := list(islice(moved, STEP_ROWS)):
        _change(engine, lambda txn: _move_some(engine.index, txn, copy, some))
        pace.breathe()


def _move_some(index: Index, txn: Txn, copy: Copy, moved: Sequence[bytes]) -> None:
    """Lead some rows to the copy; what they leave is dead, and what they take there no more."""
    freed: dict[int, int] = {}
    taken = 0
    for data in moved:
        key = data[: -MOVED.size]
        kind, seq, offset, length, start, share = MOVED.unpack_from(data, len(key))
        db = database(index, kind, key)
        row = txn.get(key, None, db)
        if row is None:
            continue
        segment, _, _, its_seq = PLACE_AND_SEQ.unpack_from(row)
        if its_seq != seq or segment not in copy.sources:
            continue
        gone = share
        if kind == PACK:  # a pack that lost contents on the way has another length, and others
            before = decode_content_row(row)
            gone = before.share
            moved_to = {"segment": copy.segment, "offset": offset, "length": length}
            row = encode_content_row(before._replace(**moved_to, start=start, share=share))
        else:
            row = PLACE.pack(copy.segment, offset) + row[PLACE.size :]
        txn.put(key, row, db=db)
        freed[segment] = freed.get(segment, 0) + gone
        taken += share
    _count(txn, copy.segment, -taken)
    for segment, length in freed.items():
        _count(txn, segment, length)


def _count(txn: Txn, segment: int, dead_bytes: int) -> None:
    row = get_segment(txn, segment)
    assert row is not None
    put_segment(txn, segment, row._replace(dead_bytes=row.dead_bytes + dead_bytes))


def _retire(engine: Engine, said: Retire, dropped_bytes: int) -> None:
    """The commit point: the copy counts, the old files do not."""
    engine.flusher.flush()  # what others wrote, so that the flush behind the gate is short

    def commit() -> None:
        with engine.index.reading() as txn:
            rows = [get_segment(txn, segment) for segment in said.files]
        left = sum(row.entry_bytes - row.dead_bytes for row in rows if row is not None)
        if None in rows or not 0 <= left <= dropped_bytes:
            raise CorruptionError(
                f"rows still lead to files that were compacted ({left} bytes); repair builds the "
                "index anew"
            )
        operation = Operation(b"", RETIRE, 0, 0, encode_retire(said))
        engine.committer.commit_inside((operation,), full=True)

    behind_gate(engine, commit)


def _forget(engine: Engine, dropped: Sequence[bytes], files: Collection[int], pace: Pace) -> None:
    """Remove the rows of deletions that the copy does not hold."""
    done = 0
    while done < len(dropped):
        some = dropped[done : done + CHUNK]
        _change(engine, lambda txn: _forget_some(engine.index, txn, some, files))  # noqa: B023
        done += len(some)
        pace.breathe()
    _change(engine, lambda txn: forgotten(txn, files))


def _forget_some(index: Index, txn: Txn, keys: Iterable[bytes], files: Collection[int]) -> None:
    for key in keys:
        row = txn.get(key, None, index.tombstones)
        if row is not None and PLACE.unpack_from(row)[0] in files:
            txn.delete(key, db=index.tombstones)


# -- what a compactor left that died, and the files themselves ------------------------------------


def finish(engine: Engine, pace: Pace) -> None:
    """Finish or undo what a compactor left that died. The caller holds the compaction lock."""
    rows, retired = behind_gate(engine, lambda: _tidy(engine))
    for segment, row in rows.items():
        if row.state == JOINING:
            _finish_joining(engine, segment, row, pace)
    left = {segment for segment, row in retired.items() if not row.forgotten}
    if left:
        _forget(engine, _tombstones_in(engine, left, pace), left, pace)


def _tidy(engine: Engine) -> tuple[dict[int, SegmentRow], dict[int, Retired]]:
    """Remove files that nothing names; the rows of those that count and of those that were retired.

    Behind the gate nobody makes a segment, and the caller is the only one who makes copies and
    checkpoints. A RETIRE that a dead compactor left in the log is in the index by now.
    """
    disk = engine.disk
    with engine.index.reading() as txn:
        meta = the_meta(txn)
        rows, retired = dict(all_segments(txn)), all_retired(txn)
    for segment, path in list_files(disk, engine.log_path).items():
        is_copy = path.suffix == ".cpy"
        if segment not in rows and segment not in retired and (is_copy or segment < meta.segment):
            disk.unlink(path)
    for name in disk.names(engine.log_path):
        if name.endswith(".tmp"):
            disk.unlink(engine.log_path / name)
    disk.unlink(engine.checkpoint_path.with_name("index.checkpoint.tmp"))
    return rows, retired


def _finish_joining(engine: Engine, segment: int, row: SegmentRow, pace: Pace) -> None:
    """Go on where a compactor died that had begun to move rows."""
    path = segment_path(engine.log_path, segment, FileKind.COPY)
    engine.log_fd(segment)
    header = inspect(engine.disk, segment, path, engine.identity.uuid).header
    if header is None:
        raise CorruptionError("the header does not check", segment=segment, offset=0)
    sources = [file.segment for file in header.files]
    copy = Copy(segment, sources, row.start, row.after_seq)
    copy.end = row.end
    copy.moved = _moved(engine, segment, row)
    _move_rows(engine, copy, pace)
    dropped = _tombstones_in(engine, copy.sources, pace)
    length, highest = _dropped(engine, dropped)
    with engine.index.reading() as txn:
        floor_seq = max(get_floor(txn), highest)
    said = Retire(segment, row.end, floor_seq, tuple(sorted(sources)))
    _retire(engine, said, length)
    _forget(engine, dropped, said.files, pace)


def _moved(engine: Engine, segment: int, row: SegmentRow) -> list[bytes]:
    """``Copy.moved`` of a copy that is there."""
    fd = engine.log_fd(segment)
    header = read_header(engine.disk, fd, engine.identity.uuid)
    assert header is not None
    moved, end = [], row.start
    reader = SegmentReader(engine.disk, fd, segment, engine.salt)
    for batch in reader.batches(row.start, header[1], 0, row.end):
        end = batch.end
        for offset, framed in split_entries(batch.body, batch.header.entries):
            _, seq, _, _, key_length, kind, _ = ENTRY.unpack_from(framed)
            if kind in MOVING or kind == PACK:
                at = batch.offset + BATCH_BYTES + offset
                key = framed[ENTRY_BYTES : ENTRY_BYTES + key_length]
                moved += moved_rows(kind, seq, key, framed, at)
    if end != row.end:
        raise CorruptionError("a batch does not check", segment=segment, offset=end)
    return moved


def _tombstones_in(engine: Engine, files: Collection[int], pace: Pace) -> list[bytes]:
    """The keys whose deletions stand in some files."""
    found: list[bytes] = []
    after = b""
    while True:
        with engine.index.reading() as txn:
            cursor = txn.cursor(engine.index.tombstones)
            if not cursor.set_range(after + b"\0"):
                return found
            for _ in range(CHUNK):
                after, row = cursor.item()
                if PLACE.unpack_from(row)[0] in files:
                    found.append(after)
                if not cursor.next():
                    return found
        pace.breathe()


def _dropped(engine: Engine, keys: Iterable[bytes]) -> tuple[int, int]:
    """Bytes and highest seq of deletions, by their keys."""
    total = highest = 0
    with engine.index.reading() as txn:
        for key in keys:
            row = txn.get(key, None, engine.index.tombstones)
            if row is not None:
                _, _, length, seq = PLACE_AND_SEQ.unpack_from(row)
                total, highest = total + length, max(highest, seq)
    return total, highest


def reclaim(engine: Engine) -> int:
    """Unlink retired files that no reader can reach any more; how many are still waiting.

    A reader reaches those that counted when it began: one that stays for long keeps no file that
    came and went meanwhile.

    The active segment has a higher id than any file that goes, so that no id is given out twice:
    another process may still know the old file by it. The caller holds the compaction lock.
    """
    index = engine.index
    index.reader_check()
    with index.reading() as txn:
        meta = the_meta(txn)
        retired = all_retired(txn)
    if not retired:
        return 0
    readers = [transaction for _, transaction in index.readers() if transaction is not None]
    newest = index.last_transaction()
    free = [
        segment
        for segment, row in retired.items()
        if row.forgotten
        and row.transaction < newest
        and segment < meta.segment
        and not any(row.born <= reader < row.transaction for reader in readers)
    ]
    if free:
        for segment in free:
            for kind in FileKind:
                engine.disk.unlink(segment_path(engine.log_path, segment, kind))
        _change(engine, lambda txn: drop_retired(txn, free))
        engine.files.drop(free)
    return len(retired) - len(free)


# -- before and after everything is compacted -----------------------------------------------------


def seal(engine: Engine) -> None:
    """Begin a new segment, unless the active one holds nothing yet."""
    engine.flusher.flush()  # so that the flush behind the gate is short

    def step(txn: Txn) -> None:
        meta = the_meta(txn)
        if meta.last:
            put_meta(txn, begin_segment(engine, txn, meta))

    _change(engine, step)


def note_deletions_left(engine: Engine) -> None:
    """Keep how many deletions are left now that everything was compacted, for every process."""
    tombstones = engine.index.tombstones
    _change(engine, lambda txn: put_deletions_left(txn, int(txn.stat(tombstones)["entries"])))
