"""Packs: what is live in them moves, with its share of their bytes; what is not goes."""

import itertools
import math
import random
import shutil

import pytest

from kvsage.engine import compaction
from kvsage.engine.content import unpack_pack
from kvsage.engine.pace import Pace
from kvsage.index.segments import JOINING, all_segments, get_meta
from kvsage.log.format import (
    CONTENT,
    NODE,
    PACK,
    decode_entry,
    decode_pack,
    encode_entry,
    split_entries,
)
from tests.support.chunks import chunks_of, conversation, edited, is_node
from tests.unit.engine.test_compaction import batches, compact, only_copy, rows, seal


@pytest.fixture
def store_options(store_options):
    return store_options | {
        "upkeep_interval": math.inf,
        "segment_bytes_max": 1 << 20,
        "content_bytes_min": 64,
    }


@pytest.fixture(autouse=True)
def always_sound(tmp_path, new_store):
    """As the index is, and as a rebuild makes it from the log, or from a checkpoint and the log."""
    yield
    store = new_store()
    found = sound(store)
    store.checkpoint()
    while not store._closed:
        store.close()
    for name in ("with", "without"):
        copy = shutil.copytree(tmp_path / "store", tmp_path / name)
        if name == "without":
            (copy / "index.checkpoint").unlink()
        with new_store(name) as rebuilt:
            assert sound(rebuilt) == found


def sound(store):
    """What a store holds, everything checked."""
    chunks_of(store)
    assert store.verify(deep=True).problems == ()
    return dict(store.items())


def steps(count, seed=1):
    """A conversation of short messages: many leaves, few of them for one message alone."""
    chance = random.Random(seed)
    return [[number, chance.randbytes(40).hex()] for number in range(count)]


def packs(store):
    """Every PACK of the log, by file and offset."""
    found = {}
    for segment in rows(store):
        for batch in batches(store, segment):
            for offset, framed in split_entries(batch.body, batch.header.entries):
                entry = decode_entry(framed)
                if entry.kind == PACK:
                    found[segment, batch.offset + 56 + offset] = entry
    return found


def keys_in(entry):
    return [one.key for one in decode_pack(entry.value).contents]


def raw_in(entry):
    return {one.key: raw for one, raw in unpack_pack(entry.flags, entry.value)}


def leaves_of(store, key):
    return {one for one in chunks_of(store).under(key) if not is_node(one)}


# -- what stands in a pack ------------------------------------------------------------------------


def test_the_shares_of_a_pack_are_all_of_its_bytes(store):
    store.save("k", steps(60))
    store.save("k", conversation(random.Random(2), 40))
    store.save("other", steps(60))
    held = chunks_of(store).rows
    for place, entry in packs(store).items():
        contents, at = decode_pack(entry.value).contents, 0
        for one in contents:
            assert one.start == at
            at += one.length
            row = held.get(one.key)
            if row is not None and row[:2] == place:
                assert (row.start, row.raw_length, row.share) == one[1:]
        assert sum(one.share for one in contents) == len(encode_entry(entry))
    assert len(packs(store)) >= 2


def test_a_content_that_two_values_of_a_commit_bring_stands_once(store):
    """Each was compressed with what is new beside it, before anybody knew of the other."""
    both = steps(40)
    store.save_many({"a": both, "b": [*both, *steps(20, seed=2)], "c": both[7:]})
    chunks = chunks_of(store)
    assert leaves_of(store, "a") & leaves_of(store, "b")
    live = [row[:2] for key, row in chunks.rows.items() if not is_node(key)]
    for place, entry in packs(store).items():
        assert place in live  # none that is wholly waste
        assert len(keys_in(entry)) == len(set(keys_in(entry)))
    for gone in ("a", "c"):
        store.delete(gone)
        sound(store)
    file = seal(store)
    compact(store, file)
    every = [key for entry in packs(store).values() for key in keys_in(entry)]
    assert len(every) == len(set(every))
    assert store.load("b") == [*both, *steps(20, seed=2)]


@pytest.mark.parametrize("kept", ["all of it", "some of it", "none of it"])
def test_what_comes_while_a_pack_is_made_is_not_stored_twice(store, kept):
    value = steps(40)
    late = store._preparer.save("late", value, None, 0)
    early = {"all of it": [*value, "more"], "some of it": value[13:30], "none of it": steps(9, 2)}
    store.save("early", early[kept])
    before = set(chunks_of(store).rows)
    store._engine.committer.commit([late], full=False)
    chunks = chunks_of(store)
    assert before <= set(chunks.rows)
    assert sound(store) == {"early": early[kept], "late": value}
    store.delete("early")
    assert sound(store) == {"late": value}
    compact(store, seal(store))
    assert set(chunks_of(store).rows) == set(chunks.under("late"))


