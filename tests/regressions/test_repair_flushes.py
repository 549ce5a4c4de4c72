"""Repair lists a file as whole only once it is on disk."""

import os
import shutil

from kvsage import LMDBStore
from kvsage.clock import SYSTEM
from kvsage.engine import repair


def test_what_repair_lists_is_on_disk(tmp_path, power_disk, reboot):
    path = tmp_path / "s"
    store = LMDBStore(path, durability="relaxed", sync_interval=3600, disk=power_disk)
    store.save("a", 1)
    store.sync()
    for number in range(20):
        store.save(f"unflushed{number}", os.urandom(3000))
    killed = tmp_path / "killed"
    # What a kill leaves: all that was written can be read, and only some of it is on disk.
    killed.mkdir()
    for name in ("KVSAGE", "INDEX", "log"):
        (path / name).rename(killed / name)
    power_disk.listed = {
        killed / directory.relative_to(path): names
        for directory, names in power_disk.listed.items()
        if directory.is_relative_to(path)
    }
    repair.repair(killed, power_disk, SYSTEM, dry_run=False)
    left = power_disk.cut_power(killed, tmp_path / "left")
    reboot()
    with LMDBStore(left) as again:
        assert again.load("a") == 1
        assert again.verify(deep=True).ok
    for name in ("KVSAGE", "INDEX", "log"):
        shutil.move(killed / name, path / name)
    store.close()
