"""The log read in the order of the commits, across all of its files, a bounded piece at a time.

A change is known by its seq and by which entry of its commit it was. In a segment both follow from
where it stands; a compacted copy keeps them. Each file is sorted by them, so merging the files
gives the order of the commits, whatever compaction has moved where.

A piece is read within one read transaction, which keeps the files it reads from being removed, and
which ends with the piece: a consumer that takes its time holds nothing. Where the reading stood in
each file is remembered for the next piece; a file that compaction put in the place of others
meanwhile is read from its beginning, up to what was passed already.

Of a key that changed again, an earlier change may be gone: compaction keeps the latest. A deletion
that it drops as well raises the floor, and whoever has not passed the floor by then must begin
anew.
"""

from __future__ import annotations

import heapq
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from kvsage.engine.rotation import files_now
from kvsage.errors import ChangesLostError, ConfigError, CorruptionError
from kvsage.index.keydir import SYSTEM
from kvsage.index.segments import get_floor, the_meta
from kvsage.log.format import (
    BATCH_BYTES,
    DELETE,
    ENTRY,
    ENTRY_BYTES,
    ENTRY_KEY_BYTES_MAX,
    ORIGINS,
    PUT,
    FileKind,
    decode_entry,
    entry_length,
    possible,
)
from kvsage.log.reader import SegmentReader, origins_in
from kvsage.log.segment import read_header
from kvsage.types import COMMIT_END, Position, shown

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from kvsage.engine.engine import Engine
    from kvsage.index.env import Txn
    from kvsage.index.segments import SegmentRow
    from kvsage.log.format import BatchHeader, LogEntry

CHANGES_MAX = 1000
BYTES_MAX = 4 << 20
ENTRIES_MAX = 20_000
READ_BYTES_MAX = 32 << 20
"""A piece ends when so many changes, or bytes of them, were found, or so much was looked at."""

WINDOW_BYTES = 64 << 10  # one for each file whose seqs overlap
LOOK_BYTES = ENTRY_BYTES + ENTRY_KEY_BYTES_MAX

Moment: TypeAlias = tuple[int, int]
"""A seq, and which entry of that commit."""

BEGINNING: Moment = (0, COMMIT_END)
CHANGES = frozenset((PUT, DELETE))
OWN = bytes((SYSTEM,))
SEQ_MAX = (1 << 64) - 1

RESYNC = (
    "to go on, read everything from a snapshot, and follow the changes from there: "
    "`with store.snapshot() as view: ...; store.changes(since=view.position)`"
)


class Place(NamedTuple):
    """Where the reading of a file stands.

    Attributes:
        offset: of a batch.
        chain: checksum of what stands before that batch.
        number: of the batch before it.
        entry: which entry of the batch comes next; past the first one, the batch was checked.
        at: where that entry stands; 0 where it is the first.
        before: the moment of the entry before it.
    """

    offset: int
    chain: int
    number: int
    entry: int
    at: int
    before: Moment


class Found(NamedTuple):
    """An entry of a file, in its turn.

    Attributes:
        moment: which one of all it is.
        time_ms: when it was committed.
        place: where it stands.
        size: its bytes.
        is_change: whether it changes a key of the caller's, under whatever prefix.
        entry: where it is a change under the prefix asked for, and was not passed yet.
    """

    moment: Moment
    time_ms: int
    place: Place
    size: int
    is_change: bool
    entry: LogEntry | None


class Stand(NamedTuple):
    """How far the reading of a log has come.

    Attributes:
        passed: the last moment that was passed.
        floor: up to which deletions that were dropped do not matter, because the reading began at
            the beginning when they had been; 0 where it began elsewhere.
        files: by file id, what can come next in it at the earliest, and where reading it stands;
            None for a file that was not opened yet.
    """

    passed: Moment
    floor: int = 0
    files: Mapping[int, tuple[Moment, Place | None]] = MappingProxyType({})


class Piece:
    """What was read in one go.

    Attributes:
        changes: the entries that are changes under the prefix, in order.
        passed: up to where the log was passed with them.
        saw_change: whether a change was passed, under whatever prefix.
        at_end: whether that was the log's end.
        stand: from where to read on.
    """

    __slots__ = (
        "_bytes",
        "_found_bytes",
        "_read",
        "at_end",
        "changes",
        "passed",
        "saw_change",
        "stand",
    )

    def __init__(self, stand: Stand) -> None:
        self.changes: list[Found] = []
        self.passed = stand.passed
        self.stand = stand
        self.at_end = self.saw_change = False
        self._found_bytes = self._read = self._bytes = 0

    def take(self, found: Found) -> None:
        """Pass one entry."""
        self._read += 1
        self._bytes += found.size
        if found.moment > self.passed:
            self.passed = found.moment
            self.saw_change = self.saw_change or found.is_change
            if found.entry is not None:
                self.changes.append(found)
                self._found_bytes += found.size

    def is_full(self) -> bool:
        """Whether it is enough for one go."""
        return (
            len(self.changes) >= CHANGES_MAX
            or self._found_bytes >= BYTES_MAX
            or self._read >= ENTRIES_MAX
            or self._bytes >= READ_BYTES_MAX
        )


