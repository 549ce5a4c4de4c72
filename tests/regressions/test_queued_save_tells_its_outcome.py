"""A save in the queue at the gate says what became of it, whoever committed it, and is woken."""

import fcntl
import math
import threading

import pytest

from kvsage import LMDBStore
from kvsage.engine.group import Queued
from kvsage.engine.later import Later, Laters
from kvsage.fs.locks import Waiter

PATIENCE_S = 60


@pytest.fixture
def store(tmp_path):
    with LMDBStore(tmp_path / "s", upkeep_interval=math.inf, lock_timeout=0.05) as store:
        store.save("a", 0)
        yield store
        assert store.verify(deep=True).ok
        assert not store._engine.gate.waiting


@pytest.fixture
def committed_by_another(store, monkeypatch):
    """Whoever gives up at the gate, because of another process, is committed just before that."""
    group = store._engine.committer.group
    withdraw = group._withdraw
    with (store.path / "WRITE").open("rb") as elsewhere:
        fcntl.flock(elsewhere, fcntl.LOCK_EX)

        def in_between(queued):
            if not elsewhere.closed:
                elsewhere.close()
                other = threading.Thread(target=store.save, args=("b", 2))
                other.start()
                other.join(PATIENCE_S)
            withdraw(queued)

        monkeypatch.setattr(group, "_withdraw", in_between)
        yield


@pytest.mark.usefixtures("committed_by_another")
def test_one_that_waited_in_vain_and_was_committed_all_the_same_is_no_error(store):
    group = store._engine.committer.group
    assert group.commit(store._saving("a", 1), full=True)
    assert store.load_many(["a", "b"]) == {"a": 1, "b": 2}


@pytest.mark.usefixtures("committed_by_another")
def test_a_future_is_told_so_as_well(store):
    assert store.later("save", "a", 1).result(PATIENCE_S)
    assert store.load_many(["a", "b"]) == {"a": 1, "b": 2}


@pytest.mark.parametrize("kind", [Queued, Later])
def test_a_leader_interrupted_before_it_woke_one_wakes_it_all_the_same(store, monkeypatch, kind):
    engine = store._engine
    group, gate = engine.committer.group, engine.gate
    args = (Laters(engine, group),) if kind is Later else ()
    queued = kind(store._saving("a", 1), gate.deadline(), *args, full=True)
    wake, interrupted = Waiter.wake, []

    def interrupt(self):
        if self is queued and self.done and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        wake(self)

    monkeypatch.setattr(Waiter, "wake", interrupt)
    try:
        gate.enter()
        gate.waiting.append(queued)
        with pytest.raises(KeyboardInterrupt):
            group._lead()
    finally:
        gate.leave()
    assert queued.took_place
    assert queued.sleep()
    assert store.load("a") == 1
