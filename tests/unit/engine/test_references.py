"""References are counted exactly, whatever comes and goes together."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsage.engine import references
from kvsage.engine.references import References, content_rows, release
from kvsage.errors import CorruptionError
from kvsage.index.contents import ContentRow, decode_content_row
from kvsage.index.env import Index
from kvsage.log.format import (
    CONTENT,
    CONTENT_HEAD,
    DELETE,
    NODE,
    ORIGINS,
    PACK,
    PUT,
    LogEntry,
    TreeItem,
    encode_pack,
    encode_tree,
)

LEAVES = [bytes([number]) * 16 + b"\0\0" for number in range(8)]
NODES = [bytes([number]) * 16 + b"\0\x80" for number in range(6)]
# Each node refers to leaves and to nodes before it, some of them twice.
CHILDREN = {
    NODES[0]: [LEAVES[0], LEAVES[1]],
    NODES[1]: [LEAVES[1], LEAVES[1], LEAVES[2]],
    NODES[2]: [NODES[0], NODES[1], LEAVES[3]],
    NODES[3]: [NODES[0], NODES[0]],
    NODES[4]: [NODES[3], NODES[2], NODES[2], LEAVES[0]],
    NODES[5]: [LEAVES[5]],
}
SEGMENTS = {key: 1 + number % 3 for number, key in enumerate((*LEAVES, *NODES))}
SHARES = {key: 100 + number for number, key in enumerate((*LEAVES, *NODES))}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("references")
    index = Index(path, 1 << 24)
    yield index
    index.close()


@pytest.fixture
def txn(index):
    """A write transaction that comes to nothing."""
    txn = index.begin_write()
    yield txn
    txn.abort()


def row_of(key, references=0):
    children = b"".join(CHILDREN.get(key, ()))
    return ContentRow(SEGMENTS[key], 7, 150, 1, 99, references, 0, SHARES[key], children)


def add(changes, key):
    """A content and what it refers to, as far as they are not there."""
    if changes.row(key) is None:
        for child in CHILDREN.get(key, ()):
            add(changes, child)
        changes.add(key, row_of(key))


def counts(index, txn):
    return {
        bytes(key): decode_content_row(data).references for key, data in txn.cursor(index.contents)
    }


def counted(roots):
    """What the counts must be, from scratch."""
    found, left = Counter(), [key for root in roots for key in root]
    while left:
        key = left.pop()
        found[key] += 1
        if found[key] == 1:
            left += CHILDREN.get(key, ())
    return dict(found)


def put(index, txn, before, after, dead):
    """A key that referred to some contents refers to others."""
    changes = References(index, txn)
    for key in after:
        add(changes, key)
    changes.hold(b"".join(after))
    changes.release(b"".join(before))
    changes.settle(dead)


ROOTS = st.lists(st.sampled_from([*LEAVES, *NODES]), max_size=5)


@given(script=st.lists(st.tuples(st.integers(0, 2), ROOTS), max_size=12))
def test_counts_after_every_operation(index, script):
    txn = index.begin_write()
    try:
        held, dead, ended = {0: [], 1: [], 2: []}, {}, Counter()
        for name, root in script:
            there = counts(index, txn)
            put(index, txn, held[name], root, dead)
            held[name] = root
            expected = counted(held.values())
            assert counts(index, txn) == expected
            for key in there.keys() - expected.keys():
                ended[SEGMENTS[key]] += SHARES[key]
            assert dead == ended
            for key, count in expected.items():
                data = txn.get(key, db=index.contents)
                assert decode_content_row(data) == row_of(key, count)
        for root in held.values():
            release(index, txn, b"".join(root), dead)
        assert counts(index, txn) == {}
    finally:
        txn.abort()


def test_a_content_that_goes_on_being_referred_to_is_not_written_again(index, txn, monkeypatch):
    dead, written = {}, []
    put(index, txn, [], [NODES[4], NODES[2]], dead)
    encode = references.encode_content_row

    def encode_content_row(row, *counted):
        written.append(row.offset)
        return encode(row, *counted)

    monkeypatch.setattr(references, "encode_content_row", encode_content_row)
    put(index, txn, [NODES[4], NODES[2]], [NODES[4], NODES[2]], dead)
    assert written == []
    put(index, txn, [NODES[4], NODES[2]], [NODES[4], NODES[2], NODES[2], LEAVES[7]], dead)
    assert len(written) == 2
    assert dead == {}


def test_a_content_that_nothing_refers_to_in_the_end_leaves_no_row(index, txn):
    """Added and let go of in one operation: its bytes are dead at once."""
    dead = {}
    changes = References(index, txn)
    changes.add(LEAVES[0], row_of(LEAVES[0]))
    changes.hold(LEAVES[0])
    changes.release(LEAVES[0])
    changes.settle(dead)
    assert counts(index, txn) == {}
    assert dead == {SEGMENTS[LEAVES[0]]: SHARES[LEAVES[0]]}


def test_what_is_referred_to_must_be_there(index, txn):
    changes = References(index, txn)
    changes.hold(LEAVES[0])
    with pytest.raises(CorruptionError, match="missing"):
        changes.settle({})


def test_a_content_that_is_missing_already_can_be_let_go_of(index, txn):
    """A damaged index: a rebuild counts anew, and until then no write fails for it."""
    dead = {}
    put(index, txn, [], [NODES[2], LEAVES[7]], dead)
    txn.delete(NODES[0], db=index.contents)
    put(index, txn, [NODES[2]], [], dead)
    left = counts(index, txn)
    assert left[LEAVES[7]] == 1
    assert NODES[2] not in left
    assert NODES[1] not in left


# -- what entries bring -------------------------------------------------------------------------

PLACE = (3, 4000, 500)


def entry(kind, key, value):
    return LogEntry(42, 0, kind, 0, key, value)


def test_rows_of_a_content():
    value = CONTENT_HEAD.pack(77) + b"stored"
    assert list(content_rows(entry(CONTENT, LEAVES[1], value), PLACE)) == [
        (LEAVES[1], ContentRow(*PLACE, 42, 77, 0, 0, 500))
    ]


def test_rows_of_a_node():
    items = [
        TreeItem(b"", 2, 0, 0, b"ab"),
        TreeItem(LEAVES[2], 50, 1, 0, b""),
        TreeItem(NODES[2], 60, 1, 1, b""),
        TreeItem(LEAVES[2], 50, 1, 0, b""),
    ]
    children = LEAVES[2] + NODES[2] + LEAVES[2]
    assert list(content_rows(entry(NODE, NODES[1], encode_tree(items)), PLACE)) == [
        (NODES[1], ContentRow(*PLACE, 42, 162, 0, 0, 500, children))
    ]


def test_rows_of_a_pack():
    value = encode_pack([(LEAVES[1], 30), (LEAVES[4], 70)], b"stored")
    place = (3, 4000, 32 + len(value))
    rows = dict(content_rows(entry(PACK, b"", value), place))
    assert list(rows) == [LEAVES[1], LEAVES[4]]
    assert rows[LEAVES[1]][:7] == (*place, 42, 30, 0, 0)
    assert rows[LEAVES[4]][:7] == (*place, 42, 70, 0, 30)
    assert sum(row.share for row in rows.values()) == place[2]
    assert rows[LEAVES[1]].share == place[2] * 30 // 100


@pytest.mark.parametrize("kind", [PUT, DELETE, ORIGINS])
def test_other_entries_bring_no_contents(kind):
    assert list(content_rows(entry(kind, b"k", b"value"), PLACE)) == []


def test_what_is_no_pack_brings_no_contents():
    assert list(content_rows(entry(PACK, b"", b"noise"), PLACE)) == []
