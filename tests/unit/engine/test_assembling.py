"""Trees read back, and trees that lie: they end in an error, and take no memory for what they say.

The log and the index are doubles in memory, in which every checksum is right: what stands there is
what somebody wrote on purpose.
"""

import sys
import tracemalloc
from contextlib import suppress
from types import SimpleNamespace

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsage.engine.assembling import (
    DEPTH_MAX,
    EXPANDED_BYTES_MAX,
    Assembler,
    content_row,
    items_of,
    node_value,
    raw_content,
)
from kvsage.engine.commit import Operation
from kvsage.engine.content import (
    Mismatch,
    Missing,
    RawCache,
    compress,
    deflate_tree,
    inflate_tree,
)
from kvsage.engine.cutting import cut
from kvsage.engine.growing import list_count, part_of
from kvsage.engine.tree import pieces_of, topmost
from kvsage.errors import CorruptionError, KvsageError
from kvsage.index.contents import ContentRow, decode_content_row, encode_content_row
from kvsage.log.format import (
    CONTENT,
    CONTENT_HEAD,
    CONTENT_REF,
    IS_CONTENT,
    IS_TREE,
    MSGPACK,
    NODE,
    PACK,
    PUT,
    TREE_HEAD,
    LogEntry,
    TreeItem,
    decode_pack,
    encode_entry,
    encode_pack,
    encode_tree,
)
from kvsage.options import VALUE_BYTES_LIMIT
from kvsage.serialization import pack, unpack
from tests.support.trees import VALUES, lists, small_sizes

SEGMENT, FD, SEQ = 5, 77, 42
SPARE = 2 << 20  # for what Python and the reader of MessagePack take


class Memory:
    """A log and its contents in memory: the engine and the transaction that are asked for it."""

    def __init__(self):
        self.log = bytearray(b"header")
        self.rows = {}
        self.index = SimpleNamespace(contents="contents")
        self.raw_cache = RawCache()
        self.files = SimpleNamespace(fds={SEGMENT: FD}, fd=self._no_file)
        self.disk = self
        self.reads = 0

    def _no_file(self, segment):
        raise FileNotFoundError(segment)

    def read(self, fd, length, offset):
        assert fd == FD
        self.reads += 1
        return bytes(self.log[offset : offset + length])

    def get(self, key, default, db):
        assert key, "LMDB knows no empty key"
        assert db == "contents"
        return self.rows.get(key, default)

    def append(self, kind, key, value, flags=0):
        entry = encode_entry(LogEntry(SEQ, 0, kind, flags, key, value))
        offset = len(self.log)
        self.log += entry
        return SEGMENT, offset, len(entry)

    def content(self, key, raw, kind=CONTENT):
        flags, stored = compress(raw, 3)
        place = self.append(kind, key, CONTENT_HEAD.pack(len(raw)) + stored, flags)
        self.row(key, ContentRow(*place, SEQ, len(raw), 1, 0, place[2]))

    def pack(self, contents):
        """Several contents, by content key."""
        flags, stored = compress(b"".join(contents.values()), 3)
        named = [(key, len(raw)) for key, raw in contents.items()]
        value = encode_pack(named, stored)
        place = self.append(PACK, b"", value, flags)
        for one in decode_pack(value).contents:
            row = ContentRow(*place, SEQ, one.length, 1, one.start, one.share)
            self.row(one.key, row)

    def node(self, key, items, length=None):
        value = encode_tree(items)
        place = self.append(NODE, key, deflate_tree(value, 3))
        length = sum(item.length for item in items) if length is None else length
        self.row(key, ContentRow(*place, SEQ, length, 1, 0, place[2]))

    def row(self, key, row):
        self.rows[key] = encode_content_row(row)

    def change(self, key, **fields):
        self.row(key, decode_content_row(self.rows[key])._replace(**fields))

    @property
    def assembler(self):
        return Assembler(self, self)

    def hold(self, pieces, raw, *, packed):
        """All that pieces lead to."""
        fresh = {}
        for piece in pieces:
            if piece.literal or piece.key in self.rows:
                continue
            if piece.pieces is not None:
                self.hold(piece.pieces, raw, packed=packed)
                self.node(piece.key, piece.pieces)
            else:
                fresh[piece.key] = raw[piece.start : piece.start + piece.length]
        if packed and fresh:
            self.pack(fresh)
        for key, data in fresh.items():
            if not packed:
                self.content(key, data)


@pytest.fixture
def memory():
    return Memory()


def leaf_key(number):
    return bytes([number]) * 16 + b"\1\0"


