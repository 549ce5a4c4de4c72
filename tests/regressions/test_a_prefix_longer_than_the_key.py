"""A feed's prefix is compared with the key alone, not with the value that stands behind it."""

from kvsage import LMDBStore


def test_a_value_does_not_lengthen_its_key(tmp_path):
    with LMDBStore(tmp_path / "s") as store:
        store.save("k", b"\0\0")
        store.save("k\0", 1)
        assert [change.key for change in store.changes(prefix="k\0")] == ["k\0"]
