"""What repair can still use: files that stand for others, and entries in bytes that do not check.

A copy and the files that it was made of hold the same: whichever is whole will do. So a copy that
no RETIRE names any more stands for its sources when one of them cannot be read, and sources that
are still there stand for a copy that cannot be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64_intdigest

from kvsage.engine.rebuild import listed_after
from kvsage.log.format import (
    CHECKSUM_BYTES,
    ENTRY_BYTES,
    ListedFile,
    Retire,
    SegmentHeader,
    decode_entry,
    entry_length,
)
from kvsage.log.reader import SegmentReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvsage.fs import Disk
    from kvsage.log.segment import LogFile

# -- which files stand for others ---------------------------------------------------------------


class Shelf:
    """The files of a log that is damaged, and which of them are whole."""

    def __init__(self, disk: Disk, salt: int, files: dict[int, LogFile]) -> None:
        self._disk = disk
        self._salt = salt
        self._files = files
        self._known: dict[tuple[int, int], bool] = {}

    def counted(
        self, newest: SegmentHeader | None, retires: Sequence[Retire]
    ) -> tuple[dict[int, int], dict[int, int]]:
        """Where each file ends that counts beside the active segment, missing ones too.

        Args:
            newest: the header that decides; where there is none, every copy counts that is there.
            retires: what was said of the files since.

        Returns:
            The ends by file id; and by the id of each file that cannot be read and that another
            stands for, which that is.
        """
        if newest is None:
            return listed_after(self._all_copies(), retires), {}
        ends = listed_after(newest.files, retires)
        stood_for: dict[int, int] = {}
        before = {file.segment: file.end for file in newest.files}
        before |= {retire.copy: retire.end for retire in retires}
        for retire in retires:
            sources = {segment: before[segment] for segment in retire.files if segment in before}
            whole = len(sources) == len(retire.files) and self._all_whole(sources)
            if retire.copy in ends and whole and not self._is_whole(retire.copy, retire.end):
                del ends[retire.copy]
                ends |= sources
                stood_for[retire.copy] = retire.files[0]
        gone = {segment for retire in retires for segment in retire.files}
        for file in self._copies(newest):
            sources = {listed.segment: listed.end for listed in _sources(file)}
            if file.segment in gone or not sources or not sources.items() <= ends.items():
                continue
            end = self._size(file)
            if self._is_whole(file.segment, end) and not self._all_whole(sources):
                for segment in sources:
                    del ends[segment]
                ends[file.segment] = end
                broken = [s for s in sources if not self._is_whole(s, sources[s])]
                stood_for |= dict.fromkeys(broken, file.segment)
        return ends, stood_for

    def _copies(self, newest: SegmentHeader) -> list[LogFile]:
        """The copies of this history, the newest first; what a killed repair left is of another."""
        timelines = {timeline.timeline for timeline in newest.timelines}
        return [
            file
            for _, file in sorted(self._files.items(), reverse=True)
            if file.is_copy and file.header is not None and file.header.timeline in timelines
        ]

    def _all_copies(self) -> list[ListedFile]:
        """Every copy that was not put into another one."""
        copies = [file for file in self._files.values() if file.is_copy and file.header is not None]
        inside = {listed.segment for file in copies for listed in _sources(file)}
        return [ListedFile(f.segment, self._size(f)) for f in copies if f.segment not in inside]

    def _size(self, file: LogFile) -> int:
        fd = self._disk.open(file.path)
        try:
            return self._disk.size(fd)
        finally:
            self._disk.close(fd)

    def _all_whole(self, ends: dict[int, int]) -> bool:
        return all(self._is_whole(segment, end) for segment, end in ends.items())

    def _is_whole(self, segment: int, end: int) -> bool:
        """Whether a file is there and checks up to ``end``."""
        known = self._known.get((segment, end))
        if known is None:
            known = self._known[segment, end] = self._read_to(segment, end)
        return known

    def _read_to(self, segment: int, end: int) -> bool:
        file = self._files.get(segment)
        if file is None or file.header is None:
            return False
        fd = self._disk.open(file.path)
        try:
            reader = SegmentReader(self._disk, fd, segment, self._salt)
            at = file.start
            for batch in reader.batches(at, file.chain, file.header.after_seq, end):
                at = batch.end
            return at == end
        finally:
            self._disk.close(fd)


def _sources(file: LogFile) -> tuple[ListedFile, ...]:
    """The files whose live entries a copy holds."""
    return () if file.header is None else file.header.files


# -- what stands in a file ----------------------------------------------------------------------


class Carried(NamedTuple):
    """An entry on its way into a copy: framed, which one of its commit it was, and when."""

    framed: bytes
    n: int
    time_ms: int


CORRECTED_BYTES_MAX = 16 << 10  # trying every bit costs the square of the length
LENGTHS = range(24, 30)  # where value length and key length stand in an entry


def whole_at(data: bytes, at: int) -> bytes:
    """The entry at ``at``, with its one flipped bit flipped back if it has one; empty for none."""
    as_it_is = data[at : at + entry_length(data, at)]
    if decode_entry(as_it_is) is not None:
        return as_it_is
    header = bytearray(data[at : at + ENTRY_BYTES])
    for bit in range(8 * LENGTHS.start, 8 * LENGTHS.stop):  # a wrong length hides the entry's end
        header[bit // 8] ^= 1 << bit % 8
        length = entry_length(header, 0)
        entry = bytes(header) + data[at + ENTRY_BYTES : at + length]
        if decode_entry(entry) is not None:
            return entry
        header[bit // 8] ^= 1 << bit % 8
    return corrected(as_it_is)


def corrected(framed: bytes) -> bytes:
    """An entry with its one flipped bit flipped back; empty where that is not what it has."""
    if not ENTRY_BYTES <= len(framed) <= CORRECTED_BYTES_MAX:
        return b""
    checksum = int.from_bytes(framed[:CHECKSUM_BYTES], "little")
    body = bytearray(framed[CHECKSUM_BYTES:])
    actual = xxh3_64_intdigest(body)
    if (actual ^ checksum).bit_count() == 1:
        return actual.to_bytes(CHECKSUM_BYTES, "little") + body
    for bit in range(8 * len(body)):
        body[bit // 8] ^= 1 << bit % 8
        if xxh3_64_intdigest(body) == checksum:
            return framed[:CHECKSUM_BYTES] + bytes(body)
        body[bit // 8] ^= 1 << bit % 8
    return b""


def grouped(carried: list[Carried], limit: int) -> Iterator[list[Carried]]:
    """Consecutive entries, in groups of about ``limit`` bytes."""
    group: list[Carried] = []
    size = 0
    for entry in carried:
        if group and size + len(entry.framed) > limit:
            yield group
            group, size = [], 0
        group.append(entry)
        size += len(entry.framed)
    if group:
        yield group


def is_text(key: bytes) -> bool:
    """Whether these could be the bytes of a caller's key."""
    try:
        return "\0" not in key.decode()  # zeros over a key are damage, not a key
    except UnicodeDecodeError:
        return False
