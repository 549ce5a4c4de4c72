"""Ctrl-C at each step of a compaction, a checkpoint or a sweep: the next run finishes the work."""

from itertools import count

import pytest

from kvsage import LMDBStore
from kvsage.fs import Disk
from tests.crash.test_compaction_full_disk import WORKS, churn
from tests.support.clock import FakeClock
from tests.support.small import OPTIONS, make_small, nothing_left, quick_directory

STEPS = ("write", "sync", "sync_data", "truncate", "rename", "unlink", "sync_directory")


class InterruptingDisk(Disk):
    """Raises KeyboardInterrupt at the n-th step, before it or when it is done."""

    def __init__(self):
        self.left, self.after = 0, False
        for name in STEPS:
            setattr(self, name, self._interrupted(getattr(self, name)))

    def _interrupted(self, real):
        def step(*arguments):
            self.left -= 1
            if self.left == 0 and not self.after:
                raise KeyboardInterrupt
            result = real(*arguments)
            if self.left == 0:
                raise KeyboardInterrupt
            return result

        return step


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("work", WORKS)
def test_each_step(tmp_path, monkeypatch, work, after):
    make_small(monkeypatch)
    clock, disk = FakeClock(), InterruptingDisk()
    disk.after = after
    with (
        quick_directory(tmp_path) as directory,
        LMDBStore(directory / "store", clock=clock, disk=disk, **OPTIONS) as store,
    ):
        for number in count(1):
            expected = churn(store, number)
            clock.advance(10)
            interrupted = False
            disk.left = number
            try:
                WORKS[work](store)
            except KeyboardInterrupt:
                interrupted = True
            came_through, disk.left = disk.left > 0, 0
            assert interrupted != came_through
            assert dict(store.items()) == expected
            assert store.verify(deep=True).problems == ()
            assert store.compact().files_waiting == 0
            nothing_left(store)
            assert dict(store.items()) == expected
            assert store.verify(deep=True).problems == ()
            if came_through:
                break
        assert number > 1
