"""kill -9 at each step of a backup and of a restore, and targets that get full.

An earlier backup stays good, the next run removes what a death left; a restore leaves the old store
or the new one.
"""

import contextlib
import math
import os
import shutil
import signal
from itertools import count

import pytest

from kvsage import LMDBStore, StoreFullError
from kvsage.fs import Disk
from tests.support.small_disk import fill, small_tmpfs

SMALL = {"segment_bytes_max": 65536, "content_bytes_min": 1 << 20, "upkeep_interval": math.inf}
WHEN = pytest.mark.parametrize("when", ["before", "after"])
STEPS = (
    "write",
    "sync",
    "sync_data",
    "truncate",
    "rename",
    "exchange",
    "link",
    "unlink",
    "remove_directory",
    "make_directory",
    "sync_directory",
)


class DeadlyDisk(Disk):
    """Kills its process before the n-th step, or when it is done (a write: half done)."""

    def __init__(self, number, when):
        self.left = number
        self.when = when
        self.armed = False

    def step(self, do):
        self.left -= self.armed
        if self.left:
            return do()
        try:
            if self.when == "after":
                do()
        finally:  # some steps fail in the course of things: a file that is not there yet
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, fd, parts, offset):
        dying = self.armed and self.left == 1
        data = b"".join(parts)
        some = [data[: (len(data) + 1) // 2]] if dying else parts
        self.step(lambda: super(DeadlyDisk, self).write(fd, some, offset))


class WithoutExchange(DeadlyDisk):
    """On a file system that cannot swap names, and deadly from there on."""

    def exchange(self, *names):
        assert len(names) == 2
        self.armed = True
        return False


def deadly(name):
    def step(self, *arguments):
        return self.step(lambda: getattr(Disk, name)(self, *arguments))

    return step


for _name in STEPS:
    if _name != "write":
        setattr(DeadlyDisk, _name, deadly(_name))


def each_step(fork, when, work, kind=DeadlyDisk):
    """Run ``work`` with a disk that kills at step 1, 2, 3 ... until it lives to its end."""
    for number in count(1):
        code, said = fork(lambda _: work(kind(number, when)))  # noqa: B023
        yield number, said
        if code == 0:
            assert number > 10
            return


@pytest.fixture
def target(tmp_path):
    return tmp_path / "backups"


@pytest.fixture
def restored(tmp_path, checked):
    """What the newest backup, or another one, holds."""

    def restore(target, **which):
        place = tmp_path / "restored"
        LMDBStore.restore(target, place, **which)
        found = checked(place)
        shutil.rmtree(place)
        return found

    return restore


def filled(path):
    """A store of three segments."""
    with LMDBStore(path, **SMALL) as store:
        for number in range(7):
            store.save(f"k{number}", os.urandom(20_000))
        store.checkpoint()
        return dict(store.items())


def tidy(target):
    """Nothing is there but what backups need, and all of it checks."""
    backups = LMDBStore.backups(target)
    assert all(backup.damage is None for backup in backups)
    assert LMDBStore.verify_backups(target).problems == ()
    needed = set()
    for backup in backups:
        needed |= named(target, backup)
    assert {path.name for path in (target / "files").iterdir()} == needed
    assert not list(target.rglob("*.tmp"))


def named(target, backup):
    from kvsage.engine.manifest import decode_manifest  # noqa: PLC0415

    data = (target / "backups" / f"{backup.name}.json").read_bytes()
    return set(decode_manifest(data).pool_names)


@WHEN
def test_at_each_step_of_the_first_backup(path, target, fork, restored, when):
    expected = filled(path)

    def work(disk):
        store = LMDBStore(path, disk=disk, **SMALL)
        disk.armed = True
        store.backup(target)
        os._exit(0)

    for number, _ in each_step(fork, when, work):
        there = []
        with contextlib.suppress(Exception):
            there = LMDBStore.backups(target)
        if there:
            assert restored(target) == expected
        if number % 3 == 0:  # now and then the next run finds what several deaths left
            with LMDBStore(path, **SMALL) as store:
                store.backup(target)
            tidy(target)
            shutil.rmtree(target)
    with LMDBStore(path, **SMALL) as store:
        store.backup(target)
    tidy(target)
    assert restored(target) == expected


@WHEN
def test_at_each_step_of_a_later_backup(path, target, fork, restored, when):
    before = filled(path)
    with LMDBStore(path, **SMALL) as store:
        first = store.backup(target).backup.name
        for number in range(7, 12):
            store.save(f"k{number}", os.urandom(20_000))
        after = dict(store.items())

    def work(disk):
        store = LMDBStore(path, disk=disk, **SMALL)
        disk.armed = True
        store.backup(target)
        os._exit(0)

    for number, _ in each_step(fork, when, work):
        assert LMDBStore.verify_backups(target).problems == ()
        names = [backup.name for backup in LMDBStore.backups(target)]
        assert names[0] == first
        assert restored(target) == (before if len(names) == 1 else after)
        if number % 4 == 0:
            with LMDBStore(path, **SMALL) as store:
                store.backup(target)
            tidy(target)
            for backup in LMDBStore.backups(target)[1:]:
                (target / "backups" / f"{backup.name}.json").unlink()
    with LMDBStore(path, **SMALL) as store:
        assert store.verify(deep=True).problems == ()


@WHEN
def test_at_each_step_of_retention(path, target, fork, restored, when):
    filled(path)
    with LMDBStore(path, **SMALL) as store:
        for number in range(3):
            store.save("n", number)
            store.save(f"noise{number}", os.urandom(50_000))
            store.backup(target)

    def work(disk):
        store = LMDBStore(path, disk=disk, **SMALL)
        disk.armed = True
        store.backup(target, keep=1)
        os._exit(0)

    for _ in each_step(fork, when, work):
        assert LMDBStore.verify_backups(target).problems == ()
        assert restored(target)["n"] == 2
    LMDBStore.prune_backups(target, keep=1)
    tidy(target)


@WHEN
def test_at_each_step_of_a_restore(path, target, fork, checked, when):
    expected = filled(path)
    with LMDBStore(path, **SMALL) as store:
        store.backup(target)
    place = path.parent / "place" / "store"

    def work(disk):
        disk.armed = True
        LMDBStore.restore(target, place, disk=disk)

    for _ in each_step(fork, when, work):
        if place.exists():
            assert checked(place) == expected
            shutil.rmtree(place)
    LMDBStore.restore(target, place)
    assert [path.name for path in place.parent.iterdir()] == ["store"]
    assert checked(place) == expected


@WHEN
@pytest.mark.parametrize("kind", [DeadlyDisk, WithoutExchange])
def test_at_each_step_of_replacing_a_store(path, fork, checked, when, kind):
    target = path.parent / "backups"
    new = filled(path)
    with LMDBStore(path, **SMALL) as store:
        store.backup(target)
    place = path.parent / "place" / "store"
    old = {"old": 1}

    def work(disk):
        disk.armed = kind is DeadlyDisk
        LMDBStore.restore(target, place, overwrite=True, disk=disk)

    with LMDBStore(place, **SMALL) as store:
        store.save("old", 1)
    absent = seen_old = 0
    for _ in each_step(fork, when, work, kind):
        if not place.exists():
            # Only where names cannot be exchanged; and the next restore puts the old one back.
            absent += 1
            assert kind is WithoutExchange
            continue
        found = checked(place)
        seen_old += found == old
        assert found in (old, new)
        if found == new:
            assert sum(path.name == "store" for path in place.parent.iterdir()) == 1
    if kind is DeadlyDisk:
        assert seen_old > 10
    else:
        assert 1 <= absent <= 2
    assert checked(place) == new
    LMDBStore.restore(target, place, overwrite=True)
    assert [path.name for path in place.parent.iterdir()] == ["store"]


def test_an_old_store_set_aside_is_put_back(path, target, fork, checked):
    """Even by a restore that is refused then, because nobody said that it may go."""
    filled(path)
    with LMDBStore(path, **SMALL) as store:
        store.backup(target)
    place = path.parent / "place" / "store"
    with LMDBStore(place, **SMALL) as store:
        store.save("old", 1)

    class Deadly(WithoutExchange):
        def rename(self, source, renamed):
            Disk.rename(self, source, renamed)
            if ".replaced-" in renamed.name:
                os.kill(os.getpid(), signal.SIGKILL)

    code, _ = fork(
        lambda _: LMDBStore.restore(target, place, overwrite=True, disk=Deadly(1, "before"))
    )
    assert code == -signal.SIGKILL
    assert not place.exists()
    with pytest.raises(Exception, match="already"):
        LMDBStore.restore(target, place)
    assert checked(place) == {"old": 1}
    assert [path.name for path in place.parent.iterdir()] == ["store"]


# -- a target that gets full ---------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    with small_tmpfs(tmp_path, 8) as point:
        yield point


@pytest.mark.root
def test_a_backup_to_a_disk_that_gets_full(path, small_disk, restored):
    target = small_disk / "backups"
    before = filled(path)
    with LMDBStore(path, **SMALL) as store:
        store.backup(target)
        for number in range(7, 20):
            store.save(f"k{number}", os.urandom(20_000))
        after = dict(store.items())
        full = 0
        for space in range(0, 400_000, 40_000):
            ballast = fill(small_disk, space)
            try:
                store.backup(target)
            except StoreFullError:
                full += 1
                ballast.unlink()
                tidy(target)
                assert len(LMDBStore.backups(target)) == 1
            else:
                ballast.unlink()
                break
        assert full > 3
    assert restored(target) == after
    first = LMDBStore.backups(target)[0].name
    assert restored(target, name=first) == before


@pytest.mark.root
def test_a_restore_to_a_disk_that_is_full(path, target, small_disk, fork, checked):
    place = small_disk / "store"
    expected = filled(path)
    with LMDBStore(path, **SMALL) as store:
        store.backup(target)
    with LMDBStore(place, **SMALL) as store:
        store.save("old", 1)

    def work(say):
        try:
            LMDBStore.restore(target, place, overwrite=True)
        except StoreFullError:
            say("full")
        else:
            say("restored")

    for space in (0, 100_000, 250_000, 500_000, 1_500_000):
        ballast = fill(small_disk, space)
        _, said = fork(work)
        ballast.unlink()
        assert sorted(path.name for path in small_disk.iterdir()) == ["store"]
        assert checked(place) == ({"old": 1} if said == ["full"] else expected)
    assert said == ["restored"]
