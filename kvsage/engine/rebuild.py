"""Building the index anew from the log.

The newest segment whose header checks says which files count and where each of them ends, and the
RETIRE entries in it what has changed since. Entries are applied by seq, not by place: the highest
seq of a key wins wherever it stands. References to contents are counted in a second pass over what
is live at the end.

Where a checkpoint can be read the new index begins as its copy, and only what came after it is
applied: the segments behind it, and the copies that it does not know, which also say where
compaction has put what the checkpoint knows elsewhere. A checkpoint that does not lead to an index
at one with the log is set aside, and all of the log is read.

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

from kvsage.engine.checkpoint import unpack_checkpoint
from kvsage.engine.references import content_rows
from kvsage.engine.rotation import empty_row, filled, new_header
from kvsage.engine.trust import write_trust
from kvsage.errors import CorruptionError, StoreFullError
from kvsage.index.contents import CONTENT_ROW, decode_content_row, encode_content_row
from kvsage.index.env import Index, LmdbError, MapFull, Txn
from kvsage.index.expiry import expiry_key
from kvsage.index.keydir import ROW, SYSTEM, content_keys_in
from kvsage.index.segments import (
    LISTED,
    Meta,
    SegmentRow,
    all_retired,
    all_segments,
    drop_retired,
    get_floor,
    get_meta,
    put_floor,
    put_meta,
    put_segment,
    segment_key,
)
from kvsage.log.format import (
    BATCH,
    BATCH_BODY_MAX,
    BATCH_BYTES,
    BATCH_MAGIC,
    CHECKSUM_BYTES,
    CONTENT,
    CONTENT_HEAD,
    CONTENT_KEY,
    DELETE,
    ENTRY,
    ENTRY_BYTES,
    NODE,
    ORIGINS,
    PACK,
    PUT,
    REFERS,
    RETIRE,
    FileKind,
    ListedFile,
    LogEntry,
    Retire,
    SegmentHeader,
    Timeline,
    decode_retire,
    is_node,
    place,
    possible,
    references_in,
    split_keys,
)
from kvsage.log.reader import SegmentReader
from kvsage.log.segment import LogFile, inspect, list_files
from kvsage.log.writer import create_file
from kvsage.store import KEY_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from kvsage.engine.engine import Engine
    from kvsage.fs import Disk
    from kvsage.index.trust import Trust

Result = TypeVar("Result")

CHUNK = 50_000  # keys gathered before they go into the index in the order of their bytes
ROW_AND_KIND = Struct(f"{ROW.format}B")  # what is gathered of a key: a third of a tuple's memory
PUT_BYTE = bytes((PUT,))


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
        there: every file with a header that checks, by id.
        newest: the active segment.
    """

    there: dict[int, LogFile]
    newest: LogFile

    @property
    def header(self) -> SegmentHeader:
        """Of the active segment."""
        header = self.newest.header
        assert header is not None, "the newest is the newest with a header"
        return header

    def listed(
        self, files: Iterable[ListedFile], retires: Iterable[Retire]
    ) -> list[tuple[LogFile, int]]:
        """The files that count beside the active segment and where each ends, in their order.

        Args:
            files: those that counted at some place in the active segment.
            retires: what the RETIRE entries behind that place say.

        Raises:
            CorruptionError: a file that counts is missing, or its header does not check.
        """
        ends = listed_after(files, retires)
        for segment in ends:
            if segment not in self.there:
                raise CorruptionError(
                    "a file of the log is missing or its header is damaged",
                    segment=segment,
                    offset=0,
                )
        return [(self.there[segment], end) for segment, end in sorted(ends.items())]


def listed_after(files: Iterable[ListedFile], retires: Iterable[Retire]) -> dict[int, int]:
    """Where each file ends that counts beside a segment that lists ``files`` and holds these."""
    ends = {file.segment: file.end for file in files}
    for retire in retires:
        for segment in retire.files:
            ends.pop(segment, None)
        if retire.copy:
            ends[retire.copy] = retire.end
    return ends


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
    for file in files:
        if file.segment > newest.segment and not file.is_copy and holds_batches(disk, file, salt):
            raise CorruptionError("the header does not check", segment=file.segment, offset=0)
    return Plan({file.segment: file for file in files if file.header is not None}, newest)


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


