"""Where keys lead, what is buried, what expires, and which bytes are dead."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsage.index.env import Index
from kvsage.index.expiry import expiry_key
from kvsage.index.keydir import ROW, Row, content_keys_in, decode_row, set_deleted, set_live

CONTENT_KEY = bytes(range(18))
KEYS = [b"a", b"b", b"key" * 100, b"\xffsystem"]


def packed(*fields, content_key=b""):
    """A row as the index holds it."""
    return ROW.pack(*fields) + content_key


def rows(index, txn):
    """Every row of every database, but for the unnamed one."""
    return {
        "keydir": {key: decode_row(data) for key, data in txn.cursor(index.keydir)},
        "system": {key: decode_row(data) for key, data in txn.cursor(index.system)},
        "tombstones": {key: decode_row(data) for key, data in txn.cursor(index.tombstones)},
        "expiry": {key for key, value in txn.cursor(index.expiry) if value == b""},
    }


NOTHING = {"keydir": {}, "system": {}, "tombstones": {}, "expiry": set()}


def test_a_new_key(index, txn):
    dead = {}
    row = Row(1, 200, 50, 7, 0, 1)
    assert set_live(index, txn, b"a", packed(*row), dead) is None
    assert rows(index, txn) == NOTHING | {"keydir": {b"a": row}}
    assert dead == {}


def test_a_row_that_refers_to_a_content_names_it(index, txn):
    row = packed(1, 200, 50, 7, 0, 8, content_key=CONTENT_KEY)
    set_live(index, txn, b"a", row, {})
    assert txn.get(b"a", db=index.keydir) == row
    assert decode_row(row) == Row(1, 200, 50, 7, 0, 8)
    assert content_keys_in(row) == CONTENT_KEY
    plain = packed(1, 300, 40, 8, 0, 1)
    assert set_live(index, txn, b"a", plain, {}) == row
    assert content_keys_in(plain) == b""
    set_live(index, txn, b"a", row, {})
    assert set_deleted(index, txn, b"a", packed(1, 400, 30, 9, 0, 0), {}) == row


def test_a_key_of_kvsages_own_stands_apart(index, txn):
    row = Row(1, 200, 50, 7, 0, 1)
    assert set_live(index, txn, b"\xffc", packed(*row), {}) is None
    assert rows(index, txn) == NOTHING | {"system": {b"\xffc": row}}
    later = packed(1, 300, 40, 8, 0, 1)
    assert set_live(index, txn, b"\xffc", later, {}) == packed(*row)
    assert set_deleted(index, txn, b"\xffc", packed(1, 400, 30, 9, 0, 0), {}) == later
    assert rows(index, txn) == NOTHING | {"tombstones": {b"\xffc": Row(1, 400, 30, 9, 0, 0)}}


def test_what_is_replaced_is_dead_where_it_lies(index, txn):
    dead = {2: 5}
    first, second = packed(1, 200, 50, 7, 0, 1), packed(2, 100, 60, 8, 0, 0)
    set_live(index, txn, b"a", first, dead)
    assert set_live(index, txn, b"a", second, dead) == first
    assert dead == {1: 50, 2: 5}
    assert set_live(index, txn, b"a", packed(2, 300, 10, 9, 0, 0), dead) == second
    assert dead == {1: 50, 2: 65}


def test_a_deleted_key_leaves_its_tombstone_and_its_bytes(index, txn):
    dead = {}
    row, tomb = Row(1, 200, 50, 7, 9000, 1), Row(2, 100, 33, 8, 0, 0)
    set_live(index, txn, b"a", packed(*row), dead)
    assert set_deleted(index, txn, b"a", packed(*tomb), dead) == packed(*row)
    assert rows(index, txn) == NOTHING | {"tombstones": {b"a": tomb}}
    assert dead == {1: 50}


def test_a_key_that_comes_back_lets_its_tombstone_go(index, txn):
    dead = {}
    set_deleted(index, txn, b"a", packed(2, 100, 33, 8, 0, 0), dead)
    back = Row(3, 100, 40, 9, 0, 0)
    assert set_live(index, txn, b"a", packed(*back), dead) is None
    assert rows(index, txn) == NOTHING | {"keydir": {b"a": back}}
    assert dead == {2: 33}


def test_a_tombstone_replaces_another(index, txn):
    dead = {}
    first, second = Row(1, 100, 33, 8, 0, 0), Row(2, 100, 34, 9, 0, 1)
    assert set_deleted(index, txn, b"a", packed(*first), dead) is None
    assert set_deleted(index, txn, b"a", packed(*second), dead) is None
    assert rows(index, txn) == NOTHING | {"tombstones": {b"a": second}}
    assert dead == {1: 33}


@pytest.mark.parametrize(("before", "after"), [(0, 5), (5, 0), (5, 5), (5, 9), (0, 0)])
def test_the_expiry_of_a_key_is_its_newest(index, txn, before, after):
    set_live(index, txn, b"other", packed(1, 1, 1, 1, 5, 0), {})
    set_live(index, txn, b"a", packed(1, 200, 50, 7, before, 0), {})
    set_live(index, txn, b"a", packed(1, 300, 50, 8, after, 0), {})
    expected = {expiry_key(5, b"other")} | ({expiry_key(after, b"a")} if after else set())
    assert rows(index, txn)["expiry"] == expected
    set_deleted(index, txn, b"a", packed(1, 400, 30, 9, 0, 0), {})
    assert rows(index, txn)["expiry"] == {expiry_key(5, b"other")}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    index = Index(tmp_path_factory.mktemp("index"), 1 << 30)
    yield index
    index.close()


STEPS = st.tuples(
    st.booleans(),
    st.sampled_from(KEYS),
    st.integers(1, 3),  # segment
    st.integers(33, 90),  # length
    st.sampled_from([0, 0, 100, 200]),  # expiry
)


@settings(max_examples=2 * settings.default.max_examples)
@given(st.lists(STEPS, max_size=30))
def test_any_history_leaves_the_newest_and_counts_the_rest_dead(shared, steps):
    live, buried, written, dead = {}, {}, {}, {}
    txn = shared.begin_write()
    try:
        for seq, (alive, key, segment, length, expires_ms) in enumerate(steps, start=1):
            row = Row(segment, seq * 100, length, seq, expires_ms if alive else 0, seq % 3)
            written[segment] = written.get(segment, 0) + length
            old = live.pop(key, None)
            buried.pop(key, None)
            (live if alive else buried)[key] = row
            set_row = set_live if alive else set_deleted
            before = None if old is None else packed(*old)
            assert set_row(shared, txn, key, packed(*row), dead) == before
        found = rows(shared, txn)
        assert found["keydir"] | found["system"] == live
        assert set(found["system"]) <= {b"\xffsystem"}
        assert b"\xffsystem" not in found["keydir"]
        assert found["tombstones"] == buried
        assert found["expiry"] == {
            expiry_key(row.expires_ms, key) for key, row in live.items() if row.expires_ms
        }
        for row in (*live.values(), *buried.values()):
            written[row.segment] -= row.length
        assert {segment: count for segment, count in written.items() if count} == dead
    finally:
        txn.abort()
