"""A segment that a dead writer began is entered only once its name is on disk."""

import pytest

from kvsage import LMDBStore, StoreUnavailableError


def fill(store):
    for number in range(100):
        store.save(f"fill{number}", b"b" * 2000)


def test_a_commit_in_a_segment_whose_name_was_not_flushed_survives_a_power_cut(
    tmp_path, power_disk, reboot
):
    path = tmp_path / "s"
    store = LMDBStore(path, disk=power_disk, segment_bytes_max=64 << 10)
    store.save("a", b"a" * 2000)
    real = power_disk.sync_directory

    def fails(directory):
        # A writer killed between the new segment's rename and this flush leaves the same behind.
        if directory.name == "log":
            raise StoreUnavailableError("flushing: Input/output error")
        real(directory)

    power_disk.sync_directory = fails
    with pytest.raises(StoreUnavailableError):
        fill(store)
    del power_disk.sync_directory
    assert (path / "log" / "0000000002.seg").exists()
    try:
        store.save("acknowledged", 1)
    except StoreUnavailableError:
        return  # refusing is safe too
    left = power_disk.cut_power(path, tmp_path / "left")
    store.close()
    reboot()
    with LMDBStore(left) as again:
        assert again.load("acknowledged") == 1
