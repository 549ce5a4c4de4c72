"""A directory of backups: who may change it, what is in it, what may go.

::

    KVSAGE-BACKUPS       which store it is for; written before anything else
    LOCK                 held by whoever changes something, shared by whoever reads files
    files/               the pool: log files and checkpoints, shared by the backups that name them
    backups/             a manifest for each backup

A manifest is renamed into place when all that it names is on disk, and that makes the backup. What
no manifest names is left from a backup that was cut, and goes when the next one begins. A manifest
that cannot be read may name anything, so nothing is removed from the pool while there is one.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from kvsage.engine.manifest import (
    MANIFEST_BYTES_MAX,
    NAME,
    POOL_BYTES_MAX,
    POOL_NAME,
    Manifest,
    decode_manifest,
    decode_pool,
    encode_manifest,
    encode_pool,
)
from kvsage.errors import (
    BackupError,
    FormatVersionError,
    KvsageError,
    StoreLockedError,
    StoreUnavailableError,
)
from kvsage.fs.locks import LockFile, try_lock
from kvsage.types import Backup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvsage.fs import Disk

IDENTITY_NAME = "KVSAGE-BACKUPS"
SUFFIX = ".json"
BEGUN = frozenset({IDENTITY_NAME, IDENTITY_NAME + ".tmp", "LOCK", "files", "backups", "lost+found"})


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Let what the system says of a directory of backups leave as kvsage's own errors."""
    try:
        yield
    except KvsageError:
        raise
    except FileNotFoundError as error:
        raise BackupError(f"{error.filename or path} is missing") from error
    except OSError as error:
        raise StoreUnavailableError(f"{path}: {error.strerror}") from error


def resolved(path: Path) -> Path:
    """Where a path leads.

    Raises:
        StoreUnavailableError: round in a circle.
    """
    try:
        return path.resolve()
    except RuntimeError as error:
        raise StoreUnavailableError(f"{path}: too many levels of symbolic links") from error


class Listing(NamedTuple):
    """The backups of a directory, by number.

    Attributes:
        manifests: those that can be read.
        damaged: by name of the file, why the others cannot.
    """

    manifests: tuple[Manifest, ...]
    damaged: dict[str, KvsageError]


