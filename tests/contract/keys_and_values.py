"""What a key may be, what a value may be, and that both come back as they were."""

import dataclasses
import enum
import random
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from kvsage import Serializer
from tests.contract.base import StoreContract

CONTENT_BYTES_MIN = 4096


@Serializer.register("contract.point")
@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    label: str = ""


@Serializer.register("contract.colour")
class Colour(enum.Enum):
    RED = 1
    GREEN = "green"


KEYS = [
    "a",
    "k" * 480,
    "é" * 240,  # two bytes each
    "\u20ac" * 160,  # three
    "\U0001f600" * 120,  # four
    "\x00",
    "\x00\x00a",
    " ",
    "a\nb\tc",
    "../../etc/passwd",
    "a/b:c?d=e&f#g%00",
    "\x7f",
    "\u0080",
    "\ue000",
    "\uffff",
    "\U0010ffff",
    "e\u0301",  # not the same key as é
    "é",
    "\u200b",
    "\ufeff",
    "Ω",
]

# As Python sorts text, a character beyond U+FFFF comes after all others; as UTF-16 does, it comes
# before U+E000. Bytes of UTF-8 sort as code points do.
IN_ORDER = ["\x00", "A", "a", "a\x00", "aa", "b", "\x7f", "\u0080", "é", "\ud7ff", "\ue000"]
IN_ORDER += ["\uffff", "\U00010000", "\U0001f600", "\U0010ffff"]

VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    2**64,
    -(2**200),
    0.0,
    -0.0,
    1.5,
    1e308,
    5e-324,
    float("inf"),
    float("-inf"),
    "",
    "text",
    "é\u20ac\U0001f600\x00",
    b"",
    b"\x00\xff" * 10,
    [],
    [1, "a", None, [2, [3]]],
    {},
    {"a": {"b": [1, 2]}, "": 0},
    {1: "a", (2, 3): "b", None: "c", b"k": "d", 1.5: "e"},
    (),
    (1, (2, [3])),
    set(),
    {1, "a", (2,)},
    frozenset({1, 2}),
    2 + 3j,
    Decimal("1.10"),
    Decimal("NaN"),
    datetime(2026, 1, 2, 3, 4, 5, 678901),  # noqa: DTZ001  # one without a zone is a value too
    datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    date(2026, 1, 2),
    time(3, 4, 5),
    timedelta(days=-1, microseconds=1),
    UUID(int=7),
    PurePosixPath("/a/b"),
    Path("a/b"),
    Point(1, "é"),
    [Point(2)],
    Colour.RED,
    {"colour": Colour.GREEN},
]

each_value = pytest.mark.parametrize(
    "value", VALUES, ids=[f"{number}-{type(value).__name__}" for number, value in enumerate(VALUES)]
)

MAKERS = {
    "noise": lambda size: random.Random(size).randbytes(size),
    "bytes": lambda size: b"x" * size,
    "text": lambda size: "x" * size,
}


def described(value):
    """A value with its type, part by part: 1, 1.0 and True are not the same; NaN is itself."""
    kind = type(value).__name__
    if isinstance(value, dict):
        pairs = [(described(key), described(part)) for key, part in value.items()]
        return kind, pairs
    if isinstance(value, (set, frozenset)):
        return kind, sorted(map(described, value), key=repr)
    if isinstance(value, (list, tuple)):
        return kind, [described(part) for part in value]
    return kind, repr(value)


