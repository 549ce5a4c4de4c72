"""A disk that is really full: a small tmpfs, filled to the brim."""

import contextlib
import os
import random
import shutil

import pytest

from kvsage import LMDBStore, StoreFullError
from tests.support.small_disk import fill, small_tmpfs

NOISE = os.urandom(100_000)


def noise(number):
    """As much noise as ``NOISE``, and nothing in it that is in any other."""
    return random.Random(number).randbytes(len(NOISE))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    with small_tmpfs(tmp_path, 16) as point:
        yield point


def save_until_full(store):
    """Numbered values, until there is no space; how many were acknowledged."""
    for number in range(1000):
        try:
            store.save(f"k{number}", [number, noise(number)])
        except StoreFullError:
            return number
    pytest.fail("it never got full")


@pytest.mark.root
@pytest.mark.parametrize("durability", ["full", "relaxed"])
def test_commits_on_a_full_disk(small_disk, durability):
    path = small_disk / "store"
    with LMDBStore(path, durability=durability) as store:
        store.save("first", 1)
        kept = save_until_full(store)
        assert kept > 50
        for _ in range(3):
            with pytest.raises(StoreFullError):
                store.save_many({"one": noise(10_001), "two": noise(10_002)})
        expected = {f"k{number}": [number, noise(number)] for number in range(kept)}
        expected["first"] = 1
        assert dict(store.items()) == expected
    with LMDBStore(path, durability=durability) as store:
        assert dict(store.items()) == expected
        assert store.verify(deep=True).problems == ()


@pytest.mark.root
@pytest.mark.parametrize("durability", ["full", "relaxed"])
def test_it_works_again_once_there_is_space(small_disk, durability):
    path = small_disk / "store"
    with LMDBStore(path, durability=durability) as store:
        store.save("first", NOISE)
        ballast = fill(small_disk, leave=200_000)  # enough for the index, so the log gets full
        kept = save_until_full(store)
        ballast.unlink()
        assert store.count("k") == kept
        store.save("after", NOISE)
        assert store.load("after") == NOISE
        assert store.verify(deep=True).problems == ()
    with LMDBStore(path) as store:
        assert store.count("k") == kept


# LMDB maps its files, and a mapped page that finds no space ends the process with a bus error
# where nobody took care. So each of these runs in a child, with a little more space each time.
SPACES = [*range(0, 256 << 10, 16 << 10), 1 << 20]


@pytest.mark.root
def test_a_creation_on_a_full_disk(small_disk, fork):
    said = []
    for number, leave in enumerate(SPACES):
        path = small_disk / str(number)

        def work(say, path=path):
            try:
                LMDBStore(path).close()
            except StoreFullError:
                say("full")
            else:
                say("made")

        ballast = fill(small_disk, leave)
        said += fork(work)[1]
        ballast.unlink()
        with LMDBStore(path) as store:
            store.save("k", 1)
            assert store.verify(deep=True).problems == ()
        shutil.rmtree(path)
    assert said[0] == "full"
    assert said[-1] == "made"


@pytest.mark.root
@pytest.mark.parametrize("trusted", [True, False])
def test_an_opening_on_a_full_disk(small_disk, fork, trusted):
    path = small_disk / "store"
    expected = {f"k{number:04d}": number for number in range(1000)}
    with LMDBStore(path) as store:
        store.save_many(expected)

    def work(say):
        try:
            with LMDBStore(path) as store:
                assert dict(store.items()) == expected
                store.save("k0000", 0)
        except StoreFullError:
            say("full")
        else:
            say("open")

    said = []
    for leave in SPACES:
        if not trusted:
            (path / "INDEX").unlink(missing_ok=True)
        ballast = fill(small_disk, leave)
        said += fork(work)[1]
        ballast.unlink()
        with LMDBStore(path) as store:
            assert dict(store.items()) == expected
            assert store.verify(deep=True).problems == ()
    assert said[0] == "full"
    assert said[-1] == "open"


@pytest.mark.root
def test_a_close_on_a_full_disk_loses_nothing(small_disk):
    path = small_disk / "store"
    store = LMDBStore(path, durability="relaxed", sync_interval=3600)
    store.save("k", NOISE)
    ballast = fill(small_disk)
    with contextlib.suppress(StoreFullError):
        store.close()
    ballast.unlink()
    with LMDBStore(path) as again:
        assert again.load("k") == NOISE
        assert again.verify(deep=True).problems == ()
