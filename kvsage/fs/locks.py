"""Locks between processes, by ``flock``.

A ``flock`` belongs to the open file, so it goes when the last descriptor of that opening closes,
however the process dies. It cannot be upgraded without letting go, so nothing here tries.

``flock`` has no timeout and signals restart it, so whoever waits asks again and again, with a pause
that grows. ``WriterGate`` keeps that from starving anyone: one who waits holds ``NEXT``, and
a busy writer that comes back again and again must pass through ``NEXT`` at every eighth turn.

Threads of one process need not ask: they stand in a queue, and whoever leaves wakes the first.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakSet

from kvsage.errors import StoreClosedError, StoreLockedError, TransactionStateError
from kvsage.fs.posix import Disk, translate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

try:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
except ImportError as error:
    raise ImportError("kvsage needs Linux or macOS: this platform has no flock") from error

PAUSE_LEAST_S = 0.00005
PAUSE_MOST_S = 0.001
TURNS_BEFORE_NEXT = 8  # passing through NEXT each time would cost a lone writer 1.3 us a commit
EXCLUSIVE_NOW = LOCK_EX | LOCK_NB
SHARED_NOW = LOCK_SH | LOCK_NB


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock if nobody is in the way."""
    try:
        flock(fd, SHARED_NOW if shared else EXCLUSIVE_NOW)
    except BlockingIOError:
        return False
    except OSError as error:
        raise translate(error, "locking") from error
    return True


def unlock(fd: int) -> None:
    """Let go, whether it was held or not."""
    flock(fd, LOCK_UN)


def wait_for_lock(fd: int, deadline: float, what: str, *, shared: bool = False) -> None:
    """Take the lock by ``deadline`` (of ``time.monotonic``).

    Raises:
        StoreLockedError: it was held all that time.
    """
    pause = PAUSE_LEAST_S
    while not try_lock(fd, shared=shared):
        if time.monotonic() >= deadline:
            raise StoreLockedError(what)
        time.sleep(pause)
        pause = min(2 * pause, PAUSE_MOST_S)


_open_files: WeakSet[LockFile] = WeakSet()


