"""Building the index anew from the log.

The newest segment whose header checks says which files count and where each of them ends. Entries
are applied by seq, not by place: the highest seq of a key wins wherever it stands. References to
contents are counted in a second pass over what is live at the end.

Order, so that a kill or a power cut at any point loses nothing and the next opener starts over: the
new index is built beside; the log's last segment is cut behind its last commit and sealed; a new
segment begins a new timeline; the new index takes the old one's place; last, INDEX names it.
Damage is raised before anything but the unfinished new index has been touched.
"""

from __future__ import annotations

import secrets
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from kvsage.engine.rotation import new_header
from kvsage.engine.trust import write_trust
from kvsage.errors import CorruptionError, StoreFullError
from kvsage.index.contents import CONTENT_ROW, decode_content_row, encode_content_row
from kvsage.index.env import Index, LmdbError, MapFull, Txn
from kvsage.index.expiry import expiry_key
from kvsage.index.keydir import ROW, SYSTEM, Row, decode_row
from kvsage.index.segments import Meta, SegmentRow, put_meta, put_segment, segment_key
from kvsage.log.format import (
    BATCH_BYTES,
    CONTENT,
    CONTENT_HEAD,
    CONTENT_REF,
    DELETE,
    ENTRY,
    ENTRY_BYTES,
    IS_CONTENT,
    PUT,
    FileKind,
    ListedFile,
    SegmentHeader,
    Timeline,
    decode_entry,
)
from kvsage.log.reader import SegmentReader
from kvsage.log.segment import LogFile, inspect, list_files
from kvsage.log.writer import create_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kvsage.engine.engine import Engine
    from kvsage.fs import Disk
    from kvsage.index.trust import Trust

Result = TypeVar("Result")

CHUNK = 50_000  # keys gathered before they go into the index in the order of their bytes


def growing(index: Index, step: Callable[[], Result]) -> Result:
    """``step``, which is one transaction, begun anew as often as the index had to grow for it."""
    while True:
        try:
            return step()
        except StoreFullError as error:
            if not isinstance(error.__cause__, MapFull):
                raise
            index.grow()


# -- which files count --------------------------------------------------------------------------


class Plan(NamedTuple):
    """The files of the log, and what lies beside them.

    Attributes:
        files: sealed files and where each ends, in the order of their ids.
        newest: the active segment.
        missing: files that are named and are not there or have no header that checks.
    """

    files: tuple[tuple[LogFile, int], ...]
    newest: LogFile
    missing: tuple[ListedFile, ...]

    @property
    def header(self) -> SegmentHeader:
        """Of the active segment."""
        header = self.newest.header
        assert header is not None, "the newest is the newest with a header"
        return header


def plan_log(disk: Disk, log: Path, uuid: bytes, salt: int) -> Plan:
    """Which files of the log count.

    Raises:
        CorruptionError: a segment that held commits has lost its header, or there is none at all.
    """
    files = [inspect(disk, number, path, uuid) for number, path in list_files(disk, log).items()]
    segments = [file for file in files if file.header is not None and not file.is_copy]
    if not segments:
        raise CorruptionError("no log file has a header that checks", segment=1, offset=0)
    newest = segments[-1]
    assert newest.header is not None
    for file in files:
        if file.segment > newest.segment and not file.is_copy and holds_batches(disk, file, salt):
            raise CorruptionError("the header does not check", segment=file.segment, offset=0)
    there = {file.segment: file for file in files if file.header is not None}
    named = [(there[end.segment], end.end) for end in newest.header.files if end.segment in there]
    missing = tuple(end for end in newest.header.files if end.segment not in there)
    return Plan(tuple(named), newest, missing)


def holds_batches(disk: Disk, file: LogFile, salt: int) -> bool:
    """Whether any batch in the file checks, header or no header."""
    fd = disk.open(file.path)
    try:
        reader = SegmentReader(disk, fd, file.segment, salt)
        return next(reader.later_batches(0), None) is not None
    finally:
        disk.close(fd)


# -- what the log says --------------------------------------------------------------------------


class Tail(NamedTuple):
    """Where the log ends."""

    offset: int
    last: int
    chain: int
    seq: int


