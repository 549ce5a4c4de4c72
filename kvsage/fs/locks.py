"""Locks between processes, by ``flock``.

A ``flock`` belongs to the open file, so it goes when the last descriptor of that opening closes,
however the process dies. It cannot be upgraded without letting go, so nothing here tries.

``flock`` has no timeout and signals restart it, so whoever waits asks again and again, with a pause
that grows. ``WriterGate`` keeps that from starving anyone: one who waits holds ``NEXT``, and
a busy writer that comes back again and again must pass through ``NEXT`` at every eighth turn.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

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


class LockFile:
    """One file that exists to be locked."""

    __slots__ = ("_disk", "fd")

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self.fd = disk.open(path, write=True, create=True)

    def close(self) -> None:
        """Close, which lets go; a second close does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._disk.close(fd)


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
    """

    __slots__ = ("_gate", "_next", "_queued", "_thread", "_timeout_s", "_turns", "is_mine")

    def __init__(self, disk: Disk, directory: Path, timeout_s: float) -> None:
        self._gate = LockFile(disk, directory / "WRITE")
        try:
            self._next = LockFile(disk, directory / "NEXT")
        except BaseException:
            self._gate.close()
            raise
        # A lock that knows its owner: leaving without having entered lets go nobody else's turn.
        self._thread = threading.RLock()
        # Whether this thread is in, at least before the other threads of this process.
        self.is_mine: Callable[[], bool] = self._thread._is_owned  # type: ignore[attr-defined]  # noqa: SLF001  # the standard library's conditions ask the same way
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

    def enter(self) -> None:
        """Wait for the turn.

        Raises:
            StoreLockedError: it did not come. Each wait, for other threads, for NEXT and for WRITE,
                may take the whole timeout.
            StoreClosedError: another thread has closed the store.
        """
        if not self._thread.acquire(blocking=False):
            timeout = min(self._timeout_s, threading.TIMEOUT_MAX)
            if not self._thread.acquire(timeout=timeout):
                raise StoreLockedError(
                    f"another thread has been writing for more than {self._timeout_s:g} s"
                )
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
        self._wait(self._next.fd)
        self._wait(gate)
        unlock(self._next.fd)
        self._queued = False

    def _wait(self, fd: int) -> None:
        wait_for_lock(
            fd,
            time.monotonic() + self._timeout_s,
            f"another process has been writing for more than {self._timeout_s:g} s",
        )

    def leave(self) -> None:
        """Let the next one in; nothing where this thread is not in."""
        if self.is_mine():
            if self._gate.fd >= 0:
                if self._queued:
                    flock(self._next.fd, LOCK_UN)
                    self._queued = False
                flock(self._gate.fd, LOCK_UN)
            self._thread.release()

    def surrender(self) -> None:
        """Let the next one in for another thread, whose turn is over though it cannot say so.

        Only its owner can let go of the lock between threads, so there is a new one from here on;
        who waits for the old one runs into the timeout.
        """
        self._thread = threading.RLock()
        self.is_mine = self._thread._is_owned  # type: ignore[attr-defined]  # noqa: SLF001  # as above
        if self._gate.fd >= 0:
            unlock(self._next.fd)
            unlock(self._gate.fd)

    def close(self) -> None:
        """Close both files, which lets go."""
        self._gate.close()
        self._next.close()


def identity(path: Path) -> tuple[int, int]:
    """Device and inode: what a path leads to, whatever it is called."""
    status = path.stat()
    return status.st_dev, status.st_ino