def node_key(number):
    return bytes([number]) * 16 + b"\0\x80"


LEAF, OTHER, NODE_KEY, NEXT = leaf_key(1), leaf_key(2), node_key(3), node_key(4)


def leaf(key=LEAF, length=6, elements=1):
    return TreeItem(key, length, elements, 0, b"")


def node(key=NODE_KEY, length=6, elements=1, level=1):
    return TreeItem(key, length, elements, level, b"")


def literal(data, elements=0):
    return TreeItem(b"", len(data), elements, 0, data)


def spend(call):
    """What a call allocates at its highest."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refuses(call):
    """It ends in one of two errors, and takes next to nothing."""

    def checked():
        with pytest.raises((Mismatch, CorruptionError)):
            call()

    return spend(checked)


# -- what is there ------------------------------------------------------------------------------


@given(value=VALUES, packed=st.booleans())
def test_the_pieces_of_a_value_are_joined(value, packed):
    memory = Memory()
    data = pack(value)
    parts = cut(MSGPACK, data, small_sizes())
    if parts is None:
        return
    top = topmost(pieces_of(data, parts))
    memory.hold(top, data, packed=packed)
    root = deflate_tree(encode_tree(top), 3)
    assembler = memory.assembler
    assert assembler.value(MSGPACK | IS_TREE, root) == data
    assert assembler.newest == SEQ
    assert memory.assembler.value(MSGPACK | IS_TREE, root) == data  # from the cache
    memory.raw_cache.clear()
    items = items_of(root)
    assert [item.literal for item in items] == [piece.literal for piece in top]
    assert b"".join(memory.assembler.joined(items[1:])) == data[items[0].length :]
    for item in items:
        if item.key and item.key[17] & 0x80:
            inside = memory.assembler.node(item.key, item.length)
            assert memory.assembler.expanded(item.key, item.length) == b"".join(
                memory.assembler.joined(inside)
            )


@given(
    value=lists("message", "tiny", "list"), start=st.integers(-99, 99), stop=st.integers(-99, 99)
)
def test_a_part_of_a_list_reads_the_pieces_that_it_needs(value, start, stop):
    memory = Memory()
    data = pack(value)
    parts = cut(MSGPACK, data, small_sizes())
    if parts is None:
        return
    top = topmost(pieces_of(data, parts))
    memory.hold(top, data, packed=False)
    items = items_of(encode_tree(top))
    assert list_count(items) == len(value)
    for first, last in ((start, stop), (start, None), (None, stop), (3, 4)):
        part = part_of(memory.assembler, items, first, last)
        if part is None:
            assert sum(item.elements for item in items) == 0  # dense: nobody counted them
        else:
            assert unpack(part) == value[first:last]


def test_a_part_of_a_long_list_reads_little_of_it(memory):
    data = pack([bytes([number % 251]) * 90 for number in range(2000)])
    top = topmost(pieces_of(data, cut(MSGPACK, data, small_sizes())))
    memory.hold(top, data, packed=False)
    part = part_of(memory.assembler, items_of(encode_tree(top)), 1000, 1003)
    assert [item[0] for item in unpack(part)] == [number % 251 for number in range(1000, 1003)]
    assert memory.reads <= 12


def test_a_whole_value_is_one_content(memory):
    memory.content(LEAF, b"whole value")
    reference = LEAF + CONTENT_HEAD.pack(11)
    assert len(reference) == CONTENT_REF.size
    assert memory.assembler.value(IS_CONTENT, reference) == b"whole value"
    assert memory.assembler.value(0, b"inline") == b"inline"
    for wrong in (reference[:-1], reference + b"\0", b""):
        with pytest.raises(Mismatch):
            memory.assembler.value(IS_CONTENT, wrong)


def test_contents_of_a_pack_are_read_together(memory):
    memory.pack({LEAF: b"first" * 50, OTHER: b"second"})
    assert memory.assembler.content(OTHER) == b"second"
    assert memory.assembler.content(LEAF, 250) == b"first" * 50
    assert memory.reads == 1


def test_the_literal_bytes_of_a_node_may_be_compressed(memory):
    items = [literal(b"header"), leaf(), literal(b"tail " * 500, 9)]
    value = encode_tree(items)
    stored = deflate_tree(value, 3)
    assert len(stored) < len(value) / 5
    assert inflate_tree(stored) == value == inflate_tree(value)
    memory.content(LEAF, b"middle")
    assert memory.assembler.value(IS_TREE, stored) == b"headermiddle" + b"tail " * 500
    memory.node(NODE_KEY, items)
    assert memory.assembler.node(NODE_KEY, 2512) == items


@given(st.binary(max_size=3000))
def test_literal_bytes_come_back(data):
    for value in (encode_tree([literal(b"x" + data), leaf()]), encode_tree([literal(b"x" + data)])):
        stored = deflate_tree(value, 3)
        assert len(stored) <= len(value)
        assert inflate_tree(stored) == value


# -- what is damaged ----------------------------------------------------------------------------


def test_what_is_not_there(memory):
    with pytest.raises(Missing):
        content_row(memory, memory, LEAF)
    with pytest.raises(Missing):
        memory.assembler.joined([leaf()])
    with pytest.raises(Missing):
        memory.assembler.joined([node()])
    memory.content(LEAF, b"middle")
    memory.files.fds = {}
    with pytest.raises(Mismatch):
        memory.assembler.joined([leaf()])


def test_every_byte_that_differs_is_found(memory):
    memory.content(LEAF, b"middle")
    memory.pack({OTHER: b"other!"})
    memory.node(NODE_KEY, [leaf(), leaf(OTHER)])
    items = [node(length=12)]
    assert memory.assembler.joined(items) == [b"middleother!"]
    whole = bytes(memory.log)
    for at in range(len(b"header"), len(whole)):
        memory.log[at] ^= 0x10
        memory.raw_cache.clear()
        with pytest.raises((Mismatch, CorruptionError)):
            memory.assembler.joined(items)
        memory.log[:] = whole


@pytest.mark.parametrize(
    "fields",
    [
        {"segment": 6},
        {"offset": 7},
        {"offset": 1 << 30},
        {"length": 31},
        {"length": 0},
        {"seq": 41},
        {"raw_length": 5},
        {"raw_length": 1 << 40},
        {"start": 1},
    ],
    ids=str,
)
def test_a_row_that_leads_elsewhere(memory, fields):
    memory.pack({LEAF: b"middle", OTHER: b"other!"})
    memory.change(LEAF, **fields)
    with pytest.raises(Mismatch):
        memory.assembler.content(LEAF)
    memory.raw_cache.clear()
    with pytest.raises(Mismatch):
        raw_content(memory, LEAF, decode_content_row(memory.rows[LEAF]))


def test_a_content_of_another_kind(memory):
    """A leaf that is a node, a node that is a leaf, and a part of a pack that is another's."""
    memory.content(NODE_KEY, b"no node")
    with pytest.raises(Mismatch):
        memory.assembler.node(NODE_KEY, 7)
    memory.node(LEAF, [leaf()])
    with pytest.raises(Mismatch):
        memory.assembler.content(LEAF)
    memory.content(OTHER, b"other!")
    memory.rows[LEAF] = memory.rows[OTHER]
    with pytest.raises(Mismatch):
        memory.assembler.content(LEAF)
    memory.raw_cache.clear()
    memory.pack({LEAF: b"middle", OTHER: b"other!"})
    memory.rows[LEAF] = memory.rows[OTHER]
    with pytest.raises(Mismatch):
        memory.assembler.content(LEAF)


