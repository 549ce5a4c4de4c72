"""A handle that nobody holds any more is closed whichever thread the collector runs on."""

import gc
import threading

from kvsage import LMDBStore
from kvsage.fs import Disk


class Collects(Disk):
    """Lets the garbage collector come just when the flusher flushes, as it may at any time."""

    def __init__(self):
        self.ran = threading.Event()
        self.armed = False

    def sync_data(self, fd):
        super().sync_data(fd)
        if self.armed and threading.current_thread().name == "kvsage-flusher":
            self.armed = False
            gc.collect()
            self.ran.set()


def test_a_handle_collected_on_the_flushers_thread_closes_the_store(tmp_path):
    disk = Collects()
    gc.disable()
    try:
        store = LMDBStore(tmp_path / "s", durability="relaxed", sync_interval=0.01, disk=disk)
        store.save("a", 1)
        cycle = [store]
        cycle.append(cycle)
        store.save("b", 2)
        disk.armed = True
        store.save("c", 3)
        del store, cycle
        assert disk.ran.wait(10)
    finally:
        gc.enable()
    with LMDBStore(tmp_path / "s", disk=disk, lock_timeout=5) as again:
        assert again.load("c") == 3
