"""The contract's own code: keys and bounds, and what follows from four verbs or a transaction."""

import json
from contextlib import contextmanager
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsage.errors import (
    InvalidKeyError,
    KeyNotFoundError,
    TransactionConflictError,
    UnsupportedError,
)
from kvsage.store import (
    KEY_BYTES_MAX,
    PersistenceStore,
    Snapshot,
    Transaction,
    TransactionalStore,
    added,
    encode_bound,
    encode_key,
    not_a_list,
    not_found,
)
from kvsage.types import Capabilities, Entry

# -- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "a",
        " ",
        "\0",
        "a/../b",
        "x" * 480,
        "ü" * 240,
        "€" * 160,
        "😀" * 120,
        "\ufffd",
        "\uffff",
        "\U0010ffff",
    ],
)
def test_keys_of_up_to_480_bytes(key):
    assert encode_key(key) == key.encode("utf-8")


@pytest.mark.parametrize(
    "key", ["x" * 481, "ü" * 240 + "x", "€" * 160 + "x", "😀" * 120 + "x", "ü" * 241, "x" * 10**6]
)
def test_keys_of_more_are_refused_with_their_size_and_the_limit(key):
    with pytest.raises(InvalidKeyError, match=str(KEY_BYTES_MAX)) as raised:
        encode_key(key)
    assert str(len(key.encode())) in str(raised.value)
    assert repr(key)[:20] in str(raised.value)
    assert len(str(raised.value)) < 300
    assert isinstance(raised.value, ValueError)


def test_the_empty_key_is_refused():
    with pytest.raises(InvalidKeyError, match="at least one character"):
        encode_key("")


@pytest.mark.parametrize("key", ["\ud800", "a\udfffb", "\udcff" * 5, "x" * 500 + "\ud800"])
def test_lone_surrogates_are_refused(key):
    with pytest.raises(InvalidKeyError, match="not valid Unicode"):
        encode_key(key)


class Tokenizer:
    def encode(self, text):
        raise AssertionError(text)


class Encodes:
    """Something with an ``encode`` of its own, which is no ``str`` for all that."""

    def __init__(self, result):
        self.result = result

    def encode(self):
        return self.result


@pytest.mark.parametrize(
    "key",
    [
        None,
        5,
        1.5,
        True,
        b"bytes",
        bytearray(b"bytes"),
        ("a",),
        ["a"],
        {"a": 1},
        object(),
        str,
        Tokenizer(),
        Encodes("text"),
        Encodes(5),
        Encodes(b"bytes"),
        Encodes(None),
    ],
    ids=lambda key: type(key).__name__,
)
def test_what_is_no_str_is_refused(key):
    with pytest.raises(InvalidKeyError, match="a key is a str") as raised:
        encode_key(key)
    assert type(key).__name__ in str(raised.value)


def test_a_kind_of_str_is_a_str():
    class Name(str):
        __slots__ = ()

    assert encode_key(Name("a")) == b"a"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=130))
def test_every_text_that_fits_is_a_key(key):
    data = key.encode()
    if len(data) <= KEY_BYTES_MAX:
        assert encode_key(key) == data
    else:
        with pytest.raises(InvalidKeyError):
            encode_key(key)


# -- bounds -------------------------------------------------------------------------------------


def test_bounds_may_be_absent_empty_or_long():
    assert encode_bound(None, "start") is None
    assert encode_bound("", "prefix") == b""
    assert encode_bound("ü" * 1000, "stop") == "ü".encode() * 1000


@pytest.mark.parametrize("bound", [b"a", 5, ["a"], "\ud800"])
def test_a_bound_that_is_no_text_is_refused_by_name(bound):
    with pytest.raises(InvalidKeyError, match="stop"):
        encode_bound(bound, "stop")


# -- small errors -------------------------------------------------------------------------------


def test_errors_say_the_key():
    assert str(not_found("a'b")) == 'no key "a\'b"'
    assert isinstance(not_found("a"), KeyError)
    assert "'k' holds a dict, not a list" in str(not_a_list("k", {}))


