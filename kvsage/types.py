"""Small frozen values that cross the border between a store and its caller."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

from kvsage.errors import ConfigError, InvalidTTLError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import override as override  # noqa: PLC0414  # for others to import
else:
    # Loading typing_extensions would be a twentieth of the time that importing kvsage takes.
    _Method = TypeVar("_Method")

    def override(method: _Method) -> _Method:
        """Say that a method takes the place of an inherited one."""
        return method


Durability: TypeAlias = Literal["full", "relaxed"]
"""``full``: acknowledged means on disk. ``relaxed``: on disk within the sync interval."""

TTL: TypeAlias = "float | int | timedelta"
"""A time to live: seconds, or a ``timedelta``; more than zero."""

Version: TypeAlias = str
"""An opaque token that names one state of one key; it compares with ``==`` and nothing else."""

TTL_SECONDS_MAX = 100_000_000_000.0  # about 3,170 years: beyond it an expiry is surely a mistake


def shown(value: object) -> str:
    """A value as an error message shows it: short, whatever it is."""
    try:
        return f"{value!r:.100}"
    except Exception:  # noqa: BLE001  # a foreign __repr__, or an int of too many digits
        return f"some {type(value).__name__}"


def ttl_seconds(ttl: TTL) -> float:
    """A time to live in seconds.

    Raises:
        InvalidTTLError: not a number or ``timedelta``, not above zero, NaN, infinite or too long.
    """
    if isinstance(ttl, timedelta):
        seconds = ttl.total_seconds()
    elif type(ttl) in {int, float}:  # a bool is an int to isinstance, and no duration
        try:
            seconds = float(ttl)
        except OverflowError:
            seconds = math.inf
    else:
        raise InvalidTTLError(
            f"a ttl is a number of seconds or a timedelta, not {type(ttl).__name__}: {shown(ttl)}"
        )
    if not 0 < seconds <= TTL_SECONDS_MAX:  # NaN fails this too
        raise InvalidTTLError(
            f"a ttl is more than 0 and at most {TTL_SECONDS_MAX:.0f} seconds, not {shown(ttl)}"
        )
    return seconds


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store knows of one key.

    Attributes:
        value: the value, as ``load`` gives it.
        version: token for ``save(..., if_version=...)``; it changes with every write to the key.
        expires_at: the instant at which the key vanishes (UTC), or None when it is permanent.
        size: bytes of the serialized value.
        stored_size: bytes that the key's record takes on disk, what it shares with other keys
            (content stored once) counted in full.
    """

    value: Any
    version: Version
    expires_at: datetime | None
    size: int
    stored_size: int


COMMIT_END = (1 << 32) - 1
"""As the ``n`` of a position: behind everything that its commit changed."""

POSITION = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,10}))?@([0-9a-f]{16})")


class Position(NamedTuple):
    """A place in the order of all changes of a store; whoever is there has passed all before it.

    ``str`` gives a text to keep, ``parse`` reads it. The version of an entry is such a text too:
    the place behind the commit that wrote it. Positions of one timeline compare as they follow one
    another.

    Attributes:
        seq: number of the commit; 0 at the beginning.
        n: which entry of that commit was passed last, from 0; ``COMMIT_END`` when all were.
        timeline: in which the commit was numbered.
    """

    seq: int
    n: int
    timeline: int

    @override
    def __str__(self) -> str:
        place = f"{self.seq}" if self.n == COMMIT_END else f"{self.seq}.{self.n}"
        return f"{place}@{self.timeline:016x}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that ``text`` stands for.

        Raises:
            ConfigError: it stands for none.
        """
        match = POSITION.fullmatch(text)
        if match is None or int(match[2] or 0) > COMMIT_END:
            raise ConfigError(f"{shown(text)} is not a position: those look like 12.3@" + "0" * 16)
        n = COMMIT_END if match[2] is None else int(match[2])
        return cls(int(match[1]), n, int(match[3], 16))


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one key.

    Attributes:
        position: where it stands in the order of all; give it as ``since`` to go on behind it.
        time: when it was committed (UTC).
        kind: ``put``, or ``delete`` where the key went.
        key: of the entry.
        expires_at: of a put, the instant at which the key vanishes (UTC), or None.
        reason: of a delete, why: by a user, or because the key had expired or was evicted.
    """

    position: Position
    time: datetime
    kind: Literal["put", "delete"]
    key: str
    expires_at: datetime | None
    reason: Literal["user", "expired", "evicted"] | None
    _read: Callable[[], Any] = field(repr=False, compare=False)

    @property
    def value(self) -> Any:
        """The value that was put, read when asked for; None of a delete.

        Raises:
            ChangesLostError: the key has changed since, and the value is gone. The later change is
                in the feed.
            SerializationError: it cannot be read back.
            CorruptionError: it is damaged.
            StoreClosedError: the store was closed meanwhile.
        """
        return self._read()