def test_what_goes_while_a_value_is_prepared_is_stored_anew(store):
    """The places that were noted lead to entries that are dead, or moved, or somebody else's."""
    value = steps(40)
    store.save("early", value)
    late = [store._preparer.save(f"late {n}", value + steps(n, 2), None, 0) for n in range(3)]
    store.delete("early")
    store._engine.committer.commit([late[0]], full=False)
    sound(store)
    store.save("another", steps(20, 3))
    compact(store, seal(store))
    store._engine.committer.commit([late[1]], full=False)
    sound(store)
    compact(store, seal(store), only_copy(store))
    store._engine.committer.commit([late[2]], full=False)
    assert sound(store) == {
        "another": steps(20, 3),
        **{f"late {n}": value + steps(n, 2) for n in range(3)},
    }


# -- what moves -----------------------------------------------------------------------------------


def test_a_pack_that_lost_contents_is_written_again_with_the_rest(store):
    store.save("all", steps(20))
    (whole,) = packs(store).values()
    store.save("part", steps(20)[4:11])
    file = seal(store)
    store.delete("all")
    kept = leaves_of(store, "part")
    compact(store, file)
    copy = only_copy(store)
    (rest,) = [entry for place, entry in packs(store).items() if place[0] == copy]
    assert keys_in(rest) == [key for key in keys_in(whole) if key in kept]
    assert len(keys_in(rest)) < len(keys_in(whole))
    assert raw_in(rest) == {key: raw_in(whole)[key] for key in keys_in(rest)}
    assert (rest.seq, rest.key) == (whole.seq, b"")
    assert len(rest.value) < len(whole.value) * 0.6
    assert sound(store) == {"part": steps(20)[4:11]}
    with store._engine.index.reading() as txn:
        assert dict(all_segments(txn))[copy].dead_bytes == 0


def test_a_pack_that_lost_nothing_keeps_its_bytes(store):
    store.save("k", steps(60))
    store.save("dead", random.Random(1).randbytes(3000))
    file = seal(store)
    store.delete("dead")
    alive = leaves_of(store, "k")
    before = [entry for entry in packs(store).values() if alive & set(keys_in(entry))]
    compact(store, file)
    assert list(packs(store).values()) == before


def test_a_pack_that_lost_everything_goes(store):
    store.save("k", steps(60))
    file = seal(store)
    store.save("k", steps(60, seed=2))
    compact(store, file)
    alive = leaves_of(store, "k")
    assert all(alive >= set(keys_in(entry)) for entry in packs(store).values())
    store.clear()
    store.compact()
    assert packs(store) == {}
    assert store.stats().contents == 0


def test_copies_of_copies(store):
    """A pack becomes smaller from copy to copy, and is a pack to the last content."""
    value = steps(60)
    store.save_many({f"{n:02}": value[n : n + 6] for n in range(0, 60, 6)})
    sizes = []
    for key in list(store.keys()):
        if not sizes:
            seal(store)
        compact(store, *copies_of(store))
        sizes.append(sum(len(keys_in(entry)) for entry in packs(store).values()))
        held = {one.key: raw for entry in packs(store).values() for one, raw in contents_of(entry)}
        assert held.keys() <= chunks_of(store).rows.keys()
        assert sound(store) == {k: value[int(k) : int(k) + 6] for k in store.keys()}  # noqa: SIM118  # a store is no mapping
        store.delete(key)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] > 0
    compact(store, *copies_of(store))
    assert packs(store) == {}


def copies_of(store):
    with store._engine.index.reading() as txn:
        active = get_meta(txn).segment
    return [segment for segment in rows(store) if segment != active]


def contents_of(entry):
    return unpack_pack(entry.flags, entry.value)


def test_entries_of_one_commit_stay_in_their_order(store):
    """A reader of the copy finds contents before what refers to them, as in the log."""
    store.save("k", conversation(random.Random(1), 300))
    store.save("k", conversation(random.Random(1), 320))
    compact(store, seal(store))
    known, rows_ = set(), chunks_of(store).rows
    for batch in batches(store, only_copy(store)):
        for _, framed in split_entries(batch.body, batch.header.entries):
            entry = decode_entry(framed)
            if entry.kind == PACK:
                known.update(keys_in(entry))
            elif entry.kind == CONTENT:
                known.add(entry.key)
            elif entry.kind == NODE:
                assert set(rows_[entry.key].children) <= known
                known.add(entry.key)
    assert known == set(rows_)


# -- what happens meanwhile -----------------------------------------------------------------------

VALUE = steps(40)


def let_go(store):
    store.delete("k")


def come_again(store):
    store.delete("k")
    store.save("k", VALUE)


def come_again_elsewhere(store):
    store.delete("k")
    store.save("elsewhere", [*VALUE[20:], *steps(5, 2)])


