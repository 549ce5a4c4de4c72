"""kill -9 at each step of saves of trees, and of compactions of what they left: counts stay exact.

A forked child is killed before or after the n-th operation on the disk, or behind the n-th
transaction of the index, for every n. Whoever comes next finds the value of before or of after,
and a reference for everything that is referred to.
"""

import random
import shutil

import pytest

from kvsage import LMDBStore
from kvsage.engine import compaction
from kvsage.index.segments import JOINING, all_segments
from tests.crash.test_compaction_kill import (
    WORKS,
    finishes,
    killed_at_each_step,
    killed_in,
    recovers_and_finishes,
)
from tests.crash.test_kill import WHEN, each_step
from tests.support.chunks import chunks_of, conversation, edited, is_node
from tests.support.clock import FakeClock
from tests.support.small import OPTIONS, make_small

SMALL = {**OPTIONS, "segment_bytes_max": 12_000}


@pytest.fixture(autouse=True)
def everything_is_small(monkeypatch):
    make_small(monkeypatch)
    monkeypatch.setattr(compaction, "BATCH_BYTES_MAX", 3000)
    monkeypatch.setattr(compaction, "STEP_ROWS", 5)


@pytest.fixture
def path(directory):
    return directory / "store"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def opened(path, clock):
    """Opens the store of the test, or a copy of it."""

    def open_(place=path, **options):
        return LMDBStore(place, clock=clock, **SMALL, **options)

    return open_


def sound(path, opened):
    """What a store holds, as it is, and where its index is built anew."""
    with opened(path) as store:
        store.delete("nothing")  # who writes takes up what a dead writer left
        found = dict(store.items())
        chunks = chunks_of(store)
        assert store.verify(deep=True).problems == ()
    place = shutil.copytree(path, path.with_name("rebuilt"))
    with opened(place) as store:
        assert dict(store.items()) == found
        assert chunks_of(store).counted() == chunks.counted()
        assert store.verify(deep=True).problems == ()
    shutil.rmtree(place)
    return found


# -- a save ---------------------------------------------------------------------------------------

BEFORE = {
    "k": conversation(random.Random(1), 25),
    "twin": conversation(random.Random(1), 18),
    "text": "\n".join(map(str, conversation(random.Random(3), 8))),
}
AFTER = edited(edited(BEFORE["k"], random.Random(1)), random.Random(2))
MORE = conversation(random.Random(2), 4)
VERBS = {
    "save": (lambda store: store.save("k", AFTER), {"k": AFTER}),
    "the same": (lambda store: store.save("twin", BEFORE["k"]), {"twin": BEFORE["k"]}),
    "text": (
        lambda store: store.save("text", BEFORE["text"][:900] + "!" + BEFORE["text"][900:]),
        {"text": BEFORE["text"][:900] + "!" + BEFORE["text"][900:]},
    ),
    "append": (lambda store: store.append("k", MORE[0]), {"k": [*BEFORE["k"], MORE[0]]}),
    "extend": (lambda store: store.extend("twin", MORE), {"twin": [*BEFORE["twin"], *MORE]}),
    "together": (
        lambda store: store.save_many({"k": AFTER, "twin": AFTER[:-2], "new": [*AFTER, 1]}),
        {"k": AFTER, "twin": AFTER[:-2], "new": [*AFTER, 1]},
    ),
    "delete": (lambda store: store.delete("k"), {"k": None}),
    "touch": (lambda store: store.touch("k", 1000), {}),
}


@pytest.mark.parametrize(
    ("verb", "when"),
    [*((verb, "before") for verb in VERBS), ("save", "after"), ("together", "after")],
)
def test_at_each_step_of_a_commit(path, opened, fork, when, verb):
    do, changes = VERBS[verb]
    after = {key: value for key, value in (BEFORE | changes).items() if value is not None}

    def begin(number):
        with opened() as store:
            store.clear()
            store.save_many(BEFORE)
        return path

    def work(place, disk, say):
        # Flushed each time: between the batch and the index there is a step then.
        store = LMDBStore(place, disk=disk, **{**SMALL, "durability": "full"})
        do(store)
        say("done")
        store.close()

    outcomes = set()
    for place, said, _ in each_step(fork, when, begin, work):
        found = sound(place, opened)
        if said:
            assert found == after
        else:
            assert found in (BEFORE, after)
        outcomes.add(found == after)
    # Killed before the commit as well as behind it, as far as that changes a value.
    assert outcomes == ({False, True} if changes else {True})


# -- a compaction ---------------------------------------------------------------------------------


def churn(store, number):
    """Packs that lost most of what they held, some, and nothing; what the store then holds."""
    chance = random.Random(number)
    held = {f"k{n}": conversation(chance, 25) for n in range(3)}
    store.save_many(held)
    for n in range(12):
        key = f"k{n % 3}"
        held[key] = edited(held[key], chance)
        store.save(key, held[key])
    store.extend("k0", conversation(chance, 3))
    store.save("part", held["k1"][5:15])
    store.delete("k1")
    store.save("mortal", held["k2"], ttl=5)
    return dict(store.items())


