"""The verbs on keys, one after the other: what each does and what it returns."""

import pytest

from kvsage import Entry, KeyNotFoundError, UnsupportedError
from tests.contract.base import StoreContract

LARGE = "a value of some length, " * 1000


class Verbs(StoreContract):
    # -- save, load, delete, exists ---------------------------------------------------------

    def test_save_returns_true_and_load_gives_the_value(self, store):
        assert store.save("k", {"a": [1, 2]}) is True
        assert store.load("k") == {"a": [1, 2]}

    def test_load_of_an_absent_key_gives_the_default(self, store):
        default = object()
        assert store.load("k") is None
        assert store.load("k", default) is default

    def test_a_saved_none_is_not_the_default(self, store):
        store.save("k", None)
        assert store.load("k", "default") is None
        assert store.exists("k") is True

    def test_the_last_save_counts(self, store):
        for value in (1, "two", LARGE, [4], b""):
            store.save("k", value)
            assert store.load("k") == value
        assert store.count() == 1

    def test_delete_says_whether_the_key_was_there(self, store):
        store.save("k", 1)
        assert store.delete("k") is True
        assert store.delete("k") is False
        assert store.load("k") is None
        assert store.exists("k") is False

    def test_delete_leaves_other_keys(self, store):
        store.save_many({"a": 1, "ab": 2, "b": LARGE, "c": LARGE})
        store.delete("a")
        store.delete("b")
        assert dict(store.items()) == {"ab": 2, "c": LARGE}

    def test_a_deleted_key_can_be_saved_again(self, store):
        for value in ("first", LARGE, "third"):
            assert store.save("k", value)
            assert store.load("k") == value
            assert store.delete("k")

    def test_deleting_an_absent_key_writes_nothing(self, store):
        before = self.writes(store)
        assert store.delete("k") is False
        assert store.delete_many(["k", "l"]) == 0
        assert self.writes(store) == before

    # -- add --------------------------------------------------------------------------------

    def test_add_saves_only_where_the_key_is_absent(self, store):
        assert store.add("k", 1) is True
        assert store.add("k", 2) is False
        assert store.load("k") == 1

    def test_add_after_delete(self, store):
        store.save("k", 1)
        store.delete("k")
        assert store.add("k", LARGE) is True
        assert store.load("k") == LARGE

    def test_add_that_comes_too_late_writes_nothing(self, store):
        store.save("k", 1)
        before = self.writes(store)
        store.add("k", LARGE)
        assert self.writes(store) == before

    # -- entry ------------------------------------------------------------------------------

    def test_entry_of_an_absent_key_is_none(self, store):
        assert store.entry("k") is None

    @pytest.mark.parametrize("value", ["text", b"bytes", {"a": 1}, LARGE])
    def test_entry_tells_value_and_sizes(self, store, value):
        store.save("k", value)
        entry = store.entry("k")
        assert isinstance(entry, Entry)
        assert entry.value == value
        assert entry.expires_at is None
        assert entry.stored_size > 0
        if isinstance(value, str):
            assert entry.size == len(value)

    # -- update, increment ------------------------------------------------------------------

    def test_update_gives_the_value_to_the_function_and_keeps_the_result(self, store):
        store.save("k", [1])
        assert store.update("k", lambda value: [*value, 2]) == [1, 2]
        assert store.load("k") == [1, 2]

    def test_update_of_an_absent_key_begins_with_the_default(self, store):
        seen = []
        assert store.update("a", lambda value: seen.append(value) or 1) == 1
        assert store.update("b", lambda value: seen.append(value) or 2, "default") == 2
        assert seen == [None, "default"]
        assert dict(store.items()) == {"a": 1, "b": 2}

    def test_an_error_in_the_function_passes_and_nothing_is_written(self, store):
        store.save("k", 1)
        before = self.writes(store)
        with pytest.raises(ZeroDivisionError):
            store.update("k", lambda value: value // 0)
        assert store.load("k") == 1
        assert self.writes(store) == before
        assert store.save("k", 2)  # nothing is left locked

    def test_increment(self, store):
        assert store.increment("n") == 1
        assert store.increment("n", 41) == 42
        assert store.increment("n", -50) == -8
        assert store.increment("n", 0) == -8
        assert store.load("n") == -8

    def test_increment_has_no_upper_limit(self, store):
        store.save("n", 2**63 - 1)
        assert store.increment("n") == 2**63
        assert store.increment("n", 2**80) == 2**63 + 2**80
        assert store.load("n") == 2**63 + 2**80

    @pytest.mark.parametrize("value", ["1", 1.0, True, None, [1], {"a": 1}])
    def test_only_integers_are_incremented(self, store, value):
        store.save("n", value)
        with pytest.raises(UnsupportedError, match="'n'"):
            store.increment("n")
        assert store.load("n") == value

    @pytest.mark.parametrize("delta", [1.0, "1", True, None])
    def test_a_delta_is_an_integer(self, store, delta):
        store.save("n", 1)
        with pytest.raises(UnsupportedError, match="delta"):
            store.increment("n", delta)
        assert store.load("n") == 1

    # -- lists ------------------------------------------------------------------------------

    def test_append_and_extend_give_the_new_length(self, store):
        assert store.append("l", {"a": 1}) == 1
        assert store.append("l", [2]) == 2
        assert store.extend("l", iter((3, 4))) == 4
        assert store.extend("l", []) == 4
        assert store.load("l") == [{"a": 1}, [2], 3, 4]

    def test_extend_takes_an_iterable_of_items(self, store):
        assert store.extend("l", "ab") == 2
        assert store.load("l") == ["a", "b"]

    def test_a_list_grows_past_the_size_at_which_it_becomes_content(self, store):
        messages = [f"message {number:04}: " + "x" * 60 for number in range(120)]
        for number, message in enumerate(messages, start=1):
            assert store.append("l", message) == number
        assert store.load("l") == messages

    @pytest.mark.parametrize("value", ["text", 1, None, {"a": 1}, (1, 2)])
    def test_list_verbs_refuse_what_is_no_list(self, store, value):
        store.save("l", value)
        for verb in (
            lambda: store.append("l", 1),
            lambda: store.extend("l", [1]),
            lambda: store.load_range("l"),
        ):
            with pytest.raises(UnsupportedError, match="'l'"):
                verb()
        assert store.load("l") == value

    @pytest.mark.parametrize("start", [0, 1, 4, 5, 9, -2, -9])
    def test_load_range_slices_as_a_list_does(self, store, start):
        items = list(range(5))
        store.save("l", items)
        for stop in (None, 0, 1, 3, 5, 9, -1, -9):
            assert store.load_range("l", start, stop) == items[start:stop]

    def test_load_range_of_an_absent_key_is_empty(self, store):
        assert store.load_range("l") == []
        assert store.load_range("l", 1, 2) == []

    # -- many at once -----------------------------------------------------------------------

    def test_many(self, store):
        pairs = {f"k{number}": number for number in range(50)}
        assert store.save_many(pairs) == 50
        assert store.load_many(["k3", "absent", "k1", "k3"]) == {"k3": 3, "k1": 1}
        assert store.delete_many(["k3", "absent", "k1", "k3"]) == 2
        assert store.count() == 48

    def test_many_of_none(self, store):
        before = self.writes(store)
        assert store.save_many({}) == 0
        assert store.load_many([]) == {}
        assert store.delete_many([]) == 0
        assert self.writes(store) == before

    def test_many_take_any_iterable_once(self, store):
        store.save_many({"a": 1, "b": 2, "c": 3})
        assert store.load_many(iter("ab")) == {"a": 1, "b": 2}
        assert store.delete_many(iter("ab")) == 2
        assert list(store.keys()) == ["c"]

    def test_save_many_replaces_what_is_there(self, store):
        store.save_many({"a": 1, "b": LARGE})
        assert store.save_many({"b": 2, "c": LARGE, "d": LARGE}) == 3
        assert dict(store.items()) == {"a": 1, "b": 2, "c": LARGE, "d": LARGE}

    def test_save_many_moves_values_between_keys(self, store):
        other = LARGE[::-1]
        store.save_many({"a": LARGE, "b": other})
        store.save_many({"a": other, "b": LARGE})
        assert dict(store.items()) == {"a": other, "b": LARGE}
        store.save_many({"a": "small", "c": other})
        assert dict(store.items()) == {"a": "small", "b": LARGE, "c": other}

    def test_load_many_keeps_a_saved_none(self, store):
        store.save("a", None)
        assert store.load_many(["a", "b"]) == {"a": None}

    # -- count, clear -----------------------------------------------------------------------

    def test_count_and_clear_by_prefix(self, store):
        store.save_many({"a": 1, "a:1": 2, "a:2": LARGE, "b": LARGE})
        assert [store.count(), store.count("a:"), store.count("z")] == [4, 2, 0]
        assert store.clear("a:") == 2
        assert dict(store.items()) == {"a": 1, "b": LARGE}
        assert store.clear("z") == 0
        assert store.clear() == 2
        assert list(store.keys()) == []
        assert store.count() == 0

    # -- ttl and touch without a clock ------------------------------------------------------

    def test_ttl_of_a_permanent_and_of_an_absent_key(self, store):
        store.save("k", 1)
        assert store.ttl("k") is None
        with pytest.raises(KeyNotFoundError, match="'absent'") as caught:
            store.ttl("absent")
        assert isinstance(caught.value, KeyError)

    def test_touch_says_whether_the_key_was_there(self, store):
        store.save("k", LARGE)
        assert store.touch("k", 5) is True
        assert store.touch("absent", 5) is False
        assert store.touch("absent", None) is False
        assert not store.exists("absent")
        assert store.load("k") == LARGE

    # -- transact ---------------------------------------------------------------------------

    def test_transact_returns_what_the_function_returns(self, store):
        assert store.transact(lambda tx: (tx.save("k", 1), tx.load("k"))) == (True, 1)
        assert store.load("k") == 1

    def test_transact_keeps_nothing_where_the_function_fails(self, store):
        def fail(tx):
            tx.save("k", 1)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            store.transact(fail)
        assert store.load("k") is None

    # -- the kind ---------------------------------------------------------------------------

    def test_a_store_survives_its_handle(self, store, opened):
        if not store.capabilities.persistent:
            pytest.skip("nothing outlives this store's handle")
        pairs = {"a": 1, "b": LARGE, "c": b"\0"}
        store.save_many(pairs)
        store.close()
        assert dict(opened().items()) == pairs
