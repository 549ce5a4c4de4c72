"""A disk that is full at the n-th step of a compaction, a checkpoint or a sweep, and a real one.

The error says so, nothing is lost, nothing is left behind, and the next run, with space again,
finishes the work.
"""

import contextlib
import errno
import os
from itertools import count

import pytest

from kvsage import KvsageError, LMDBStore, StoreFullError
from kvsage.engine.pace import UNPACED
from kvsage.fs import Disk
from kvsage.fs.posix import translate
from tests.support.clock import FakeClock
from tests.support.small import OPTIONS, make_small, nothing_left
from tests.support.small_disk import fill, small_tmpfs

TEXT = b"to be or not to be, that is the question. " * 5
NOISE = os.urandom(20_000)


class FillingDisk(Disk):
    """Has no space for the n-th write that makes a file longer, once or from then on.

    Half of it may still fit. What has its place already can be written over on a full disk too.
    """

    def __init__(self):
        self.arm(0)

    def arm(self, number, *, half=False, stays_full=False):
        self.left, self.half, self.stays_full, self.failed = number, half, stays_full, 0

    def write(self, fd, parts, offset):
        if offset + sum(map(len, parts)) > self.size(fd):
            self.left -= 1
            if self.left == 0 or (self.failed and self.stays_full):
                self.failed += 1
                if self.half:
                    data = b"".join(parts)
                    os.pwrite(fd, data[: len(data) // 2], offset)
                raise translate(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "writing")
        super().write(fd, parts, offset)


@pytest.fixture
def path(directory):
    return directory / "store"


def churn(store, number):
    """Sealed files with garbage, contents, deletions and something that is about to expire."""
    for key in range(12):
        store.save(f"k{key:02}", [number, "first"])
    for key in range(12):
        store.save(f"k{key:02}", TEXT if key == 4 else [number, key, "x" * (key * 17 % 90)])
    store.delete("k03")
    store.save("mortal", number, ttl=5)
    return {key: value for key, value in store.items() if key != "mortal"}


WORKS = {
    "compact": lambda store: store.compact(),
    "look": lambda store: store._engine.upkeep.look(UNPACED),
    "checkpoint": lambda store: store.checkpoint(),
    "sweep": lambda store: store.sweep(),
}


@pytest.mark.parametrize("half", [False, True], ids=["nothing fits", "half fits"])
@pytest.mark.parametrize("stays_full", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("work", WORKS)
def test_each_write(path, monkeypatch, work, stays_full, half):
    make_small(monkeypatch)
    clock, disk = FakeClock(), FillingDisk()
    refused = 0
    with LMDBStore(path, clock=clock, disk=disk, **OPTIONS) as store:
        for number in count(1):
            expected = churn(store, number)
            clock.advance(10)
            disk.arm(number, half=half, stays_full=stays_full)
            try:
                WORKS[work](store)
            except StoreFullError:
                refused += 1
            came_through = not disk.failed
            assert dict(store.items()) == expected
            assert store.verify(deep=True).problems == ()
            disk.arm(0)
            assert store.compact().files_waiting == 0
            nothing_left(store)
            assert dict(store.items()) == expected
            assert store.verify(deep=True).problems == ()
            if came_through:
                break
    assert number == 1 if work == "sweep" else 0 < refused <= number


@pytest.mark.parametrize(
    "verb", ["sync", "sync_data", "rename", "sync_directory", "unlink", "truncate"]
)
@pytest.mark.parametrize("work", ["compact", "checkpoint"])
def test_each_other_failure(path, monkeypatch, work, verb):
    """A flush of the log that fails poisons the store, as for any commit; an opener heals it."""
    make_small(monkeypatch)
    failing = FailingDisk(verb)
    clock = FakeClock()
    for number in count(1):
        with LMDBStore(path, clock=clock, **OPTIONS) as store:
            expected = churn(store, number)
            clock.advance(10)
        store = LMDBStore(path, clock=clock, disk=failing, **OPTIONS)
        store.save("k00", expected["k00"])  # something to flush
        failing.left = number
        try:
            WORKS[work](store)
        except KvsageError:
            refused = True
        else:
            refused = False
        came_through = not failing.failed
        assert not (refused and came_through)
        assert dict(store.items()) == expected
        failing.left = failing.failed = 0
        close(store)
        with LMDBStore(path, clock=clock, **OPTIONS) as store:
            assert dict(store.items()) == expected
            assert store.verify(deep=True).problems == ()
            assert store.compact().files_waiting == 0
            nothing_left(store)
            assert dict(store.items()) == expected
        if came_through:
            break
    assert number > 1 or (work, verb) == ("checkpoint", "unlink")


class FailingDisk(Disk):
    """Fails the n-th call of one operation."""

    def __init__(self, verb):
        self.left = self.failed = 0
        real = getattr(self, verb)

        def call(*arguments):
            self.left -= 1
            if self.left == 0:
                self.failed += 1
                raise translate(OSError(errno.EIO, os.strerror(errno.EIO)), verb)
            return real(*arguments)

        setattr(self, verb, call)


def close(store):
    """A poisoned store says so when it is closed, and is closed all the same."""
    try:
        store.close()
    except KvsageError:
        assert store._engine.poisoned


# -- a disk that is really full -------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    with small_tmpfs(tmp_path, 8) as point:
        yield point


REAL = {k: v for k, v in OPTIONS.items() if k != "content_bytes_min"} | {
    "segment_bytes_max": 200_000,
    "content_bytes_min": 1 << 20,
}


@pytest.mark.root
@pytest.mark.parametrize("work", ["compact", "checkpoint"])
def test_a_disk_that_is_really_full(small_disk, work):
    path = small_disk / "store"
    refused = 0
    with LMDBStore(path, **REAL) as store:
        for number, leave in enumerate([*range(0, 160_000, 16_000), 600_000, 2_000_000]):
            for key in range(20):
                store.save(f"k{key:02}", [number, "first", NOISE])
            for key in range(0, 20, 2):  # so that no file is wholly dead
                store.save(f"k{key:02}", [number, key, NOISE])
            expected = dict(store.items())
            ballast = fill(small_disk, leave)
            try:
                WORKS[work](store)
            except StoreFullError:
                refused += 1
            assert dict(store.items()) == expected
            assert store.verify(deep=True).problems == ()
            ballast.unlink()
            assert store.compact().files_waiting == 0
            nothing_left(store)
            assert dict(store.items()) == expected
        assert 0 < refused < number + 1
    with LMDBStore(path, **REAL) as store:
        assert dict(store.items()) == expected
        assert store.verify(deep=True).problems == ()


@pytest.mark.root
def test_compaction_gives_a_full_store_its_space_back(small_disk):
    """As long as there is room for one copy of what is live."""
    path = small_disk / "store"
    with LMDBStore(path, **REAL) as store:
        ballast = fill(small_disk, 7_000_000)
        written = save_until_full(store)
        expected = dict(store.items())
        assert (written > 100, len(expected)) == (True, 20)
        ballast.unlink()
        assert store.compact().bytes_after < 1_000_000
        assert dict(store.items()) == expected
        for number in range(100):
            store.save(f"k{number % 20:02}", [number, NOISE])
        assert store.verify(deep=True).problems == ()


@pytest.mark.root
def test_files_that_are_wholly_dead_go_without_any_space(small_disk):
    path = small_disk / "store"
    with LMDBStore(path, **REAL) as store:
        assert save_until_full(store) > 100
        expected = dict(store.items())
        before = store.stats().log_bytes
        fill(small_disk, 0)
        with contextlib.suppress(StoreFullError):
            store.compact()
        assert store.stats().log_bytes < before / 2
        assert dict(store.items()) == expected
        for number in range(100):
            store.save(f"k{number % 20:02}", [number, NOISE])
            if number % 10 == 0:
                store.compact()
        assert store.verify(deep=True).problems == ()


def save_until_full(store):
    """Twenty keys over and over; how many saves were acknowledged."""
    for written in range(10_000):
        try:
            store.save(f"k{written % 20:02}", [written, NOISE])
        except StoreFullError:
            return written
    pytest.fail("it never got full")
