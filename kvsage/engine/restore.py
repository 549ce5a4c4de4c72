"""Backups read again: listing, checking, retention, and making a store out of one.

A restore builds the new store beside its place: files copied and compared with the manifest, KVSAGE
last. It is opened there, which builds its index and begins a new timeline, read whole, and closed.
Then one rename puts it into place; where a store is to be replaced, the two exchange their names,
and the old one is removed. A kill leaves the old store or the new one, and a directory with a name
of its own beside it, which the next restore there removes.

On a file system that cannot exchange names the old store is renamed first. A kill between these two
renames leaves both beside the place; the next restore puts the old one back.
"""

from __future__ import annotations

import contextlib
import math
import re
import secrets
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from kvsage.engine import sharing
from kvsage.engine.backup import make_directory
from kvsage.engine.catalogue import pool_of
from kvsage.engine.check import verify
from kvsage.engine.engine import NAMES
from kvsage.engine.examine import opened
from kvsage.engine.pace import UNPACED
from kvsage.engine.pieces import checksum_of, copy_bytes
from kvsage.engine.pool import resolved, told
from kvsage.errors import (
    BackupError,
    ConfigError,
    CorruptionError,
    KvsageError,
    NotAStoreError,
    StoreLockedError,
)
from kvsage.fs.locks import LockFile, identity, try_lock
from kvsage.log.format import encode_identity
from kvsage.log.segment import segment_path
from kvsage.options import StoreOptions
from kvsage.types import RestoreReport, shown

if TYPE_CHECKING:
    from pathlib import Path

    from kvsage.clock import Clock
    from kvsage.engine.manifest import Manifest, TakenCheckpoint, TakenFile
    from kvsage.engine.pool import Pool
    from kvsage.fs import Disk


def restore(  # noqa: PLR0913
    backup: Path,
    path: Path,
    disk: Disk,
    clock: Clock,
    *,
    overwrite: bool,
    name: str | None,
    at: datetime | None,
) -> RestoreReport:
    """See ``LMDBStore.restore``."""
    _refuse_unclear(name, at)
    with told(backup):
        pool, name = pool_of(disk, backup, name)
        with pool.reading(), contextlib.ExitStack() as undo:
            manifest = pool.choose(name, at)
            site = Site(disk, resolved(path))
            undo.callback(site.close)
            site.refuse_overlap(pool.path)
            site.begin()
            replaced = site.look(overwrite=overwrite)
            keys = Building(disk, clock, pool, manifest, site.building).build()
            site.swap(replaced=replaced)
        return RestoreReport(
            pool.shown(manifest),
            str(site.target),
            keys,
            len(manifest.pool_names),
            manifest.bytes,
            replaced,
        )


def _refuse_unclear(name: object, at: object) -> None:
    if at is not None and name is not None:
        raise ConfigError("give a name or an instant, not both")
    if not isinstance(name, str | None):
        raise ConfigError(f"the name of a backup is text, not {shown(name)}")
    if at is not None and (not isinstance(at, datetime) or at.tzinfo is None):
        raise ConfigError(f"at is a datetime with a time zone, not {shown(at)}")


