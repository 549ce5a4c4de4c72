"""Format 1, bytes in and bytes out, without any I/O. ``docs/format.md`` draws it.

A segment file is a header and then batches, each right behind the one before; behind the last may
be zeros (space written ahead) or an end mark (a clean close).

Rules:

- All integers are little-endian.
- Every checksum is xxh3_64. That of a batch or an end mark is seeded with the place where it
  stands (store, segment, offset), so the same bytes elsewhere, inside a value say, do not check.
- A batch names the checksum of what stands before it (the header, or the previous batch), so a
  stale batch behind a rewritten tail does not follow.
- In a segment the batches are numbered by the store's seq, one more each time, and every entry
  bears the number of its batch. In a compacted copy the batches are numbered from 1, every entry
  keeps the seq that it was written with, and each batch begins with an ORIGINS entry, which says
  of every entry behind it which one of its commit it was and when that was.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from xxhash import xxh3_64_intdigest

from kvsage.errors import CorruptionError, FormatVersionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FORMAT = 1

# -- identity: the file KVSAGE ------------------------------------------------------------------

IDENTITY_MAGIC = b"kvsage\x00\x01"
IDENTITY = Struct("<8sHH4x16sQQ")  # magic, format, content address size, uuid, created ms, checksum
ADDRESS_BYTES = 16
assert IDENTITY.size == 48


class Identity(NamedTuple):
    """Who a store is; written once."""

    format: int
    uuid: bytes
    created_ms: int

    @property
    def salt(self) -> int:
        """What seeds the place of every batch of this store."""
        return int.from_bytes(self.uuid[:8], "little")


def encode_identity(identity: Identity) -> bytes:
    """The bytes of ``KVSAGE``."""
    fields = (IDENTITY_MAGIC, identity.format, ADDRESS_BYTES, identity.uuid, identity.created_ms)
    body = IDENTITY.pack(*fields, 0)[:-8]
    return body + xxh3_64_intdigest(body).to_bytes(8, "little")


def decode_identity(data: bytes) -> Identity:
    """The identity in the bytes of ``KVSAGE``.

    Raises:
        FormatVersionError: a later format.
        CorruptionError: not an identity, or damaged.
    """
    if len(data) < IDENTITY.size or not data.startswith(IDENTITY_MAGIC):
        raise CorruptionError("the file KVSAGE is damaged: it does not begin as one")
    _, version, address_bytes, uuid, created_ms, checksum = IDENTITY.unpack_from(data)
    if version > FORMAT:  # a later format may have another length and checksum
        raise FormatVersionError(
            f"the store has format {version}; this kvsage knows formats up to {FORMAT}"
        )
    if xxh3_64_intdigest(data[: IDENTITY.size - 8]) != checksum or len(data) != IDENTITY.size:
        raise CorruptionError("the file KVSAGE is damaged: its checksum does not match")
    if version < 1 or address_bytes != ADDRESS_BYTES:
        raise CorruptionError("the file KVSAGE is damaged: impossible fields")
    return Identity(version, uuid, created_ms)


# -- segment header -----------------------------------------------------------------------------

SEGMENT_MAGIC = b"kvsgment"
HEADER = Struct("<8sHHI16sIIIIQQQQQQ")
assert HEADER.size == 96
LISTED_FILE = Struct("<II")
TIMELINE = Struct("<QQ")
LISTED_MAX = 1 << 20
CHECKSUM_BYTES = 8


class FileKind(IntEnum):
    """What a log file holds."""

    SEGMENT = 1
    COPY = 2


class ListedFile(NamedTuple):
    """A file of the log and where its batches end."""

    segment: int
    end: int


class Timeline(NamedTuple):
    """An unbroken issue of seqs, and the seq after which it began."""

    timeline: int
    after_seq: int


class SegmentHeader(NamedTuple):
    """What a log file says of itself; written and flushed before any batch in it.

    Attributes:
        kind: segment or compacted copy.
        uuid: of the store.
        segment: id of this file.
        nonce: random, so that no two files are mistaken for one another.
        timeline: in which its batches are numbered.
        after_seq: the seq of the last commit before this file (0 in a copy).
        chain: checksum of the batch with that seq, or 0.
        judged_seq: of a copy, the seq at which compaction began to judge; of a segment, the seq
            up to which deletions may have been dropped (see ``floor_seq``).
        created_ms: when.
        files: of a segment, the other files of the log, in the order of their ids; of a copy, the
            files whose live entries it holds.
        timelines: every timeline so far, in order.
    """

    kind: int
    uuid: bytes
    segment: int
    nonce: int
    timeline: int
    after_seq: int
    chain: int
    judged_seq: int
    created_ms: int
    files: tuple[ListedFile, ...]
    timelines: tuple[Timeline, ...]

    @property
    def floor_seq(self) -> int:
        """Of a segment: no deletion after this seq had been dropped when it was made."""
        return self.judged_seq if self.kind == FileKind.SEGMENT else 0


def encode_header(header: SegmentHeader) -> bytes:
    """The bytes of a header; their last eight are its checksum, to which the first batch chains."""
    length = (
        HEADER.size
        + LISTED_FILE.size * len(header.files)
        + TIMELINE.size * len(header.timelines)
        + CHECKSUM_BYTES
    )
    fixed = HEADER.pack(
        SEGMENT_MAGIC,
        FORMAT,
        header.kind,
        length,
        header.uuid,
        header.segment,
        len(header.files),
        len(header.timelines),
        0,
        header.nonce,
        header.timeline,
        header.after_seq,
        header.chain,
        header.judged_seq,
        header.created_ms,
    )
    files = b"".join(LISTED_FILE.pack(*file) for file in header.files)
    timelines = b"".join(TIMELINE.pack(*timeline) for timeline in header.timelines)
    body = fixed + files + timelines
    return body + xxh3_64_intdigest(body).to_bytes(CHECKSUM_BYTES, "little")


def header_length(prefix: bytes) -> int:
    """How long the header is of which ``prefix`` holds the fixed part; 0 where it is none."""
    if len(prefix) < HEADER.size or not prefix.startswith(SEGMENT_MAGIC):
        return 0
    _, _, _, length, _, _, files, timelines, *_ = HEADER.unpack_from(prefix)
    if files > LISTED_MAX or timelines > LISTED_MAX:
        return 0
    expected = HEADER.size + LISTED_FILE.size * files + TIMELINE.size * timelines + CHECKSUM_BYTES
    return length if length == expected else 0


def decode_header(data: bytes) -> tuple[SegmentHeader, int] | None:
    """A header and its checksum, or None where the bytes do not check.

    Raises:
        FormatVersionError: a later format.
    """
    length = header_length(data)
    if not length or len(data) < length:
        return None
    body, checksum = data[: length - CHECKSUM_BYTES], data[length - CHECKSUM_BYTES : length]
    if xxh3_64_intdigest(body).to_bytes(CHECKSUM_BYTES, "little") != checksum:
        return None
    _, version, kind, _, uuid, segment, files, _, _, *rest = HEADER.unpack_from(body)
    if version > FORMAT:
        raise FormatVersionError(f"segment {segment} has format {version}; this kvsage knows 1")
    nonce, timeline, after_seq, chain, judged_seq, created_ms = rest
    split = HEADER.size + LISTED_FILE.size * files
    header = SegmentHeader(
        kind,
        uuid,
        segment,
        nonce,
        timeline,
        after_seq,
        chain,
        judged_seq,
        created_ms,
        tuple(map(ListedFile._make, LISTED_FILE.iter_unpack(body[HEADER.size : split]))),
        tuple(map(Timeline._make, TIMELINE.iter_unpack(body[split:]))),
    )
    return header, int.from_bytes(checksum, "little")


# -- entries ------------------------------------------------------------------------------------

ENTRY = Struct("<QQQIHBB")  # checksum, seq, expires ms, value length, key length, kind, flags
ENTRY_BODY = Struct("<QQIHBB")  # the same without the checksum, as the writer packs it
ENTRY_BYTES = 32
ENTRY_KIND_AT = 30
assert ENTRY.size == ENTRY_BYTES == ENTRY_BODY.size + CHECKSUM_BYTES

PUT, DELETE, CONTENT, RETIRE, ORIGINS, PACK, NODE = 1, 2, 3, 4, 5, 6, 7
ENTRY_KEY_BYTES_MAX = 480
KINDS = frozenset((PUT, DELETE, CONTENT, RETIRE, ORIGINS, PACK, NODE))
CONTENT_KINDS = frozenset((CONTENT, PACK, NODE))  # what brings contents and nodes

# flags of a PUT: how its value is encoded, and whether it is here or stored once as content
CODEC_MASK = 0x07
MSGPACK, STR, BYTES, JSON, PICKLE = 0, 1, 2, 3, 4
IS_CONTENT = 0x08
IS_TREE = 0x10
REFERS = IS_CONTENT | IS_TREE
# flags of a DELETE: why
BY_USER, EXPIRED, EVICTED = 0, 1, 2
# flags of a CONTENT or a PACK: how its bytes are stored
STORED_RAW, STORED_ZSTD = 0, 1

CONTENT_KEY = Struct("<16sH")  # xxh3_128 of the raw bytes, and which of those that share it
NODE_NUMBER, NUMBER_END = 0x8000, 0xFFFF  # numbers from the first up to the second are of nodes
CONTENT_HEAD = Struct("<Q")  # raw length; the stored bytes follow
CONTENT_REF = Struct("<16sHQ")  # what a PUT that is content holds: content key, raw length
PACK_HEAD = Struct("<IQ")  # number of contents, their raw length; a table of PACKED, then the bytes
PACKED = Struct("<18sI")  # content key, raw length
PACK_BYTES_MAX = 64 << 20  # uncompressed: a reader of one content inflates all of them
RETIRE_HEAD = Struct("<IIQ")  # copy (0: none), its end, floor seq; the ids of the retired follow
RETIRED_FILE = Struct("<I")
ORIGIN = Struct("<IQ")  # which entry of its commit an entry was, and when that was, ms
assert CONTENT_KEY.size == 18
assert CONTENT_REF.size == 26
assert PACKED.size == 22


class LogEntry(NamedTuple):
    """One framed record."""

    seq: int
    expires_ms: int
    kind: int
    flags: int
    key: bytes
    value: bytes


def possible(entry: LogEntry) -> bool:
    """Whether an entry, its checksum right, is one that a store could have written."""
    key, value = entry.key, entry.value
    if entry.kind in {CONTENT, NODE}:
        if len(key) != CONTENT_KEY.size or is_node(key) != (entry.kind == NODE):
            return False
        return split_tree(value) is not None if is_node(key) else len(value) >= CONTENT_HEAD.size
    if entry.kind == PACK:
        return decode_pack(value) is not None
    if entry.kind == RETIRE:
        return decode_retire(value) is not None
    return entry.kind == ORIGINS or _possible_of_key(entry)


def _possible_of_key(entry: LogEntry) -> bool:
    if not 0 < len(entry.key) <= ENTRY_KEY_BYTES_MAX:
        return False
    refers = entry.flags & REFERS if entry.kind == PUT else 0
    if refers & IS_TREE:
        return refers == IS_TREE and split_tree(entry.value) is not None
    return not refers or len(entry.value) == CONTENT_REF.size


class Retire(NamedTuple):
    """What a RETIRE entry says: files of the log that count no more.

    Attributes:
        copy: id of the copy that holds what was live in them, or 0 where nothing was.
        end: where the copy's batches end.
        floor_seq: the highest seq of a deletion dropped so far.
        files: the ids of the files.
    """

    copy: int
    end: int
    floor_seq: int
    files: tuple[int, ...]


def encode_retire(retire: Retire) -> bytes:
    """The value of a RETIRE entry."""
    copy, end, floor_seq, files = retire
    return RETIRE_HEAD.pack(copy, end, floor_seq) + b"".join(map(RETIRED_FILE.pack, files))


def decode_retire(value: bytes) -> Retire | None:
    """What the value of a RETIRE entry says; None where it is none."""
    length = len(value) - RETIRE_HEAD.size
    if length < RETIRED_FILE.size or length % RETIRED_FILE.size:
        return None
    files = tuple(segment for (segment,) in RETIRED_FILE.iter_unpack(value[RETIRE_HEAD.size :]))
    copy, end, floor_seq = RETIRE_HEAD.unpack_from(value)
    return Retire(copy, end, floor_seq, files)


# -- trees ------------------------------------------------------------------------------------

# A tree is bytes in pieces. Its root is the value of a PUT, its nodes are entries: a raw length, a
# number of items, how the literal bytes are stored; the items; then the literal bytes, those of all
# items one behind the other.
TREE_HEAD = Struct("<QHB")
TREE_ITEM = Struct("<18sIIB")  # content key, raw length, elements that begin in it, level
assert TREE_HEAD.size == 11
assert TREE_ITEM.size == 27
LITERAL = b"\xff" * CONTENT_KEY.size  # in place of a content key: the bytes stand here
TREE_ITEMS_MAX = 1 << 10
TREE_LEVELS_MAX = 64
_make = tuple.__new__  # a third of the time of a NamedTuple's own call


class TreeItem(NamedTuple):
    """One piece of a tree.

    Attributes:
        key: content key of a leaf or a node; empty for a literal.
        length: of the bytes that it stands for.
        elements: of the list or mapping that is cut here, how many begin in it.
        level: 0 for a piece, above that for a node that groups items of the level below.
        literal: the bytes of a literal.
    """

    key: bytes
    length: int
    elements: int
    level: int
    literal: bytes


def is_node(content_key: bytes) -> bool:
    """Whether a content key names a node of a tree."""
    return content_key[17] >= NODE_NUMBER >> 8


class Item(Protocol):
    """A ``TreeItem``, or what is on its way to be one."""

    key: bytes
    length: int
    elements: int
    level: int
    literal: bytes


def encode_tree(items: Sequence[TreeItem] | Sequence[Item]) -> bytes:
    """The value of a PUT that is a tree, or of a NODE, its literal bytes as they are."""
    assert items, "a tree stands for something"
    head = TREE_HEAD.pack(sum([item.length for item in items]), len(items), STORED_RAW)
    table = [
        TREE_ITEM.pack(item.key or LITERAL, item.length, item.elements, item.level)
        for item in items
    ]
    return b"".join([head, *table, *[item.literal for item in items if item.literal]])


def split_tree(value: bytes) -> tuple[int, int, int] | None:
    """How the literal bytes of a tree or node are stored, how many they are, and where they stand.

    None where the value is no tree. Of literal bytes that are compressed nothing is looked at.
    """
    if len(value) < TREE_HEAD.size:
        return None
    length, count, stored = TREE_HEAD.unpack_from(value)
    at = TREE_HEAD.size + TREE_ITEM.size * count
    if not 0 < count <= TREE_ITEMS_MAX or len(value) < at:
        return None
    # In comprehensions: this is a good part of what adding to a list costs.
    table = list(TREE_ITEM.iter_unpack(value[TREE_HEAD.size : at]))
    bad = [key for key, size, _, level in table if not size or (level and not _groups(key, level))]
    if bad:
        return None
    literal = sum([size for key, size, _, _ in table if key == LITERAL])
    total = sum([size for _, size, _, _ in table])
    if total != length or (stored == STORED_RAW and len(value) - at != literal):
        return None
    return stored, literal, at


def _groups(key: bytes, level: int) -> bool:
    """Whether an item with a level above 0 is a node, on a level that there can be."""
    return is_node(key) and key != LITERAL and level < TREE_LEVELS_MAX


def decode_tree(value: bytes) -> list[TreeItem] | None:
    """The items of a tree or node whose literal bytes are as they are; None for anything else."""
    said = split_tree(value)
    if said is None or said[0] != STORED_RAW:
        return None
    items, at = [], said[2]
    for key, size, elements, level in TREE_ITEM.iter_unpack(value[TREE_HEAD.size : at]):
        literal = b""
        if key == LITERAL:
            key, literal = b"", value[at : at + size]  # noqa: PLW2901
            at += size
        items.append(_make(TreeItem, (key, size, elements, level, literal)))
    return items


def tree_length(value: bytes) -> int:
    """How many bytes a tree stands for."""
    return int(TREE_HEAD.unpack_from(value)[0])


def keys_in_tree(value: bytes) -> bytes:
    """The content keys in a possible tree or node, one behind the other."""
    _, count, _ = TREE_HEAD.unpack_from(value)
    table = value[TREE_HEAD.size : TREE_HEAD.size + TREE_ITEM.size * count]
    return b"".join([key for key, *_ in TREE_ITEM.iter_unpack(table) if key != LITERAL])


def references_in(entry: LogEntry) -> bytes:
    """The content keys that a possible PUT refers to, one behind the other; none of others."""
    if entry.kind != PUT or not entry.flags & REFERS:
        return b""
    return keys_in_tree(entry.value) if entry.flags & IS_TREE else entry.value[: CONTENT_KEY.size]


def split_keys(keys: bytes) -> list[bytes]:
    """Content keys that stand one behind the other."""
    size = CONTENT_KEY.size
    return [keys[at : at + size] for at in range(0, len(keys), size)]


class Packed(NamedTuple):
    """One content in a pack.

    Attributes:
        key: its content key.
        start: where it stands in the raw bytes of the pack.
        length: how long it is.
        share: its part of the bytes that the entry takes.
    """

    key: bytes
    start: int
    length: int
    share: int


class Pack(NamedTuple):
    """The value of a PACK entry: contents that are compressed together.

    Attributes:
        contents: in their order.
        length: of the raw bytes.
        data_at: where the stored bytes begin in the value.
    """

    contents: list[Packed]
    length: int
    data_at: int


def encode_pack(contents: Sequence[tuple[bytes, int]], stored: bytes) -> bytes:
    """The value of a PACK entry.

    Args:
        contents: content key and raw length of each.
        stored: their raw bytes, one behind the other, or a zstd frame of them.
    """
    head = PACK_HEAD.pack(len(contents), sum([length for _, length in contents]))
    return b"".join([head, *[PACKED.pack(key, length) for key, length in contents], stored])


def decode_pack(value: bytes | memoryview) -> Pack | None:
    """What stands in the value of a PACK entry; None where it is none."""
    if len(value) < PACK_HEAD.size:
        return None
    count, length = PACK_HEAD.unpack_from(value)
    data_at = PACK_HEAD.size + PACKED.size * count
    if not count or len(value) < data_at or length > PACK_BYTES_MAX:
        return None
    table = list(PACKED.iter_unpack(value[PACK_HEAD.size : data_at]))
    if sum([size for _, size in table]) != length or not all(
        size and not is_node(key) for key, size in table
    ):
        return None
    return Pack(packed_as(table, ENTRY_BYTES + len(value)), length, data_at)


def packed_as(table: Sequence[tuple[bytes, int]], entry_bytes: int) -> list[Packed]:
    """Where the contents of a pack stand, and how its bytes are shared out to them.

    Args:
        table: content key and raw length of each, in their order.
        entry_bytes: of the PACK.
    """
    length = sum([size for _, size in table])
    contents, start, taken = [], 0, 0
    for key, size in table:
        upto = entry_bytes * (start + size) // length
        contents.append(Packed(key, start, size, upto - taken))
        start, taken = start + size, upto
    return contents


def encode_entry(entry: LogEntry) -> bytes:
    """The framed bytes of an entry."""
    body = (
        ENTRY_BODY.pack(
            entry.seq,
            entry.expires_ms,
            len(entry.value),
            len(entry.key),
            entry.kind,
            entry.flags,
        )
        + entry.key
        + entry.value
    )
    return xxh3_64_intdigest(body).to_bytes(CHECKSUM_BYTES, "little") + body


def decode_entry(data: bytes) -> LogEntry | None:
    """The entry that ``data`` holds, no more and no less, or None where it does not check."""
    if len(data) < ENTRY_BYTES:
        return None
    checksum, seq, expires_ms, value_length, key_length, kind, flags = ENTRY.unpack_from(data)
    if len(data) != ENTRY_BYTES + key_length + value_length:
        return None
    if xxh3_64_intdigest(memoryview(data)[CHECKSUM_BYTES:]) != checksum:
        return None
    split = ENTRY_BYTES + key_length
    return LogEntry(seq, expires_ms, kind, flags, data[ENTRY_BYTES:split], data[split:])


def entry_length(data: bytes | bytearray, offset: int) -> int:
    """Bytes of the entry whose header stands at ``offset``, or 0 where the header is cut."""
    if len(data) - offset < ENTRY_BYTES:
        return 0
    _, _, _, value_length, key_length, _, _ = ENTRY.unpack_from(data, offset)
    return ENTRY_BYTES + int(key_length) + int(value_length)


# -- batches ------------------------------------------------------------------------------------

BATCH_MAGIC = 0x314B5642  # b"BVK1"
MAGIC_OFFSET = 8  # of batches and end marks: the checksum stands first, so it covers one piece
BATCH_MAGIC_BYTES = BATCH_MAGIC.to_bytes(4, "little")
BATCH = Struct("<QIIIIQQQQ")  # checksum, magic, count, length, 0, seq, flushed seq, ms, chain
BATCH_REST = Struct("<IIIIQQQQ")  # the same without the checksum, as the writer packs it
BATCH_BYTES = 56
assert BATCH.size == BATCH_BYTES == BATCH_REST.size + CHECKSUM_BYTES
BATCH_ZERO = bytes(BATCH_BYTES)
BATCH_BODY_MAX = 1 << 30

END_MAGIC = 0x31444E45  # b"END1"
END_MAGIC_BYTES = END_MAGIC.to_bytes(4, "little")
END = Struct("<QIII4xQQ")  # checksum, magic, segment, offset, seq, chain
END_BYTES = 40
assert END.size == END_BYTES
assert END_BYTES < BATCH_BYTES  # so the next batch covers the mark wholly

PLACE_BITS = 32


def place(salt: int, segment: int, offset: int) -> int:
    """The seed of what stands at ``offset`` of ``segment`` in the store with ``salt``."""
    return salt ^ (segment << PLACE_BITS | offset)


class BatchHeader(NamedTuple):
    """The unit of commit, without its entries.

    Attributes:
        checksum: of all that follows it in the batch.
        entries: how many there are in it.
        length: bytes of its entries.
        seq: its number.
        flushed_seq: the seq up to which the log was known to be on disk when it was written.
        time_ms: when it was committed.
        chain: checksum of what stands before it.
    """

    checksum: int
    entries: int
    length: int
    seq: int
    flushed_seq: int
    time_ms: int
    chain: int


def encode_batch(header: BatchHeader, body: bytes, seed: int) -> tuple[int, bytes, bytes]:
    """A batch as its checksum, that checksum's bytes, and the bytes that follow them.

    Args:
        header: ``checksum`` and ``length`` are not looked at.
        body: the framed entries.
        seed: its place.
    """
    _, count, _, seq, flushed_seq, time_ms, chain = header
    rest = (
        BATCH_REST.pack(BATCH_MAGIC, count, len(body), 0, seq, flushed_seq, time_ms, chain) + body
    )
    checksum = xxh3_64_intdigest(rest, seed)
    return checksum, checksum.to_bytes(CHECKSUM_BYTES, "little"), rest


def decode_batch_header(data: bytes, offset: int = 0) -> BatchHeader | None:
    """The header at ``offset`` of ``data``, its checksum not looked at; None where none stands."""
    if len(data) - offset < BATCH_BYTES:
        return None
    checksum, magic, count, length, zero, seq, flushed_seq, time_ms, chain = BATCH.unpack_from(
        data, offset
    )
    if magic != BATCH_MAGIC or zero or length > BATCH_BODY_MAX:
        return None
    return BatchHeader(checksum, count, length, seq, flushed_seq, time_ms, chain)


def split_entries(body: bytes, count: int) -> Iterator[tuple[int, bytes]]:
    """The framed entries of a batch with their offsets in it.

    Raises:
        CorruptionError: they do not fill the body exactly.
    """
    offset = 0
    for _ in range(count):
        length = entry_length(body, offset)
        if not length or offset + length > len(body):
            raise CorruptionError("the entries of a batch do not fill it")
        yield offset, body[offset : offset + length]
        offset += length
    if offset != len(body):
        raise CorruptionError("the entries of a batch do not fill it")


# -- the end mark of a clean close --------------------------------------------------------------


class EndMark(NamedTuple):
    """All before it is on disk, and it was the end of the log."""

    offset: int
    seq: int
    chain: int


def encode_end(salt: int, segment: int, mark: EndMark) -> bytes:
    """The bytes of an end mark."""
    body = END.pack(0, END_MAGIC, segment, mark.offset, mark.seq, mark.chain)[CHECKSUM_BYTES:]
    checksum = xxh3_64_intdigest(body, place(salt, segment, mark.offset))
    return checksum.to_bytes(CHECKSUM_BYTES, "little") + body


def decode_end(data: bytes, salt: int, segment: int, offset: int) -> EndMark | None:
    """The end mark at the start of ``data``, which stands at ``offset``; None where none does."""
    if len(data) < END_BYTES:
        return None
    checksum, magic, its_segment, its_offset, seq, chain = END.unpack_from(data)
    if (magic, its_segment, its_offset) != (END_MAGIC, segment, offset):
        return None
    if xxh3_64_intdigest(data[CHECKSUM_BYTES:END_BYTES], place(salt, segment, offset)) != checksum:
        return None
    return EndMark(offset, seq, chain)
