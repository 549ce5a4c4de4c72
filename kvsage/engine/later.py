"""Operations whose caller does not wait: queued, committed with others, told through a future.

They stand in the gate's queue like those of threads that sleep, so any leader takes them along.
Where there is none, a thread of the engine leads for them: it is started with the first such
operation and ends when the store is closed. That thread also tells the futures, outside the gate,
so what a caller hangs on a future may write to the store again.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

from kvsage.engine.flusher import EngineThread
from kvsage.engine.group import Queued
from kvsage.errors import StoreClosedError
from kvsage.types import override

if TYPE_CHECKING:
    from kvsage.engine.commit import Operation
    from kvsage.engine.engine import Engine
    from kvsage.engine.group import Group


class Later(Queued):
    """One such operation; cancelling its future withdraws it until a leader has taken it."""

    __slots__ = ("_finished", "future")

    def __init__(
        self, operation: Operation, deadline: float, laters: Laters, *, full: bool
    ) -> None:
        super().__init__(operation, deadline, full=full, bell=laters.bell)
        self._finished = laters.finished
        self.future: Future[bool] = Future()

    @override
    def take(self) -> bool:
        self.taken = self.future.running() or self.future.set_running_or_notify_cancel()
        self.done = not self.taken
        return self.taken

    @override
    def finish(self, *, took_place: bool = False, error: BaseException | None = None) -> None:
        if not self.done:
            self.took_place = took_place
            self.error = error
            self._finished.append(self)
            self.done = True
        self.wake()

    def tell(self) -> None:
        """Let the future have the outcome; a second time changes nothing."""
        future = self.future
        if future.done() or not (future.running() or future.set_running_or_notify_cancel()):
            return
        if self.error is None:
            future.set_result(self.took_place)
        else:
            future.set_exception(self.error)


class Laters:
    """Those of one engine, and the thread that leads for them."""

    def __init__(self, engine: Engine, group: Group) -> None:
        self._engine = engine
        self._group = group
        self._lock = threading.Lock()  # guards the thread, and that nothing is queued after the end
        self._thread: EngineThread | None = None
        self._ended = False
        self.bell = threading.Lock()  # what all of them sleep on: their thread does it for them
        self.bell.acquire()
        self._queued: deque[Later] = deque()
        self.finished: deque[Later] = deque()

    def submit(self, operation: Operation, *, full: bool) -> Future[bool]:
        """Queue the operation; whether its requirement held, or why it failed, comes in the future.

        Raises:
            TransactionStateError: this thread has a transaction open.
            StoreClosedError: another thread has closed the store.
            StoreUnavailableError: the system gives this process no more threads.
        """
        gate = self._engine.gate
        gate.refuse_nested()
        later = Later(operation, gate.deadline(), self, full=full)
        with self._lock:
            if self._ended or self._engine.closed:
                raise StoreClosedError("the store is closed")
            if self._thread is None:
                self._thread = EngineThread.begin(self._run, "kvsage-committer")
            self._queued.append(later)
            gate.waiting.append(later)
        with contextlib.suppress(IndexError):  # done already
            # The thread sleeps where it found none, and watches the deadline of the first.
            if self._queued[0] is later or not gate.held:
                later.wake()
        return later.future

    def _run(self) -> None:
        while True:
            while self.finished:
                self.finished.popleft().tell()
            while self._queued and self._queued[0].done:
                self._queued.popleft()
            if self._queued:
                self._lead_for(self._queued[0])
            elif self.finished:
                continue
            elif self._ended:
                return
            else:
                self.bell.acquire()

    def _lead_for(self, later: Later) -> None:
        if self._engine.pressure:
            self._engine.ease()
        try:
            self._group.complete(later)
        except Exception as error:  # noqa: BLE001  # whatever it was, it is told
            later.finish(error=error)

    def stop(self) -> None:
        """Behind the closing of the gate: tell those who are left, and end the thread."""
        with self._lock:
            self._ended = True
        with contextlib.suppress(RuntimeError):  # rung already
            self.bell.release()
        if self._thread is not None:
            self._thread.join()