def read_on(engine: Engine, txn: Txn, prefix: bytes, stand: Stand) -> Piece:
    """The next piece of the log.

    Args:
        engine: whose log.
        txn: a transaction on its index.
        prefix: of the keys whose changes are wanted.
        stand: how far the reading has come.

    Raises:
        ChangesLostError: that is beyond what the log holds, at either end.
        CorruptionError: a batch in the way does not check.
    """
    meta, rows = files_now(txn)
    floor = stand.floor if stand.passed[0] else get_floor(txn)
    refuse_lost(txn, stand.passed, floor)
    piece = Piece(stand)
    wanted = _Wanted(engine, prefix, stand.passed)
    files = []
    for segment, row in rows.items():
        if row.last_seq < stand.passed[0]:
            continue
        earliest = (0 if row.kind == FileKind.COPY else row.after_seq, 0)
        bound, place = stand.files.get(segment, (earliest, None))
        files.append(_File(wanted, Listed(segment, row), bound, place))
    if _merge(files, piece):
        piece.at_end = True
        piece.passed = max(piece.passed, (meta.seq, COMMIT_END))
    stands = {file.listed.segment: (file.bound, file.place) for file in files}
    piece.stand = Stand(piece.passed, floor, stands)
    return piece


def _merge(files: list[_File], piece: Piece) -> bool:
    """Fill a piece from files, in order; whether nothing is left in them.

    Raises:
        CorruptionError: the very next batch does not check.
    """
    began = piece.passed
    waiting = files.copy()
    heapq.heapify(waiting)
    while waiting and not piece.is_full():
        file = waiting[0]
        if file.found is not None:
            piece.take(file.found)
        try:
            more = file.step()
        except CorruptionError:
            if piece.passed == began:
                raise
            return False  # first what is before the damage; the next piece begins with it
        if more:
            heapq.heapreplace(waiting, file)
        else:
            heapq.heappop(waiting)
    return not waiting


class Listed(NamedTuple):
    """A file of the log that counts; of the active segment, as it is now."""

    segment: int
    row: SegmentRow


def whole_seq(passed: Moment) -> int:
    """The number of the last commit of which nothing is left behind ``passed``."""
    seq, n = passed
    return seq if n == COMMIT_END else max(0, seq - 1)


def refuse_lost(txn: Txn, passed: Moment, floor: int = 0) -> None:
    """Refuse to go on where something may be missing.

    Args:
        txn: a transaction on the index.
        passed: where to go on; at the beginning there is nothing to miss.
        floor: up to where deletions that were dropped do not matter.

    Raises:
        ChangesLostError: saying how to begin anew.
    """
    meta = the_meta(txn)
    if passed[0] > meta.seq:
        raise ChangesLostError(
            f"position {passed[0]} is beyond the end of the log, which is at {meta.seq}: what was "
            f"there is lost, or was another store's; {RESYNC}"
        )
    dropped = get_floor(txn)
    if passed[0] and whole_seq(passed) < dropped and floor < dropped:
        raise ChangesLostError(
            f"deletions up to {dropped} have been dropped, and position {passed[0]} is before "
            f"that; {RESYNC}"
        )


class _Wanted(NamedTuple):
    """What is looked for in every file."""

    engine: Engine
    prefix: bytes
    passed: Moment