class KeysAndValues(StoreContract):
    # -- keys -------------------------------------------------------------------------------

    @pytest.mark.parametrize("key", KEYS, ids=ascii)
    def test_any_text_of_1_to_480_bytes_is_a_key(self, store, key):
        assert store.save(key, "value", ttl=10)
        assert store.load(key) == "value"
        assert store.exists(key)
        assert store.ttl(key) == 10
        assert list(store.keys()) == [key]
        assert list(store.keys(key)) == [key]
        assert store.count(key) == 1
        assert store.delete(key)
        assert not store.exists(key)

    def test_keys_that_look_alike_are_different_keys(self, store):
        store.save_many({key: number for number, key in enumerate(KEYS)})
        assert {key: store.load(key) for key in KEYS} == {
            key: number for number, key in enumerate(KEYS)
        }

    def test_keys_sort_by_their_bytes(self, store):
        shuffled = random.Random(1).sample(IN_ORDER, len(IN_ORDER))
        store.save_many(dict.fromkeys(shuffled, 1))
        assert list(store.keys()) == IN_ORDER
        assert list(store.keys(reverse=True)) == IN_ORDER[::-1]
        with store.transaction() as tx:
            for key in shuffled[::2]:
                tx.save(key, 2)
            assert list(tx.keys()) == IN_ORDER
            assert list(tx.keys(reverse=True)) == IN_ORDER[::-1]

    def test_a_str_subclass_is_kept_as_text(self, store):
        class Name(str):
            __slots__ = ()

        store.save(Name("k"), 1)
        (key,) = store.keys()
        assert type(key) is str
        assert store.load("k") == 1

    # -- values -----------------------------------------------------------------------------

    @each_value
    def test_a_value_comes_back_with_its_type(self, store, value):
        store.save("k", value)
        assert described(store.load("k")) == described(value)
        assert described(store.entry("k").value) == described(value)
        assert described(dict(store.items())["k"]) == described(value)
        assert described(store.load_many(["k"])["k"]) == described(value)
        with store.snapshot() as view:
            assert described(view.load("k")) == described(value)

    def test_large_values_come_back_with_their_types(self, store):
        for value in VALUES:
            large = [value, "x" * CONTENT_BYTES_MIN]
            store.save("k", large)
            assert described(store.load("k")) == described(large)

    def test_values_come_back_inside_their_transaction(self, store):
        with store.transaction() as tx:
            for value in VALUES:
                tx.save("k", value)
                assert described(tx.load("k")) == described(value)
                assert described(dict(tx.items())["k"]) == described(value)
                tx.touch("k", 5)
                assert described(tx.entry("k").value) == described(value)
        assert described(store.load("k")) == described(VALUES[-1])

    @pytest.mark.parametrize("value", [bytearray(b"abc"), memoryview(b"abc")])
    def test_other_kinds_of_bytes_come_back_as_bytes(self, store, value):
        store.save("k", value)
        assert described(store.load("k")) == described(b"abc")

    @pytest.mark.parametrize(
        "size",
        [
            *(CONTENT_BYTES_MIN + distance for distance in (-1, 0, 1)),
            *(65_536 + distance for distance in (-1, 0, 1)),
            3 << 20,
        ],
    )
    @pytest.mark.parametrize("make", MAKERS)
    def test_sizes(self, store, opened, make, size):
        value = MAKERS[make](size)
        store.save("k", value)
        assert store.load("k") == value
        assert store.entry("k").size == size
        if store.capabilities.persistent:
            store.close()
            assert opened().load("k") == value

    def test_many_large_values_in_one_commit(self, store):
        pairs = {f"k{number}": random.Random(number).randbytes(1 << 20) for number in range(8)}
        pairs["the same"] = pairs["k0"]
        assert store.save_many(pairs) == 9
        assert dict(store.items()) == pairs

    def test_a_value_saved_under_two_keys_stays_when_one_goes(self, store):
        large = "a value of some length, " * 1000
        store.save_many({"a": large, "b": large, "c": large.encode()})
        store.delete("a")
        store.save("c", 1)
        assert store.load("b") == large
        store.save("a", large)
        store.delete("b")
        assert dict(store.items()) == {"a": large, "c": 1}

    # -- isolation --------------------------------------------------------------------------

    @pytest.mark.parametrize("length", [1, 5000])
    def test_a_value_changed_after_the_save_changes_nothing(self, store, length):
        value = {"list": [0] * length}
        store.save("k", value)
        value["list"].append("changed")
        value["more"] = 1
        assert store.load("k") == {"list": [0] * length}

    @pytest.mark.parametrize("length", [1, 5000])
    def test_a_loaded_value_may_be_changed(self, store, length):
        expected = {"list": [0] * length}
        store.save("k", expected)
        for read in (
            lambda: store.load("k"),
            lambda: store.entry("k").value,
            lambda: dict(store.items())["k"],
            lambda: store.load_many(["k"])["k"],
        ):
            read()["list"].append("changed")
        assert store.load("k") == expected
        store.load_range("missing").append(1)
        assert store.load_range("missing") == []

    def test_bytes_changed_after_the_save_change_nothing(self, store):
        for length in (3, 5000):
            value = bytearray(b"a" * length)
            store.save("k", value)
            value[0] = ord("b")
            assert store.load("k") == b"a" * length

    def test_a_transaction_keeps_what_a_value_was_when_it_was_saved(self, store):
        value = [1]
        with store.transaction() as tx:
            tx.save("k", value)
            value.append(2)
            tx.load("k").append(3)
            assert tx.load("k") == [1]
        assert store.load("k") == [1]

    def test_the_result_of_an_update_may_be_changed(self, store):
        store.update("k", lambda _: [1]).append(2)
        assert store.load("k") == [1]
