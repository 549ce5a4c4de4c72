"""``LMDBStore``: the contract over the embedded engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack
from weakref import WeakSet

from kvsage import clock as clocks
from kvsage.engine.commit import ABSENT, ANYTHING, NEVER
from kvsage.engine.contentspace import ContentSpace
from kvsage.engine.preparing import Preparer
from kvsage.engine.reading import LOOKS, Loader, MarkingLoader
from kvsage.engine.sharing import acquire, release
from kvsage.engine.snapshot import EngineSnapshot
from kvsage.engine.transaction import EngineTransaction
from kvsage.errors import (
    ConfigError,
    ReadOnlyStoreError,
    StoreClosedError,
    StoreUnavailableError,
    UnsupportedError,
)
from kvsage.fs import POSIX, Disk
from kvsage.options import OptionArguments, StoreOptions
from kvsage.store import Transaction, TransactionalStore, encode_key
from kvsage.types import (
    TTL,
    Backup,
    BackupReport,
    BackupVerifyReport,
    Capabilities,
    CompactionReport,
    Consumer,
    Entry,
    Position,
    RepairReport,
    RestoreReport,
    StoreStats,
    VerifyReport,
    Version,
    override,
    shown,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Future
    from datetime import datetime, timedelta

    from kvsage.clock import Clock
    from kvsage.engine.commit import Operation
    from kvsage.engine.engine import Engine
    from kvsage.engine.feed import ChangeFeed

Result = TypeVar("Result")


class LMDBStore(TransactionalStore):
    """A store in a directory of its own, for any number of threads and processes.

    Args:
        path: the directory; made, with its parents, where it is not there. ``~`` is expanded.
        clock: wall time in seconds, for tests.
        disk: the door to the disk, for tests.
        **options: see ``StoreOptions``.

    Raises:
        ConfigError: an option that cannot be meant.
        NotAStoreError: the directory holds something else, or nothing and ``readonly`` was given.
        FormatVersionError: a later kvsage wrote it.
        UnsupportedFilesystemError: it lies on a network file system.
        StoreLockedError: another process is rebuilding it.
        StoreUnavailableError: permissions, or a disk that fails.
        CorruptionError: the index had to be built anew and the log is damaged; see ``repair``.
    """

    capabilities = Capabilities(
        transactions=True,
        snapshots=True,
        sorted_scans=True,
        versions=True,
        serializable=True,
        content=True,
        persistent=True,
        changes=True,
        long_lists=True,
    )

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        disk: Disk | None = None,
        **options: Unpack[OptionArguments],
    ) -> None:
        self.options = StoreOptions(**options)
        self.path = store_path(path)
        self._engine: Engine = acquire(
            self.path,
            self.options,
            POSIX if disk is None else disk,
            clocks.SYSTEM if clock is None else clock,
            create=not self.options.readonly,
        )
        self._closed = False
        self._feeds: WeakSet[ChangeFeed] = WeakSet()
        self._full = self.options.durability == "full"
        self._preparer = Preparer(self._engine, self.options)
        self._codec = self._preparer.codec
        loader = Loader if self._engine.reads is None else MarkingLoader
        self._loader = loader(self._engine, self._codec)
        self._load = self._loader.load

    @override
    def __repr__(self) -> str:
        return f"LMDBStore({str(self.path)!r}, durability={self.options.durability!r})"

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    @override
    def close(self) -> None:
        if not self._closed:
            release(self._engine)
            self._closed = self._loader.closed = True
            for feed in list(self._feeds):
                feed.interrupt()

    # -- reading ----------------------------------------------------------------------------

    @override
    def load(self, key: str, default: Any = None) -> Any:
        return self._load(key, default)

    def _look(self, read: Callable[[EngineSnapshot], Result]) -> Result:
        """What one look at the store gives.

        Another thread that grows the index's map ends every transaction of this process, so a look
        of its own begins again.
        """
        for _ in range(LOOKS):
            try:
                with self.snapshot() as view:
                    return read(view)
            except StoreUnavailableError:
                continue
        with self.snapshot() as view:
            return read(view)

    def _reading(self) -> Engine:
        if self._closed or self._engine.inherited:
            self._look_again()
        return self._engine

    def _look_again(self) -> None:
        if self._closed:
            raise StoreClosedError("the store is closed")
        self._engine.reopen()

    @override
    def exists(self, key: str) -> bool:
        return self._look(lambda view: view.exists(key))

    @override
    def entry(self, key: str) -> Entry | None:
        return self._look(lambda view: view.entry(key))

    @override
    def ttl(self, key: str) -> float | None:
        return self._look(lambda view: view.ttl(key))

    @override
    def load_many(self, keys: Iterable[str]) -> dict[str, Any]:
        wanted = list(keys)
        return self._look(lambda view: view.load_many(wanted))

    @override
    def load_range(self, key: str, start: int = 0, stop: int | None = None) -> list[Any]:
        return self._look(lambda view: view.load_range(key, start, stop))

    @override
    def count(self, prefix: str = "") -> int:
        return self._look(lambda view: view.count(prefix))

    @override
    def keys(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[str]:
        view = self.snapshot()
        chosen = view.keys(prefix, start=start, stop=stop, reverse=reverse, limit=limit)
        return _within(view, chosen)

    @override
    def items(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[str, Any]]:
        view = self.snapshot()
        chosen = view.items(prefix, start=start, stop=stop, reverse=reverse, limit=limit)
        return _within(view, chosen)

    @override
    def snapshot(self) -> EngineSnapshot:
        return EngineSnapshot(self._reading(), self._codec, owner=self)

    # -- writing ----------------------------------------------------------------------------

    def _writing(self, operations: int = 1) -> Engine:
        engine = self._writable()
        if engine.pressure:
            engine.ease(operations)
        return engine

    def _writable(self) -> Engine:
        if self._closed or self._engine.inherited:
            self._look_again()
        if self.options.readonly:
            raise ReadOnlyStoreError(f"{self.path} was opened for reading")
        return self._engine

    def _saving(
        self, key: str, value: Any, ttl: TTL | None = None, *, if_version: Version | None = None
    ) -> Operation:
        require = ANYTHING
        if if_version is not None:
            require = self._writable().seq_of(if_version) or NEVER
        return self._preparer.save(key, value, ttl, require)

    def _adding(self, key: str, value: Any, ttl: TTL | None = None) -> Operation:
        return self._preparer.save(key, value, ttl, ABSENT)

    def _deleting(self, key: str) -> Operation:
        return self._preparer.delete(encode_key(key))

    def _touching(self, key: str, ttl: TTL | None) -> Operation:
        return self._preparer.touch(key, ttl)

    @override
    def save(
        self, key: str, value: Any, ttl: TTL | None = None, *, if_version: Version | None = None
    ) -> bool:
        if if_version is None:
            engine = self._writing()
            saver = self._preparer
            flags, data = self._codec.encode(key, value)
            expires_ms = saver.expires_ms(key, ttl)
            if len(data) < saver.content_bytes_min:
                engine.committer.put(encode_key(key), flags, data, expires_ms, self._full)
                return True
            operation = saver.put(encode_key(key), flags, data, expires_ms, ANYTHING)
            return engine.committer.one(operation, full=self._full)
        engine = self._writing()
        operation = self._saving(key, value, ttl, if_version=if_version)
        return engine.committer.one(operation, full=self._full)

    @override
    def add(self, key: str, value: Any, ttl: TTL | None = None) -> bool:
        engine = self._writing()
        return engine.committer.one(self._adding(key, value, ttl), full=self._full)

    @override
    def delete(self, key: str) -> bool:
        engine = self._writing()
        return engine.committer.one(self._deleting(key), full=self._full)

    @override
    def touch(self, key: str, ttl: TTL | None) -> bool:
        engine = self._writing()
        return engine.committer.one(self._touching(key, ttl), full=self._full)

    @override
    def append(self, key: str, item: Any) -> int:
        return self.extend(key, (item,))

    @override
    def extend(self, key: str, items: Iterable[Any]) -> int:
        if self.options.format == "pickle":
            return super().extend(key, items)
        engine = self._writing()
        growth, operation = self._preparer.extend(key, items)
        engine.committer.one(operation, full=self._full)
        return growth.length

    @override
    def save_many(self, mapping: Mapping[str, Any], ttl: TTL | None = None) -> int:
        engine, preparer = self._writing(len(mapping)), self._preparer
        expires_ms = preparer.expires_ms(next(iter(mapping), ""), ttl)
        operations = preparer.save_many(mapping, expires_ms)
        if operations:
            engine.committer.commit(operations, full=self._full)
        return len(operations)

    @override
    def delete_many(self, keys: Iterable[str]) -> int:
        engine = self._writing()
        operations = list(map(self._preparer.delete, dict.fromkeys(map(encode_key, keys))))
        return sum(engine.committer.commit(operations, full=self._full)) if operations else 0

    @override
    def transaction(self) -> EngineTransaction:
        return EngineTransaction(self._writing(), self._preparer, full=self._full, owner=self)

    # -- beyond the contract ----------------------------------------------------------------

    def later(
        self, verb: Literal["save", "add", "delete", "touch"], *args: Any, **options: Any
    ) -> Future[bool]:
        """Queue a write and go on: it joins a batch with others, and a future gets its outcome.

        What can be said at once is: a key or value that cannot be stored is refused here. Writes
        that one thread queues take place in their order. A future that is cancelled before its
        write was taken up means that it never happens; from then on it cannot be cancelled. Futures
        are told on a thread of the engine, which should not be kept long.

        Args:
            verb: which of the single writes.
            *args: as for that verb.
            **options: as for that verb.
        """
        engine = self._writable()
        if verb not in LATER:
            raise UnsupportedError(f"one of {', '.join(LATER)} can be queued, not {shown(verb)}")
        operation = LATER[verb](self, *args, **options)
        return engine.committer.laters.submit(operation, full=self._full)

    @property
    def content(self) -> ContentSpace:
        """Contents by address: bytes that are stored once, whoever puts them."""
        return ContentSpace(self._reading, self._writing, self._preparer, full=self._full)

    def position(self) -> Position:
        """The last commit so far; ``changes`` since then are those to come."""
        with self.snapshot() as view:
            return view.position

    def changes(
        self,
        since: Position | str | tuple[int, int] | int | None = None,
        prefix: str = "",
        *,
        follow: bool = False,
        consumer: str | None = None,
        timeout: float | None = None,
    ) -> ChangeFeed:
        """Every change in the order of the commits, those of other processes too.

        An expiry or an eviction is a delete, once it is done. Of a key that changed more than once,
        compaction may have left the latest change alone.

        Args:
            since: go on behind this position, or behind the commit of this number; None for the
                beginning, or for where the consumer is.
            prefix: of the keys to hear of.
            follow: at the end, wait for more.
            consumer: a name, under which the store remembers what was passed. One feed at a time
                uses it. Deletions that it has not passed are kept for it, as long as the option
                ``changes_kept`` says.
            timeout: seconds after which ``follow`` stops waiting for a change, so that the
                iteration ends; iterate again to go on.

        Raises:
            ChangesLostError: the store cannot tell everything that happened since. Read what is
                there from a snapshot, and go on from its position.
            ConfigError: not a position, a name or a number of seconds.
            ReadOnlyStoreError: a named consumer on a handle that only reads.
        """
        from kvsage.engine.feed import ChangeFeed, Request

        reading = self._reading if consumer is None else self._writing
        request = Request(since, prefix, follow, timeout, consumer)
        feed = ChangeFeed(reading, self._codec, request, owner=self)
        self._feeds.add(feed)
        return feed

    def consumers(self) -> dict[str, Consumer]:
        """The named consumers of changes, and how far each has come."""
        from kvsage.engine import consumers

        engine = self._reading()
        with engine.index.reading() as txn:
            return consumers.consumers(engine, txn)

    def drop_consumer(self, name: str) -> bool:
        """Forget a named consumer, so that nothing is kept for it; whether there was one."""
        from kvsage.engine import consumers

        return consumers.drop(self._writing(), name)

    def sync(self) -> None:
        """Bring every commit made so far onto the disk; ``full`` commits are there already.

        Raises:
            StoreUnavailableError: the flush failed; the store is poisoned.
        """
        self._reading().flusher.flush()

    def sweep(self) -> int:
        """Remove every key that has expired, as the background does by itself; how many.

        Nobody sees a difference but in the space: an expired key is absent for every verb anyway.
        A store over its ``bytes_max`` then evicts what was not read lately, which counts too.

        Raises:
            ReadOnlyStoreError, StoreLockedError, StoreFullError, StoreUnavailableError,
            PoisonedError: what is left is removed by the next sweep.
        """
        return self._writing().upkeep.sweep()

    def compact(self) -> CompactionReport:
        """Move every record that is live out of log files that hold garbage, and remove those.

        Happens by itself in the background when a third of the sealed files' bytes is garbage, or
        half of one file's; this leaves next to none. Others read and write meanwhile.

        Raises:
            TransactionStateError: this thread has a transaction open.
            StoreLockedError: another thread or process has been compacting all the time.
            StoreFullError: no room for the records to move to. What was done by then stays; the
                next run does the rest.
            CorruptionError: a file does not check, or is missing; it stays as it is, and other
                files are compacted.
            ReadOnlyStoreError, StoreUnavailableError, PoisonedError: as of every write.
            StoreClosedError: the store was closed meanwhile.
        """
        return self._writing().upkeep.compact()

    def checkpoint(self) -> None:
        """Copy the index beside, so that a recovery reads only what is written from here on.

        Happens by itself in the background when the log has grown.

        Raises:
            TransactionStateError: this thread has a transaction open.
            StoreLockedError: another thread or process has been compacting all the time.
            StoreFullError, StoreUnavailableError: the one before stays.
            ReadOnlyStoreError, PoisonedError, StoreClosedError: as of every write.
        """
        self._writing().upkeep.checkpoint()

    @override
    def stats(self) -> StoreStats:
        """What the store holds and what it costs on disk."""
        from kvsage.engine import stats

        return stats.collect(self._reading())

    def verify(self, *, deep: bool = False) -> VerifyReport:
        """Read every byte of the log and check it.

        Args:
            deep: also check log, keydir and contents against each other.
        """
        from kvsage.engine import check

        return check.verify(self._reading(), deep=deep)

    def backup(  # noqa: PLR0913
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | None = None,
        keep_for: float | timedelta | None = None,
        link: bool = True,
        verify: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> BackupReport:
        """Back the store up into a directory of backups while it is in use.

        A backup holds what was committed when it began. Files that never change again get a second
        name there, or are copied to another file system; later backups share them. All that was not
        shared is read and checked, commit by commit.

        Args:
            directory: made where it is not there; one directory holds the backups of one store.
            keep: how many of the newest backups stay, this one included.
            keep_for: seconds or a ``timedelta``; younger backups stay. Where both are given, what
                either keeps stays. Where neither is given, everything stays.
            link: False copies files where a second name would do.
            verify: also read the files shared with earlier backups; those that do not check any
                more are taken anew.
            progress: called with bytes done and bytes in all.

        Raises:
            BackupError: the directory is inside the store, is no directory of backups, or is
                another store's.
            StoreLockedError: another process is using the directory.
            StoreFullError, StoreUnavailableError: it takes no more; earlier backups are as before.
                Or an old backup cannot be removed; then the new one is made all the same.
            CorruptionError: the log is damaged; earlier backups are as before.
        """
        from kvsage.engine import backup, catalogue

        return backup.back_up(
            self._reading(),
            store_path(directory),
            keep=catalogue.count(keep),
            keep_for=catalogue.period(keep_for),
            link=link,
            verify=verify,
            progress=progress,
        )

    @staticmethod
    def backups(directory: str | os.PathLike[str]) -> tuple[Backup, ...]:
        """The backups in a directory, oldest first; damaged ones say so.

        Raises:
            BackupError: it is no directory of backups.
        """
        from kvsage.engine import catalogue

        return catalogue.list_backups(store_path(directory), POSIX)

    @staticmethod
    def verify_backups(
        directory: str | os.PathLike[str], *, name: str | None = None
    ) -> BackupVerifyReport:
        """Read every byte of the backups in a directory, or of one of them, and check it.

        Args:
            directory: of the backups; or the manifest of one of them.
            name: of one of them.

        Raises:
            BackupError: there are none, or none of that name.
            StoreLockedError: another process is making or removing backups.
        """
        from kvsage.engine import catalogue

        return catalogue.verify_backups(store_path(directory), POSIX, name=name)

    @staticmethod
    def prune_backups(
        directory: str | os.PathLike[str],
        *,
        keep: int | None = None,
        keep_for: float | timedelta | None = None,
        clock: Clock | None = None,
    ) -> tuple[str, ...]:
        """Remove backups that are neither among the newest ``keep`` nor younger than ``keep_for``.

        The newest backup stays in any case.

        Returns:
            The names of those that were removed.

        Raises:
            ConfigError: neither was given, or one that cannot be meant.
            BackupError: it is no directory of backups.
            StoreLockedError: another process is using it.
        """
        from kvsage.engine import catalogue

        chosen = clocks.SYSTEM if clock is None else clock
        return catalogue.prune_backups(
            store_path(directory),
            POSIX,
            keep=catalogue.count(keep),
            keep_for=catalogue.period(keep_for),
            now=chosen(),
        )

    @staticmethod
    def restore(  # noqa: PLR0913
        backup: str | os.PathLike[str],
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        name: str | None = None,
        at: datetime | None = None,
        clock: Clock | None = None,
        disk: Disk | None = None,
    ) -> RestoreReport:
        """Make a store out of a backup.

        It is built beside ``path``, read and checked whole, and renamed into place; until then
        nothing at ``path`` is touched. It begins a new timeline: versions of states that came after
        the backup are refused.

        Args:
            backup: a directory of backups, or the manifest of one of them.
            path: the directory of the new store; it must not be there, or be empty.
            overwrite: let the new store take the place of the one at ``path``, which no process may
                have open. That one is removed.
            name: the backup of this name, instead of the newest.
            at: the newest backup begun by then, with a time zone.
            clock: wall time in seconds, for tests.
            disk: the door to the disk, for tests.

        Raises:
            BackupError: there is no such backup, it is damaged, or a store is at ``path`` and
                ``overwrite`` is false; nothing was changed.
            NotAStoreError: ``path`` holds something that is no store.
            StoreLockedError: a process has the store open, or is restoring there too.
            StoreFullError, StoreUnavailableError: nothing was changed.
        """
        from kvsage.engine import restore

        return restore.restore(
            store_path(backup),
            store_path(path),
            POSIX if disk is None else disk,
            clocks.SYSTEM if clock is None else clock,
            overwrite=overwrite,
            name=name,
            at=at,
        )

    @classmethod
    def repair(
        cls, path: str | os.PathLike[str], *, dry_run: bool = False, clock: Clock | None = None
    ) -> RepairReport:
        """Give up what cannot be read, keep all the rest, and build the index anew.

        Damaged files are kept as they were under ``lost+found`` in the store. What was committed
        and cannot be read is gone; the report says what, as far as can be known. A key whose newest
        value is known to be lost becomes absent: an older value never comes back in silence.

        Args:
            path: the store's directory; no process may have it open.
            dry_run: only report.
            clock: wall time in seconds, for tests.

        Raises:
            NotAStoreError: there is no store.
            StoreLockedError: a process has it open.
        """
        from kvsage.engine import repair

        chosen = clocks.SYSTEM if clock is None else clock
        return repair.repair(store_path(path), POSIX, chosen, dry_run=dry_run)

    @override
    def transact(self, fn: Callable[[Transaction], Result], retries: int = 10) -> Result:
        del retries  # writers take turns here, so nothing ever conflicts
        with self.transaction() as tx:
            return fn(tx)


LATER: dict[str, Callable[..., Operation]] = {
    "save": LMDBStore._saving,  # noqa: SLF001  # of this very module
    "add": LMDBStore._adding,  # noqa: SLF001
    "delete": LMDBStore._deleting,  # noqa: SLF001
    "touch": LMDBStore._touching,  # noqa: SLF001
}


def _within(view: EngineSnapshot, chosen: Iterator[Result]) -> Iterator[Result]:
    """What was chosen, and the snapshot closed behind it."""
    with view:
        yield from chosen


def store_path(path: str | os.PathLike[str]) -> Path:
    """Where a store lies; ``~`` is expanded.

    Raises:
        ConfigError: no file system has such a path.
    """
    try:
        chosen = Path(path).expanduser()
    except (TypeError, RuntimeError) as error:
        raise ConfigError(f"{shown(path)} is not a path: {error}") from error
    if "\0" in str(chosen):
        raise ConfigError("a path holds no NUL")
    return chosen
