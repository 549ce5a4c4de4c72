"""A small log whose KVSAGE is gone is never overwritten."""

import pytest

from kvsage import CorruptionError, LMDBStore


def test_a_small_log_without_its_identity_is_left_as_it_is(tmp_path):
    path = tmp_path / "s"
    with LMDBStore(path) as store:
        store.save("a", "kept")
    (path / "KVSAGE").unlink()
    (path / "INDEX").unlink()
    with pytest.raises(CorruptionError):
        LMDBStore(path).close()
    LMDBStore.repair(path)
    with LMDBStore(path) as store:
        assert store.load("a") == "kept"
