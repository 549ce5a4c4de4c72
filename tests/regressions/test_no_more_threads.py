"""A system without threads to spare is told as kvsage's own error, and nothing stays open."""

import math
import threading

import pytest

from kvsage import LMDBStore, StoreUnavailableError
from kvsage.fs import Disk

PATIENCE_S = 60


class Counted(Disk):
    """Knows which of its descriptors are open."""

    def __init__(self):
        self.fds = set()

    def open(self, path, **how):
        fd = super().open(path, **how)
        self.fds.add(fd)
        return fd

    def close(self, fd):
        super().close(fd)
        self.fds.discard(fd)


@pytest.fixture
def no_thread(monkeypatch):
    """From here on no thread of that name can be started."""

    def refuse(name):
        start = threading.Thread.start

        def starts(self):
            if self.name == name:
                raise RuntimeError("can't start new thread")
            start(self)

        monkeypatch.setattr(threading.Thread, "start", starts)

    return refuse


def names():
    return {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("name", ["kvsage-flusher", "kvsage-upkeep"])
def test_an_open_that_fails_so_leaves_nothing_open(tmp_path, monkeypatch, no_thread, name):
    disk = Counted()
    LMDBStore(tmp_path / "s").close()
    no_thread(name)
    with pytest.raises(StoreUnavailableError, match="can't start new thread"):
        LMDBStore(tmp_path / "s", disk=disk, upkeep_interval=3600)
    assert not disk.fds
    assert not [one for one in names() if one.startswith("kvsage-")]
    monkeypatch.undo()
    with LMDBStore(tmp_path / "s", disk=disk, upkeep_interval=3600) as store:
        store.save("a", 1)
        assert store.verify(deep=True).ok


def test_a_write_for_later_is_refused_and_the_store_goes_on(tmp_path, monkeypatch, no_thread):
    with LMDBStore(tmp_path / "s", upkeep_interval=math.inf) as store:
        no_thread("kvsage-committer")
        with pytest.raises(StoreUnavailableError, match="can't start new thread"):
            store.later("save", "a", 1)
        assert store.save("b", 2)
        assert not store.exists("a")
        monkeypatch.undo()
        assert store.later("save", "c", 3).result(PATIENCE_S)
        assert store.verify(deep=True).ok


def test_a_store_whose_write_for_later_was_refused_closes(tmp_path, no_thread):
    store = LMDBStore(tmp_path / "s", upkeep_interval=math.inf)
    no_thread("kvsage-committer")
    with pytest.raises(StoreUnavailableError):
        store.later("save", "a", 1)
    store.close()
    with LMDBStore(tmp_path / "s", upkeep_interval=math.inf) as again:
        assert again.count() == 0
        assert again.verify(deep=True).ok