def come_back(store):
    """What was dead when it was judged."""
    store.save("once more", steps(60, seed=3))


def change(store):
    store.save("k", edited(VALUE, random.Random(5)))


def grow(store):
    store.extend("k", steps(7, 4))


def share(store):
    store.save("twin", VALUE)


MEANWHILE = [let_go, come_again, come_again_elsewhere, come_back, change, grow, share]
BEFORE = ["_write_copy", "_join", "_move_rows", "_retire", "_forget"]


@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize("before", BEFORE)
def test_between_the_steps_of_a_compaction(store, monkeypatch, before, meanwhile):
    store.save_many({"k": VALUE, "other": VALUE[5:30]})
    store.save("dead", steps(60, seed=3))
    file = seal(store)
    store.delete("dead")
    real = getattr(compaction, before)

    def interrupted(*args):
        meanwhile(store)
        nonlocal expected
        expected = sound(store)
        return real(*args)

    expected = None
    monkeypatch.setattr(compaction, before, interrupted)
    compact(store, file)
    assert sound(store) == expected
    store.compact()
    assert sound(store) == expected


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_while_rows_move(store, monkeypatch, meanwhile):
    """One pack has half of its rows in the copy, and half in the file that it stood in."""
    monkeypatch.setattr(compaction, "STEP_ROWS", 1)

    class Meanwhile(Pace):
        left = 0

        def breathe(self):
            super().breathe()
            self.left -= 1
            if self.left == 0:
                with store._engine.index.reading() as txn:
                    states.append(max(row.state for _, row in all_segments(txn)))
                meanwhile(store)
                chunks_of(store)

    states = []
    for left in itertools.count(1, 5):
        store.clear()
        store.save_many({"k": VALUE, "other": VALUE[5:30]})
        store.save("dead", steps(60, seed=3))
        seal(store)
        store.delete("dead")
        pace = Meanwhile()
        pace.left = left
        compact(store, *copies_of(store), pace=pace)
        sound(store)
        if pace.left > 0:
            break
    assert states.count(JOINING) >= 5


@pytest.mark.parametrize("take", ["before", "between", "moving"])
def test_a_snapshot_stays_as_it_is(store, monkeypatch, take):
    """Its rows lead to packs that are gone from the index, and whose files wait for it."""
    monkeypatch.setattr(compaction, "STEP_ROWS", 1)
    monkeypatch.setattr(store._engine.raw_cache, "get", lambda _: None)
    expected = {"k": VALUE, "other": VALUE[5:30], "gone": steps(30, 2)}
    store.save_many(expected)
    views = [store.snapshot()] if take == "before" else []
    file = seal(store)

    def look(*_):
        if take == "between" and not views:
            views.append(store.snapshot())

    class Looking(Pace):
        def breathe(self):
            if take == "moving" and len(views) < 20:
                views.append(store.snapshot())

    real = compaction._move_rows
    monkeypatch.setattr(compaction, "_move_rows", lambda *args: look() or real(*args))
    compact(store, file, pace=Looking())
    store.delete("gone")
    store.save("k", VALUE[::-1])
    store.compact()
    assert views
    for view in views:
        assert dict(view.items()) == expected
        assert view.load_range("k", 3, 20) == VALUE[3:20]
        view.close()
    assert store.compact().files_waiting == 0
    assert sound(store) == {"k": VALUE[::-1], "other": VALUE[5:30]}


# -- space ----------------------------------------------------------------------------------------


def test_the_dead_parts_of_packs_count_as_garbage(store):
    """So upkeep chooses a file that is full of packs which lost most of what they held."""
    store.save("k", steps(200))
    file = seal(store)
    before = rows(store)[file]
    store.save("k", steps(200)[:20])
    after = rows(store)[file]
    taken = sum(len(encode_entry(entry)) for entry in packs(store).values())
    assert after.dead_bytes - before.dead_bytes > taken * 0.8


def test_the_log_is_little_more_than_what_is_live(new_store):
    store = new_store(segment_bytes_max=65536)
    chance = random.Random(1)
    values = {f"k{n}": conversation(chance, 200) for n in range(4)}
    for _ in range(60):
        key = chance.choice(sorted(values))
        values[key] = edited(values[key], chance)
        store.save(key, values[key])
    store.compact()
    stats = store.stats()
    assert stats.log_bytes <= 1.3 * stats.live_bytes
    assert stats.log_bytes <= 1.05 * sum(row.share for row in chunks_of(store).rows.values()) + 9000
    anew = new_store("anew")
    anew.save_many(values)
    anew.compact()
    # Packs that were thinned out, and written leaf by leaf, are compressed a little less well.
    assert stats.log_bytes <= 2 * anew.stats().log_bytes
    assert sound(store) == values == sound(anew)
