"""What repair can still use: files that stand for others, and entries in bytes that do not check.

A copy and the files that it was made of hold the same: whichever is whole will do. So a copy that
no RETIRE names any more stands for its sources when one of them cannot be read, and sources that
are still there stand for a copy that cannot be read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64_intdigest

from kvsage.engine.rebuild import listed_after
from kvsage.log.format import (
    BATCH_BYTES,
    BATCH_MAGIC_BYTES,
    CHECKSUM_BYTES,
    CONTENT_KINDS,
    DELETE,
    ENTRY,
    ENTRY_BYTES,
    ENTRY_KEY_BYTES_MAX,
    MAGIC_OFFSET,
    PUT,
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

DATA_KINDS = CONTENT_KINDS | {PUT, DELETE}  # what a repair carries over

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


class Stretch(NamedTuple):
    """Bytes of a log file that do not check.

    Attributes:
        data: the bytes; they begin with the header of a batch.
        after_seq: every entry in them has a higher seq.
        before_seq: and a lower one than this.
    """

    data: bytes
    after_seq: int
    before_seq: int

    def looks_right(self, at: int) -> bool:
        """Whether what stands at ``at`` looks like the header of an entry that belongs here."""
        if len(self.data) - at < ENTRY_BYTES:
            return False
        _, seq, _, _, key_length, kind, _ = ENTRY.unpack_from(self.data, at)
        return (
            kind in DATA_KINDS
            and key_length <= ENTRY_KEY_BYTES_MAX
            and self.after_seq < seq < self.before_seq
            and at + entry_length(self.data, at) <= len(self.data)
        )

    def is_batch(self, at: int) -> bool:
        """Whether the header of a batch seems to stand at ``at``."""
        return self.data.startswith(BATCH_MAGIC_BYTES, at + MAGIC_OFFSET)

    def behind(self, at: int) -> int:
        """Where to go on behind what cannot be read at ``at``; the length of the data for nowhere.

        Where its length leads to something that looks right, there. Otherwise at the next entry
        that checks: only of seqs that belong here, since a value may hold the bytes of an entry.
        """
        claimed = at + entry_length(self.data, at)
        if claimed == len(self.data) or self.is_batch(claimed) or self.looks_right(claimed):
            return claimed
        for found in SHAPE.finditer(self.data, at + 1 + SHAPE_AT):
            start = found.start() - SHAPE_AT
            if self.looks_right(start) and decode_entry(self.framed(start)) is not None:
                return start
        return len(self.data)

    def framed(self, at: int) -> bytes:
        """The bytes of the entry at ``at``, as long as it says that it is."""
        return self.data[at : at + entry_length(self.data, at)]


class Piece(NamedTuple):
    """Entries that stood behind one another.

    Attributes:
        framed: the entries, empty where one cannot be read.
        from_start: whether the first of them was the first of its batch.
    """

    framed: list[bytes]
    from_start: bool


def pieces_of(stretch: Stretch) -> tuple[list[Piece], list[int]]:
    """What can be read of a stretch, and where something stands that cannot."""
    pieces, broken, at = [Piece([], from_start=True)], [], BATCH_BYTES
    while len(stretch.data) - at >= ENTRY_BYTES:
        entry = whole_at(stretch.data, at)
        if entry:
            pieces[-1].framed.append(entry)
            at += len(entry)
        elif stretch.is_batch(at):
            pieces.append(Piece([], from_start=True))
            at += BATCH_BYTES
        else:
            broken.append(at)
            behind = stretch.behind(at)
            if behind == at + entry_length(stretch.data, at):
                pieces[-1].framed.append(b"")
            else:
                pieces.append(Piece([], from_start=False))
            at = behind
    return pieces, broken


# Where key length, kind and flags of an entry stand, if it is one; a key has at most 480 bytes.
SHAPE = re.compile(rb"(?=[\x00-\xff][\x00\x01][\x01-\x03\x06\x07][\x00-\x1f])", re.DOTALL)
SHAPE_AT = 28
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
