"""The rows of the index, what INDEX says, and what is sorted by bytes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from kvsage.errors import KvsageError
from kvsage.fs import POSIX
from kvsage.index import contents, expiry, keydir, segments, trust
from kvsage.index.contents import ContentRow
from kvsage.index.keydir import Row
from kvsage.index.segments import Meta, SegmentRow
from kvsage.index.trust import Trust
from kvsage.store import KEY_BYTES_MAX

U8 = st.integers(0, (1 << 8) - 1)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
KEY = st.binary(min_size=1, max_size=480)
CONTENT_KEYS = st.lists(st.binary(min_size=18, max_size=18), max_size=4).map(b"".join)
BOOT = st.text("0123456789abcdef-", max_size=36).map(str.encode)
TRUSTS = st.builds(
    Trust,
    st.booleans(),
    st.binary(min_size=16, max_size=16),
    BOOT,
    U64,
    U64,
    U64,
    U64,
    U32,
    U32,
    U64,
    U64,
)
BOOT_ID = b"0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
CLEAN = True
SAMPLE = Trust(CLEAN, bytes(range(16)), BOOT_ID, 66306, 131, 81920, 5, 3, 4096, 17, 99)


# -- rows ---------------------------------------------------------------------------------------


@given(st.builds(Row, U32, U32, U32, U64, U64, U8), CONTENT_KEYS)
def test_row_of_a_key(row, content_keys):
    data = keydir.ROW.pack(*row)
    assert data == struct.pack("<IIIQQB", *row)
    assert keydir.decode_row(data) == row
    assert keydir.content_keys_in(data) == b""
    assert keydir.decode_row(data + content_keys) == row
    assert keydir.content_keys_in(data + content_keys) == content_keys


@given(st.builds(ContentRow, U32, U32, U32, U64, U64, U64, U32, U32, CONTENT_KEYS))
def test_row_of_a_content(row):
    data = contents.encode_content_row(row)
    assert data == struct.pack("<IIIQQQII", *row[:-1]) + row.children
    assert contents.decode_content_row(data) == row
    assert contents.decode_content_row(memoryview(data)) == row


def test_a_content_that_is_no_node_has_no_children():
    row = ContentRow(1, 200, 50, 7, 99, 1, 0, 50)
    assert row.children == b""
    assert len(contents.encode_content_row(row)) == contents.CONTENT_ROW.size == 44


@given(st.builds(Meta, U32, U32, U32, U64, U64, U64, U64, U64, U8))
def test_row_of_the_log(meta):
    data = segments.META.pack(*meta)
    assert data == struct.pack("<IIIQQQQQB", *meta)
    assert segments.decode_meta(data) == meta


@given(st.builds(SegmentRow, U32, U32, U64, U64, U64, U64, U8, U8, U64))
def test_row_of_a_file(row):
    data = segments.SEGMENT_ROW.pack(*row)
    assert data == struct.pack("<IIQQQQBBQ", *row)
    assert segments.decode_segment_row(data) == row


@pytest.mark.parametrize(
    ("sizes", "decode"),
    [
        ({29, 47, 65, 83}, keydir.decode_row),
        ({44, 62, 80}, contents.decode_content_row),
        ({50}, segments.decode_segment_row),
        ({53}, segments.decode_meta),
    ],
)
def test_a_row_of_another_length_is_damage(sizes, decode):
    """The index bears no checksums; a length that cannot be is all that a decoder can see."""
    for size in sizes:
        decode(bytes(size))
    for length in {*range(max(sizes) + 2), 4096} - sizes:
        with pytest.raises(KvsageError):
            decode(bytes(length))


# -- what sorts by bytes ------------------------------------------------------------------------


@given(st.lists(st.tuples(U64, KEY), max_size=20))
def test_what_expires_first_stands_first(pairs):
    rows = sorted(expiry.expiry_key(*pair) for pair in pairs)
    assert [expiry.split_expiry_key(row) for row in rows] == sorted(pairs)


def test_an_expiry_key_fits_lmdb():
    assert len(expiry.expiry_key(1, b"k" * KEY_BYTES_MAX)) <= 511


def test_keys_of_kvsages_own_are_no_text():
    assert keydir.CONTENT_ROOT[0] == keydir.SYSTEM == 0xFF
    with pytest.raises(UnicodeDecodeError):
        keydir.CONTENT_ROOT.decode()


@given(st.lists(U32, unique=True, max_size=20))
def test_segments_stand_in_the_order_of_their_numbers(numbers):
    keys = sorted(map(segments.segment_key, numbers))
    assert keys == [segments.segment_key(number) for number in sorted(numbers)]


def test_rows_of_segments(txn):
    rows = {
        number: SegmentRow(136, number % 1000, 7, 9, number % 99, number % 77, 1, 0)
        for number in (1, 2, 255, 256, 70_000, (1 << 32) - 1)
    }
    assert list(segments.all_segments(txn)) == []
    for number in (256, 1, (1 << 32) - 1, 70_000, 2, 255):
        segments.put_segment(txn, number, rows[number])
    segments.put_meta(txn, Meta(1, 2, 3, 4, 5, 6, 7, 8, 0))
    txn.put(b"segment", b"sorts before")
    txn.put(b"segment;", b"sorts behind")
    assert list(segments.all_segments(txn)) == list(rows.items())
    assert segments.get_segment(txn, 255) == rows[255]
    assert segments.get_segment(txn, 3) is None


def test_a_copy_that_only_joins_does_not_count_yet(txn):
    listed = SegmentRow(136, 500, 0, 7, 100, 5, 1, segments.LISTED)
    segments.put_segment(txn, 1, listed)
    segments.put_segment(txn, 2, listed._replace(kind=2, state=segments.JOINING))
    segments.put_segment(txn, 3, listed._replace(kind=2))
    assert [segment for segment, _ in segments.all_segments(txn)] == [1, 2, 3]
    assert [segment for segment, _ in segments.listed_segments(txn)] == [1, 3]


def test_dead_bytes_add_up_and_those_of_no_file_are_passed_over(txn):
    first, second = SegmentRow(136, 500, 0, 7, 9, 5, 1, 0), SegmentRow(136, 600, 9, 9, 80, 0, 2, 1)
    segments.put_segment(txn, 1, first)
    segments.put_segment(txn, 2, second)
    segments.add_dead(txn, {1: 10, 2: 20, 3: 30})
    segments.add_dead(txn, {1: 1})
    segments.add_dead(txn, {})
    assert list(segments.all_segments(txn)) == [
        (1, first._replace(dead_bytes=16)),
        (2, second._replace(dead_bytes=20)),
    ]


def test_a_file_that_was_retired_is_listed_no_more_and_remembered(txn):
    row = SegmentRow(136, 500, 0, 7, 9, 5, 1, segments.LISTED)
    for number in (1, 2, 70_000):
        segments.put_segment(txn, number, row)
    assert segments.all_retired(txn) == {}
    for number in (70_000, 1):
        segments.put_retired(txn, number)
    assert list(segments.all_segments(txn)) == [(2, row)]
    assert segments.all_retired(txn) == {1: (txn.id(), 0, 0), 70_000: (txn.id(), 0, 0)}
    segments.forgotten(txn, [70_000, 3])
    assert segments.all_retired(txn) == {1: (txn.id(), 0, 0), 70_000: (txn.id(), 1, 0)}
    segments.drop_retired(txn, [1, 3])
    segments.drop_retired(txn, [1])
    assert segments.all_retired(txn) == {70_000: (txn.id(), 1, 0)}


def test_the_floor_only_rises(txn):
    assert segments.get_floor(txn) == 0
    for seq, floor in [(0, 0), (7, 7), (5, 7), (1 << 60, 1 << 60)]:
        segments.put_floor(txn, seq)
        assert segments.get_floor(txn) == floor


def test_where_the_log_ends(txn):
    assert segments.get_meta(txn) is None
    for meta in (Meta(1, 2, 3, 4, 5, 6, 7, 8, 0), Meta(9, 8, 7, 6, 5, 4, 3, 2, 1)):
        segments.put_meta(txn, meta)
        assert segments.get_meta(txn) == meta


# -- INDEX --------------------------------------------------------------------------------------


@given(TRUSTS)
def test_what_index_says(said):
    data = trust.encode_trust(said)
    assert len(data) == trust.SIZE
    assert trust.decode_trust(data) == said


def test_bytes_of_index():
    body = b"kvsindex" + struct.pack("<HBx4x", 3, 1) + bytes(range(16)) + BOOT_ID
    body += struct.pack("<QQQQIIQQ", 66306, 131, 81920, 5, 3, 4096, 17, 99)
    checksum = xxh3_64_intdigest(body).to_bytes(8, "little")
    assert trust.encode_trust(SAMPLE) == body + checksum
    assert len(body) + 8 == trust.SIZE


def test_every_flip_and_every_other_length_of_index_is_found():
    data = trust.encode_trust(SAMPLE)
    for position in range(len(data)):
        for mask in range(1, 256):
            wrong = bytearray(data)
            wrong[position] ^= mask
            assert trust.decode_trust(bytes(wrong)) is None
    for length in range(len(data)):
        assert trust.decode_trust(data[:length]) is None
    assert trust.decode_trust(data + b"\0") is None
    longer = data[:-8] + b"\0"
    checksum = xxh3_64_intdigest(longer).to_bytes(8, "little")
    assert trust.decode_trust(longer + checksum) is None


@given(st.binary(min_size=trust.SIZE, max_size=trust.SIZE))
def test_noise_says_nothing(noise):
    assert trust.decode_trust(noise) is None


@pytest.mark.parametrize(("position", "value"), [(0, b"KVSINDEX"), (8, b"\2\0"), (8, b"\4\0")])
def test_another_magic_or_version_says_nothing(position, value):
    """Whoever cannot read INDEX builds the index anew: another version costs time and no more."""
    body = bytearray(trust.encode_trust(SAMPLE)[:-8])
    body[position : position + len(value)] = value
    checksum = xxh3_64_intdigest(bytes(body)).to_bytes(8, "little")
    assert trust.decode_trust(bytes(body) + checksum) is None


def test_reading_index(tmp_path, monkeypatch):
    path = tmp_path / "INDEX"
    assert trust.read_trust(POSIX, path) is None
    path.write_bytes(trust.encode_trust(SAMPLE))
    assert trust.read_trust(POSIX, path) == SAMPLE
    path.write_bytes(trust.encode_trust(SAMPLE) + b"more")
    assert trust.read_trust(POSIX, path) is None
    path.unlink()
    path.mkdir()  # cannot be read as a file
    assert trust.read_trust(POSIX, path) is None


def test_the_running_boot(tmp_path, monkeypatch):
    assert trust.boot_id() == trust.boot_id()
    monkeypatch.setattr(trust, "BOOT_ID", tmp_path / "boot_id")
    assert trust.boot_id() == b""
    (tmp_path / "boot_id").write_bytes(BOOT_ID + b"\n")
    assert trust.boot_id() == BOOT_ID
    (tmp_path / "boot_id").write_bytes(b"x" * 100)
    assert trust.boot_id() == b"x" * 36  # what INDEX has room for
