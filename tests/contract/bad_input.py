"""Bad input: a kvsage error that names what is wrong and the limit, before anything is written."""

import collections
import enum
import math
from datetime import timedelta
from decimal import Decimal

import pytest

from kvsage import (
    InvalidKeyError,
    InvalidTTLError,
    KvsageError,
    SerializationError,
    UnsupportedError,
    ValueTooLargeError,
)
from tests.contract.base import StoreContract

BAD_KEYS = {
    "int": 5,
    "None": None,
    "bytes": b"key",
    "float": 1.5,
    "tuple": ("k",),
    "bool": True,
    "empty": "",
    "481 bytes": "k" * 481,
    "481 bytes in 241 characters": "k" + "é" * 240,
    "huge": "k" * 1_000_000,
    "lone surrogate": "a\ud800",
}

READING_KEYS = {
    "load": lambda s, key: s.load(key),
    "exists": lambda s, key: s.exists(key),
    "entry": lambda s, key: s.entry(key),
    "ttl": lambda s, key: s.ttl(key),
    "load_many": lambda s, key: s.load_many(["good", key]),
    "load_range": lambda s, key: s.load_range(key),
}
WRITING_KEYS = {
    "save": lambda s, key: s.save(key, 1),
    "save with a ttl": lambda s, key: s.save(key, 1, 5),
    "add": lambda s, key: s.add(key, 1),
    "save_many": lambda s, key: s.save_many({"good": 1, key: 2, "better": 3}),
    "delete": lambda s, key: s.delete(key),
    "delete_many": lambda s, key: s.delete_many(["good", key]),
    "update": lambda s, key: s.update(key, lambda _: 1),
    "increment": lambda s, key: s.increment(key),
    "append": lambda s, key: s.append(key, 1),
    "extend": lambda s, key: s.extend(key, [1]),
    "touch": lambda s, key: s.touch(key, 5),
}

BAD_TTLS = {
    "zero": 0,
    "zero float": 0.0,
    "negative zero": -0.0,
    "negative": -1,
    "just below zero": -1e-9,
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "True": True,
    "False": False,
    "text": "5",
    "bytes": b"5",
    "Decimal": Decimal(5),
    "list": [5],
    "zero timedelta": timedelta(0),
    "negative timedelta": timedelta(microseconds=-1),
    "too far": 1e11 + 1,
    "beyond float": 10**400,
    "longest timedelta": timedelta.max,
}
TTLS = {
    "save": lambda s, ttl: s.save("the key", 2, ttl),
    "save by name": lambda s, ttl: s.save("the key", 2, ttl=ttl),
    "add": lambda s, ttl: s.add("new", 2, ttl),
    "add where it is": lambda s, ttl: s.add("the key", 2, ttl),
    "save_many": lambda s, ttl: s.save_many({"the key": 2, "new": 3}, ttl),
    "save_many of none": lambda s, ttl: s.save_many({}, ttl),
    "touch": lambda s, ttl: s.touch("the key", ttl),
    "touch where it is not": lambda s, ttl: s.touch("new", ttl),
}


class Level(enum.IntEnum):
    LOW = 1


class Plain:
    pass


Pair = collections.namedtuple("Pair", "a b")  # noqa: PYI024  # its type would be lost

ENDLESS = []
ENDLESS.append(ENDLESS)

BAD_VALUES = {
    "object": Plain(),
    "function": len,
    "class": int,
    "generator": (number for number in ()),
    "namedtuple": Pair(1, 2),
    "IntEnum": Level.LOW,
    "lone surrogate": "\ud800",
    "object in a list": [1, [2, Plain()]],
    "object in a mapping": {"a": {"b": Plain()}},
    "lone surrogate in a mapping": {"a": "\ud800"},
    "str subclass": type("Name", (str,), {})("a"),
    "dict subclass": collections.OrderedDict(a=1),
    "endless": ENDLESS,
    "exception": ValueError("a"),
}
VALUES = {
    "save": lambda s, value: s.save("the key", value),
    "save if_version": lambda s, value: s.save(
        "the key", value, if_version=s.entry("the key").version
    ),
    "save_many": lambda s, value: s.save_many({"good": 2, "the key": value, "last": 3}),
    "update": lambda s, value: s.update("the key", lambda _: value),
}


