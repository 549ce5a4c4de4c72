"""Options are checked once, each by name, before anything is opened."""

import dataclasses
import math
from datetime import timedelta

import pytest

from kvsage import LMDBStore
from kvsage.errors import ConfigError, KvsageError
from kvsage.options import (
    BYTES_MAX_LEAST,
    SEGMENT_BYTES_LEAST,
    SEGMENT_BYTES_MOST,
    VALUE_BYTES_LIMIT,
    OptionArguments,
    StoreOptions,
)


def test_defaults_are_safe():
    options = StoreOptions()
    assert options.durability == "full"
    assert options.readonly is False
    assert options.sync_interval == 0.1
    assert options.ttl_default is None
    assert options.format == "msgpack"
    assert options.network_filesystem is False


def test_options_are_frozen_and_named():
    with pytest.raises(dataclasses.FrozenInstanceError):
        StoreOptions().readonly = True
    with pytest.raises(TypeError):
        StoreOptions("full")
    with pytest.raises(TypeError):
        StoreOptions(no_such_option=1)


def test_what_can_be_given_is_what_there_is():
    fields = {field.name for field in dataclasses.fields(StoreOptions)}
    assert set(OptionArguments.__annotations__) == fields


GOOD = {
    "durability": ["full", "relaxed"],
    "format": ["msgpack", "pickle"],
    "readonly": [True, False],
    "network_filesystem": [True, False],
    "sync_interval": [0.001, 1, 3600],
    "lock_timeout": [0, 0.5, math.inf],
    "value_bytes_max": [1, VALUE_BYTES_LIMIT],
    "segment_bytes_max": [SEGMENT_BYTES_LEAST, SEGMENT_BYTES_MOST],
    "content_bytes_min": [64, VALUE_BYTES_LIMIT],
    "compression_level": [1, 19],
    "index_map_bytes": [1 << 20, 1 << 46],
    "ttl_default": [None, 1, 0.5, timedelta(days=1)],
    "upkeep_interval": [0.001, 1, 3600, math.inf],
    "bytes_max": [None, BYTES_MAX_LEAST, 1 << 62],
    "changes_kept": [0, 0.5, 604_800, math.inf],
}
NO_NUMBERS = [None, "1", b"1", 1j, [], True, False]
BAD = {
    "durability": ["none", "FULL", "", None, True, 1, [], b"full"],
    "format": ["json", "Pickle", None, 0, []],
    "readonly": [None, "yes", 2, -1, []],
    "network_filesystem": [None, "yes", 2, []],
    "sync_interval": [0, 0.0009, -1, 3600.1, math.nan, math.inf, 10**5000, *NO_NUMBERS],
    "lock_timeout": [-1, -math.inf, math.nan, -(10**5000), *NO_NUMBERS],
    "value_bytes_max": [0, -1, VALUE_BYTES_LIMIT + 1, 1.0, 10**5000, *NO_NUMBERS],
    "segment_bytes_max": [SEGMENT_BYTES_LEAST - 1, SEGMENT_BYTES_MOST + 1, 1e6, *NO_NUMBERS],
    "content_bytes_min": [0, 63, VALUE_BYTES_LIMIT + 1, 100.0, *NO_NUMBERS],
    "compression_level": [0, -5, 20, 3.0, math.nan, *NO_NUMBERS],
    "index_map_bytes": [0, (1 << 20) - 1, (1 << 46) + 1, 2.0**30, *NO_NUMBERS],
    "ttl_default": [0, -1, math.nan, math.inf, "1", True, timedelta(), 10**5000],
    "upkeep_interval": [0, 0.0009, -1, math.nan, -math.inf, *NO_NUMBERS],
    "bytes_max": [0, -1, BYTES_MAX_LEAST - 1, (1 << 62) + 1, 1e9, math.inf, *NO_NUMBERS[1:]],
    "changes_kept": [-1, math.nan, -math.inf, *NO_NUMBERS],
}


def cases(table):
    return [
        pytest.param(name, value, id=f"{name}-{number}")
        for name, values in table.items()
        for number, value in enumerate(values)
    ]


def test_every_option_is_tried():
    fields = {field.name for field in dataclasses.fields(StoreOptions)}
    assert set(GOOD) == set(BAD) == fields


@pytest.mark.parametrize(("name", "value"), cases(GOOD))
def test_what_can_be_meant_is_taken(name, value):
    assert getattr(StoreOptions(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_what_cannot_be_meant_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name) as raised:
        StoreOptions(**{name: value})
    assert isinstance(raised.value, ValueError)
    assert len(str(raised.value)) < 300


def test_a_bad_option_is_refused_before_anything_is_made(tmp_path):
    for name, value in [("durability", "none"), ("sync_interval", 0), ("ttl_default", -1)]:
        with pytest.raises(KvsageError):
            LMDBStore(tmp_path / "store", **{name: value})
    assert list(tmp_path.iterdir()) == []
