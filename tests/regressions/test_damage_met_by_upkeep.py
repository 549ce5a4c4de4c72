"""A file that is damaged or gone stops neither the background thread nor the other files' work."""

import math
import threading

import pytest

from kvsage import CorruptionError, LMDBStore
from kvsage.engine import upkeep
from kvsage.engine.pace import UNPACED
from kvsage.engine.upkeep import Upkeep
from kvsage.log.segment import segment_path

PATIENCE_S = 60
LARGE = b"\xee" * 3000


@pytest.fixture
def open_store(tmp_path):
    def open_(**options):
        return LMDBStore(
            tmp_path / "s",
            **{
                "durability": "relaxed",
                "upkeep_interval": math.inf,
                "segment_bytes_max": 65536,
                **options,
            },
        )

    yield open_
    with open_() as store:
        assert store.verify(deep=True).ok


def fill(store):
    """The first file keeps something live, and every file holds garbage."""
    store.save("stays", LARGE)
    for turn in range(4):
        for key in range(20):
            store.save(f"k{key:02}", [turn, LARGE])


@pytest.fixture
def missing(open_store):
    """The path of the first file of the log, which is away until the test is over."""
    with open_store() as store:
        fill(store)
        path = segment_path(store._engine.log_path, 1)
    away = path.with_name("away")
    path.rename(away)
    yield path
    away.rename(path)


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize("verb", ["compact", "look"])
def test_a_missing_file_is_damage(open_store, verb):
    with open_store() as store:
        with pytest.raises(CorruptionError, match="a file of the log is missing") as caught:
            store.compact() if verb == "compact" else store._engine.upkeep.look(UNPACED)
        assert caught.value.segment == 1


@pytest.mark.usefixtures("missing")
def test_the_thread_lives_on_and_tells(open_store, monkeypatch):
    looks = threading.Semaphore(0)
    look = Upkeep.look

    def counted(self, pace):
        looks.release()
        look(self, pace)

    monkeypatch.setattr(Upkeep, "look", counted)
    with open_store(upkeep_interval=0.001) as store:
        for _ in range(3):
            assert looks.acquire(timeout=PATIENCE_S)
        assert store._engine.upkeep._thread.is_alive()
        assert isinstance(store._engine.upkeep.last_error, CorruptionError)


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), MemoryError(), ValueError("odd")])
def test_no_error_ends_the_thread(open_store, monkeypatch, error):
    again = threading.Event()
    errors = iter([error])

    def look(*_):
        for raised in errors:
            raise raised
        again.set()

    monkeypatch.setattr(Upkeep, "look", look)
    with open_store(upkeep_interval=0.001) as store:
        assert again.wait(PATIENCE_S)
        assert store._engine.upkeep.last_error is error


@pytest.fixture
def damaged(open_store, monkeypatch):
    """A store whose first file does not check, and in which deletions wait to be dropped."""
    monkeypatch.setattr(upkeep, "DELETIONS_LEAST", 5)
    with open_store() as store:
        fill(store)
        store.checkpoint()
        assert store.delete_many([f"k{key:02}" for key in range(14)]) == 14
        for key in range(40):
            store.save(f"more{key}", LARGE)
        path = segment_path(store._engine.log_path, 1)
        whole = path.read_bytes()
        path.write_bytes(whole[:2000] + b"\0" * 10 + whole[2010:])
        yield store
        path.write_bytes(whole)


def first_files(store):
    """Of the files that hold the garbage, those that are still there."""
    return {one.segment for one in store.stats().segments} & {1, 2, 3, 4}


def test_due_deletions_let_the_other_files_be_compacted(damaged):
    assert first_files(damaged) == {1, 2, 3, 4}
    look, metrics = damaged._engine.upkeep.look, damaged._engine.metrics
    with pytest.raises(CorruptionError):
        look(UNPACED)
    look(UNPACED)
    assert first_files(damaged) == {1}
    made = metrics.checkpoints
    for _ in range(3):
        look(UNPACED)
    assert metrics.checkpoints == made


@pytest.mark.parametrize("limit", [1, 65536])  # each file by itself, and together
def test_who_asks_has_the_others_compacted_and_is_told(damaged, limit):
    damaged._engine.segment_limit = limit
    with pytest.raises(CorruptionError) as caught:
        damaged.compact()
    assert caught.value.segment == 1
    assert first_files(damaged) == {1}
