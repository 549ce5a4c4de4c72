"""A store that was removed under an open handle is not taken for the one made in its place."""

import shutil

from kvsage import KvsageError, LMDBStore
from kvsage.engine import sharing


def test_a_store_made_where_one_was_removed_keeps_what_it_acknowledges(tmp_path, monkeypatch):
    path = tmp_path / "s"
    monkeypatch.setattr(sharing, "identity", lambda _: (1, 1))  # file systems use inodes again
    first = LMDBStore(path)
    first.save("old", 1)
    shutil.rmtree(path)
    path.mkdir()
    try:
        second = LMDBStore(path)
    except KvsageError:
        return
    second.save("new", 2)
    assert (path / "KVSAGE").exists()
    assert second.load("old") is None
    second.close()
    first.close()
