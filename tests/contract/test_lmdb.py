"""The whole contract, by ``LMDBStore``, and what it alone has.

Without flushing, only what writes or opens is run again: how values are checked, written as bytes
and found again has nothing to do with when a disk is asked to keep them.
"""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import kvsage
from kvsage import ConfigError, LMDBStore
from kvsage.fs import Disk
from tests.contract.bad_input import BadInput
from tests.contract.content import Contents
from tests.contract.expiry import Expiry
from tests.contract.keys_and_values import KeysAndValues
from tests.contract.lifecycle import Lifecycle
from tests.contract.lists import Lists
from tests.contract.scans import Scans
from tests.contract.verbs import Verbs
from tests.contract.versions import Versions
from tests.contract.views import Snapshots, Transactions, on_another_thread

LARGE = "a value of some length, " * 1000


class LMDBContract(Verbs, Expiry, Versions, Transactions, Snapshots, Lifecycle, Contents):
    durability = "full"

    def open_store(self, place, clock, **options):
        return LMDBStore(place, **{"clock": clock, "durability": self.durability, **options})

    def check(self, store):
        report = store.verify(deep=True)
        assert report.ok, report.problems

    def writes(self, store):
        return store.stats().commits

    def test_it_can_do_everything_but_judge_time_elsewhere(self, store):
        can = store.capabilities
        assert can.transactions
        assert can.snapshots
        assert can.sorted_scans
        assert can.versions
        assert can.serializable
        assert can.content
        assert can.persistent
        assert not can.server_expiry

    def test_what_was_saved_lies_in_the_directory(self, store, place):
        store.save("k", 1)
        assert (place / "KVSAGE").is_file()
        assert (place / "log").is_dir()


class TestFull(LMDBContract, Lists, KeysAndValues, Scans, BadInput):
    pass


class TestRelaxed(LMDBContract):
    durability = "relaxed"


class TestOnePath:
    """One engine for each path and process, whatever the path is called."""

    def test_a_path_has_many_names(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "link").symlink_to("store")
        with LMDBStore(tmp_path / "store") as first:
            names = ["store", "./store", "link", "~/store", str(tmp_path / "link" / ".." / "store")]
            handles = [LMDBStore(name) for name in names]
            for number, handle in enumerate(handles):
                handle.save("k", number)
                assert first.load("k") == number
            for handle in handles:
                handle.close()
            assert first.save("k", "still open")
        with LMDBStore("link") as again:
            assert again.load("k") == "still open"

    def test_parents_are_made(self, tmp_path):
        with LMDBStore(tmp_path / "a" / "b" / "store") as store:
            assert store.save("k", 1)

    def test_durability_belongs_to_the_handle(self, tmp_path):
        synced = []

        class Watched(Disk):
            def sync_data(self, fd):
                synced.append(fd)
                super().sync_data(fd)

        disk = Watched()
        with (
            LMDBStore(tmp_path / "s", disk=disk, sync_interval=3600) as full,
            LMDBStore(tmp_path / "s", disk=disk, durability="relaxed") as relaxed,
        ):
            full.save("k", 1)
            before = len(synced)
            relaxed.save("k", 2)
            assert len(synced) == before
            full.save("k", 3)
            assert len(synced) == before + 1
            relaxed.save("k", 4)
            relaxed.sync()
            assert len(synced) == before + 2

    def test_another_clock_is_refused_and_the_first_handle_lives_on(self, tmp_path):
        with LMDBStore(tmp_path / "s", clock=lambda: 1e9) as store:
            with pytest.raises(ConfigError, match="clock"):
                LMDBStore(tmp_path / "s", clock=lambda: 2e9)
            assert store.save("k", 1)
        with LMDBStore(tmp_path / "s", clock=lambda: 2e9) as store:
            assert store.load("k") == 1

    def test_threads_that_open_and_close_share_one_engine(self, tmp_path):
        def work(number):
            for turn in range(10):
                with LMDBStore(tmp_path / "s") as store:
                    store.save(f"k{number}", turn)
                    store.increment("n")

        threads = [
            threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        with LMDBStore(tmp_path / "s") as store:
            assert dict(store.items("k")) == {f"k{number}": 9 for number in range(4)}
            assert store.load("n") == 40
            assert store.verify(deep=True).ok

    def test_stores_side_by_side_do_not_mix(self, tmp_path):
        with LMDBStore(tmp_path / "a") as a, LMDBStore(tmp_path / "b") as b:
            a.save("k", "a")
            b.save("k", "b")
            with a.transaction() as tx:
                tx.save("k", "a2")
                assert b.save("k", "b2")  # another store's transaction is in nobody's way
            assert (a.load("k"), b.load("k")) == ("a2", "b2")


class Held(Disk):
    """A disk whose next flush, once armed, waits until it is let go."""

    def __init__(self):
        self.armed = threading.Event()
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def sync_data(self, fd):
        if self.armed.is_set():
            self.armed.clear()
            self.reached.set()
            assert self.let_go.wait(60)
        super().sync_data(fd)


OPEN_UNTIL_TOLD = """
import sys
from kvsage import LMDBStore
with LMDBStore(sys.argv[1]):
    print("open", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another_process(path):
    """One that has the store open as long as the block lasts."""
    root = Path(kvsage.__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", OPEN_UNTIL_TOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as child:
        try:
            assert child.stdout.readline() == b"open\n"
            yield
            child.stdin.close()
            assert child.wait(60) == 0
        finally:
            child.kill()


# With another process there, a close does not take the index's own write lock either.
@pytest.mark.parametrize("others", [contextlib.nullcontext, another_process])
def test_a_close_waits_for_the_commit_that_is_on_its_way(tmp_path, others):
    disk = Held()
    store = LMDBStore(tmp_path / "s", disk=disk, sync_interval=3600)
    store.save("k", "before")
    with others(tmp_path / "s"):
        disk.armed.set()
        outcome = []

        def save():
            outcome.append(on_another_thread(lambda: store.save("k", "after")))

        writer = threading.Thread(target=save, daemon=True)
        writer.start()
        assert disk.reached.wait(60)
        closer = threading.Thread(target=store.close, daemon=True)
        closer.start()
        # Nothing tells that the close would by now have pulled the commit's files away, did it not
        # wait; so it gets a moment.
        closer.join(0.5)
        disk.let_go.set()
        writer.join(60)
        closer.join(60)
        assert outcome == [True]
        assert not closer.is_alive()
    with LMDBStore(tmp_path / "s") as again:
        assert again.load("k") == "after"
        assert again.save("k", "last")
        assert again.verify(deep=True).ok
