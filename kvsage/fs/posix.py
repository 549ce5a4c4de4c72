"""Files as a POSIX system keeps them, and the only place that flushes, renames or truncates.

Rules that the callers stand on:

- ``write`` writes everything or raises; a short write is continued, never reported.
- ``sync`` returns only when the file's bytes and its size are on disk.
- A new name is on disk only after ``sync_directory``.
- Descriptors are closed on exec, files are made 0600 and directories 0700.
- Foreign errors leave as kvsage's own: ENOSPC and EDQUOT as ``StoreFullError``, the rest as
  ``StoreUnavailableError``. ``FileNotFoundError`` and ``FileExistsError`` stay: callers ask for
  them.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from typing import TYPE_CHECKING, TypeAlias

from kvsage.errors import KvsageError, StoreFullError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Buffer: TypeAlias = "bytes | bytearray | memoryview"

FULL = {errno.ENOSPC, errno.EDQUOT}
HAS_FDATASYNC = hasattr(os, "fdatasync")  # macOS has none
ZEROS = bytes(1 << 18)
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


def translate(error: OSError, doing: str) -> KvsageError:
    """Kvsage's error for a system's error."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return StoreFullError(f"no space left while {doing}: {reason}")
    return StoreUnavailableError(f"{doing}: {reason}")


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Let system errors leave as kvsage's own."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        raise translate(error, doing) from error


class Disk:
    """The operations on files that the engine needs."""

    # -- files, by descriptor ---------------------------------------------------------------

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        """A descriptor; ``create`` makes the file where it is absent."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        with translated(f"opening {path}"):
            return os.open(path, flags | (os.O_CREAT if create else 0), 0o600)

    def close(self, fd: int) -> None:
        """Give the descriptor back."""
        os.close(fd)

    def size(self, fd: int) -> int:
        """Bytes in the file."""
        try:
            return os.fstat(fd).st_size
        except OSError as error:
            raise translate(error, "reading the log") from error

    pread = staticmethod(os.pread)
    """The bare system call, for the hot path: may be short, and raises ``OSError``."""

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """At most ``length`` bytes; fewer only where the file ends."""
        try:
            data = os.pread(fd, length, offset)
            while 0 < len(data) < length:
                more = os.pread(fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise translate(error, "reading the log") from error
        return data

    def write(self, fd: int, parts: Sequence[Buffer], offset: int) -> None:
        """All of ``parts``, one after the other, at ``offset``."""
        try:
            if len(parts) == 1:
                length = len(parts[0])
                written = os.pwrite(fd, parts[0], offset)
            else:
                length = sum(map(len, parts))
                written = os.pwritev(fd, parts, offset)
        except OSError as error:
            raise translate(error, "writing the log") from error
        if written != length:
            self._write_rest(fd, b"".join(parts), written, offset)

    def _write_rest(self, fd: int, data: bytes, written: int, offset: int) -> None:
        view = memoryview(data)
        with translated("writing the log"):
            while written < len(data):
                written += os.pwrite(fd, view[written:], offset + written)

    def map(self, fd: int, length: int) -> mmap.mmap:
        """The file's first bytes as memory that all processes share; they must be there."""
        with translated("mapping"):
            return mmap.mmap(fd, length)

    def zero(self, fd: int, offset: int, length: int) -> None:
        """Written zeros, so that a later flush of bytes there changes no metadata."""
        for start in range(offset, offset + length, len(ZEROS)):
            self.write(fd, [ZEROS[: offset + length - start]], start)

    def truncate(self, fd: int, length: int) -> None:
        """Cut the file."""
        with translated("truncating"):
            os.ftruncate(fd, length)

    def sync_data(self, fd: int) -> None:
        """The file's bytes, and its size where it grew, onto the disk."""
        try:
            (os.fdatasync if HAS_FDATASYNC else os.fsync)(fd)
        except OSError as error:
            raise translate(error, "flushing the log") from error

    def sync(self, fd: int) -> None:
        """The file with all its metadata onto the disk."""
        with translated("flushing"):
            os.fsync(fd)

    def fingerprint(self, fd: int) -> tuple[int, int, int, int]:
        """Device, inode, bytes and modification time in ns: of an unchanged file always the same.

        Given a second name it keeps them; written to, it does not.
        """
        with translated("looking at a file"):
            status = os.fstat(fd)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    # -- names ------------------------------------------------------------------------------

    def sync_directory(self, path: Path) -> None:
        """The names in a directory onto the disk."""
        with translated(f"flushing {path}"):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def make_directory(self, path: Path) -> None:
        """A directory that only its owner can enter."""
        with translated(f"making {path}"):
            path.mkdir(mode=0o700)

    def rename(self, source: Path, target: Path) -> None:
        """Atomically give ``source`` the name ``target``, in place of what has it."""
        with translated(f"renaming {source}"):
            source.replace(target)

    def exchange(self, one: Path, other: Path) -> bool:
        """Atomically give each the other's name; False where the system has no such thing."""
        import ctypes  # noqa: PLC0415  # of use to a restore only

        call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if call is None:
            return False
        names = os.fsencode(one), os.fsencode(other)
        if call(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
            return True
        number = ctypes.get_errno()
        if number in NO_EXCHANGE:
            return False
        error = OSError(number, os.strerror(number), str(one))
        raise translate(error, f"exchanging {one}") from error

    def link(self, source: Path, target: Path) -> None:
        """A second name for the same file."""
        with translated(f"linking {source}"):
            target.hardlink_to(source)

    def unlink(self, path: Path) -> None:
        """Remove a file; nothing where it is gone already."""
        with translated(f"removing {path}"):
            path.unlink(missing_ok=True)

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory; nothing where it is gone already."""
        with translated(f"removing {path}"), contextlib.suppress(FileNotFoundError):
            path.rmdir()

    def names(self, path: Path) -> list[str]:
        """The names in a directory, sorted."""
        with translated(f"listing {path}"):
            return sorted(entry.name for entry in path.iterdir())

    def replace(self, path: Path, data: bytes) -> None:
        """The file ``path`` holding exactly ``data``, durably, whole or not at all."""
        beside = path.with_name(path.name + ".tmp")
        fd = self.open(beside, write=True, create=True)
        try:
            self.truncate(fd, 0)
            self.write(fd, [data], 0)
            self.sync(fd)
        finally:
            self.close(fd)
        self.rename(beside, path)
        self.sync_directory(path.parent)

    def read_file(self, path: Path, limit: int) -> bytes:
        """The whole of a small file, at most ``limit`` bytes of it."""
        fd = self.open(path)
        try:
            return self.read(fd, limit, 0)
        finally:
            self.close(fd)


POSIX = Disk()
