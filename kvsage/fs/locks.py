"""Locks between processes, by ``flock``.

A ``flock`` belongs to the open file, so it goes when the last descriptor of that opening closes,
however the process dies. It cannot be upgraded without letting go, so nothing here tries.

``flock`` has no timeout and signals restart it, so whoever waits asks again and again, with a pause
that grows. ``WriterGate`` keeps that from starving anyone: one who waits holds ``NEXT``, and
a busy writer that comes back again and again must pass through ``NEXT`` every few times.
"""

from __future__ import annotations

import fcntl
import threading
import time
from typing import TYPE_CHECKING

from kvsage.errors import StoreClosedError, StoreLockedError, TransactionStateError
from kvsage.fs.posix import Disk, translate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAUSE_LEAST_S = 0.00005
PAUSE_MOST_S = 0.001
TURNS_BEFORE_NEXT = 8  # passing through NEXT each time would cost a lone writer 1.3 us a commit
EXCLUSIVE_NOW = fcntl.LOCK_EX | fcntl.LOCK_NB
SHARED_NOW = fcntl.LOCK_SH | fcntl.LOCK_NB


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock if nobody is in the way."""
    try:
        fcntl.flock(fd, SHARED_NOW if shared else EXCLUSIVE_NOW)
    except BlockingIOError:
        return False
    except OSError as error:
        raise translate(error, "locking") from error
    return True


def unlock(fd: int) -> None:
    """Let go, whether it was held or not."""
    fcntl.flock(fd, fcntl.LOCK_UN)


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

    ``refuse_nested``, then ``try: enter() ... finally: leave()``: an interrupt may come between any
    two steps, so ``enter`` stands inside the ``try``, and ``leave`` copes with a gate that was not,
    or not wholly, entered.
    """

    __slots__ = ("_gate", "_is_mine", "_next", "_thread", "_timeout_s", "_turns")

    def __init__(self, disk: Disk, directory: Path, timeout_s: float) -> None:
        self._gate = LockFile(disk, directory / "WRITE")
        self._next = LockFile(disk, directory / "NEXT")
        # A lock that knows its owner: leaving without having entered lets go nobody else's turn.
        self._thread = threading.RLock()
        self._is_mine: Callable[[], bool] = self._thread._is_owned  # type: ignore[attr-defined]  # noqa: SLF001  # the standard library's conditions ask the same way
        self._timeout_s = timeout_s
        self._turns = 0

    def refuse_nested(self) -> None:
        """Refuse a thread that is in already.

        Raises:
            TransactionStateError: this thread has a transaction open.
        """
        if self._is_mine():
            raise TransactionStateError(
                "this thread has a transaction open on the store: write through it, or end it first"
            )

    def enter(self) -> None:
        """Wait for the turn.

        Raises:
            StoreLockedError: it did not come within the timeout.
            StoreClosedError: another thread has closed the store.
        """
        if self._gate.fd < 0:
            raise StoreClosedError("the store is closed")
        if not self._thread.acquire(blocking=False):
            timeout = min(self._timeout_s, threading.TIMEOUT_MAX)
            if not self._thread.acquire(timeout=timeout):
                raise StoreLockedError(
                    f"another thread has been writing for more than {self._timeout_s:g} s"
                )
        self._turns += 1
        if self._turns % TURNS_BEFORE_NEXT and try_lock(self._gate.fd):
            return
        try:
            self._wait(self._next.fd)
            self._wait(self._gate.fd)
        finally:
            unlock(self._next.fd)

    def _wait(self, fd: int) -> None:
        wait_for_lock(
            fd,
            time.monotonic() + self._timeout_s,
            f"another process has been writing for more than {self._timeout_s:g} s",
        )

    def leave(self) -> None:
        """Let the next one in; nothing where this thread is not in."""
        if self._is_mine():
            try:
                if self._gate.fd >= 0:
                    unlock(self._gate.fd)
            finally:
                self._thread.release()

    def is_mine(self) -> bool:
        """Whether this thread is in, at least before the other threads of this process."""
        return self._is_mine()

    def close(self) -> None:
        """Close both files, which lets go."""
        self._gate.close()
        self._next.close()


def identity(path: Path) -> tuple[int, int]:
    """Device and inode: what a path leads to, whatever it is called."""
    status = path.stat()
    return status.st_dev, status.st_ino
