"""Group commit: what threads queue while the gate is taken becomes one batch, each with its result.

The tests hold the gate themselves until everybody stands in the queue, so that nothing depends on
who is quicker.
"""

import math
import os
import threading
import time
from functools import partial

import pytest

from kvsage import (
    CorruptionError,
    PoisonedError,
    StoreClosedError,
    StoreFullError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedError,
    ValueTooLargeError,
)
from kvsage.engine import group
from kvsage.engine.group import Queued
from kvsage.fs import Disk

PATIENCE_S = 60  # bounds a wait that a fault would make endless; no assertion depends on it
LARGE = "a value of some length, " * 1000


@pytest.fixture
def new_store(new_store):
    """Without background work, which enters the gate as well."""
    return partial(new_store, upkeep_interval=math.inf)


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


class Call(threading.Thread):
    """Calls something on a thread of its own; what came of it."""

    def __init__(self, fn):
        super().__init__(daemon=True)
        self.fn = fn
        self.result = self.error = None
        self.start()

    def run(self):
        try:
            self.result = self.fn()
        except BaseException as error:  # noqa: BLE001  # whatever it was, the test looks at it
            self.error = error

    def outcome(self):
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self.result if self.error is None else self.error


class Queue:
    """Holds the gate of a store and lets calls queue up behind it, in order."""

    def __init__(self, store):
        self.gate = store._engine.gate
        self.calls = []

    def __enter__(self):
        self.gate.enter()
        return self

    def add(self, fn):
        before = len(self.gate.waiting)
        self.calls.append(Call(fn))
        until(lambda: len(self.gate.waiting) > before)

    def __exit__(self, *_):
        self.gate.leave()

    def outcomes(self):
        return [call.outcome() for call in self.calls]


def together(store, *fns):
    """What each of the calls gives when all of them met."""
    with Queue(store) as queue:
        for fn in fns:
            queue.add(fn)
    return queue.outcomes()


class Counting(Disk):
    """A disk that counts flushes, and lets one fail when told."""

    def __init__(self):
        self.flushes = 0
        self.failing = False

    def sync_data(self, fd):
        self.flushes += 1
        if self.failing:
            self.failing = False
            raise StoreUnavailableError("the disk failed")
        super().sync_data(fd)


def sound(store):
    assert store.verify(deep=True).problems == ()
    assert not store._engine.gate.waiting
    assert not store._engine.gate.is_mine()
    return True


def saving(store, key, value):
    return lambda: store.save(key, value)


# -- what meets goes together -------------------------------------------------------------------


def test_what_meets_is_one_batch_with_one_flush(new_store):
    disk = Counting()
    store = new_store(disk=disk, durability="full")
    store.save("first", 0)
    commits, flushes = store.stats().commits, disk.flushes
    assert together(store, *(saving(store, f"k{n}", n) for n in range(20))) == [True] * 20
    assert store.stats().commits == commits + 1
    assert disk.flushes == flushes + 1
    assert dict(store.items("k")) == {f"k{n}": n for n in range(20)}
    assert sound(store)


@pytest.mark.parametrize("full", [True, False])
def test_one_that_wants_a_flush_has_it_flushed_for_all(new_store, full):
    disk = Counting()
    relaxed = new_store(disk=disk)
    other = new_store(disk=disk, durability="full" if full else "relaxed")
    relaxed.save("first", 0)
    flushes = disk.flushes
    assert together(relaxed, saving(relaxed, "a", 1), saving(other, "b", 2)) == [True, True]
    assert disk.flushes == flushes + full
    assert sound(relaxed)


def test_each_has_its_own_result(store, clock):
    store.save_many({"there": 1, "gone": 2, "versioned": 3, "touched": LARGE})
    version = store.entry("versioned").version
    store.save("versioned", 4)
    now = store.entry("touched").version
    commits = store.stats().commits
    assert together(
        store,
        lambda: store.add("there", "no"),
        lambda: store.add("new", "yes"),
        lambda: store.delete("gone"),
        lambda: store.delete("absent"),
        lambda: store.save("versioned", "no", if_version=version),
        lambda: store.touch("touched", 10),
        lambda: store.touch("absent too", 10),
        lambda: store.save("large", LARGE),
    ) == [False, True, True, False, False, True, False, True]
    assert store.stats().commits == commits + 1
    assert dict(store.items()) == {
        "there": 1,
        "new": "yes",
        "versioned": 4,
        "touched": LARGE,
        "large": LARGE,
    }
    assert store.entry("touched").version != now
    clock.now += 10
    assert not store.exists("touched")
    assert sound(store)