def _after_fork_in_child() -> None:
    """Close what the child inherited: a lock lasts as long as anybody has its file open."""
    for file in list(_open_files):
        file.close()
    _open_files.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class LockFile:
    """One file that exists to be locked; made where it is not there.

    Args:
        disk: the door to it.
        path: where it lies.
        make: False for what is there already, a directory perhaps.
    """

    __slots__ = ("__weakref__", "_disk", "fd")

    def __init__(self, disk: Disk, path: Path, *, make: bool = True) -> None:
        self._disk = disk
        self.fd = disk.open(path, write=make, create=make)
        _open_files.add(self)

    def close(self) -> None:
        """Close, which lets go; a second close does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._disk.close(fd)


class Waiter:
    """One who stands in the queue of a gate, and sleeps until it is woken.

    Attributes:
        alone: whether it must be in by itself; only the first of the queue gets in so. Others may
            be served by whoever gets in.
        done: whether somebody has served it.
        deadline: of ``time.monotonic``, until when it waits.
    """

    __slots__ = ("_bell", "deadline", "done")
    alone = True

    def __init__(self, deadline: float, bell: threading.Lock | None = None) -> None:
        if bell is None:
            bell = threading.Lock()
            bell.acquire()
        self._bell = bell  # to sleep is to acquire it
        self.deadline = deadline
        self.done = False

    def wake(self) -> None:
        """Let it look again: at once, or when it is about to sleep the next time."""
        with contextlib.suppress(RuntimeError):  # woken already
            self._bell.release()

    def sleep(self, *, endless: bool = False) -> bool:
        """Sleep until woken; whether it was, before the deadline."""
        if endless:
            return self._bell.acquire()
        left_s = self.deadline - time.monotonic()
        return self._bell.acquire(timeout=min(max(left_s, 0), threading.TIMEOUT_MAX))


class WriterGate:
    """One writer at a time: among this process's threads, then among processes.

    An interrupt may come between any two steps, so entering stands inside the ``try``, and leaving
    is said twice: the second ``leave`` finishes what an interrupt kept the first one from::

        gate.refuse_nested()
        try:
            try:
                gate.enter()
                ...
            finally:
                gate.leave()
        finally:
            gate.leave()

    A thread that finds another one inside, or waiting, appends itself to ``waiting`` and tries once
    more; whoever leaves lets go first and looks at ``waiting`` then. So one of the two sees the
    other, and no wake-up is lost. One that gives up wakes the first too, since it may have been
    woken itself.

    Attributes:
        waiting: who waits among the threads of this process, the first one first.
        held: somebody is in who will look at ``waiting`` on leaving; who sees this after it has
            appended itself may sleep.
        is_mine: whether this thread is in, at least before the other threads of this process.
    """

    __slots__ = (
        "_gate",
        "_next",
        "_queued",
        "_thread",
        "_timeout_s",
        "_turns",
        "held",
        "is_mine",
        "waiting",
    )

    def __init__(self, disk: Disk, directory: Path, timeout_s: float) -> None:
        self._gate = LockFile(disk, directory / "WRITE")
        try:
            self._next = LockFile(disk, directory / "NEXT")
        except BaseException:
            self._gate.close()
            raise
        # A lock that knows its owner: leaving without having entered lets go nobody else's turn.
        self._thread = threading.RLock()
        self.is_mine: Callable[[], bool] = self._thread._is_owned  # type: ignore[attr-defined]  # noqa: SLF001  # the standard library's conditions ask the same way
        self.waiting: deque[Waiter] = deque()
        self.held = False
        self._timeout_s = timeout_s
        self._turns = 0
        self._queued = False  # NEXT may be held

    def refuse_nested(self) -> None:
        """Refuse a thread that is in already.

        Raises:
            TransactionStateError: this thread has a transaction open.
        """
        if self.is_mine():
            raise TransactionStateError(
                "this thread has a transaction open on the store: write through it, or end it first"
            )

    def deadline(self) -> float:
        """Until when one who comes now waits, of ``time.monotonic``."""
        return time.monotonic() + self._timeout_s

    def enter(self) -> None:
        """Wait for the turn; among threads, who came first is let in first.

        Raises:
            StoreLockedError: it did not come before the timeout.
            StoreClosedError: another thread has closed the store.
        """
        if self.enter_now():
            return
        waiter = Waiter(self.deadline())
        try:
            try:
                self.waiting.append(waiter)
                while not self._try(waiter):
                    if not waiter.sleep():
                        raise self.late()
            finally:
                self.withdraw(waiter)
        finally:
            self.withdraw(waiter)
        self._pass(waiter.deadline)

    def enter_now(self, patience_s: float = 0.0) -> bool:
        """Enter where no other thread of this process is in or waits; whether this one is in.

        Args:
            patience_s: how long the one who is in may still take.

        Raises:
            StoreLockedError, StoreClosedError: as ``enter``.
        """
        if self.waiting:
            return False
        if not self._thread.acquire(blocking=False):  # noqa: SIM102  # the common case is quick
            if not patience_s or not self._thread.acquire(timeout=patience_s):
                return False
        self.held = True
        self._pass(None)
        return True

    def enter_for(self, waiter: Waiter) -> bool:
        """Enter for one who stands in the queue; False where another thread is to have its turn.

        Raises:
            StoreLockedError, StoreClosedError: as ``enter``.
        """
        if not self._try(waiter):
            return False
        self._pass(waiter.deadline)
        return True

    def _try(self, waiter: Waiter) -> bool:
        try:
            first = self.waiting[0]
        except IndexError:  # served meanwhile
            first = waiter
        if first is not waiter and (first.alone or waiter.alone):
            return False
        if not self._thread.acquire(blocking=False):
            return False
        self.held = True
        return True

    def late(self) -> StoreLockedError:
        """The error of one who waited for other threads in vain."""
        return StoreLockedError(
            f"another thread has been writing for more than {self._timeout_s:g} s"
        )

    def withdraw(self, waiter: Waiter) -> None:
        """Take out one who need not wait any more; nothing where it is out already."""
        with contextlib.suppress(ValueError):
            self.waiting.remove(waiter)
        self.wake()

    def wake(self) -> None:
        """Wake the first who waits, unless somebody is in, who will."""
        waiting = self.waiting
        if waiting and not self.held:
            with contextlib.suppress(IndexError):  # it has left
                waiting[0].wake()

    def _pass(self, deadline: float | None) -> None:
        """Behind the threads, the processes; without a deadline the whole timeout counts."""
        gate = self._gate.fd
        if gate < 0:
            raise StoreClosedError("the store is closed")
        self._turns += 1
        if self._turns % TURNS_BEFORE_NEXT:
            try:
                flock(gate, EXCLUSIVE_NOW)
            except BlockingIOError:
                pass
            except OSError as error:
                raise translate(error, "locking") from error
            else:
                return
        self._queued = True
        if deadline is None:
            deadline = self.deadline()
        what = f"another process has been writing for more than {self._timeout_s:g} s"
        wait_for_lock(self._next.fd, deadline, what)
        wait_for_lock(gate, deadline, what)
        unlock(self._next.fd)
        self._queued = False

    def leave(self) -> None:
        """Let the next one in; where this thread is not in, only wake who could enter."""
        if self.is_mine():
            if self._gate.fd >= 0:
                if self._queued:
                    flock(self._next.fd, LOCK_UN)
                    self._queued = False
                flock(self._gate.fd, LOCK_UN)
            self.held = False
            self._thread.release()
        if self.waiting:
            self.wake()

    def surrender(self) -> None:
        """Let the next one in for another thread, whose turn is over though it cannot say so.

        Only its owner can let go of the lock between threads, so there is a new one from here on.
        """
        self._thread = threading.RLock()
        self.is_mine = self._thread._is_owned  # type: ignore[attr-defined]  # noqa: SLF001  # as above
        if self._gate.fd >= 0:
            unlock(self._next.fd)
            unlock(self._gate.fd)
        self.held = False
        self.wake()

    def close(self) -> None:
        """Close both files, which lets go."""
        self._gate.close()
        self._next.close()


def identity(path: Path) -> tuple[int, int]:
    """Device and inode: what a path leads to, whatever it is called."""
    status = path.stat()
    return status.st_dev, status.st_ino
