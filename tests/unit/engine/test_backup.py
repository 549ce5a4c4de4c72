"""Backups: what they share, what they hold while the store is in use, what stays and what goes."""

import errno
import json
import math
import os
import threading
from datetime import timedelta

import pytest

from kvsage import LMDBStore
from kvsage.errors import (
    BackupError,
    ConfigError,
    CorruptionError,
    StoreFullError,
    StoreLockedError,
)
from kvsage.fs import Disk
from kvsage.fs.posix import translated
from tests.support.backups import reseal

SMALL = {"segment_bytes_max": 65536, "content_bytes_min": 1 << 20, "upkeep_interval": math.inf}


@pytest.fixture
def small(new_store):
    """A store of small segments in which nothing happens by itself."""
    return new_store(**SMALL)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "backups of it"


@pytest.fixture
def restored(tmp_path, clock):
    """What a store restored from a backup holds, once it has verified."""

    def restore(backup, **which):
        place = tmp_path / f"restored{len(list(tmp_path.glob('restored*')))}"
        LMDBStore.restore(backup, place, clock=clock, **which)
        with LMDBStore(place, clock=clock, upkeep_interval=math.inf) as store:
            assert store.verify(deep=True).problems == ()
            return dict(store.items())

    return restore


def fill(store, first, last):
    """About 20 kB a value, so that three fill a segment."""
    for number in range(first, last):
        store.save(f"k{number}", os.urandom(20_000))


def pool(target):
    return {path.name: path.stat() for path in (target / "files").iterdir()}


def sealed(target):
    """The pool's log files that the store has too."""
    return {name: status.st_ino for name, status in pool(target).items() if status.st_nlink > 1}


def whole(target, disk=None):
    """Every file belongs to a backup, and all of them check."""
    named = set()
    for path in (target / "backups").iterdir():
        manifest = json.loads(path.read_bytes())["backup"]
        named |= {
            f"{f['segment']:010d}-{f['nonce']}-{f['end']:010d}-{f['checksum']}.{f['kind']}"
            for f in manifest["files"]
        }
        checkpoint = manifest["checkpoint"]
        if checkpoint:
            named.add(f"{checkpoint['seq']:020d}-{checkpoint['checksum']}.checkpoint")
    assert set(pool(target)) == named
    assert LMDBStore.verify_backups(target).problems == ()


def damage(path, offset=-100):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


# -- making and sharing -------------------------------------------------------------------------


def test_a_restored_store_holds_what_was_backed_up(small, target, restored):
    fill(small, 0, 8)
    small.save("expires", 1, ttl=60)
    small.delete("k3")
    expected = dict(small.items())
    report = small.backup(target)
    small.save("later", 1)
    assert restored(target) == expected
    assert report.backup.seq == 10
    assert report.backup.name.startswith("00000001-20231114T221320Z")
    assert report.bytes_checked > 160_000
    whole(target)


def test_an_empty_store(small, target, restored):
    small.backup(target)
    assert restored(target) == {}


def test_a_second_backup_shares_what_is_sealed(small, target, restored):
    fill(small, 0, 10)
    first = small.backup(target)
    before = sealed(target)
    assert first.files_linked == len(before) == 3
    fill(small, 10, 14)
    second = small.backup(target)
    assert sealed(target).items() > before.items()
    assert second.files_shared == 3
    assert second.bytes_checked < 110_000
    assert second.bytes_copied < 100_000
    log = small.path / "log"
    assert set(sealed(target).values()) < {path.stat().st_ino for path in log.iterdir()}
    whole(target)
    assert restored(target) == dict(small.items())
    assert len(restored(target, name=first.backup.name)) == 10


def test_a_store_that_did_not_change_is_backed_up_for_nothing(small, target):
    fill(small, 0, 5)
    small.backup(target)
    before = pool(target)
    report = small.backup(target)
    assert (report.files_copied, report.files_linked) == (0, 0)
    assert report.files_shared == len(before)
    assert pool(target).keys() == before.keys()
    assert len(LMDBStore.backups(target)) == 2


