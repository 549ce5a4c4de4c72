"""Backup: the log as one snapshot sees it, in files that later backups share.

The order of things, and why:

1. Take the backups' lock, and remove what a backup left that was cut.
2. Begin a read transaction: no file that it knows is unlinked while it lasts.
3. Give each sealed file that no earlier backup has, and the store's checkpoint, a second name in
   the pool, or copy it where that cannot be; copy the active one up to its tail. All under names
   that mean nothing yet. Then the transaction may end: whatever compaction does now, the bytes are
   in the pool.
4. Read what was taken, check every batch, flush it, and name it by what it holds.
5. Flush the pool's directory, and rename the manifest into place. THE COMMIT POINT.
6. Retention.

A kill before 5 leaves the earlier backups as they were, and files that the next run removes.

An earlier backup's file is shared unread where the store's file is the very one that was read then:
id, nonce, end, device, inode, size and modification time are the same. Any doubt is settled by
reading it.

Log and checkpoint are then what a power cut at that moment would have left on a disk that forgets
nothing, so what holds of a recovery holds of a restore.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, NamedTuple

from kvsage.engine.checkpoint import CHECKSUM_BYTES, read_trailer
from kvsage.engine.examine import (
    Examined,
    examine,
    opened,
    refuse_another_log,
)
from kvsage.engine.manifest import CREATED_MS_MAX, Manifest, TakenCheckpoint, TakenFile
from kvsage.engine.pace import Pace, asked_rest
from kvsage.engine.pieces import checksum_of, copy_bytes
from kvsage.engine.pool import Listing, Pool, resolved, told
from kvsage.errors import BackupError, CorruptionError, KvsageError
from kvsage.index.segments import listed_segments, the_meta
from kvsage.log.format import FileKind
from kvsage.log.segment import read_header, segment_path
from kvsage.types import BackupReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from pathlib import Path

    from kvsage.engine.engine import Engine
    from kvsage.fs import Disk
    from kvsage.index.segments import Meta

TRIES = 3
NO_LINKS = {
    errno.EXDEV,
    errno.EPERM,
    errno.EACCES,
    errno.EMLINK,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EINVAL,
}


class Source(NamedTuple):
    """A file of the log as the snapshot sees it."""

    segment: int
    kind: FileKind
    end: int


class Pending(NamedTuple):
    """A file of the log in the pool, unread.

    Attributes:
        source: which.
        path: under which name it is there.
        fingerprint: of the store's file.
        linked: whether it is the store's file itself.
    """

    source: Source
    path: Path
    fingerprint: tuple[int, int, int, int]
    linked: bool


class PendingCheckpoint(NamedTuple):
    """The store's checkpoint in the pool, unread; the fields are as those of ``Pending``."""

    path: Path
    fingerprint: tuple[int, int, int, int]
    linked: bool


class Secured(NamedTuple):
    """What a snapshot needs, in the pool.

    Attributes:
        meta: of the snapshot.
        shared: files that an earlier backup has.
        pending: files to be read.
        checkpoint: one that an earlier backup has, or one to be read, or none.
    """

    meta: Meta
    shared: list[TakenFile]
    pending: list[Pending]
    checkpoint: TakenCheckpoint | PendingCheckpoint | None


class Changed(Exception):  # noqa: N818  # a signal inside this module
    """A file went although the snapshot was open: the index had to grow, which ends snapshots."""


def back_up(  # noqa: PLR0913  # as the store's method
    engine: Engine,
    directory: Path,
    *,
    keep: int | None,
    keep_for: timedelta | None,
    link: bool,
    verify: bool,
    progress: Callable[[int, int], None] | None,
) -> BackupReport:
    """See ``LMDBStore.backup``."""
    with told(directory):
        path = resolved(directory)
        if path == engine.path or engine.path in path.parents:
            raise BackupError(f"{directory} lies inside the store: choose another place")
        pool = Pool(engine.disk, path)
        pool.refuse_foreign()
        make_directory(engine.disk, path)
        with pool.changing():
            pool.begin(engine.identity.uuid)
            pool.clean()
            run = Run(engine, pool, link=link, verify=verify, progress=progress)
            try:
                manifest = run.take()
                pool.commit(manifest)
            except BaseException:
                with contextlib.suppress(KvsageError, OSError):
                    pool.clean()
                raise
            return run.report(manifest, pool.prune(keep, keep_for, engine.clock()))


