"""One open store: its files, locks and index. It opens, delegates, and closes.

A process has one engine for each store, however many handles it opens (``sharing.py``). After a
fork the child lets go of what it inherited without touching it (its descriptors are closed, never
unlocked; the index is abandoned, never closed) and opens the store anew on first use.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from typing import TYPE_CHECKING

from kvsage.engine.commit import Committer
from kvsage.engine.consumers import oldest_needed
from kvsage.engine.content import Mismatch, RawCache
from kvsage.engine.flusher import Flusher
from kvsage.engine.metrics import Metrics
from kvsage.engine.reads import Reads
from kvsage.engine.recovery import close_clean, open_index
from kvsage.engine.rotation import files_now, live_bytes, log_bytes
from kvsage.engine.upkeep import Upkeep
from kvsage.errors import (
    ConfigError,
    CorruptionError,
    KvsageError,
    NotAStoreError,
    StoreLockedError,
)
from kvsage.fs.locks import LockFile, WriterGate, try_lock, wait_for_lock
from kvsage.fs.mounts import refuse_network_filesystem
from kvsage.index.segments import (
    all_retired,
    all_segments,
    get_meta,
    put_meta,
    the_meta,
)
from kvsage.log.format import (
    BATCH_MAGIC_BYTES,
    CHECKSUM_BYTES,
    FORMAT,
    HEADER,
    IDENTITY,
    MAGIC_OFFSET,
    TIMELINE,
    FileKind,
    Identity,
    LogEntry,
    SegmentHeader,
    Timeline,
    decode_entry,
    decode_identity,
    encode_identity,
)
from kvsage.log.segment import LogFiles, inspect, list_files
from kvsage.log.writer import create_file
from kvsage.options import SEGMENT_BYTES_LEAST
from kvsage.types import shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from kvsage.clock import Clock
    from kvsage.fs import Disk
    from kvsage.index.env import Index, Txn
    from kvsage.options import StoreOptions

NAMES = frozenset(
    {
        "KVSAGE",
        "KVSAGE.tmp",
        "INDEX",
        "INDEX.tmp",
        "LOCK",
        "OPEN",
        "WRITE",
        "NEXT",
        "COMPACT",
        "READS",
        "index",
        "index.new",
        "index.checkpoint",
        "index.checkpoint.tmp",
        "log",
        "lost+found",
    }
)


FIRST_HEADER_BYTES = HEADER.size + TIMELINE.size + CHECKSUM_BYTES  # nothing listed, one timeline
FAR = 1 << 63
SMALL_SEGMENT_BYTES = 4 << 20
PRESSED_FROM, PRESSED_FULLY = 1.2, 1.4  # bytes of sealed files for each live one, and a segment
BOUND_FROM = 0.9  # of a bounded store's bytes_max
PRESSURE_MOST = 2.0
EASE_S = 0.00003  # what it costs compaction to keep up with one operation, and some more
EASE_MOST_S, EASED_OPERATIONS = 0.02, 400  # so long at once; for more operations in proportion
EASE_LEAST_S = 0.002  # a sleep of less takes far longer than it says
BARE_BYTES_MAX = 4096  # room for commits is made in far larger pieces
VERSION = re.compile(r"([0-9]{1,20})@[0-9a-f]{16}|pending-[0-9]{1,20}@[0-9a-f]{16}")


class Engine:
    """An open store. ``files``, ``index``, ``gate`` and ``committer`` do the work."""

    index: Index
    reading: tuple[Callable[[], Txn], Any, dict[int, int], Clock, Callable[[int, int, int], bytes]]

    def __init__(self, path: Path, options: StoreOptions, disk: Disk, clock: Clock) -> None:
        self.path = path
        self.options = options
        self.disk = disk
        self.clock = clock
        self.log_path = path / "log"
        self.index_path = path / "index"
        self.trust_path = path / "INDEX"
        self.checkpoint_path = path / "index.checkpoint"
        self.committer = Committer(self)
        self.flusher = Flusher(self)
        self.raw_cache = RawCache()
        self.metrics = Metrics()
        self.upkeep = Upkeep(self)
        self.reads: Reads | None = None  # of a bounded store
        self.segment_limit = options.segment_bytes_max
        self.pressure = 0.0  # 1: the log is about to take more than it may
        self._eased, self._owed_s = 0, 0.0  # operations that writers have paid for, and have not
        self.handles = 1  # counted by ``sharing``
        self._reopening = threading.Lock()  # guards that a forked child opens it once
        self.generation = 0  # a fork makes the next one; what belongs to an older one is dead
        self.identity: Identity
        self.salt = 0
        self.timelines: tuple[Timeline, ...] = ()
        self.used = False  # INDEX is known to say "not clean"
        self.inherited = False  # this is a forked child that has not used it yet
        self.closed = False
        self.poisoned = False
        self.poison_due = False  # a flush failed, and the index does not say so yet
        self.ready = False  # a commit of this process has found all in order
        self.room_end: dict[int, int] = {}  # up to where the active segment has room, as last seen

    # -- opening and closing ----------------------------------------------------------------

    def open(self, *, create: bool) -> None:
        """Open the store.

        Raises:
            NotAStoreError, FormatVersionError, UnsupportedFilesystemError, StoreLockedError,
            StoreUnavailableError, CorruptionError: it is not open.
        """
        if not self.options.network_filesystem:
            refuse_network_filesystem(self.path)
        self._refuse_foreign(create=create)
        with contextlib.ExitStack() as undo:
            gate = LockFile(self.disk, self.path / "OPEN")
            undo.callback(gate.close)
            wait_for_lock(
                gate.fd,
                time.monotonic() + self.options.lock_timeout,
                "another process is opening or rebuilding the store",
            )
            with contextlib.ExitStack() as failed:
                fresh = self._identify(create=create)
                self.files = LogFiles(self.disk, self.log_path)
                failed.callback(self.files.close)
                self.lock = LockFile(self.disk, self.path / "LOCK")
                failed.callback(self.lock.close)
                self.gate = WriterGate(self.disk, self.path, self.options.lock_timeout)
                failed.callback(self.gate.close)
                open_index(self, fresh=fresh)
                failed.callback(self.index.close)
                index, disk = self.index, self.disk
                self.reading = (index.begin, index.keydir, self.files.fds, self.clock, disk.pread)
                self._catch_up()
                self.weigh()
                if self.options.bytes_max is not None:
                    self.reads = Reads(self.disk, self.path / "READS")
                failed.callback(self.flusher.stop)
                self.flusher.start()
                if not self.options.readonly:
                    self.upkeep.start()
                failed.pop_all()

    def _refuse_foreign(self, *, create: bool) -> None:
        """Leave a directory that is no store, and will be none, as it is."""
        names = set(self.disk.names(self.path))
        if "KVSAGE" in names:
            return
        if not create:
            raise NotAStoreError(f"{self.path} holds no store")
        strange = names - NAMES
        if strange:
            raise NotAStoreError(
                f"{self.path} is not empty and holds no store (it has {min(strange)!r})"
            )

    def _identify(self, *, create: bool) -> bool:
        """Read KVSAGE, or create the store; whether it was created now."""
        try:
            data = self.disk.read_file(self.path / "KVSAGE", IDENTITY.size + 1)
        except FileNotFoundError:
            self._refuse_foreign(create=create)  # again, now that nobody else is opening
            self._create()
            return True
        self.identity = decode_identity(data)
        self.salt = self.identity.salt
        return False

    def _create(self) -> None:
        """Make the log's first segment and then KVSAGE, each durable before the next.

        A creation that was cut left no KVSAGE and no commit; it is begun again in place.
        """
        if not self.log_path.is_dir():
            self.disk.make_directory(self.log_path)
        self._refuse_lost_identity()
        now_ms = max(0, int(self.clock() * 1000))
        self.identity = Identity(FORMAT, secrets.token_bytes(16), now_ms)
        self.salt = self.identity.salt
        timeline = Timeline(secrets.randbits(64), 0)
        header = SegmentHeader(
            FileKind.SEGMENT,
            self.identity.uuid,
            1,
            secrets.randbits(64),
            timeline.timeline,
            0,
            0,
            0,
            now_ms,
            (),
            (timeline,),
        )
        create_file(self.disk, self.log_path, header)
        self.disk.replace(self.path / "KVSAGE", encode_identity(self.identity))
        self.disk.sync_directory(self.path.parent)

    def _refuse_lost_identity(self) -> None:
        """A log that is more than a first header is no creation cut short: never overwrite it."""
        files = list_files(self.disk, self.log_path)
        begun = {1} >= set(files) and all(_is_bare(self.disk, path) for path in files.values())
        if not begun or (self.path / "INDEX").exists():
            raise CorruptionError(f"{self.path} holds a log, but its file KVSAGE is missing")

    def _catch_up(self) -> None:
        """Apply and flush what a process that died left behind."""
        with self.index.reading() as txn:
            meta = the_meta(txn)
        fd = self.files.fd(meta.segment)
        header = inspect(
            self.disk, meta.segment, self._segment_path(meta.segment), self.identity.uuid
        ).header
        if header is not None:
            self.timelines = header.timelines
        at_tail = self.disk.read(fd, len(BATCH_MAGIC_BYTES), meta.offset + MAGIC_OFFSET)
        if at_tail == BATCH_MAGIC_BYTES:
            self.committer.commit((), full=True)
        self.flusher.flush()

    def _segment_path(self, segment: int) -> Path:
        return list_files(self.disk, self.log_path)[segment]

    def close(self) -> None:
        """Flush and close; the last process leaves a store that opens at once.

        Raises:
            TransactionStateError: this thread has a transaction open; nothing was closed.
            StoreLockedError: another thread has been writing all the time; nothing was closed.
            StoreUnavailableError: the last flush failed; the store is closed all the same.
        """
        if self.closed or self.inherited:
            return  # at exit already, or in a forked child that never used it
        self.gate.refuse_nested()
        self.upkeep.stop()
        try:
            try:
                self.upkeep.lock.drain()
                self.gate.enter()
            except BaseException as error:
                if not (isinstance(error, StoreLockedError) and self.gate.is_mine()):
                    self.upkeep.resume()  # it stays open
                    raise
            # No other thread is inside a commit now, nor will be.
            self.closed = True
            self.flusher.stop()
            try:
                self.flusher.flush()
                self._close_clean()
            finally:
                self._let_go()
        finally:
            self.gate.leave()
            if self.closed:
                self.committer.stop()

    def _close_clean(self) -> None:
        try:
            gate = LockFile(self.disk, self.path / "OPEN")
        except FileNotFoundError:
            return  # the store was removed
        try:
            if try_lock(gate.fd):  # whoever is opening will close clean, or the one after
                close_clean(self)
        except KvsageError:
            # The index stays "not clean", and the next opener meets whatever this was.
            if self.poison_due:
                self.poison()
        finally:
            gate.close()

    def _let_go(self) -> None:
        self.reading = (_away, *self.reading[1:])
        if self.reads is not None:
            self.reads.close()
        self.index.close()
        self.gate.close()
        self.upkeep.close()
        self.files.close()
        self.lock.close()
        self.raw_cache.clear()

    def is_gone(self) -> bool:
        """Whether the open store was removed, or another one made in its place."""
        if self.inherited:
            return False  # the next use opens what is there then
        try:
            there = (self.path / "LOCK").stat()
        except FileNotFoundError:
            return True
        return not os.path.samestat(there, os.fstat(self.lock.fd))

    # -- forking ----------------------------------------------------------------------------

    def forked(self) -> None:
        """In the child: let go of what was inherited; the next use opens the store anew."""
        self.generation += 1
        self.inherited = True
        self._reopening = threading.Lock()
        self.reading = (_away, *self.reading[1:])
        self.gate.close()
        self.lock.close()
        self.upkeep.close()
        self.files.abandon()
        self.index.abandon()
        self.ready = self.poisoned = False
        self.room_end = {}
        self.committer = Committer(self)
        self.flusher = Flusher(self)
        self.upkeep = Upkeep(self)
        self.raw_cache = RawCache()
        self.metrics = Metrics()
        self.pressure, self._eased, self._owed_s = 0.0, 0, 0.0

    def reopen(self) -> None:
        """In a forked child, before the first use: open what was let go of."""
        with self._reopening:
            if self.inherited:
                self.open(create=False)
                self.inherited = False

    # -- reading the log --------------------------------------------------------------------

    def log_fd(self, segment: int) -> int:
        """A descriptor of a file that counts.

        Raises:
            CorruptionError: the log has no such file.
        """
        try:
            return self.files.fd(segment)
        except FileNotFoundError as error:
            raise CorruptionError(
                "a file of the log is missing", segment=segment, offset=0
            ) from error

    def read_entry(self, key: bytes, row: tuple[int, ...]) -> LogEntry:
        """The entry that a row points to, checked to be whole and to be the one of ``key``.

        Raises:
            Mismatch: it is not, or its file is gone.
        """
        segment, offset, length, seq = row[:4]
        try:
            fd = self.files.fds.get(segment) or self.files.fd(segment)
            entry = decode_entry(self.disk.read(fd, length, offset))
        except FileNotFoundError:
            raise Mismatch(segment, offset) from None
        if entry is None or entry.key != key or entry.seq != seq:
            raise Mismatch(segment, offset)
        return entry

    # -- files, as the log grows and shrinks --------------------------------------------------

    def weigh(self) -> None:
        """See how much of the log is live, and let this process write accordingly.

        Where little is live segments are small, so that garbage is little too. And where writers
        are about to outrun the upkeep of this process they are slowed down.
        """
        with self.index.reading() as txn:
            meta, rows = files_now(txn)
        live, log = sum(map(live_bytes, rows.values())), log_bytes(rows.values())
        active = rows[meta.segment]
        sealed = log - (active.end - active.start)
        limit = min(self.options.segment_bytes_max, max(live // 4, SMALL_SEGMENT_BYTES))
        if self.options.bytes_max is not None:
            limit = min(limit, max(self.options.bytes_max // 16, SEGMENT_BYTES_LEAST))
        self.segment_limit = limit
        self.pressure = self._pressed(sealed, live, log) if self.upkeep.is_running() else 0.0
        if not self.pressure:
            self._eased, self._owed_s = self.metrics.operations, 0.0

    def _pressed(self, sealed: int, live: int, log: int) -> float:
        """How near the log is to taking more than it may: 0 far from it, 1 there, at most 2.

        Garbage in the active segment counts for nothing: nobody can compact it.
        """
        room = (PRESSED_FULLY - PRESSED_FROM) * live + self.segment_limit / 2
        pressure = (sealed - PRESSED_FROM * live - self.segment_limit) / room
        bytes_max = self.options.bytes_max
        if bytes_max is not None:
            pressure = max(pressure, (log / bytes_max - BOUND_FROM) / (1 - BOUND_FROM))
        return min(max(0.0, pressure), PRESSURE_MOST)

    def ease(self, operations: int = 1) -> None:
        """Before a write: wait a little where compaction has fallen behind.

        By what this process has written since; but never for long at once, unless what comes takes
        long as well. What is owed then is waited for by the writes to come.

        Args:
            operations: how many are to be written.
        """
        written, self._eased = self.metrics.operations - self._eased, self.metrics.operations
        self._owed_s += max(0, written) * EASE_S * self.pressure**2
        # Threads may come by at once; who comes between loses or wins a few milliseconds.
        pause_s = min(self._owed_s, EASE_MOST_S * max(1, operations / EASED_OPERATIONS))
        if pause_s >= EASE_LEAST_S:
            self._owed_s -= pause_s
            time.sleep(pause_s)

    def drop_removed(self) -> None:
        """Close what this process holds of files that were removed, so that their space is free."""
        with self.index.reading() as txn:
            meta = the_meta(txn)
            known = dict(all_segments(txn)).keys() | all_retired(txn).keys()
        # A file that is being made has an id above the active segment's, or a name.
        gone = [s for s in list(self.files.fds) if s not in known and s < meta.segment]
        if gone:
            there = list_files(self.disk, self.log_path)
            self.files.drop([segment for segment in gone if segment not in there])

    def deletes_needed_after(self, txn: Txn) -> int:
        """The seq after which somebody who follows the changes still needs every deletion."""
        needed_seq = oldest_needed(self, txn)
        return FAR if needed_seq is None else needed_seq

    # -- versions ---------------------------------------------------------------------------

    def version(self, seq: int) -> str:
        """The token of a key whose newest entry has ``seq``."""
        return f"{seq}@{self.timeline_of(seq):016x}"

    def seq_of(self, version: object) -> int:
        """The seq that a token stands for in this history; 0, which no entry has, for none.

        Raises:
            ConfigError: no store ever gave such a token.
        """
        match = VERSION.fullmatch(version) if isinstance(version, str) else None
        if match is None:
            raise ConfigError(f"{shown(version)} is not a version that entry() gave")
        seq = int(match[1] or 0)  # one that a transaction gave never became a state of the store
        return seq if version == self.version(seq) else 0

    def timeline_of(self, seq: int) -> int:
        """The timeline in which a commit was numbered; 0 for what is before the first."""
        for timeline, after_seq in reversed(self.timelines):
            if after_seq < seq:
                return timeline
        return 0

    # -- poison -----------------------------------------------------------------------------

    def flush_log(self, fd: int, *, whole: bool = False) -> None:
        """Bring a file of the log onto the disk, as every flush of one in use does.

        Not so: a file that has no name yet, a rebuild and a repair, which are alone and fail as a
        whole, and making a batch void, whose failure poisons too.

        A flush that failed is reported once, and the next one succeeds though the bytes may not be
        there. So nothing is built on it: this process refuses from now on, and every other one as
        soon as ``poison`` could be called, outside any index transaction.

        Args:
            fd: of the file.
            whole: with all its metadata, after it was cut.

        Raises:
            StoreUnavailableError, StoreFullError: it failed.
        """
        began_s = time.perf_counter()
        try:
            (self.disk.sync if whole else self.disk.sync_data)(fd)
        except KvsageError:
            self.poisoned, self.ready, self.poison_due = True, False, True
            raise
        self.metrics.flushed(time.perf_counter() - began_s)

    def poison(self) -> None:
        """Let no process write until an opener has written anew what may not be on disk."""
        self.poisoned, self.ready, self.poison_due = True, False, False
        with contextlib.suppress(KvsageError), self.index.writing() as txn:
            meta = get_meta(txn)
            if meta is not None:
                put_meta(txn, meta._replace(poisoned=1))


def _is_bare(disk: Disk, path: Path) -> bool:
    """Whether a first segment holds nothing behind its header, whatever state that is in."""
    fd = disk.open(path)
    try:
        data = disk.read(fd, BARE_BYTES_MAX + 1, 0)
        return len(data) <= BARE_BYTES_MAX and not any(data[FIRST_HEADER_BYTES:])
    finally:
        disk.close(fd)


def _away() -> Txn:
    """What begins a read where the store is closed, or not opened in this process yet."""
    raise Mismatch
