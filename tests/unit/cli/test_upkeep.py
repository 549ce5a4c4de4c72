"""`kvsage sweep` and `kvsage compact`: what they do, and what they say."""

import json
import os

import pytest

from kvsage import LMDBStore
from kvsage.cli.upkeep import compact_lines
from kvsage.types import CompactionReport

LONG_AGO = 1_000_000_000.0


@pytest.fixture
def expired(store):
    """A store in which two of three keys have expired."""
    with LMDBStore(store, clock=lambda: LONG_AGO, upkeep_interval=float("inf")) as opened:
        opened.save_many({"a": 1, "b": 2}, ttl=5)
        opened.save("c", 3)
    return store


@pytest.fixture
def churned(store):
    """A store most of whose log is garbage."""
    with LMDBStore(store, upkeep_interval=float("inf"), content_bytes_min=1 << 20) as opened:
        for _ in range(5):
            for number in range(20):
                opened.save(f"key/{number}", os.urandom(3000))
        opened.delete("key/0")
    return store


def keys_there(store):
    with LMDBStore(store, readonly=True) as opened:
        report = opened.verify(deep=True)
        assert report.ok, report.problems
        return opened.stats().keys


def test_sweep(expired, keep):
    done = keep("sweep")
    assert (done.code, done.text, done.err) == (0, "2 keys swept\n", "")
    assert keys_there(expired) == 1


def test_sweep_json(expired, keep):
    said = json.loads(keep("sweep", "--json").text)
    assert said == {"store": str(expired), "keys_swept": 2}
    assert keys_there(expired) == 1
    assert keep("sweep").text == "0 keys swept\n"


def test_compact(churned, keep):
    size = sum(file.stat().st_size for file in (churned / "log").iterdir())
    done = keep("compact")
    assert (done.code, done.err) == (0, "")
    assert done.lines[0].startswith("log: ")
    assert sum(file.stat().st_size for file in (churned / "log").iterdir()) < size / 3
    assert keys_there(churned) == 19
    assert not (churned / "index.checkpoint").exists()


def test_compact_json_and_checkpoint(churned, keep):
    said = json.loads(keep("compact", "--json", "--checkpoint").text)
    assert said["store"] == str(churned)
    assert said["bytes_after"] < 19 * 3200
    assert said["files_waiting"] == 0
    assert (churned / "index.checkpoint").exists()
    assert keys_there(churned) == 19


@pytest.mark.parametrize("verb", ["sweep", "compact"])
def test_neither_makes_a_store(tmp_path, run, verb):
    done = run(verb, "--store", tmp_path / "none")
    assert (done.code, done.out) == (3, b"")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("verb", ["sweep", "compact"])
def test_only_embedded_stores_need_it(run, verb):
    done = run(verb, "--store", "redis://user:secret@host/1")
    assert done.code == 2
    assert "redis://user:***@host/1" in done.err


def test_a_report_in_words():
    report = CompactionReport(
        files_compacted=3,
        bytes_before=9_000_000,
        bytes_after=3_100_000,
        bytes_copied=2_000_000,
        deletions_dropped=1,
        files_waiting=2,
    )
    assert compact_lines(report) == [
        "log: 9.0 MB before, 3.1 MB after",
        "3 files compacted, 2.0 MB copied, 1 deletion dropped",
        "2 files left to be removed when no reader looks into them any more",
    ]