class Read(NamedTuple):
    """What reading a file of the log gave.

    Attributes:
        tail: where its reading ended.
        entry_bytes: bytes of the entries read.
        last_seq: the highest seq of one of them, or of a segment that of its last batch.
    """

    tail: Tail
    entry_bytes: int
    last_seq: int


class Replay:
    """Applies the log to an index, by seq."""

    def __init__(self, disk: Disk, index: Index, salt: int) -> None:
        self._disk = disk
        self._index = index
        self._salt = salt
        self._rows: dict[bytes, bytes] = {}
        self._contents: dict[bytes, bytes] = {}
        self.retires: list[Retire] = []

    def file(self, file: LogFile, end: int | None, start: Tail | None = None) -> Read:
        """Apply one file up to ``end``, or up to the first batch that does not check.

        Args:
            file: which.
            end: where its batches end, or None for the active segment.
            start: where to begin, for the first batch.

        Raises:
            CorruptionError: it does not check up to ``end``, or the entries do not fill a batch.
        """
        header = file.header
        assert header is not None
        fd = self._disk.open(file.path)
        try:
            reader = SegmentReader(self._disk, fd, file.segment, self._salt)
            first = start or Tail(file.start, 0, file.chain, header.after_seq)
            read = self._replay(reader, first, end)
            tail = read.tail
            vouched = reader.vouched_end(tail.offset, tail.seq) if end is None else end
        finally:
            self._disk.close(fd)
        if vouched is not None and vouched != tail.offset:
            raise CorruptionError(
                "a batch does not check", segment=file.segment, offset=tail.offset
            )
        return read if file.is_copy else read._replace(last_seq=tail.seq)

    def _replay(  # noqa: C901, PLR0912, PLR0915  # flat on the hot path
        self, reader: SegmentReader, tail: Tail, end: int | None
    ) -> Read:
        """Apply the batches that follow one another from ``tail``, up to the first that does not.

        The same as ``SegmentReader.batches`` and ``split_entries``, but flat, since this loop is
        what a rebuild's speed is: out of the reader's window, with no object for a batch or entry.
        """
        # Whole rebuild, single commits a CPU second: 80,000 in small steps, 190,000 so and packed.
        offset, last, chain, seq = tail
        segment, size, salt, total, highest = reader.segment, reader.size, self._salt, 0, 0
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
                        if kind == PUT and flags & REFERS:
                            value = window[split : split + value_length]
                            entry = LogEntry(its, expires_ms, kind, flags, key, value)
                            if not possible(entry):
                                raise misframed(segment, at)
                            row = ROW.pack(segment, at, length, its, expires_ms, flags)
                            rows[key] = row + references_in(entry) + PUT_BYTE
                        else:
                            rows[key] = row_of(segment, at, length, its, expires_ms, flags, kind)
                elif kind == CONTENT:
                    if key_length != CONTENT_KEY.size or value_length < CONTENT_HEAD.size:
                        raise misframed(segment, at)
                    if is_node(key):
                        raise misframed(segment, at)
                    known = contents.get(key)
                    if known is None or CONTENT_ROW.unpack_from(known)[3] <= its:
                        (raw_length,) = CONTENT_HEAD.unpack_from(window, split)
                        row = CONTENT_ROW.pack(segment, at, length, its, raw_length, 0, 0, length)
                        contents[key] = row
                elif kind in {PACK, NODE}:
                    value = window[split : split + value_length]
                    entry = LogEntry(its, 0, kind, flags, key, value)
                    self._take_contents(entry, (segment, at, length))
                elif kind == ORIGINS:
                    total -= length
                elif kind == RETIRE:
                    said = decode_retire(window[split : split + value_length])
                    if said is None:
                        raise misframed(segment, at)
                    self.retires.append(said)
                if its > highest:  # noqa: PLR1730  # a call would cost more
                    highest = its
                here += length
            if here != stop:
                raise misframed(segment, base + here)
            total += filled
            last, offset, chain, seq = offset, base + stop, checksum, number
            if len(rows) > CHUNK or len(contents) > CHUNK:
                self.flush()
        return Read(Tail(offset, last, chain, seq), total, highest)

    def _take_contents(self, entry: LogEntry, place: tuple[int, int, int]) -> None:
        if not possible(entry):
            raise misframed(*place[:2])
        contents = self._contents
        for key, row in content_rows(entry, place):
            known = contents.get(key)
            if known is None or CONTENT_ROW.unpack_from(known)[3] <= row.seq:
                contents[key] = encode_content_row(row)

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
            self._put_contents(txn)

    def _put_rows(self, txn: Txn, keys: list[bytes], live: Any) -> None:
        """Rows of ``keys``, which are sorted, into ``live`` or into the tombstones."""
        rows, tombstones = self._rows, self._index.tombstones
        for db, other, kind in ((live, tombstones, PUT), (tombstones, live, DELETE)):
            some = [key for key in keys if rows[key][-1] == kind]
            stale = self._stale(txn, some, db, other)
            txn.cursor(db).putmulti((key, rows[key][:-1]) for key in some if key not in stale)

    def _put_contents(self, txn: Txn) -> None:
        contents, db = self._contents, self._index.contents
        known = txn.cursor(db).getmulti(sorted(contents)) if txn.stat(db)["entries"] else ()
        stale = {
            key
            for key, data in known
            if CONTENT_ROW.unpack_from(data)[3] > CONTENT_ROW.unpack_from(contents[key])[3]
        }
        txn.cursor(db).putmulti(sorted((k, row) for k, row in contents.items() if k not in stale))

    def _stale(self, txn: Txn, keys: list[bytes], mine: Any, other: Any) -> set[bytes]:
        """Those of which the index has a newer row; the rest stand in ``other`` no more."""
        rows, stale = self._rows, set()
        for db in (mine, other):
            known = txn.cursor(db).getmulti(keys) if txn.stat(db)["entries"] else ()
            for key, data in known:
                if ROW.unpack_from(data)[3] > ROW.unpack_from(rows[key])[3]:
                    stale.add(key)
                elif db is other:
                    txn.delete(key, db=other)
        return stale