def test_where_nothing_takes_place_nothing_is_written(store):
    store.save("k", 1)
    commits = store.stats().commits
    results = together(store, lambda: store.delete("absent"), lambda: store.add("k", 2))
    assert results == [False, False]
    assert store.stats().commits == commits
    assert sound(store)


def test_operations_on_one_key_keep_their_order_in_batches_of_their_own(store):
    commits = store.stats().commits
    assert together(
        store,
        saving(store, "k", 1),
        saving(store, "other", 1),
        lambda: store.delete("k"),
        lambda: store.add("k", 2),
        saving(store, "other", 2),
        lambda: store.add("k", 3),
    ) == [True, True, True, True, True, False]
    assert store.stats().commits == commits + 3
    assert dict(store.items()) == {"k": 2, "other": 2}
    assert sound(store)


@pytest.mark.parametrize("limit", ["OPERATIONS_MAX", "BYTES_MAX"])
def test_a_batch_is_bounded(store, monkeypatch, limit):
    monkeypatch.setattr(group, limit, {"OPERATIONS_MAX": 2, "BYTES_MAX": 250}[limit])
    commits = store.stats().commits
    assert together(store, *(saving(store, f"k{n}", "x" * 100) for n in range(6))) == [True] * 6
    assert store.stats().commits == commits + 3
    assert sound(store)


def test_a_transaction_keeps_its_place_and_its_own_batch(store):
    def transfer():
        with store.transaction() as tx:
            return sorted(tx.keys()), tx.save("t", 1)

    commits = store.stats().commits
    assert together(
        store,
        saving(store, "a", 1),
        saving(store, "b", 1),
        transfer,
        saving(store, "c", 1),
        lambda: store.save_many({"d": 1, "e": 1}),
        saving(store, "f", 1),
    ) == [True, True, (["a", "b"], True), True, 2, True]
    assert store.stats().commits == commits + 5
    assert sound(store)


# -- what goes wrong ----------------------------------------------------------------------------


def test_what_fails_alone_fails_alone(store, monkeypatch):
    committer = store._engine.committer
    inside = committer.commit_inside

    def picky(operations, *, full):
        if any(operation.key == b"bad" for operation in operations):
            raise StoreFullError("no space left")
        return inside(operations, full=full)

    monkeypatch.setattr(committer, "commit_inside", picky)
    first, second, third = together(
        store, saving(store, "a", 1), saving(store, "bad", 1), saving(store, "b", 1)
    )
    assert (first, third) == (True, True)
    assert isinstance(second, StoreFullError)
    assert dict(store.items()) == {"a": 1, "b": 1}
    assert sound(store)


def test_a_list_that_cannot_grow_fails_alone(new_store):
    store = new_store(value_bytes_max=30_000, content_bytes_min=64)
    long = [f"item {number} of a list that is kept in pieces" for number in range(400)]
    store.save_many({"long": long, "full": ["x" * 29_900], "text": LARGE[:9000], "number": 1})
    commits = store.stats().commits
    texts = ["one more", "and a large one " * 100]
    outcomes = together(
        store,
        saving(store, "before", long[1:]),
        lambda: store.extend("long", texts),
        lambda: store.append("text", 1),
        lambda: store.append("new", 1),
        lambda: store.append("full", "x" * 200),
        lambda: store.extend("copy", long),
        lambda: store.append("number", 1),
        saving(store, "behind", [*long, *texts]),
    )
    kinds = [type(outcome) for outcome in outcomes]
    refused = [UnsupportedError, ValueTooLargeError, UnsupportedError]
    assert [outcomes[at] for at in (0, 1, 3, 5, 7)] == [True, 402, 1, 400, True]
    assert [kinds[at] for at in (2, 4, 6)] == refused
    for at, key in ((2, "text"), (4, "full"), (6, "number")):
        assert f"'{key}'" in str(outcomes[at])
    assert dict(store.items()) == {
        "before": long[1:],
        "long": [*long, *texts],
        "text": LARGE[:9000],
        "new": [1],
        "full": ["x" * 29_900],
        "copy": long,
        "number": 1,
        "behind": [*long, *texts],
    }
    assert store.stats().commits == commits + 5  # each by itself, once they failed together
    assert sound(store)


