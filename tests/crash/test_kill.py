"""kill -9: what was acknowledged is there, what was not is there whole or not at all.

First at seeded moments, against writers in processes of their own; then before, after and in the
middle of each single operation on the disk, in forked children. Whoever comes next writes at once,
so no death leaves a lock behind.
"""

import os
import random
import shutil
import signal
from itertools import count

import pytest

from kvsage import LMDBStore
from kvsage.fs import Disk

RING = 50

SINGLE = """
store = LMDBStore(path)
number = int(arguments[0])
while True:
    store.save(f"k{number % 50}", [number, "x" * (number * 37 % 900)])
    say(number)
    number += 1
"""

ROTATING = """
store = LMDBStore(path, segment_bytes_max=65536, durability="relaxed")
number = int(arguments[0])
while True:
    store.save(f"k{number % 50}", [number, os.urandom(9000)])
    say(number)
    number += 1
"""

APPENDING = """
store = LMDBStore(path, content_bytes_min=64, segment_bytes_max=65536, durability="relaxed")
number = int(arguments[0])
while True:
    store.append("list", [number, "x" * (number * 37 % 400)])
    store.extend(f"list{number % 3}", (f"{number}: {part}" for part in range(20)))
    say(number)
    number += 1
"""

TRANSACTIONS = """
store = LMDBStore(path)
number = int(arguments[0])
while True:
    with store.transaction() as tx:
        for part in range(5):
            tx.save(f"part{part}", number)
        tx.delete(f"t{number - 20}")
        tx.save(f"t{number}", "x" * 2000)
    say(number)
    number += 1
"""

LARGE = """
store = LMDBStore(path, content_bytes_min=1 << 20)
number = int(arguments[0])
noise = os.urandom(200_000)
while True:
    store.save_many({f"part{part}": (number, noise) for part in range(20)})
    say(number)
    number += 1
"""


def killed(child, program, path, first, acknowledgements):
    """The last number that a writer acknowledged before it was killed."""
    writer = child(program, path, first)
    for _ in range(acknowledgements):
        last = int(writer.line())
    return max([last, *map(int, writer.kill())])


@pytest.mark.parametrize("program", [SINGLE, ROTATING], ids=["single", "rotating"])
def test_a_writer_of_single_values(path, child, checked, program):
    chance = random.Random(1)
    last = -1
    for _ in range(10):
        last = killed(child, program, path, last + 1, chance.randrange(1, 40))
        found = checked(path)
        # One more may have come through before its acknowledgement did.
        if found.get(f"k{(last + 1) % RING}", [None])[0] == last + 1:
            last += 1
        newest = {f"k{number % RING}": number for number in range(last + 1)}
        assert {key: value[0] for key, value in found.items()} == newest


def test_a_writer_that_adds_to_lists(path, child, checked):
    chance = random.Random(2)
    last = -1
    for _ in range(10):
        last = killed(child, APPENDING, path, last + 1, chance.randrange(1, 40))
        found = checked(path)
        numbers = [number for number, _ in found["list"]]
        assert numbers == [*range(len(numbers))]
        assert [len(text) for _, text in found["list"]] == [n * 37 % 400 for n in numbers]
        # The next one may have come through before its acknowledgement did, or a half of it.
        assert last <= numbers[-1] <= last + 1
        added = [number for number in numbers if number % 3 == numbers[-1] % 3]
        last_of_three = found.get(f"list{numbers[-1] % 3}", [])
        texts = [f"{number}: {part}" for number in added for part in range(20)]
        assert last_of_three in ((texts,) if numbers[-1] == last else (texts, texts[:-20]))
        if last_of_three == texts:
            last = numbers[-1]
        else:  # take back the half, as the writer begins with the whole one again
            with LMDBStore(path, content_bytes_min=64) as store:
                store.save("list", found["list"][:-1])


def test_a_writer_of_transactions(path, child, checked):
    chance = random.Random(3)
    last = -1
    for _ in range(8):
        last = killed(child, TRANSACTIONS, path, last + 1, chance.randrange(1, 30))
        found = checked(path)
        parts = {found[f"part{part}"] for part in range(5)}
        assert parts in ({last}, {last + 1})
        last = parts.pop()
        there = {int(key[1:]) for key in found if key.startswith("t")}
        assert there == set(range(max(0, last - 19), last + 1))


def test_a_writer_of_large_batches(path, child, checked):
    chance = random.Random(4)
    last = -1
    for _ in range(8):
        last = killed(child, LARGE, path, last + 1, chance.randrange(1, 4))
        numbers = {value[0] for value in checked(path).values()}
        assert numbers in ({last}, {last + 1})
        last = numbers.pop()


# -- at each step -------------------------------------------------------------------------------

STEPS = (
    "write",
    "sync",
    "sync_data",
    "truncate",
    "rename",
    "unlink",
    "remove_directory",
    "make_directory",
    "sync_directory",
)