class Replay:
    """Applies the log to an empty index."""

    def __init__(self, disk: Disk, index: Index, salt: int) -> None:
        self._disk = disk
        self._index = index
        self._salt = salt
        self._rows: dict[bytes, tuple[int, int, int, int, int, int, int]] = {}
        self._contents: dict[bytes, tuple[int, int, int, int, int, int]] = {}
        self._empty = True
        self.entry_bytes: Counter[int] = Counter()

    def file(self, file: LogFile, end: int | None) -> Tail:
        """Apply one file up to ``end``, or up to the first batch that does not check.

        Raises:
            CorruptionError: it does not check up to ``end``, or the entries do not fill a batch.
        """
        header = file.header
        assert header is not None
        fd = self._disk.open(file.path)
        try:
            reader = SegmentReader(self._disk, fd, file.segment, self._salt)
            tail = Tail(file.start, 0, file.chain, header.after_seq)
            for batch in reader.batches(file.start, file.chain, header.after_seq, end):
                self._batch(
                    file.segment, batch.offset + BATCH_BYTES, batch.header.entries, batch.body
                )
                tail = Tail(batch.end, batch.offset, batch.header.checksum, batch.header.seq)
                if len(self._rows) > CHUNK:
                    self.flush()
            vouched = reader.vouched_end(tail.offset, tail.seq) if end is None else end
        finally:
            self._disk.close(fd)
        if vouched is not None and vouched != tail.offset:
            raise CorruptionError(
                "a batch does not check", segment=file.segment, offset=tail.offset
            )
        return tail

    def _batch(self, segment: int, base: int, count: int, body: bytes) -> None:
        # Flat: this loop is what a rebuild's speed is. The batch's checksum covers every entry.
        rows, contents, unpack_from = self._rows, self._contents, ENTRY.unpack_from
        offset, size = 0, len(body)
        for _ in range(count):
            if size - offset < ENTRY_BYTES:
                raise CorruptionError("entries do not fill", segment=segment, offset=base + offset)
            _, seq, expires_ms, value_length, key_length, kind, flags = unpack_from(body, offset)
            start = offset + ENTRY_BYTES
            split = start + key_length
            key = body[start:split]
            length = ENTRY_BYTES + key_length + value_length
            if kind == PUT or kind == DELETE:  # noqa: PLR1714, SIM109  # faster than a set
                known = rows.get(key)
                if known is None or known[3] <= seq:
                    rows[key] = (segment, base + offset, length, seq, expires_ms, flags, kind)
            elif kind == CONTENT:
                (raw_length,) = CONTENT_HEAD.unpack_from(body, split)
                contents[key] = (segment, base + offset, length, seq, raw_length, 0)
            offset += length
        if offset != size:
            raise CorruptionError("entries do not fill", segment=segment, offset=base)
        self.entry_bytes[segment] += size

    def flush(self) -> None:
        """What was gathered goes into the index."""
        growing(self._index, self._put)
        self._rows.clear()
        self._contents.clear()
        self._empty = False

    def _put(self) -> None:
        index = self._index
        with index.writing() as txn:
            for key in sorted(self._rows):
                *row, kind = self._rows[key]
                live = index.system if key[0] == SYSTEM else index.keydir
                other = index.tombstones
                if kind == DELETE:
                    live, other = other, live
                if not self._empty and not self._newer(txn, key, row[3], live, other):
                    continue
                txn.put(key, ROW.pack(*row), db=live)
            for key in sorted(self._contents):
                txn.put(key, CONTENT_ROW.pack(*self._contents[key]), db=index.contents)

    @staticmethod
    def _newer(txn: Txn, key: bytes, seq: int, mine: Any, other: Any) -> bool:
        """Whether ``seq`` is the newest of ``key``; then it stands in ``other`` no more."""
        for db in (mine, other):
            data = txn.get(key, None, db)
            if data is not None and decode_row(data).seq > seq:
                return False
        txn.delete(key, db=other)
        return True


# -- the second pass ----------------------------------------------------------------------------


class Counting:
    """Live bytes, references and expiries, over the rows that are live when all is applied."""

    def __init__(self, engine: Engine, index: Index) -> None:
        self._engine = engine
        self._index = index
        self._references: Counter[bytes] = Counter()
        self.live_bytes: Counter[int] = Counter()

    def run(self, txn: Txn) -> None:
        """Fill ``expiry`` and the references of ``contents``."""
        index = self._index
        expiries = []
        for db in (index.keydir, index.system, index.tombstones):
            for key, data in txn.cursor(db):
                row = decode_row(data)
                self.live_bytes[row.segment] += row.length
                if db is not index.tombstones:
                    if row.flags & IS_CONTENT:
                        self._count(key, row)
                    if row.expires_ms:
                        expiries.append(expiry_key(row.expires_ms, key))
        for expiry in sorted(expiries):
            txn.put(expiry, b"", db=index.expiry)
        self._set_references(txn)

    def _count(self, key: bytes, row: Row) -> None:
        fd = self._engine.files.fd(row.segment)
        entry = decode_entry(self._engine.disk.read(fd, row.length, row.offset))
        if entry is None or entry.key != key or len(entry.value) != CONTENT_REF.size:
            raise CorruptionError("an entry does not check", segment=row.segment, offset=row.offset)
        self._references[entry.value[:18]] += 1

    def _set_references(self, txn: Txn) -> None:
        contents = self._index.contents
        for key, data in list(self._rows_of(txn)):
            row = decode_content_row(data)
            count = self._references.pop(key, 0)
            if count:
                counted = row._replace(references=count)
                txn.put(key, encode_content_row(counted), db=contents)
                self.live_bytes[row.segment] += row.length
            else:
                txn.delete(key, db=contents)
        if self._references:
            key = next(iter(self._references))
            raise CorruptionError(f"the content {key[:16].hex()} is missing from the log")

    def _rows_of(self, txn: Txn) -> Iterator[tuple[bytes, bytes]]:
        return iter(txn.cursor(self._index.contents))


# -- all of it ----------------------------------------------------------------------------------


