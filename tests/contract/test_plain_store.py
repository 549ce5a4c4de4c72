"""A store with the four verbs alone: what it is given, and what it must refuse."""

import pytest

from kvsage import Capabilities, PersistenceStore, TransactionalStore, UnsupportedError
from kvsage.store import Snapshot, Transaction


class FourVerbs(PersistenceStore):
    """All that anyone has to write."""

    def __init__(self):
        self.kept = {}
        self.closed = 0

    def save(self, key, value, ttl=None):
        del ttl
        self.kept[key] = value
        return True

    def load(self, key, default=None):
        return self.kept.get(key, default)

    def delete(self, key):
        absent = object()
        return self.kept.pop(key, absent) is not absent

    def exists(self, key):
        return key in self.kept

    def close(self):
        self.closed += 1


class WithKeys(FourVerbs):
    """And what a store that can list its keys adds."""

    def keys(self, prefix="", *, start=None, stop=None, reverse=False, limit=None):
        del start, stop, reverse, limit
        return iter([key for key in self.kept if key.startswith(prefix)])


@pytest.fixture
def store():
    return FourVerbs()


def test_a_store_has_exactly_four_abstract_verbs():
    assert PersistenceStore.__abstractmethods__ == {"save", "load", "delete", "exists"}
    assert TransactionalStore.__abstractmethods__ == {
        *PersistenceStore.__abstractmethods__,
        "transaction",
    }


@pytest.mark.parametrize("missing", ["save", "load", "delete", "exists"])
def test_each_of_the_four_is_needed(missing):
    verbs = {name: getattr(FourVerbs, name) for name in PersistenceStore.__abstractmethods__}
    del verbs[missing]
    with pytest.raises(TypeError, match=missing):
        type("Incomplete", (PersistenceStore,), verbs)()


def test_views_read_and_transactions_read_and_write():
    assert issubclass(Transaction, Snapshot)
    assert {"load", "exists", "entry", "ttl", "keys", "items"} == Snapshot.__abstractmethods__
    more = {"save", "delete", "touch", "replace"}
    assert Transaction.__abstractmethods__ - Snapshot.__abstractmethods__ == more


def test_a_plain_store_promises_nothing(store):
    assert store.capabilities == Capabilities()
    assert not any(getattr(store.capabilities, name) for name in Capabilities.__dataclass_fields__)


def test_what_four_verbs_allow_is_given(store):
    assert store.save_many({"a": 1, "l": [1, 2, 3], "none": None}) == 3
    assert store.load_many(["a", "none", "absent"]) == {"a": 1, "none": None}
    assert store.load_range("l", 1) == [2, 3]
    assert store.load_range("absent") == []
    with pytest.raises(UnsupportedError, match="'a'"):
        store.load_range("a")
    assert store.delete_many(["a", "absent", "l"]) == 2
    with store as same:
        assert same is store
    assert store.closed == 1


@pytest.mark.parametrize(
    ("verb", "use"),
    [
        ("add", lambda s: s.add("k", 1)),
        ("entry", lambda s: s.entry("k")),
        ("update", lambda s: s.update("k", str)),
        ("increment", lambda s: s.increment("k")),
        ("append", lambda s: s.append("k", 1)),
        ("extend", lambda s: s.extend("k", [1])),
        ("touch", lambda s: s.touch("k", 1)),
        ("ttl", lambda s: s.ttl("k")),
        ("keys", lambda s: s.keys()),
        ("keys", lambda s: list(s.items())),
        ("keys", lambda s: s.count()),
        ("keys", lambda s: s.clear()),
        ("snapshot", lambda s: s.snapshot()),
        ("transaction", lambda s: s.transaction()),
        ("transaction", lambda s: s.transact(str)),
        ("stats", lambda s: s.stats()),
    ],
)
def test_what_four_verbs_do_not_allow_is_refused_by_name(store, verb, use):
    store.save("k", 1)
    with pytest.raises(UnsupportedError, match=rf"FourVerbs has no {verb}\(\)"):
        use(store)
    assert store.kept == {"k": 1}


def test_keys_bring_items_count_and_clear():
    store = WithKeys()
    store.save_many({"a": 1, "a:1": 2, "b": None})
    assert list(store.items()) == [("a", 1), ("a:1", 2), ("b", None)]
    assert list(store.items(limit=2)) == [("a", 1), ("a:1", 2)]
    assert store.count("a") == 2
    assert store.clear("a") == 2
    assert store.kept == {"b": None}


def test_items_leave_out_what_went_away_during_the_scan():
    store = WithKeys()
    store.save_many({"a": 1, "b": 2, "c": 3})
    scan = store.items()
    assert next(scan) == ("a", 1)
    store.delete("b")
    assert list(scan) == [("c", 3)]
