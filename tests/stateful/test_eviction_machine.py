"""A bounded store against a dictionary, by a state machine.

What eviction takes is its own affair, but: it takes nothing while the log is under the bound, it
brings the log under it, it never takes a key that was read or written since the pass before, and
what it took stays away, whatever becomes of the index. All other keys are what the model says.

Some of the values are lists that were edited, so that most of their chunks stay when one key goes.
"""

import math
import random
import shutil
import tempfile
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvsage import LMDBStore
from kvsage.serialization import pack
from tests.support.chunks import chunks_of, conversation, edited
from tests.support.clock import FakeClock
from tests.support.model import Held, there

BYTES_MAX = 1 << 20
READ_BYTES_MAX = BYTES_MAX // 4  # with so much that was read there is enough else to evict

keys = st.integers(0, 60).map("key/{}".format)
sizes = st.sampled_from([10, 1000, 20_000, 60_000])


def size_of(value):
    return len(value if isinstance(value, bytes) else pack(value))


class EvictionMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="kvsage-machine-"))
        self.path = self.place / "store"
        self.clock = FakeClock()
        self.numbers = count(1)
        self.model = {}
        self.read = set()  # since the last pass
        self.store = self.open()

    def open(self):
        return LMDBStore(
            self.path,
            clock=self.clock,
            durability="relaxed",
            bytes_max=BYTES_MAX,
            upkeep_interval=math.inf,
        )

    def value(self, size):
        return random.Random(next(self.numbers)).randbytes(size)

    @rule(first=st.integers(0, 60), number=st.integers(1, 12), size=sizes, ttl=st.booleans())
    def save_some(self, first, number, size, ttl):
        ttl = 30 if ttl else None
        for key in (f"key/{(first + step) % 61}" for step in range(number)):
            value = self.value(size)
            self.store.save(key, value, ttl)
            expires_at = None if ttl is None else self.clock() + ttl
            self.model[key] = Held(value, expires_at, next(self.numbers))

    @rule(number=st.integers(1, 40), size=sizes)
    def save_together(self, number, size):
        pairs = {f"key/{step}": self.value(size) for step in range(number)}
        self.store.save_many(pairs)
        for key, value in pairs.items():
            self.model[key] = Held(value, None, next(self.numbers))

    @rule(
        source=keys, first=st.integers(0, 60), number=st.integers(1, 6), steps=st.integers(1, 150)
    )
    def save_edits(self, source, first, number, steps):
        chance = random.Random(next(self.numbers))
        held = there(self.model, self.clock()).get(source)
        value = held.value if held is not None else None
        if not isinstance(value, list) or len(value) > 300:
            value = conversation(chance, steps)
        for key in (f"key/{(first + step) % 61}" for step in range(number)):
            value = edited(value, chance)
            self.store.save(key, value)
            self.model[key] = Held(value, None, next(self.numbers))

    @rule(key=keys, steps=st.integers(1, 20))
    def extend(self, key, steps):
        held = there(self.model, self.clock()).get(key, Held([], None, 0))
        if isinstance(held.value, list):
            items = conversation(random.Random(next(self.numbers)), steps)
            assert self.store.extend(key, items) == len(held.value) + steps
            value = [*held.value, *items]
            self.model[key] = Held(value, held.expires_at, next(self.numbers))

    @rule(key=keys)
    def load(self, key):
        held = there(self.model, self.clock()).get(key)
        assert self.store.load(key) == (None if held is None else held.value)
        if held is not None:
            self.read.add(key)

    @rule(key=keys)
    def delete(self, key):
        assert self.store.delete(key) is (key in there(self.model, self.clock()))
        self.model.pop(key, None)

    @rule(seconds=st.sampled_from([1, 20]))
    def move_clock(self, seconds):
        self.clock.advance(seconds)

    @rule(how=st.sampled_from(["sweep", "compact"]))
    def make_room(self, how):
        log_bytes = sum(file.bytes for file in self.store.stats().segments)
        evicted_before = self.store.stats().process.evicted
        getattr(self.store, how)()
        stats = self.store.stats()
        evicted = stats.process.evicted - evicted_before
        assert stats.log_bytes <= BYTES_MAX
        left = there(self.model, self.clock())
        gone = left.keys() - set(self.store.keys())
        assert len(gone) == evicted
        if log_bytes < BYTES_MAX * 0.88:  # well below where a pass begins
            assert not gone
        else:
            read_bytes = sum(size_of(left[key].value) for key in self.read & left.keys())
            assert read_bytes > READ_BYTES_MAX or not gone & self.read
            self.read.clear()
        self.model = {key: held for key, held in left.items() if key not in gone}

    @rule(lost=st.sampled_from([(), ("index",), ("index", "READS")]))
    def open_again(self, lost):
        self.store.close()
        if "index" in lost:
            shutil.rmtree(self.path / "index")
        if "READS" in lost:
            (self.path / "READS").unlink()
            self.read.clear()
        self.store = self.open()

    @rule(go_on=st.booleans())
    def crash(self, go_on):
        image = self.place / f"image-{next(self.numbers)}"
        image.mkdir()
        shutil.copy(self.path / "KVSAGE", image)
        shutil.copytree(self.path / "log", image / "log")
        if go_on:
            self.store.close()
            shutil.rmtree(self.path)
            self.path = image
            self.store = self.open()
            self.read.clear()
            return
        with LMDBStore(image, clock=self.clock, upkeep_interval=math.inf) as store:
            self.check(store)
            assert store.verify(deep=True).ok
        shutil.rmtree(image)

    def check(self, store):
        found = dict(store.items())
        assert found == {key: held.value for key, held in there(self.model, self.clock()).items()}

    @invariant()
    def contents_are_equal(self):
        self.check(self.store)

    def teardown(self):
        try:
            report = self.store.verify(deep=True)
            assert report.ok, report.problems
            chunks_of(self.store)
        finally:
            self.store.close()
            shutil.rmtree(self.place)


EvictionMachine.TestCase.settings = settings(
    stateful_step_count=30, max_examples=settings().max_examples // 2
)
TestEvictionMachine = pytest.mark.timeout(900 + 3 * settings().max_examples)(
    EvictionMachine.TestCase
)
