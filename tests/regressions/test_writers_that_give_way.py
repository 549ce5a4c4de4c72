"""Writers that wait for compaction wait a bounded time, for what was written under pressure."""

import pytest

from kvsage import LMDBStore
from kvsage.engine import engine as engine_module
from kvsage.engine.engine import EASE_MOST_S, EASE_S

ALMOST = 1e-9


@pytest.fixture
def store(tmp_path):
    with LMDBStore(tmp_path / "s", durability="relaxed", upkeep_interval=3600) as store:
        store.save("a", 1)
        yield store
        assert store.verify(deep=True).ok


@pytest.fixture
def slept(store, monkeypatch):
    """How long each write waited, in seconds."""
    pauses = []

    class Clock:
        perf_counter = staticmethod(engine_module.time.perf_counter)
        monotonic = staticmethod(engine_module.time.monotonic)

        @staticmethod
        def sleep(pause_s):
            assert pause_s >= 0
            pauses.append(pause_s)

    monkeypatch.setattr(engine_module, "time", Clock)
    return pauses


def test_one_save_behind_a_large_bulk_does_not_pay_for_it_at_once(store, slept):
    engine = store._engine
    engine.weigh()
    assert engine.pressure == 0
    engine.metrics.operations += 100_000  # as a bulk does
    engine.pressure = 2.0
    for _ in range(20):
        store.save("a", 2)
    assert len(slept) == 20
    assert max(slept) <= EASE_MOST_S
    # What is owed is not forgotten either.
    assert sum(slept) == pytest.approx(20 * EASE_MOST_S)


def test_a_bulk_waits_in_proportion(store, slept):
    engine = store._engine
    engine.weigh()
    engine.metrics.operations += 100_000
    engine.pressure = 2.0
    operations = 4 * engine_module.EASED_OPERATIONS
    store.save_many({f"k{number}": number for number in range(operations)})
    assert slept == [pytest.approx(4 * EASE_MOST_S)]


class Meddling(float):
    """A debt that another thread pays between the look at it and the paying."""

    __slots__ = ()
    meddle = [None]  # noqa: RUF012  # once, whichever of them it comes by at

    def __add__(self, other):
        return Meddling(float(self) + other)

    def _meddled(self):
        meddle, self.meddle[0] = self.meddle[0], None
        if meddle is not None:
            meddle()

    def __gt__(self, other):
        self._meddled()
        return float(self) > other

    def __lt__(self, other):
        self._meddled()
        return float(self) < other

    __hash__ = None


def test_threads_that_pay_at_once_leave_no_wait_of_less_than_nothing(store, slept):
    engine = store._engine
    engine.pressure = 1.0
    engine._owed_s = Meddling(EASE_MOST_S / 2)
    Meddling.meddle[0] = engine.ease
    for _ in range(3):
        store.save("a", 3)
    assert Meddling.meddle == [None]
    assert slept
    assert min(slept) > 0


def test_nothing_is_owed_for_what_was_written_without_pressure(store, slept):
    engine = store._engine
    for number in range(50):
        store.save("a", number)
    assert not slept
    engine.weigh()
    assert engine.pressure == 0
    engine.pressure = 1.0
    store.save("a", -1)
    assert sum(slept) <= EASE_S + ALMOST


def test_a_debt_ends_with_the_pressure(store, slept):
    engine = store._engine
    engine.metrics.operations += 100_000
    engine.pressure = 1.0
    store.save("a", 2)
    slept.clear()
    engine.weigh()
    engine.pressure = 1.0
    store.save("a", 3)
    assert sum(slept) <= EASE_S + ALMOST
