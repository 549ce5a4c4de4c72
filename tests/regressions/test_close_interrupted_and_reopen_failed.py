"""A close that was interrupted, and a forked child that opened at the second try, lack nothing."""

import os
import threading

import pytest

from kvsage import LMDBStore, StoreUnavailableError

PATIENCE_S = 60


@pytest.mark.parametrize("at", ["drain", "enter"])
def test_a_close_that_was_interrupted_leaves_the_store_with_its_upkeep(tmp_path, monkeypatch, at):
    with LMDBStore(tmp_path / "s", upkeep_interval=3600) as store:
        engine = store._engine

        def interrupted(_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(
                type(engine.upkeep.lock if at == "drain" else engine.gate), at, interrupted
            )
            with pytest.raises(KeyboardInterrupt):
                store.close()
        assert store.save("a", 1)
        assert engine.upkeep.is_running()
        store.compact()
        assert store.verify(deep=True).ok


def test_the_flusher_of_a_child_that_opened_at_the_second_try_lives(tmp_path, monkeypatch):
    with LMDBStore(tmp_path / "s", durability="relaxed", upkeep_interval=3600) as store:
        store.save("a", 1)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                status = in_child(store, monkeypatch)
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        assert status == 0
        assert store.verify(deep=True).ok


def in_child(store, monkeypatch):
    start = threading.Thread.start

    def starts(self):
        if self.name == "kvsage-upkeep":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", starts)
    with pytest.raises(StoreUnavailableError):
        store.load("a")
    monkeypatch.undo()
    assert store.load("a") == 1
    flusher = store._engine.flusher
    assert not flusher._ended
    return 0 if flusher._thread.is_alive() else 2
