"""Trees inside the commit: what was prepared may have come, gone or moved meanwhile."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsage import LMDBStore
from kvsage.engine import content, placing, preparing, tree
from kvsage.engine.commit import ANYTHING
from kvsage.errors import CorruptionError, StoreFullError
from kvsage.index.segments import all_segments
from kvsage.log.format import (
    BATCH_BYTES,
    CONTENT,
    CONTENT_KEY,
    NODE,
    NODE_NUMBER,
    PACK,
    PUT,
    decode_entry,
    decode_pack,
    is_node,
    keys_in_tree,
    references_in,
    split_entries,
    split_keys,
)
from kvsage.log.reader import SegmentReader
from kvsage.log.segment import read_header
from tests.support.small import OPTIONS, make_small, quick_directory
from tests.support.trees import (
    EDITS,
    VALUES,
    check_counts,
    contents_in,
    edited,
    lists,
    messages,
    plain_tree,
    tree_of,
)

RNG = random.Random(11)
VALUE = messages(RNG, 60)
OTHER = messages(RNG, 60)
TINY = "something of no size"


@pytest.fixture
def store_options(monkeypatch):
    make_small(monkeypatch)
    return {**OPTIONS, "segment_bytes_max": 100_000}


def entries_of(store):
    """Every entry of the log, in the order in which they were written, with its commit's seq."""
    engine = store._engine
    with engine.index.reading() as txn:
        rows = dict(all_segments(txn))
    found = []
    for segment in sorted(rows):
        fd = engine.files.fd(segment)
        header, chain, offset = read_header(engine.disk, fd, engine.identity.uuid)
        reader = SegmentReader(engine.disk, fd, segment, engine.salt)
        for batch in reader.batches(offset, chain, header.after_seq):
            assert batch.end - batch.offset > BATCH_BYTES
            for _, framed in split_entries(batch.body, batch.header.entries):
                found.append(decode_entry(framed))
    return found


def brought_by(entry):
    """The content keys of what an entry holds."""
    if entry.kind == PACK:
        return [one.key for one in decode_pack(entry.value).contents]
    return [entry.key] if entry.kind in {CONTENT, NODE} else []


def check(store, value, key="k"):
    assert store.load(key) == value
    assert tree_of(store, key) == plain_tree(value)


def commit(store, *operations):
    return store._engine.committer.commit(operations, full=False)


def prepared(store, key, value):
    return store._preparer.save(key, value, None, ANYTHING)


# -- the order of entries -----------------------------------------------------------------------


