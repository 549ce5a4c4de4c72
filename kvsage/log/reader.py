"""Reading a log file from front to back, and judging what its reading stopped at.

A reading stops at the first batch that does not check. That is a torn tail (the end that a crash
left, never acknowledged, cut in silence) unless something written later vouches for it, and then it
is damage: a list in a later header, the end mark of a clean close, or a later batch that says the
log was on disk up to there when it was written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64_intdigest

from kvsage.log.format import (
    BATCH_BYTES,
    BATCH_MAGIC_BYTES,
    CHECKSUM_BYTES,
    END_BYTES,
    END_MAGIC_BYTES,
    ENTRY_BYTES,
    MAGIC_OFFSET,
    ORIGIN,
    ORIGINS,
    RETIRE,
    BatchHeader,
    Retire,
    decode_batch_header,
    decode_end,
    decode_entry,
    decode_retire,
    entry_length,
    place,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvsage.fs import Disk

WINDOW_BYTES = 1 << 20


class Batch(NamedTuple):
    """A batch that checks: where it stands, its header, its framed entries."""

    offset: int
    header: BatchHeader
    body: bytes

    @property
    def end(self) -> int:
        """Where the next one stands."""
        return self.offset + BATCH_BYTES + self.header.length


def retires_in(batch: Batch) -> list[Retire]:
    """What the RETIRE entry of a batch says; it stands in a batch of its own."""
    if batch.header.entries != 1 or len(batch.body) < ENTRY_BYTES:
        return []
    entry = decode_entry(batch.body)
    said = decode_retire(entry.value) if entry is not None and entry.kind == RETIRE else None
    return [] if said is None else [said]


def origins_in(data: bytes, entries: int) -> list[tuple[int, int]]:
    """Of a batch of a copy, which entry of its commit each entry was and when that was (ms).

    Args:
        data: the batch's entries, or no more than the first.
        entries: how many the batch has.

    Returns:
        One for every entry but the first; empty where the copy does not say. Repair writes copies
        without them: of what it saved, not all that was before is known.
    """
    length = entry_length(data, 0)
    if length != ENTRY_BYTES + ORIGIN.size * (entries - 1):
        return []
    entry = decode_entry(data[:length])
    if entry is None or entry.kind != ORIGINS or entry.key:
        return []
    return list(ORIGIN.iter_unpack(entry.value))


class SegmentReader:
    """The bytes of one log file, through a window, so that many small reads cost one call.

    Not for a file's live tail in another process's hands: what the window holds is not read again.
    """

    __slots__ = ("_base", "_data", "_disk", "_fd", "_salt", "_window_bytes", "segment", "size")

    def __init__(
        self, disk: Disk, fd: int, segment: int, salt: int, window_bytes: int = WINDOW_BYTES
    ) -> None:
        self._disk = disk
        self._fd = fd
        self._salt = salt
        self._window_bytes = window_bytes
        self.segment = segment
        self.size = disk.size(fd)
        self._base = 0
        self._data = b""

    def bytes_at(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes, fewer only where the file ends."""
        window, start = self.window_at(offset, length)
        return window[start : start + length]

    def window_at(self, offset: int, length: int) -> tuple[bytes, int]:
        """A window that holds these bytes, as far as the file has them, and their place in it."""
        start = offset - self._base
        if start < 0 or start + length > len(self._data):
            self._data = self._disk.read(self._fd, max(length, self._window_bytes), offset)
            self._base, start = offset, 0
        return self._data, start

    def header_at(self, offset: int) -> BatchHeader | None:
        """The batch header at ``offset``, nothing checked; None where none stands."""
        return decode_batch_header(self.bytes_at(offset, BATCH_BYTES))

    def batch_at(self, offset: int) -> Batch | None:
        """The batch at ``offset``, its own checksum checked and its chain not; None for none."""
        header = self.header_at(offset)
        if header is None or offset + BATCH_BYTES + header.length > self.size:
            return None
        data = self.bytes_at(offset, BATCH_BYTES + header.length)
        covered = memoryview(data)[CHECKSUM_BYTES:]
        if xxh3_64_intdigest(covered, place(self._salt, self.segment, offset)) != header.checksum:
            return None
        return Batch(offset, header, data[BATCH_BYTES:])

    def batches(self, offset: int, chain: int, seq: int, end: int | None = None) -> Iterator[Batch]:
        """The batches that follow one another from ``offset``, up to the first that does not.

        Args:
            offset: where the first one stands.
            chain: checksum of what stands before it.
            seq: number of what stands before it.
            end: where to stop, for the file's end.
        """
        while end is None or offset < end:
            batch = self.batch_at(offset)
            if batch is None or batch.header.chain != chain or batch.header.seq != seq + 1:
                return
            yield batch
            chain, seq, offset = batch.header.checksum, batch.header.seq, batch.end

    def later_batches(self, offset: int) -> Iterator[Batch]:
        """Every batch at or after ``offset`` that checks by itself, whatever lies in between."""
        while (found := self._find(BATCH_MAGIC_BYTES, offset)) is not None:
            batch = self.batch_at(found)
            if batch is not None:
                yield batch
            offset = batch.end if batch is not None else found + 1

    def vouched_end(self, offset: int, seq: int) -> int | None:
        """Up to where something written later says that the log was whole, if past ``offset``.

        Args:
            offset: where the reading stopped.
            seq: number of the last batch that was read.
        """
        vouched = None
        for batch in self.later_batches(offset):
            # A batch that stood on disk after the gap proves nothing by itself: unflushed writes
            # reach the disk in any order. What it says of the flush before it does.
            if batch.header.flushed_seq > seq:
                vouched = batch.offset
        at = offset
        while (found := self._find(END_MAGIC_BYTES, at)) is not None:
            data = self.bytes_at(found, END_BYTES)
            if decode_end(data, self._salt, self.segment, found) is not None and found > offset:
                vouched = max(vouched or 0, found)
            at = found + 1
        return vouched

    def _find(self, magic: bytes, offset: int) -> int | None:
        """Where the next thing that bears ``magic`` begins, at or after ``offset``."""
        at = offset + MAGIC_OFFSET
        while at < self.size:
            data = self.bytes_at(at, min(WINDOW_BYTES, self.size - at))
            hit = data.find(magic)
            if hit >= 0:
                return at + hit - MAGIC_OFFSET
            if at + len(data) >= self.size:
                return None
            at += len(data) - len(magic) + 1
        return None
