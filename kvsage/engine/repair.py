"""``repair``: give up what cannot be read, keep all the rest, build the index anew.

Only on request, and only by the one process that has the store open, because it loses what was
acknowledged. What it keeps:

- every batch that checks, and in a batch that does not, every entry that checks by itself;
- an entry with a single flipped bit: it is found by trying, since each entry bears a checksum.

A key is known to have lost its newest value when a trusted index knows a newer one than can be
read, when a damaged entry still bears a plausible header, or when its content is gone. Such a key
is deleted, so that no older value comes back in its place.

Order: the damaged files are linked into ``lost+found``; what could be read of each is written to a
copy; INDEX and the checkpoint go, so that nobody trusts an index over the log to come; then one new
segment, whose header lists the sound files and the copies, decides. A kill before that leaves all
as it was: the copies bear a timeline that no segment's header knows, and count for nothing.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import shutil
import time
from typing import TYPE_CHECKING, NamedTuple

from kvsage.engine import sharing
from kvsage.engine.rebuild import holds_batches
from kvsage.engine.references import content_rows
from kvsage.engine.salvage import (
    DATA_KINDS,
    Carried,
    Piece,
    Shelf,
    Stretch,
    grouped,
    is_text,
    pieces_of,
)
from kvsage.engine.trust import looks_trusted
from kvsage.errors import (
    CorruptionError,
    KvsageError,
    NotAStoreError,
    StoreLockedError,
)
from kvsage.fs.locks import LockFile, try_lock
from kvsage.index.env import Index, LmdbError, Txn
from kvsage.index.keydir import decode_row
from kvsage.index.segments import get_meta
from kvsage.index.trust import Trust, read_trust
from kvsage.log.format import (
    BATCH_BYTES,
    BY_USER,
    CHECKSUM_BYTES,
    CONTENT_KINDS,
    DELETE,
    ENTRY,
    ENTRY_BYTES,
    FORMAT,
    HEADER,
    IDENTITY,
    ORIGIN,
    ORIGINS,
    PUT,
    RETIRE,
    BatchHeader,
    FileKind,
    Identity,
    ListedFile,
    LogEntry,
    Retire,
    SegmentHeader,
    Timeline,
    decode_entry,
    decode_identity,
    decode_retire,
    encode_batch,
    encode_entry,
    encode_header,
    encode_identity,
    place,
    possible,
    references_in,
    split_entries,
    split_keys,
)
from kvsage.log.reader import Batch, SegmentReader
from kvsage.log.segment import LogFile, inspect, list_files, next_segment
from kvsage.log.writer import create_file
from kvsage.options import StoreOptions
from kvsage.types import Problem, RepairReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from kvsage.clock import Clock
    from kvsage.fs import Disk

COPY_BATCH_BYTES = 1 << 20
KEY_BYTES_MAX = 512
FAR = 1 << 64


class Newest(NamedTuple):
    """The newest entry of a key that could be read."""

    seq: int
    kind: int
    content_keys: bytes


def _keys_of(newest: Newest) -> set[bytes]:
    return set(split_keys(newest.content_keys))


class Scanned(NamedTuple):
    """What reading a log file gave.

    Attributes:
        file: which.
        end: where its readable part ends.
        carried: its entries, kept only where the file is damaged.
        damaged: whether it must be replaced by a copy.
    """

    file: LogFile
    end: int
    carried: list[Carried]
    damaged: bool


def repair(path: Path, disk: Disk, clock: Clock, *, dry_run: bool) -> RepairReport:
    """See ``LMDBStore.repair``."""
    if not path.is_dir():
        raise NotAStoreError(f"there is no store at {path}")
    if sharing.is_open(path):
        raise StoreLockedError("this process has the store open: close it before repairing")
    with contextlib.ExitStack() as undo:
        opening = LockFile(disk, path / "OPEN")
        undo.callback(opening.close)
        lock = LockFile(disk, path / "LOCK")
        undo.callback(lock.close)
        if not (try_lock(opening.fd) and try_lock(lock.fd)):
            raise StoreLockedError("another process has the store open: close it before repairing")
        run = Repair(path, disk, clock)
        run.scan()
        if not dry_run:
            run.write()
    if not dry_run:
        options = StoreOptions(upkeep_interval=math.inf)
        sharing.release(sharing.acquire(path, options, disk, clock, create=False))
    return run.report(dry_run=dry_run)


class Repair:
    """One run over one store."""

    def __init__(self, path: Path, disk: Disk, clock: Clock) -> None:
        self._path = path
        self._log = path / "log"
        self._disk = disk
        self._clock = clock
        self._problems: list[Problem] = []
        self._scanned: list[Scanned] = []
        self._newest: dict[bytes, Newest] = {}
        self._contents: dict[bytes, bytes] = {}  # what each refers to
        self._lost: dict[bytes, int] = {}  # keys that lost their newest value: its seq
        self._buried: dict[bytes, int] = {}  # keys whose deletion was lost: its seq
        self._retires: list[Retire] = []
        self._last_seq = self._last_n = 0  # of the entry carried last
        self._closed_in = 0  # the segment that was active at a clean close, or 0
        self._kept = self._bytes_lost = self._seq = self._chain = self._floor_seq = 0
        self._timelines: tuple[Timeline, ...] = ()
        self._saved_to: Path | None = None
        self._identity = self._identify()

    def report(self, *, dry_run: bool) -> RepairReport:
        """What was found, and done."""
        lost = sorted(key for key in self._lost if key[:1] != b"\xff")
        return RepairReport(
            tuple(self._problems),
            dry_run,
            rebuilt=True,
            entries_kept=self._kept,
            bytes_lost=self._bytes_lost,
            keys_lost=tuple(key.decode("utf-8", "backslashreplace") for key in lost),
            saved_to=None if self._saved_to is None else str(self._saved_to),
        )

    def _problem(
        self,
        message: str,
        segment: int | None = None,
        offset: int | None = None,
        length: int | None = None,
    ) -> None:
        self._problems.append(Problem(message, segment, offset, length))

    # -- who it is --------------------------------------------------------------------------

    def _identify(self) -> Identity:
        """The store's identity, from KVSAGE or, where that is damaged, from a segment's header."""
        if not self._log.is_dir():
            raise NotAStoreError(f"{self._path} holds no store")
        try:
            data = self._disk.read_file(self._path / "KVSAGE", IDENTITY.size + 1)
            return decode_identity(data)
        except (FileNotFoundError, CorruptionError) as error:
            self._problem(f"the file KVSAGE cannot be read: {error}")
        for path in list_files(self._disk, self._log).values():
            fixed = self._disk.read_file(path, HEADER.size)
            if len(fixed) < HEADER.size:
                continue
            uuid = HEADER.unpack(fixed)[4]
            for number, file in list_files(self._disk, self._log).items():
                header = inspect(self._disk, number, file, uuid).header
                if header is not None:
                    return Identity(FORMAT, uuid, header.created_ms)
        raise NotAStoreError(f"no file under {self._path} says what store it belongs to")

    # -- reading ----------------------------------------------------------------------------

    def scan(self) -> None:
        """Read everything, and judge."""
        uuid, salt = self._identity.uuid, self._identity.salt
        trust = read_trust(self._disk, self._path / "INDEX")
        listing = list_files(self._disk, self._log)
        files = {
            number: inspect(self._disk, number, path, uuid) for number, path in listing.items()
        }
        if trust is not None and trust.clean and trust.uuid == uuid:
            self._closed_in = trust.segment
        heads = [f.header for f in files.values() if f.header is not None and not f.is_copy]
        newest = max(heads, key=lambda header: header.segment, default=None)
        active = [file for file in files.values() if self._is_active(file, newest)]
        for file in active:
            self._scan_file(file, None, trust)
        ends, stood_for = Shelf(self._disk, salt, files).counted(newest, self._retires)
        for segment, other in sorted(stood_for.items()):
            self._problem(f"a file is missing or damaged; file {other} stands for it", segment, 0)
        for segment in sorted(ends.keys() - files.keys()):
            self._problem("a file of the log is missing", segment, 0)
        for segment in sorted(ends.keys() & files.keys()):
            self._scan_file(files[segment], ends[segment], trust)
        if newest is not None:
            self._timelines = newest.timelines
            self._seq = max(self._seq, newest.after_seq)
        self._miss(self._closed_in, files)
        if looks_trusted(self._path, trust, uuid):
            self._consult_index(files)
        self._set_floor(newest)
        self._judge()

    def _set_floor(self, newest: SegmentHeader | None) -> None:
        """With any loss, whoever follows the changes must begin anew."""
        floors = [retire.floor_seq for retire in self._retires]
        known = max([0 if newest is None else newest.floor_seq, *floors])
        self._floor_seq = self._seq if self._is_damaged() else known

    def _is_damaged(self) -> bool:
        return any(problem.segment is not None for problem in self._problems)

    def _miss(self, active: int, files: dict[int, LogFile]) -> None:
        """The active segment: no header lists it, so only an index, or INDEX, knows that it was."""
        file = files.get(active)
        if active and (file is None or file.header is None) and not self._is_damaged():
            self._problem("a file of the log is missing or its header is damaged", active, 0)

    def _is_active(self, file: LogFile, newest: SegmentHeader | None) -> bool:
        """Whether a file is the newest segment, or one behind it that lost its header."""
        if newest is not None and file.segment <= newest.segment:
            return file.segment == newest.segment
        if file.header is not None or file.is_copy:
            return False
        in_use = file.segment == self._closed_in
        return in_use or holds_batches(self._disk, file, self._identity.salt)

    def _scan_file(self, file: LogFile, end: int | None, trust: Trust | None) -> None:
        """Read one file up to its end, over whatever is damaged in it."""
        fd = self._disk.open(file.path)
        try:
            reader = SegmentReader(self._disk, fd, file.segment, self._identity.salt)
            carried: list[Carried] = []
            offset, chain = file.start, file.chain
            damaged, seq = file.header is None, self._first_seq(file)
            while True:
                for batch in reader.batches(offset, chain, seq, end):
                    carried += self._take(batch, file)
                    offset, chain, seq = batch.end, batch.header.checksum, batch.header.seq
                if end is not None and offset >= end:
                    break
                limit = self._limit(reader, file, (offset, seq), end, trust)
                if limit is None or limit <= offset:
                    break
                damaged = True
                behind = next((b for b in reader.later_batches(offset) if b.offset < limit), None)
                if behind is None:
                    carried += self._salvage(reader, file, (offset, limit), (seq, FAR))
                    offset = limit
                    break
                span = (offset, behind.offset)
                carried += self._salvage(reader, file, span, (seq, behind.header.seq))
                offset, chain, seq = behind.offset, behind.header.chain, behind.header.seq - 1
            self._note_end(file, chain, seq)
        finally:
            self._disk.close(fd)
        self._scanned.append(Scanned(file, offset, carried if damaged else [], damaged))

    def _first_seq(self, file: LogFile) -> int:
        """The number of the last commit before a file; 0 where its header is lost."""
        if file.header is not None:
            return file.header.after_seq
        self._problem("the header does not check", file.segment, 0)
        return 0

    def _note_end(self, file: LogFile, chain: int, seq: int) -> None:
        if not file.is_copy and seq >= self._seq:
            self._seq, self._chain = seq, chain

    def _limit(
        self,
        reader: SegmentReader,
        file: LogFile,
        at: tuple[int, int],
        end: int | None,
        trust: Trust | None,
    ) -> int | None:
        """Up to where the log is known to have been whole; None where nothing vouches for more."""
        offset, seq = at
        if end is not None:
            return min(end, reader.size)
        if file.header is None:
            return reader.size
        vouched = [reader.vouched_end(offset, seq) or 0]
        if trust is not None and trust.clean and trust.uuid == self._identity.uuid:
            vouched.append(trust.offset if trust.segment == file.segment else 0)
        limit = min(max(vouched), reader.size)
        return limit if limit > offset else None

    def _take(self, batch: Batch, file: LogFile) -> list[Carried]:
        """The entries of a batch that checks."""
        try:
            framed = [entry for _, entry in split_entries(batch.body, batch.header.entries)]
        except CorruptionError as error:
            self._problem(str(error), file.segment, batch.offset)
            return []
        return self._carry(Piece(framed, from_start=True), file, batch.header.time_ms)

    def _carry(self, piece: Piece, file: LogFile, time_ms: int) -> list[Carried]:
        """The entries that hold data, with which one of their commit they were and when that was.

        Args:
            piece: the entries of a batch in their order.
            file: where they stand.
            time_ms: when the batch was committed, or 0 where that is unknown.
        """
        carried = []
        origins: list[tuple[int, int]] = []
        for number, data in enumerate(piece.framed):
            entry = decode_entry(data)
            if entry is None:
                continue
            if entry.kind == ORIGINS and len(entry.value) % ORIGIN.size == 0:
                origins = list(ORIGIN.iter_unpack(entry.value))
            elif entry.kind == RETIRE:
                said = decode_retire(entry.value)
                self._retires += [] if said is None else [said]
            elif entry.kind in DATA_KINDS and possible(entry):
                # What is unknown is counted on, so that a file stays sorted by seq and n.
                n, when = self._last_n + 1 if entry.seq == self._last_seq else 0, time_ms
                if file.is_copy:
                    n, when = (origins[number - 1 : number] or [(n, 0)])[0]
                elif piece.from_start:
                    n = number
                self._last_seq, self._last_n = entry.seq, n
                carried.append(Carried(data, n, when))
                self._note(entry)
        return carried

    def _note(self, entry: LogEntry) -> None:
        self._kept += 1
        self._seq = max(self._seq, entry.seq)
        if entry.kind in CONTENT_KINDS:
            for key, row in content_rows(entry, (0, 0, ENTRY_BYTES)):
                self._contents[key] = row.children
            return
        known = self._newest.get(entry.key)
        if known is None or known.seq <= entry.seq:
            self._newest[entry.key] = Newest(entry.seq, entry.kind, references_in(entry))

    def _salvage(
        self, reader: SegmentReader, file: LogFile, span: tuple[int, int], seqs: tuple[int, int]
    ) -> list[Carried]:
        """The entries that check by themselves in a stretch that does not.

        Args:
            reader: of the file.
            file: which.
            span: where the stretch begins and ends.
            seqs: the numbers of the batches before and behind it.
        """
        offset, upto = span
        # Batches of a copy are numbered for themselves.
        after_seq, before_seq = (0, self._seq + 1) if file.is_copy else seqs
        data = reader.bytes_at(offset, upto - offset)
        pieces, broken = pieces_of(Stretch(data, after_seq, before_seq))
        for at in broken:
            self._suspect(data, at, (after_seq, before_seq))
        carried = [entry for piece in pieces for entry in self._carry(piece, file, 0)]
        read = sum(len(entry) for piece in pieces for entry in piece.framed)
        self._bytes_lost += max(0, upto - offset - BATCH_BYTES - read)
        self._problem(
            f"a batch does not check; {len(carried)} entries of it could be read",
            file.segment,
            offset,
            upto - offset,
        )
        return carried

    def _suspect(self, data: bytes, at: int, seqs: tuple[int, int]) -> None:
        """A damaged entry whose header and key still look like ones has lost that key's value."""
        _, seq, _, _, key_length, kind, _ = ENTRY.unpack_from(data, at)
        key = data[at + ENTRY_BYTES : at + ENTRY_BYTES + key_length]
        likely = kind in {PUT, DELETE} and seqs[0] < seq < seqs[1]
        if likely and 0 < len(key) <= KEY_BYTES_MAX and is_text(key):
            self._lost[key] = max(seq, self._lost.get(key, 0))

    # -- judging ----------------------------------------------------------------------------

    def _consult_index(self, files: dict[int, LogFile]) -> None:
        """What a trusted index knows, newer than what can be read."""
        try:
            index = Index(self._path / "index", StoreOptions().index_map_bytes)
        except KvsageError:
            return
        try:
            with index.reading() as txn:
                meta = get_meta(txn)
                if meta is not None:
                    self._miss(meta.segment, files)
                if self._is_damaged():
                    self._look_for_newer(index, txn)
        except (KvsageError, LmdbError) as error:
            self._problem(f"the index could not be read: {error}")
        finally:
            index.close()

    def _look_for_newer(self, index: Index, txn: Txn) -> None:
        for db, newer in (
            (index.keydir, self._lost),
            (index.system, self._lost),
            (index.tombstones, self._buried),
        ):
            for key, data in txn.cursor(db):
                seq, known = decode_row(data).seq, self._newest.get(key)
                if known is None or known.seq < seq:
                    newer[key] = max(seq, newer.get(key, 0))

    def _judge(self) -> None:
        """Which keys are gone: newer than anything that could be read, or without their content."""
        broken = self._broken()
        lost = {k for k, newest in self._newest.items() if _keys_of(newest) & broken}
        for key in lost:
            self._lost[key] = max(self._newest[key].seq, self._lost.get(key, 0))
        for key, seq in list(self._lost.items()):
            known = self._newest.get(key)
            if known is not None and key not in lost and known.seq >= seq:
                del self._lost[key]

    def _broken(self) -> set[bytes]:
        """Contents that are referred to, and could not be read or refer to such as could not."""
        parents: dict[bytes, list[bytes]] = {}
        for key, children in self._contents.items():
            for child in split_keys(children):
                parents.setdefault(child, []).append(key)
        wanted = parents.keys() | {k for newest in self._newest.values() for k in _keys_of(newest)}
        broken = wanted - self._contents.keys()
        left = list(broken)
        while left:
            found = set(parents.get(left.pop(), ())) - broken
            broken |= found
            left += found
        return broken

    # -- writing ----------------------------------------------------------------------------

    def write(self) -> None:
        """Replace what is damaged."""
        disk = self._disk
        damaged = [scanned for scanned in self._scanned if scanned.damaged]
        if not (self._path / "KVSAGE").exists() or self._problems:
            disk.replace(self._path / "KVSAGE", encode_identity(self._identity))
        if damaged:
            self._save_originals(damaged)
        sound = [scanned for scanned in self._scanned if not scanned.damaged]
        self._flush(sound)
        kept = tuple(t for t in self._timelines if t.after_seq < self._seq)
        self._timelines = (*kept, Timeline(secrets.randbits(64), self._seq))
        copies = [self._copy(scanned) for scanned in damaged if scanned.carried]
        self._remove_derived()
        whole = [ListedFile(scanned.file.segment, scanned.end) for scanned in sound]
        self._begin(tuple(sorted(whole + copies)))
        for scanned in damaged:
            disk.unlink(scanned.file.path)
        disk.sync_directory(self._log)

    def _flush(self, sound: list[Scanned]) -> None:
        """Onto the disk with what a header is about to list: its writer may have died first."""
        for scanned in sound:
            fd = self._disk.open(scanned.file.path)
            try:
                self._disk.sync(fd)
            finally:
                self._disk.close(fd)
        self._disk.sync_directory(self._log)

    def _save_originals(self, damaged: list[Scanned]) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        base = self._path / "lost+found"
        target = base / f"{stamp}-{secrets.token_hex(2)}"
        for directory in (base, target):
            if not directory.is_dir():
                self._disk.make_directory(directory)
        for scanned in damaged:
            name = target / scanned.file.path.name
            try:
                self._disk.link(scanned.file.path, name)
            except KvsageError:  # a file system without hard links
                shutil.copyfile(scanned.file.path, name)
        self._disk.sync_directory(target)
        self._disk.sync_directory(base)
        self._disk.sync_directory(self._path)
        self._saved_to = target

    def _remove_derived(self) -> None:
        """Whatever could vouch for an index over the log to come, and what was never finished."""
        disk = self._disk
        for directory in (self._path, self._log):
            for name in disk.names(directory):
                if name in {"INDEX", "index.checkpoint"} or name.endswith(".tmp"):
                    disk.unlink(directory / name)
            disk.sync_directory(directory)

    def _header(
        self, kind: FileKind, files: tuple[ListedFile, ...], judged_seq: int
    ) -> SegmentHeader:
        is_copy = kind == FileKind.COPY
        return SegmentHeader(
            kind,
            self._identity.uuid,
            next_segment(self._disk, self._log),
            secrets.randbits(64),
            self._timelines[-1].timeline,
            0 if is_copy else self._seq,
            0 if is_copy else self._chain,
            judged_seq,
            max(0, int(self._clock() * 1000)),
            files,
            () if is_copy else self._timelines,
        )

    def _copy(self, scanned: Scanned) -> ListedFile:
        """What could be read of a damaged file, in a file of its own.

        It holds what is dead as well, so it is dated at the moment when the file was judged, or
        begun: deletions since then are needed.
        """
        file = scanned.file
        judged_seq = 0
        if file.header is not None:
            judged_seq = file.header.judged_seq if file.is_copy else file.header.after_seq
        sources = (ListedFile(file.segment, scanned.end),)
        header = self._header(FileKind.COPY, sources, judged_seq)
        groups = grouped(scanned.carried, COPY_BATCH_BYTES)
        batches = self._batches(header, map(with_origins, groups))
        _, _, end = create_file(self._disk, self._log, header, batches)
        return ListedFile(header.segment, end)

    def _begin(self, files: tuple[ListedFile, ...]) -> None:
        """The new segment, which decides; in it the deletions of what was lost."""
        header = self._header(FileKind.SEGMENT, files, self._floor_seq)
        deletions = [
            encode_entry(LogEntry(self._seq + 1, 0, DELETE, BY_USER, key, b""))
            for key in sorted(self._lost | self._buried)
            if key in self._newest and self._newest[key].kind == PUT
        ]
        batches = self._batches(header, [(header.created_ms, deletions)] if deletions else [])
        create_file(self._disk, self._log, header, batches)

    def _batches(
        self, header: SegmentHeader, groups: Iterable[tuple[int, Sequence[bytes]]]
    ) -> bytes:
        """The batches behind a header; of each the time in ms and the framed entries."""
        encoded = encode_header(header)
        offset, chain = len(encoded), int.from_bytes(encoded[-CHECKSUM_BYTES:], "little")
        pieces: list[bytes] = []
        for seq, (time_ms, entries) in enumerate(groups, header.after_seq + 1):
            fields = BatchHeader(0, len(entries), 0, seq, header.after_seq, time_ms, chain)
            seed = place(self._identity.salt, header.segment, offset)
            chain, head, rest = encode_batch(fields, b"".join(entries), seed)
            pieces += (head, rest)
            offset += len(head) + len(rest)
        return b"".join(pieces)


def with_origins(entries: Sequence[Carried]) -> tuple[int, list[bytes]]:
    """A batch of a copy: when it was committed, and its entries behind their ORIGINS."""
    origins = b"".join([ORIGIN.pack(entry.n, entry.time_ms) for entry in entries])
    first = encode_entry(LogEntry(0, 0, ORIGINS, 0, b"", origins))
    return entries[-1].time_ms, [first, *(entry.framed for entry in entries)]