class DeadlyDisk(Disk):
    """Kills its process at the n-th step: before it, or when it is half done (a write) or done."""

    def __init__(self, number, when):
        self.left = number
        self.when = when

    def _step(self, do, half):
        self.left -= 1
        if self.left:
            return do()
        try:
            if self.when == "after":
                half()
        finally:  # some steps fail in the course of things: a file that is not there yet
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, fd, parts, offset):
        def half():
            data = b"".join(parts)
            os.pwrite(fd, data[: (len(data) + 1) // 2], offset)

        return self._step(lambda: super(DeadlyDisk, self).write(fd, parts, offset), half)


def deadly(name):
    def step(self, *args, **kwargs):
        def do():
            return getattr(Disk, name)(self, *args, **kwargs)

        return self._step(do, do)

    return step


for _name in STEPS:
    if _name != "write":
        setattr(DeadlyDisk, _name, deadly(_name))


@pytest.mark.parametrize("step", ["write", "sync_data"])
def test_a_batch_that_is_in_the_log_is_committed(path, fork, checked, step):
    """Its writer died before it could index it; whoever comes next does."""

    class Deadly(Disk):
        armed = False

    def deadly_step(self, *args):
        getattr(Disk, step)(self, *args)
        if self.armed:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(Deadly, step, deadly_step)
    with LMDBStore(path) as store:
        store.save("k", 1)

    def work(say):
        disk = Deadly()
        store = LMDBStore(path, disk=disk)
        store.save("k", 2)
        disk.armed = True
        with store.transaction() as tx:
            tx.save("k", 3)
            tx.save("other", "x" * 5000)

    assert fork(work) == (-signal.SIGKILL, [])
    assert checked(path) == {"k": 3, "other": "x" * 5000}


def each_step(fork, when, begin, work):
    """Run ``work`` with a disk that kills at step 1, 2, 3 ... until it lives to its end."""
    for number in count(1):
        place = begin(number)
        code, said = fork(lambda say: work(place, DeadlyDisk(number, when), say))  # noqa: B023
        yield place, said, code
        if code == 0:
            assert number > 3
            return


WHEN = pytest.mark.parametrize("when", ["before", "after"])


@WHEN
def test_at_each_step_of_a_creation(tmp_path, fork, checked, when):
    def begin(number):
        return tmp_path / f"new{number}" / "store"

    def work(place, disk, say):
        with LMDBStore(place, disk=disk) as store:
            say("open")
            store.save("k", 1)
            say("saved")

    for place, said, _ in each_step(fork, when, begin, work):
        found = checked(place)
        assert found in (({"k": 1},) if "saved" in said else ({}, {"k": 1}))


@WHEN
@pytest.mark.parametrize("durability", ["full", "relaxed"])
def test_at_each_step_of_commits(path, fork, checked, when, durability):
    noise = os.urandom(30_000)

    def work(place, disk, say):
        store = LMDBStore(
            place,
            disk=disk,
            durability=durability,
            content_bytes_min=1 << 20,
            sync_interval=3600,
        )
        base = store.load("base", 0)
        store.save("single", base)
        say("single")
        with store.transaction() as tx:
            tx.save("one", base)
            tx.save("two", base)
            tx.delete("single")
        say("transaction")
        store.save_many({f"many{n}": [base, noise] for n in range(5)})
        say("many")
        store.save("base", base + 1)
        say("base")
        store.close()

    state = {"base": 1, "single": None, "one": 0, "two": 0, "many": 0}
    with LMDBStore(path) as store:
        store.save_many({"base": 1, "one": 0, "two": 0})
        store.save_many({f"many{n}": [0, b""] for n in range(5)})
    for _, said, _ in each_step(fork, when, lambda _: path, work):
        base = state["base"]
        found = checked(path)
        many = {found[f"many{n}"][0] for n in range(5)}
        assert len(many) == 1
        now = {key: found.get(key) for key in ("base", "single", "one", "two")}
        now["many"] = many.pop()
        steps = [
            dict(state),
            dict(state, single=base),
            dict(state, single=None, one=base, two=base),
            dict(state, single=None, one=base, two=base, many=base),
            dict(state, single=None, one=base, two=base, many=base, base=base + 1),
        ]
        assert now in steps[len(said) : len(said) + 2], (said, now)
        state = now


@WHEN
def test_at_each_step_of_rotations(path, fork, checked, when):
    limit = {"segment_bytes_max": 65536}

    def work(place, disk, say):
        store = LMDBStore(place, disk=disk, durability="relaxed", **limit)
        for _ in range(4):
            say(store.update("n", lambda old: [old[0] + 1, os.urandom(25_000)], [0])[0])
        store.close()

    last = 0
    for _, said, _ in each_step(fork, when, lambda _: path, work):
        acknowledged = max([last, *map(int, said)])
        last = checked(path, **limit).get("n", [0])[0]
        assert last in {acknowledged, acknowledged + 1}


@WHEN
def test_at_each_step_of_a_rebuild(path, tmp_path, fork, checked, when):
    expected = {f"k{n}": n for n in range(30)}
    with LMDBStore(path, segment_bytes_max=65536) as store:
        store.save_many(expected)
        store.save("gone", 1)
        for _ in range(5):
            store.save("noise", os.urandom(20_000))
        store.delete("noise")
        store.delete("gone")

    def begin(number):
        # A copy is never trusted, so opening it builds its index anew.
        return shutil.copytree(path, tmp_path / f"copy{number}")

    def work(place, disk, say):
        LMDBStore(place, disk=disk).close()

    for place, _, _ in each_step(fork, when, begin, work):
        assert checked(place) == expected
        assert checked(place) == expected