def misframed(segment: int, offset: int) -> CorruptionError:
    """The error of entries that are impossible though their batch checks."""
    return CorruptionError("the entries of a batch do not fill it", segment=segment, offset=offset)


# -- the second pass ----------------------------------------------------------------------------


class Counting:
    """Live bytes, references and expiries, over the rows that are live when all is applied.

    Args:
        index: which has its rows of keys and contents.
        files: the ids of the files that count.
    """

    def __init__(self, index: Index, files: Collection[int]) -> None:
        self._index = index
        self._files = files
        self._references: Counter[bytes] = Counter()
        self.live_bytes: Counter[int] = Counter()

    def run(self, txn: Txn) -> None:
        """Fill ``expiry`` and the references of ``contents``."""
        index = self._index
        txn.drop(index.expiry, delete=False)  # a checkpoint brings what expired long ago
        expiries: list[tuple[bytes, bytes]] = []
        for db in (index.keydir, index.system):
            self._count(txn, db, expiries)
        self._count_tombstones(txn)
        txn.cursor(index.expiry).putmulti(sorted(expiries))
        self._set_references(txn)

    def _count(self, txn: Txn, db: Any, expiries: list[tuple[bytes, bytes]]) -> None:
        live_bytes, unpack = self.live_bytes, ROW.unpack_from
        for key, data in txn.cursor(db):
            segment, _, length, _, expires_ms, flags = unpack(data)
            live_bytes[segment] += length
            if flags & REFERS:
                self._references.update(split_keys(content_keys_in(data)))
            if expires_ms:
                expiries.append((expiry_key(expires_ms, key), b""))
        for segment in live_bytes.keys() - set(self._files):
            raise CorruptionError("a record is missing from the log", segment=segment, offset=0)

    def _count_tombstones(self, txn: Txn) -> None:
        """Those of files that were retired since the checkpoint had nothing left to hide."""
        tombstones, gone = self._index.tombstones, []
        for key, data in txn.cursor(tombstones):
            segment, _, length, *_ = ROW.unpack_from(data)
            if segment in self._files:
                self.live_bytes[segment] += length
            else:
                gone.append(key)
        for key in gone:
            txn.delete(key, db=tombstones)

    def _count_nodes(self, txn: Txn) -> None:
        """What the nodes refer to that anything refers to."""
        references, contents = self._references, self._index.contents
        nodes = {key for key in references if is_node(key)}
        left = list(nodes)
        while left:
            row = txn.get(left.pop(), None, contents)
            children = [] if row is None else split_keys(decode_content_row(row).children)
            references.update(children)
            found = {key for key in children if is_node(key)} - nodes
            nodes |= found
            left += found

    def _set_references(self, txn: Txn) -> None:
        self._count_nodes(txn)
        contents = self._index.contents
        for key, data in list(txn.cursor(contents)):
            row = decode_content_row(data)
            count = self._references.pop(key, 0)
            if not count:
                txn.delete(key, db=contents)
            elif row.segment not in self._files:
                raise CorruptionError(f"the content {key[:16].hex()} is missing from the log")
            else:
                if count != row.references:
                    counted = row._replace(references=count)
                    txn.put(key, encode_content_row(counted), db=contents)
                self.live_bytes[row.segment] += row.share
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
    beside = engine.index_path.with_name("index.new")
    try:
        try:
            meta, named = _build(engine, beside, plan, trust, fresh=fresh, from_checkpoint=True)
        except CorruptionError:
            if not engine.checkpoint_path.exists():
                raise
            meta, named = _build(engine, beside, plan, trust, fresh=fresh, from_checkpoint=False)
            disk.unlink(engine.checkpoint_path)
    except BaseException:
        remove_index(disk, beside)
        raise
    disk.unlink(engine.trust_path)
    remove_index(disk, engine.index_path)
    disk.rename(beside, engine.index_path)
    disk.sync_directory(engine.path)
    write_trust(engine, meta, clean=False)
    remove_unnamed(disk, engine.log_path, named)


