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
from bisect import bisect_left
from collections import Counter
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from xxhash import xxh3_64_intdigest

from kvsage.engine.rotation import new_header
from kvsage.engine.trust import write_trust
from kvsage.errors import CorruptionError, StoreFullError
from kvsage.index.contents import CONTENT_ROW, decode_content_row, encode_content_row
from kvsage.index.env import Index, LmdbError, MapFull, Txn
from kvsage.index.expiry import expiry_key
from kvsage.index.keydir import ROW, SYSTEM
from kvsage.index.segments import Meta, SegmentRow, put_meta, put_segment, segment_key
from kvsage.log.format import (
    BATCH,
    BATCH_BODY_MAX,
    BATCH_BYTES,
    BATCH_MAGIC,
    CHECKSUM_BYTES,
    CONTENT,
    CONTENT_HEAD,
    CONTENT_KEY,
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
    place,
)
from kvsage.log.reader import SegmentReader
from kvsage.log.segment import LogFile, inspect, list_files
from kvsage.log.writer import create_file
from kvsage.store import KEY_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvsage.engine.engine import Engine
    from kvsage.fs import Disk
    from kvsage.index.trust import Trust

Result = TypeVar("Result")

CHUNK = 50_000  # keys gathered before they go into the index in the order of their bytes
ROW_AND_KIND = Struct(f"{ROW.format}B")  # what is gathered of a key: a third of a tuple's memory


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
        self._rows: dict[bytes, bytes] = {}
        self._contents: dict[bytes, bytes] = {}
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
            tail = self._replay(reader, Tail(file.start, 0, file.chain, header.after_seq), end)
            vouched = reader.vouched_end(tail.offset, tail.seq) if end is None else end
        finally:
            self._disk.close(fd)
        if vouched is not None and vouched != tail.offset:
            raise CorruptionError(
                "a batch does not check", segment=file.segment, offset=tail.offset
            )
        return tail

    def _replay(  # noqa: C901, PLR0912, PLR0915  # flat on the hot path
        self, reader: SegmentReader, tail: Tail, end: int | None
    ) -> Tail:
        """Apply the batches that follow one another from ``tail``, up to the first that does not.

        The same as ``SegmentReader.batches`` and ``split_entries``, but flat, since this loop is
        what a rebuild's speed is: out of the reader's window, with no object for a batch or entry.
        """
        # Whole rebuild, single commits a CPU second: 80,000 in small steps, 190,000 so and packed.
        offset, last, chain, seq = tail
        segment, size, salt, total = reader.segment, reader.size, self._salt, 0
        rows, contents = self._rows, self._contents
        batch_at, entry_at, row_of = BATCH.unpack_from, ENTRY.unpack_from, ROW_AND_KIND.pack
        while end is None or offset < end:
            window, at = reader.window_at(offset, BATCH_BYTES)
            if len(window) - at < BATCH_BYTES:
                break
            checksum, magic, count, filled, zero, number, _, _, its_chain = batch_at(window, at)
            if (magic, zero, its_chain, number) != (BATCH_MAGIC, 0, chain, seq + 1):
                break
            if filled > BATCH_BODY_MAX or offset + BATCH_BYTES + filled > size:
                break
            window, at = reader.window_at(offset, BATCH_BYTES + filled)
            here = at + BATCH_BYTES
            stop = here + filled
            covered = window[at + CHECKSUM_BYTES : stop]
            if xxh3_64_intdigest(covered, place(salt, segment, offset)) != checksum:
                break
            base = offset - at  # of the window
            for _ in range(count):
                start, at = here + ENTRY_BYTES, base + here
                if start > stop:
                    raise misframed(segment, at)
                _, its, expires_ms, value_length, key_length, kind, flags = entry_at(window, here)
                split = start + key_length
                length = split + value_length - here
                if here + length > stop:
                    raise misframed(segment, at)
                key = window[start:split]
                if kind == PUT or kind == DELETE:  # noqa: PLR1714, SIM109  # faster than a set
                    if not 0 < key_length <= KEY_BYTES_MAX:
                        raise misframed(segment, at)
                    known = rows.get(key)
                    if known is None or ROW.unpack_from(known)[3] <= its:
                        rows[key] = row_of(segment, at, length, its, expires_ms, flags, kind)
                elif kind == CONTENT:
                    if key_length != CONTENT_KEY.size or value_length < CONTENT_HEAD.size:
                        raise misframed(segment, at)
                    (raw_length,) = CONTENT_HEAD.unpack_from(window, split)
                    contents[key] = CONTENT_ROW.pack(segment, at, length, its, raw_length, 0)
                here += length
            if here != stop:
                raise misframed(segment, base + here)
            total += filled
            last, offset, chain, seq = offset, base + stop, checksum, number
            if len(rows) > CHUNK:
                self.flush()
        self.entry_bytes[segment] += total
        return Tail(offset, last, chain, seq)

    def flush(self) -> None:
        """What was gathered goes into the index."""
        growing(self._index, self._put)
        self._rows.clear()
        self._contents.clear()

    def _put(self) -> None:
        index, rows = self._index, self._rows
        keys = sorted(rows)
        own = bisect_left(keys, bytes((SYSTEM,)))  # kvsage's own keys stand behind all others
        with index.writing() as txn:
            self._put_rows(txn, keys[:own], index.keydir)
            self._put_rows(txn, keys[own:], index.system)
            txn.cursor(index.contents).putmulti(sorted(self._contents.items()))

    def _put_rows(self, txn: Txn, keys: list[bytes], live: Any) -> None:
        """Rows of ``keys``, which are sorted, into ``live`` or into the tombstones."""
        rows, tombstones = self._rows, self._index.tombstones
        for db, other, kind in ((live, tombstones, PUT), (tombstones, live, DELETE)):
            some = [key for key in keys if rows[key][-1] == kind]
            stale = self._stale(txn, some, db, other)
            txn.cursor(db).putmulti((key, rows[key][:-1]) for key in some if key not in stale)

    def _stale(self, txn: Txn, keys: list[bytes], mine: Any, other: Any) -> set[bytes]:
        """Those of which the index has a newer row; the rest stand in ``other`` no more."""
        rows, stale = self._rows, set()
        for db in (mine, other):
            known = txn.cursor(db).getmulti(keys) if txn.stat(db)["entries"] else ()
            for key, data in known:
                if ROW.unpack(data)[3] > ROW.unpack_from(rows[key])[3]:
                    stale.add(key)
                elif db is other:
                    txn.delete(key, db=other)
        return stale


