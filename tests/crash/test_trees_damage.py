"""Damage in a leaf, a pack, a node or a root: named where it lies, and it costs who needs it.

All other keys stay readable; ``repair`` keeps all that is whole, lets go of what lost a piece, and
brings back nothing older; a rebuild refuses, and leaves everything as it is.
"""

import random
import shutil
from typing import NamedTuple

import pytest

from kvsage import CorruptionError, LMDBStore
from kvsage.index.keydir import decode_row
from kvsage.log.format import CONTENT, NODE, PACK, PUT, decode_entry, entry_length
from tests.crash.test_recovery import batches
from tests.crash.test_repair import contents, frozen, segments, untrust
from tests.support.chunks import chunks_of, conversation, edited, is_node
from tests.support.small import OPTIONS, make_small

SMALL = {**OPTIONS, "segment_bytes_max": 9000}
KINDS = {"leaf": CONTENT, "pack": PACK, "node": NODE, "root": PUT}


@pytest.fixture(autouse=True)
def everything_is_small(monkeypatch):
    make_small(monkeypatch)


@pytest.fixture
def path(directory):
    return directory / "store"


class Made(NamedTuple):
    """A store, closed: what it holds, and which keys need which entry.

    Attributes:
        items: by key.
        needed_by: keys, by segment and offset of an entry that is live.
        kinds: of those entries.
        length: of those entries.
    """

    items: dict
    needed_by: dict
    kinds: dict
    lengths: dict


def fill(store):
    """Most values are made of chunks of others, and each key had another value before."""
    chance = random.Random(1)
    value = conversation(chance, 40)
    older = conversation(chance, 30)
    store.save_many({"k": older, "twin": older[:9], "other": older[5:], "text": "older", "root": 1})
    store.save("gone", older)
    store.save("k", value)
    store.save("twin", edited(value, chance))
    store.save("part", value[10:30])
    store.save("other", conversation(chance, 50))
    store.save("k", edited(value, chance))
    for number in range(3):
        store.append("grows", [number, chance.randbytes(60).hex()])
    store.save("text", "\n".join(str(one) for one in conversation(chance, 25)))
    for number in range(5):  # each brings one leaf
        at = number * 90
        text = store.load("text")
        store.save("text", f"{text[:at]} {number} {text[at:]}")
    store.save("nested", {"a": {"b": [value[:12]]}, "c": value[3:5] * 9})
    store.save("whole", "x" * 200)
    store.delete("gone")
    store.save("small", 1)


@pytest.fixture
def made(path):
    with LMDBStore(path, **SMALL) as store:
        fill(store)
        chunks = chunks_of(store)
        items = dict(store.items())
        with store._engine.index.reading() as txn:
            rows = {
                key.decode(): decode_row(row) for key, row in txn.cursor(store._engine.index.keydir)
            }
    needed_by = {}
    for key, row in rows.items():
        needed_by.setdefault((row.segment, row.offset), set()).add(key)
        for chunk in chunks.under(key):
            needed_by.setdefault(chunks.rows[chunk][:2], set()).add(key)
    kinds, lengths = {}, {}
    for place in needed_by:
        data = file_of(path, place[0]).read_bytes()
        length = entry_length(data, place[1])
        entry = decode_entry(data[place[1] : place[1] + length])
        kinds[place], lengths[place] = entry.kind, length
    return Made(items, needed_by, kinds, lengths)


def file_of(path, segment):
    (file,) = [file for file in segments(path) if int(file.stem) == segment]
    return file


def hit(path, place, length, *, bits):
    """Flip one bit in an entry, or bits all over it."""
    segment, offset = place
    with file_of(path, segment).open("r+b") as file:
        file.seek(offset)
        data = bytearray(file.read(length))
        # Of a key that was hit nobody could tell for sure which one it was.
        for at in {length - 1, *range(length - 1, 50, -9)} if bits > 1 else {length - 1}:
            data[at] ^= 0x10
        file.seek(offset)
        file.write(data)


