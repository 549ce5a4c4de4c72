"""kill -9 at each step of a compaction, a checkpoint and a sweep: the next one finishes the work.

A forked child is killed before or after the n-th operation on the disk, or the n-th transaction of
the index, for every n. Who looks afterwards: a process that opens the store, with the index as the
dead one left it; one that finds it without its index, with the checkpoint and without; and one that
has had it open all the time.
"""

import json
import os
import shutil
import signal

import pytest

from kvsage import LMDBStore
from kvsage.engine import compaction
from kvsage.engine.pace import Pace
from kvsage.index.segments import JOINING, all_segments
from tests.crash.test_kill import WHEN, each_step
from tests.support.clock import FakeClock
from tests.support.small import OPTIONS, TEXTS, make_small, nothing_left

KEYS = 14


@pytest.fixture(autouse=True)
def everything_is_small(monkeypatch):
    make_small(monkeypatch)


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
        return LMDBStore(place, clock=clock, **OPTIONS, **options)

    return open_


def churn(store, number):
    """Sealed files with garbage in them: values, contents, deletions; what the store then holds."""
    held = {f"k{n:02}": [number, n, "x" * (n * 17 % 90)] for n in range(KEYS)}
    for key, value in held.items():
        store.save(key, [value, "first"])
    for n, text in enumerate(TEXTS):
        store.save(f"t{n}", text)
        store.save(f"k{n:02}", text)
    address = store.content.put(b"held by its address " * 5)
    store.save_many(held)
    with store.transaction() as tx:
        for n in (3, 7):
            tx.delete(f"k{n:02}")
            tx.delete(f"t{n % 4}")
        tx.save("last", number)
    store.delete("k05")
    store.content.delete(address)
    store.save("mortal", number, ttl=5)
    return dict(store.items())


def finishes(store, expected):
    """The store is sound as it is, the next compaction does all that there is to do."""
    assert dict(store.items()) == expected
    assert store.verify(deep=True).problems == ()
    assert store.compact().files_waiting == 0
    nothing_left(store)
    assert dict(store.items()) == expected
    assert store.verify(deep=True).problems == ()


def recovers_and_finishes(path, opened, expected):
    """The same where the index is lost: with the checkpoint, and without."""
    for name in ("with", "without"):
        place = shutil.copytree(path, path.with_name(name))
        shutil.rmtree(place / "index")
        if name == "without":
            (place / "index.checkpoint").unlink(missing_ok=True)
        with opened(place) as store:
            finishes(store, expected)
        shutil.rmtree(place)


def killed_at_each_step(fork, when, begin, work):
    """As ``each_step``, the opening of the store not counted."""

    def armed(place, disk, say):
        number, disk.left = disk.left, 0
        work(place, disk, lambda: setattr(disk, "left", number), say)

    return each_step(fork, when, begin, armed)


def compacting(opened):
    def work(place, disk, arm, say):
        store = opened(place, disk=disk)
        arm()
        store.compact()

    return work


def upkeeping(opened):
    def work(place, disk, arm, say):
        store = opened(place, disk=disk)
        arm()
        store._engine.upkeep.look(Pace())

    return work


def checkpointing(opened):
    def work(place, disk, arm, say):
        store = opened(place, disk=disk)
        arm()
        store.checkpoint()

    return work


def sweeping(opened):
    def work(place, disk, arm, say):
        store = opened(place, disk=disk)
        arm()
        store.sweep()

    return work


WORKS = {
    "compact": compacting,
    "look": upkeeping,
    "checkpoint": checkpointing,
    "sweep": sweeping,
}


@WHEN
@pytest.mark.parametrize("work", WORKS)
def test_at_each_step_on_the_disk(path, opened, fork, when, work):
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

    for _ in killed_at_each_step(fork, when, begin, WORKS[work](opened)):
        # After one step is before the next, so once is enough.
        if when == "before":
            recovers_and_finishes(path, opened, expected)
        with opened() as store:
            finishes(store, expected)


WITNESS = """
import json, math
from kvsage.types import shown
store = LMDBStore(path, sync_interval=3600, upkeep_interval=math.inf, durability="relaxed")
def state():
    return {key: repr(value) for key, value in store.items()}
while hear():
    before = state()
    problems = [str(problem) for problem in store.verify(deep=True).problems]
    waiting = store.compact().files_waiting
    problems += [str(problem) for problem in store.verify(deep=True).problems]
    say(json.dumps([before, state(), problems, waiting]))
"""