class Site:
    """The place of the new store, and what lies beside it meanwhile."""

    def __init__(self, disk: Disk, target: Path) -> None:
        self._disk = disk
        self._undo = contextlib.ExitStack()
        self._mark = secrets.token_hex(8)
        if not target.name:
            raise NotAStoreError(f"{target} can hold no store")
        self.target = target
        self.building = target.with_name(f"{target.name}.restoring-{self._mark}")

    def close(self) -> None:
        """Let go of all locks, and remove what was not put into place, or what was replaced."""
        try:
            # What cannot be removed now is removed by the next restore.
            with contextlib.suppress(KvsageError, OSError):
                self._disk.sync_directory(self.target.parent)
                remove_tree(self._disk, self.building)
        finally:
            self._undo.close()

    def refuse_overlap(self, pool: Path) -> None:
        """Refuse to build into the backups, or around them."""
        if self.target == pool or pool in self.target.parents or self.target in pool.parents:
            raise BackupError(f"{self.target} and the backups lie one inside the other")

    def begin(self) -> None:
        """Make the directory to build in, and remove what a restore left that was cut.

        Raises:
            StoreLockedError: another restore to this place is under way.
        """
        disk, parent = self._disk, self.target.parent
        make_directory(disk, parent)
        disk.make_directory(self.building)
        if not self._locked(self.building):
            raise StoreLockedError(f"another process is restoring to {self.target}")
        name = re.escape(self.target.name)
        beside = re.compile(rf"{name}\.(restoring|replaced)-[0-9a-f]{{16}}")
        for other in disk.names(parent):
            match = beside.fullmatch(other)
            if match and other != self.building.name:
                self._clear(parent / other, is_old=match[1] == "replaced")

    def _clear(self, path: Path, *, is_old: bool) -> None:
        if not self._locked(path):
            raise StoreLockedError(f"another process is restoring to {self.target}")
        if is_old and not self.target.exists():
            self._disk.rename(path, self.target)
            self._disk.sync_directory(self.target.parent)
        else:
            remove_tree(self._disk, path)

    def _locked(self, directory: Path) -> bool:
        """Hold a directory until the end, if nobody else does and it is still there."""
        try:
            lock = LockFile(self._disk, directory, make=False)
        except FileNotFoundError:
            return False
        self._undo.callback(lock.close)
        if not try_lock(lock.fd):
            return False
        try:
            return identity(directory) == self._disk.fingerprint(lock.fd)[:2]
        except FileNotFoundError:
            return False

    def look(self, *, overwrite: bool) -> bool:
        """Whether there is a store to replace; nobody opens it from here on.

        Raises:
            BackupError: there is one, and nobody said that it may go.
            NotAStoreError: there is something else.
            StoreLockedError: it is open.
        """
        target = self.target
        if not target.exists():
            return False
        if not target.is_dir():
            raise NotAStoreError(f"{target} is not a directory")
        names = set(self._disk.names(target))
        if not names:
            return False
        strange = names - NAMES
        if strange or not names & {"KVSAGE", "log"}:
            raise NotAStoreError(
                f"{target} is not empty and holds no store (it has {min(strange or names)!r})"
            )
        if not overwrite:
            raise BackupError(
                f"there is a store at {target} already: say that it may be overwritten"
            )
        self._hold_store()
        return True

    def _hold_store(self) -> None:
        if sharing.is_open(self.target):
            raise StoreLockedError("this process has the store open: close it before replacing it")
        for name in ("OPEN", "LOCK"):
            lock = LockFile(self._disk, self.target / name)
            self._undo.callback(lock.close)
            if not try_lock(lock.fd):
                raise StoreLockedError(
                    "another process has the store open: close it before replacing it"
                )

    def swap(self, *, replaced: bool) -> None:
        """Put the new store into place. THE COMMIT POINT is the rename."""
        disk = self._disk
        if not replaced:
            disk.rename(self.building, self.target)
        elif not disk.exchange(self.building, self.target):
            self._swap_by_renaming()
        disk.sync_directory(self.target.parent)

    def _swap_by_renaming(self) -> None:
        disk, building = self._disk, self.building
        aside = self.target.with_name(f"{self.target.name}.replaced-{self._mark}")
        try:
            disk.rename(self.target, aside)
            disk.sync_directory(self.target.parent)
            disk.rename(building, self.target)
            self.building = aside
        except BaseException:
            if not self.target.exists():
                disk.rename(aside, self.target)
            raise


class Building(NamedTuple):
    """The new store while nobody knows it."""

    disk: Disk
    clock: Clock
    pool: Pool
    manifest: Manifest
    path: Path

    def build(self) -> int:
        """Make it, open it, read it whole and close it; how many keys it has.

        Raises:
            BackupError: the backup is damaged.
        """
        try:
            self._copy()
            return self._open()
        except (CorruptionError, FileNotFoundError) as error:
            raise BackupError(f"the backup {self.manifest.name} is damaged: {error}") from error

    def _copy(self) -> None:
        disk, log, manifest = self.disk, self.path / "log", self.manifest
        disk.make_directory(log)
        for file in manifest.files:
            target = segment_path(log, file.segment, file.kind)
            self._copy_file(file, target)
        disk.sync_directory(log)
        if manifest.checkpoint is not None:
            self._copy_file(manifest.checkpoint, self.path / "index.checkpoint")
        disk.replace(self.path / "KVSAGE", encode_identity(manifest.identity))

    def _copy_file(self, file: TakenFile | TakenCheckpoint, target: Path) -> None:
        """Copy a file, flush it, and check the copy."""
        disk = self.disk
        with opened(disk, self.pool.files / file.name) as source:
            fd = disk.open(target, write=True, create=True)
            try:
                copy_bytes(disk, source, fd, file.bytes, UNPACED)
                disk.sync(fd)
                if checksum_of(disk, fd, file.bytes, UNPACED) != file.checksum:
                    raise CorruptionError(f"files/{file.name} does not check")
            finally:
                disk.close(fd)

    def _open(self) -> int:
        options = StoreOptions(upkeep_interval=math.inf)
        engine = sharing.acquire(self.path, options, self.disk, self.clock, create=False)
        try:
            problems = verify(engine, deep=False).problems
            if problems:
                raise CorruptionError(str(problems[0]))
            index = engine.index
            with index.reading() as txn:
                return int(txn.stat(index.keydir)["entries"])
        finally:
            sharing.release(engine)


def remove_tree(disk: Disk, path: Path) -> None:
    """Remove a directory and all in it; of a link, no more than the link."""
    if path.is_symlink() or not path.is_dir():
        disk.unlink(path)
        return
    for name in disk.names(path):
        remove_tree(disk, path / name)
    disk.remove_directory(path)
