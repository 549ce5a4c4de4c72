"""Making log files and room in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsage.errors import StoreFullError
from kvsage.fs import POSIX, Disk
from kvsage.fs.posix import ZEROS
from kvsage.log.format import FileKind, SegmentHeader, Timeline, encode_header
from kvsage.log.writer import GROWTH_LEAST_BYTES, GROWTH_MOST_BYTES, create_file, make_room

FAR = 1 << 31
HEADER = SegmentHeader(
    FileKind.SEGMENT, bytes(range(16)), 1, 5, 9, 3, 0, 0, 1000, (), (Timeline(9, 0),)
)


class SizeOnly(Disk):
    """A disk of which only the size of one file is kept."""

    def __init__(self, size):
        self.bytes = size
        self.zeroed = []

    def size(self, _):
        return self.bytes

    def write(self, _, parts, offset):
        assert all(ZEROS.startswith(part) for part in parts)
        length = sum(map(len, parts))
        self.zeroed.append((offset, length))
        self.bytes = max(self.bytes, offset + length)


def contents(fd):
    return POSIX.read(fd, 1 << 30, 0)


# -- a new file ---------------------------------------------------------------------------------


def test_a_new_file_is_whole_and_durable_before_it_has_its_name(tmp_path, recording_disk):
    path, chain, end = create_file(recording_disk, tmp_path, HEADER, b"batches")
    data = encode_header(HEADER) + b"batches"
    assert (path, chain, end) == (
        tmp_path / "0000000001.seg",
        int.from_bytes(encode_header(HEADER)[-8:], "little"),
        len(data),
    )
    assert path.read_bytes() == data
    assert recording_disk.calls == [
        ("truncate", "0000000001.seg.tmp", 0),
        ("write", "0000000001.seg.tmp", len(data), 0),
        ("sync", "0000000001.seg.tmp"),
        ("rename", "0000000001.seg.tmp", "0000000001.seg"),
        ("sync_directory", tmp_path.name),
    ]


def test_what_a_cut_creation_left_is_overwritten(tmp_path):
    (tmp_path / "0000000001.seg.tmp").write_bytes(b"\xff" * 10_000)
    path, _, end = create_file(POSIX, tmp_path, HEADER)
    assert path.stat().st_size == end
    assert [file.name for file in tmp_path.iterdir()] == ["0000000001.seg"]


def test_a_file_that_finds_no_space_gets_no_name(tmp_path, full_disk):
    with pytest.raises(StoreFullError):
        create_file(full_disk(50), tmp_path, HEADER)
    assert list(tmp_path.glob("*.seg")) == []


# -- room ---------------------------------------------------------------------------------------


def test_where_there_is_room_nothing_is_done():
    disk = SizeOnly(1000)
    for end in (0, 1, 999, 1000):
        assert make_room(disk, 0, end, FAR) == 1000
    assert disk.zeroed == []


@given(st.integers(0, 1 << 28), st.integers(1, 1 << 23), st.integers(1 << 16, FAR))
def test_room_is_made_in_bounded_chunks_from_the_present_size(size, more, limit):
    disk = SizeOnly(size)
    end = size + more
    grown = make_room(disk, 0, end, limit)
    assert grown == disk.bytes >= end
    assert grown <= max(end, limit)
    growth = min(max(size // 4, GROWTH_LEAST_BYTES), GROWTH_MOST_BYTES)
    assert grown == max(end, min(size + growth, limit))
    # One zero behind the other, none below what was there, no piece larger than the shared one.
    at = size
    for offset, length in disk.zeroed:
        assert offset == at
        assert 0 < length <= len(ZEROS)
        at += length
    assert at == grown


def test_a_small_store_stays_small():
    assert make_room(SizeOnly(136), 0, 500, FAR) == 136 + (256 << 10)
    assert make_room(SizeOnly(8 << 20), 0, (8 << 20) + 1, FAR) == 10 << 20
    assert make_room(SizeOnly(1 << 30), 0, (1 << 30) + 1, FAR) == (1 << 30) + (4 << 20)


def test_growth_ends_at_the_limit_but_for_what_is_needed():
    assert make_room(SizeOnly(1000), 0, 1001, 5000) == 5000
    assert make_room(SizeOnly(1000), 0, 7000, 5000) == 7000
    assert make_room(SizeOnly(6000), 0, 6001, 5000) == 6001


def test_bytes_below_the_present_size_are_not_touched(new_file):
    fd = new_file(b"\xff" * 5000)
    size = make_room(POSIX, fd, 5001, FAR)
    assert contents(fd) == b"\xff" * 5000 + bytes(size - 5000)


def test_a_file_that_another_process_has_grown_meanwhile_is_left_alone(new_file):
    fd = new_file(b"\xff" * 300_000)
    assert make_room(POSIX, fd, 200_000, FAR) == 300_000
    assert contents(fd) == b"\xff" * 300_000


def test_on_a_disk_that_is_nearly_full_what_is_needed_is_enough(new_file, full_disk):
    disk = full_disk(6000)
    fd = new_file(b"\xff" * 5000, disk=disk)
    size = make_room(disk, fd, 5500, FAR)
    assert "full" in disk.verbs()
    assert 5500 <= size <= 6000
    assert contents(fd) == b"\xff" * 5000 + bytes(size - 5000)


def test_on_a_disk_that_had_room_for_a_moment_only(new_file, recording_disk, monkeypatch):
    """The first attempt leaves nothing behind; the smaller one fits."""
    write = recording_disk.write
    refused = []

    def full_once(fd, parts, offset):
        if not refused:
            refused.append(offset)
            raise StoreFullError("full")
        write(fd, parts, offset)

    monkeypatch.setattr(recording_disk, "write", full_once)
    fd = new_file(b"\xff" * 100)
    assert make_room(recording_disk, fd, 700, FAR) == 700
    assert refused == [100]
    assert contents(fd) == b"\xff" * 100 + bytes(600)


def test_on_a_full_disk_it_says_so_and_harms_nothing(new_file, full_disk):
    disk = full_disk(5100)
    fd = new_file(b"\xff" * 5000, disk=disk)
    with pytest.raises(StoreFullError):
        make_room(disk, fd, 5500, FAR)
    assert contents(fd)[:5000] == b"\xff" * 5000
    assert not any(contents(fd)[5000:])