class Pool:
    """One directory of backups."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self.disk = disk
        self.path = path
        self.files = path / "files"
        self.manifests = path / "backups"

    # -- beginning --------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether it is a directory of backups."""
        return (self.path / IDENTITY_NAME).is_file()

    def refuse_absent(self) -> None:
        """Raise ``BackupError`` where it is none."""
        if not self.exists():
            raise BackupError(f"there are no backups at {self.path}")

    def begin(self, uuid: bytes) -> None:
        """Make the directory, or find that it is one for the store; under the lock.

        Raises:
            BackupError: it is another store's.
        """
        disk = self.disk
        try:
            data = disk.read_file(self.path / IDENTITY_NAME, POOL_BYTES_MAX + 1)
        except FileNotFoundError:
            self.refuse_foreign()
            disk.replace(self.path / IDENTITY_NAME, encode_pool(uuid))
            disk.sync_directory(self.path.parent)
        else:
            if decode_pool(data) != uuid:
                raise BackupError(f"{self.path} holds the backups of another store")
        for directory in (self.files, self.manifests):
            if not directory.is_dir():
                disk.make_directory(directory)
        disk.sync_directory(self.path)

    def refuse_foreign(self) -> None:
        """Leave a directory that holds something else as it is."""
        if self.exists() or not self.path.exists():
            return
        if not self.path.is_dir():
            raise BackupError(f"{self.path} is not a directory")
        strange = set(self.disk.names(self.path)) - BEGUN
        if strange:
            raise BackupError(
                f"{self.path} is not empty and holds no backups (it has {min(strange)!r})"
            )

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Be the only one who uses it.

        Raises:
            StoreLockedError: a backup, a restore or a check is under way.
        """
        lock = LockFile(self.disk, self.path / "LOCK")
        try:
            if not try_lock(lock.fd):
                raise StoreLockedError(f"another process is using the backups at {self.path}")
            yield
        finally:
            lock.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Keep others from removing files. What nobody may write to needs no lock.

        Raises:
            StoreLockedError: a backup is under way.
        """
        self.refuse_absent()
        try:
            lock = LockFile(self.disk, self.path / "LOCK", make=False)
        except FileNotFoundError:
            yield
            return
        try:
            if not try_lock(lock.fd, shared=True):
                raise StoreLockedError(f"another process is changing the backups at {self.path}")
            yield
        finally:
            lock.close()

    # -- what is in it ----------------------------------------------------------------------

    def listing(self) -> Listing:
        """The backups by number."""
        found: list[Manifest] = []
        damaged: dict[str, KvsageError] = {}
        try:
            names = self.disk.names(self.manifests)
        except FileNotFoundError:
            names = []  # begun, and cut
        for name in names:
            if name.endswith(SUFFIX) and NAME.fullmatch(name.removesuffix(SUFFIX)):
                try:
                    found.append(self.read(name))
                except FileNotFoundError:
                    continue  # removed a moment ago
                except (BackupError, FormatVersionError) as error:
                    damaged[name] = error
        found.sort(key=lambda manifest: manifest.number)
        return Listing(tuple(found), damaged)

    def read(self, name: str) -> Manifest:
        """The manifest in a file.

        Raises:
            BackupError: it is damaged, or has another's name.
            FormatVersionError: a later kvsage made it.
        """
        data = self.disk.read_file(self.manifests / name, MANIFEST_BYTES_MAX + 1)
        manifest = decode_manifest(data)
        if manifest.name + SUFFIX != name:
            raise BackupError(f"the manifest {name} is that of {manifest.name}")
        return manifest

    def choose(self, name: str | None, at: datetime | None) -> Manifest:
        """The backup that is called ``name``, or the newest begun by ``at``, or the newest.

        Raises:
            BackupError: there is none, or it cannot be read.
        """
        listing = self.listing()
        if name is not None:
            file = name.removesuffix(SUFFIX) + SUFFIX
            if file in listing.damaged:
                raise listing.damaged[file]
            chosen = [manifest for manifest in listing.manifests if manifest.name + SUFFIX == file]
        else:
            until_ms = float("inf") if at is None else at.timestamp() * 1000
            chosen = [m for m in listing.manifests if m.created_ms <= until_ms]
        if not chosen:
            which = f" called {name}" if name else f" of {at} or before" if at else ""
            raise BackupError(f"there is no backup{which} at {self.path}")
        return chosen[-1]

    def shown(self, manifest: Manifest) -> Backup:
        """A backup as a caller sees it."""
        return Backup(
            manifest.name,
            str(self.manifests / (manifest.name + SUFFIX)),
            manifest.number,
            _instant(manifest.created_ms),
            manifest.seq,
            manifest.kvsage,
            len(manifest.pool_names),
            manifest.bytes,
        )

    def shown_all(self) -> tuple[Backup, ...]:
        """All backups by number, damaged ones too."""
        listing = self.listing()
        shown = [self.shown(manifest) for manifest in listing.manifests]
        for file, error in listing.damaged.items():
            name, path = file.removesuffix(SUFFIX), str(self.manifests / file)
            number = _number(name)
            shown.append(Backup(name, path, number, _instant(0), 0, "", 0, 0, str(error)))
        return tuple(sorted(shown, key=lambda backup: backup.number))

    # -- changing it ------------------------------------------------------------------------

    def next_number(self, listing: Listing) -> int:
        """A number above all that are there."""
        names = [manifest.name for manifest in listing.manifests] + list(listing.damaged)
        return max(map(_number, names), default=0) + 1

    def commit(self, manifest: Manifest) -> None:
        """THE COMMIT POINT: all that it names is on disk, and now it is."""
        self.disk.sync_directory(self.files)
        self.disk.replace(self.manifests / (manifest.name + SUFFIX), encode_manifest(manifest))

    def clean(self) -> None:
        """Remove what a backup left that was cut, and what no backup needs any more."""
        disk, listing = self.disk, self.listing()
        named = {name for manifest in listing.manifests for name in manifest.pool_names}
        for name in disk.names(self.files):
            unneeded = POOL_NAME.fullmatch(name) and name not in named and not listing.damaged
            if unneeded or name.endswith(".tmp"):
                disk.unlink(self.files / name)
        for directory in (self.path, self.manifests):
            for name in disk.names(directory):
                if name.endswith(".tmp"):
                    disk.unlink(directory / name)

    def prune(self, keep: int | None, keep_for: timedelta | None, now: float) -> tuple[str, ...]:
        """Remove backups that are neither among the newest ``keep`` nor younger than ``keep_for``.

        The newest one stays in any case.

        Returns:
            The names of those that were removed.
        """
        if keep is None and keep_for is None:
            return ()
        manifests = self.listing().manifests
        since_ms = float("inf") if keep_for is None else (now - keep_for.total_seconds()) * 1000
        old = manifests[: -(keep or 1)]
        gone = [manifest.name for manifest in old if manifest.created_ms < since_ms]
        for name in gone:
            self.disk.unlink(self.manifests / (name + SUFFIX))
        if gone:
            self.disk.sync_directory(self.manifests)
            self.clean()
        return tuple(gone)


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _instant(ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
