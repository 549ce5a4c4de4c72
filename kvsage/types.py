"""Small frozen values that cross the border between a store and its caller."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from kvsage.errors import InvalidTTLError

if TYPE_CHECKING:
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
    """One file of the log: its id, size, and the bytes in it that nothing refers to any more."""

    segment: int
    bytes: int
    dead_bytes: int
    state: Literal["active", "sealed", "copy"]


@dataclass(frozen=True, slots=True)
class ReaderStats:
    """One slot of the index's reader table."""

    pid: int
    transaction: int | None


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What an embedded store holds and what it costs on disk.

    Attributes:
        keys: keys that are there, expired ones that no sweep has removed yet included.
        contents: distinct contents stored.
        content_references: how many keys and addresses refer to them.
        content_bytes: bytes of those contents before compression, each counted once.
        content_stored_bytes: bytes of those contents on disk.
        logical_bytes: bytes of content as its references see it: before compression and sharing.
        log_bytes: bytes of log that hold commits, zero-filled space ahead of the tail left out.
        live_bytes: bytes of log still referred to.
        dead_bytes: bytes of log that nothing refers to.
        disk_bytes: bytes that all files of the store take, index included.
        index_bytes: bytes of the index.
        commits: sequence number of the last commit.
        segments: the files of the log.
        readers: open read transactions of all processes.
    """

    keys: int
    contents: int
    content_references: int
    content_bytes: int
    content_stored_bytes: int
    logical_bytes: int
    log_bytes: int
    live_bytes: int
    dead_bytes: int
    disk_bytes: int
    index_bytes: int
    commits: int
    segments: tuple[SegmentStats, ...]
    readers: tuple[ReaderStats, ...]


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
    """

    transactions: bool = False
    snapshots: bool = False
    sorted_scans: bool = False
    versions: bool = False
    serializable: bool = False
    server_expiry: bool = False
    content: bool = False
    persistent: bool = False