def test_the_checkpoint_is_shared_too(small, target, restored):
    fill(small, 0, 4)
    assert small.backup(target).files_linked == 1
    small.checkpoint()
    assert small.backup(target).files_linked == 1
    fill(small, 4, 8)
    third = small.backup(target)
    assert third.files_shared == 2
    small.checkpoint()
    small.backup(target, keep=1)
    [name] = [name for name in pool(target) if name.endswith(".checkpoint")]
    assert int(name[:20]) == third.backup.seq
    whole(target)
    assert restored(target) == dict(small.items())


def test_a_checkpoint_that_is_damaged_is_left_out(small, target, restored):
    fill(small, 0, 4)
    small.checkpoint()
    path = small.path / "index.checkpoint"
    damage(path, 5000)
    small.backup(target)
    damage(path)  # its trailer
    small.backup(target)
    assert not [name for name in pool(target) if name.endswith(".checkpoint")]
    whole(target)
    assert restored(target) == dict(small.items())


def test_a_checkpoint_of_a_later_moment_is_left_out(small, target, restored, monkeypatch):
    from kvsage.engine import backup  # noqa: PLC0415

    fill(small, 0, 2)
    expected = dict(small.items())
    listed_segments = backup.listed_segments

    def writing(txn):
        small.save("later", 1)
        small.checkpoint()
        return listed_segments(txn)

    monkeypatch.setattr(backup, "listed_segments", writing)
    small.backup(target)
    assert not [name for name in pool(target) if name.endswith(".checkpoint")]
    whole(target)
    assert restored(target) == expected


def test_copies_where_links_are_not_wanted(small, target, restored):
    fill(small, 0, 8)
    small.checkpoint()
    small.backup(target)
    report = small.backup(target, link=False)
    assert sealed(target) == {}
    assert report.files_linked == 0
    again = small.backup(target, link=False)
    assert again.bytes_copied == 0
    whole(target)
    assert len(restored(target)) == 8


