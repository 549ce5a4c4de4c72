"""Flushing what ``relaxed`` commits left unflushed, at least once in every sync interval.

Every process that has the store open looks, so that the tail of a writer that died reaches the disk
as well. A look costs one read of the index; a flush happens only when there is something to flush.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from kvsage.errors import KvsageError, StoreUnavailableError
from kvsage.index.segments import the_meta

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvsage.engine.engine import Engine


LOOK_S = 1.0  # between looks for what this process should let go of
ALMOST = 0.99  # a wait may end a moment before its time


class EngineThread(threading.Thread):
    """A thread of an engine, so that what runs on it can tell."""

    @classmethod
    def begin(cls, target: Callable[[], None], name: str) -> Self:
        """One that runs.

        Raises:
            StoreUnavailableError: the system gives this process no more threads.
        """
        thread = cls(target=target, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise StoreUnavailableError(f"starting the thread {name}: {error}") from error
        return thread


class Flusher:
    """Flushes the log of one engine, on a thread of its own and on request."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._interval_s = engine.options.sync_interval
        self._ended = False
        self._woken = threading.Event()  # at its end, or when the interval has become shorter
        self._thread: EngineThread | None = None
        self._lock = threading.RLock()  # guards: one flush at a time, and ``flushed_seq``
        self.flushed_seq = 0

    def start(self) -> None:
        """Begin to look."""
        self._ended = False
        self._thread = EngineThread.begin(self._run, "kvsage-flusher")

    def hasten(self, interval_s: float) -> None:
        """Look at least so often from now on; a handle with a shorter interval was opened."""
        if interval_s < self._interval_s:
            self._interval_s = interval_s
            self._woken.set()

    def stop(self) -> None:
        """End, and wait for a flush that is under way."""
        self._ended = True
        self._woken.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def _run(self) -> None:
        looked_s = flushed_s = time.monotonic()
        while True:
            self._woken.wait(min(self._interval_s, LOOK_S))
            self._woken.clear()
            if self._ended:
                return
            now_s = time.monotonic()
            try:
                if now_s - flushed_s >= self._interval_s * ALMOST:
                    flushed_s = now_s
                    self.flush()
                if now_s - looked_s >= LOOK_S:
                    looked_s = now_s
                    self._engine.index.reader_check()  # dead readers keep pages from being reused
                    self._engine.drop_removed()
            except KvsageError:
                # A failed flush has poisoned the store, and whoever writes next is told. Anything
                # else, a reader table that is full say, may be over at the next look.
                if self._engine.poisoned:
                    return

    def flush(self) -> None:
        """Bring every commit made so far onto the disk.

        Raises:
            StoreUnavailableError: the flush failed; the store is poisoned.
        """
        engine = self._engine
        with self._lock:
            with engine.index.reading() as txn:
                meta = the_meta(txn)
            if meta.seq <= max(meta.flushed_seq, self.flushed_seq):
                return
            try:
                # Older segments were flushed when they were sealed.
                engine.flush_log(engine.log_fd(meta.segment))
            except KvsageError:
                self._poison()
                raise
            self.flushed_seq = meta.seq

    def _poison(self) -> None:
        if self._engine.gate.is_mine():  # closing, or a sync inside a transaction
            self._engine.poison()
            return
        gate = self._engine.gate
        try:
            try:
                gate.enter()
                self._engine.poison()
            finally:
                gate.leave()
        finally:
            gate.leave()
