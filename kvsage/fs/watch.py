"""Waiting until a file is written to, by whichever process, without looking at it again and again.

Linux tells through inotify, macOS through kqueue. Where neither is to be had, or the system gives
out no more descriptors (inotify has 128 for each user, unless told otherwise), a pause that grows
does instead.

A notice says only that the file may have changed: whoever waits looks for himself, and a notice may
come before the write that it tells of can be seen. So nobody waits without a limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IN_MODIFY = 0x2
IN_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
EVENT_BYTES = 4096
PAUSE_LEAST_S = 0.001
PAUSE_MOST_S = 0.25

_inherited: list[object] = []  # kept from closing a number that a forked child never had open


class _Notices(Protocol):
    """Where the notices of one file arrive."""

    def wait(self, timeout_s: float) -> bool:
        """Whether one came in time."""

    def wake(self) -> None:
        """End the wait of another thread, and every later one."""

    def close(self) -> None:
        """Give the descriptors back. Nobody is waiting any more."""

    def leave(self) -> None:
        """The same in a forked child, where another process goes on using them."""


class FileWatch:
    """Waits for writes to one file. One thread waits; any thread may close.

    What was written between two waits ends the second one at once, so look, then wait.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()  # guards: descriptors are closed once, and by nobody too soon
        self._waiting = self._closed = False
        self._pid = os.getpid()
        self._notices: _Notices | None = _notices(self._path)

    def wait(self, timeout_s: float) -> bool:
        """Wait for a write to the file.

        Args:
            timeout_s: how long at most.

        Returns:
            Whether the file may have been written to; False when the time is over or ``close`` was
            called.
        """
        if self._pid != os.getpid() and self._leave():
            self._begin()
        try:
            with self._lock:
                self._waiting = True
                notices = None if self._closed else self._notices
            return notices is not None and notices.wait(max(0.0, timeout_s)) and not self._closed
        finally:
            self._end(waiting=False)

    def close(self) -> None:
        """End the wait, on whichever thread it is, and all later ones."""
        if self._pid != os.getpid():
            self._leave()
            return
        self._closed = True
        self._end(waiting=self._waiting)

    def _end(self, *, waiting: bool) -> None:
        """Close what a closed watch does not need; while a thread waits, that thread does it."""
        with self._lock:
            self._waiting = waiting
            if not self._closed or self._notices is None:
                return
            if waiting:
                self._notices.wake()
            else:
                self._notices.close()
                self._notices = None

    def _leave(self) -> bool:
        """In a forked child: let go of what is shared with the parent; whether it was open."""
        was_open = not self._closed
        notices, self._notices, self._closed = self._notices, None, True
        if notices is not None:
            notices.leave()
        return was_open


def _notices(path: Path) -> _Notices:
    """The best that there is for a file."""
    kinds: tuple[Callable[[Path], _Notices], ...] = (_Inotify, _Kqueue)
    for kind in kinds:
        with contextlib.suppress(OSError, AttributeError):  # of the other system, or none left
            return kind(path)
    return _Pauses(path)


class _Pipe:
    """A pipe into which a thread says that another one need not wait any longer."""

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        self._ends = os.pipe()

    def fileno(self) -> int:
        """What to wait for."""
        return self._ends[0]

    def say(self) -> None:
        """Say it, once and for all: nobody reads it out."""
        os.write(self._ends[1], b"\0")

    def close(self) -> None:
        """Close both ends."""
        for fd in self._ends:
            os.close(fd)


def _checked(result: int) -> int:
    """What a call of the C library gave, where it did not fail."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "the file cannot be watched")
    return result


class _Inotify:
    """Linux."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = _checked(libc.inotify_init1(IN_FLAGS))
        try:
            _checked(libc.inotify_add_watch(self._fd, os.fsencode(path), IN_MODIFY))
            self._pipe = _Pipe()
        except OSError:
            os.close(self._fd)
            raise
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(self._pipe, select.POLLIN)

    def wait(self, timeout_s: float) -> bool:
        ready = [fd for fd, _ in self._poll.poll(timeout_s * 1000)]
        if self._fd not in ready:
            return False
        os.read(self._fd, EVENT_BYTES)
        return True

    def wake(self) -> None:
        self._pipe.say()

    def close(self) -> None:
        os.close(self._fd)
        self._pipe.close()

    leave = close


class _Kqueue:
    """macOS and the BSDs."""

    def __init__(self, path: Path) -> None:
        self._queue = select.kqueue()  # type: ignore[attr-defined,unused-ignore]
        self._file = -1
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._pipe = _Pipe()
            self._queue.control(self._wanted(), 0, 0)
        except OSError:
            self._queue.close()
            if self._file >= 0:
                os.close(self._file)
            raise

    def _wanted(self) -> list[object]:
        """Events for every write to the file, once each, and for the pipe."""
        return [
            select.kevent(  # type: ignore[attr-defined,unused-ignore]
                self._file,
                select.KQ_FILTER_VNODE,  # type: ignore[attr-defined,unused-ignore]
                select.KQ_EV_ADD | select.KQ_EV_CLEAR,  # type: ignore[attr-defined,unused-ignore]
                select.KQ_NOTE_WRITE | select.KQ_NOTE_EXTEND,  # type: ignore[attr-defined,unused-ignore]
            ),
            select.kevent(self._pipe, select.KQ_FILTER_READ, select.KQ_EV_ADD),  # type: ignore[attr-defined,unused-ignore]
        ]

    def wait(self, timeout_s: float) -> bool:
        events = self._queue.control(None, 2, timeout_s)
        return any(event.ident == self._file for event in events)

    def wake(self) -> None:
        self._pipe.say()

    def close(self) -> None:
        self._queue.close()
        os.close(self._file)
        self._pipe.close()

    def leave(self) -> None:
        _inherited.append(self._queue)
        os.close(self._file)
        self._pipe.close()


class _Pauses:
    """Any system: a look at the file's time, after pauses that grow while nothing happens."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._woken = threading.Event()
        self._seen = self._stamp()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def wait(self, timeout_s: float) -> bool:
        pause_s, end_s = PAUSE_LEAST_S, time.monotonic() + timeout_s
        while True:
            before, self._seen = self._seen, self._stamp()
            # Two writes within one tick of the file system's clock look like one, so the longest
            # pause ends the wait whatever the file's time says.
            if before != self._seen or pause_s > PAUSE_MOST_S:
                return True
            left_s = end_s - time.monotonic()
            if left_s <= 0 or self._woken.wait(min(pause_s, left_s)):
                return False
            pause_s *= 2

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self._woken.set()

    leave = close