@pytest.mark.parametrize(("value", "delta"), [(True, 1), (1.0, 1), ("1", 1), (None, 1), ([], 1)])
def test_only_integers_are_counted_up(value, delta):
    with pytest.raises(UnsupportedError, match="'k' holds"):
        added("k", value, delta)


@pytest.mark.parametrize("delta", [True, 1.0, "1", None])
def test_only_by_integers(delta):
    with pytest.raises(UnsupportedError, match="delta"):
        added("k", 1, delta)


def test_counting_beyond_64_bits():
    assert added("k", 1 << 64, 1) == (1 << 64) + 1
    assert added("k", 5, -7) == -2


# -- a store of four verbs ----------------------------------------------------------------------


class Four(PersistenceStore):
    """As little as a store can be."""

    def __init__(self):
        self.data = {}
        self.closed = 0

    def save(self, key, value, ttl=None):
        self.data[key] = (json.dumps(value), ttl)
        return True

    def load(self, key, default=None):
        return json.loads(self.data[key][0]) if key in self.data else default

    def delete(self, key):
        return self.data.pop(key, None) is not None

    def exists(self, key):
        return key in self.data

    def close(self):
        self.closed += 1


class Keyed(Four):
    """One verb more: it can list its keys."""

    def keys(self, prefix="", *, start=None, stop=None, reverse=False, limit=None):
        chosen = [
            key
            for key in sorted(self.data, reverse=reverse)
            if key.startswith(prefix)
            and (start is None or key >= start)
            and (stop is None or key < stop)
        ]
        return iter(chosen[:limit])


@pytest.fixture
def four():
    return Four()


@pytest.fixture
def keyed():
    store = Keyed()
    store.save_many({"a": 1, "b": None, "ba": [], "c": 4})
    return store


def test_four_verbs_are_all_that_is_asked_for():
    assert PersistenceStore.__abstractmethods__ == {"save", "load", "delete", "exists"}
    with pytest.raises(TypeError):
        PersistenceStore()


def test_many_at_once_from_four_verbs(four):
    assert four.save_many({"a": 1, "b": None}, ttl=5) == 2
    assert four.data == {"a": ("1", 5), "b": ("null", 5)}
    assert four.save_many({}) == 0
    assert four.load_many(["b", "x", "a", "a"]) == {"b": None, "a": 1}  # None is a value
    assert four.load_many(iter(())) == {}
    assert four.delete_many(iter(["a", "x", "a"])) == 1
    assert four.delete_many([]) == 0
    assert list(four.data) == ["b"]


def test_a_slice_of_a_list_from_four_verbs(four):
    four.save("list", [0, 1, 2, 3, 4])
    four.save("text", "01234")
    assert four.load_range("list") == [0, 1, 2, 3, 4]
    assert four.load_range("list", 1, 3) == [1, 2]
    assert four.load_range("list", -2) == [3, 4]
    assert four.load_range("list", 3, 1) == four.load_range("absent") == []
    with pytest.raises(UnsupportedError, match="'text' holds a str, not a list"):
        four.load_range("text", 1, 2)


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("add", ("k", 1)),
        ("entry", ("k",)),
        ("update", ("k", str)),
        ("increment", ("k",)),
        ("append", ("k", 1)),
        ("extend", ("k", [1])),
        ("touch", ("k", 1)),
        ("ttl", ("k",)),
        ("keys", ()),
        ("snapshot", ()),
        ("transaction", ()),
        ("transact", (str,)),
        ("items", ()),
        ("count", ()),
        ("clear", ()),
        ("stats", ()),
    ],
)
def test_what_four_verbs_cannot_give_is_never_pretended(four, verb, arguments):
    four.save("k", 1)
    with pytest.raises(UnsupportedError, match=r"Four has no (keys|transaction|[a-z]+)\(\)"):
        list(getattr(four, verb)(*arguments))
    assert four.data == {"k": ("1", None)}


