"""Ctrl-C at every line of a save that meets others: it is done whole or not at all, they all are.

The main thread, where a signal is raised, leads the batch in one test and follows in the other.
Python runs a signal's handler only between two steps of that thread, so a trace that raises at
each line stands for all of them.
"""

import math
import os
import threading
import time
from itertools import count

import pytest

from kvsage import LMDBStore
from tests.crash.test_interrupts import Interrupt, free

PATIENCE_S = 60
OTHERS = 3


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


class Meeting:
    """Holds the gate until the others, and the main thread unless it is gone, stand in the queue.

    ``first`` says who comes first, and so leads: the main thread, or the others.
    """

    def __init__(self, store, number, first):
        self.store = store
        self.gate = store._engine.gate
        self.number = number
        self.first = first
        self.results = []
        self.holds = threading.Event()
        self.others_wait = threading.Event()
        self.main_is_over = threading.Event()
        self.others = []
        self.holder = threading.Thread(target=self._hold, daemon=True)
        self.holder.start()
        assert self.holds.wait(PATIENCE_S)

    def _hold(self):
        self.gate.enter()
        self.holds.set()
        if self.first == "main":
            self._wait_for_main(1)
        for number in range(OTHERS):
            before = len(self.gate.waiting)
            other = threading.Thread(target=self._save, args=(number,), daemon=True)
            other.start()
            self.others.append(other)
            until(lambda before=before: len(self.gate.waiting) > before or self._main_left(before))
        self.others_wait.set()
        if self.first == "others":
            self._wait_for_main(OTHERS + 1)
        self.gate.leave()

    def _wait_for_main(self, length):
        until(lambda: len(self.gate.waiting) >= length or self.main_is_over.is_set())

    def _main_left(self, before):
        return self.main_is_over.is_set() and len(self.gate.waiting) >= before

    def _save(self, number):
        self.results.append(self.store.add(f"other:{self.number}:{number}", number))

    def end(self):
        self.holder.join(PATIENCE_S)  # it starts the others
        for thread in (self.holder, *self.others):
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), thread


@pytest.mark.parametrize("first", ["main", "others"])
def test_at_every_line(path, first):
    with LMDBStore(path, sync_interval=3600, upkeep_interval=math.inf) as store:
        store.save("main", 0)
        before = 0
        for number in count(1):
            meeting = Meeting(store, number, first)
            if first == "others":
                assert meeting.others_wait.wait(PATIENCE_S)
            interrupt = Interrupt(number)
            ended = interrupt.run(lambda: store.save("main", number))  # noqa: B023
            meeting.main_is_over.set()
            meeting.end()
            assert meeting.results == [True] * OTHERS, interrupt.where
            assert store.count(f"other:{number}:") == OTHERS, interrupt.where
            found = store.load("main")
            assert found in {before, number}, interrupt.where
            before = found
            assert not store._engine.gate.waiting, interrupt.where
            assert free(path), interrupt.where
            assert store.save("after", number)
            if ended or number % 25 == 0:
                assert store.verify(deep=True).problems == (), interrupt.where
            if ended:
                assert found == number
                assert number > 50
                break
