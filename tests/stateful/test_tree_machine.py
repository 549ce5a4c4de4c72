"""Large values against a dictionary, by a state machine: trees, and what shares them.

Keys hold values that were edited, extended and wrapped into one another, by two handles, each with
its own memory of how values were cut; the store is compacted, closed, and its index built anew.
Whatever happened, every key has the tree that its value has in a store that knows nothing else, and
every content as many references as there are.
"""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvsage import LMDBStore
from kvsage.engine import cutting
from tests.support.clock import FakeClock
from tests.support.small import OPTIONS, make_small, quick_directory
from tests.support.trees import (
    EDITS,
    VALUES,
    check_counts,
    contents_in,
    edited,
    lists,
    plain_tree,
    tree_of,
)

keys = st.sampled_from(["a", "b", "c", "d"])
handles = st.integers(0, 1)


class TreeMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        make_small(self.patches)
        self.patches.setattr(cutting, "PIECE_UNIT_LEAST", 64)
        self.otherwise = Path(tempfile.mkdtemp(prefix="kvsage-machine-"))
        self.directory = quick_directory(self.otherwise)
        self.place = self.directory.__enter__()
        self.path = self.place / "store"
        self.clock = FakeClock()
        self.model = {}  # by key: the value, and when it expires
        self.views = []
        self.open()

    def open(self):
        options = {**OPTIONS, "segment_bytes_max": 20_000, "clock": self.clock}
        self.handles = [LMDBStore(self.path, **options) for _ in range(2)]

    @property
    def there(self):
        return {
            key: value
            for key, (value, expires_at) in self.model.items()
            if expires_at is None or expires_at > self.clock()
        }

    def put(self, key, value, expires_at=None):
        self.model[key] = (value, expires_at)

    def check(self, key, value):
        assert self.handles[0].load(key) == value
        assert tree_of(self.handles[0], key) == plain_tree(value)

    @rule(key=keys, handle=handles, value=VALUES, ttl=st.sampled_from([None, None, 50]))
    def save(self, key, handle, value, ttl):
        self.handles[handle].save(key, value, ttl)
        self.put(key, value, None if ttl is None else self.clock() + ttl)
        self.check(key, value)

    @precondition(lambda self: self.there)
    @rule(key=keys, other=keys, handle=handles, edits=st.lists(EDITS, min_size=1, max_size=3))
    def edit(self, key, other, handle, edits):
        """A key that is there, edited; saved under it or another."""
        value = self.there.get(key, next(iter(self.there.values())))
        for edit in edits:
            value = edited(value, edit)
            self.handles[handle].save(other, value)
        self.put(other, value)
        self.check(other, value)

    @rule(key=keys, handle=handles, items=lists(max_size=2))
    def extend(self, key, handle, items):
        value = self.there.get(key, [])
        if isinstance(value, list):
            value = value + items
            assert self.handles[handle].extend(key, items) == len(value)
            self.put(key, value, self.model[key][1] if key in self.there else None)
            self.check(key, value)

    @precondition(lambda self: len(self.there) > 1)
    @rule(key=keys, handle=handles)
    def wrap(self, key, handle):
        """All values within one."""
        value = [self.there, list(self.there.values()), *self.there.values()][:4]
        if len(str(value)) < 100_000:
            self.handles[handle].save(key, value)
            self.put(key, value)
            self.check(key, value)

    @rule(key=keys, start=st.integers(-50, 50), stop=st.integers(-50, 50) | st.none())
    def look_at_a_part(self, key, start, stop):
        value = self.there.get(key, [])
        if isinstance(value, list):
            assert self.handles[0].load_range(key, start, stop) == value[start:stop]

    @rule(key=keys, handle=handles, value=VALUES, items=lists(max_size=1), keeps=st.booleans())
    def transact(self, key, handle, value, items, keeps):
        with self.handles[handle].transaction() as tx:
            tx.save(key, value)
            tx.save("a", [value])
            tx.extend("a", items)
            tx.delete("b")
            assert tx.load("a") == [value, *items]
            if not keeps:
                tx.rollback()
        if keeps:
            self.put(key, value)
            self.put("a", [value, *items])
            self.model.pop("b", None)

    @rule(key=keys, handle=handles)
    def delete(self, key, handle):
        assert self.handles[handle].delete(key) == (key in self.there)
        self.model.pop(key, None)

    @rule()
    def let_time_pass(self):
        self.clock.advance(30)
        self.handles[0].sweep()

    @precondition(lambda self: len(self.views) < 2)
    @rule()
    def take_snapshot(self):
        self.views.append((self.handles[0].snapshot(), self.there))

    @precondition(lambda self: self.views)
    @rule()
    def drop_snapshot(self):
        view, there = self.views.pop(0)
        assert dict(view.items()) == there
        view.close()

    @rule()
    def compact(self):
        self.handles[0].compact()

    @rule(rebuilt=st.booleans())
    def reopen(self, rebuilt):
        while self.views:
            self.drop_snapshot()
        for handle in self.handles:
            handle.close()
        if rebuilt:
            shutil.rmtree(self.path / "index")
            (self.path / "index.checkpoint").unlink(missing_ok=True)
        self.open()

    @rule()
    def forget_what_was_read(self):
        self.handles[0]._engine.raw_cache.clear()

    @invariant()
    def no_content_is_there_for_nothing(self):
        if self.model.keys() <= self.there.keys():  # else a sweep is due
            expected = set()
            for value in self.there.values():
                expected |= plain_tree(value)[1]
            assert contents_in(self.handles[0]).keys() == expected

    def teardown(self):
        try:
            while self.views:
                self.drop_snapshot()
            assert dict(self.handles[0].items()) == self.there
            for key, value in self.there.items():
                self.check(key, value)
            check_counts(self.handles[0])
            for handle in self.handles:
                handle.close()
        finally:
            self.directory.__exit__(None, None, None)
            shutil.rmtree(self.otherwise)
            self.patches.undo()


TestTrees = TreeMachine.TestCase
TestTrees.settings = settings(
    max_examples=max(5, settings.default.max_examples // 3), stateful_step_count=20
)