def test_with_keys_there_are_items_count_and_clear(keyed):
    assert list(keyed.items()) == [("a", 1), ("b", None), ("ba", []), ("c", 4)]
    assert list(keyed.items("b")) == [("b", None), ("ba", [])]
    assert list(keyed.items(start="b", stop="c")) == [("b", None), ("ba", [])]
    assert list(keyed.items(reverse=True, limit=2)) == [("c", 4), ("ba", [])]
    assert list(keyed.items(limit=0)) == []
    assert (keyed.count(), keyed.count("b"), keyed.count("x")) == (4, 2, 0)
    assert keyed.clear("b") == 2
    assert keyed.clear() == 2
    assert keyed.data == {}


def test_items_pass_over_what_vanished_meanwhile(keyed):
    items = keyed.items(limit=3)
    assert next(items) == ("a", 1)
    del keyed.data["b"]
    assert list(items) == [("ba", []), ("c", 4)]  # the limit counts what is given


def test_a_store_is_closed_behind_its_block(four):
    with four as store:
        assert store is four
    assert four.closed == 1
    with pytest.raises(ZeroDivisionError), four:
        _ = 1 / 0
    assert four.closed == 2
    assert four.capabilities == Capabilities()


def test_close_is_nothing_where_there_is_nothing_to_release():
    class Nothing(Four):
        close = PersistenceStore.close

    Nothing().close()


# -- transactions -------------------------------------------------------------------------------


class Overlay(Transaction):
    """A transaction over a dictionary, with what every transaction must bring and no more."""

    def __init__(self, data):
        self.data = data

    def load(self, key, default=None):
        return self.data[key][0] if key in self.data else default

    def exists(self, key):
        return key in self.data

    def entry(self, key):
        return Entry(*self.data[key], None, 1, 1) if key in self.data else None

    def ttl(self, key):
        if key not in self.data:
            raise not_found(key)
        return self.data[key][1]

    def keys(self, prefix="", **_):
        return iter(sorted(key for key in self.data if key.startswith(prefix)))

    def items(self, prefix="", **options):
        return ((key, self.load(key)) for key in self.keys(prefix, **options))

    def save(self, key, value, ttl=None, **_):
        self.data[key] = (value, ttl)
        return True

    def replace(self, key, value):
        self.data[key] = (value, self.data.get(key, (None, None))[1])

    def delete(self, key):
        return self.data.pop(key, None) is not None

    def touch(self, key, ttl):
        if key in self.data:
            self.data[key] = (self.data[key][0], ttl)
        return key in self.data


class WithTransactions(Four, TransactionalStore):
    """A store of which every commit may be made to conflict a few times."""

    def __init__(self):
        super().__init__()
        self.begun = 0
        self.conflicts = 0

    @contextmanager
    def transaction(self):
        self.begun += 1
        copy = dict(self.data)
        yield Overlay(copy)
        if self.conflicts:
            self.conflicts -= 1
            raise TransactionConflictError("someone else was first")
        self.data = copy

    save_many = TransactionalStore.save_many
    delete_many = TransactionalStore.delete_many
    clear = TransactionalStore.clear


@pytest.fixture
def store():
    return WithTransactions()


def test_every_verb_is_one_transaction(store):
    calls = [
        (store.add("a", 1, 60), True),
        (store.add("a", 2), False),
        (store.update("a", lambda value: value + 1), 2),
        (store.update("new", lambda value: [value], "default"), ["default"]),
        (store.increment("a"), 3),
        (store.increment("n", 5), 5),
        (store.append("list", 1), 1),
        (store.extend("list", iter([2, 3])), 3),
        (store.ttl("a"), 60),
        (store.touch("a", None), True),
        (store.touch("x", 5), False),
        (store.ttl("a"), None),
        (store.save_many({"s1": 1, "s2": 2}, timedelta(1)), 2),
        (store.delete_many(iter(["s1", "x"])), 1),
        (store.entry("x"), None),
        (store.entry("a"), Entry(3, None, None, 1, 1)),
        (store.clear("l"), 1),
    ]
    for number, (result, expected) in enumerate(calls):
        assert result == expected, number
    assert store.begun == len(calls)
    assert {key: value for key, (value, _) in store.data.items()} == {
        "a": 3,
        "new": ["default"],
        "n": 5,
        "s2": 2,
    }


