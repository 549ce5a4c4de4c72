"""Every encoder has its decode: round trips, all damage found, limits kept when reading."""

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from kvsage.errors import CorruptionError, FormatVersionError
from kvsage.log import format as fmt
from kvsage.log.format import (
    BatchHeader,
    EndMark,
    FileKind,
    Identity,
    ListedFile,
    LogEntry,
    Retire,
    SegmentHeader,
    Timeline,
    TreeItem,
)

U8 = st.integers(0, (1 << 8) - 1)
U16 = st.integers(0, (1 << 16) - 1)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
UUID = st.binary(min_size=16, max_size=16)
MASK = st.integers(1, 255)

IDENTITIES = st.builds(Identity, st.just(fmt.FORMAT), UUID, U64)
HEADERS = st.builds(
    SegmentHeader,
    st.sampled_from([int(kind) for kind in FileKind]),
    UUID,
    U32,
    U64,
    U64,
    U64,
    U64,
    U64,
    U64,
    st.lists(st.builds(ListedFile, U32, U32), max_size=5).map(tuple),
    st.lists(st.builds(Timeline, U64, U64), max_size=3).map(tuple),
)
ENTRIES = st.builds(
    LogEntry,
    U64,
    U64,
    st.sampled_from(sorted(fmt.KINDS)),
    U8,
    st.binary(max_size=40),
    st.binary(max_size=80),
)

HEADER = SegmentHeader(
    FileKind.SEGMENT,
    bytes(range(16)),
    7,
    0x1122334455667788,
    0x99,
    41,
    0xABCDEF,
    0,
    1_700_000_000_123,
    (ListedFile(5, 4096), ListedFile(6, 70_000)),
    (Timeline(0x77, 0), Timeline(0x99, 30)),
)
ENTRY = LogEntry(42, 1_700_000_000_000, fmt.PUT, fmt.STR, "schlüssel".encode(), b"value")


def entry_of(kind, key, value, flags=0):
    return LogEntry(1, 0, kind, flags, key, value)


def u16(number):
    return number.to_bytes(2, "little")


def u32(number):
    return number.to_bytes(4, "little")


def u64(number):
    return number.to_bytes(8, "little")


def checked(body, seed=0):
    return body + u64(xxh3_64_intdigest(body, seed))


def flipped(data):
    """Every copy of ``data`` with one byte changed, to each other value it can have."""
    for position in range(len(data)):
        for mask in range(1, 256):
            copy = bytearray(data)
            copy[position] ^= mask
            yield position, bytes(copy)


def cut(data):
    return (data[:length] for length in range(len(data)))