def remove_unnamed(disk: Disk, log: Path, named: Collection[int]) -> None:
    """Remove what a creation or a compaction left that was cut, and what was retired."""
    for segment, path in list_files(disk, log).items():
        if segment not in named:
            disk.unlink(path)
    for name in disk.names(log):
        if name.endswith(".tmp"):
            disk.unlink(log / name)


def _build(  # noqa: PLR0913
    engine: Engine,
    beside: Path,
    plan: Plan,
    trust: Trust | None,
    *,
    fresh: bool,
    from_checkpoint: bool,
) -> tuple[Meta, set[int]]:
    """A new index at ``beside``; where the log ends now, and which files belong to it."""
    disk = engine.disk
    remove_index(disk, beside)
    disk.make_directory(beside)
    if from_checkpoint:
        unpack_checkpoint(engine, beside)
    index = Index(beside, engine.options.index_map_bytes)
    try:
        return _fill(engine, index, plan, trust, fresh=fresh)
    except LmdbError as error:
        raise index.error(error, "building") from error
    finally:
        index.close()


def _fill(
    engine: Engine, index: Index, plan: Plan, trust: Trust | None, *, fresh: bool
) -> tuple[Meta, set[int]]:
    """Apply the log to an index that is empty or a checkpoint's."""
    known, rows, files, floor_seq = _look_before(engine, index, plan)
    replay = Replay(engine.disk, index, engine.salt)
    read = {plan.newest.segment: replay.file(plan.newest, None, _start(plan.newest, known))}
    tail = read[plan.newest.segment].tail
    _check_clean_end(engine, plan, tail, trust)
    floor_seq = max([floor_seq, *(retire.floor_seq for retire in replay.retires)])
    listed = plan.listed(files, replay.retires)
    for file, end in listed:
        if file.is_copy:
            if file.segment not in rows:
                read[file.segment] = replay.file(file, end)
        elif known is None or file.segment >= known.segment:
            read[file.segment] = replay.file(file, end, _start(file, known))
    replay.flush()
    ends = [*listed, (plan.newest, tail.offset)]
    growing(index, lambda: _account(index, ends, rows, read))
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
        put_floor(txn, floor_seq)
        if not fresh:
            meta, named = _begin_timeline(engine, txn, meta, ends)
        put_meta(txn, meta)
    return meta, named


class Before(NamedTuple):
    """What is known before the log is read: nothing, or what a checkpoint says.

    Attributes:
        meta: of the checkpoint.
        rows: its files.
        files: what counts beside the active segment where the reading of that begins.
        floor_seq: the floor there.
    """

    meta: Meta | None
    rows: dict[int, SegmentRow]
    files: tuple[ListedFile, ...]
    floor_seq: int


