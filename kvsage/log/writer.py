"""Making log files and room in them. Where a batch goes and when it is flushed is the engine's.

A file appears under its name only whole: header written, flushed, renamed, directory flushed. So a
name in the log says that a header was complete, and a header, that all commits before it are on
disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvsage.errors import StoreFullError
from kvsage.log.format import FileKind, SegmentHeader, encode_header
from kvsage.log.segment import segment_path

if TYPE_CHECKING:
    from pathlib import Path

    from kvsage.fs import Disk

GROWTH_LEAST_BYTES = 256 << 10
GROWTH_MOST_BYTES = 4 << 20


def create_file(
    disk: Disk, log: Path, header: SegmentHeader, batches: bytes = b""
) -> tuple[Path, int, int]:
    """A new log file, durable with its name: its path, the header's checksum, where it ends."""
    data = encode_header(header)
    path = segment_path(log, header.segment, FileKind(header.kind))
    disk.replace(path, data + batches)
    return path, int.from_bytes(data[-8:], "little"), len(data) + len(batches)


def make_room(disk: Disk, fd: int, end: int, limit: int) -> int:
    """Extend the file with written zeros until ``end`` lies in it; its new size.

    Grown by a quarter of what is there, so a small store stays small, and never past ``limit`` but
    for what is needed now. What lies below the present size, another process's commits perhaps, is
    not touched.

    Raises:
        StoreFullError: not even what is needed now fits on the disk.
    """
    size = disk.size(fd)
    if end <= size:
        return size
    growth = min(max(size // 4, GROWTH_LEAST_BYTES), GROWTH_MOST_BYTES)
    target = max(end, min(size + growth, limit))
    try:
        disk.zero(fd, size, target - size)
    except StoreFullError:
        size = disk.size(fd)
        if size < end:
            disk.zero(fd, size, end - size)
    return disk.size(fd)