def test_update_and_its_like_keep_the_expiry(store):
    for key, value in [("u", 0), ("i", 0), ("l", [])]:
        store.add(key, value, 60)
    store.update("u", str)
    store.increment("i")
    store.append("l", 1)
    store.extend("l", [2])
    assert store.data == {"u": ("0", 60), "i": (1, 60), "l": ([1, 2], 60)}


def test_a_verb_that_fails_keeps_nothing(store):
    store.add("text", "abc", 60)
    before = dict(store.data)
    for verb, arguments, expected in [
        (store.increment, ("text",), UnsupportedError),
        (store.append, ("text", 1), UnsupportedError),
        (store.extend, ("text", [1]), UnsupportedError),
        (store.update, ("text", int), ValueError),
        (store.ttl, ("absent",), KeyNotFoundError),
    ]:
        with pytest.raises(expected):
            verb(*arguments)
    assert store.data == before


def test_a_list_that_is_extended_is_not_the_one_that_was_loaded(store):
    before = [1]
    store.add("list", before)
    store.append("list", 2)
    assert before == [1]


def test_a_conflict_is_tried_again(store):
    store.conflicts = 3
    assert store.increment("n") == 1
    assert store.begun == 4


def test_arguments_that_are_read_once_survive_a_conflict(store):
    store.conflicts = 2
    assert store.extend("list", iter([1, 2])) == 2
    assert store.data["list"][0] == [1, 2]
    store.conflicts = 2
    assert store.delete_many(iter(["list"])) == 1


def test_conflicts_without_end_are_raised(store):
    store.conflicts = 100
    with pytest.raises(TransactionConflictError):
        store.transact(lambda tx: tx.save("a", 1), retries=2)
    assert store.begun == 3
    with pytest.raises(TransactionConflictError):
        store.transact(lambda tx: tx.save("a", 1), retries=0)
    assert store.begun == 4
    with pytest.raises(TransactionConflictError):
        store.transact(lambda tx: tx.save("a", 1))
    assert store.begun == 15
    assert store.data == {}


def test_transact_gives_what_the_function_gives(store):
    assert store.transact(lambda tx: (tx.save("a", 1), tx.load("a"))) == (True, 1)
    with pytest.raises(ZeroDivisionError):
        store.transact(lambda tx: (tx.save("b", 1), 1 / 0))
    assert list(store.data) == ["a"]
    assert store.begun == 2  # only a conflict is tried again


def test_what_a_transaction_derives():
    tx = Overlay({"a": (1, None), "l": ([1, 2, 3], 9), "m": (None, None)})
    assert tx.load_many(["a", "m", "x"]) == {"a": 1, "m": None}
    assert tx.load_range("l", 1) == [2, 3]
    assert tx.load_range("x") == []
    with pytest.raises(UnsupportedError, match="not a list"):
        tx.load_range("a")
    assert (tx.count(), tx.count("l")) == (3, 1)
    assert tx.save_many({"s": 1, "t": 2}, 5) == 2
    assert tx.data["s"] == (1, 5)
    assert tx.delete_many(["s", "x"]) == 1
    assert tx.clear() == 4


def test_what_views_must_bring():
    assert Snapshot.__abstractmethods__ == {"load", "exists", "entry", "ttl", "keys", "items"}
    more = {"save", "delete", "touch", "replace"}
    assert Transaction.__abstractmethods__ == Snapshot.__abstractmethods__ | more
    assert "transaction" in TransactionalStore.__abstractmethods__
