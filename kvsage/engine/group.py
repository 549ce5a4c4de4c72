"""Group commit: single operations of this process's threads that meet become one batch.

A thread that finds the writer gate free enters and commits by itself; nothing here costs it
anything. One that finds it taken puts its operation into the gate's queue and sleeps. Whoever
leaves the gate wakes the first of the queue, who enters as the leader, commits what is queued by
then as one batch with one flush, gives each its result, and leaves, which wakes the next one. While
one batch is on its way to the disk the next one gathers, so the batches grow with the load.

What a leader takes stays in the queue until it is done, and only who is inside the gate takes. So a
leader that is interrupted need only say what became of its batch, committed or void: what is not
done yet is the next leader's.
"""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING

from kvsage.errors import KvsageError
from kvsage.fs.locks import Waiter
from kvsage.index.segments import get_meta

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvsage.engine.commit import Committer, Operation
    from kvsage.engine.engine import Engine

OPERATIONS_MAX = 1024
BYTES_MAX = 1 << 20


class Queued(Waiter):
    """An operation that waits to be committed with others.

    Attributes:
        operation: what is to be done.
        full: whether it is to be flushed before it is done.
        taken: whether a leader is about to commit it; from then on it cannot be withdrawn.
        took_place: whether its requirement held, once it is done.
        error: why it failed, once it is done, or None.
    """

    __slots__ = ("error", "full", "operation", "taken", "took_place")
    alone = False

    def __init__(
        self,
        operation: Operation,
        deadline: float,
        *,
        full: bool,
        bell: threading.Lock | None = None,
    ) -> None:
        super().__init__(deadline, bell)
        self.operation = operation
        self.full = full
        self.taken = False
        self.took_place = False
        self.error: BaseException | None = None

    def take(self) -> bool:
        """Let nobody withdraw it from here on; False where somebody has, unnoticed."""
        self.taken = True
        return True

    def finish(self, *, took_place: bool = False, error: BaseException | None = None) -> None:
        """Tell who waits for it; a second time changes nothing, but wakes again."""
        if not self.done:
            self.took_place = took_place
            self.error = error
            self.done = True
        self.wake()


class Group:
    """The queued operations of one engine, and how a leader commits them."""

    def __init__(self, engine: Engine, committer: Committer) -> None:
        self._engine = engine
        self._committer = committer
        self._mutex = threading.Lock()  # guards that what is taken is not withdrawn
        # Of the leader inside the gate: what it took, and what it is committing as one batch.
        self._taken: list[Queued] = []
        self._batch: list[Queued] = []

    def commit(self, operation: Operation, *, full: bool) -> bool:
        """Commit the operation, together with others; whether its requirement held.

        Raises:
            StoreLockedError, StoreFullError, StoreUnavailableError, PoisonedError,
            ValueTooLargeError, StoreClosedError: it was not kept.
        """
        gate = self._engine.gate
        queued = Queued(operation, gate.deadline(), full=full)
        try:
            gate.waiting.append(queued)
            self.complete(queued)
        finally:
            self._withdraw(queued)
        if queued.error is not None:
            raise queued.error
        return queued.took_place

    def complete(self, queued: Queued) -> None:
        """See to it that an operation in the queue is done; where it is not, it is taken out.

        Raises:
            StoreLockedError, StoreClosedError, StoreUnavailableError: it was not done.
        """
        try:
            self._wait(queued)
        except KvsageError:
            self._withdraw(queued)
            if not queued.done:  # else another thread took it along meanwhile
                raise
        finally:
            self._withdraw(queued)

    def _wait(self, queued: Queued) -> None:
        """Until it is done, by this thread or another one.

        Raises:
            KvsageError: it is not done, because the gate could not be entered.
        """
        gate = self._engine.gate
        while True:
            if not gate.held:
                try:
                    try:
                        if gate.enter_for(queued):
                            self._lead()
                    finally:
                        gate.leave()
                finally:
                    gate.leave()
            if queued.done:
                return
            if not queued.sleep():
                self._withdraw(queued)
                if not queued.done:
                    raise gate.late()

    def _withdraw(self, queued: Queued) -> None:
        """Let it never happen, or wait until it has where a leader took it already."""
        while not queued.done:
            with self._mutex:
                if not queued.taken:
                    self._engine.gate.withdraw(queued)
                    return
            queued.sleep(endless=True)

    # -- inside the gate --------------------------------------------------------------------

    def _lead(self) -> None:
        try:
            try:
                self._serve()
            finally:
                self._settle()
        finally:
            self._settle()

    def _serve(self) -> None:
        with self._mutex:
            self._take()
        if not self._taken:
            return
        try:
            self._commit(self._taken)
        except Exception as error:  # noqa: BLE001  # whatever it was, it is told to each
            self._finish_interrupted()
            for queued in self._taken:
                if not queued.done:
                    if len(self._taken) == 1:
                        queued.finish(error=error)
                    else:
                        self._commit_alone(queued)

    def _take(self) -> None:
        """What is queued, up to the first operation that does not fit into one batch with it."""
        keys: set[bytes] = set()
        size = 0
        for queued in list(islice(self._engine.gate.waiting, OPERATIONS_MAX)):
            if not isinstance(queued, Queued):
                return
            if queued.done:
                continue
            operation = queued.operation
            content = operation.content
            size += len(operation.value) + (0 if content is None else content.room)
            if operation.key in keys or (keys and size > BYTES_MAX):
                return
            self._taken.append(queued)
            if queued.take():
                keys.add(operation.key)
            else:
                self._taken.pop()

    def _commit_alone(self, queued: Queued) -> None:
        try:
            self._commit([queued])
        except Exception as error:  # noqa: BLE001  # as in _serve
            self._finish_interrupted()
            if not queued.done:
                queued.finish(error=error)

    def _commit(self, batch: list[Queued]) -> None:
        committer = self._committer
        committer.last = None
        self._batch = batch
        operations = [queued.operation for queued in batch]
        full = any(queued.full for queued in batch)
        self._finish(committer.commit_inside(operations, full=full))

    def _finish(self, results: Sequence[bool]) -> None:
        for queued, took_place in zip(self._batch, results, strict=True):
            queued.finish(took_place=took_place)
        self._batch = []

    def _settle(self) -> None:
        """Finish what was committed, and let the next leader take what was not.

        In the ordinary case all is done, and this only clears up.
        """
        if self._batch:
            self._finish_interrupted()
        waiting = self._engine.gate.waiting
        while waiting and waiting[0].done:
            waiting.popleft()
        for queued in self._taken:
            if not queued.done:
                queued.taken = False
                queued.wake()
        self._taken = []

    def _finish_interrupted(self) -> None:
        """Finish the batch that an exception came out of, if it was committed after all."""
        last = self._committer.last
        if last is not None:
            seq, results = last
            try:
                with self._engine.index.reading() as txn:
                    meta = get_meta(txn)
            except KvsageError as error:
                for queued in self._batch:
                    queued.finish(error=error)
            else:
                if meta is not None and meta.seq >= seq:
                    self._finish(results)
        self._batch = []
