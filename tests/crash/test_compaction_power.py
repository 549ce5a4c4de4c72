"""Power cuts while a store is written, swept, compacted and copied: nothing acknowledged is lost.

Each history is drawn from a seed: commits of both durabilities, sweeps, compactions with writes in
between their steps, checkpoints, clean closes; then a cut, at the end or in the middle of any
operation on the disk, and all over again on what it left. The index never survives. What is there
after a cut equals the store after one of its commits, no earlier than the last that was on disk,
read with the help of the checkpoint and without it.

``KVSAGE_POWER_CUTS`` says how many histories, ``KVSAGE_POWER_SEED`` where their seeds begin.
"""

import contextlib
import os
import random
import shutil
from itertools import count
from pathlib import Path

import pytest
from xxhash import xxh3_128_hexdigest

from kvsage import KvsageError, LMDBStore
from kvsage.engine import compaction, rebuild
from kvsage.engine.pace import UNPACED, Pace
from kvsage.index.keydir import CONTENT_ROOT
from kvsage.index.segments import get_meta, listed_segments
from kvsage.log.format import CONTENT_KEY
from tests.support.clock import FakeClock
from tests.support.power import PowerCut, PowerDisk, Unhurried, put
from tests.support.small import OPTIONS, TEXTS, make_small, nothing_left

PARTS = 8
HISTORIES = int(
    os.environ.get("KVSAGE_POWER_CUTS")
    or (20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 160)
)
FIRST_SEED = int(os.environ.get("KVSAGE_POWER_SEED") or 1)
KEYS = "abcdef"
CHECKPOINT = Path("index.checkpoint")


@pytest.fixture(autouse=True)
def everything_is_small(monkeypatch):
    make_small(monkeypatch)
    real = rebuild._build

    def build(*arguments, from_checkpoint, **named):
        # A recovery that cannot use it reads the log instead; here each of them is sound.
        assert from_checkpoint, "the checkpoint was of no use"
        return real(*arguments, from_checkpoint=from_checkpoint, **named)

    monkeypatch.setattr(rebuild, "_build", build)


class Interrupting(Pace):
    """Lets others do something between two steps of the work."""

    def __init__(self, between):
        super().__init__()
        self._between = between

    def breathe(self):
        self._between()


