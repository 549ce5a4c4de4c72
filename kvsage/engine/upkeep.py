"""Upkeep: what keeps a store small and quick to open, on a thread of its own and on request.

Each process that has the store open looks now and then; who finds something to do takes the lock
``COMPACT`` and does it, one process at a time: sweep what expired, evict what a bounded store has
no room for, compact files full of garbage, write a checkpoint, unlink what was retired. Whatever a
process that died left half done is finished first.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from kvsage.engine import choosing, compaction, eviction, sweep
from kvsage.engine.checkpoint import read_trailer, write_checkpoint
from kvsage.engine.flusher import EngineThread
from kvsage.engine.pace import Pace, Stopped, asked_rest
from kvsage.engine.rotation import files_now, log_bytes
from kvsage.errors import (
    CorruptionError,
    StoreClosedError,
    StoreFullError,
    StoreLockedError,
)
from kvsage.fs.locks import LockFile, try_lock, unlock, wait_for_lock
from kvsage.index.env import LmdbError
from kvsage.index.keydir import StructError, damaged
from kvsage.index.segments import (
    JOINING,
    all_retired,
    all_segments,
    get_deletions_left,
)
from kvsage.log.format import FileKind
from kvsage.types import CompactionReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvsage.engine.compaction import Compacted
    from kvsage.engine.engine import Engine
    from kvsage.index.segments import SegmentRow

DELETIONS_LEAST = 10_000
CHECKPOINT_BYTES = 64 << 20  # of log since the last one, or twice the index if that is more
WAIT_MOST_S = 3600.0
REST = 20.0  # so many slices behind each slice of work, where nothing presses


class UpkeepLock:
    """One at a time: among this process's threads, then among processes.

    An interrupt may come between any two steps, so taking stands inside the ``try`` and letting go
    is said twice, as at the writer gate.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # A lock that knows its owner: letting go without having taken it lets go nobody else's.
        self._thread = threading.RLock()
        self._is_mine: Callable[[], bool] = self._thread._is_owned  # type: ignore[attr-defined]  # noqa: SLF001  # as the gate does
        self._file: LockFile | None = None

    @contextlib.contextmanager
    def now(self) -> Iterator[bool]:
        """Hold it for a ``with`` block, where nobody does yet; whether it is held."""
        if self._is_mine():
            yield False
            return
        try:
            try:
                yield self._thread.acquire(blocking=False) and try_lock(self._fd())
            finally:
                self._leave()
        finally:
            self._leave()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Hold it for a ``with`` block, once nobody else does.

        Raises:
            TransactionStateError: this thread has a transaction open.
            StoreLockedError: it was held all the time of ``lock_timeout``.
        """
        self._engine.gate.refuse_nested()
        if self._is_mine():
            raise StoreLockedError("another thread is compacting the store")
        deadline = time.monotonic() + self._timeout_s()
        try:
            try:
                self._wait()
                wait_for_lock(self._fd(), deadline, "another process is compacting the store")
                yield
            finally:
                self._leave()
        finally:
            self._leave()

    def drain(self) -> None:
        """Wait until no thread of this process holds it.

        Raises:
            StoreLockedError: one held it all the time of ``lock_timeout``, or this one does.
        """
        if self._is_mine():
            raise StoreLockedError("another thread is compacting the store")
        try:
            try:
                self._wait()
            finally:
                self._leave()
        finally:
            self._leave()

    def _timeout_s(self) -> float:
        return min(self._engine.options.lock_timeout, threading.TIMEOUT_MAX)

    def _wait(self) -> None:
        if not self._thread.acquire(timeout=self._timeout_s()):
            raise StoreLockedError("another thread is compacting the store")

    def _leave(self) -> None:
        if self._is_mine():
            if self._file is not None:
                unlock(self._file.fd)
            self._thread.release()

    def _fd(self) -> int:
        if self._file is None:
            self._file = LockFile(self._engine.disk, self._engine.path / "COMPACT")
        return self._file.fd

    def close(self) -> None:
        """Close the file, which lets go."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class Upkeep:
    """The upkeep of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._interval_s = engine.options.upkeep_interval
        self._ended = False
        self._woken = threading.Event()
        self._thread: EngineThread | None = None
        self.lock = UpkeepLock(engine)
        self.last_error: Exception | None = None
        self.damaged: set[int | None] = set()  # files that did not check when they were compacted

    # -- the thread -------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look, if nobody has begun yet and the options do not say never."""
        if not self.is_running() and self._interval_s <= WAIT_MOST_S:
            self._thread = EngineThread.begin(self._run, "kvsage-upkeep")

    def resume(self) -> None:
        """Go on after ``stop``: the store was not closed after all."""
        self._ended = False
        if not self._engine.options.readonly:
            self.start()

    def is_running(self) -> bool:
        """Whether this process looks after the store."""
        return self._thread is not None and self._thread.is_alive()

    def wake(self) -> None:
        """Look at once: a segment was sealed."""
        self._woken.set()

    def stop(self) -> None:
        """End, and wait for the step that is under way."""
        self._ended = True
        self._woken.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def close(self) -> None:
        """Let go of the lock's file."""
        self.lock.close()

    def _run(self) -> None:
        pace = Pace(self._rest, lambda: self._ended)
        while not self._ended:
            self._woken.wait(self._interval_s)
            self._woken.clear()
            try:
                self.look(pace)
            except Stopped:
                return
            except Exception as error:  # noqa: BLE001  # nobody else would hear of it
                # A full disk, a damaged file, a writer that holds the gate: the next look may find
                # it gone, and who reads the damage or writes is told there.
                self.last_error = error
                if self._engine.poisoned:
                    return

    def _rest(self) -> float:
        """So many slices of rest behind each slice of work, the fewer the more garbage there is."""
        return REST * max(0.0, 1.0 - self._engine.pressure) ** 2

    def look(self, pace: Pace) -> None:
        """Do what is due, if nobody else is at it."""
        engine = self._engine
        engine.weigh()
        if not self._is_due():
            return
        with self.lock.now() as held:
            if held:
                compaction.finish(engine, pace)
                self._sweep_and_evict(pace)
                while self._compact_next(pace):
                    engine.weigh()
                self._reclaim()
                if self._checkpoint_due():
                    self.checkpoint_held(pace)

    def _is_due(self) -> bool:
        engine = self._engine
        with engine.index.reading() as txn:
            if all_retired(txn) or any(row.state == JOINING for _, row in all_segments(txn)):
                return True
        if sweep.is_due(engine) or eviction.is_due(engine) or self._deletions_due():
            return True
        return bool(choosing.choose(engine, self.damaged)) or self._checkpoint_due()

    def _sweep_and_evict(self, pace: Pace) -> int:
        return sweep.sweep(self._engine, pace) + eviction.evict(self._engine, pace)

    def sweep(self) -> int:
        """Remove what has expired, and what a bounded store has no room for; how many keys."""
        if self._engine.reads is None:
            return sweep.sweep(self._engine)  # batch by batch, whoever else is at it
        with self._asked() as pace:
            compaction.finish(self._engine, pace)
            removed = self._sweep_and_evict(pace)
            self._reclaim()
            return removed

    # -- its parts --------------------------------------------------------------------------

    def compact_held(self, sources: list[int], pace: Pace) -> Compacted:
        """Compact some files and count it; the lock is held."""
        began_s = time.perf_counter()
        try:
            done = compaction.compact_files(self._engine, sources, pace)
        except CorruptionError as error:
            self.damaged |= {error.segment} & {*sources}  # the others go on without it
            raise
        took_s = time.perf_counter() - began_s
        reclaimed = done.bytes_before - done.bytes_after
        self._engine.metrics.compacted(done.bytes_after, reclaimed, took_s)
        self._reclaim()
        return done

    def _compact_next(self, pace: Pace) -> bool:
        """Compact what should be next; whether anything was to be done."""
        if self._deletions_due():
            return bool(self._compact_everything(pace))
        sources = choosing.choose(self._engine, self.damaged)
        if sources:
            self.compact_held(sources, pace)
        return bool(sources)

    def _deletions_due(self) -> bool:
        """Whether so many deletions are kept that it is worth compacting what they may hide.

        One record that is dead in an old file keeps every later deletion from being dropped, so
        without this a store with much coming and going would grow by its deletions for ever. Where
        a consumer of the changes still waits for them, the next time is when they have doubled.
        """
        index = self._engine.index
        with index.reading() as txn:
            kept, keys = (int(txn.stat(db)["entries"]) for db in (index.tombstones, index.keydir))
            left = get_deletions_left(txn)
        return kept > max(DELETIONS_LEAST, keys // 4, 2 * left)

    def _compact_everything(self, pace: Pace) -> list[Compacted]:
        """Compact every sealed file that holds garbage or deletions."""
        engine = self._engine
        if engine.checkpoint_path.exists():
            with contextlib.suppress(StoreFullError):
                self.checkpoint_held(pace)  # no deletion is kept for an old one's sake
        done: list[Compacted] = []
        failed: CorruptionError | None = None
        groups = choosing.everything(engine, self.damaged)
        for group in groups:
            try:
                done.append(self.compact_held(group, pace))
            except CorruptionError as error:
                failed = failed or error
                rest = [segment for segment in group if segment not in self.damaged]
                if 0 < len(rest) < len(group):
                    groups.append(rest)
        # Only now: after a pass that was cut short the next one is due at once.
        compaction.note_deletions_left(engine)
        if failed is not None:
            raise failed
        return done

    def _reclaim(self) -> int:
        return compaction.reclaim(self._engine)

    def _checkpoint_due(self) -> bool:
        """Whether the log has grown so far since the last checkpoint that reading it takes long."""
        engine = self._engine
        try:
            last = read_trailer(engine.disk, engine.checkpoint_path)
        except CorruptionError:
            last = None
        since_seq, index_bytes = (0, 0) if last is None else (last.seq, last.index_bytes)
        with engine.index.reading() as txn:
            _, rows = files_now(txn)
        grown = sum(_bytes_since(row, since_seq) for row in rows.values())
        return grown > max(CHECKPOINT_BYTES, 2 * index_bytes)

    def checkpoint_held(self, pace: Pace) -> None:
        """Write a checkpoint; the lock is held."""
        write_checkpoint(self._engine, pace)
        self._engine.metrics.checkpoints += 1

    def _refuse_ended(self) -> None:
        if self._ended:
            raise StoreClosedError("the store is closed")

    @contextlib.contextmanager
    def _asked(self, own_pace: Pace | None = None) -> Iterator[Pace]:
        """Work that somebody waits for, alone and at its own pace, its errors kvsage's own."""
        try:
            with self.lock.waiting():
                self._refuse_ended()
                yield own_pace or Pace(asked_rest, lambda: self._ended)
        except Stopped:
            raise StoreClosedError("the store was closed") from None
        except LmdbError as error:
            raise self._engine.index.error(error, "compacting") from error
        except StructError as error:
            raise damaged(error) from error

    def checkpoint(self) -> None:
        """Write a checkpoint now."""
        with self._asked() as pace:
            compaction.finish(self._engine, pace)  # a copy that is joining would make it useless
            self.checkpoint_held(pace)

    def compact(self, own_pace: Pace | None = None) -> CompactionReport:
        """Seal the active segment and compact every file that holds any garbage."""
        engine = self._engine
        with self._asked(own_pace) as pace:
            compaction.finish(engine, pace)
            self._sweep_and_evict(pace)
            self.damaged.clear()  # who asks is told
            before = self._log_bytes()
            done = []
            if dead := choosing.wholly_dead(engine):
                done.append(self.compact_held(dead, pace))
            compaction.seal(engine)
            done += self._compact_everything(pace)
            waiting = self._reclaim()
            if self._checkpoint_due():
                self.checkpoint_held(pace)
            return CompactionReport(
                files_compacted=sum(one.files for one in done),
                bytes_before=before,
                bytes_after=self._log_bytes(),
                bytes_copied=sum(one.bytes_after for one in done),
                deletions_dropped=sum(one.deletions_dropped for one in done),
                files_waiting=waiting,
            )

    def _log_bytes(self) -> int:
        with self._engine.index.reading() as txn:
            return log_bytes(files_now(txn)[1].values())


def _bytes_since(row: SegmentRow, seq: int) -> float:
    """About how much of a file a recovery reads that begins at a checkpoint with ``seq``."""
    size = row.end - row.start
    if row.after_seq >= seq:
        return size  # begun, or judged, after it
    if row.kind == FileKind.COPY or row.last_seq <= seq:
        return 0
    return size * (row.last_seq - seq) / (row.last_seq - row.after_seq)