def make_directory(disk: Disk, path: Path) -> None:
    """A directory with its parents, durable, where it is not there."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            disk.make_directory(directory)
        disk.sync_directory(directory.parent)


class Run:
    """One backup on its way."""

    def __init__(
        self,
        engine: Engine,
        pool: Pool,
        *,
        link: bool,
        verify: bool,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._engine = engine
        self._disk = engine.disk
        self._pool = pool
        self._link = link
        self._verify = verify
        self._progress = progress or (lambda _done, _total: None)
        self._pace = Pace(asked_rest)
        self._listing: Listing = pool.listing()
        self._named = {name for m in self._listing.manifests for name in m.pool_names}
        self._known = {
            (file.segment, file.kind, file.nonce, file.end, file.source): file
            for manifest in self._listing.manifests
            for file in manifest.files
        }
        self._known_checkpoints = {
            manifest.checkpoint.source: manifest.checkpoint
            for manifest in self._listing.manifests
            if manifest.checkpoint is not None
        }
        self._shared = self._linked = self._copied = self._copied_bytes = self._checked = 0

    def report(self, manifest: Manifest, removed: tuple[str, ...]) -> BackupReport:
        """What was done."""
        return BackupReport(
            self._pool.shown(manifest),
            self._shared,
            self._linked,
            self._copied,
            self._copied_bytes,
            self._checked,
            removed,
        )

    def take(self) -> Manifest:
        """Everything into the pool, on disk; the manifest that would name it.

        Raises:
            CorruptionError: the log is damaged.
            StoreFullError, StoreUnavailableError: the directory takes no more.
        """
        created_ms = min(max(0, int(self._engine.clock() * 1000)), CREATED_MS_MAX)
        secured = self._secured()
        meta = secured.meta
        files, active = self._read(secured)
        checkpoint = self._named_checkpoint(secured)
        if (active.seq, active.chain) != (meta.seq, meta.chain):
            raise CorruptionError(
                "the log does not end where the index says",
                segment=meta.segment,
                offset=meta.offset,
            )
        refuse_another_log(
            active, [(file.segment, file.end) for file in files if file.segment != meta.segment]
        )
        return Manifest(
            self._pool.next_number(self._listing),
            created_ms,
            self._engine.identity,
            _version(),
            meta.timeline,
            meta.seq,
            meta.segment,
            meta.chain,
            tuple(sorted(files)),
            checkpoint,
        )

    # -- while the snapshot lasts -----------------------------------------------------------

    def _secured(self) -> Secured:
        missing: tuple[int, ...] = ()
        for _ in range(TRIES):
            try:
                return self._secure()
            except Changed as change:
                self._pool.clean()
                missing = change.args
        if missing:
            raise CorruptionError("a file of the log is missing", segment=missing[0], offset=0)
        raise BackupError("files of the log went while they were being taken: try again")

    def _secure(self) -> Secured:
        shared: list[TakenFile] = []
        pending: list[Pending] = []
        with self._engine.index.reading() as txn:
            meta = the_meta(txn)
            for segment, row in list(listed_segments(txn)):
                sealed = segment != meta.segment
                source = Source(segment, FileKind(row.kind), row.end if sealed else meta.offset)
                self._secure_file(source, shared, pending, sealed=sealed)
            # One that is begun after the snapshot is of a later moment, and not taken.
            return Secured(meta, shared, pending, self._secure_checkpoint(meta))

    def _secure_checkpoint(self, meta: Meta) -> TakenCheckpoint | PendingCheckpoint | None:
        disk, path = self._disk, self._engine.checkpoint_path
        try:
            fd = disk.open(path)
        except FileNotFoundError:
            return None
        try:
            fingerprint = disk.fingerprint(fd)
            known = self._known_checkpoints.get(fingerprint)
            if known is not None and known.seq <= meta.seq and self._is_there(known, fingerprint):
                return known
            beside = self._pool.files / "checkpoint.tmp"
            linked = self._link and self._linked_to(path, beside)
            if not linked:
                self._copy(fd, beside, fingerprint[2])
            return PendingCheckpoint(beside, fingerprint, linked)
        finally:
            disk.close(fd)

    def _secure_file(
        self, source: Source, shared: list[TakenFile], pending: list[Pending], *, sealed: bool
    ) -> None:
        engine, disk = self._engine, self._disk
        path = segment_path(engine.log_path, source.segment, source.kind)
        try:
            fd = disk.open(path)
        except FileNotFoundError:
            raise Changed(source.segment) from None
        try:
            found = read_header(disk, fd, engine.identity.uuid)
            if found is None:
                raise CorruptionError("the header does not check", segment=source.segment, offset=0)
            fingerprint = disk.fingerprint(fd)
            known = self._known.get((*source[:2], found[0].nonce, source.end, fingerprint))
            if sealed and known is not None and self._is_there(known, fingerprint):
                shared.append(known)
                return
            beside = self._pool.files / f"{source.segment:010d}.tmp"
            linked = sealed and self._link and self._linked_to(path, beside)
            if not linked:
                self._copy(fd, beside, source.end)
            pending.append(Pending(source, beside, fingerprint, linked))
        finally:
            disk.close(fd)

    def _is_there(
        self, known: TakenFile | TakenCheckpoint, fingerprint: tuple[int, int, int, int]
    ) -> bool:
        """Whether the pool has the file, and as a file of its own where links are not wanted."""
        disk = self._disk
        try:
            fd = disk.open(self._pool.files / known.name)
        except FileNotFoundError:
            return False
        try:
            there = disk.fingerprint(fd)
            if there[2] < known.bytes or (not self._link and there[:2] == fingerprint[:2]):
                return False
            if not self._verify:
                return True
            self._checked += known.bytes
            return checksum_of(disk, fd, known.bytes, self._pace) == known.checksum
        finally:
            disk.close(fd)

    def _linked_to(self, path: Path, target: Path) -> bool:
        """Give the store's file a second name; False where the file system has no such thing."""
        try:
            self._disk.link(path, target)
        except FileNotFoundError:
            raise Changed from None
        except KvsageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_LINKS:
                return False
            raise
        return True

    def _copy(self, source: int, target: Path, end: int) -> None:
        disk = self._disk
        fd = disk.open(target, write=True, create=True)
        try:
            copy_bytes(disk, source, fd, end, self._pace)
        finally:
            disk.close(fd)

    # -- behind it --------------------------------------------------------------------------

    def _read(self, secured: Secured) -> tuple[list[TakenFile], Examined]:
        """Check and name what was taken; all files, and what the active segment says."""
        files, active = list(secured.shared), None
        self._shared += len(files)
        total = sum(one.source.end for one in secured.pending)
        done = 0
        for one in secured.pending:
            taken, examined = self._named_file(one)
            files.append(taken)
            if taken.segment == secured.meta.segment:
                active = examined
            done += taken.end
            self._progress(done, total)
        assert active is not None, "the active segment is never shared unread"
        return files, active

    def _named_file(self, one: Pending) -> tuple[TakenFile, Examined]:
        disk, source = self._disk, one.source
        with opened(disk, one.path) as fd:
            examined = examine(disk, fd, *source, store=self._engine.identity, pace=self._pace)
            disk.sync(fd)
        self._checked += source.end
        nonce, checksum = examined.header.nonce, examined.checksum
        taken = TakenFile(*source[:2], nonce, source.end, checksum, one.fingerprint)
        self._name(one.path, taken, linked=one.linked)
        return taken, examined

    def _named_checkpoint(self, secured: Secured) -> TakenCheckpoint | None:
        """The checkpoint, if it is sound and not of a later moment; the log alone is enough."""
        one, disk = secured.checkpoint, self._disk
        if one is None:
            return None
        if isinstance(one, TakenCheckpoint):
            self._shared += 1
            return one
        try:
            said = read_trailer(disk, one.path)
        except CorruptionError:
            said = None
        with opened(disk, one.path) as fd:
            fingerprint = disk.fingerprint(fd)
            size = fingerprint[2]
            covered = max(0, size - CHECKSUM_BYTES)
            own = checksum_of(disk, fd, covered, self._pace).to_bytes(CHECKSUM_BYTES, "little")
            sound = own == disk.read(fd, CHECKSUM_BYTES, covered)
            checksum = checksum_of(disk, fd, size, self._pace)
            disk.sync(fd)
        ours = said is not None and said.uuid == self._engine.identity.uuid
        if said is None or not (sound and ours and said.seq <= secured.meta.seq):
            disk.unlink(one.path)
            return None
        source = fingerprint if one.linked else one.fingerprint
        taken = TakenCheckpoint(said.seq, size, checksum, source)
        self._name(one.path, taken, linked=one.linked)
        return taken

    def _name(self, path: Path, taken: TakenFile | TakenCheckpoint, *, linked: bool) -> None:
        """Name what was read by what it holds."""
        self._disk.rename(path, self._pool.files / taken.name)
        self._disk.unlink(path)  # renaming one of two names of a file onto the other does nothing
        if taken.name in self._named:
            self._shared += 1
        elif linked:
            self._linked += 1
        else:
            self._copied += 1
            self._copied_bytes += taken.bytes


def _version() -> str:
    from importlib import metadata  # noqa: PLC0415  # slow to load, and of use here only

    try:
        return metadata.version("kvsage")
    except metadata.PackageNotFoundError:
        return "unknown"
