"""Expiry: expired means absent, for every verb, at the very instant and not before."""

from datetime import UTC, datetime, timedelta

import pytest

from kvsage import KeyNotFoundError
from tests.contract.base import StoreContract

LARGE = "a value of some length, " * 1000


class Expiry(StoreContract):
    @pytest.fixture(params=["small", LARGE], ids=["small", "large"])
    def value(self, request):
        return request.param

    # -- the edge ---------------------------------------------------------------------------

    def test_a_key_is_there_until_its_expiry_and_absent_from_then_on(self, store, clock, value):
        store.save("k", value, ttl=10)
        clock.advance(9.5)
        assert store.load("k") == value
        clock.advance(0.5)
        assert store.load("k", "absent") == "absent"
        clock.advance(1)
        assert store.load("k", "absent") == "absent"

    def test_absent_for_every_verb_exactly_at_expiry(self, store, clock, value):
        store.save("k", value, ttl=10)
        store.save("other", 1)
        version = store.entry("k").version
        clock.advance(10)
        assert store.load("k") is None
        assert store.exists("k") is False
        assert store.entry("k") is None
        assert store.load_many(["k", "other"]) == {"other": 1}
        assert store.load_range("k") == []
        assert list(store.keys()) == ["other"]
        assert list(store.keys(reverse=True, limit=1)) == ["other"]
        assert dict(store.items()) == {"other": 1}
        assert store.count() == 1
        assert store.count("k") == 0
        with pytest.raises(KeyNotFoundError):
            store.ttl("k")
        assert store.touch("k", 5) is False
        assert store.delete("k") is False
        assert store.delete_many(["k"]) == 0
        assert store.clear("k") == 0
        assert store.save("k", "late", if_version=version) is False
        with store.snapshot() as view:
            assert view.load("k") is None
            assert view.exists("k") is False
        with store.transaction() as tx:
            assert tx.load("k") is None
            assert tx.exists("k") is False
            assert tx.touch("k", 5) is False
            assert tx.delete("k") is False
            assert list(tx.keys()) == ["other"]

    def test_an_expired_key_can_be_added(self, store, clock, value):
        store.save("k", value, ttl=10)
        assert store.add("k", "new") is False
        clock.advance(10)
        assert store.add("k", "new") is True
        assert store.ttl("k") is None

    @pytest.mark.parametrize("there", [True, False])
    def test_read_modify_write_verbs_begin_anew_at_expiry(self, store, clock, there):
        store.save_many({"n": 5, "u": "old", "l": [1, 2]}, ttl=10)
        clock.advance(9.5 if there else 10)
        assert store.increment("n") == (6 if there else 1)
        assert store.update("u", str, "default") == ("old" if there else "default")
        assert store.append("l", 3) == (3 if there else 1)
        for key in "nul":
            assert store.ttl(key) == (0.5 if there else None)

    # -- ttl --------------------------------------------------------------------------------

    @pytest.mark.parametrize("ttl", [10, 10.0, timedelta(seconds=10)])
    def test_ttl_counts_down_in_seconds(self, store, clock, ttl):
        store.save("k", 1, ttl)
        assert store.ttl("k") == 10.0
        assert isinstance(store.ttl("k"), float)
        clock.advance(7.25)
        assert store.ttl("k") == 2.75

    def test_entry_tells_the_instant(self, store, clock):
        store.save("k", 1, ttl=timedelta(minutes=2))
        assert store.entry("k").expires_at == datetime.fromtimestamp(clock() + 120, UTC)

    def test_a_ttl_of_less_than_a_millisecond_still_keeps_the_key_for_a_moment(self, store, clock):
        store.save("k", 1, ttl=1e-5)
        assert store.exists("k")
        clock.advance(0.002)
        assert not store.exists("k")

    @pytest.mark.parametrize("ttl", [100_000_000_000, timedelta(days=1_000_000)])
    def test_a_very_long_ttl(self, store, clock, ttl):
        store.save("k", 1, ttl)
        clock.advance(50_000_000_000)
        assert store.exists("k")
        assert store.entry("k").expires_at.year > 3000

    # -- who keeps and who replaces the expiry ----------------------------------------------

    def test_save_replaces_the_expiry(self, store, clock, value):
        store.save("k", value, ttl=10)
        store.save("k", value, ttl=20)
        assert store.ttl("k") == 20
        store.save("k", value)
        assert store.ttl("k") is None
        clock.advance(100)
        assert store.load("k") == value

    def test_save_many_replaces_the_expiry_of_each(self, store, clock):
        store.save_many({"a": 1, "b": LARGE}, ttl=10)
        assert [store.ttl("a"), store.ttl("b")] == [10, 10]
        store.save_many({"b": LARGE})
        clock.advance(10)
        assert dict(store.items()) == {"b": LARGE}

    def test_update_increment_and_lists_keep_the_expiry_to_the_millisecond(self, store, clock):
        store.save_many({"n": 1, "u": 1, "l": []}, ttl=0.125)
        before = {key: store.entry(key).expires_at for key in "nul"}
        clock.advance(0.0625)
        store.increment("n")
        store.update("u", lambda _: LARGE)
        store.append("l", 1)
        store.extend("l", [2, LARGE])
        assert {key: store.entry(key).expires_at for key in "nul"} == before
        clock.advance(0.0625)
        assert store.count() == 0

    def test_verbs_that_find_nothing_to_keep_make_permanent_keys(self, store, clock):
        store.increment("n")
        store.update("u", lambda _: 1)
        store.append("l", 1)
        clock.advance(1e9)
        assert store.count() == 3

    def test_touch_sets_the_expiry_from_now(self, store, clock, value):
        store.save("k", value, ttl=10)
        clock.advance(6)
        assert store.touch("k", 10) is True
        assert store.ttl("k") == 10
        clock.advance(9.5)
        assert store.load("k") == value
        clock.advance(0.5)
        assert not store.exists("k")

    def test_touch_may_shorten(self, store, clock, value):
        store.save("k", value, ttl=100)
        store.touch("k", 1)
        clock.advance(1)
        assert not store.exists("k")

    def test_touch_none_makes_permanent(self, store, clock, value):
        store.save("k", value, ttl=10)
        assert store.touch("k", None) is True
        assert store.ttl("k") is None
        assert store.entry("k").expires_at is None
        clock.advance(1e9)
        assert store.load("k") == value

    def test_touch_lets_a_permanent_key_expire(self, store, clock, value):
        store.save("k", value)
        store.touch("k", 10)
        clock.advance(10)
        assert not store.exists("k")

    def test_touch_leaves_the_value(self, store):
        values = {"a": "text", "b": b"bytes", "c": {"d": [1]}, "e": LARGE, "f": LARGE.encode()}
        store.save_many(values)
        for key in values:
            store.touch(key, 10)
        found = dict(store.items())
        assert found == values
        assert {key: type(value) for key, value in found.items()} == {
            key: type(value) for key, value in values.items()
        }

    # -- ttl_default ------------------------------------------------------------------------

    def test_ttl_default_applies_only_where_none_is_given(self, opened):
        store = opened(ttl_default=timedelta(seconds=10))
        store.save("save", 1)
        store.add("add", 1)
        store.save_many({"many": 1})
        with store.transaction() as tx:
            tx.save("tx.save", 1)
            tx.add("tx.add", 1)
            tx.save_many({"tx.many": 1})
        names = ["add", "many", "save", "tx.add", "tx.many", "tx.save"]
        assert list(store.keys()) == names
        assert {name: store.ttl(name) for name in names} == dict.fromkeys(names, 10)
        store.save("save", 1, ttl=20)
        store.add("add.given", 1, ttl=20)
        store.save_many({"many": 1}, ttl=20)
        assert [store.ttl("save"), store.ttl("add.given"), store.ttl("many")] == [20, 20, 20]

    def test_touch_none_is_permanent_whatever_the_default(self, opened):
        store = opened(ttl_default=10)
        store.save("k", 1)
        store.touch("k", None)
        assert store.ttl("k") is None
        with store.transaction() as tx:
            tx.save("t", 1)
            tx.touch("t", None)
        assert store.ttl("t") is None

    def test_verbs_that_keep_the_expiry_do_not_apply_the_default_to_a_permanent_key(self, opened):
        store = opened(ttl_default=10)
        store.save_many({"n": 1, "l": []})
        store.touch("n", None)
        store.touch("l", None)
        store.increment("n")
        store.append("l", 1)
        assert [store.ttl("n"), store.ttl("l")] == [None, None]

    def test_ttl_default_belongs_to_the_handle(self, opened):
        opened(ttl_default=10).save("a", 1)
        opened().save("b", 1)
        assert [opened().ttl("a"), opened().ttl("b")] == [10, None]

    # -- a clock that goes back -------------------------------------------------------------

    def test_a_clock_that_goes_back_harms_no_permanent_key(self, store, clock, value):
        store.save("k", value)
        clock.advance(-1e9)
        assert store.load("k") == value
        store.save("k", value, ttl=10)
        assert store.ttl("k") == 10

    def test_what_was_deleted_stays_away_when_the_clock_goes_back(self, store, clock, value):
        store.save("k", value, ttl=10)
        store.delete("k")
        clock.advance(-100)
        assert not store.exists("k")

    def test_a_delete_in_a_transaction_holds_though_the_key_expires_before_the_commit(
        self, store, clock, value
    ):
        store.save("k", value, ttl=10)
        with store.transaction() as tx:
            assert tx.delete("k") is True
            clock.advance(10)
        clock.advance(-10)
        assert not store.exists("k")

    # -- views ------------------------------------------------------------------------------

    def test_a_snapshot_judges_by_the_time_at_which_it_began(self, store, clock, value):
        store.save("k", value, ttl=10)
        clock.advance(9)
        with store.snapshot() as view:
            clock.advance(1)
            assert not store.exists("k")
            assert view.load("k") == value
            assert view.exists("k")
            assert view.ttl("k") == 1
            assert view.count() == 1
            assert list(view.keys()) == ["k"]
            assert dict(view.items()) == {"k": value}

    def test_a_transaction_sees_its_own_writes_expire(self, store, clock):
        with store.transaction() as tx:
            tx.save("k", 1, ttl=10)
            assert tx.ttl("k") == 10
            clock.advance(10)
            assert tx.load("k") is None
            assert tx.exists("k") is False
            assert tx.entry("k") is None
            assert list(tx.keys()) == []
            with pytest.raises(KeyNotFoundError):
                tx.ttl("k")
            assert tx.increment("k") == 1
            assert tx.ttl("k") is None
        assert store.load("k") == 1

    def test_verbs_in_a_transaction_treat_the_expiry_as_those_of_the_store(self, store, clock):
        store.save_many({"n": 1, "l": [], "t": LARGE, "s": 1}, ttl=10)
        clock.advance(4)
        with store.transaction() as tx:
            tx.increment("n")
            tx.append("l", 1)
            tx.touch("t", 20)
            tx.touch("t", 30)
            tx.save("s", 2)
            expected = {"n": 6, "l": 6, "t": 30, "s": None}
            assert {key: tx.ttl(key) for key in expected} == expected
            assert tx.entry("t").expires_at == datetime.fromtimestamp(clock() + 30, UTC)
        assert {key: store.ttl(key) for key in expected} == expected
        assert store.load("t") == LARGE

    def test_count_agrees_with_keys_when_many_expire_at_once(self, store, clock):
        store.save_many({f"a{number}": 1 for number in range(20)}, ttl=5)
        store.save_many({f"b{number}": 1 for number in range(20)}, ttl=6)
        store.save("c", 1)
        for expected in (41, 21, 1, 1):
            assert store.count() == len(list(store.keys())) == expected
            clock.advance(5 if expected == 41 else 1)

    # -- over a close -----------------------------------------------------------------------

    def test_expiry_goes_on_while_the_store_is_closed(self, store, opened, clock, value):
        if not store.capabilities.persistent:
            pytest.skip("nothing outlives this store's handle")
        store.save("short", value, ttl=10)
        store.save("long", value, ttl=20)
        store.close()
        clock.advance(10)
        again = opened()
        assert dict(again.items()) == {"long": value}
        assert again.ttl("long") == 10