def test_lists_that_grow_together_are_one_batch(new_store):
    store = new_store(content_bytes_min=64)
    long = [f"item {number} of a list that is kept in pieces" for number in range(400)]
    store.save_many({f"k{number}": long[number:] for number in range(5)})
    commits, contents = store.stats().commits, store.stats().contents
    items = [f"one more of many items: {number}" for number in range(100)]
    calls = [lambda key=f"k{number}": store.extend(key, items) for number in range(5)]
    assert together(store, *calls) == [500, 499, 498, 497, 496]
    assert store.stats().commits == commits + 1
    for number in range(5):
        assert store.load(f"k{number}") == long[number:] + items
    assert store.stats().contents - contents < 2 * len(items)  # what is new is new to the first
    assert sound(store)


def test_additions_to_one_list_keep_their_order(new_store):
    store = new_store(content_bytes_min=64)
    items = [f"one of many items: {number}" for number in range(60)]
    assert together(store, *(lambda item=item: store.append("list", item) for item in items)) == [
        *range(1, 61)
    ]
    assert store.load("list") == items
    assert sound(store)


def test_an_error_behind_the_commit_repeats_nothing(store, monkeypatch):
    committer = store._engine.committer
    append = committer._append

    def late(*arguments):
        append(*arguments)
        raise MemoryError

    monkeypatch.setattr(committer, "_append", late)
    with monkeypatch.context():
        results = together(store, lambda: store.add("a", 1), lambda: store.add("b", 1))
    assert results == [True, True]
    assert dict(store.items()) == {"a": 1, "b": 1}
    assert sound(store)


def test_a_failed_flush_poisons_for_all(new_store):
    disk = Counting()
    store = new_store(disk=disk, durability="full")
    store.save("k", 0)
    with Queue(store) as queue:
        for number in range(3):
            queue.add(saving(store, f"k{number}", number))
        disk.failing = True
    assert all(isinstance(error, PoisonedError) for error in queue.outcomes())
    assert dict(store.items()) == {"k": 0}
    store.close()
    again = new_store(disk=disk)
    assert dict(again.items()) == {"k": 0}
    assert again.save("k", 1)
    assert sound(again)


def test_who_waits_too_long_has_withdrawn(new_store):
    store = new_store(lock_timeout=0)
    store.save("k", 0)
    gate = store._engine.gate
    gate.enter()
    for call in (saving(store, "k", 1), lambda: store.delete("k"), lambda: store.touch("k", 1)):
        error = Call(call).outcome()
        assert isinstance(error, StoreLockedError)
        assert "another thread" in str(error)
    assert not gate.waiting
    gate.leave()
    assert store.save("other", 1)
    assert dict(store.items()) == {"k": 0, "other": 1}
    assert sound(store)


def test_what_a_leader_has_taken_is_waited_for_past_the_deadline(store):
    class Watched(Queued):
        waits = threading.Event()

        def sleep(self, *, endless=False):
            if endless:
                self.waits.set()
            return super().sleep(endless=endless)

    engine = store._engine
    queued = Watched(None, 0, full=False)
    with Queue(store) as queue:
        assert queued.take()
        engine.gate.waiting.append(queued)
        call = Call(lambda: engine.committer.group.complete(queued))
        assert queued.waits.wait(PATIENCE_S)
        queued.finish(took_place=True)
        assert call.outcome() is None
        queue.gate.waiting.clear()
    assert sound(store)


def test_a_close_lets_those_before_it_finish_and_refuses_those_behind(new_store):
    store = new_store()
    store.save("k", 0)
    with Queue(store) as queue:
        queue.add(saving(store, "before", 1))
        queue.add(store.close)
        for number in range(3):
            queue.add(saving(store, f"k{number}", number))
    before, closed, *behind = queue.outcomes()
    assert (before, closed) == (True, None)
    assert all(isinstance(error, StoreClosedError) for error in behind)
    again = new_store()
    assert dict(again.items()) == {"k": 0, "before": 1}
    assert sound(again)


def test_a_thread_inside_is_refused_and_not_queued(store):
    with store.transaction() as tx:
        tx.save("k", 1)
        for call in (saving(store, "k", 2), lambda: store.touch("k", 1)):
            with pytest.raises(RuntimeError, match="this thread has a transaction open"):
                call()
    assert store.load("k") == 1
    assert sound(store)


