"""Log files: their names, and what their headers say.

The newest segment whose header checks decides which files count: those that it lists, and itself;
from then on the RETIRE entries in it put a copy in the place of some of them. Files that nothing
names are left from a creation or a compaction that was cut, and do not count.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, NamedTuple

from kvsage.log.format import (
    HEADER,
    FileKind,
    SegmentHeader,
    decode_header,
    header_length,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kvsage.fs import Disk

NAME = re.compile(r"([0-9]{10})\.(seg|cpy)")
TAKEN = re.compile(r"([0-9]{10})\.(?:seg|cpy)(?:\.tmp)?")
SEGMENT_ID_MAX = (1 << 32) - 1
ENDINGS = {FileKind.SEGMENT: "seg", FileKind.COPY: "cpy"}


class LogFile(NamedTuple):
    """A log file that is there, with its header where that checks."""

    segment: int
    path: Path
    header: SegmentHeader | None
    chain: int
    start: int

    @property
    def is_copy(self) -> bool:
        """Whether it holds copies of other files' entries, going by its name."""
        return self.path.suffix == ".cpy"


def segment_path(log: Path, segment: int, kind: FileKind = FileKind.SEGMENT) -> Path:
    """Where a log file lies."""
    return log / f"{segment:010d}.{ENDINGS[kind]}"


def list_files(disk: Disk, log: Path) -> dict[int, Path]:
    """The log files by id, in the order of their ids, whatever state they are in."""
    found = {}
    for name in disk.names(log):
        match = NAME.fullmatch(name)
        if match and int(match[1]) <= SEGMENT_ID_MAX:
            found[int(match[1])] = log / name
    return found


def next_segment(disk: Disk, log: Path, but: str = "") -> int:
    """An id above all that are there, those of files under construction too, but for one name."""
    matches = map(TAKEN.fullmatch, (name for name in disk.names(log) if name != but))
    return max((int(match[1]) for match in matches if match), default=0) + 1


def read_header(disk: Disk, fd: int, uuid: bytes) -> tuple[SegmentHeader, int, int] | None:
    """Header, its checksum and where the batches begin; None where no header of this store checks.

    Raises:
        FormatVersionError: a later format.
    """
    data = disk.read(fd, HEADER.size, 0)
    length = header_length(data)
    if not length:
        return None
    data += disk.read(fd, length - len(data), len(data))
    decoded = decode_header(data)
    if decoded is None or decoded[0].uuid != uuid:
        return None
    header, checksum = decoded
    return header, checksum, length


def inspect(disk: Disk, segment: int, path: Path, uuid: bytes) -> LogFile:
    """A log file with its header; the header is None where it does not check or names another."""
    fd = disk.open(path)
    try:
        found = read_header(disk, fd, uuid)
    finally:
        disk.close(fd)
    kind = FileKind.COPY if path.suffix == ".cpy" else FileKind.SEGMENT
    if found is None or (found[0].segment, found[0].kind) != (segment, kind):
        return LogFile(segment, path, None, 0, 0)
    header, checksum, start = found
    return LogFile(segment, path, header, checksum, start)


class LogFiles:
    """Descriptors of the log's files, opened when first read and kept.

    ``fds`` is the hot path's way in: a missing id raises ``KeyError``, and ``fd`` then opens.
    """

    __slots__ = ("_disk", "_lock", "_log", "fds")

    def __init__(self, disk: Disk, log: Path) -> None:
        self._disk = disk
        self._log = log
        self._lock = threading.Lock()  # guards: no file is opened twice
        self.fds: dict[int, int] = {}

    def fd(self, segment: int) -> int:
        """A descriptor of the file, for reading and writing.

        Raises:
            FileNotFoundError: the log has no such file.
        """
        with self._lock:
            found = self.fds.get(segment)
            if found is None:
                try:
                    path = segment_path(self._log, segment)
                    found = self._disk.open(path, write=True)
                except FileNotFoundError:
                    path = segment_path(self._log, segment, FileKind.COPY)
                    found = self._disk.open(path, write=True)
                self.fds[segment] = found
            return found

    def drop(self, segments: Iterable[int]) -> None:
        """Close the files that were removed; no reader can want them any more."""
        with self._lock:
            fds = [self.fds.pop(segment) for segment in segments if segment in self.fds]
        for fd in fds:
            self._disk.close(fd)

    def abandon(self) -> None:
        """In a forked child: close them all, whatever a thread that stayed behind was doing."""
        self._lock = threading.Lock()
        self.close()

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            fds = list(self.fds.values())
            self.fds.clear()
        for fd in fds:
            self._disk.close(fd)
