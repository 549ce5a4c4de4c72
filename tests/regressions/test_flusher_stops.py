"""The flusher goes on after a fault that was not the flush's, and serves every handle."""

import threading

from kvsage import LMDBStore, StoreLockedError
from kvsage.fs import Disk


def flusher():
    return next((t for t in threading.enumerate() if t.name == "kvsage-flusher"), None)


class Told(Disk):
    def __init__(self):
        self.flushed = threading.Event()

    def sync_data(self, fd):
        super().sync_data(fd)
        self.flushed.set()


def test_a_full_table_of_readers_does_not_end_the_flushing(tmp_path):
    disk = Told()
    with LMDBStore(tmp_path / "s", durability="relaxed", sync_interval=0.005, disk=disk) as store:
        views = []
        while True:
            try:
                views.append(store.snapshot())
            except StoreLockedError:
                break
        thread = flusher()
        thread.join(0.3)  # it must not end
        for view in views:
            view.close()
        disk.flushed.clear()
        store.save("a", 1)
        assert disk.flushed.wait(5)


def test_a_relaxed_handle_is_flushed_in_its_own_interval(tmp_path):
    disk = Told()
    with (
        LMDBStore(tmp_path / "s", sync_interval=3600, disk=disk) as first,
        LMDBStore(
            tmp_path / "s",
            sync_interval=0.01,
            durability="relaxed",
            disk=disk,
            clock=first._engine.clock,
        ) as second,
    ):
        disk.flushed.clear()
        second.save("a", 1)
        assert disk.flushed.wait(5)
