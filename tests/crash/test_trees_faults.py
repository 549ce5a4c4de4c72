"""A tree whose save is cut short: by Ctrl-C, by a disk that fails, by one that is full.

It is there whole or not at all, nothing that it would have brought is left in the counts, and the
next save works.
"""

import contextlib
import random
from itertools import count
from pathlib import Path

import pytest

import kvsage
from kvsage import KvsageError, LMDBStore, PoisonedError, StoreFullError, StoreUnavailableError
from tests.crash.test_faults import ERRORS, FailingDisk, untrust
from tests.crash.test_interrupts import Interrupt
from tests.support.chunks import chunks_of, conversation, edited
from tests.support.small_disk import fill, small_tmpfs

PACKAGE = Path(kvsage.__file__).parent
# Where a tree is prepared, placed and counted; the rest is what every commit goes through.
OF_TREES = tuple(
    str(PACKAGE / "engine" / name)
    for name in ("placing.py", "references.py", "commit.py", "growing.py", "preparing.py")
)
SMALL = {
    "durability": "relaxed",
    "sync_interval": 3600,
    "content_bytes_min": 64,
    "segment_bytes_max": 1 << 20,
}
# Lines from one interrupt to the next: thousands are run through.
STRIDES = {"save": 11, "extend": 11, "together": 61, "delete": 3}
CHANCE = random.Random(1)
VALUE = conversation(CHANCE, 12)
CHANGED = [*VALUE[:5], *conversation(CHANCE, 2), *VALUE[6:]]
MORE = conversation(CHANCE, 3)
ITEMS = {"k": VALUE, "twin": [*VALUE, "more"]}
VERBS = {
    "save": (lambda store: store.save("k", CHANGED), {"k": CHANGED}),
    "extend": (lambda store: store.extend("k", MORE), {"k": VALUE + MORE}),
    "together": (
        lambda store: store.save_many({"k": CHANGED, "twin": CHANGED, "new": [*MORE, *CHANGED]}),
        {"k": CHANGED, "twin": CHANGED, "new": [*MORE, *CHANGED]},
    ),
    "delete": (lambda store: store.delete("k"), {"k": None}),
}


def made_of(changes):
    return {key: value for key, value in (ITEMS | changes).items() if value is not None}


def sound(store):
    chunks_of(store)
    assert store.verify(deep=True).problems == ()
    return dict(store.items())


def begin_anew(store):
    store.clear()
    store.save_many(ITEMS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_an_interrupt_at_many_lines(path, verb):
    do, changes = VERBS[verb]
    outcomes = set()
    with LMDBStore(path, **SMALL) as store:
        for number in count(1, STRIDES[verb]):
            begin_anew(store)
            interrupt = Interrupt(number, OF_TREES)
            ended = interrupt.run(lambda: do(store))
            if store._engine.gate.is_mine():
                store._engine.gate.leave()
            found = dict(store.items())
            assert found in (ITEMS, made_of(changes)), interrupt.where
            outcomes.add(found == ITEMS)
            chunks_of(store)
            # What an interrupt left behind would be met by the next one who brings the same.
            store.save("after", CHANGED)
            store.extend("after", MORE)
            chunks_of(store)
            if ended or number % 20 == 1:
                assert store.verify(deep=True).problems == (), interrupt.where
            if ended:
                break
        assert outcomes == {True, False}
        assert number > 100


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("name", "code", "half"),
    [
        ("write", "EIO", False),
        ("write", "ENOSPC", True),
        ("zero", "ENOSPC", False),
        ("sync_data", "EIO", False),
        ("truncate", "EIO", False),
    ],
)
def test_each_call_of_a_commit_fails(tmp_path, verb, name, code, half):
    do, changes = VERBS[verb]
    options = {**SMALL, "durability": "full", "segment_bytes_max": 65536}
    for number in count(1):
        path = tmp_path / str(number)
        disk = FailingDisk(name, 0, ERRORS[code], half=half)
        store = LMDBStore(path, disk=disk, **options)
        begin_anew(store)
        disk.left = number
        expected = run(store, disk, ((do, made_of(changes)), (fork, None)))
        came_through = not disk.failed
        disk.left = 0
        with contextlib.suppress(KvsageError):
            store.close()
        store.close()
        for _ in range(2):
            with LMDBStore(path, **options) as again:
                assert sound(again) == expected
            untrust(path)
        if came_through:
            break


def run(store, disk, steps):
    """What the store must hold by what was acknowledged."""
    expected = ITEMS
    for step, after in steps:
        try:
            step(store)
        except (PoisonedError, StoreFullError, StoreUnavailableError):
            assert disk.failed
        else:
            expected = after or expected | {"fork": CHANGED, "other": CHANGED[3:]}
        assert dict(store.items()) == expected
        chunks_of(store)
    return expected


def fork(store):
    store.save_many({"fork": CHANGED, "other": CHANGED[3:]})


@pytest.mark.root
def test_a_disk_that_is_really_full(tmp_path):
    with small_tmpfs(tmp_path, 16) as point:
        path = point / "store"
        chance = random.Random(1)
        with LMDBStore(path, **SMALL) as store:
            held = {"k": conversation(chance, 30)}
            store.save_many(held)
            ballast = fill(point, leave=300_000)
            full = 0
            for number in range(400):
                value = [*edited(held["k"], chance)[-60:], chance.randbytes(9000)]
                try:
                    if number % 3:
                        store.save_many({"k": value, f"fork{number % 9}": value[5:]})
                        held |= {"k": value, f"fork{number % 9}": value[5:]}
                    else:
                        store.extend("grows", value)
                        held["grows"] = held.get("grows", []) + value
                except StoreFullError:
                    full += 1
                    assert dict(store.items()) == held
                    chunks_of(store)
                if full > 5:
                    break
            assert full > 5
            ballast.unlink()
            store.save("k", held["k"][1:])
            held["k"] = held["k"][1:]
            assert sound(store) == held
        (path / "INDEX").unlink()
        with LMDBStore(path, **SMALL) as store:
            assert sound(store) == held


OTHER = """
store = LMDBStore(path, content_bytes_min=64, durability="relaxed")
store.save("k", [arguments[0] * 150 + str(number) for number in range(9)])
store.close()
"""


def test_what_was_not_committed_is_not_remembered(path, child):
    """Its place in the log is another one's then, who may be of another process."""
    disk = FailingDisk("write", 0, ERRORS["EIO"])
    with LMDBStore(path, disk=disk, **SMALL) as store:
        store.save("first", 1)
        disk.left = 1
        with pytest.raises(StoreUnavailableError):
            store.save("k", ["a" * 150 + str(number) for number in range(9)])
        disk.left = 0
        child(OTHER, path, "b").finish()
        expected = ["b" * 150 + str(number) for number in range(9)]
        assert store.load("k") == expected
        store.save("twin", expected)
        assert sound(store) == {"first": 1, "k": expected, "twin": expected}