class NoLinks(Disk):
    """The target is on another file system."""

    def link(self, source, target):
        with translated(f"linking {source} to {target}"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def test_copies_across_file_systems(new_store, target, restored):
    store = new_store(disk=NoLinks(), **SMALL)
    fill(store, 0, 8)
    assert store.backup(target).files_linked == 0
    fill(store, 8, 10)
    second = store.backup(target)
    assert second.files_shared == 2
    assert second.bytes_checked < 90_000
    whole(target)
    assert restored(target) == dict(store.items())


def test_what_a_backup_tells_of_its_progress(small, target):
    fill(small, 0, 8)
    told = []
    small.backup(target, progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1][0] == told[-1][1]
    assert len(told) == 3


def test_backups_across_compaction(small, target, restored):
    fill(small, 0, 10)
    first = small.backup(target)
    before = dict(small.items())
    for number in range(0, 10, 2):
        small.save(f"k{number}", "small")
    small.delete("k1")
    assert small.compact().files_compacted > 0
    second = small.backup(target)
    assert any(name.endswith(".cpy") for name in pool(target))
    whole(target)
    assert restored(target) == dict(small.items())
    assert restored(target, name=first.backup.name) == before
    fill(small, 20, 24)
    small.compact()
    small.backup(target, keep=1)
    assert second.backup.name not in {backup.name for backup in LMDBStore.backups(target)}
    whole(target)
    assert restored(target) == dict(small.items())


def test_a_compaction_between_the_snapshot_and_the_files(small, target, restored, monkeypatch):
    """The snapshot keeps the files that it knows, whatever is compacted meanwhile."""
    from kvsage.engine import backup  # noqa: PLC0415

    fill(small, 0, 10)
    for number in range(8):
        small.save(f"k{number}", "small")
    expected = dict(small.items())
    small.checkpoint()
    listed_segments = backup.listed_segments

    def compacting(txn):
        assert small.compact().files_waiting > 0
        fill(small, 30, 35)
        return listed_segments(txn)

    monkeypatch.setattr(backup, "listed_segments", compacting)
    small.backup(target)
    monkeypatch.undo()
    whole(target)
    assert restored(target) == expected


def test_a_backup_while_writers_go_on(new_store, target, restored):
    """Each writer counts up in two keys at once: no backup sees one without the other."""
    store = new_store(segment_bytes_max=65536, upkeep_interval=0.01)
    ended = threading.Event()

    def write(me):
        number = 0
        while not ended.is_set():
            number += 1
            with store.transaction() as tx:
                tx.save(f"one{me}", [number, "x" * 3000])
                tx.save(f"two{me}", [number, "y" * 3000])

    writers = [threading.Thread(target=write, args=(me,)) for me in range(2)]
    for writer in writers:
        writer.start()
    try:
        names = [store.backup(target).backup.name for _ in range(6)]
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    whole(target)
    seen = []
    for name in names:
        found = restored(target, name=name)
        for me in range(2):
            assert found.get(f"one{me}", [0])[0] == found.get(f"two{me}", [0])[0]
        seen.append(sum(value[0] for value in found.values()))
    assert seen == sorted(seen)


def test_a_handle_for_reading_can_back_up(new_store, target, tmp_path, clock):
    new_store().save("k", 1)
    new_store(readonly=True).backup(target)
    assert [backup.seq for backup in LMDBStore.backups(target)] == [1]


# -- damage -------------------------------------------------------------------------------------


def test_a_damaged_log_is_not_backed_up(small, target):
    fill(small, 0, 2)
    good = small.backup(target)
    fill(small, 2, 8)
    damage(small.path / "log" / "0000000002.seg", 5000)
    with pytest.raises(CorruptionError) as caught:
        small.backup(target)
    assert caught.value.segment == 2
    whole(target)
    assert [backup.name for backup in LMDBStore.backups(target)] == [good.backup.name]


def test_an_index_that_leaves_a_file_out_is_not_believed(small, target, monkeypatch):
    from kvsage.engine import backup  # noqa: PLC0415

    fill(small, 0, 8)
    listed_segments = backup.listed_segments
    monkeypatch.setattr(backup, "listed_segments", lambda txn: list(listed_segments(txn))[1:])
    with pytest.raises(CorruptionError, match="list of its files") as caught:
        small.backup(target)
    assert caught.value.segment == 1
    whole(target)


def test_a_damaged_file_of_the_pool_is_taken_anew_on_request(small, target):
    fill(small, 0, 8)
    small.backup(target, link=False)
    bad = next(path for path in (target / "files").iterdir() if path.name.startswith("0000000001"))
    damage(bad)
    small.backup(target)  # shares it unread
    assert LMDBStore.verify_backups(target).problems != ()
    report = small.backup(target, verify=True)
    assert report.bytes_checked > 150_000
    whole(target)


def test_a_file_that_vanished_from_the_pool_is_taken_anew(small, target, restored):
    fill(small, 0, 8)
    small.backup(target)
    for path in (target / "files").iterdir():
        path.unlink()
    small.backup(target)
    whole(target)
    assert restored(target) == dict(small.items())


def test_verify_names_what_is_damaged(small, target):
    fill(small, 0, 8)
    small.checkpoint()
    names = [small.backup(target).backup.name for _ in range(2)]
    assert LMDBStore.verify_backups(target).backups == tuple(names)
    files = sorted((target / "files").iterdir())
    for path in files:
        path.write_bytes(path.read_bytes())  # a file of its own
    log = [path for path in files if path.suffix == ".seg"]
    damage(log[0], 3000)
    log[1].unlink()
    damage(next(path for path in files if path.suffix == ".checkpoint"), 3000)
    found = LMDBStore.verify_backups(target).problems
    assert len(found) == 3
    assert {problem.segment for problem in found} == {None, 1}
    assert all(names[0] in str(problem) and names[1] in str(problem) for problem in found)


def test_files_that_make_no_log_are_found(small, target):
    fill(small, 0, 8)
    path = target / "backups" / (small.backup(target).backup.name + ".json")
    reseal(path, lambda fields: fields["files"].pop(0))
    [problem] = LMDBStore.verify_backups(target).problems
    assert problem.segment == 1


def test_a_damaged_manifest_is_listed_and_keeps_the_pool(small, target, restored):
    fill(small, 0, 4)
    first = small.backup(target)
    expected = dict(small.items())
    fill(small, 4, 8)
    second = small.backup(target)
    damage(target / "backups" / f"{second.backup.name}.json", 60)
    shown = LMDBStore.backups(target)
    assert [backup.number for backup in shown] == [1, 2]
    assert shown[0].damage is None
    assert "checksum" in shown[1].damage
    assert restored(target) == expected
    with pytest.raises(BackupError, match="checksum"):
        restored(target, name=second.backup.name)
    before = pool(target)
    third = small.backup(target, keep=1)
    assert third.backup.number == 3
    assert pool(target).keys() >= before.keys()
    assert [backup.number for backup in LMDBStore.backups(target)] == [2, 3]
    (target / "backups" / f"{second.backup.name}.json").unlink()
    small.backup(target)
    assert first.removed == ()
    whole(target)


# -- where ------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "log", "new/directory"])
def test_not_inside_the_store(small, inside):
    before = sorted(small.path.rglob("*"))
    with pytest.raises(BackupError, match="inside"):
        small.backup(small.path / inside)
    assert sorted(small.path.rglob("*")) == before


def test_not_through_a_link_into_the_store(small, tmp_path):
    (tmp_path / "elsewhere").symlink_to(small.path)
    with pytest.raises(BackupError, match="inside"):
        small.backup(tmp_path / "elsewhere" / "backups")


def test_not_into_a_foreign_directory(small, target, tmp_path):
    target.mkdir()
    (target / "letter.txt").write_text("Dear Bob")
    with pytest.raises(BackupError, match="letter"):
        small.backup(target)
    assert [path.name for path in target.iterdir()] == ["letter.txt"]
    with pytest.raises(BackupError, match="not a directory"):
        small.backup(target / "letter.txt")
    with pytest.raises(BackupError):
        small.backup(tmp_path)  # in which the store lies


def test_not_among_the_backups_of_another_store(small, new_store, target):
    small.backup(target)
    before = pool(target).keys()
    with pytest.raises(BackupError, match="another store"):
        new_store("other").backup(target)
    assert pool(target).keys() == before


def test_a_restored_store_goes_on_in_the_same_directory(small, target, tmp_path, clock, restored):
    fill(small, 0, 4)
    small.backup(target)
    fill(small, 4, 8)
    theirs = dict(small.items())
    place = tmp_path / "again"
    LMDBStore.restore(target, place, clock=clock)
    with LMDBStore(place, clock=clock, **SMALL) as again:
        fill(again, 10, 14)
        ours = dict(again.items())
        mine = again.backup(target)
    other = small.backup(target)
    whole(target)
    assert restored(target, name=mine.backup.name) == ours
    assert restored(target, name=other.backup.name) == theirs


def test_where_there_are_no_backups(tmp_path):
    for look in (LMDBStore.backups, LMDBStore.verify_backups):
        with pytest.raises(BackupError, match="no backups"):
            look(tmp_path / "nowhere")
    with pytest.raises(BackupError, match="no backups"):
        LMDBStore.prune_backups(tmp_path, keep=1)
    assert list(tmp_path.iterdir()) == []


# -- one at a time ------------------------------------------------------------------------------


def test_two_backups_into_one_directory(small, target):
    fill(small, 0, 2)
    refused = []

    def meanwhile(_done, _total):
        for verb in (
            lambda: small.backup(target),
            lambda: LMDBStore.prune_backups(target, keep=1),
            lambda: LMDBStore.verify_backups(target),
            lambda: LMDBStore.restore(target, target.with_name("r")),
        ):
            with pytest.raises(StoreLockedError) as caught:
                verb()
            refused.append(str(caught.value))
        assert LMDBStore.backups(target) == ()

    small.backup(target, progress=meanwhile)
    assert len(refused) == 4
    assert len(LMDBStore.backups(target)) == 1


def test_what_fails_leaves_nothing(small, target):
    fill(small, 0, 4)
    first = small.backup(target)
    fill(small, 4, 8)

    def fail(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.backup(target, progress=fail)
    whole(target)
    assert [backup.name for backup in LMDBStore.backups(target)] == [first.backup.name]


class FullTarget(Disk):
    """No space in the pool, once it is full."""

    full = False

    def __init__(self):
        self.pool = set()

    def open(self, path, **how):
        fd = super().open(path, **how)
        (self.pool.add if path.parent.name == "files" else self.pool.discard)(fd)
        return fd

    def write(self, fd, parts, offset):
        if self.full and fd in self.pool:
            raise StoreFullError("no space left while writing")
        super().write(fd, parts, offset)


def test_a_target_that_is_full(new_store, target, restored):
    disk = FullTarget()
    store = new_store(disk=disk, **SMALL)
    fill(store, 0, 4)
    before = dict(store.items())
    store.backup(target)
    fill(store, 4, 8)
    disk.full = True
    with pytest.raises(StoreFullError):
        store.backup(target)
    whole(target)
    assert restored(target) == before
    disk.full = False
    store.backup(target)
    assert restored(target) == dict(store.items())


# -- retention ----------------------------------------------------------------------------------


def ages(target, clock):
    return [round(clock.now - b.created_at.timestamp()) for b in LMDBStore.backups(target)]


@pytest.fixture
def aged(small, target, clock):
    """Backups of 40, 30, 20, 10 and 0 seconds ago."""
    for number in range(5):
        small.save("k", number)
        small.backup(target)
        clock.now += 10
    clock.now -= 10
    return target


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ({"keep": 2}, [10, 0]),
        ({"keep": 9}, [40, 30, 20, 10, 0]),
        ({"keep_for": 25}, [20, 10, 0]),
        ({"keep_for": timedelta(0)}, [0]),
        ({"keep": 2, "keep_for": 35}, [30, 20, 10, 0]),
        ({"keep": 4, "keep_for": 15.5}, [30, 20, 10, 0]),
    ],
)
def test_retention(aged, clock, rule, left):
    removed = LMDBStore.prune_backups(aged, clock=clock, **rule)
    assert ages(aged, clock) == left
    assert len(removed) == 5 - len(left)
    whole(aged)


