"""Trees that are read from the log again: after a writer died, and where there is no index.

What was committed, what was adopted and what was rebuilt must be the same to the last count.
"""

import math
import random
import shutil

import pytest
from xxhash import xxh3_128_digest

from kvsage.engine import content, growing, tree
from kvsage.engine.commit import ShortOfRoom
from kvsage.engine.preparing import Preparer
from kvsage.fs import Disk
from kvsage.index.env import Index
from kvsage.index.segments import all_segments
from kvsage.log.format import BATCH_MAGIC_BYTES, MAGIC_OFFSET, PACK
from tests.support.chunks import chunks_of, conversation
from tests.support.tree_work import KEYS, drawn, holds
from tests.unit.engine.test_compaction import compact, seal
from tests.unit.engine.test_packs import keys_in, packs, steps

SEEDS = range(12)


@pytest.fixture
def store_options(store_options):
    return store_options | {
        "upkeep_interval": math.inf,
        "segment_bytes_max": 65536,
        "content_bytes_min": 64,
    }


class Died(BaseException):
    """A writer is no more."""


class DeadlyDisk(Disk):
    """Lets a writer die behind its batch, before the index knows of it."""

    def write(self, fd, parts, offset):
        super().write(fd, parts, offset)
        if b"".join(parts).startswith(BATCH_MAGIC_BYTES, MAGIC_OFFSET):
            raise Died


def die_in(store, monkeypatch, do):
    """Nobody undoes what was begun: the batch is in the log, and not in the index."""
    with monkeypatch.context() as patches:
        patches.setattr(store._engine, "disk", DeadlyDisk())
        patches.setattr(store._engine.committer, "_settle", lambda *_: None)
        try:
            do(store)
        except Died:
            store._engine.raw_cache.clear()  # whoever comes next has another one
            return True
    return False


def adopt(store):
    """What a writer does who has nothing to write."""
    store._engine.committer.commit((), full=False)


def accounts(store):
    """The rows of all contents, and what is dead in each file."""
    with store._engine.index.reading() as txn:
        dead = {segment: row.dead_bytes for segment, row in all_segments(txn)}
    return chunks_of(store), dead


def referred(store):
    """What each key refers to, and what nodes do, counted."""
    chunks = chunks_of(store)
    return chunks.roots, {key: (row.references, row.children) for key, row in chunks.rows.items()}


def clean(store):
    assert store.verify(deep=True).problems == ()


# -- adopting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "with what follows"])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_adopted_is_as_what_is_committed(new_store, monkeypatch, seed, at_once):
    """Two stores see the same commits; in one of them most writers die.

    Who prepares a save before what a dead one left is adopted looks at an older state, so it may
    bring more along than it would have; what is referred to is the same.
    """
    chance, model = random.Random(seed), {}
    lives, dies = new_store("lives"), new_store("dies")
    died = 0
    for _ in range(40):
        at = chance.getstate()
        made = drawn(chance, model)
        chance.setstate(at)
        twins = drawn(chance, model)
        for step, twin in zip(made, twins, strict=True):
            step.do(lives)
            if chance.random() < 0.7:
                died += die_in(dies, monkeypatch, twin.do)
            else:
                twin.do(dies)
            model = step.after
            if at_once:
                adopt(dies)
                assert accounts(dies) == accounts(lives), step.name
        if chance.random() < 0.3:
            adopt(dies)
            assert referred(dies) == referred(lives)
            holds(dies, model)
    adopt(dies)
    assert referred(dies) == referred(lives)
    holds(dies, model)
    clean(dies)
    assert died > 10


@pytest.mark.parametrize("seen", ["all of it", "some of it"])
def test_a_pack_of_a_dead_writer_whose_contents_came_meanwhile(new_store, monkeypatch, seen):
    value = steps(40)
    stores = new_store("lives"), new_store("dies")
    for store in stores:
        late = store._preparer.save("late", value, None, 0)
        store.save("early", value if seen == "all of it" else value[5:25])

        def commit(store, late=late):
            store._engine.committer.commit([late], full=False)

        if store is stores[1]:
            assert die_in(store, monkeypatch, commit)
            adopt(store)
        else:
            commit(store)
        assert store.load("late") == value
        clean(store)
    assert accounts(stores[0]) == accounts(stores[1])
    for store in stores:
        store.delete("early")
        clean(store)
    assert accounts(stores[0]) == accounts(stores[1])


