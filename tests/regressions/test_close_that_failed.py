"""A store that could not be closed goes on, its upkeep too."""

import threading
from contextlib import contextmanager

import pytest

from kvsage import LMDBStore, StoreLockedError
from kvsage.engine.upkeep import Upkeep

PATIENCE_S = 60


@contextmanager
def transaction_elsewhere(store):
    """Another thread has a transaction open."""
    begun, over = threading.Event(), threading.Event()

    def writes():
        with store.transaction() as tx:
            tx.save("a", 1)
            begun.set()
            assert over.wait(PATIENCE_S)

    thread = threading.Thread(target=writes)
    thread.start()
    try:
        assert begun.wait(PATIENCE_S)
        yield
    finally:
        over.set()
        thread.join(PATIENCE_S)


def test_the_background_thread_goes_on_looking(tmp_path, monkeypatch):
    looked = threading.Event()
    monkeypatch.setattr(Upkeep, "look", lambda *_: looked.set())
    with LMDBStore(tmp_path / "s", upkeep_interval=3600, lock_timeout=0.05) as store:
        with transaction_elsewhere(store), pytest.raises(StoreLockedError):
            store.close()
        assert store.load("a") == 1
        assert store._engine.upkeep.is_running()
        looked.clear()
        store._engine.upkeep.wake()
        assert looked.wait(PATIENCE_S)
        store.compact()
        assert store.verify(deep=True).ok


def test_another_handle_finds_it_at_work(tmp_path):
    with LMDBStore(tmp_path / "s", upkeep_interval=3600, lock_timeout=0.05) as store:
        with transaction_elsewhere(store), pytest.raises(StoreLockedError):
            store.close()
        with LMDBStore(tmp_path / "s", clock=store._engine.clock, disk=store._engine.disk):
            upkeep = store._engine.upkeep
            assert upkeep._thread is not None
            assert upkeep._thread.is_alive()
            assert not upkeep._ended
