"""What strays into the index's directory does not keep the store from being opened."""

import pytest

from kvsage import LMDBStore


@pytest.mark.parametrize("directory", ["index", "index.new"])
def test_a_stray_file_beside_the_index_does_not_stop_a_rebuild(tmp_path, directory):
    path = tmp_path / "s"
    with LMDBStore(path) as store:
        store.save("a", 1)
    (path / directory).mkdir(exist_ok=True)
    (path / directory / ".nfs0001").write_bytes(b"")
    (path / "INDEX").unlink()
    with LMDBStore(path) as store:
        assert store.load("a") == 1


def test_an_index_that_is_a_link_to_another_disk_is_rebuilt(tmp_path):
    path = tmp_path / "s"
    with LMDBStore(path) as store:
        store.save("a", 1)
    (path / "index").rename(tmp_path / "elsewhere")
    (path / "index").symlink_to(tmp_path / "elsewhere")
    (path / "INDEX").unlink()
    with LMDBStore(path) as store:
        assert store.load("a") == 1
