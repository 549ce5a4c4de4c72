"""Background work rests between its slices, and leaves when it is told to."""

import pytest

from kvsage.engine import pace
from kvsage.engine.pace import UNPACED, Pace, Stopped


class Watch:
    """The time that a thread has worked, as it is told, and how long it slept in between."""

    def __init__(self):
        self.now = 0.0
        self.slept = []

    def thread_time(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)


@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    monkeypatch.setattr(pace, "time", watch)
    return watch


def begun(watch, *arguments):
    """A pace whose first slice begins now."""
    made = Pace(*arguments)
    watch.now += pace.SLICE_S
    made.breathe()
    watch.slept.clear()
    return made


def test_no_rest_within_a_slice(watch):
    made = begun(watch, lambda: 1.0)
    for _ in range(3):
        watch.now += pace.SLICE_S / 4
        made.breathe()
    assert watch.slept == []


@pytest.mark.parametrize("share", [0.5, 1.0, 3.0])
def test_the_rest_is_a_share_of_what_was_worked(watch, share):
    made = begun(watch, lambda: share)
    watch.now += 2 * pace.SLICE_S
    made.breathe()
    assert watch.slept == [pytest.approx(2 * pace.SLICE_S * share)]
    made.breathe()  # a new slice has begun
    assert len(watch.slept) == 1


def test_the_share_is_asked_for_each_time(watch):
    shares = iter([1.0, 1.0, 2.0])
    made = begun(watch, lambda: next(shares))
    for expected in (1, 2):
        watch.now += pace.SLICE_S
        made.breathe()
        assert watch.slept[-1] == pytest.approx(expected * pace.SLICE_S)


def test_work_that_somebody_waits_for_still_lets_the_others_in(watch):
    made = begun(watch)
    watch.now += pace.SLICE_S
    made.breathe()
    (slept,) = watch.slept
    assert 0 < slept <= pace.SLICE_S / 10


def test_it_stops_at_the_end_of_a_slice(watch):
    stopping = False
    made = begun(watch, lambda: 0.0, lambda: stopping)
    stopping = True
    watch.now += pace.SLICE_S
    with pytest.raises(Stopped):
        made.breathe()


def test_work_that_nobody_can_stop(watch):
    UNPACED.breathe()
    watch.now += 3600
    UNPACED.breathe()