def rebuild(engine: Engine, trust: Trust | None, *, fresh: bool) -> None:
    """Build the index anew; the caller is the only process that has the store open.

    Args:
        engine: whose index.
        trust: what INDEX said, if it could be read: a clean close vouches for the log's end.
        fresh: nobody has seen any seq of this store, so its first timeline goes on.

    Raises:
        CorruptionError: the log is damaged; nothing was changed.
    """
    disk = engine.disk
    plan = plan_log(disk, engine.log_path, engine.identity.uuid, engine.salt)
    if plan.missing:
        raise CorruptionError(
            "a file of the log is missing or its header is damaged",
            segment=plan.missing[0].segment,
            offset=0,
        )
    beside = engine.index_path.with_name("index.new")
    remove_index(disk, beside)
    disk.make_directory(beside)
    index = Index(beside, engine.options.index_map_bytes)
    try:
        meta, named = _build(engine, index, plan, trust, fresh=fresh)
    except LmdbError as error:
        raise index.error(error, "building") from error
    except BaseException:
        index.close()
        remove_index(disk, beside)
        raise
    index.close()
    disk.unlink(engine.trust_path)
    remove_index(disk, engine.index_path)
    disk.rename(beside, engine.index_path)
    disk.sync_directory(engine.path)
    write_trust(engine, meta, clean=False)
    for segment, path in list_files(disk, engine.log_path).items():
        if segment not in named:
            disk.unlink(path)


def _build(
    engine: Engine, index: Index, plan: Plan, trust: Trust | None, *, fresh: bool
) -> tuple[Meta, set[int]]:
    """Fill the index; where the log ends now, and which files belong to it."""
    replay = Replay(engine.disk, index, engine.salt)
    for file, end in plan.files:
        replay.file(file, end)
    tail = replay.file(plan.newest, None)
    _check_clean_end(engine, plan, tail, trust)
    replay.flush()
    ends = [*plan.files, (plan.newest, tail.offset)]
    growing(index, lambda: _account(engine, index, ends, replay.entry_bytes))
    engine.timelines = plan.header.timelines
    meta = Meta(
        plan.newest.segment,
        tail.offset,
        tail.last,
        tail.chain,
        tail.seq,
        tail.seq,
        plan.header.timeline,
        secrets.randbits(63),
        0,
    )
    named = {file.segment for file, _ in ends}
    with index.writing() as txn:
        if not fresh:
            meta, named = _begin_timeline(engine, txn, meta, ends)
        put_meta(txn, meta)
    return meta, named


def _account(
    engine: Engine, index: Index, ends: list[tuple[LogFile, int]], entry_bytes: Counter[int]
) -> None:
    """References, expiries, and a row for each file."""
    counting = Counting(engine, index)
    with index.writing() as txn:
        counting.run(txn)
        for file, end in ends:
            assert file.header is not None
            dead = entry_bytes[file.segment] - counting.live_bytes[file.segment]
            kind = FileKind.COPY if file.is_copy else FileKind.SEGMENT
            row = SegmentRow(file.start, end, file.header.after_seq, dead, kind)
            put_segment(txn, file.segment, row)


def _check_clean_end(engine: Engine, plan: Plan, tail: Tail, trust: Trust | None) -> None:
    """A clean close knew where the log ended; less than that is damage."""
    if trust is None or not trust.clean or trust.uuid != engine.identity.uuid:
        return
    if (trust.segment, trust.offset) > (plan.newest.segment, tail.offset):
        raise CorruptionError(
            "the log ends before the end that a clean close recorded",
            segment=plan.newest.segment,
            offset=tail.offset,
        )


def _begin_timeline(
    engine: Engine, txn: Txn, meta: Meta, ends: list[tuple[LogFile, int]]
) -> tuple[Meta, set[int]]:
    """Seal the last segment behind its last commit, and go on in a new one and a new timeline.

    Seqs of a lost tail are issued again from here on; the timeline tells them apart. A segment or a
    timeline in which nothing was committed is named no more.
    """
    disk = engine.disk
    fd = engine.files.fd(meta.segment)
    disk.truncate(fd, meta.offset)
    disk.sync(fd)
    files = tuple(ListedFile(file.segment, end) for file, end in ends if end > file.start)
    for file, end in ends:
        if end == file.start:
            txn.delete(segment_key(file.segment))
    kept = tuple(t for t in engine.timelines if t.after_seq < meta.seq)
    engine.timelines = (*kept, Timeline(secrets.randbits(64), meta.seq))
    header = new_header(engine, meta, files)
    _, chain, start = create_file(disk, engine.log_path, header)
    put_segment(txn, header.segment, SegmentRow(start, start, meta.seq, 0, FileKind.SEGMENT))
    begun = meta._replace(
        segment=header.segment,
        offset=start,
        last=0,
        chain=chain,
        timeline=engine.timelines[-1].timeline,
    )
    return begun, {header.segment, *(file.segment for file in files)}


def remove_index(disk: Disk, path: Path) -> None:
    """Remove an index that nobody has open."""
    for name in ("data.mdb", "lock.mdb"):
        try:
            disk.unlink(path / name)
        except FileNotFoundError:
            return
    disk.remove_directory(path)