def misframed(segment: int, offset: int) -> CorruptionError:
    """The error of entries that are impossible though their batch checks."""
    return CorruptionError("the entries of a batch do not fill it", segment=segment, offset=offset)


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
        index, live_bytes, unpack = self._index, self.live_bytes, ROW.unpack
        expiries = []
        for db in (index.keydir, index.system, index.tombstones):
            for key, data in txn.cursor(db):
                segment, offset, length, _, expires_ms, flags = unpack(data)
                live_bytes[segment] += length
                if db is not index.tombstones:
                    if flags & IS_CONTENT:
                        self._count(key, segment, offset, length)
                    if expires_ms:
                        expiries.append(expiry_key(expires_ms, key))
        txn.cursor(index.expiry).putmulti([(expiry, b"") for expiry in sorted(expiries)])
        self._set_references(txn)

    def _count(self, key: bytes, segment: int, offset: int, length: int) -> None:
        fd = self._engine.files.fd(segment)
        entry = decode_entry(self._engine.disk.read(fd, length, offset))
        if entry is None or entry.key != key or len(entry.value) != CONTENT_REF.size:
            raise CorruptionError("an entry does not check", segment=segment, offset=offset)
        self._references[entry.value[: CONTENT_KEY.size]] += 1

    def _set_references(self, txn: Txn) -> None:
        contents = self._index.contents
        for key, data in list(txn.cursor(contents)):
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
    except BaseException as error:
        translated = index.error(error, "building") if isinstance(error, LmdbError) else None
        index.close()
        remove_index(disk, beside)
        if translated is not None:
            raise translated from error
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
    """Remove an index that nobody has open, and what strayed into it; nothing behind a link."""
    if path.is_symlink() or not path.is_dir():
        disk.unlink(path)
        return
    for name in disk.names(path):
        disk.unlink(path / name)
    disk.remove_directory(path)
