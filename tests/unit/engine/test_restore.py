"""Restore: a whole store, or nothing; what stood there before is replaced only on request."""

import json
import math
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from kvsage import LMDBStore
from kvsage.errors import (
    BackupError,
    ConfigError,
    NotAStoreError,
    StoreFullError,
    StoreLockedError,
    StoreUnavailableError,
)
from kvsage.fs import Disk
from tests.support.backups import reseal

SMALL = {"segment_bytes_max": 65536, "content_bytes_min": 1 << 20, "upkeep_interval": math.inf}


@pytest.fixture
def place(tmp_path):
    """Where stores are restored to; nothing else lies beside them."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "store"


@pytest.fixture
def backups(new_store, tmp_path, clock):
    """Two backups of one store, a minute apart: ten keys, and five more."""
    store = new_store("original", **SMALL)
    for number in range(10):
        store.save(f"k{number}", os.urandom(20_000))
    store.save("text", "a line " * 2000)
    store.backup(tmp_path / "backups")
    store.checkpoint()
    clock.now += 60
    store.save_many({f"more{number}": number for number in range(5)})
    store.backup(tmp_path / "backups")
    store.close()
    return tmp_path / "backups"


def holds(place, keys):
    """The store there is whole, and alone."""
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    with LMDBStore(place, **SMALL) as store:
        assert store.verify(deep=True).problems == ()
        assert store.count() == keys
        store.save("after", 1)
        assert store.delete("after")


def manifests(backups):
    return sorted((backups / "backups").iterdir())


# -- which --------------------------------------------------------------------------------------


def test_the_newest(backups, place):
    report = LMDBStore.restore(backups, place)
    assert report.keys == 16
    assert report.replaced is False
    assert report.backup == LMDBStore.backups(backups)[-1]
    assert report.bytes == report.backup.bytes > 200_000
    holds(place, 16)


def test_by_name_by_manifest_and_by_instant(backups, place, clock):
    first, _ = LMDBStore.backups(backups)
    at = datetime.fromtimestamp(clock.now, UTC) - timedelta(seconds=1)
    for which in ({"name": first.name}, {"at": at}):
        assert LMDBStore.restore(backups, place, **which).backup == first
        holds(place, 11)
        shutil.rmtree(place)
    assert LMDBStore.restore(first.path, place).backup == first
    holds(place, 11)


def test_what_cannot_be_meant(backups, place):
    first, _ = LMDBStore.backups(backups)
    early = datetime(2001, 1, 1, tzinfo=UTC)
    for which in ({"name": "00000009-20260101T000000Z"}, {"name": "../x"}, {"at": early}):
        with pytest.raises(BackupError, match="no backup"):
            LMDBStore.restore(backups, place, **which)
    naive = early.replace(tzinfo=None)
    for which in ({"name": first.name, "at": early}, {"at": naive}, {"at": 5}, {"name": 5}):
        with pytest.raises(ConfigError):
            LMDBStore.restore(backups, place, **which)
    with pytest.raises(ConfigError, match="one backup already"):
        LMDBStore.restore(first.path, place, name=first.name)
    with pytest.raises(BackupError):
        LMDBStore.restore(place, place)
    assert not place.exists()


def test_backups_that_were_moved(backups, place):
    """No path is written down in them."""
    moved = backups.rename(backups.with_name("moved"))
    (moved / "LOCK").unlink()
    assert LMDBStore.restore(moved, place).keys == 16
    assert not (moved / "LOCK").exists()
    holds(place, 16)


# -- what a restored store is -------------------------------------------------------------------


def test_a_new_timeline(new_store, backups, place, tmp_path, clock):
    with LMDBStore(tmp_path / "original", clock=clock, **SMALL) as store:
        kept = store.entry("more1").version
        store.save("more1", "later")
        lost = store.entry("more1").version
        store.save("more2", "later")
        theirs = store.entry("more2").version
    LMDBStore.restore(backups, place)
    with LMDBStore(place, **SMALL) as store:
        assert store.entry("more1").version == kept
        store.save("more1", "other")
        store.save("more2", "other")
        assert not store.save("more1", 1, if_version=lost)
        assert not store.save("more2", 1, if_version=theirs)
        assert store.load("more1") == "other"
    holds(place, 16)


def test_nothing_is_shared_with_the_backups(backups, place):
    LMDBStore.restore(backups, place)
    pool = {path.stat().st_ino for path in (backups / "files").iterdir()}
    assert not pool & {path.stat().st_ino for path in place.rglob("*")}
    with LMDBStore(place, **SMALL) as store:
        store.clear()
    assert LMDBStore.verify_backups(backups).problems == ()


def test_without_a_checkpoint_the_log_is_enough(backups, place):
    path = manifests(backups)[-1]
    fields = json.loads(path.read_bytes())["backup"]
    assert fields["checkpoint"]
    reseal(path, lambda fields: fields.update(checkpoint=None))
    assert LMDBStore.restore(backups, place).keys == 16
    holds(place, 16)


# -- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".seg", ".checkpoint"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_backup_is_refused(backups, place, suffix, how):
    LMDBStore.restore(backups, place)
    holds(place, 16)
    path = max(p for p in (backups / "files").iterdir() if p.suffix == suffix)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.unlink()
    if how != "gone":
        path.write_bytes(data[: -10 if how == "cut" else None])
    with pytest.raises(BackupError, match="damaged"):
        LMDBStore.restore(backups, place, overwrite=True)
    holds(place, 16)


# -- what is there already ----------------------------------------------------------------------


def test_a_store_is_replaced_only_on_request(backups, place):
    with LMDBStore(place, **SMALL) as store:
        store.save("mine", 1)
    with pytest.raises(BackupError, match="already"):
        LMDBStore.restore(backups, place)
    holds(place, 1)
    assert LMDBStore.restore(backups, place, overwrite=True).replaced is True
    holds(place, 16)


def test_the_very_store_that_was_backed_up(backups, tmp_path, clock):
    original = tmp_path / "original"
    with LMDBStore(original, **SMALL) as store:
        store.clear()
    LMDBStore.restore(backups, original, overwrite=True)
    with LMDBStore(original, **SMALL) as store:
        assert store.verify(deep=True).problems == ()
        assert store.count() == 16
        report = store.backup(backups)
    assert report.backup.number == 3
    assert LMDBStore.verify_backups(backups).problems == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backups", "original"]


def test_a_damaged_store_can_be_replaced(backups, place):
    LMDBStore(place, **SMALL).close()
    (place / "KVSAGE").unlink()
    (place / "log" / "0000000001.seg").write_bytes(b"")
    LMDBStore.restore(backups, place, overwrite=True)
    holds(place, 16)


def test_an_empty_directory_needs_no_request(backups, place):
    place.mkdir()
    LMDBStore.restore(backups, place)
    holds(place, 16)


def test_parents_are_made(backups, place):
    LMDBStore.restore(backups, place / "a" / "b")
    holds(place / "a" / "b", 16)


def test_places_that_cannot_be(backups, place):
    place.symlink_to(place)
    with pytest.raises(StoreUnavailableError, match="symbolic"):
        LMDBStore.restore(backups, place)
    with pytest.raises(StoreUnavailableError, match="symbolic"):
        LMDBStore.backups(place)
    with pytest.raises(NotAStoreError):
        LMDBStore.restore(backups, "/", overwrite=True)


@pytest.mark.parametrize("overwrite", [True, False])
def test_something_else_is_left_alone(backups, place, overwrite):
    place.mkdir()
    (place / "letter.txt").write_text("Dear Bob")
    with pytest.raises(NotAStoreError, match="letter"):
        LMDBStore.restore(backups, place, overwrite=overwrite)
    with pytest.raises(NotAStoreError, match="not a directory"):
        LMDBStore.restore(backups, place / "letter.txt", overwrite=overwrite)
    assert [path.name for path in place.parent.iterdir()] == ["store"]
    assert [path.name for path in place.iterdir()] == ["letter.txt"]


def test_a_store_with_a_strange_file_in_it_is_left_alone(backups, place):
    LMDBStore(place, **SMALL).close()
    (place / "letter.txt").write_text("Dear Bob")
    with pytest.raises(NotAStoreError, match="letter"):
        LMDBStore.restore(backups, place, overwrite=True)
    holds(place, 0)


def test_not_into_the_backups_and_not_around_them(backups):
    before = sorted(backups.rglob("*"))
    for place in (backups, backups / "files", backups / "new", backups.parent):
        with pytest.raises(BackupError, match="inside"):
            LMDBStore.restore(backups, place, overwrite=True)
    assert sorted(backups.rglob("*")) == before


def test_an_open_store_is_not_replaced(backups, place):
    with LMDBStore(place, **SMALL) as store:
        store.save("mine", 1)
        with pytest.raises(StoreLockedError, match="this process"):
            LMDBStore.restore(backups, place, overwrite=True)
        assert store.load("mine") == 1
    holds(place, 1)


def test_a_link_to_a_store_stays_one(backups, place, tmp_path):
    LMDBStore(place, **SMALL).close()
    (tmp_path / "link").symlink_to(place)
    LMDBStore.restore(backups, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    holds(place, 16)


def test_two_restores_to_one_place(backups, place):
    class Slow(Disk):
        refused = 0

        def make_directory(self, path):
            super().make_directory(path)
            if path.name == "log":
                with pytest.raises(StoreLockedError, match="restoring"):
                    LMDBStore.restore(backups, place)
                self.refused += 1

    disk = Slow()
    LMDBStore.restore(backups, place, disk=disk)
    assert disk.refused == 1
    holds(place, 16)


# -- when it goes wrong -------------------------------------------------------------------------


class NoExchange(Disk):
    """A file system that cannot swap two names at once."""

    def exchange(self, *names):
        assert len(names) == 2
        return False


def test_a_store_is_replaced_where_names_cannot_be_exchanged(backups, place):
    LMDBStore(place, **SMALL).close()
    LMDBStore.restore(backups, place, overwrite=True, disk=NoExchange())
    holds(place, 16)


def test_a_swap_that_fails_puts_the_old_store_back(backups, place):
    class Failing(NoExchange):
        def rename(self, source, target):
            if ".restoring-" in source.name:
                raise StoreFullError("no space left while renaming")
            super().rename(source, target)

    with LMDBStore(place, **SMALL) as store:
        store.save("mine", 1)
    with pytest.raises(StoreFullError):
        LMDBStore.restore(backups, place, overwrite=True, disk=Failing())
    holds(place, 1)


def test_no_space_for_the_new_store(backups, place):
    class Full(Disk):
        files = 3

        def write(self, fd, parts, offset):
            self.files -= offset == 0
            if self.files < 0:
                raise StoreFullError("no space left while writing")
            super().write(fd, parts, offset)

    with pytest.raises(StoreFullError):
        LMDBStore.restore(backups, place, disk=Full())
    assert list(place.parent.iterdir()) == []
    LMDBStore.restore(backups, place)
    holds(place, 16)


def test_all_is_on_disk_before_it_gets_its_name(backups, place):
    """Every file flushed, then the directories, then the rename, then the parent."""
    with LMDBStore(place, **SMALL) as store:
        store.save("mine", 1)
    calls, opened = [], {}

    class Telling(Disk):
        def open(self, path, **how):
            fd = super().open(path, **how)
            opened[fd] = path.name
            return fd

        def sync(self, fd):
            calls.append(("sync", opened[fd]))
            super().sync(fd)

        def sync_directory(self, path):
            calls.append(("sync", path.name))
            super().sync_directory(path)

        def exchange(self, one, other):
            calls.append(("exchange", other.name))
            return super().exchange(one, other)

        def unlink(self, path):
            calls.append(("unlink", path.name))
            super().unlink(path)

    LMDBStore.restore(backups, place, overwrite=True, disk=Telling())
    swapped = calls.index(("exchange", "store"))
    before = calls[:swapped]
    copied = [("sync", path.name) for path in (place / "log").iterdir()]
    assert set(copied) <= {(verb, name.removesuffix(".tmp")) for verb, name in before}
    for name in ("log", "KVSAGE.tmp", "INDEX.tmp", "index.checkpoint"):
        assert ("sync", name) in before
    assert before.index(("sync", "log")) < before.index(("sync", "KVSAGE.tmp"))
    assert calls[swapped + 1] == ("sync", place.parent.name)
    assert ("unlink", "KVSAGE") in calls[swapped:]