def test_a_node_that_holds_something_else(memory):
    place = memory.append(NODE, NODE_KEY, b"noise")
    memory.row(NODE_KEY, ContentRow(*place, SEQ, 6, 1, 0, place[2]))
    with pytest.raises((Mismatch, CorruptionError)):
        memory.assembler.joined([node()])
    with pytest.raises((Mismatch, CorruptionError)):
        node_value(memory, NODE_KEY, decode_content_row(memory.rows[NODE_KEY]))


def test_where_a_content_cannot_be_decompressed_is_told(memory):
    value = CONTENT_HEAD.pack(6) + b"no frame"
    place = memory.append(CONTENT, LEAF, value, flags=1)
    memory.row(LEAF, ContentRow(*place, SEQ, 6, 1, 0, place[2]))
    with pytest.raises(CorruptionError) as caught:
        memory.assembler.joined([leaf()])
    assert (caught.value.segment, caught.value.offset) == place[:2]


# -- what lies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [5, 7, 1 << 20, (1 << 32) - 1])
def test_lengths_that_lie(memory, length):
    memory.content(LEAF, b"middle")
    memory.node(NODE_KEY, [leaf()])
    for item in (leaf(length=length), node(length=length)):
        assert refuses(lambda item=item: memory.assembler.joined([item])) < SPARE
    memory.node(NEXT, [leaf(length=length)])
    assert refuses(lambda: memory.assembler.joined([node(NEXT, length)])) < SPARE


