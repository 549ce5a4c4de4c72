"""Options of the embedded store, checked once, before anything is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict, get_args

from kvsage.errors import ConfigError, InvalidTTLError
from kvsage.types import TTL, Durability, shown, ttl_seconds

ValueFormat: TypeAlias = Literal["msgpack", "pickle"]

VALUE_BYTES_LIMIT = (1 << 30) - (1 << 20)  # one commit holds 1 GiB, its framing included
SEGMENT_BYTES_LEAST = 64 * 1024
BYTES_MAX_LEAST = 1 << 20
SEGMENT_BYTES_MOST = 1 << 31
"""Offsets in a segment are 32 bits, and one commit may begin just below the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How one handle uses a store; nothing here changes what is on disk already.

    Handles of one process share an engine: ``lock_timeout``, ``segment_bytes_max``, ``bytes_max``,
    ``upkeep_interval``, ``changes_kept``, ``network_filesystem`` and ``index_map_bytes`` are those
    of the first, and of ``sync_interval`` the shortest counts.

    Attributes:
        durability: ``full`` (acknowledged means on disk) or ``relaxed`` (on disk within
            ``sync_interval``).
        readonly: refuse every write through this handle.
        sync_interval: at most so many seconds between flushes of ``relaxed`` commits.
        ttl_default: time to live of a save that gives none, or None for permanent.
        value_bytes_max: largest serialized value.
        lock_timeout: seconds to wait for another thread that writes, for another process that does,
            or for another process's recovery.
        segment_bytes_max: size at which a log file is sealed and the next one begun.
        content_bytes_min: serialized size from which a value is compressed and stored once by hash.
        compression_level: zstd's, from 1 (fast) to 19 (small).
        format: ``msgpack``, or ``pickle`` to allow any Python object in this handle. Reading a
            pickle can run code: give it only for a store that nobody else can write.
        network_filesystem: use the store on a network file system at one's own risk.
        index_map_bytes: address space reserved for the index, which may grow past it.
        upkeep_interval: seconds between looks of the background thread, which sweeps what expired,
            compacts, writes checkpoints and keeps a store under ``bytes_max``; ``math.inf`` for no
            background work.
        bytes_max: least recently read entries are evicted so that the log stays under so many
            bytes; None for a store that keeps everything.
        changes_kept: for so many seconds a named consumer of changes that does not move holds back
            the deletions that it has not seen.
    """

    durability: Durability = "full"
    readonly: bool = False
    sync_interval: float = 0.1
    ttl_default: TTL | None = None
    value_bytes_max: int = 256 << 20
    lock_timeout: float = 30.0
    segment_bytes_max: int = 64 << 20
    content_bytes_min: int = 4096
    compression_level: int = 3
    format: ValueFormat = "msgpack"
    network_filesystem: bool = False
    index_map_bytes: int = 1 << 40
    upkeep_interval: float = 1.0
    bytes_max: int | None = None
    changes_kept: float = 604_800.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: naming the option, what it was and what it may be.
        """
        _one_of("durability", self.durability, get_args(Durability))
        _one_of("format", self.format, get_args(ValueFormat))
        for name in ("readonly", "network_filesystem"):
            _one_of(name, getattr(self, name), (True, False))
        _within("sync_interval", self.sync_interval, 0.001, 3600)
        _within("lock_timeout", self.lock_timeout, 0, math.inf)
        _within("upkeep_interval", self.upkeep_interval, 0.001, math.inf)
        _within("changes_kept", self.changes_kept, 0, math.inf)
        _whole("value_bytes_max", self.value_bytes_max, 1, VALUE_BYTES_LIMIT)
        _whole("segment_bytes_max", self.segment_bytes_max, SEGMENT_BYTES_LEAST, SEGMENT_BYTES_MOST)
        _whole("content_bytes_min", self.content_bytes_min, 64, VALUE_BYTES_LIMIT)
        _whole("compression_level", self.compression_level, 1, 19)
        _whole("index_map_bytes", self.index_map_bytes, 1 << 20, 1 << 46)
        if self.bytes_max is not None:
            _whole("bytes_max", self.bytes_max, BYTES_MAX_LEAST, 1 << 62)
        if self.ttl_default is not None:
            try:
                ttl_seconds(self.ttl_default)
            except InvalidTTLError as error:
                raise ConfigError(f"ttl_default: {error}") from error


class OptionArguments(TypedDict, total=False):
    """The options as keyword arguments; ``StoreOptions`` says what each means."""

    durability: Durability
    readonly: bool
    sync_interval: float
    ttl_default: TTL | None
    value_bytes_max: int
    lock_timeout: float
    segment_bytes_max: int
    content_bytes_min: int
    compression_level: int
    format: ValueFormat
    network_filesystem: bool
    index_map_bytes: int
    upkeep_interval: float
    bytes_max: int | None
    changes_kept: float


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        choice = ", ".join(map(repr, allowed))
        raise ConfigError(f"{name} is one of {choice}, not {shown(value)}")


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} is a number, not {shown(value)}")


def _within(name: str, value: float, least: float, most: float) -> None:
    _number(name, value)
    if not least <= value <= most:
        raise ConfigError(f"{name} lies between {least} and {most} seconds, not {shown(value)}")


def _whole(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} is a whole number, not {shown(value)}")
    if not least <= value <= most:
        raise ConfigError(f"{name} lies between {least} and {most}, not {shown(value)}")