# -- interrupts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [False, True])
def test_a_leader_that_is_interrupted_leaves_the_rest_to_the_next(store, monkeypatch, committed):
    committer = store._engine.committer
    append = committer._append

    def interrupted(*arguments):
        monkeypatch.undo()
        if committed:
            append(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(committer, "_append", interrupted)
    commits = store.stats().commits
    first, *others = together(store, *(lambda n=n: store.add(f"k{n}", n) for n in range(4)))
    assert isinstance(first, KeyboardInterrupt)
    assert others == [True] * 3  # a repeated add would have found the key
    assert store.stats().commits == commits + 1
    assert store.exists("k0") == committed
    assert sound(store)


def test_a_waiter_that_is_interrupted_withdraws(store, monkeypatch):
    def interrupted(_self, **_):
        monkeypatch.undo()
        raise KeyboardInterrupt

    with Queue(store) as queue:
        queue.add(saving(store, "a", 1))
        monkeypatch.setattr(Queued, "sleep", interrupted)
        assert isinstance(Call(saving(store, "b", 1)).outcome(), KeyboardInterrupt)
        assert len(store._engine.gate.waiting) == 1
    assert queue.outcomes() == [True]
    assert dict(store.items()) == {"a": 1}
    assert sound(store)


def test_the_first_one_that_withdraws_wakes_the_next(store):
    engine = store._engine
    gate = engine.gate
    with Queue(store) as queue:
        first = Queued(None, 0, full=False)
        gate.waiting.append(first)
        queue.add(saving(store, "k", 1))
    # Leaving woke the first, which never comes.
    assert queue.calls[0].is_alive()
    gate.withdraw(first)
    assert queue.outcomes() == [True]
    assert sound(store)


# -- everything at once -------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["full", "relaxed"])
def test_many_threads_at_once(new_store, durability):
    store = new_store(durability=durability, segment_bytes_max=65536)
    turns, count = 60, 8
    won = [0] * count
    seen_backwards = []
    over = threading.Event()

    def work(me):
        for turn in range(turns):
            assert store.save(f"mine:{me}", [turn, "x" * 500])
            assert store.load(f"mine:{me}")[0] == turn  # acknowledged is visible
            won[me] += store.add(f"shared:{turn}", me)
            if turn % 4 == 0:
                store.increment("count")
            won[me] -= store.delete(f"shared:{turn - 1}")
            store.touch(f"mine:{me}", 1000 + turn)

    def watch():
        last = [-1] * count
        while not over.is_set():
            for me in range(count):
                now = store.load(f"mine:{me}", [-1])[0]
                seen_backwards.extend([me] * (now < last[me]))
                last[me] = now

    watcher = Call(watch)
    calls = [Call(lambda me=me: work(me)) for me in range(count)]
    outcomes = [call.outcome() for call in calls]
    over.set()
    assert outcomes == [None] * count
    assert watcher.outcome() is None
    assert seen_backwards == []
    assert store.load("count") == count * turns // 4
    # What was added and not deleted is what is left, however it went.
    assert sum(won) == store.count("shared:")
    assert {f"mine:{me}" for me in range(count)} == set(store.keys("mine:"))
    assert sound(store)


# -- touch ---------------------------------------------------------------------------------------


def test_touch_refers_to_the_same_content_and_counts_no_reference(store, clock):
    store.save("a", LARGE)
    store.save("b", LARGE)
    before = store.stats()
    assert store.touch("a", 10)
    assert store.touch("a", None)
    assert store.touch("b", 20)
    after = store.stats()
    assert (after.contents, after.content_references) == (1, 2)
    assert after.content_references == before.content_references
    clock.now += 20
    assert not store.touch("b", 10)
    assert store.load("a") == LARGE
    assert store.delete("a")
    assert sound(store)


def test_touch_makes_room_for_what_it_finds(new_store, tmp_path):
    large = os.urandom(50_000)
    store = new_store(content_bytes_min=1 << 20, segment_bytes_max=1 << 16)
    store.save("k", large)
    for ttl in (10, None, 20):
        assert store.touch("k", ttl)
    assert store.load("k") == large
    assert store.ttl("k") == 20
    sizes = [file.stat().st_size for file in (tmp_path / "store" / "log").iterdir()]
    assert max(sizes) <= 1 << 16  # each found the segment full, and began another
    assert sound(store)


def test_touch_of_a_damaged_record_says_so_and_spoils_no_other(new_store, tmp_path):
    store = new_store()
    store.save("k", "a value to be found")
    segment = tmp_path / "store" / "log" / "0000000001.seg"
    data = segment.read_bytes()
    with segment.open("r+b") as file:
        file.seek(data.index(b"a value to be found"))
        file.write(b"X")
    error, other = together(store, lambda: store.touch("k", 1), saving(store, "other", 1))
    assert isinstance(error, CorruptionError)
    assert error.segment == 1
    assert other is True
    assert store.load("other") == 1
