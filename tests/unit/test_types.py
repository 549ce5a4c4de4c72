"""Times to live, and the small frozen values."""

import dataclasses
import math
from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsage.errors import InvalidTTLError, KvsageError
from kvsage.types import (
    TTL_SECONDS_MAX,
    Capabilities,
    Entry,
    Problem,
    VerifyReport,
    ttl_seconds,
)


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [
        (1, 1.0),
        (0.5, 0.5),
        (5e-324, 5e-324),
        (TTL_SECONDS_MAX, TTL_SECONDS_MAX),
        (10**11, 1e11),
        (timedelta(microseconds=1), 1e-6),
        (timedelta(days=1, seconds=1), 86401.0),
    ],
)
def test_what_is_a_ttl(ttl, seconds):
    result = ttl_seconds(ttl)
    assert result == seconds
    assert type(result) is float


@pytest.mark.parametrize(
    "ttl",
    [
        0,
        0.0,
        -0.0,
        -1,
        -5e-324,
        math.nan,
        math.inf,
        -math.inf,
        math.nextafter(TTL_SECONDS_MAX, math.inf),
        10**11 + 1,
        10**400,  # no float holds it
        -(10**400),
        10**5000,  # nor can it be shown in full
        -(10**5000),
        timedelta(),
        timedelta(microseconds=-1),
        timedelta.max,
        timedelta.min,
    ],
    ids=lambda ttl: type(ttl).__name__,
)
def test_what_is_not_above_zero_or_too_far_is_refused(ttl):
    with pytest.raises(InvalidTTLError, match="more than 0 and at most 100000000000 seconds"):
        ttl_seconds(ttl)


@pytest.mark.parametrize(
    "ttl", [True, False, "1", b"1", None, 1j, Fraction(1, 2), [1], object(), timedelta]
)
def test_what_is_no_duration_is_refused(ttl):
    with pytest.raises(InvalidTTLError, match="a number of seconds or a timedelta") as raised:
        ttl_seconds(ttl)
    assert type(ttl).__name__ in str(raised.value)
    assert isinstance(raised.value, (KvsageError, ValueError))


def test_a_long_repr_does_not_make_a_long_message():
    with pytest.raises(InvalidTTLError) as raised:
        ttl_seconds("x" * 100_000)
    assert len(str(raised.value)) < 300


@given(st.one_of(st.floats(), st.integers(), st.timedeltas()))
def test_a_ttl_is_positive_and_finite_or_refused(ttl):
    try:
        seconds = ttl_seconds(ttl)
    except InvalidTTLError:
        assert not 0 < (ttl.total_seconds() if isinstance(ttl, timedelta) else ttl) <= 1e11
    else:
        assert 0 < seconds <= TTL_SECONDS_MAX


def test_values_are_frozen_and_compare():
    entry = Entry({"a": 1}, "7@00", None, 3, 60)
    assert entry == Entry({"a": 1}, "7@00", None, 3, 60)
    for value, field in [(entry, "value"), (Capabilities(), "content"), (Problem("x"), "message")]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, 1)


def test_capabilities_begin_with_none():
    assert not any(dataclasses.astuple(Capabilities()))


@pytest.mark.parametrize(
    ("problem", "parts"),
    [
        (Problem("it is wrong"), ["it is wrong"]),
        (Problem("it is wrong", 7), ["it is wrong", "segment 7"]),
        (Problem("it is wrong", 7, 4096), ["it is wrong", "segment 7", "4096"]),
        (Problem("it is wrong", 7, 0), ["it is wrong", "segment 7", "0"]),
        (Problem("it is wrong", keys=("a", "b")), ["it is wrong", "keys: a, b"]),
    ],
)
def test_a_problem_shows_where_it_lies(problem, parts):
    text = str(problem)
    assert all(part in text for part in parts)


def test_a_report_is_ok_without_problems():
    assert VerifyReport((), 1, 2, 3, 4, deep=False).ok
    assert not VerifyReport((Problem("x"),), 1, 2, 3, 4, deep=False).ok
