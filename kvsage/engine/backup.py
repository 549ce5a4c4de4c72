"""Backup: the log as one snapshot sees it, in files that later backups share.

The order of things, and why:

1. Take the backups' lock, and remove what a backup left that was cut.
2. Begin a read transaction: no file that it knows is unlinked while it lasts. Copy the index.
3. Give each sealed file that no earlier backup has a second name in the pool, or copy it where that
   cannot be; copy the active one up to its tail. All under names that mean nothing yet. Then the
   transaction may end: whatever compaction does now, the bytes are in the pool.
4. Read what was taken, check every batch, flush it, and name it by what it holds.
5. Flush the pool's directory, and rename the manifest into place. THE COMMIT POINT.
6. Retention.

A kill before 5 leaves the earlier backups as they were, and files that the next run removes.

An earlier backup's file is shared unread where the store's file is the very one that was read then:
id, nonce, end, device, inode, size and modification time are the same. Any doubt is settled by
reading it.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, NamedTuple

from kvsage.engine.checkpoint import copy_index
from kvsage.engine.examine import PIECE_BYTES, Examined, checksum_of, examine, refuse_another_log
from kvsage.engine.manifest import CREATED_MS_MAX, Manifest, TakenCheckpoint, TakenFile
from kvsage.engine.pace import Pace
from kvsage.engine.pool import Listing, Pool, told
from kvsage.errors import BackupError, CorruptionError, KvsageError
from kvsage.index.segments import JOINING, all_segments, get_meta
from kvsage.log.format import FileKind
from kvsage.log.segment import read_header, segment_path
from kvsage.types import BackupReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from pathlib import Path

    from kvsage.engine.engine import Engine
    from kvsage.fs import Disk
    from kvsage.index.env import Txn
    from kvsage.index.segments import Meta

REST = 1.0  # behind each slice of work as long a rest
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
        path = directory.resolve()
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
        self._pace = Pace(lambda: REST)
        self._listing: Listing = pool.listing()
        self._named = {name for m in self._listing.manifests for name in m.pool_names}
        self._known = {
            (file.segment, file.kind, file.nonce, file.end, file.source): file
            for manifest in self._listing.manifests
            for file in manifest.files
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
        for _ in range(TRIES):
            try:
                meta, checkpoint, shared, pending = self._secure()
            except Changed:
                self._pool.clean()
                self._shared = self._linked = self._copied = self._copied_bytes = 0
            else:
                break
        else:
            raise BackupError("files of the log went while they were being taken: try again")
        files, active = self._read(shared, pending, meta)
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

    def _secure(self) -> tuple[Meta, TakenCheckpoint | None, list[TakenFile], list[Pending]]:
        """All that the snapshot needs, in the pool: the index, files shared, files to be read."""
        shared: list[TakenFile] = []
        pending: list[Pending] = []
        with self._engine.index.reading() as txn:
            meta = get_meta(txn)
            assert meta is not None
            rows = list(all_segments(txn))
            # Rows that lead to a copy that no RETIRE names yet are of no use to a recovery.
            joining = any(row.state == JOINING for _, row in rows)
            sources = [
                Source(
                    segment, FileKind(row.kind), meta.offset if segment == meta.segment else row.end
                )
                for segment, row in rows
                if row.state != JOINING
            ]
            checkpoint = None if joining else self._take_checkpoint(txn, meta, sources)
            for source in sources:
                self._secure_file(source, shared, pending, sealed=source.segment != meta.segment)
        return meta, checkpoint, shared, pending

    def _take_checkpoint(self, txn: Txn, meta: Meta, sources: list[Source]) -> TakenCheckpoint:
        """A checkpoint of the snapshot, or the one of the last backup where nothing has changed."""
        last = self._listing.manifests[-1] if self._listing.manifests else None
        if last is not None and last.checkpoint is not None:
            same = (last.timeline, last.seq, last.segment, last.chain)
            ends = [file.place for file in last.files]
            unchanged = same == (meta.timeline, meta.seq, meta.segment, meta.chain)
            if unchanged and ends == sources and self._holds(last.checkpoint):
                self._shared += 1
                return last.checkpoint
        disk, beside = self._disk, self._pool.files / "index.tmp"
        copy_index(self._engine, txn, beside)
        fd = disk.open(beside)
        try:
            size = disk.size(fd)
            taken = TakenCheckpoint(meta.seq, size, checksum_of(disk, fd, size, self._pace))
        finally:
            disk.close(fd)
        disk.rename(beside, self._pool.files / taken.name)
        self._copied += 1
        self._copied_bytes += size
        return taken

    def _holds(self, checkpoint: TakenCheckpoint) -> bool:
        """Whether the pool has a checkpoint, whole."""
        disk = self._disk
        try:
            fd = disk.open(self._pool.files / checkpoint.name)
        except FileNotFoundError:
            return False
        try:
            size = disk.size(fd)
            whole = size == checkpoint.bytes
            return whole and checksum_of(disk, fd, size, self._pace) == checkpoint.checksum
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
            raise Changed from None
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

    def _is_there(self, known: TakenFile, fingerprint: tuple[int, int, int, int]) -> bool:
        """Whether the pool has the file, and as a file of its own where links are not wanted."""
        disk = self._disk
        try:
            fd = disk.open(self._pool.files / known.name)
        except FileNotFoundError:
            return False
        try:
            there = disk.fingerprint(fd)
            if there[2] < known.end or (not self._link and there[:2] == fingerprint[:2]):
                return False
            if not self._verify:
                return True
            self._checked += known.end
            return checksum_of(disk, fd, known.end, self._pace) == known.checksum
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
            for offset in range(0, end, PIECE_BYTES):
                piece = disk.read(source, min(PIECE_BYTES, end - offset), offset)
                disk.write(fd, (piece,), offset)
                self._pace.breathe()
        finally:
            disk.close(fd)

    # -- behind it --------------------------------------------------------------------------

    def _read(
        self, shared: list[TakenFile], pending: list[Pending], meta: Meta
    ) -> tuple[list[TakenFile], Examined]:
        """Check and name what was taken; all files, and what the active segment says."""
        files, active = list(shared), None
        self._shared += len(shared)
        total = sum(one.source.end for one in pending)
        done = 0
        for one in pending:
            taken, examined = self._name(one)
            files.append(taken)
            if taken.segment == meta.segment:
                active = examined
            done += taken.end
            self._progress(done, total)
        assert active is not None, "the active segment is never shared unread"
        return files, active

    def _name(self, one: Pending) -> tuple[TakenFile, Examined]:
        disk, source = self._disk, one.source
        fd = disk.open(one.path)
        try:
            examined = examine(disk, fd, *source, store=self._engine.identity, pace=self._pace)
            disk.sync(fd)
        finally:
            disk.close(fd)
        self._checked += source.end
        nonce, checksum = examined.header.nonce, examined.checksum
        taken = TakenFile(*source[:2], nonce, source.end, checksum, one.fingerprint)
        disk.rename(one.path, self._pool.files / taken.name)
        disk.unlink(one.path)  # renaming one of two names of a file onto the other does nothing
        if taken.name in self._named:
            self._shared += 1
        elif one.linked:
            self._linked += 1
        else:
            self._copied += 1
            self._copied_bytes += source.end
        return taken, examined


def _version() -> str:
    from importlib import metadata  # noqa: PLC0415  # slow to load, and of use here only

    try:
        return metadata.version("kvsage")
    except metadata.PackageNotFoundError:
        return "unknown"