def test_who_comes_after_a_dead_writer_finds_what_it_left(new_store, monkeypatch):
    """The very next write needs it: a list to add to, and chunks that are there already."""
    store = new_store()
    store.save("k", steps(30))
    for number, verb in enumerate(("append", "save", "delete", "touch")):
        value = steps(50 + number, seed=number)
        assert die_in(store, monkeypatch, lambda store: store.save("k", value))  # noqa: B023
        before = len(packs(store))
        if verb == "append":
            assert store.append("k", "more") == len(value) + 1
            assert store.load("k") == [*value, "more"]
        elif verb == "save":
            store.save("twin", value)
            assert store.load("twin") == store.load("k") == value
            assert len(packs(store)) <= before + 1
        elif verb == "delete":
            assert store.delete("k")
            assert not store.exists("k")
            store.save("k", value)
        else:
            assert store.touch("k", 1000)
            assert store.load("k") == value
        chunks_of(store)
        clean(store)


# -- rebuilding -----------------------------------------------------------------------------------


def rebuilt(tmp_path, new_store, store, *, checkpoint):
    """The same store with an index that was built anew."""
    copy = shutil.copytree(
        tmp_path / "store", tmp_path / "copy", ignore=shutil.ignore_patterns("index")
    )
    if not checkpoint:
        (copy / "index.checkpoint").unlink(missing_ok=True)
    again = new_store("copy")
    try:
        assert referred(again) == referred(store)
        clean(again)
        return dict(again.items())
    finally:
        again.close()
        shutil.rmtree(copy)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rebuild_counts_what_was_counted(tmp_path, new_store, seed):
    """At any moment, with the checkpoint of any moment before, and with none."""
    chance, model = random.Random(100 + seed), {}
    store = new_store()
    for _ in range(30):
        for step in drawn(chance, model):
            step.do(store)
            model = step.after
        what = chance.random()
        if what < 0.1:
            store.checkpoint()
        elif what < 0.2:
            store.compact()
        elif what < 0.3:
            held = {key: value for key, value in model.items() if key in KEYS or key == "grows"}
            assert rebuilt(tmp_path, new_store, store, checkpoint=True) == held
            assert rebuilt(tmp_path, new_store, store, checkpoint=False) == held


def compact_sealed(store):
    compact(store, seal(store))


HISTORY = [
    ("a tree comes", lambda store: store.save("k", conversation(random.Random(1), 60))),
    ("another, alike", lambda store: store.save("twin", conversation(random.Random(1), 70))),
    ("one goes", lambda store: store.delete("k")),
    ("its file goes", compact_sealed),
    ("it grows", lambda store: store.extend("twin", steps(30))),
    ("it shrinks", lambda store: store.save("twin", conversation(random.Random(1), 20))),
    ("it comes again", lambda store: store.save("k", conversation(random.Random(1), 60))),
    ("all files go", lambda store: store.compact()),
    ("all goes", lambda store: store.clear()),
    ("and comes again", lambda store: store.save("twin", conversation(random.Random(1), 60))),
]


@pytest.mark.parametrize("moment", range(len(HISTORY)), ids=[name for name, _ in HISTORY])
def test_a_checkpoint_taken_at_each_moment(tmp_path, new_store, moment):
    store = new_store()
    for number, (_, do) in enumerate(HISTORY):
        do(store)
        if number == moment:
            store.checkpoint()
        if number >= moment:
            assert rebuilt(tmp_path, new_store, store, checkpoint=True) == dict(store.items())
    assert rebuilt(tmp_path, new_store, store, checkpoint=False) == dict(store.items())


