"""A store's path is on disk from the first directory that was made for it."""

from pathlib import Path

from kvsage import LMDBStore
from kvsage.fs import Disk


class Lists(Disk):
    def __init__(self):
        self.flushed = []

    def sync_directory(self, path):
        super().sync_directory(path)
        self.flushed.append(Path(path))


def test_every_directory_that_gained_a_name_is_flushed(tmp_path):
    disk = Lists()
    path = tmp_path / "a" / "b" / "s"
    with LMDBStore(path, disk=disk) as store:
        store.save("acknowledged", 1)
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(disk.flushed)