@given(value=VALUES, edits=st.lists(EDITS, max_size=3))
@settings(max_examples=settings.default.max_examples // 2)
def test_what_is_referred_to_stands_before_what_refers_to_it(one_store, value, edits):
    """And nothing is ever written twice."""
    with one_store() as store:
        store.save("k", value)
        for edit in edits:
            value = edited(value, edit)
            store.save("k", value)
            store.save_many({"a": value, "b": [value, value], "c": {"d": value}})
        written, live = set(), set()
        for entry in entries_of(store):
            if entry.kind == NODE:
                assert set(split_keys(keys_in_tree(entry.value))) <= written
            if entry.kind == PUT:
                assert set(split_keys(references_in(entry))) <= written
            for key in brought_by(entry):
                assert is_node(key) == (entry.kind == NODE)
                written.add(key)
                live.add(key)
        assert contents_in(store).keys() <= live


@pytest.fixture(scope="module")
def one_store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patches:
        make_small(patches)
        with quick_directory(tmp_path_factory.mktemp("placing")) as path:
            numbers = iter(range(1 << 30))
            yield lambda: LMDBStore(
                path / str(next(numbers)), **{**OPTIONS, "segment_bytes_max": 100_000}
            )


def test_new_leaves_are_packed_together(store):
    store.save("k", VALUE)
    kinds = [entry.kind for entry in entries_of(store)]
    assert kinds.count(PACK) >= 1
    assert kinds.count(CONTENT) <= 1  # what is left over
    assert kinds == sorted(kinds, key=[PACK, CONTENT, NODE, PUT].index)
    packs = [brought_by(entry) for entry in entries_of(store) if entry.kind == PACK]
    leaves = [key for key in plain_tree(VALUE)[1] if not is_node(key)]
    assert {key for pack in packs for key in pack} <= set(leaves)
    sizes = [entry for entry in entries_of(store) if entry.kind == PACK]
    assert all(decode_pack(entry.value).length <= store._preparer.sizes.pack for entry in sizes)


def test_one_new_leaf_is_a_content(store):
    store.save("k", VALUE)
    before = len(entries_of(store))
    store.save("k", [*VALUE[:30], "a new one " * 30, *VALUE[31:]])
    new = [entry.kind for entry in entries_of(store)[before:]]
    assert new.count(CONTENT) + new.count(PACK) >= 1
    assert new[-1] == PUT
    assert len(new) < 12


def test_what_is_there_is_not_written_again(store):
    store.save("k", VALUE)
    for key, value in (("k", VALUE), ("twin", VALUE), ("same but one", [*VALUE, 1])):
        before = len(entries_of(store))
        store.save(key, value)
        assert [entry.kind for entry in entries_of(store)[before:]] == [PUT]
    check_counts(store)


def test_several_of_one_commit_share_what_they_bring(store):
    store.save_many({"a": VALUE, "b": VALUE, "c": [*VALUE, TINY], "d": {"inside": VALUE}})
    brought = [key for entry in entries_of(store) for key in brought_by(entry)]
    assert len(brought) == len(set(brought))
    assert set(brought) == contents_in(store).keys()
    with store.transaction() as tx:
        tx.save("e", OTHER)
        tx.delete("a")
        tx.append("e", TINY)
        tx.save("f", [*OTHER, TINY])
    for key, value in (("b", VALUE), ("e", [*OTHER, TINY]), ("f", [*OTHER, TINY])):
        check(store, value, key)
    check_counts(store)


# -- meanwhile ----------------------------------------------------------------------------------


def test_what_was_there_has_gone_meanwhile(store):
    store.save("other", VALUE)
    operation = prepared(store, "k", VALUE)
    store.delete("other")
    assert contents_in(store) == {}
    assert commit(store, operation) == [True]
    check(store, VALUE)
    check_counts(store)


def test_part_of_what_was_there_has_gone_meanwhile(store):
    store.save("other", VALUE)
    operation = prepared(store, "k", [*VALUE, *OTHER])
    store.save("other", VALUE[:20])
    commit(store, operation)
    check(store, [*VALUE, *OTHER])
    check(store, VALUE[:20], "other")
    check_counts(store)


def test_what_was_new_has_come_meanwhile(store):
    operation = prepared(store, "k", VALUE)
    store.save("other", VALUE)
    before = len(entries_of(store))
    commit(store, operation)
    assert [entry.kind for entry in entries_of(store)[before:]] == [PUT]
    check(store, VALUE)
    check_counts(store)


def test_part_of_what_was_new_has_come_meanwhile(store):
    operation = prepared(store, "k", VALUE)
    store.save("other", VALUE[:30])
    commit(store, operation)
    check(store, VALUE)
    check_counts(store)
    brought = [key for entry in entries_of(store) for key in brought_by(entry)]
    assert len(brought) == len(set(brought))


def test_what_was_there_has_moved_meanwhile(store):
    store.save("other", VALUE)
    operation = prepared(store, "k", [*VALUE, TINY])
    for _ in range(3):
        store.save("garbage", messages(random.Random(1), 300))
        store.delete("garbage")
    store.compact()
    commit(store, operation)
    check(store, [*VALUE, TINY])
    check_counts(store)


def test_what_was_there_goes_within_the_same_commit(store):
    """In whatever order: what one operation ends, a later one brings again."""
    store.save("other", VALUE)
    operation = prepared(store, "k", VALUE)
    commit(store, store._preparer.delete(b"other"), operation)
    check(store, VALUE)
    first, second = prepared(store, "k", TINY), prepared(store, "new", [*VALUE, *OTHER])
    commit(store, first, second, prepared(store, "new", OTHER), prepared(store, "k", VALUE))
    check(store, VALUE)
    check(store, OTHER, "new")
    check_counts(store)


@given(
    there=lists(max_size=2),
    prepared_=st.lists(VALUES, min_size=1, max_size=3),
    meanwhile=st.lists(st.tuples(st.sampled_from("abc"), VALUES | st.none()), max_size=3),
    compacted=st.booleans(),
)
@settings(max_examples=settings.default.max_examples // 2)
def test_whatever_happens_meanwhile(one_store, there, prepared_, meanwhile, compacted):
    """Prepared over one state, committed over another; pieces of all of them in one another."""
    values = [[*there, value] for value in prepared_]
    with one_store() as store:
        store.save_many({"a": there, "b": [there, there]})
        operations = [prepared(store, f"k{n}", value) for n, value in enumerate(values)]
        for key, value in meanwhile:
            if value is None:
                store.delete(key)
            else:
                store.save(key, [*there[:9], value])
        if compacted:
            store.compact()
        commit(store, *operations)
        for number, value in enumerate(values):
            check(store, value, f"k{number}")
        check_counts(store)


# -- what fails ---------------------------------------------------------------------------------


def test_what_fails_leaves_nothing(store, monkeypatch):
    store.save("k", VALUE)
    before, log = contents_in(store), len(entries_of(store))

    disk = type(store._engine.disk)
    write = disk.write

    def little_room(its, fd, parts, offset):
        if sum(map(len, parts)) > 300:
            raise StoreFullError("no space left")
        write(its, fd, parts, offset)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", little_room)
        for call in (
            lambda: store.save("k", OTHER),
            lambda: store.append("k", "x" * 500),
            lambda: store.save_many({"a": OTHER, "b": VALUE[:30]}),
        ):
            with pytest.raises(StoreFullError):
                call()
    assert contents_in(store) == before
    assert len(entries_of(store)) == log
    check(store, VALUE)
    with store.transaction() as tx:
        tx.save("k", OTHER)
        tx.append("k", 1)
        tx.rollback()
    assert contents_in(store) == before
    store.save("k", OTHER)
    check(store, OTHER)
    check_counts(store)


# -- hashes that collide ------------------------------------------------------------------------


@pytest.fixture
def few_hashes(monkeypatch):
    """Leaves have one of three hashes, nodes one of two."""

    def leaf_digest(data):
        return bytes([len(data) % 3]) * 16

    def digest(data, seed=0):
        return leaf_digest(data) if not seed else bytes([7 + len(data) % 2]) * 16

    monkeypatch.setattr(tree, "xxh3_128_digest", digest)
    monkeypatch.setattr(content, "xxh3_128_digest", digest)


def test_pieces_whose_hashes_collide_are_told_apart(store, few_hashes):
    value, other = VALUE[:40], [*VALUE[:20], TINY, *OTHER[:30]]
    store.save("k", value)
    store.save("other", other)
    store.append("k", "x" * 300)
    value = [*value, "x" * 300]
    assert store.load("k") == value
    assert store.load("other") == other
    store._engine.raw_cache.clear()
    assert store.load("k") == value
    assert store.load_range("other", 10, 30) == other[10:30]
    assert max(CONTENT_KEY.unpack(key)[1] for key in contents_in(store)) > NODE_NUMBER
    rows = contents_in(store)
    assert len({key[:16] for key in rows}) <= 5 < len(rows)
    store.save("twin", value)
    store.delete("other")
    store.save("k", value[:30])
    assert store.load("twin") == value
    assert store.load("k") == value[:30]
    store.clear()
    assert contents_in(store) == {}


def test_pieces_of_one_length_whose_hashes_collide_are_told_apart(store, few_hashes):
    value = [f"{number:0300}" for number in range(40)]
    for key, one in (("k", value), ("other", value[::-1]), ("k", value[5:]), ("k", value)):
        store.save(key, one)
        assert store.load(key) == one
        store._engine.raw_cache.clear()
        assert store.load(key) == one


def test_numbers_of_contents_that_share_a_hash_run_out(store, few_hashes, monkeypatch):
    monkeypatch.setattr(placing, "NODE_NUMBER", 5)
    store.save("small", [1, 2])
    with pytest.raises(StoreFullError, match="share one hash"):
        store.save("k", VALUE)
    assert not store.exists("k")
    assert store.load("small") == [1, 2]
    assert contents_in(store) == {}


def test_numbers_of_nodes_that_share_a_hash_run_out(store, few_hashes, monkeypatch):
    monkeypatch.setattr(placing, "NUMBER_END", NODE_NUMBER + 2)
    with pytest.raises(StoreFullError, match="share one hash"):
        store.save("k", [messages(RNG, 9) for _ in range(9)])
    assert not store.exists("k")
    assert contents_in(store) == {}


# -- what is damaged ----------------------------------------------------------------------------


def damage(store, chosen):
    """Another byte in the entry of each content that is chosen."""
    rows = contents_in(store).items()
    for segment, offset in {(row.segment, row.offset) for key, row in rows if chosen(key)}:
        path = next(store.path.glob(f"log/{segment:010}.*"))
        with path.open("r+b") as file:
            file.seek(offset + 40)
            byte = file.read(1)
            file.seek(offset + 40)
            file.write(bytes([byte[0] ^ 0xFF]))
    store._engine.raw_cache.clear()


@pytest.mark.parametrize("nodes", [True, False], ids=["nodes", "leaves"])
def test_what_is_damaged_is_equal_to_nothing(store, nodes):
    """A save writes it once more, beside what is there, and can be read."""
    store.save("k", VALUE)
    damage(store, lambda key: is_node(key) == nodes)
    with pytest.raises(CorruptionError):
        store.load("k")
    store.save("new", VALUE)
    assert store.load("new") == VALUE
    store._engine.raw_cache.clear()
    assert store.load("new") == VALUE


def test_preparing_looks_for_contents_once(store, monkeypatch):
    """What many pieces have in common is compared once, and packed once."""
    value = [VALUE[0], *[VALUE[1:9]] * 30]
    packed = []
    pack = preparing.Preparer._pack
    monkeypatch.setattr(
        preparing.Preparer,
        "_pack",
        lambda its, leaves, raw: packed.extend(leaves) or pack(its, leaves, raw),
    )
    store.save("k", value)
    keys = [leaf.key for leaf in packed]
    assert len(keys) == len(set(keys))
    check(store, value)
    check_counts(store)