class Consumer(NamedTuple):
    """How far a named consumer of changes has come.

    Attributes:
        position: what it has passed.
        time: when it last said so (UTC).
    """

    position: Position
    time: datetime


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that ``verify`` or ``repair`` found wrong.

    Attributes:
        message: what is wrong, in a sentence.
        segment: id of the log file, or None where the problem is not in one.
        offset: first byte concerned, from the start of that file, or None.
        length: how many bytes are concerned, or None where it is not known.
        keys: the keys known to be hit.
    """

    message: str
    segment: int | None = None
    offset: int | None = None
    length: int | None = None
    keys: tuple[str, ...] = ()

    @override
    def __str__(self) -> str:
        place = "" if self.segment is None else f"segment {self.segment}"
        if place and self.offset is not None:
            place += f", offset {self.offset}"
            if self.length is not None:
                place += f", {self.length} bytes"
        keys = f" [keys: {', '.join(self.keys)}]" if self.keys else ""
        return f"{place}: {self.message}{keys}" if place else f"{self.message}{keys}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What ``verify`` read and found.

    Attributes:
        problems: everything that does not check; empty when all is well.
        segments: log files read.
        batches: commits read.
        entries: records read, superseded ones too.
        bytes: bytes of log read.
        deep: whether log, keydir and content were also checked against each other.
    """

    problems: tuple[Problem, ...]
    segments: int
    batches: int
    entries: int
    bytes: int
    deep: bool

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What ``repair`` found and did, or would do under ``dry_run``.

    Attributes:
        problems: the damage found.
        dry_run: whether nothing was touched.
        rebuilt: whether the index was (or would be) built anew.
        entries_kept: records that could be read in damaged files.
        bytes_lost: bytes of log that could not be read as records.
        keys_lost: keys known to have lost their newest value; they are absent afterwards.
        saved_to: directory under the store that holds the damaged files as they were, or None.
    """

    problems: tuple[Problem, ...]
    dry_run: bool
    rebuilt: bool
    entries_kept: int
    bytes_lost: int
    keys_lost: tuple[str, ...]
    saved_to: str | None


@dataclass(frozen=True, slots=True)
class CompactionReport:
    """What a compaction on request did.

    Attributes:
        files_compacted: log files whose live records were moved and which count no more.
        bytes_before: bytes of log before.
        bytes_after: bytes of log after.
        bytes_copied: bytes written anew for what is live.
        deletions_dropped: records of deletions that nothing needed any more.
        files_waiting: files that could not be removed yet, because a reader may still look into
            them; they go when it has ended.
    """

    files_compacted: int
    bytes_before: int
    bytes_after: int
    bytes_copied: int
    deletions_dropped: int
    files_waiting: int


@dataclass(frozen=True, slots=True)
class SegmentStats:
    """One file of the log.

    Attributes:
        segment: its id; a later file has a higher one.
        bytes: bytes of its commits, their framing included.
        live_bytes: bytes of records in it that something refers to.
        dead_bytes: bytes of records in it that nothing refers to any more.
        state: ``active`` (new commits go there), ``sealed``, ``copy`` (made by compaction), or
            ``joining`` (a copy that takes the place of others when its compaction ends).
    """

    segment: int
    bytes: int
    live_bytes: int
    dead_bytes: int
    state: Literal["active", "sealed", "copy", "joining"]


@dataclass(frozen=True, slots=True)
class ReaderStats:
    """One slot of the index's reader table.

    Attributes:
        pid: the process.
        transaction: the number of the index's commit that it reads at, or None while it is idle.
        behind: how many commits of the index have been made since; None while it is idle. A commit
            of the store makes one; compaction and upkeep make some of their own. While a reader
            stays, nothing that it may see is given back.
    """

    pid: int
    transaction: int | None
    behind: int | None


@dataclass(frozen=True, slots=True)
class ProcessStats:
    """What this process has done to a store since it opened it, background work included.

    Attributes:
        batches: commits appended to the log.
        operations: changes of keys in them.
        flushes: flushes of the log.
        flush_ms_p50: half of the last 1,024 flushes took no longer, milliseconds; None before one.
        flush_ms_p99: 99 % of them took no longer.
        flush_ms_max: the longest of them.
        swept: keys removed because they had expired.
        evicted: keys removed to keep the log under ``bytes_max``.
        compactions: copies made, each in place of some files.
        compaction_bytes_copied: bytes written for them.
        compaction_bytes_reclaimed: by how many bytes they made the log smaller.
        compaction_s: seconds that they took, the rests included that they leave to others.
        checkpoints: checkpoints written.
        upkeep_error: what the last look of the background failed with, or None.
    """

    batches: int
    operations: int
    flushes: int
    flush_ms_p50: float | None
    flush_ms_p99: float | None
    flush_ms_max: float | None
    swept: int
    evicted: int
    compactions: int
    compaction_bytes_copied: int
    compaction_bytes_reclaimed: int
    compaction_s: float
    checkpoints: int
    upkeep_error: str | None

    @property
    def operations_per_batch(self) -> float | None:
        """How many changes went together on average; None before the first."""
        return self.operations / self.batches if self.batches else None


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What an embedded store holds and what it costs on disk.

    Attributes:
        keys: keys that are there, expired ones that no sweep has removed yet included.
        expired: how many of them have expired.
        tombstones: deletions that are kept, since an older value may still stand in the log.
        contents: distinct contents stored: whole values, and pieces of large ones.
        content_nodes: nodes of the trees that large values are, which refer to their pieces.
        content_references: how many keys, addresses and nodes refer to either.
        content_bytes: bytes of the contents before compression, each counted once.
        content_stored_bytes: bytes of contents and nodes on disk.
        logical_bytes: bytes of content as its references see it: before compression and sharing.
        log_bytes: bytes of log that hold commits, zero-filled space ahead of the tail left out.
        live_bytes: bytes of records that something refers to, deletions that are kept included.
        dead_bytes: bytes of records that nothing refers to. The rest of the log is framing.
        disk_bytes: bytes that all files of the store take, index included.
        index_bytes: bytes of the index.
        checkpoint_bytes: bytes of the checkpoint; 0 where there is none.
        checkpoint_seq: number of the last commit that the checkpoint knows, or None.
        commits: sequence number of the last commit.
        files_waiting: files of the log that compaction has replaced and that go when no reader can
            look into them any more.
        segments: the files of the log.
        readers: open read transactions of all processes.
        process: what this process has done.
    """

    keys: int
    expired: int
    tombstones: int
    contents: int
    content_nodes: int
    content_references: int
    content_bytes: int
    content_stored_bytes: int
    logical_bytes: int
    log_bytes: int
    live_bytes: int
    dead_bytes: int
    disk_bytes: int
    index_bytes: int
    checkpoint_bytes: int
    checkpoint_seq: int | None
    commits: int
    files_waiting: int
    segments: tuple[SegmentStats, ...]
    readers: tuple[ReaderStats, ...]
    process: ProcessStats

    @property
    def dedup_ratio(self) -> float | None:
        """What sharing saves: bytes of content as keys see them, over bytes of distinct content."""
        return self.logical_bytes / self.content_bytes if self.content_bytes else None

    @property
    def compression_ratio(self) -> float | None:
        """What compression saves: bytes of distinct content, over what they take on disk."""
        stored = self.content_stored_bytes
        return self.content_bytes / stored if stored else None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do beyond the four verbs that each one has.

    Attributes:
        transactions: several verbs commit together or not at all.
        snapshots: many reads see one point in time.
        sorted_scans: ``keys`` and ``items`` come in the order of the keys' bytes.
        versions: ``save(..., if_version=...)`` refuses a write that would lose an update.
        serializable: transactions behave as if they ran one after the other.
        server_expiry: the clock that judges expiry is a server's, not the caller's.
        content: contents are stored once, by hash.
        persistent: what was saved outlives the process.
        changes: ``changes()`` gives every change in the order of the commits.
        long_lists: ``append``, ``extend`` and ``load_range`` touch the part of a long list that
            they need, and ``save`` writes what changed in one; elsewhere they take all of it.
    """

    transactions: bool = False
    snapshots: bool = False
    sorted_scans: bool = False
    versions: bool = False
    serializable: bool = False
    server_expiry: bool = False
    content: bool = False
    persistent: bool = False
    changes: bool = False
    long_lists: bool = False


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup in a directory of backups.

    Attributes:
        name: what it is called there: its number and the instant at which it was begun.
        path: its manifest.
        number: its place among the backups of its directory, from 1; never used twice.
        created_at: when it was begun (UTC).
        seq: number of the last commit in it.
        kvsage: version of the program that made it.
        files: how many files it needs, those that it shares with other backups too.
        bytes: how many bytes of them a restore takes.
        damage: why it cannot be used, or None; then the numbers are 0.
    """

    name: str
    path: str
    number: int
    created_at: datetime
    seq: int
    kvsage: str
    files: int
    bytes: int
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What ``backup`` made.

    Attributes:
        backup: the new one.
        files_shared: files that an earlier backup had already.
        files_linked: files that got a second name and take no space of their own yet.
        files_copied: files that were copied.
        bytes_copied: what these take.
        bytes_checked: bytes of log that were read and whose every commit was checked.
        removed: names of earlier backups that retention removed.
    """

    backup: Backup
    files_shared: int
    files_linked: int
    files_copied: int
    bytes_copied: int
    bytes_checked: int
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackupVerifyReport:
    """What was read of some backups, and found.

    Attributes:
        problems: everything that does not check; empty when all is well.
        backups: names of the backups looked at.
        files: files read, each once.
        batches: commits in them.
        bytes: bytes read.
    """

    problems: tuple[Problem, ...]
    backups: tuple[str, ...]
    files: int
    batches: int
    bytes: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What ``restore`` made.

    Attributes:
        backup: what it was made from.
        path: the store's directory.
        keys: keys in it.
        files: files copied.
        bytes: bytes copied.
        replaced: whether there was a store before.
    """

    backup: Backup
    path: str
    keys: int
    files: int
    bytes: int
    replaced: bool