def spend(call):
    """What a call allocates at its highest."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# -- sizes: what docs/format.md draws -----------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (fmt.IDENTITY, 48),
        (fmt.HEADER, 96),
        (fmt.LISTED_FILE, 8),
        (fmt.TIMELINE, 16),
        (fmt.ENTRY, 32),
        (fmt.ENTRY_BODY, 24),
        (fmt.BATCH, 56),
        (fmt.BATCH_REST, 48),
        (fmt.END, 40),
        (fmt.CONTENT_KEY, 18),
        (fmt.CONTENT_HEAD, 8),
        (fmt.CONTENT_REF, 26),
        (fmt.RETIRE_HEAD, 16),
        (fmt.RETIRED_FILE, 4),
        (fmt.ORIGIN, 12),
        (fmt.TREE_HEAD, 11),
        (fmt.TREE_ITEM, 27),
        (fmt.PACK_HEAD, 12),
        (fmt.PACKED, 22),
    ],
)
def test_sizes_of_format_1(layout, size):
    assert layout.size == size
    assert layout.format.startswith("<")


def test_kinds_flags_and_magics_of_format_1():
    assert (fmt.PUT, fmt.DELETE, fmt.CONTENT, fmt.RETIRE, fmt.ORIGINS) == (1, 2, 3, 4, 5)
    assert (fmt.PACK, fmt.NODE) == (6, 7)
    assert sorted(fmt.KINDS) == [1, 2, 3, 4, 5, 6, 7]
    codecs = (fmt.MSGPACK, fmt.STR, fmt.BYTES, fmt.JSON, fmt.PICKLE)
    assert codecs == (0, 1, 2, 3, 4)
    assert all(codec & fmt.CODEC_MASK == codec for codec in codecs)
    assert (fmt.IS_CONTENT, fmt.IS_TREE) == (8, 16)
    assert (fmt.BY_USER, fmt.EXPIRED, fmt.EVICTED) == (0, 1, 2)
    assert (fmt.STORED_RAW, fmt.STORED_ZSTD) == (0, 1)
    assert (FileKind.SEGMENT, FileKind.COPY) == (1, 2)
    assert fmt.BATCH_MAGIC_BYTES == b"BVK1"
    assert fmt.END_MAGIC_BYTES == b"END1"
    assert (fmt.IDENTITY_MAGIC, fmt.SEGMENT_MAGIC) == (b"kvsage\x00\x01", b"kvsgment")


# -- identity -----------------------------------------------------------------------------------


@given(IDENTITIES)
def test_identity_round_trip(identity):
    data = fmt.encode_identity(identity)
    assert len(data) == fmt.IDENTITY.size
    assert fmt.decode_identity(data) == identity


def test_identity_bytes():
    uuid = bytes(range(16))
    body = b"kvsage\x00\x01" + u16(1) + u16(16) + bytes(4) + uuid + u64(1234)
    assert fmt.encode_identity(Identity(1, uuid, 1234)) == checked(body)
    assert Identity(1, uuid, 1234).salt == int.from_bytes(uuid[:8], "little")


def test_identity_finds_every_flip():
    data = fmt.encode_identity(Identity(1, bytes(range(16)), 1_700_000_000_123))
    for position, wrong in flipped(data):
        # The version stands before the checksum: a later format may have another one.
        expected = (CorruptionError, FormatVersionError) if position in (8, 9) else CorruptionError
        with pytest.raises(expected):
            fmt.decode_identity(wrong)


@given(IDENTITIES, st.binary(min_size=1, max_size=60))
def test_identity_finds_every_other_length(identity, more):
    data = fmt.encode_identity(identity)
    for wrong in (*cut(data), data + more):
        with pytest.raises(CorruptionError):
            fmt.decode_identity(wrong)


@pytest.mark.parametrize("length", [48, 64, 4096])
def test_identity_of_a_later_format_is_named_whatever_follows(length):
    body = b"kvsage\x00\x01" + u16(2) + u16(16)
    with pytest.raises(FormatVersionError, match=r"format 2.*up to 1"):
        fmt.decode_identity(body.ljust(length, b"\x5a"))


@pytest.mark.parametrize(("version", "address"), [(0, 16), (1, 32), (1, 0)])
def test_identity_with_impossible_fields_is_damage(version, address):
    body = b"kvsage\x00\x01" + u16(version) + u16(address) + bytes(28)
    with pytest.raises(CorruptionError, match="impossible"):
        fmt.decode_identity(checked(body))


# -- segment header -----------------------------------------------------------------------------


@given(HEADERS, st.binary(max_size=50))
def test_header_round_trip(header, behind):
    data = fmt.encode_header(header)
    assert fmt.header_length(data) == len(data)
    assert fmt.header_length(data[: fmt.HEADER.size]) == len(data)
    assert fmt.decode_header(data + behind) == (header, int.from_bytes(data[-8:], "little"))


def test_header_bytes():
    body = (
        b"kvsgment"
        + (u16(1) + u16(1) + u32(96 + 2 * 8 + 2 * 16 + 8))
        + bytes(range(16))
        + (u32(7) + u32(2) + u32(2) + u32(0))
        + (u64(0x1122334455667788) + u64(0x99) + u64(41) + u64(0xABCDEF) + u64(0))
        + u64(1_700_000_000_123)
        + (u32(5) + u32(4096) + u32(6) + u32(70_000))
        + (u64(0x77) + u64(0) + u64(0x99) + u64(30))
    )
    assert fmt.encode_header(HEADER) == checked(body)


def test_header_finds_every_flip():
    for _, wrong in flipped(fmt.encode_header(HEADER)):
        assert fmt.decode_header(wrong) is None


@given(HEADERS)
def test_header_finds_every_cut(header):
    for wrong in cut(fmt.encode_header(header)):
        assert fmt.decode_header(wrong) is None


@given(HEADERS, MASK, st.data())
def test_header_finds_a_flip_anywhere(header, mask, data):
    wrong = bytearray(fmt.encode_header(header))
    wrong[data.draw(st.integers(0, len(wrong) - 1))] ^= mask
    assert fmt.decode_header(bytes(wrong)) is None


def test_header_of_a_later_format_is_named():
    data = bytearray(fmt.encode_header(HEADER)[:-8])
    data[8:10] = u16(2)
    with pytest.raises(FormatVersionError, match="segment 7 has format 2"):
        fmt.decode_header(checked(bytes(data)))


def test_header_that_declares_millions_of_files_takes_no_memory():
    prefix = bytearray(fmt.encode_header(HEADER)[: fmt.HEADER.size])
    at = struct.calcsize("<8sHHI16sI")
    for files, timelines in [(0xFFFFFFFF, 2), (2, 0xFFFFFFFF), (fmt.LISTED_MAX + 1, 2)]:
        prefix[at : at + 8] = u32(files) + u32(timelines)
        # Also with a length that agrees with the counts, as far as 32 bits can.
        length = (96 + 8 * files + 16 * timelines + 8) & 0xFFFFFFFF
        for declared in (prefix[12:16], u32(length)):
            forged = bytes(prefix[:12] + declared + prefix[16:])
            assert fmt.header_length(forged) == 0
            assert spend(lambda forged=forged: fmt.decode_header(forged)) < 100_000


def test_header_length_must_agree_with_the_counts():
    prefix = bytearray(fmt.encode_header(HEADER)[: fmt.HEADER.size])
    prefix[12:16] = u32(int.from_bytes(prefix[12:16], "little") + 8)
    assert fmt.header_length(bytes(prefix)) == 0


# -- entries ------------------------------------------------------------------------------------


@given(ENTRIES)
def test_entry_round_trip(entry):
    data = fmt.encode_entry(entry)
    assert len(data) == fmt.ENTRY_BYTES + len(entry.key) + len(entry.value)
    assert fmt.decode_entry(data) == entry
    assert fmt.entry_length(b"before" + data, 6) == len(data)


def test_entry_bytes():
    key = "schlüssel".encode()
    body = u64(42) + u64(1_700_000_000_000) + u32(5) + u16(len(key)) + b"\x01\x01" + key + b"value"
    assert fmt.encode_entry(ENTRY) == u64(xxh3_64_intdigest(body)) + body


def test_entry_finds_every_flip():
    for _, wrong in flipped(fmt.encode_entry(ENTRY)):
        assert fmt.decode_entry(wrong) is None


@given(ENTRIES, st.binary(min_size=1, max_size=9))
def test_entry_finds_every_other_length(entry, more):
    data = fmt.encode_entry(entry)
    for wrong in (*cut(data), data + more):
        assert fmt.decode_entry(wrong) is None


@given(ENTRIES, MASK, st.data())
def test_entry_finds_a_flip_anywhere(entry, mask, data):
    wrong = bytearray(fmt.encode_entry(entry))
    wrong[data.draw(st.integers(0, len(wrong) - 1))] ^= mask
    assert fmt.decode_entry(bytes(wrong)) is None


@pytest.mark.parametrize(("value_length", "key_length"), [(6, 10), (4, 10), (5, 9), (0, 0)])
def test_entry_whose_lengths_do_not_add_up_is_none(value_length, key_length):
    body = bytearray(fmt.encode_entry(ENTRY)[8:])
    body[16:20], body[20:22] = u32(value_length), u16(key_length)
    assert fmt.decode_entry(u64(xxh3_64_intdigest(bytes(body))) + body) is None


@given(st.binary(max_size=200))
def test_noise_is_no_entry(noise):
    assert fmt.decode_entry(noise) is None


def test_entry_that_declares_gigabytes_takes_no_memory():
    data = bytearray(fmt.encode_entry(ENTRY))
    data[24:28] = u32(0xFFFFFFFF)
    assert spend(lambda: fmt.decode_entry(bytes(data))) < 100_000
    assert fmt.entry_length(bytes(data), 0) > 1 << 32
    with pytest.raises(CorruptionError):
        list(fmt.split_entries(bytes(data), 1))


def test_length_of_an_entry_whose_header_is_cut_is_0():
    data = fmt.encode_entry(ENTRY)
    for length in range(fmt.ENTRY_BYTES):
        assert fmt.entry_length(data[:length], 0) == 0
        assert fmt.entry_length(b"12345" + data[:length], 5) == 0


# -- batches ------------------------------------------------------------------------------------


@given(st.lists(ENTRIES, max_size=5), st.tuples(U64, U64, U64, U64), U64)
def test_batch_round_trip(entries, fields, seed):
    framed = [fmt.encode_entry(entry) for entry in entries]
    body = b"".join(framed)
    given_ = BatchHeader(1, len(entries), 2, *fields)
    checksum, head, rest = fmt.encode_batch(given_, body, seed)
    assert head == u64(checksum)
    assert checksum == xxh3_64_intdigest(rest, seed)
    header = BatchHeader(checksum, len(entries), len(body), *fields)
    assert fmt.decode_batch_header(head + rest) == header
    assert fmt.decode_batch_header(b"ahead" + head + rest, 5) == header
    assert (head + rest)[fmt.BATCH_BYTES :] == body
    split = list(fmt.split_entries(body, header.entries))
    assert [piece for _, piece in split] == framed
    assert [body[offset : offset + len(piece)] for offset, piece in split] == framed
    assert [fmt.decode_entry(piece) for _, piece in split] == entries


def test_batch_bytes():
    header = BatchHeader(0, 1, 0, 42, 40, 1_700_000_000_123, 0xC0FFEE)
    body = fmt.encode_entry(ENTRY)
    rest = b"BVK1" + u32(1) + u32(len(body)) + u32(0)
    rest += u64(42) + u64(40) + u64(1_700_000_000_123) + u64(0xC0FFEE) + body
    checksum = xxh3_64_intdigest(rest, 99)
    assert fmt.encode_batch(header, body, 99) == (checksum, u64(checksum), rest)


def test_no_batch_header_where_none_stands():
    _, head, rest = fmt.encode_batch(BatchHeader(0, 0, 0, 1, 0, 0, 0), b"", 0)
    data = head + rest
    assert fmt.decode_batch_header(data) is not None
    assert fmt.decode_batch_header(fmt.BATCH_ZERO) is None
    for wrong in cut(data):
        assert fmt.decode_batch_header(wrong) is None
    for position, wrong in flipped(data):
        if 8 <= position < 12 or 20 <= position < 24:  # the magic, and what must be zero
            assert fmt.decode_batch_header(wrong) is None


def test_batch_longer_than_any_can_be_is_none():
    _, head, rest = fmt.encode_batch(BatchHeader(0, 1, 0, 1, 0, 0, 0), b"", 0)
    data = bytearray(head + rest)
    data[16:20] = u32(fmt.BATCH_BODY_MAX)
    assert fmt.decode_batch_header(bytes(data)) is not None
    for length in (fmt.BATCH_BODY_MAX + 1, 0xFFFFFFFF):
        data[16:20] = u32(length)
        assert fmt.decode_batch_header(bytes(data)) is None


@given(st.lists(ENTRIES, min_size=1, max_size=4), st.binary(min_size=1, max_size=40))
def test_entries_that_do_not_fill_a_batch_are_damage(entries, more):
    body = b"".join(map(fmt.encode_entry, entries))
    for wrong, count in [
        *((piece, len(entries)) for piece in cut(body)),
        (body + more, len(entries)),
        (body, len(entries) - 1),
        (body, len(entries) + 1),
        (body, 0xFFFFFFFF),
    ]:
        with pytest.raises(CorruptionError):
            list(fmt.split_entries(wrong, count))


def test_no_entries_fill_an_empty_batch():
    assert list(fmt.split_entries(b"", 0)) == []


# -- place --------------------------------------------------------------------------------------


PLACES = st.tuples(U32, U32)  # segment and offset


@given(U64, PLACES, U64, PLACES)
def test_places_differ(salt, here, other, there):
    seed = fmt.place(salt, *here)
    assert 0 <= seed < 1 << 64
    assert (seed == fmt.place(salt, *there)) == (here == there)
    assert (seed == fmt.place(other, *here)) == (salt == other)


# -- end mark -----------------------------------------------------------------------------------


@given(U64, U32, st.builds(EndMark, U32, U64, U64), st.binary(max_size=20))
def test_end_mark_round_trip(salt, segment, mark, behind):
    data = fmt.encode_end(salt, segment, mark)
    assert len(data) == fmt.END_BYTES
    assert fmt.decode_end(data + behind, salt, segment, mark.offset) == mark


def test_end_mark_bytes():
    body = b"END1" + u32(3) + u32(4096) + bytes(4) + u64(17) + u64(0xC0FFEE)
    seed = fmt.place(0x5A17, 3, 4096)
    expected = u64(xxh3_64_intdigest(body, seed)) + body
    assert fmt.encode_end(0x5A17, 3, EndMark(4096, 17, 0xC0FFEE)) == expected


def test_end_mark_finds_every_flip_and_every_cut():
    data = fmt.encode_end(0x5A17, 3, EndMark(4096, 17, 0xC0FFEE))
    assert fmt.decode_end(data, 0x5A17, 3, 4096) is not None
    for _, wrong in flipped(data):
        assert fmt.decode_end(wrong, 0x5A17, 3, 4096) is None
    for wrong in cut(data):
        assert fmt.decode_end(wrong, 0x5A17, 3, 4096) is None


@given(U64, PLACES, U64, PLACES)
def test_end_mark_counts_only_in_its_place(salt, here, other, there):
    segment, offset = here
    data = fmt.encode_end(salt, segment, EndMark(offset, 1, 2))
    found = fmt.decode_end(data, other, *there)
    assert (found is not None) == ((salt, here) == (other, there))
    assert fmt.decode_end(data, salt, segment, offset) is not None
    assert fmt.decode_end(data, salt ^ 1, segment, offset) is None
    assert fmt.decode_end(data, salt, segment ^ 1, offset) is None
    assert fmt.decode_end(data, salt, segment, offset ^ 1) is None


# -- trees --------------------------------------------------------------------------------------

LENGTH = st.integers(1, (1 << 32) - 1)
CONTENT_KEYS = st.binary(min_size=18, max_size=18).filter(lambda key: key != fmt.LITERAL)
REFERRING = st.builds(TreeItem, CONTENT_KEYS, LENGTH, U32, st.just(0), st.just(b"")) | st.builds(
    TreeItem,
    st.binary(min_size=17, max_size=17).map(lambda digest: digest + b"\x80"),
    LENGTH,
    U32,
    st.integers(0, fmt.TREE_LEVELS_MAX - 1),
    st.just(b""),
)
LITERALS = st.builds(
    lambda literal, elements: TreeItem(b"", len(literal), elements, 0, literal),
    st.binary(min_size=1, max_size=70),
    U32,
)
ITEMS = st.lists(REFERRING | LITERALS, min_size=1, max_size=12)
LEAF_KEY, NODE_KEY = bytes(range(1, 17)) + b"\x01\x00", bytes(range(2, 18)) + b"\x00\x80"
TREE = fmt.encode_tree(
    [
        TreeItem(b"", 3, 0, 0, b"\xdc\x01\x00"),
        TreeItem(LEAF_KEY, 5000, 6, 0, b""),
        TreeItem(NODE_KEY, 70_000, 250, 1, b""),
        TreeItem(b"", 2, 0, 0, b"ab"),
    ]
)


@given(ITEMS)
def test_tree_round_trip(items):
    data = fmt.encode_tree(items)
    keys = b"".join(item.key for item in items)
    assert fmt.decode_tree(data) == items
    assert fmt.tree_length(data) == sum(item.length for item in items)
    assert fmt.keys_in_tree(data) == keys
    assert fmt.split_keys(keys) == [item.key for item in items if item.key]
    assert fmt.references_in(entry_of(fmt.PUT, b"k", data, fmt.IS_TREE)) == keys
    assert fmt.references_in(entry_of(fmt.PUT, b"k", data)) == b""
    assert fmt.references_in(entry_of(fmt.NODE, NODE_KEY, data, fmt.IS_TREE)) == b""


def test_tree_bytes():
    table = [
        fmt.LITERAL + u32(3) + u32(0) + b"\0",
        LEAF_KEY + u32(5000) + u32(6) + b"\0",
        NODE_KEY + u32(70_000) + u32(250) + b"\1",
        fmt.LITERAL + u32(2) + u32(0) + b"\0",
    ]
    assert u64(75_005) + u16(4) + b"\0" + b"".join(table) + b"\xdc\x01\x00ab" == TREE


def test_a_reference_to_one_content_is_its_key():
    value = fmt.CONTENT_REF.pack(bytes(range(16)), 7, 99)
    entry = entry_of(fmt.PUT, b"k", value, fmt.IS_CONTENT)
    assert fmt.references_in(entry) == value[:18] == bytes(range(16)) + u16(7)


def test_a_content_key_of_a_node_has_a_high_number():
    assert not fmt.is_node(fmt.CONTENT_KEY.pack(b"\xff" * 16, fmt.NODE_NUMBER - 1))
    assert fmt.is_node(fmt.CONTENT_KEY.pack(bytes(16), fmt.NODE_NUMBER))
    assert fmt.is_node(fmt.CONTENT_KEY.pack(bytes(16), 0xFFFF))


def says_one_thing(data):
    """What is no tree is None; what is one has no other bytes that say the same."""
    items, said = fmt.decode_tree(data), fmt.split_tree(data)
    if said is None:
        assert items is None
        return
    stored, literal, at = said
    assert fmt.TREE_HEAD.size < at <= len(data)
    assert (items is None) == (stored != fmt.STORED_RAW)
    if items is not None:
        assert len(data) - at == literal == sum(len(item.literal) for item in items)
        assert fmt.encode_tree(items) == data
        assert fmt.keys_in_tree(data) == b"".join(item.key for item in items)


def test_tree_with_a_byte_that_differs_is_none_or_another_tree():
    for _, wrong in flipped(TREE):
        says_one_thing(wrong)


@given(ITEMS, st.binary(min_size=1, max_size=30))
def test_tree_of_another_length_is_none(items, more):
    data = fmt.encode_tree(items)
    for wrong in (*cut(data), data + more):
        assert fmt.decode_tree(wrong) is None


@given(
    st.integers(0, 200) | U64,
    st.integers(0, 3) | U16,
    st.lists(
        st.tuples(
            st.just(fmt.LITERAL) | st.binary(min_size=18, max_size=18), st.integers(0, 60) | U32, U8
        ),
        max_size=3,
    ),
    st.sampled_from([0, 0, 0, 1, 255]),
    st.binary(max_size=70),
    st.booleans(),
)
def test_noise_is_no_tree_or_says_one_thing(length, count, table, stored, behind, fitting):  # noqa: PLR0913, PLR0917
    if fitting:
        length, count = sum(size for _, size, _ in table), len(table)
    rows = [fmt.TREE_ITEM.pack(key, size, 1, level) for key, size, level in table]
    says_one_thing(fmt.TREE_HEAD.pack(length, count, stored) + b"".join(rows) + behind)
    says_one_thing(behind)


@pytest.mark.parametrize(
    "items",
    [
        [TreeItem(LEAF_KEY, 0, 1, 0, b"")],
        [TreeItem(NODE_KEY, 1, 1, fmt.TREE_LEVELS_MAX, b"")],
        [TreeItem(LEAF_KEY, 1, 1, 1, b"")],
        [TreeItem(b"", 1, 1, 1, b"x")],
        [TreeItem(LEAF_KEY, 1, 1, 0, b"")] * (fmt.TREE_ITEMS_MAX + 1),
    ],
    ids=[
        "an item of no bytes",
        "a level too high",
        "a leaf with a level",
        "a literal with a level",
        "too many items",
    ],
)
def test_trees_that_no_store_could_have_written(items):
    assert fmt.decode_tree(fmt.encode_tree(items)) is None


def test_a_tree_of_no_items_is_none():
    assert fmt.decode_tree(fmt.TREE_HEAD.pack(0, 0, fmt.STORED_RAW)) is None
    assert fmt.decode_tree(fmt.TREE_HEAD.pack(5, 0, fmt.STORED_RAW) + b"bytes") is None


def test_tree_as_large_as_one_can_be():
    items = [TreeItem(NODE_KEY, 1, 1, fmt.TREE_LEVELS_MAX - 1, b"")] * fmt.TREE_ITEMS_MAX
    assert fmt.decode_tree(fmt.encode_tree(items)) == items


@given(ITEMS, st.integers(1, 255), st.binary(max_size=30))
def test_of_literal_bytes_that_are_stored_otherwise_only_the_length_is_told(items, how, stored):
    data = fmt.encode_tree(items)
    at = fmt.TREE_HEAD.size + fmt.TREE_ITEM.size * len(items)
    length, count, _ = fmt.TREE_HEAD.unpack_from(data)
    other = fmt.TREE_HEAD.pack(length, count, how) + data[fmt.TREE_HEAD.size : at] + stored
    literal = sum(len(item.literal) for item in items)
    assert fmt.split_tree(data) == (fmt.STORED_RAW, literal, at)
    assert fmt.split_tree(other) == (how, literal, at)
    assert fmt.decode_tree(other) is None
    assert fmt.keys_in_tree(other) == fmt.keys_in_tree(data)
    assert fmt.tree_length(other) == fmt.tree_length(data)


@pytest.mark.parametrize("size", [7, 0xFFFFFFFF])
def test_tree_that_declares_gigabytes_takes_no_memory(size):
    """Literals whose bytes are not there, and whose lengths lie."""
    count = fmt.TREE_ITEMS_MAX
    table = fmt.TREE_ITEM.pack(fmt.LITERAL, size, 1, 0) * count
    forged = fmt.TREE_HEAD.pack(size * count, count, 0) + table + bytes(100)
    assert fmt.decode_tree(forged) is None
    assert spend(lambda: fmt.decode_tree(forged)) < 500_000
    forged = fmt.TREE_HEAD.pack(0, 0xFFFF, 0) + bytes(100)
    assert spend(lambda: fmt.decode_tree(forged)) < 100_000


# -- packs --------------------------------------------------------------------------------------

PACK_KEYS = st.binary(min_size=17, max_size=17).map(lambda key: key + b"\x12")
PACKED_LENGTH = st.integers(1, fmt.PACK_BYTES_MAX // 9)
PACKS = st.lists(st.tuples(PACK_KEYS, PACKED_LENGTH), min_size=1, max_size=9)
PACK = fmt.encode_pack([(LEAF_KEY, 4), (bytes(18), 2)], b"rawraw")


@given(PACKS, st.binary(max_size=300))
def test_pack_round_trip(contents, stored):
    data = fmt.encode_pack(contents, stored)
    pack = fmt.decode_pack(data)
    assert pack == fmt.decode_pack(memoryview(data))
    assert [(one.key, one.length) for one in pack.contents] == contents
    assert pack.length == sum(length for _, length in contents)
    assert data[pack.data_at :] == stored
    starts = [sum(length for _, length in contents[:at]) for at in range(len(contents))]
    assert [one.start for one in pack.contents] == starts


@given(PACKS, st.binary(max_size=300))
def test_what_a_pack_takes_is_shared_out_to_the_byte(contents, stored):
    data = fmt.encode_pack(contents, stored)
    pack = fmt.decode_pack(data)
    entry_bytes = fmt.ENTRY_BYTES + len(data)
    assert sum(one.share for one in pack.contents) == entry_bytes
    for one in pack.contents:  # by its part of the raw bytes
        assert abs(one.share - entry_bytes * one.length / pack.length) <= 1
        assert one.share >= 0


def test_pack_bytes():
    assert u32(2) + u64(6) + LEAF_KEY + u32(4) + bytes(18) + u32(2) + b"rawraw" == PACK


def is_none_or_one_thing(data):
    pack = fmt.decode_pack(data)
    if pack is not None:
        named = [(one.key, one.length) for one in pack.contents]
        assert fmt.encode_pack(named, data[pack.data_at :]) == data
        assert not any(fmt.is_node(one.key) for one in pack.contents)


def test_pack_with_a_byte_that_differs_is_none_or_another_pack():
    for _, wrong in flipped(PACK):
        is_none_or_one_thing(wrong)


@given(PACKS)
def test_pack_whose_table_is_cut_is_none(contents):
    data = fmt.encode_pack(contents, b"")
    assert fmt.decode_pack(data) is not None
    for wrong in cut(data):
        assert fmt.decode_pack(wrong) is None


@given(
    st.integers(0, 3) | U32,
    st.integers(0, 200) | U64,
    st.lists(st.tuples(st.binary(min_size=18, max_size=18), st.integers(0, 60) | U32), max_size=3),
    st.binary(max_size=70),
    st.booleans(),
)
def test_noise_is_no_pack_or_says_one_thing(count, length, table, behind, fitting):
    if fitting:
        count, length = len(table), sum(size for _, size in table)
    rows = [fmt.PACKED.pack(*row) for row in table]
    is_none_or_one_thing(fmt.PACK_HEAD.pack(count, length) + b"".join(rows) + behind)
    is_none_or_one_thing(behind)


@pytest.mark.parametrize(
    "contents",
    [[], [(LEAF_KEY, 0)], [(NODE_KEY, 5)], [(LEAF_KEY, 5), (NODE_KEY, 5)]],
    ids=["no contents", "a content of no bytes", "a node", "a node behind a content"],
)
def test_packs_that_no_store_could_have_written(contents):
    assert fmt.decode_pack(fmt.encode_pack(contents, b"stored")) is None


def test_a_pack_is_bounded():
    most = fmt.PACK_BYTES_MAX
    assert fmt.decode_pack(fmt.encode_pack([(LEAF_KEY, most)], b"stored")).length == most
    assert fmt.decode_pack(fmt.encode_pack([(LEAF_KEY, most + 1)], b"stored")) is None


def test_pack_that_declares_millions_of_contents_takes_no_memory():
    forged = fmt.PACK_HEAD.pack(0xFFFFFFFF, (1 << 64) - 1) + bytes(100)
    assert fmt.decode_pack(forged) is None
    assert spend(lambda: fmt.decode_pack(forged)) < 100_000


# -- what entries hold --------------------------------------------------------------------------


@given(UUID, U16, U64)
def test_a_reference_is_a_content_key_and_a_length(digest, number, length):
    reference = fmt.CONTENT_REF.pack(digest, number, length)
    assert reference == fmt.CONTENT_KEY.pack(digest, number) + fmt.CONTENT_HEAD.pack(length)
    assert fmt.CONTENT_REF.unpack(reference) == (digest, number, length)


RETIRES = st.builds(Retire, U32, U32, U64, st.lists(U32, min_size=1, max_size=9).map(tuple))


@given(RETIRES)
def test_retire_round_trip(retire):
    data = fmt.encode_retire(retire)
    assert len(data) == 16 + 4 * len(retire.files)
    assert fmt.decode_retire(data) == retire


def test_retire_bytes():
    expected = u32(9) + u32(70_000) + u64(41) + u32(5) + u32(8)
    assert fmt.encode_retire(Retire(9, 70_000, 41, (5, 8))) == expected


@given(RETIRES)
def test_retire_of_another_length_is_none(retire):
    data = fmt.encode_retire(retire)
    for wrong in (data[:16], *cut(data), data + b"\0", data + bytes(3)):
        if len(wrong) < 20 or len(wrong) % 4:
            assert fmt.decode_retire(wrong) is None


@pytest.mark.parametrize(
    "entry",
    [
        entry_of(fmt.PUT, b"k", b""),
        entry_of(fmt.PUT, b"k" * 480, b"value"),
        entry_of(fmt.PUT, b"k", bytes(26), fmt.IS_CONTENT),
        entry_of(fmt.DELETE, b"k", b""),
        entry_of(fmt.CONTENT, bytes(18), bytes(8)),
        entry_of(fmt.CONTENT, bytes(17) + b"\x7f", bytes(8)),
        entry_of(fmt.NODE, bytes(17) + b"\x80", TREE),
        entry_of(fmt.PACK, b"", PACK),
        entry_of(fmt.PUT, b"k", TREE, fmt.IS_TREE),
        entry_of(fmt.RETIRE, b"", bytes(20)),
        entry_of(fmt.ORIGINS, b"", bytes(12)),
        entry_of(fmt.ORIGINS, b"", b""),
    ],
)
def test_entries_that_a_store_could_have_written(entry):
    assert fmt.possible(entry)


@pytest.mark.parametrize(
    "entry",
    [
        entry_of(fmt.PUT, b"", b""),
        entry_of(fmt.PUT, b"k" * 481, b""),
        entry_of(fmt.PUT, b"k", bytes(25), fmt.IS_CONTENT),
        entry_of(fmt.DELETE, b"", b""),
        entry_of(fmt.CONTENT, bytes(17), bytes(8)),
        entry_of(fmt.CONTENT, bytes(18), bytes(7)),
        entry_of(fmt.CONTENT, bytes(17) + b"\x80", bytes(8)),
        entry_of(fmt.NODE, bytes(17) + b"\x7f", TREE),
        entry_of(fmt.NODE, bytes(16) + b"\x80", TREE),
        entry_of(fmt.NODE, bytes(17) + b"\x80", TREE[:-1]),
        entry_of(fmt.PACK, b"", PACK[:33]),
        entry_of(fmt.PUT, b"k", TREE[:-1], fmt.IS_TREE),
        entry_of(fmt.PUT, b"k", bytes(26), fmt.IS_TREE),
        entry_of(fmt.PUT, b"k", TREE, fmt.IS_TREE | fmt.IS_CONTENT),
        entry_of(fmt.RETIRE, b"", bytes(16)),
        entry_of(fmt.RETIRE, b"", bytes(8)),
    ],
)
def test_entries_that_no_store_could_have_written(entry):
    assert not fmt.possible(entry)


@given(HEADERS)
def test_the_floor_stands_in_the_header_of_a_segment(header):
    floor = header.judged_seq if header.kind == FileKind.SEGMENT else 0
    assert header.floor_seq == floor
