"""A log file in memory, batch by batch, and a disk that reads it and counts what it reads."""

import pytest

from kvsage.fs import Disk
from kvsage.log.format import (
    BatchHeader,
    EndMark,
    FileKind,
    LogEntry,
    SegmentHeader,
    Timeline,
    encode_batch,
    encode_end,
    encode_entry,
    encode_header,
    place,
)
from kvsage.log.reader import SegmentReader

UUID = bytes(range(1, 17))
SALT = int.from_bytes(UUID[:8], "little")
FD = 3


class MemoryDisk(Disk):
    """One file, held in memory, that can only be read."""

    def __init__(self, data):
        self.data = data
        self.reads = []

    def size(self, fd):
        assert fd == FD
        return len(self.data)

    def read(self, fd, length, offset):
        assert fd == FD
        self.reads.append((length, offset))
        return bytes(self.data[offset : offset + length])


class LogBytes:
    """The bytes of a segment. ``offsets`` says where each batch stands."""

    def __init__(self, segment=1, after_seq=0):
        self.segment = segment
        self.seq = after_seq
        timelines = (Timeline(9, 0),)
        self.header = SegmentHeader(
            FileKind.SEGMENT, UUID, segment, 5, 9, after_seq, 0, 0, 1000, (), timelines
        )
        self.data = bytearray(encode_header(self.header))
        self.start = len(self.data)
        self.first_chain = self.chain = int.from_bytes(self.data[-8:], "little")
        self.after_seq = after_seq
        self.offsets = []
        self.chains = []

    def framed(self, value=b"v", key=b"k"):
        """One entry of the next batch."""
        return encode_entry(LogEntry(self.seq + 1, 0, 1, 0, key, value))

    def encoded(self, body, *, flushed_seq=0, **changes):
        """The bytes of a batch that would follow, its fields as they should be or changed."""
        fields = {
            "entries": 1,
            "seq": self.seq + 1,
            "chain": self.chain,
            "time_ms": 2000,
            **changes,
        }
        at = fields.pop("at", (SALT, self.segment, len(self.data)))
        header = BatchHeader(0, length=0, flushed_seq=flushed_seq, **fields)
        checksum, head, rest = encode_batch(header, body, place(*at))
        return checksum, head + rest

    def append(self, value=b"v", *, flushed_seq=0):
        """The next batch; where it stands."""
        offset = len(self.data)
        checksum, data = self.encoded(self.framed(value), flushed_seq=flushed_seq)
        self.data += data
        self.seq, self.chain = self.seq + 1, checksum
        self.offsets.append(offset)
        self.chains.append(checksum)
        return offset

    def end(self):
        """An end mark behind the last batch; where it stands."""
        offset = len(self.data)
        self.data += encode_end(SALT, self.segment, EndMark(offset, self.seq, self.chain))
        return offset

    def flip(self, offset, mask=0x10):
        self.data[offset] ^= mask

    def reader(self, salt=SALT, segment=None):
        disk = MemoryDisk(self.data)
        return SegmentReader(disk, FD, segment or self.segment, salt)

    def read(self, **options):
        """The offsets of the batches that follow one another."""
        batches = self.reader(**options).batches(self.start, self.first_chain, self.after_seq)
        return [batch.offset for batch in batches]

    def vouched(self):
        """What a reading that stops makes of the rest: where it stopped, and what is vouched."""
        reader = self.reader()
        offset, seq = self.start, self.after_seq
        for batch in reader.batches(self.start, self.first_chain, self.after_seq):
            offset, seq = batch.end, batch.header.seq
        return offset, reader.vouched_end(offset, seq)


@pytest.fixture(scope="session")
def new_log():
    """Makes a log of its own for each call."""
    return LogBytes


@pytest.fixture
def log():
    return LogBytes()


@pytest.fixture
def memory_reader():
    """A reader over some bytes, and the list of what it read of them."""

    def reader(data, segment=1):
        disk = MemoryDisk(data)
        return SegmentReader(disk, FD, segment, SALT), disk.reads

    return reader
