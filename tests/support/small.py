"""Logs that are small: a few entries make a segment, and compaction takes many steps for them."""

import contextlib
import math
import os
import random
import tempfile
from pathlib import Path

import kvsage.options
from kvsage.engine import choosing, compaction, engine, rebuild, upkeep
from kvsage.index.env import Index
from kvsage.index.segments import LISTED, all_retired, all_segments
from kvsage.log.segment import list_files

OPTIONS = {
    "durability": "relaxed",
    "sync_interval": 3600,
    "upkeep_interval": math.inf,
    "content_bytes_min": 64,
    "segment_bytes_max": 2000,
}
TAKEN = "INDEX.tmp"  # written over when INDEX is next replaced, at a clean close at the latest
TEXTS = {random.Random(seed).randbytes(90 + 60 * seed): f"text {seed}" for seed in range(4)}


def make_small(monkeypatch):
    """Let segments be as small as wanted, and steps, and nothing really be flushed."""
    monkeypatch.setattr(kvsage.options, "SEGMENT_BYTES_LEAST", 1)
    monkeypatch.setattr(rebuild, "CHUNK", 5)
    monkeypatch.setattr(upkeep, "CHECKPOINT_BYTES", 6000)
    monkeypatch.setattr(compaction, "CHUNK", 3)
    monkeypatch.setattr(compaction, "BATCH_BYTES_MAX", 300)
    monkeypatch.setattr(compaction, "STEP_ROWS", 1)
    monkeypatch.setattr(choosing, "WORTH_BYTES", 200)
    monkeypatch.setattr(engine, "EASE_MOST_S", 0)  # writers wait for nobody
    monkeypatch.setattr(Index, "sync", lambda _: None)
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr("os.fdatasync", lambda _: None)


@contextlib.contextmanager
def quick_directory(otherwise):
    """A directory in memory, where the system has one for that: nothing here is flushed anyway."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="kvsage-") as made:
        yield Path(made)


def nothing_left(store):
    """All work is done, and the directory holds the log and nothing else."""
    its = store._engine
    with its.index.reading() as txn:
        retired = all_retired(txn)
        rows = dict(all_segments(txn))
    left = {
        "retired": retired,
        "joining": [segment for segment, row in rows.items() if row.state != LISTED],
        "unnamed": set(list_files(its.disk, its.log_path)) ^ set(rows),
        "unfinished": [path.name for path in its.path.rglob("*.tmp") if path.name != TAKEN],
    }
    assert not any(left.values()), left