def test_a_rebuild_knows_dead_nodes_whose_children_are_gone(tmp_path, new_store):
    """A file that was compacted took the children along; the node stands in one that was not."""
    store = new_store()
    chance = random.Random(1)
    value = conversation(chance, 150)
    store.save("k", value)
    first = seal(store)
    value = [*value, *conversation(chance, 30)]
    store.save("k", value)  # nodes in the second file, over leaves in the first
    second = seal(store)
    assert any(row.segment == second for row in chunks_of(store).rows.values())
    store.save("k", 1)
    compact(store, first)
    assert rebuilt(tmp_path, new_store, store, checkpoint=False) == {"k": 1}


def test_a_pack_in_a_copy_outlives_its_twin(tmp_path, new_store):
    """Contents that stand twice, in two packs: either file may go."""
    value = steps(24)
    for which in (0, 1):
        store = new_store()
        late = store._preparer.save("late", [*value, *steps(9, seed=2)], None, 0)
        store.save("early", value)
        first = seal(store)
        store._engine.committer.commit([late], full=False)
        second = seal(store)
        assert sum(entry.kind == PACK for entry in packs(store).values()) == len(packs(store))
        compact(store, (first, second)[which])
        for name in ("early", "late"):
            assert rebuilt(tmp_path, new_store, store, checkpoint=False) == dict(store.items())
            store.delete(name)
        store.compact()
        assert not any(keys_in(entry) for entry in packs(store).values())
        store.clear()
        store.compact()


# -- beginning anew -------------------------------------------------------------------------------


def test_a_commit_that_was_short_of_room(new_store, monkeypatch):
    """It is made twice: what the first attempt noted must not be believed by the second."""
    store, anew = new_store(), []
    real = ShortOfRoom.__init__
    monkeypatch.setattr(
        ShortOfRoom, "__init__", lambda self, room: anew.append(room) or real(self, room)
    )
    prepare = Preparer.tree
    monkeypatch.setattr(Preparer, "tree", lambda *args: prepare(*args)._replace(room=0))
    monkeypatch.setattr(growing, "ROOM", -3000)
    chance, model = random.Random(4), {}
    for _ in range(60):
        for step in drawn(chance, model):
            step.do(store)
            model = step.after
        chunks_of(store)
    holds(store, model)
    clean(store)
    assert len(anew) > 30


def test_a_commit_whose_index_had_to_grow(new_store, monkeypatch):
    """The same, where the index runs full in the midst of its rows."""
    store, grown = new_store(index_map_bytes=1 << 20, segment_bytes_max=1 << 24), []
    real = Index.grow
    monkeypatch.setattr(Index, "grow", lambda self: grown.append(1) or real(self))
    chance, expected = random.Random(1), {}
    for number in range(9):
        value = expected[f"k{number}"] = steps(900, seed=number // 2) + conversation(chance, 9)
        store.save(f"k{number}", value)
        if number % 3 == 2:
            store.delete(f"k{number - 2}")
            del expected[f"k{number - 2}"]
    assert grown
    chunks_of(store)
    clean(store)
    assert dict(store.items()) == expected


# -- where hashes collide -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_contents_that_share_a_hash_are_told_apart(tmp_path, new_store, monkeypatch, seed):
    """Of four hashes all have one: what a number stands for changes whenever one of them goes."""

    def digest(data, seed=0):
        return bytes([xxh3_128_digest(data, seed)[0] & 3]) * 16

    for module in (tree, content):
        monkeypatch.setattr(module, "xxh3_128_digest", digest)
    store = new_store()
    chance, model = random.Random(200 + seed), {}
    for number in range(24):
        for step in drawn(chance, model):
            step.do(store)
            model = step.after
            holds(store, model)
        chunks_of(store)
        if number % 6 == 3:
            store.checkpoint()
        elif number % 8 == 7:
            store.compact()
            holds(store, model)
        elif number % 4 == 0:
            items = dict(store.items())
            assert rebuilt(tmp_path, new_store, store, checkpoint=True) == items
            assert rebuilt(tmp_path, new_store, store, checkpoint=False) == items