def test_retention_with_a_backup(aged, small, clock):
    report = small.backup(aged, keep=2)
    assert ages(aged, clock) == [0, 0]
    assert len(report.removed) == 4
    assert report.backup.number == 6
    whole(aged)


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"keep": 0},
        {"keep": True},
        {"keep": 1.5},
        {"keep_for": -1},
        {"keep_for": "1d"},
        {"keep_for": math.nan},
        {"keep_for": math.inf},
    ],
)
def test_rules_that_cannot_be_meant(aged, clock, rule):
    with pytest.raises(ConfigError):
        LMDBStore.prune_backups(aged, **rule)
    assert len(ages(aged, clock)) == 5


def test_a_clock_that_went_back_does_not_change_the_order(small, target, clock, restored):
    for number in range(3):
        small.save("k", number)
        small.backup(target)
        clock.now -= 1000
    assert [backup.number for backup in LMDBStore.backups(target)] == [1, 2, 3]
    assert restored(target) == {"k": 2}


# -- the order of things ------------------------------------------------------------------------


def test_all_is_on_disk_before_the_manifest_has_its_name(new_store, recording_disk, target):
    store = new_store(disk=recording_disk, **SMALL)
    fill(store, 0, 8)
    store.checkpoint()
    recording_disk.calls.clear()
    name = store.backup(target).backup.name
    calls = recording_disk.calls
    named = [call for call in calls if call[0] == "rename" and call[2] in pool(target)]
    assert len(named) == len(pool(target)) == 4
    for rename in named:
        assert calls.index(("sync", rename[1])) < calls.index(rename)
    manifest = calls.index(("rename", f"{name}.json.tmp", f"{name}.json"))
    pooled = max(at for at, call in enumerate(calls) if call == ("sync_directory", "files"))
    assert max(map(calls.index, named)) < pooled < manifest
    assert calls.index(("sync", f"{name}.json.tmp")) < manifest
    assert calls[manifest + 1] == ("sync_directory", "backups")
    identity = calls.index(("rename", "KVSAGE-BACKUPS.tmp", "KVSAGE-BACKUPS"))
    assert ("sync_directory", target.parent.name) in calls
    assert ("sync_directory", target.name) in calls[identity:manifest]