class History:
    """One store through several power cuts, and what it must hold."""

    def __init__(self, root, seed):
        self.root = root
        self.chance = random.Random(seed)
        self.clock = FakeClock()
        self.lives = self.images = 0
        self.path = root / "0"
        self.numbers = count()
        self.states = [{}]  # after each commit: value and expiry by key, and content by address
        self.durable = 0  # which of them was on disk for sure
        self.doing = None  # what the commit under way would make of it
        LMDBStore(self.path, **self.options(Unhurried())).close()

    def options(self, disk, durability="full"):
        limit = self.chance.choice((900, 1500, 3000))
        chosen = {"durability": durability, "segment_bytes_max": limit}
        return OPTIONS | chosen | {"disk": disk, "clock": self.clock}

    def run(self):
        for _ in range(self.chance.randrange(1, 4)):
            self.disk = PowerDisk(self.path, self.chance)
            if self.chance.random() < 0.7:
                self.disk.left = self.chance.randrange(1, 300)
            with contextlib.suppress(PowerCut):
                self.live()
            if self.disk.image is None:
                self.disk.image = self.disk.cut()
            self.shut()
            self.recover(self.disk.image)
        self.finish()

    # -- a life -----------------------------------------------------------------------------

    def live(self):
        self.stores = []
        self.open()
        for _ in range(self.chance.randrange(5, 50)):
            self.step()

    def open(self):
        for durability in ("full", "relaxed"):
            self.stores.append(LMDBStore(self.path, **self.options(self.disk, durability)))
        self.engine = self.stores[0]._engine

    def shut(self):
        with contextlib.suppress(KvsageError):
            for store in self.stores:
                store.close()
        self.stores = []

    def step(self):
        verbs = {
            self.write: 60,
            self.sweep: 4,
            self.compact: 6,
            self.compact_some: 8,
            self.look: 6,
            self.checkpoint: 4,
            self.sync: 3,
            self.reopen: 2,
            self.pass_time: 6,
        }
        self.chance.choices(list(verbs), list(verbs.values()))[0]()

    def write(self):
        verbs = (self.save, self.save, self.save, self.delete, self.transact, self.content)
        self.chance.choice(verbs)()

    @contextlib.contextmanager
    def committing(self, after, *, full):
        self.doing = after
        yield
        self.doing = None
        if after != self.states[-1]:  # what changes nothing commits nothing, and flushes nothing
            self.states.append(after)
            if full:
                self.durable = len(self.states) - 1

    def handle(self):
        full = self.chance.random() < 0.5
        return self.stores[0 if full else 1], full

    def value(self):
        return self.chance.choice([*TEXTS, next(self.numbers), next(self.numbers)])

    def expiring(self):
        ttl = self.chance.randrange(1, 5) if self.chance.random() < 0.25 else None
        return ttl, None if ttl is None else self.clock.now + ttl

    def save(self):
        store, full = self.handle()
        key, value, (ttl, at) = self.chance.choice(KEYS), self.value(), self.expiring()
        with self.committing(self.states[-1] | {key: (value, at)}, full=full):
            store.save(key, value, ttl=ttl)

    def delete(self):
        store, full = self.handle()
        key, after = self.chance.choice(KEYS), dict(self.states[-1])
        self.remove(after, key)
        with self.committing(after, full=full):
            store.delete(key)

    def remove(self, after, key):
        """What has expired is absent already, and there again when the clock goes back."""
        if key in self.visible(after):
            del after[key]

    def transact(self):
        store, full = self.handle()
        after = dict(self.states[-1])
        with self.committing(after, full=full), store.transaction() as tx:
            for key in self.chance.sample(KEYS, 3):
                if self.chance.random() < 0.4:
                    tx.delete(key)
                    self.remove(after, key)
                else:
                    value, (ttl, at) = self.value(), self.expiring()
                    tx.save(key, value, ttl=ttl)
                    after[key] = (value, at)

    def content(self):
        store, full = self.handle()
        text = self.chance.choice(list(TEXTS))
        address = xxh3_128_hexdigest(text)
        after = {key: held for key, held in self.states[-1].items() if key != address}
        if address in self.states[-1]:
            with self.committing(after, full=full):
                store.content.delete(address)
        else:
            after[address] = (text, None)
            with self.committing(after, full=full):
                assert store.content.put(text) == address

    def sweep(self):
        now = self.clock.now
        kept = {k: v for k, v in self.states[-1].items() if v[1] is None or v[1] > now}
        with self.committing(kept, full=False):
            self.stores[0].sweep()

    def between(self):
        if self.chance.random() < 0.15:
            self.write()

    def compact(self):
        self.sweep()  # both begin with it
        self.engine.upkeep.compact(Interrupting(self.between))

    def compact_some(self):
        """Any of the sealed files, as upkeep would hardly choose them."""
        held = self.engine.upkeep
        with held.lock.waiting():
            compaction.finish(self.engine, UNPACED)
            with self.engine.index.reading() as txn:
                active = get_meta(txn).segment
                sealed = [segment for segment, _ in listed_segments(txn) if segment != active]
            if sealed:
                some = self.chance.sample(sealed, self.chance.randint(1, min(3, len(sealed))))
                held.compact_held(some, Interrupting(self.between))
                compaction.reclaim(self.engine)

    def look(self):
        self.sweep()
        self.engine.upkeep.look(Interrupting(self.between))

    def checkpoint(self):
        until = len(self.states) - 1
        self.stores[0].checkpoint()
        self.durable = max(self.durable, until)

    def sync(self):
        self.stores[1].sync()
        self.durable = len(self.states) - 1

    def reopen(self):
        self.shut()
        self.durable = len(self.states) - 1
        self.open()

    def pass_time(self):
        self.clock.advance(self.chance.choice((1, 1, 1, 2, -2)))

    # -- after a cut ------------------------------------------------------------------------

    def recover(self, image):
        """Look at what the cut left, and let the next life begin there."""
        self.clock.advance(-self.chance.choice((0, 3)))
        if self.doing is not None:
            self.states.append(self.doing)
            self.doing = None
        found = self.look_at(image)
        if CHECKPOINT in image:
            bare = {path: data for path, data in image.items() if path != CHECKPOINT}
            assert self.look_at(bare) == found
        possible = [self.visible(state) for state in self.states[self.durable :]]
        assert found in possible, f"{named(found)} is none of {list(map(named, possible))}"
        self.states = [self.states[self.durable + possible.index(found)]]
        self.durable = 0
        shutil.rmtree(self.path)
        self.lives += 1
        self.path = self.root / str(self.lives)
        put(image, self.path)

    def look_at(self, image):
        """What an image holds."""
        self.images += 1
        path = self.root / f"image{self.images}"
        put(image, path)
        found = {}
        with LMDBStore(path, **self.options(Unhurried())) as store:
            assert store.verify(deep=True).problems == ()
            for key in store.keys():  # noqa: SIM118  # a store is no mapping
                entry = store.entry(key)
                at = entry.expires_at
                found[key] = (entry.value, None if at is None else at.timestamp())
            with store._engine.index.reading() as txn:
                roots = list(txn.cursor(store._engine.index.system).iternext(values=False))
            for root in roots:
                address = CONTENT_KEY.unpack(root[len(CONTENT_ROOT) :])[0].hex()
                found[address] = (store.content.get(address), None)
        shutil.rmtree(path)
        return found

    def visible(self, state):
        now = self.clock.now
        return {key: held for key, held in state.items() if held[1] is None or held[1] > now}

    def finish(self):
        """In the end the work is done, and nothing lies about."""
        with LMDBStore(self.path, **self.options(Unhurried())) as store:
            assert store.compact().files_waiting == 0
            nothing_left(store)
            assert store.verify(deep=True).problems == ()


def named(state):
    """The same for people."""
    return {key: (TEXTS.get(value, value), at) for key, (value, at) in sorted(state.items())}


@pytest.mark.parametrize("part", range(PARTS))
def test_a_power_cut_loses_nothing_that_was_flushed(directory, part):
    for seed in range(FIRST_SEED + part, FIRST_SEED + HISTORIES, PARTS):
        root = directory / str(seed)
        root.mkdir()
        try:
            History(root, seed).run()
        except (AssertionError, KvsageError, OSError) as error:
            error.add_note(f"the history of seed {seed}")
            raise
        shutil.rmtree(root)
