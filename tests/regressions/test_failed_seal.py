"""A flush that fails while a segment is sealed, or a dead writer's batch adopted, poisons too."""

import os

import pytest

from kvsage import LMDBStore, PoisonedError, StoreUnavailableError
from kvsage.fs import Disk


class FailsOnce(Disk):
    """The n-th flush fails, and as Linux does it, what it should have flushed counts as clean."""

    def __init__(self):
        self.fail = set()

    def sync(self, fd):
        if "sync" in self.fail:
            self.fail.discard("sync")
            raise StoreUnavailableError("flushing: Input/output error")
        super().sync(fd)

    def sync_data(self, fd):
        if "sync_data" in self.fail:
            self.fail.discard("sync_data")
            raise StoreUnavailableError("flushing the log: Input/output error")
        super().sync_data(fd)


def fill(store):
    for _ in range(100):
        store.save("k", os.urandom(3000))


def test_a_failed_flush_at_the_sealing_of_a_segment_poisons(tmp_path):
    disk = FailsOnce()
    store = LMDBStore(
        tmp_path / "s",
        disk=disk,
        durability="relaxed",
        segment_bytes_max=64 << 10,
        sync_interval=3600,
    )
    store.save("a", b"x" * 60)
    disk.fail.add("sync")
    with pytest.raises(StoreUnavailableError):
        fill(store)
    with pytest.raises(PoisonedError):
        store.save("later", 1)
    store.close()


def test_a_failed_flush_of_a_dead_writers_batch_poisons(tmp_path):
    disk = FailsOnce()
    store = LMDBStore(tmp_path / "s", disk=disk)
    store.save("a", 1)
    pid = os.fork()
    if not pid:
        try:
            store.load("a")
            store._engine.disk = type("Dies", (Disk,), {"sync_data": lambda *_: os._exit(0)})()
            store.save("dead", 1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    disk.fail.add("sync_data")
    with pytest.raises(StoreUnavailableError):
        store.save("b", 2)
    with pytest.raises(PoisonedError):
        store.save("c", 3)
    store.close()