@pytest.mark.parametrize("length", [6, EXPANDED_BYTES_MAX, EXPANDED_BYTES_MAX + 1, (1 << 32) - 1])
def test_a_node_that_holds_itself(memory, length):
    for level in (0, 1, 63):
        memory.node(NODE_KEY, [node(length=length, level=level)])
        items = [node(length=length, level=level)]
        assert refuses(lambda items=items: memory.assembler.joined(items)) < SPARE
        memory.raw_cache.clear()


@pytest.mark.parametrize("length", [9000, EXPANDED_BYTES_MAX + 9000])
def test_nodes_that_hold_one_another_and_more(memory, length):
    """The bytes that they claim are shared out, so they grow no more than they claim."""
    few = [literal(b"x" * 60)] * 9
    memory.node(NODE_KEY, [*few, node(NEXT, length - 540)])
    memory.node(NEXT, [node(NODE_KEY, length)], length=length)
    assert refuses(lambda: memory.assembler.joined([node(NODE_KEY, length)])) < SPARE


def test_how_deep_nodes_may_be(memory):
    memory.content(LEAF, b"middle")
    memory.node(node_key(0), [leaf()])
    for number in range(1, 250):
        memory.node(node_key(number), [node(node_key(number - 1), level=0)])
    assert memory.assembler.joined([node(node_key(DEPTH_MAX - 1), level=0)]) == [b"middle"]
    memory.raw_cache.clear()
    with pytest.raises(CorruptionError, match="without end"):
        memory.assembler.joined([node(node_key(249), level=0)])


def test_nodes_without_end_are_an_error_whoever_asks(memory):
    """Also deep inside a caller's own recursion."""
    memory.node(NODE_KEY, [node(level=0)])

    def deep(left):
        return deep(left - 1) if left else memory.assembler.joined([node(level=0)])

    frames = 0
    frame = sys._getframe()
    while frame is not None:
        frames, frame = frames + 1, frame.f_back
    with pytest.raises(CorruptionError):
        deep(500 - frames)


def test_a_content_larger_than_its_item_says_takes_no_memory(memory):
    memory.content(LEAF, bytes(100 << 20))
    assert refuses(lambda: memory.assembler.joined([leaf(length=10)])) < SPARE


def test_a_root_that_claims_more_than_any_value_has():
    items = [leaf(length=VALUE_BYTES_LIMIT), literal(b"x")]
    with pytest.raises(CorruptionError, match="more than any value"):
        items_of(encode_tree(items))
    assert items_of(encode_tree(items[:1])) == items[:1]


def test_literal_bytes_that_would_inflate_past_what_is_claimed(memory):
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(100 << 20))
    for length in (10, 100 << 20, VALUE_BYTES_LIMIT + 1):
        table = encode_tree([literal(b"x")])[TREE_HEAD.size : -1]
        table = table[:18] + length.to_bytes(4, "little") + table[22:]
        forged = TREE_HEAD.pack(length, 1, 1) + table + bomb
        if length == 100 << 20:
            assert items_of(forged)[0].length == length
            continue
        assert refuses(lambda forged=forged: items_of(forged)) < SPARE
        assert refuses(lambda forged=forged: memory.assembler.value(IS_TREE, forged)) < SPARE


@given(st.binary(max_size=90), st.integers(0, 255))
def test_noise_is_no_tree(noise, how):
    memory = Memory()
    for value in (noise, TREE_HEAD.pack(60, 1, how) + noise):
        with pytest.raises((Mismatch, CorruptionError)):
            memory.assembler.value(IS_TREE, value)


@pytest.mark.parametrize("how", [2, 77, 255])
def test_literal_bytes_stored_in_an_unknown_way(how):
    length, count, _ = TREE_HEAD.unpack_from(encode_tree([literal(b"abc")]))
    value = TREE_HEAD.pack(length, count, how) + encode_tree([literal(b"abc")])[TREE_HEAD.size :]
    with pytest.raises(CorruptionError):
        inflate_tree(value)


LISTED = [
    ("elements that are not there", [literal(b"\x99"), leaf(elements=9)], 0, 8),
    ("elements that are no elements", [literal(b"\x92"), literal(b"\xc1\xc1", 2)], 0, 1),
    ("elements that nest without end", [literal(b"\x92"), literal(b"\x91" * 5000, 2)], 1, 2),
    ("a node that holds itself", [literal(b"\x92"), node(NEXT, 9, 2)], 0, 1),
    ("a node of a level too high", [literal(b"\x91"), node(level=2)], 0, 1),
    ("a node of other elements", [literal(b"\x95"), node(elements=5)], 2, 3),
    ("a node that is not there", [literal(b"\x92"), node(node_key(9), elements=2)], 0, 1),
]


