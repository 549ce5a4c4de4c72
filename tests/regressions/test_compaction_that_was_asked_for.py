"""Compacting beside a close, an interrupt, a transaction, and behind a compactor that died."""

import math
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvsage import LMDBStore, StoreClosedError, TransactionStateError
from kvsage.engine import compaction
from kvsage.engine.pace import UNPACED
from kvsage.fs import Disk
from kvsage.index.segments import JOINING, all_segments

PATIENCE_S = 60
LARGE = b"\xee" * 3000


class Counted(Disk):
    """Knows which of its descriptors are open."""

    def __init__(self):
        self.fds = {}

    def open(self, path, **how):
        fd = super().open(path, **how)
        self.fds[fd] = path.name
        return fd

    def close(self, fd):
        super().close(fd)
        del self.fds[fd]


class Lock:
    """The lock between threads, with something to do when it is taken."""

    def __init__(self, lock, before=lambda: None, after=lambda: None):
        self.lock, self.before, self.after = lock, before, after

    def acquire(self, *args, **how):
        self.before()
        try:
            return self.lock.acquire(*args, **how)
        finally:
            self.after()

    def release(self):
        self.lock.release()


@pytest.fixture
def open_store(tmp_path):
    def open_(name="s", **options):
        chosen = {
            "durability": "relaxed",
            "sync_interval": 3600,
            "upkeep_interval": math.inf,
            "segment_bytes_max": 65536,
            "lock_timeout": PATIENCE_S,
        }
        return LMDBStore(tmp_path / name, **chosen | options)

    yield open_
    with open_() as store:
        assert store.verify(deep=True).ok


def fill(store):
    for turn in range(3):
        for key in range(20):
            if turn == 0 or key % 2:
                store.save(f"k{key:02}", [turn, LARGE])


def test_a_close_waits_for_a_thread_that_compacts(open_store, monkeypatch):
    disk = Counted()
    store = open_store(disk=disk)
    fill(store)
    upkeep = store._engine.upkeep
    at_work, go, seen = threading.Event(), threading.Event(), threading.Event()
    write_copy = compaction._write_copy

    def stops(*args):
        at_work.set()
        assert go.wait(PATIENCE_S)
        return write_copy(*args)

    def closes():
        store.close()
        seen.set()

    monkeypatch.setattr(compaction, "_write_copy", stops)
    with ThreadPoolExecutor() as threads:
        compacting = threads.submit(store.compact)
        try:
            assert at_work.wait(PATIENCE_S)
            upkeep.lock._thread = Lock(upkeep.lock._thread, before=seen.set)
            closing = threads.submit(closes)
            assert seen.wait(PATIENCE_S)  # it waits, or is through
            closed_meanwhile = store._engine.closed
        finally:
            go.set()
        closing.result(PATIENCE_S)
        error = compacting.exception(PATIENCE_S)
    assert not closed_meanwhile
    assert error is None or isinstance(error, StoreClosedError)
    assert not disk.fds


def test_nothing_stays_open_where_the_lock_was_closed_under_its_holder(open_store):
    disk = Counted()
    with open_store(disk=disk) as store:
        lock = store._engine.upkeep.lock
        with lock.waiting():
            lock.close()
        assert "COMPACT" not in disk.fds.values()


@pytest.mark.parametrize("verb", ["compact", "checkpoint", "look"])
def test_an_interrupt_behind_taking_the_lock_leaves_it_free(open_store, verb):
    with open_store(lock_timeout=0.05) as store:
        fill(store)
        upkeep = store._engine.upkeep

        def call():
            upkeep.look(UNPACED) if verb == "look" else getattr(store, verb)()

        def interrupt():
            raise KeyboardInterrupt

        lock = upkeep.lock._thread
        upkeep.lock._thread = Lock(lock, after=interrupt)
        with pytest.raises(KeyboardInterrupt):
            call()
        upkeep.lock._thread = lock
        with ThreadPoolExecutor() as threads:
            assert threads.submit(store.compact).result(PATIENCE_S).files_compacted
        call()


@pytest.mark.parametrize("verb", ["compact", "checkpoint"])
def test_inside_a_transaction_it_is_refused_before_it_waits(open_store, verb):
    with open_store(lock_timeout=0.05) as store:
        held, over = threading.Event(), threading.Event()

        def holds():
            with store._engine.upkeep.lock.waiting():
                held.set()
                assert over.wait(PATIENCE_S)

        with ThreadPoolExecutor() as threads:
            holding = threads.submit(holds)
            try:
                assert held.wait(PATIENCE_S)
                with store.transaction(), pytest.raises(TransactionStateError):
                    getattr(store, verb)()
            finally:
                over.set()
            holding.result(PATIENCE_S)


def joining(store):
    with store._engine.index.reading() as txn:
        return [segment for segment, row in all_segments(txn) if row.state == JOINING]


def test_a_checkpoint_first_finishes_what_a_compactor_left(open_store, tmp_path, monkeypatch):
    with open_store() as store:
        fill(store)

        def dies(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(compaction, "_retire", dies)
            with pytest.raises(KeyboardInterrupt):
                store.compact()
        assert joining(store)
        store.checkpoint()
        assert not joining(store)
        shutil.copytree(store.path, tmp_path / "copy")
    with open_store("copy") as copy:
        assert (copy.path / "index.checkpoint").exists()  # one that is of no use is removed
        assert copy.verify(deep=True).ok
