"""Power cuts while trees are written and compacted: counts exact, nothing acknowledged lost.

As ``test_compaction_power``, with large values that are edited, shared and let go.
``KVSAGE_POWER_CUTS`` and ``KVSAGE_POWER_SEED`` mean the same.
"""

import os
import shutil

import pytest
from xxhash import xxh3_128_hexdigest

from kvsage import KvsageError
from kvsage.engine import compaction, rebuild
from kvsage.serialization import pack
from tests.crash.test_compaction_power import FIRST_SEED, History
from tests.support import tree_work
from tests.support.chunks import chunks_of
from tests.support.small import make_small

PARTS = 4
HISTORIES = int(
    os.environ.get("KVSAGE_POWER_CUTS")
    or (5_000 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 40)
)


@pytest.fixture(autouse=True)
def everything_is_small(monkeypatch):
    make_small(monkeypatch)
    monkeypatch.setattr(compaction, "BATCH_BYTES_MAX", 3000)
    monkeypatch.setattr(compaction, "STEP_ROWS", 7)
    real = rebuild._build

    def build(*arguments, from_checkpoint, **named):
        assert from_checkpoint, "the checkpoint was of no use"
        return real(*arguments, from_checkpoint=from_checkpoint, **named)

    monkeypatch.setattr(rebuild, "_build", build)


class TreeHistory(History):
    """The states hold names of values, since those are long."""

    def __init__(self, root, seed):
        self.values = {}
        super().__init__(root, seed)

    def options(self, disk, durability="full"):
        limit = self.chance.choice((5_000, 20_000))
        return super().options(disk, durability) | {"segment_bytes_max": limit}

    def name(self, value):
        name = xxh3_128_hexdigest(pack(value))
        self.values[name] = value
        return name

    def write(self):
        store, full = self.handle()
        model = {key: self.values[name] for key, (name, _) in self.states[-1].items()}
        for step in tree_work.drawn(self.chance, model, late=False):
            if step.name.startswith(("touch", "put a content", "let a content go")):
                continue  # of expiries and contents the other histories tell
            after = {key: (self.name(value), None) for key, value in step.after.items()}
            with self.committing(after, full=full):
                step.do(store)
            if self.chance.random() < 0.2:
                chunks_of(store)

    def look_at(self, image):
        found = super().look_at(image)
        return {key: (self.name(value), at) for key, (value, at) in found.items()}


@pytest.mark.parametrize("part", range(PARTS))
def test_a_power_cut_leaves_trees_whole(directory, part):
    for seed in range(FIRST_SEED + part, FIRST_SEED + HISTORIES, PARTS):
        root = directory / str(seed)
        root.mkdir()
        try:
            TreeHistory(root, seed).run()
        except (AssertionError, KvsageError, OSError) as error:
            error.add_note(f"the history of seed {seed}")
            raise
        shutil.rmtree(root)