def finished(store, expected):
    chunks_of(store)
    finishes(store, expected)
    chunks_of(store)


@WHEN
@pytest.mark.parametrize("work", ["compact", "checkpoint"])
def test_at_each_step_of_a_compaction(path, opened, fork, when, work):
    expected = {}

    def begin(number):
        nonlocal expected
        with opened() as store:
            if number == 2:
                store.checkpoint()  # the first round has none, the others an older one
            expected = churn(store, number)
            store._engine.clock.advance(10)
        del expected["mortal"]
        return path

    for number, _ in enumerate(killed_at_each_step(fork, when, begin, WORKS[work](opened))):
        if when == "before" and number % 5 == 0:
            recovers_and_finishes(path, opened, expected)
        with opened() as store:
            finished(store, expected)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_packs_that_are_half_moved(path, opened, fork, after):
    """Some of the rows of one pack lead to the copy, others to the file that it stood in."""
    halves = number = 0
    while True:
        number += 2
        with opened() as store:
            store.clear()
            expected = churn(store, number)
        died = killed_in(fork, opened, "_change", number, after=after)
        with opened() as store:
            halves += packs_in_two_files(store)
            if number % 4:  # otherwise it is found as it is
                store.save("k0", expected["k2"])
                store.delete("part")
                expected = {**expected, "k0": expected["k2"]}
                del expected["part"]
            chunks_of(store)
            assert store.verify(deep=True).problems == ()
        if number % 8 == 0:
            recovers_and_finishes(path, opened, expected)
        with opened() as store:
            finished(store, expected)
        if not died:
            break
    assert number > 20
    assert halves > 5


def packs_in_two_files(store):
    """Whether a compaction is under way that has moved some of the leaves, and not all."""
    with store._engine.index.reading() as txn:
        joining = [file for file, row in all_segments(txn) if row.state == JOINING]
    leaves = [row for key, row in chunks_of(store).rows.items() if not is_node(key)]
    moved = sum(row.segment in joining for row in leaves)
    return 0 < moved < len(leaves)


@pytest.mark.parametrize("name", ["_join", "_move_rows", "_retire"])
def test_a_checkpoint_while_packs_are_half_moved(path, opened, fork, name):
    """The checkpoint knows a copy that no RETIRE has named, and outlives the end of the work."""
    with opened() as store:
        expected = churn(store, 1)
    assert killed_in(fork, opened, name, 1, after=name != "_retire")
    with opened() as store:
        store.checkpoint()
    for number in range(2):
        recovers_and_finishes(path, opened, expected)
        with opened() as store:
            finished(store, expected)
            expected |= {f"more {number}": expected["k2"][number:]}
            store.save(f"more {number}", expected["k2"][number:])


def test_killed_again_and_again(path, opened, fork):
    """Each compactor takes over from the one before, and dies a little later."""
    with opened() as store:
        expected = churn(store, 1)
    number = 1
    while killed_in(fork, opened, "_change", number, after=True):
        number += 1
        with opened() as store:
            assert dict(store.items()) == expected
            chunks_of(store)
            assert store.verify(deep=True).problems == ()
            # What a joining copy holds goes, and comes again elsewhere.
            key = f"k{number % 3}"
            if key in expected:
                store.delete(key)
                store.save(key, expected[key])
    assert number > 3
    with opened() as store:
        finished(store, expected)


# -- a child of its own ---------------------------------------------------------------------------

WRITER = """
import random
from kvsage.engine import cutting
from tests.support.chunks import conversation, edited
cutting.PIECE_UNIT_LEAST = 64
store = LMDBStore(path, content_bytes_min=64, segment_bytes_max=65536, durability="relaxed")
number = int(arguments[0])
while True:
    chance = random.Random(number)
    value = store.load("k", [0])
    value = [number, *edited(value[1:][-60:], chance)]
    store.save_many({"k": value, "fork": edited(value, chance), f"old{number % 4}": value})
    store.extend("grows", [[number, value[-1]]])
    say(number)
    number += 1
"""


def test_a_writer_of_trees(path, child, checked):
    chance = random.Random(1)
    last = -1
    for _ in range(6):
        writer = child(WRITER, path, last + 1)
        for _ in range(chance.randrange(2, 30)):
            said = int(writer.line())
        said = max([said, *map(int, writer.kill())])
        found = checked(path)
        last = found["k"][0]
        assert said in {last, last - 1}
        assert found[f"old{last % 4}"] == found["k"]
        numbers = [one[0] for one in found["grows"]]
        assert numbers in (list(range(last + 1)), list(range(last)))
        if len(numbers) == last:  # killed between its two commits
            with LMDBStore(path) as store:
                store.append("grows", [last, None])
        with LMDBStore(path) as store:
            chunks_of(store)