@WHEN
def test_who_had_it_open_finishes_the_work(path, opened, fork, child, when):
    """Its index is the one that the dead compactor left, and nobody opens the store in between."""
    with opened() as store:
        store.save("first", 1)
    witness = child(WITNESS, path)
    expected = {}

    def begin(number):
        nonlocal expected
        with opened() as store:
            churn(store, number)
            store.delete("mortal")
            expected = dict(store.items())
        return path

    for _ in killed_at_each_step(fork, when, begin, compacting(opened)):
        before, after, problems, waiting = json.loads(witness.ask("look"))
        assert problems == []
        assert before == after == {key: repr(value) for key, value in expected.items()}
        assert waiting == 0
    witness.finish()
    with opened() as store:
        nothing_left(store)


@WHEN
@pytest.mark.parametrize("checkpoint", [False, True], ids=["no checkpoint", "checkpoint"])
def test_at_each_step_of_a_recovery_that_finds_retired_files(path, opened, fork, when, checkpoint):
    """They go with it, or with the next compaction."""
    template = path.with_name("template")
    with opened() as store:
        expected = churn(store, 1)
        if checkpoint:
            store.checkpoint()
        with store.snapshot() as view:
            assert dict(view.items()) == expected
            assert store.compact().files_waiting > 2
            # Not the index: nobody but its library may open the file of its locks meanwhile.
            shutil.copytree(path, template, ignore=shutil.ignore_patterns("index"))

    def begin(number):
        return shutil.copytree(template, path.with_name(f"copy{number}"))

    def work(place, disk, say):
        opened(place, disk=disk).close()

    for place, _, _ in each_step(fork, when, begin, work):
        with opened(place) as store:
            finishes(store, expected)
        shutil.rmtree(place)


def killed_in(fork, opened, name, number, *, after):
    """A compaction that dies before or after the n-th call of a function; whether it did."""

    def work(say):
        store = opened()
        real, left = getattr(compaction, name), number

        def deadly(*args):
            nonlocal left
            left -= 1
            if not left and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args)
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(compaction, name, deadly)
        store.compact()

    return fork(work)[0] == -signal.SIGKILL


@pytest.mark.parametrize("checkpoint", [False, True], ids=["no checkpoint", "checkpoint"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_between_the_transactions_of_the_index(path, opened, fork, after, checkpoint):
    states, number = set(), 0
    while True:
        number += 1
        with opened() as store:
            expected = churn(store, number)
            if checkpoint:
                store.checkpoint()
        died = killed_in(fork, opened, "_change", number, after=after)
        if (number % 2 == 0) == after:
            recovers_and_finishes(path, opened, expected)
        with opened() as store:
            with store._engine.index.reading() as txn:
                states.add(max(row.state for _, row in all_segments(txn)))
            if number % 2:  # otherwise it is found as it is, by what a writer does then
                store.save("k00", "written meanwhile")
                store.delete("k01")
                expected = {**expected, "k00": "written meanwhile"}
                del expected["k01"]
            finishes(store, expected)
        if not died:
            break
    assert number > 10
    assert JOINING in states


@pytest.mark.parametrize("name", ["_write_copy", "_join", "_move_rows", "_retire", "_forget"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_checkpoint_of_a_store_in_the_midst_of_it(path, opened, fork, name, after):
    """The checkpoint knows a copy that no RETIRE has named, and outlives the end of the work."""
    with opened() as store:
        expected = churn(store, 1)
    assert killed_in(fork, opened, name, 1, after=after)
    with opened() as store:
        store.checkpoint()
    for _ in range(2):
        recovers_and_finishes(path, opened, expected)
        with opened() as store:
            finishes(store, expected)
            expected |= {"more": 1}
            store.save("more", 1)


def test_killed_again_and_again(path, opened, fork):
    """Each compactor takes over from the one before, and dies a little later."""
    with opened() as store:
        expected = churn(store, 1)
    number = 1
    while killed_in(fork, opened, "_change", number, after=True):
        number += 1
        with opened() as store:
            assert dict(store.items()) == expected
            assert store.verify(deep=True).problems == ()
    assert number > 3
    with opened() as store:
        finishes(store, expected)
