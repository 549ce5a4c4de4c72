"""A disk that is really full: a small tmpfs, filled to the brim."""

import errno
import os
import subprocess

import pytest

from kvsage import LMDBStore, StoreFullError

NOISE = os.urandom(100_000)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    point = tmp_path / "mount"
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(point)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def fill(directory):
    """Take all the space that is left; the file to remove again."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return ballast


@pytest.mark.root
@pytest.mark.parametrize("durability", ["full", "relaxed"])
def test_commits_on_a_full_disk(small_disk, durability):
    path = small_disk / "store"
    kept = {}
    with LMDBStore(path, durability=durability) as store:
        store.save("k", 1)
        with pytest.raises(StoreFullError):
            for number in range(1000):
                store.save(f"k{number}", [number, NOISE])
                kept[f"k{number}"] = [number, NOISE]
        assert len(kept) > 50
        for _ in range(3):
            with pytest.raises(StoreFullError):
                store.save_many({"one": NOISE + b"1", "two": NOISE + b"2"})
        assert dict(store.items()) == kept | {"k": 1}
    with LMDBStore(path, durability=durability) as store:
        assert dict(store.items()) == kept | {"k": 1}
        assert store.verify(deep=True).problems == ()


@pytest.mark.root
@pytest.mark.parametrize("durability", ["full", "relaxed"])
def test_it_works_again_once_there_is_space(small_disk, durability):
    path = small_disk / "store"
    with LMDBStore(path, durability=durability) as store:
        store.save("k", NOISE)
        ballast = fill(small_disk)
        kept = 0
        with pytest.raises(StoreFullError):
            for number in range(1000):
                store.save(f"k{number}", [number, NOISE])
                kept = number + 1
        ballast.unlink()
        assert store.count("k") == kept + 1
        store.save("after", NOISE)
        assert store.load("after") == NOISE
        assert store.verify(deep=True).problems == ()
    with LMDBStore(path) as store:
        assert store.count("k") == kept + 1


@pytest.mark.root
def test_a_creation_on_a_full_disk(small_disk):
    ballast = fill(small_disk)
    with pytest.raises(StoreFullError):
        LMDBStore(small_disk / "store")
    ballast.unlink()
    with LMDBStore(small_disk / "store") as store:
        store.save("k", 1)


@pytest.mark.root
def test_a_rebuild_on_a_full_disk(small_disk):
    path = small_disk / "store"
    with LMDBStore(path) as store:
        store.save_many({f"k{number:05d}": number for number in range(5000)})
    (path / "INDEX").unlink()
    ballast = fill(small_disk)
    with pytest.raises(StoreFullError):
        LMDBStore(path)
    ballast.unlink()
    with LMDBStore(path) as store:
        assert store.count() == 5000
        assert store.verify(deep=True).problems == ()


@pytest.mark.root
def test_a_close_on_a_full_disk_loses_nothing(small_disk):
    path = small_disk / "store"
    store = LMDBStore(path, durability="relaxed", sync_interval=3600)
    store.save("k", NOISE)
    ballast = fill(small_disk)
    try:
        store.close()
    except StoreFullError:
        pass
    finally:
        ballast.unlink()
    with LMDBStore(path) as again:
        assert again.load("k") == NOISE
        assert again.verify(deep=True).problems == ()