class BadInput(StoreContract):
    @pytest.fixture
    def kept(self, store):
        """A store with something in it, which must be the same afterwards."""
        pairs = {"good": 1, "the key": 1}
        store.save_many(pairs)
        before = self.writes(store)
        yield store
        assert dict(store.items()) == pairs
        assert self.writes(store) == before

    # -- keys -------------------------------------------------------------------------------

    @pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS)
    def test_bad_keys(self, kept, key):
        for use in (*READING_KEYS.values(), *WRITING_KEYS.values()):
            with pytest.raises(InvalidKeyError) as caught:
                use(kept, key)
            self.check_key_message(str(caught.value), key)
        with kept.snapshot() as view:
            for read in READING_KEYS.values():
                with pytest.raises(InvalidKeyError):
                    read(view, key)
        with kept.transaction() as tx:
            for use in (*READING_KEYS.values(), *WRITING_KEYS.values()):
                with pytest.raises(InvalidKeyError) as caught:
                    use(tx, key)
                self.check_key_message(str(caught.value), key)
            tx.rollback()

    @staticmethod
    def check_key_message(message, key):
        assert len(message) < 500, "a huge key is not repeated in full"
        if key == "":
            return
        assert repr(key)[:20] in message
        if isinstance(key, str) and len(key.encode(errors="replace")) > 480:
            assert "480" in message
        if not isinstance(key, str):
            assert type(key).__name__ in message

    def test_it_is_a_value_error_too(self, store):
        with pytest.raises(ValueError, match="at least one"):
            store.load("")

    # -- ttls -------------------------------------------------------------------------------

    @pytest.mark.parametrize("ttl", BAD_TTLS.values(), ids=BAD_TTLS)
    def test_bad_ttls(self, kept, ttl):
        told = r"more than 0 and at most|a number of seconds"
        for use in TTLS.values():
            with pytest.raises(InvalidTTLError, match=told) as caught:
                use(kept, ttl)
            assert repr(ttl)[:20] in str(caught.value)
            assert len(str(caught.value)) < 500, "a huge number is not repeated in full"
        assert kept.ttl("the key") is None

    @pytest.mark.parametrize("ttl", BAD_TTLS.values(), ids=BAD_TTLS)
    def test_bad_ttls_in_a_transaction(self, kept, ttl):
        with kept.transaction() as tx:
            for verb in ("save", "add", "save_many", "touch", "touch where it is not"):
                with pytest.raises(InvalidTTLError):
                    TTLS[verb](tx, ttl)
            assert tx.load_many(["the key", "new"]) == {"the key": 1}
            assert tx.ttl("the key") is None

    def test_add_refuses_bad_input_though_the_key_is_there(self, kept):
        with kept.transaction() as tx:
            for verbs in (tx, kept):
                if verbs is kept:
                    tx.rollback()
                with pytest.raises(InvalidTTLError):
                    verbs.add("the key", 2, -1)
                with pytest.raises(SerializationError):
                    verbs.add("the key", Plain())

    @pytest.mark.parametrize("verb", ["save", "add where it is", "touch"])
    def test_the_error_of_a_bad_ttl_names_the_key(self, kept, verb):
        with pytest.raises(InvalidTTLError, match="'the key'"):
            TTLS[verb](kept, -1)

    # -- values -----------------------------------------------------------------------------

    @pytest.mark.parametrize("value", BAD_VALUES.values(), ids=BAD_VALUES)
    def test_values_that_cannot_be_stored(self, kept, value):
        for use in VALUES.values():
            with pytest.raises(SerializationError, match="'the key'"):
                use(kept, value)
        with kept.transaction() as tx:
            for use in VALUES.values():
                with pytest.raises(SerializationError, match="'the key'"):
                    use(tx, value)
            assert tx.load("the key") == 1
            with pytest.raises(SerializationError, match="'new'"):
                tx.add("new", value)
            tx.rollback()
        with pytest.raises(SerializationError, match="'new'"):
            kept.add("new", value)

    def test_items_that_cannot_be_stored(self, store):
        store.save("l", [1])
        before = self.writes(store)
        with pytest.raises(SerializationError, match="'l'"):
            store.append("l", Plain())
        with pytest.raises(SerializationError, match="'l'"):
            store.extend("l", [2, Plain()])
        assert store.load("l") == [1]
        assert self.writes(store) == before

    def test_a_delta_that_is_no_integer(self, kept):
        with pytest.raises(UnsupportedError):
            kept.increment("good", 0.5)

    # -- limits -----------------------------------------------------------------------------

    def test_a_value_of_the_limit_fits_and_one_byte_more_does_not(self, opened):
        store = opened(value_bytes_max=100)
        for fits in ("x" * 100, b"x" * 100, "é" * 50, {"a": "x" * 90}):
            assert store.save("k", fits)
            assert store.load("k") == fits
        before = self.writes(store)
        for too_large in ("x" * 101, b"x" * 101, "é" * 51, ["x" * 100], list(range(1000))):
            with pytest.raises(ValueTooLargeError, match="100") as caught:
                store.save("k", too_large)
            assert "'k'" in str(caught.value)
            with pytest.raises(ValueTooLargeError):
                store.save_many({"a": 1, "b": too_large, "c": 1})
            with pytest.raises(ValueTooLargeError):
                store.add("new", too_large)
            with pytest.raises(ValueTooLargeError):
                store.update("k", lambda _, value=too_large: value)
            with store.transaction() as tx, pytest.raises(ValueTooLargeError):
                tx.save("k", too_large)
        assert dict(store.items()) == {"k": {"a": "x" * 90}}
        assert self.writes(store) == before

    def test_a_list_does_not_grow_past_the_limit(self, opened):
        store = opened(value_bytes_max=100)
        store.save("l", ["x" * 40, "x" * 40])
        with pytest.raises(ValueTooLargeError, match="'l'"):
            store.append("l", "x" * 40)
        assert len(store.load("l")) == 2

    def test_the_limit_is_the_writers_and_a_reader_reads_what_is_there(self, opened):
        opened().save("k", "x" * 1000)
        assert opened(value_bytes_max=100).load("k") == "x" * 1000

    # -- everything at once -----------------------------------------------------------------

    def test_the_wrong_number_of_things(self, kept):
        for call in (
            lambda: kept.save_many([("a", 1)]),
            lambda: kept.load_many(5),
            lambda: kept.delete_many(None),
            lambda: kept.update("good", "not a function"),
        ):
            with pytest.raises((TypeError, AttributeError, KvsageError)):
                call()
