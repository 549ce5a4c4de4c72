"""What is done with backups that are there: choosing, listing, checking, removing."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING

from kvsage.engine.checkpoint import read_trailer
from kvsage.engine.examine import Examined, examine, opened, refuse_another_log
from kvsage.engine.pace import Pace
from kvsage.engine.pieces import checksum_of
from kvsage.engine.pool import Pool, resolved, told
from kvsage.errors import ConfigError, CorruptionError
from kvsage.types import BackupVerifyReport, Problem, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from kvsage.engine.manifest import Manifest, TakenFile
    from kvsage.fs import Disk
    from kvsage.types import Backup

NAMED_MOST = 3


# -- what a caller gives ------------------------------------------------------------------------


def count(keep: object) -> int | None:
    """How many backups to keep.

    Raises:
        ConfigError: no whole number above zero.
    """
    if keep is None:
        return None
    if type(keep) is not int or keep < 1:
        raise ConfigError(f"keep is a whole number above 0, not {shown(keep)}")
    return keep


def period(keep_for: object) -> timedelta | None:
    """For how long to keep backups.

    Raises:
        ConfigError: no number of seconds or ``timedelta`` from zero on.
    """
    if keep_for is None:
        return None
    try:
        if type(keep_for) in {int, float}:
            keep_for = timedelta(seconds=keep_for)  # type: ignore[arg-type]
    except (OverflowError, ValueError) as error:
        raise ConfigError(f"keep_for is too long: {shown(keep_for)}") from error
    if not isinstance(keep_for, timedelta) or keep_for < timedelta(0):
        raise ConfigError(f"keep_for is seconds or a timedelta, not {shown(keep_for)}")
    return keep_for


def pool_of(disk: Disk, backup: Path, name: str | None) -> tuple[Pool, str | None]:
    """The directory of backups, and which of them, that a caller means."""
    path = resolved(backup)
    if not path.is_file():
        return Pool(disk, path), name
    if name is not None:
        raise ConfigError(f"{backup} is one backup already: give no name with it")
    return Pool(disk, path.parent.parent), path.name


# -- listing and retention ----------------------------------------------------------------------


def list_backups(directory: Path, disk: Disk) -> tuple[Backup, ...]:
    """See ``LMDBStore.backups``."""
    with told(directory):
        pool = Pool(disk, resolved(directory))
        pool.refuse_absent()
        return pool.shown_all()


def prune_backups(
    directory: Path, disk: Disk, *, keep: int | None, keep_for: timedelta | None, now: float
) -> tuple[str, ...]:
    """See ``LMDBStore.prune_backups``."""
    if keep is None and keep_for is None:
        raise ConfigError("say how many backups to keep, or for how long")
    with told(directory):
        pool = Pool(disk, resolved(directory))
        pool.refuse_absent()
        with pool.changing():
            removed = pool.prune(keep, keep_for, now)
            pool.clean()
            return removed


# -- checking -----------------------------------------------------------------------------------


def verify_backups(directory: Path, disk: Disk, *, name: str | None) -> BackupVerifyReport:
    """See ``LMDBStore.verify_backups``."""
    with told(directory):
        pool, name = pool_of(disk, directory, name)
        with pool.reading():
            check = Check(pool)
            if name is not None:
                check.run([pool.choose(name, None)])
            else:
                listing = pool.listing()
                for file, error in listing.damaged.items():
                    check.problem(f"backups/{file}: {error}")
                check.run(listing.manifests)
            return check.report()


class Check:
    """Reads the files of some backups, each once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._disk = pool.disk
        self._pace = Pace()
        self._problems: list[Problem] = []
        self._backups: list[str] = []
        self._files = self._batches = self._bytes = 0
        self._needed: defaultdict[str, list[str]] = defaultdict(list)
        self._found: dict[str, Examined | None] = {}

    def problem(self, message: str, segment: int | None = None, offset: int | None = None) -> None:
        """Note one."""
        self._problems.append(Problem(message, segment, offset))

    def report(self) -> BackupVerifyReport:
        """What was read, and found."""
        return BackupVerifyReport(
            tuple(self._problems), tuple(self._backups), self._files, self._batches, self._bytes
        )

    def run(self, manifests: Sequence[Manifest]) -> None:
        """Look at these backups."""
        for manifest in manifests:
            for name in manifest.pool_names:
                self._needed[name].append(manifest.name)
        for manifest in manifests:
            self._backups.append(manifest.name)
            found = [self._once(manifest, file) for file in manifest.files]
            if None not in found:
                self._log(manifest, found)
            if manifest.checkpoint is not None and manifest.checkpoint.name not in self._found:
                self._found[manifest.checkpoint.name] = None
                self._read(manifest.checkpoint.name, lambda: self._checkpoint(manifest))  # noqa: B023

    def _once(self, manifest: Manifest, file: TakenFile) -> Examined | None:
        """What a file of the log holds; None where it does not check."""
        if file.name not in self._found:
            self._found[file.name] = None
            self._read(file.name, lambda: self._file(manifest, file))
        return self._found[file.name]

    def _read(self, name: str, read: Callable[[], None]) -> None:
        self._files += 1
        needed = self._needed[name]
        others = f" and {len(needed) - NAMED_MOST} more" if len(needed) > NAMED_MOST else ""
        where = f"files/{name}, of {', '.join(needed[:NAMED_MOST])}{others}"
        try:
            read()
        except FileNotFoundError:
            self.problem(f"{where}: it is missing")
        except CorruptionError as error:
            self.problem(f"{where}: {error}", error.segment, error.offset)

    def _file(self, manifest: Manifest, file: TakenFile) -> None:
        with opened(self._disk, self._pool.files / file.name) as fd:
            store = manifest.identity
            found = examine(self._disk, fd, *file.place, store=store, pace=self._pace)
        if (found.header.nonce, found.checksum) != (file.nonce, file.checksum):
            raise CorruptionError("it is not the file that the manifest names")
        self._bytes += file.end
        self._batches += found.batches
        self._found[file.name] = found

    def _checkpoint(self, manifest: Manifest) -> None:
        taken = manifest.checkpoint
        assert taken is not None
        refuse_other_checkpoint(self._disk, self._pool.files / taken.name, manifest, self._pace)
        self._bytes += taken.bytes

    def _log(self, manifest: Manifest, found: Sequence[Examined | None]) -> None:
        """The files make one log, which ends where the manifest says."""
        try:
            for file, active in zip(manifest.files, found, strict=True):
                if active is not None and file.segment == manifest.segment:
                    refuse_other_log(manifest, active)
        except CorruptionError as error:
            self.problem(f"{manifest.name}: {error}", error.segment, error.offset)


def refuse_other_log(manifest: Manifest, active: Examined) -> None:
    """Raise ``CorruptionError`` where the files are not the log that the manifest says."""
    if (active.seq, active.chain) != (manifest.seq, manifest.chain):
        raise CorruptionError("the log does not end where the manifest says")
    others = [f for f in manifest.files if f.segment != manifest.segment]
    refuse_another_log(active, [(file.segment, file.end) for file in others])


def refuse_other_checkpoint(disk: Disk, path: Path, manifest: Manifest, pace: Pace) -> None:
    """Raise ``CorruptionError`` where a checkpoint is not the one that the manifest names."""
    taken = manifest.checkpoint
    assert taken is not None
    with opened(disk, path) as fd:
        size = disk.size(fd)
        if size != taken.bytes or checksum_of(disk, fd, size, pace) != taken.checksum:
            raise CorruptionError("the checkpoint is damaged")
    said = read_trailer(disk, path)
    if said is None or (said.uuid, said.seq) != (manifest.identity.uuid, taken.seq):
        raise CorruptionError("the checkpoint is of another store or moment")
