"""After a failed flush what was flushed before is written anew whole, or reported as damage."""

import pytest

from kvsage import CorruptionError, LMDBStore, StoreUnavailableError
from kvsage.fs import Disk


class Failing(Disk):
    broken = False

    def sync_data(self, fd):
        if self.broken:
            raise StoreUnavailableError("flushing the log: Input/output error")
        super().sync_data(fd)


def test_healing_does_not_cut_acknowledged_commits_behind_a_damaged_one(tmp_path):
    disk = Failing()
    path = tmp_path / "s"
    store = LMDBStore(path, disk=disk)
    store.save("key", "old")
    store.save("damaged", "X" * 100)
    store.save("key", "new")
    store.save("other", "acknowledged")
    disk.broken = True
    with pytest.raises(StoreUnavailableError):
        store.save("last", "never acknowledged")
    store.close()
    file = path / "log" / "0000000001.seg"
    data = file.read_bytes()
    at = data.index(b"X" * 100)
    with file.open("r+b") as log:
        log.seek(at)
        log.write(b"Y")
    try:
        healed = LMDBStore(path)
    except CorruptionError:
        return
    with healed:
        assert (healed.load("key"), healed.load("other")) == ("new", "acknowledged")