class _File:
    """One file of the log in the merge: what comes next in it, and where the reading stands.

    ``bound`` is what can come next at the earliest, so that no file is opened before its turn.
    """

    __slots__ = ("_entries", "_wanted", "bound", "found", "listed", "place")

    def __init__(self, wanted: _Wanted, listed: Listed, bound: Moment, place: Place | None) -> None:
        self.listed = listed
        self.bound = bound
        self.place = place
        self.found: Found | None = None
        self._wanted = wanted
        self._entries = self._read()

    def __lt__(self, other: _File) -> bool:
        return self.bound < other.bound

    def step(self) -> bool:
        """Go on to the next entry; whether there is one."""
        self.found = found = next(self._entries, None)
        if found is None:
            return False
        self.bound, self.place = found.moment, found.place
        return True

    def _read(self) -> Iterator[Found]:
        """Every entry from where the reading stands."""
        (engine, _, passed), (segment, row) = self._wanted, self.listed
        fd = engine.log_fd(segment)
        reader = SegmentReader(engine.disk, fd, segment, engine.salt, WINDOW_BYTES)
        place = self.place or self._beginning(fd)
        if place.entry:  # of a batch that was checked before
            header = reader.header_at(place.offset)
            if header is None:
                raise self._damaged("a batch does not check", place.offset)
            place = yield from self._in_batch(reader, header, place)
        while place.offset < row.end:
            for batch in reader.batches(place.offset, place.chain, place.number, row.end):
                header = batch.header
                if row.kind == FileKind.SEGMENT and passed >= (header.seq, header.entries):
                    place = Place(batch.end, header.checksum, header.seq, 0, 0, place.before)
                else:
                    place = yield from self._in_batch(reader, header, place)
                self.place = place
            if place.offset < row.end:
                place = self._behind_damage(reader, place)
        self.place = place

    def _damaged(self, what: str, offset: int) -> CorruptionError:
        return CorruptionError(what, segment=self.listed.segment, offset=offset)

    def _beginning(self, fd: int) -> Place:
        engine = self._wanted.engine
        found = read_header(engine.disk, fd, engine.identity.uuid)
        if found is None or found[0].segment != self.listed.segment:
            raise self._damaged("the header does not check", 0)
        header, chain, start = found
        return Place(start, chain, header.after_seq, 0, 0, (0, 0))

    def _behind_damage(self, reader: SegmentReader, place: Place) -> Place:
        """The first batch behind one that does not check, where all in between was passed before.

        Raises:
            CorruptionError: something in between was not passed, or may not have been.
        """
        row, passed = self.listed.row, self._wanted.passed
        if row.kind == FileKind.SEGMENT:
            behind = next(reader.later_batches(place.offset), None)
            if behind is not None and behind.header.seq - 1 <= whole_seq(passed):
                header = behind.header
                return Place(behind.offset, header.chain, header.seq - 1, 0, 0, place.before)
        raise self._damaged("a batch does not check", place.offset)

    def _in_batch(  # noqa: C901, PLR0912, PLR0915  # see below
        self, reader: SegmentReader, header: BatchHeader, place: Place
    ) -> Generator[Found, None, Place]:
        """The entries of a batch that checks, from ``place`` on; then where the next batch is."""
        # Flat, since this is most of what a change costs.
        _, prefix, passed = self._wanted
        offset, chain, number, first, at, before = place
        body = offset + BATCH_BYTES
        at, end = at or body, body + header.length
        is_copy = self.listed.row.kind == FileKind.COPY
        origins: list[tuple[int, int]] = []
        if is_copy:
            length = entry_length(*reader.window_at(body, ENTRY_BYTES))
            origins = origins_in(reader.bytes_at(body, length), header.entries)
        time_ms = header.time_ms
        for index in range(first, header.entries):
            window, start = reader.window_at(at, LOOK_BYTES)
            if len(window) - start < ENTRY_BYTES:
                raise self._damaged("the entries of a batch do not fill it", offset)
            _, seq, _, size, key_length, kind, _ = ENTRY.unpack_from(window, start)
            length = ENTRY_BYTES + key_length + size
            if at + length > end:
                raise self._damaged("the entries of a batch do not fill it", offset)
            if not is_copy:
                moment = (header.seq, index)
            elif kind == ORIGINS:
                moment = before
            elif origins:
                n, time_ms = origins[index - 1]
                moment = (seq, n)
            else:
                moment = (seq, before[1] + 1 if seq == before[0] else 0)
            if moment < before:
                raise self._damaged("an entry is out of order", at)
            key_at = start + ENTRY_BYTES
            value_at = key_at + key_length
            is_change = kind in CHANGES and not window.startswith(OWN, key_at)
            entry = None
            if is_change and moment > passed and window.startswith(prefix, key_at, value_at):
                entry = decode_entry(reader.bytes_at(at, length))
                if entry is None or not possible(entry):
                    raise self._damaged("an entry does not check", at)
            here = Place(offset, chain, number, index, at, before)
            yield Found(moment, time_ms, here, length, is_change, entry)
            before = moment
            at += length
        return Place(end, header.checksum, header.seq, 0, 0, before)


def position_at(engine: Engine, txn: Txn) -> Position:
    """The end of the log, as a transaction on the index sees it."""
    meta = the_meta(txn)
    return position_of(engine, (meta.seq, COMMIT_END))


def position_of(engine: Engine, passed: Moment) -> Position:
    """A moment with the timeline that it belongs to in this store."""
    return Position(*passed, engine.timeline_of(passed[0]))


def moment_of(engine: Engine, since: Position | str | tuple[int, int] | int | None) -> Moment:
    """Where to go on, from whatever a caller may give.

    Raises:
        ChangesLostError: a position of another history.
        ConfigError: no position at all.
    """
    if since is None:
        return BEGINNING
    if isinstance(since, str):
        since = Position.parse(since)
    if isinstance(since, Position):
        (seq, n), timeline = since[:2], since.timeline
    else:
        (seq, n), timeline = (since, COMMIT_END) if isinstance(since, int) else _pair(since), None
    if not (_is_number(seq, SEQ_MAX) and _is_number(n, COMMIT_END)):
        raise ConfigError(f"since is a position, its text, (seq, n) or a seq, not {shown(since)}")
    if timeline not in {None, engine.timeline_of(seq)}:
        raise ChangesLostError(
            f"position {since} belongs to a history that this store does not have: another "
            f"store's, or one whose end was lost; {RESYNC}"
        )
    return (seq, n)


def _pair(since: Any) -> tuple[Any, Any]:
    try:
        seq, n = since
    except (TypeError, ValueError):
        return None, None
    return seq, n


def _is_number(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most
