"""What docs/guarantees.md says of a failed flush and of a full disk."""

import os

import pytest

from kvsage import LMDBStore, PoisonedError, StoreFullError, StoreUnavailableError
from kvsage.fs import Disk
from kvsage.log.format import CHECKSUM_BYTES, HEADER, TIMELINE

FIRST_HEADER_BYTES = HEADER.size + TIMELINE.size + CHECKSUM_BYTES
NEVER_S = 3600  # no flush but those that the test asks for


class FailingDisk(Disk):
    """Flushes, or makes room, only while it is told that all is well."""

    flushes = True
    has_room = True

    def sync_data(self, fd):
        if not self.flushes:
            raise StoreUnavailableError("flushing the log: input/output error")
        super().sync_data(fd)

    def zero(self, fd, offset, length):
        if not self.has_room:
            raise StoreFullError("no space left")
        super().zero(fd, offset, length)


@pytest.fixture
def disk():
    return FailingDisk()


def reopened(path):
    with LMDBStore(path) as store:
        assert store.verify(deep=True).problems == ()
        assert store.save("written since", 4)
        return dict(store.items())


def test_a_full_commit_whose_flush_fails_is_void_and_those_before_are_kept(tmp_path, disk):
    path = tmp_path / "store"
    with LMDBStore(path, disk=disk) as store:
        store.save("before", 1)
        disk.flushes = False
        with pytest.raises(StoreUnavailableError):
            store.save("failed", 2)
        disk.flushes = True
        for write in (store.save, store.add):
            with pytest.raises(PoisonedError):
                write("later", 3)
        assert dict(store.items()) == {"before": 1}, "reading goes on"
    assert reopened(path) == {"before": 1, "written since": 4}


def test_another_handle_is_refused_to_write_too(tmp_path, disk):
    with (
        LMDBStore(tmp_path / "store", disk=disk) as store,
        LMDBStore(tmp_path / "store", disk=disk) as other,
    ):
        disk.flushes = False
        with pytest.raises(StoreUnavailableError):
            store.save("failed", 1)
        disk.flushes = True
        with pytest.raises(PoisonedError):
            other.save("later", 2)


def test_relaxed_commits_whose_flush_failed_are_written_anew(tmp_path, disk):
    path = tmp_path / "store"
    with LMDBStore(path, disk=disk, durability="relaxed", sync_interval=NEVER_S) as store:
        store.save("flushed", 1)
        store.sync()
        flushed = FIRST_HEADER_BYTES + store.stats().segments[0].bytes
        store.save("waiting", 2)
        store.save("waiting too", "x" * 100_000)
        disk.flushes = False
        with pytest.raises(StoreUnavailableError):
            store.sync()
        disk.flushes = True
        with pytest.raises(PoisonedError):
            store.save("later", 3)
    kept = {"flushed": 1, "waiting": 2, "waiting too": "x" * 100_000, "written since": 4}
    assert reopened(path) == kept
    # What the first segment holds of them may never have reached the disk. Nothing needs it.
    first = path / "log" / "0000000001.seg"
    if first.exists():
        os.truncate(first, flushed)
    (path / "INDEX").unlink()
    assert reopened(path) == kept


def test_a_full_disk_keeps_nothing_of_the_verb_and_all_of_the_rest(tmp_path, disk):
    path = tmp_path / "store"
    with LMDBStore(path, disk=disk, content_bytes_min=1 << 20) as store:
        store.save("before", 1)
        disk.has_room = False
        with pytest.raises(StoreFullError):
            store.save("too much", bytes(600_000))
        with pytest.raises(StoreFullError):
            store.save_many({"before": 3, "too much": bytes(600_000)})
        assert dict(store.items()) == {"before": 1}
        disk.has_room = True
        assert store.save("after", 2), "it writes again when there is space"
    assert reopened(path) == {"before": 1, "after": 2, "written since": 4}