def places_of(made, kind):
    """Some of the entries of a kind, those that most keys need and those that fewest do."""
    found = [place for place in made.kinds if made.kinds[place] == KINDS[kind]]
    found.sort(key=lambda place: (len(made.needed_by[place]), place))
    return sorted({*found[:3], *found[len(found) // 2 :][:2], *found[-3:]})


def each_damage(path, made, kind, *, bits=8):
    """Copies of the store, each hit in another entry."""
    for number, place in enumerate(places_of(made, kind)):
        copy = shutil.copytree(path, path.with_name(str(number)))
        LMDBStore(copy, **SMALL).close()  # a copy is trusted once it was opened
        hit(copy, place, made.lengths[place], bits=bits)
        yield copy, place, made.needed_by[place]
        shutil.rmtree(copy)


KIND = pytest.mark.parametrize("kind", KINDS)


def test_all_kinds_are_there(made):
    assert {kind: len(places_of(made, kind)) > 2 for kind in KINDS} == dict.fromkeys(KINDS, True)
    shared = [keys for place, keys in made.needed_by.items() if len(keys) > 1]
    assert len(shared) > 5


@KIND
def test_it_costs_who_needs_it_alone(path, made, kind):
    for copy, place, hurt in each_damage(path, made, kind):
        with LMDBStore(copy, **SMALL) as store:
            for key, value in made.items.items():
                if key not in hurt:
                    assert store.load(key) == value
                    continue
                for read in (store.load, store.entry, lambda key: dict(store.items(key))):
                    with pytest.raises(CorruptionError) as caught:
                        read(key)
                    assert (caught.value.segment, caught.value.offset) == place
            problems = store.verify().problems
            assert named(copy, problems, place)
            assert named(copy, store.verify(deep=True).problems, place)
            assert set(store.keys()) == made.items.keys()
            assert chunks_of(store).rows, "counts need no entry to be read"


def named(path, problems, place):
    """Whether the batch that an entry stands in is said not to check."""
    segment, offset = place
    sound = path.with_name("store")
    at = [one.offset for one in batches(sound, file_of(sound, segment)) if one.offset < offset]
    return any(p.segment == segment and p.offset in {*at[-1:], offset} for p in problems)


@KIND
def test_a_slice_needs_its_own_pieces_alone(path, made, kind):
    """What stands before and behind the damage can still be had."""
    for copy, _, hurt in each_damage(path, made, kind):
        had = 0
        with LMDBStore(copy, **SMALL) as store:
            for key in hurt:
                value = made.items[key]
                for start in range(0, len(value) if isinstance(value, list) else 0, 3):
                    try:
                        part = store.load_range(key, start, start + 3)
                    except CorruptionError:
                        continue
                    had += 1
                    assert part == value[start : start + 3]
        if kind == "root":
            assert not had


@KIND
def test_a_rebuild_that_meets_it_changes_nothing(path, made, kind):
    for copy, place, _ in each_damage(path, made, kind):
        shutil.rmtree(copy / "index")
        was = frozen(copy)
        for _ in range(2):
            with pytest.raises(CorruptionError) as caught:
                LMDBStore(copy, **SMALL)
            assert caught.value.segment == place[0]
            assert frozen(copy) == was


@KIND
@pytest.mark.parametrize("index", ["index", "no index"])
def test_repair_keeps_all_that_is_whole(path, made, kind, index):
    cost = 0
    for copy, _, hurt in each_damage(path, made, kind):
        if index == "no index":
            untrust(copy)
        report = LMDBStore.repair(copy)
        lost = set(report.keys_lost)
        # A dead copy of a piece that is lost may stand elsewhere; it is as good.
        assert lost <= hurt
        cost += lost == hurt
        left = {key: value for key, value in made.items.items() if key not in lost}
        assert contents(copy) == left
        for again in range(2):
            with LMDBStore(copy, **SMALL) as store:
                chunks_of(store)
                assert store.verify(deep=True).problems == ()
                if again:  # what was lost can be saved again
                    store.save_many(made.items)
                    assert store.verify(deep=True).problems == ()
            untrust(copy)
        assert contents(copy) == made.items
    assert cost > 1


@KIND
def test_repair_flips_a_single_bit_back(path, made, kind):
    for copy, _, _ in each_damage(path, made, kind, bits=1):
        report = LMDBStore.repair(copy)
        assert report.problems
        assert report.keys_lost == ()
        assert contents(copy) == made.items


@KIND
@pytest.mark.parametrize("handle", ["the same", "another"])
def test_what_is_saved_again_does_not_rely_on_what_is_damaged(path, kind, handle):
    """Whoever has the value can heal the key, as long as the damage is not in a cache."""
    store = LMDBStore(path, **SMALL)
    value = conversation(random.Random(5), 90)
    store.save("k", [*value, 0])
    store.save("k", value)
    if handle == "another":
        store.close()
        store = LMDBStore(path, **SMALL)
    with store._engine.index.reading() as txn:
        rows = {key: decode_row(row) for key, row in txn.cursor(store._engine.index.keydir)}
    chunks = chunks_of(store)
    places = {
        "root": [rows[b"k"][:3]],
        "node": [row[:3] for key, row in chunks.rows.items() if is_node(key)],
        "pack": [row[:3] for row in chunks.rows.values() if row.share != row.length],
        "leaf": [row[:3] for key, row in chunks.rows.items() if not is_node(key)],
    }[kind]
    *place, length = places[0]
    hit(path, place, length, bits=8)
    store._engine.raw_cache.clear()
    with pytest.raises(CorruptionError):
        store.load("k")
    store._engine.raw_cache.clear()
    store.save("k", value)
    store._engine.raw_cache.clear()
    assert store.load("k") == value
    store.close()


def test_damage_in_what_is_dead_hurts_nobody(path, made):
    with LMDBStore(path, **SMALL) as store:
        store.save("k", made.items["k"][::-1])
        store.save("part", made.items["part"][::-1])
        for key in ("nested", "twin", "other", "text"):
            store.save(key, 1)
        alive = {row[:2] for row in chunks_of(store).rows.values()}
        items = dict(store.items())
    packs = [place for place in made.kinds if made.kinds[place] == PACK]
    dead = sorted(set(packs) - alive)
    assert dead
    hit(path, dead[0], made.lengths[dead[0]], bits=8)
    with LMDBStore(path, **SMALL) as store:
        assert dict(store.items()) == items
        assert store.verify().problems
    report = LMDBStore.repair(path)
    assert report.keys_lost == ()
    assert contents(path) == items
