"""The LMDB environment, its named databases, and the only import of lmdb.

LMDB is never flushed on commit: a power cut may leave anything in it, so it is trusted only within
one boot or after a clean close (``trust.py``), and everything that it says about the log is checked
against the log when it is used.

Its traps, each met here:

- The map is reserved large, so that growing is rare; where another process has grown it, ``begin``
  follows. Growing ends this process's open read transactions.
- ``begin(write=True)`` cannot time out, so it comes only behind the writer gate.
- lock.mdb is made here with all its blocks, since LMDB would map it with holes; from then on nobody
  but LMDB opens it, because closing any descriptor of it drops the process's locks on it.
- After a fork the child lets the inherited environment lie (closing it would wipe the parent's
  reader rows) and opens its own.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import lmdb

from kvsage.errors import (
    CorruptionError,
    KvsageError,
    StoreClosedError,
    StoreFullError,
    StoreLockedError,
    StoreUnavailableError,
)
from kvsage.fs import POSIX
from kvsage.fs.posix import FULL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Txn: TypeAlias = "lmdb.Transaction[bytes]"
LmdbError: TypeAlias = lmdb.Error
MapFull: TypeAlias = lmdb.MapFullError

DAMAGED = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.PanicError,
    lmdb.CursorFullError,
    lmdb.PageFullError,
    lmdb.IncompatibleError,
)

MAP_BYTES_LEAST = 1 << 20
READERS_MAX = 2048
LOCK_BYTES = 33 * 4096  # LMDB: 64 for each reader and a little, here rounded up to pages
LIB_VERSION = 0  # LMDB 0.9; the other bundled one has another format
NAMES = ("keydir", "system", "tombstones", "expiry", "contents")

_inherited: list[object] = []  # environments of the parent process, kept from being closed


def translate(error: lmdb.Error, path: Path, doing: str) -> KvsageError:
    """Kvsage's error for one of LMDB's."""
    text = f"the index failed while {doing}: {error}"
    if isinstance(error, lmdb.MapFullError):
        return StoreFullError(f"{text} (no address space left for it)")
    if isinstance(error, lmdb.ReadersFullError):
        return StoreLockedError(f"more than {READERS_MAX} readers have the store open")
    if isinstance(error, lmdb.LockError):
        return StoreUnavailableError(
            f"{text}. Processes in different PID namespaces (containers) that happen to have the "
            "same process id cannot have one store open at once"
        )
    if isinstance(error, DAMAGED):
        return CorruptionError(f"{text}; repair builds it anew")
    reason = errno.errorcode.get(getattr(error, "code", None) or 0, "")
    out_of_space = "No space left" in str(error) or reason in {"ENOSPC", "EDQUOT"}
    if out_of_space or ("Input/output error" in str(error) and _is_full(path)):
        return StoreFullError(f"no space left while {doing} in the index")
    return StoreUnavailableError(text)


def _is_full(path: Path) -> bool:
    """LMDB reports a full disk as EIO; the file system knows better."""
    try:
        status = os.statvfs(path)
    except OSError as error:
        return error.errno in FULL
    return status.f_bavail * status.f_frsize < (1 << 20)


class Index:
    """An open index. ``begin`` is the hot path's way to a read transaction."""

    def __init__(self, path: Path, map_bytes: int) -> None:
        self.path = path
        self._growth = threading.Lock()  # guards the map's size
        self._allocate_locks(path / "lock.mdb")
        try:
            self.env = self._open(map_bytes)
            self.begin: Callable[..., Txn] = self.env.begin
            dbs = [self.env.open_db(name.encode()) for name in NAMES]
            self._look(dbs)
        except lmdb.Error as error:
            raise translate(error, path, "opening") from error
        self.keydir, self.system, self.tombstones, self.expiry, self.contents = dbs
        self.reader_check()

    def _look(self, dbs: list[Any]) -> None:
        """Walk to both ends of each database, so that an index overwritten in place is noticed."""
        with self.env.begin() as txn:
            for db in dbs:
                cursor = txn.cursor(db)
                if cursor.first():
                    cursor.last()

    @staticmethod
    def _allocate_locks(path: Path) -> None:
        """Give a new lock file its blocks: LMDB maps it sparse, and a full disk would be a SIGBUS.

        Only where none is there: nobody can have it open then, so closing it drops no lock.
        """
        if not path.exists():
            fd = POSIX.open(path, write=True, create=True)
            try:
                POSIX.zero(fd, 0, LOCK_BYTES)
            finally:
                POSIX.close(fd)

    def _open(self, map_bytes: int) -> lmdb.Environment:
        while True:
            try:
                return lmdb.open(
                    str(self.path),
                    map_size=map_bytes,
                    subdir=True,
                    metasync=False,
                    sync=False,
                    mode=0o600,
                    create=True,
                    readahead=True,
                    writemap=False,
                    meminit=False,
                    max_readers=READERS_MAX,
                    max_dbs=len(NAMES) + 3,
                    lock=True,
                    lib_version=LIB_VERSION,
                )
            except (MemoryError, lmdb.MemoryError):
                if map_bytes <= MAP_BYTES_LEAST:
                    raise
                map_bytes //= 2

    # -- transactions -----------------------------------------------------------------------

    def begin_again(self, error: lmdb.Error, *, write: bool = False) -> Txn:
        """A transaction after ``begin`` failed with ``error``: where the map grew, follow it."""
        if isinstance(error, lmdb.ReadersFullError):
            self.reader_check()
        elif not isinstance(error, (lmdb.MapResizedError, lmdb.InvalidParameterError)):
            raise self.error(error, "beginning a transaction") from error
        try:
            with self._growth:  # while another thread grows the map, nothing can begin
                if isinstance(error, lmdb.MapResizedError):
                    self.env.set_mapsize(0)
                return self.env.begin(write=write)
        except lmdb.Error as again:
            raise self.error(again, "following a grown index") from again

    def begin_read(self) -> Txn:
        """A read transaction: what is committed now, until it is aborted."""
        try:
            return self.begin()
        except lmdb.Error as error:
            return self.begin_again(error)

    def begin_write(self) -> Txn:
        """A write transaction. Only behind the writer gate, and ended on this thread."""
        try:
            return self.begin(write=True)
        except lmdb.Error as error:
            return self.begin_again(error, write=True)

    @contextmanager
    def reading(self) -> Iterator[Txn]:
        """A read transaction for a ``with`` block, LMDB's errors translated."""
        txn = self.begin_read()
        try:
            yield txn
        except lmdb.Error as error:
            raise self.error(error, "reading") from error
        finally:
            txn.abort()

    @contextmanager
    def writing(self) -> Iterator[Txn]:
        """A write transaction for a ``with`` block, committed at its end."""
        txn = self.begin_write()
        try:
            yield txn
            txn.commit()
        except lmdb.Error as error:
            raise self.error(error, "writing") from error
        finally:
            txn.abort()  # nothing after a commit

    def grow(self) -> None:
        """Double the map. Behind the writer gate, with no write transaction open."""
        try:
            with self._growth:
                self.env.set_mapsize(2 * self.env.info()["map_size"])
        except (lmdb.Error, MemoryError, OverflowError) as error:
            raise StoreFullError("no address space left for the index to grow") from error

    def error(self, error: lmdb.Error, doing: str) -> KvsageError:
        """Kvsage's error for one of LMDB's."""
        return translate(error, self.path, doing)

    # -- upkeep -----------------------------------------------------------------------------

    def reader_check(self) -> int:
        """Free the slots of readers that died; how many."""
        try:
            return self.env.reader_check()
        except lmdb.Error as error:
            raise self.error(error, "looking for dead readers") from error

    def readers(self) -> list[tuple[int, int | None]]:
        """Process id and transaction id (None: idle) of every reader slot in use."""
        try:
            lines = self.env.readers().splitlines()
        except lmdb.Error as error:
            raise self.error(error, "listing readers") from error
        rows = [line.split() for line in lines[1:] if line.strip()]
        return [(int(pid), None if txn == "-" else int(txn)) for pid, _, txn in rows]

    def copy(self, txn: Txn, fd: int) -> None:
        """A compact copy of what a read transaction sees, into a file from its beginning."""
        try:
            self.env.copyfd(fd, compact=True, txn=txn)
        except lmdb.Error as error:
            raise self.error(error, "copying") from error

    def last_transaction(self) -> int:
        """The number of the last committed transaction."""
        try:
            return int(self.env.info()["last_txnid"])
        except lmdb.Error as error:
            raise self.error(error, "looking for its last transaction") from error

    def sync(self) -> None:
        """Everything onto the disk."""
        try:
            self.env.sync(True)  # noqa: FBT003  # py-lmdb takes it by position
        except lmdb.Error as error:
            raise self.error(error, "flushing") from error

    def close(self) -> None:
        """Close; transactions that are still open end."""
        self.begin = _closed
        self.env.close()

    def abandon(self) -> None:
        """Let an environment inherited over a fork lie, neither used nor closed."""
        _inherited.append(self.env)
        self.begin = _closed
        _tell_processes_apart()


def _closed(*_: object, **__: object) -> Any:
    raise StoreClosedError("the store is closed")


def _tell_processes_apart() -> None:
    """Let py-lmdb open in a forked child what it believes to be open already.

    Its guard against opening a file twice in one process outlives a fork, though LMDB's locks do
    not. The guard's keys are made by one Python function; from here on they name the process too.
    """
    from lmdb import _envid  # noqa: PLC0415  # of use in a forked child only

    original = getattr(_envid.env_keys, "original", _envid.env_keys)

    def env_keys(path: str, subdir: bool) -> tuple[Any, ...]:  # noqa: FBT001  # its signature
        return tuple((*key, os.getpid()) for key in original(path, subdir))

    env_keys.original = original  # type: ignore[attr-defined]
    _envid.env_keys = env_keys