@pytest.mark.parametrize(
    ("items", "start", "stop"), [row[1:] for row in LISTED], ids=[row[0] for row in LISTED]
)
def test_a_part_of_a_list_that_lies(memory, items, start, stop):
    memory.content(LEAF, b"\1\2\3\4\5\6")
    memory.node(NODE_KEY, [leaf()])
    memory.node(NEXT, [node(NEXT, 9, 2)])
    assert refuses(lambda: part_of(memory.assembler, items, start, stop)) < SPARE


@pytest.mark.parametrize(
    "items",
    [
        [leaf()],
        [literal(b"\x82"), leaf(elements=2)],
        [literal(b"\x92\1"), leaf(elements=2)],
        [literal(b"\xdd\xff"), leaf(elements=2)],
        [literal(b"\x93"), leaf(elements=2)],
        [literal(b"\xa3abc")],
    ],
)
def test_what_is_no_list_of_counted_elements_has_no_part(memory, items):
    assert part_of(memory.assembler, items, 0, 2) is None


# -- anything at all ----------------------------------------------------------------------------

KEYS = [leaf_key(1), leaf_key(2), leaf_key(9), node_key(1), node_key(2), node_key(3), node_key(9)]
LENGTHS = st.sampled_from([1, 2, 6, 7, 12, 100, 300_000, 1 << 31])
FORGED_ITEMS = st.lists(
    st.one_of(
        st.builds(
            TreeItem,
            st.sampled_from(KEYS),
            LENGTHS,
            st.integers(0, 6),
            st.integers(0, 2),
            st.just(b""),
        ),
        st.binary(min_size=1, max_size=5).map(lambda data: literal(data, len(data))),
        st.just(literal(b"\x93")),
    ),
    min_size=1,
    max_size=4,
)


def told_right(items, sizes):
    """Items with the lengths that contents have, as far as they are known and can be said."""
    return [
        item._replace(length=min(sizes.get(item.key, item.length), (1 << 32) - 1)) for item in items
    ]


@given(
    nodes=st.lists(FORGED_ITEMS, min_size=3, max_size=3),
    root=FORGED_ITEMS,
    agreeing=st.booleans(),
    start=st.integers(-4, 4),
    stop=st.integers(-4, 4),
)
@settings(max_examples=4 * settings.default.max_examples)
def test_forged_trees_give_what_they_claim_or_an_error(nodes, root, agreeing, start, stop):
    """In time, in memory, and in no other way."""
    memory = Memory()
    memory.content(leaf_key(1), b"\1\2\3\4\5\6")
    memory.pack({leaf_key(2): b"\x91\7"})
    sizes = {leaf_key(1): 6, leaf_key(2): 2}
    for number, drawn in enumerate(nodes, 1):
        items = told_right(drawn, sizes) if agreeing else drawn
        memory.node(node_key(number), items)
        sizes[node_key(number)] = sum(item.length for item in items)
    root = told_right(root, sizes) if agreeing else root
    claimed = sum(item.length for item in root)
    try:
        data = b"".join(memory.assembler.joined(root))
    except (Mismatch, CorruptionError):
        pass
    else:
        assert len(data) == claimed
    try:
        data = memory.assembler.value(IS_TREE, encode_tree(root))
    except (Mismatch, CorruptionError):
        pass
    else:
        assert len(data) == claimed
    try:
        part = part_of(memory.assembler, root, start, stop)
    except (Mismatch, CorruptionError):
        pass
    else:
        assert part is None or len(part) <= claimed + 5


def test_forged_trees_are_damage_for_a_store(store):
    """Through the front door: what is committed is a root that lies."""
    for number, items in enumerate(
        [
            [literal(b"\x93")],
            [literal(b"\x92"), literal(b"\1", 9)],
            [literal(b"\x99"), literal(b"\1", 9)],
            [literal(b"\xdd\0\0\0\x09"), literal(b"\1\2\3\4", 3), literal(b"\x91" * 3000, 6)],
            [literal(b"\xc1"), literal(b"\xc1" * 40, 1)],
        ]
    ):
        key = f"forged {number}"
        operation = Operation(key.encode(), PUT, MSGPACK | IS_TREE, 0, encode_tree(items))
        store._engine.committer.commit((operation,), full=False)
        for call in (
            lambda key=key: store.load(key),
            lambda key=key: store.load_range(key, 1, 2),
            lambda key=key: store.append(key, "x" * 100),
            lambda key=key: store.entry(key),
        ):
            with suppress(KvsageError):
                call()
