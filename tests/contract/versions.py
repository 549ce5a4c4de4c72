"""Versions: a save that names one happens only on the state that it named."""

import pytest

from kvsage import ConfigError, InvalidKeyError, KvsageError
from tests.contract.base import StoreContract

LARGE = "a value of some length, " * 1000

WRITES = {
    "save": lambda s: s.save("k", "other"),
    "save of the same value": lambda s: s.save("k", 1),
    "save_many": lambda s: s.save_many({"k": "other"}),
    "update": lambda s: s.update("k", lambda value: value),
    "increment": lambda s: s.increment("k", 0),
    "touch": lambda s: s.touch("k", 5),
    "delete and save": lambda s: (s.delete("k"), s.save("k", 1)),
    "clear and add": lambda s: (s.clear(), s.add("k", 1)),
    "transaction": lambda s: s.transact(lambda tx: tx.save("k", 1)),
    "large value": lambda s: s.save("k", LARGE),
    "if_version": lambda s: s.save("k", 1, if_version=s.entry("k").version),
}

GARBAGE = ["", "x", "1", "1@", "@", "pending", "-1@" + "0" * 16, "1@" + "0" * 17]
GARBAGE += ["9" * 5000 + "@" + "0" * 16]


class Versions(StoreContract):
    def test_a_save_on_the_state_that_was_read(self, store):
        store.save("k", 1)
        assert store.save("k", 2, if_version=store.entry("k").version) is True
        assert store.load("k") == 2

    def test_reading_changes_no_version(self, store):
        store.save("k", 1)
        version = store.entry("k").version
        store.load("k")
        list(store.items())
        store.save("other", 1)
        store.delete("other")
        assert store.entry("k").version == version
        assert store.save("k", 2, if_version=version) is True

    @pytest.mark.parametrize("write", WRITES)
    def test_any_write_changes_the_version(self, store, write):
        store.save("k", 1)
        version = store.entry("k").version
        WRITES[write](store)
        assert store.entry("k").version != version
        before = store.load("k")
        writes = self.writes(store)
        assert store.save("k", "lost update", if_version=version) is False
        assert store.load("k") == before
        assert self.writes(store) == writes

    @pytest.mark.parametrize("write", [name for name in WRITES if name != "transaction"])
    def test_any_write_changes_the_version_in_a_transaction(self, store, write):
        store.save("k", 1)
        version = store.entry("k").version
        with store.transaction() as tx:
            WRITES[write](tx)
            assert tx.entry("k").version != version
            before = tx.load("k")
            assert tx.save("k", "lost update", if_version=version) is False
            assert tx.load("k") == before

    def test_the_version_of_a_key_that_is_gone(self, store):
        store.save("k", 1)
        version = store.entry("k").version
        store.delete("k")
        assert store.save("k", 2, if_version=version) is False
        assert not store.exists("k")

    def test_a_save_by_version_replaces_the_expiry(self, store):
        store.save("k", 1, ttl=10)
        assert store.save("k", 1, ttl=20, if_version=store.entry("k").version)
        assert store.ttl("k") == 20
        assert store.save("k", 1, if_version=store.entry("k").version)
        assert store.ttl("k") is None

    def test_of_two_that_read_the_same_state_one_wins(self, store):
        store.save("k", 0)
        version = store.entry("k").version
        outcomes = [store.save("k", number, if_version=version) for number in range(1, 4)]
        assert outcomes == [True, False, False]
        assert store.load("k") == 1

    def test_a_version_read_in_a_snapshot_is_the_stores(self, store):
        store.save("k", 1)
        with store.snapshot() as view:
            version = view.entry("k").version
            assert version == store.entry("k").version
            store.save("k", 2)
            assert view.entry("k").version == version
        assert store.save("k", 3, if_version=version) is False

    def test_a_version_holds_in_a_transaction(self, store):
        store.save("k", 1)
        version = store.entry("k").version
        with store.transaction() as tx:
            assert tx.entry("k").version == version
            assert tx.save("k", 2, if_version=version) is True
        assert store.load("k") == 2
        with store.transaction() as tx:
            assert tx.save("k", 3, if_version=version) is False
        assert store.load("k") == 2

    def test_a_version_seen_in_a_transaction_that_rolled_back_is_no_ones(self, store):
        store.save("k", 1)
        with store.transaction() as tx:
            tx.save("k", 2)
            seen = tx.entry("k").version
            tx.rollback()
        assert store.load("k") == 1
        with store.transaction() as tx:
            tx.save("k", 3)
            assert tx.save("k", "lost update", if_version=seen) is False
        assert store.load("k") == 3

    def test_a_version_outlives_the_handle(self, store, opened):
        if not store.capabilities.persistent:
            pytest.skip("nothing outlives this store's handle")
        store.save_many({"k": 1, "changed": 1})
        version, changed = store.entry("k").version, store.entry("changed").version
        store.save("changed", 2)
        store.close()
        again = opened()
        assert again.save("changed", 3, if_version=changed) is False
        assert again.save("k", 2, if_version=version) is True

    def test_a_version_of_another_store_is_none_of_this_one(self, store, clock, tmp_path):
        store.save("k", 1)
        with self.open_store(tmp_path / "another", clock) as other:
            other.save("k", 1)
            foreign = other.entry("k").version
        assert store.save("k", "lost update", if_version=foreign) is False
        assert store.load("k") == 1

    @pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
    def test_garbage_is_refused_and_nothing_written(self, store, garbage):
        store.save("k", 1)
        before = self.writes(store)
        with pytest.raises(ConfigError):
            store.save("k", "lost update", if_version=garbage)
        assert store.load("k") == 1
        assert self.writes(store) == before

    @pytest.mark.parametrize("garbage", [0, 5, b"1", 1.5, ("1",)])
    def test_what_is_no_text_is_refused(self, store, garbage):
        store.save("k", 1)
        with pytest.raises(KvsageError):
            store.save("k", "lost update", if_version=garbage)
        assert store.load("k") == 1

    @pytest.mark.parametrize("garbage", [*GARBAGE, 5])
    def test_garbage_changes_nothing_in_a_transaction(self, store, garbage):
        store.save("k", 1)
        with store.transaction() as tx:
            try:
                saved = tx.save("k", "lost update", if_version=garbage)
            except KvsageError:
                saved = False
            assert saved is False
        assert store.load("k") == 1

    def test_bad_input_is_refused_whether_or_not_the_version_still_holds(
        self, store, clock, tmp_path
    ):
        store.save("k", 1)
        old = store.entry("k").version
        store.save("k", 2)
        with self.open_store(tmp_path / "another", clock) as other:
            other.save("k", 1)
            foreign = other.entry("k").version
        for version in (store.entry("k").version, old, foreign):
            with pytest.raises(InvalidKeyError):
                store.save("", 1, if_version=version)