def _look_before(engine: Engine, index: Index, plan: Plan) -> Before:
    header = plan.header
    with index.reading() as txn:
        meta = get_meta(txn)
        if meta is None:
            return Before(None, {}, header.files, header.floor_seq)
        rows = dict(all_segments(txn))
        _check_history(meta, plan, rows)
        _check_place(engine, plan, meta)
        rows[meta.segment] = filled(rows[meta.segment], meta)
        if meta.segment < plan.newest.segment:
            return Before(meta, rows, header.files, header.floor_seq)
        # The reading begins in the active segment, behind what was retired in it before.
        files = [ListedFile(s, row.end) for s, row in rows.items() if s != meta.segment]
        return Before(meta, rows, tuple(files), get_floor(txn))


def _check_history(known: Meta, plan: Plan, rows: dict[int, SegmentRow]) -> None:
    """Refuse a checkpoint of another history, or of a place that the log does not have.

    And one that was taken in the middle of a compaction (a backup may), since its rows lead to a
    copy that the log may not name.
    """
    if known.segment not in rows or any(row.state != LISTED for row in rows.values()):
        raise CorruptionError("the checkpoint was taken while the log was being compacted")
    began = plan.header.timelines
    of_its_seq = [t.timeline for t in began if t.after_seq < known.seq][-1:]
    # A timeline in which nothing was committed is listed no more.
    at_a_border = any(t.after_seq == known.seq for t in began)
    if known.segment > plan.newest.segment or not (known.timeline in of_its_seq or at_a_border):
        raise CorruptionError("the checkpoint belongs to another history of the store")


def _check_place(engine: Engine, plan: Plan, known: Meta) -> None:
    """Refuse a checkpoint that stands where the log does not reach, or holds something else."""
    file = plan.there.get(known.segment)
    if file is None:
        return  # compacted since, so all of it was on disk
    chain: int | None = file.chain
    if known.last:
        fd = engine.disk.open(file.path)
        try:
            reader = SegmentReader(engine.disk, fd, file.segment, engine.salt)
            batch = reader.batch_at(known.last)
        finally:
            engine.disk.close(fd)
        chain = None if batch is None else batch.header.checksum
    if chain != known.chain:
        raise CorruptionError("the checkpoint stands where the log does not reach")


def _start(file: LogFile, known: Meta | None) -> Tail | None:
    """Where the reading of a segment begins: where the checkpoint stands, or at its first batch."""
    if known is None or file.segment != known.segment:
        return None
    return Tail(known.offset, known.last, known.chain, known.seq)


def _account(
    index: Index,
    ends: list[tuple[LogFile, int]],
    rows: dict[int, SegmentRow],
    read: dict[int, Read],
) -> None:
    """References, expiries, and a row for each file.

    Args:
        index: whose rows.
        ends: the files that count and where each ends.
        rows: what the checkpoint knew of some of them.
        read: what reading some of them, or their ends, gave.
    """
    counting = Counting(index, {file.segment for file, _ in ends})
    with index.writing() as txn:
        counting.run(txn)
        drop_retired(txn, all_retired(txn))
        for segment in dict(all_segments(txn)):
            txn.delete(segment_key(segment))
        for file, end in ends:
            segment, header = file.segment, file.header
            assert header is not None
            row = rows.get(segment)
            entry_bytes, last_seq = (0, 0) if row is None else (row.entry_bytes, row.last_seq)
            if segment in read:
                entry_bytes += read[segment].entry_bytes
                last_seq = max(last_seq, read[segment].last_seq)
            after_seq = header.judged_seq if file.is_copy else header.after_seq
            kind = FileKind.COPY if file.is_copy else FileKind.SEGMENT
            dead = entry_bytes - counting.live_bytes[segment]
            filled_to = (file.start, end, after_seq, last_seq, entry_bytes, dead)
            put_segment(txn, segment, SegmentRow(*filled_to, kind, LISTED))


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
    fd = engine.log_fd(meta.segment)
    disk.truncate(fd, meta.offset)
    disk.sync(fd)
    files = tuple(ListedFile(file.segment, end) for file, end in ends if end > file.start)
    for file, end in ends:
        if end == file.start:
            txn.delete(segment_key(file.segment))
    kept = tuple(t for t in engine.timelines if t.after_seq < meta.seq)
    engine.timelines = (*kept, Timeline(secrets.randbits(64), meta.seq))
    header = new_header(engine, meta, files, get_floor(txn))
    _, chain, start = create_file(disk, engine.log_path, header)
    put_segment(txn, header.segment, empty_row(start, meta.seq))
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
