"""keys, items and count: every choice of prefix, start, stop, reverse and limit."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvsage import InvalidKeyError
from tests.contract.base import StoreContract
from tests.support.model import select

# Few characters, so that prefixes meet; from the first to the last of each length in UTF-8.
texts = st.text("\x00a:b\x7fé\u07ff\uffff\U00010000\U0010ffff", max_size=4)
keys = st.sets(texts.filter(bool), max_size=12)
choices = st.fixed_dictionaries(
    {},
    optional={
        "prefix": texts,
        "start": st.none() | texts,
        "stop": st.none() | texts,
        "reverse": st.booleans(),
        "limit": st.none() | st.integers(0, 13),
    },
)
# The store is the same for all examples and emptied for each.
examples = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


class Scans(StoreContract):
    def check_scan(self, verbs, model, chosen):
        expected = select(model, **chosen)
        assert list(verbs.keys(**chosen)) == expected
        assert list(verbs.items(**chosen)) == [(key, model[key]) for key in expected]
        prefix = chosen.get("prefix", "")
        assert verbs.count(prefix) == len(select(model, prefix))

    @examples
    @given(there=keys, chosen=choices)
    def test_a_scan_gives_what_a_sorted_list_gives(self, store, there, chosen):
        model = {key: len(key) for key in there}
        store.clear()
        store.save_many(model)
        self.check_scan(store, model, chosen)
        with store.snapshot() as view:
            self.check_scan(view, model, chosen)

    @examples
    @given(drawn=st.tuples(keys, keys, keys, keys), chosen=choices)
    def test_a_scan_in_a_transaction_sees_its_own_writes_among_the_others(
        self, store, clock, drawn, chosen
    ):
        there, expired, saved, deleted = drawn
        model = dict.fromkeys(there | expired, "stored")
        store.clear()
        store.save_many(dict.fromkeys(there, "stored"))
        store.save_many(dict.fromkeys(expired, "stored"), ttl=5)
        clock.advance(5)
        model = {key: value for key, value in model.items() if key not in expired}
        before = dict(model)
        with store.transaction() as tx:
            for key in sorted(saved):
                tx.save(key, "mine")
                model[key] = "mine"
            for key in sorted(deleted):
                assert tx.delete(key) is (model.pop(key, None) is not None)
            self.check_scan(tx, model, chosen)
            self.check_scan(store, before, chosen)
        self.check_scan(store, model, chosen)

    @examples
    @given(there=keys, prefix=texts)
    def test_clear_removes_what_count_counted(self, store, there, prefix):
        store.clear()
        store.save_many(dict.fromkeys(there, 1))
        counted = store.count(prefix)
        assert store.clear(prefix) == counted == len(select(there, prefix))
        assert list(store.keys()) == [key for key in select(there) if not key.startswith(prefix)]

    # -- bounds -----------------------------------------------------------------------------

    @pytest.fixture
    def filled(self, store):
        store.save_many({"a": 1, "k" * 480: 2, "z": 3})
        return store

    @pytest.fixture(params=["store", "snapshot", "transaction"])
    def verbs(self, filled, request):
        if request.param == "store":
            yield filled
        elif request.param == "snapshot":
            with filled.snapshot() as view:
                yield view
        else:
            with filled.transaction() as tx:
                tx.save("m", 4)
                tx.delete("m")
                yield tx

    @pytest.mark.parametrize("length", [480, 481, 510, 511, 512, 513, 5000])
    def test_bounds_may_be_longer_than_keys(self, verbs, length):
        everything = ["a", "k" * 480, "z"]
        bound = "k" * length
        for reverse in (False, True):
            for chosen in ({"prefix": bound}, {"start": bound}, {"stop": bound}):
                expected = select(everything, **chosen, reverse=reverse)
                assert list(verbs.keys(**chosen, reverse=reverse)) == expected
                assert [key for key, _ in verbs.items(**chosen, reverse=reverse)] == expected
        assert verbs.count(bound) == (1 if length == 480 else 0)

    def test_start_is_in_and_stop_is_out(self, verbs):
        assert list(verbs.keys(start="a", stop="z")) == ["a", "k" * 480]
        assert list(verbs.keys(start="z", stop="z")) == []
        assert list(verbs.keys(start="z", stop="a")) == []
        assert list(verbs.keys(start="z", stop="a", reverse=True)) == []
        assert list(verbs.keys(stop="")) == []
        assert list(verbs.keys(stop="", reverse=True)) == []
        assert list(verbs.keys(start="")) == ["a", "k" * 480, "z"]

    def test_limits(self, verbs):
        assert list(verbs.keys(limit=0)) == []
        assert list(verbs.items(limit=0)) == []
        assert list(verbs.keys(limit=1, reverse=True)) == ["z"]
        assert list(verbs.items(limit=10**30)) == [("a", 1), ("k" * 480, 2), ("z", 3)]

    def test_a_limit_below_zero_gives_nothing(self, verbs):
        assert list(verbs.keys(limit=-1)) == []
        assert list(verbs.items(limit=-1)) == []

    @pytest.mark.parametrize("name", ["prefix", "start", "stop"])
    @pytest.mark.parametrize("bound", [5, b"a", "\ud800", ["a"]])
    def test_bounds_are_text(self, verbs, name, bound):
        for verb in (verbs.keys, verbs.items):
            with pytest.raises(InvalidKeyError, match=name):
                list(verb(**{name: bound}))
        if name == "prefix":
            with pytest.raises(InvalidKeyError):
                verbs.count(bound)

    # -- while it goes on -------------------------------------------------------------------

    def test_a_scan_shows_one_point_in_time(self, filled):
        for scan in (filled.keys(), filled.items()):
            filled.save("b", 1)
            next(scan)
            filled.save("c", 1)
            filled.delete("z")
            assert len(list(scan)) == 2
            filled.delete_many(["b", "c"])
            filled.save("z", 3)

    def test_keys_may_be_deleted_while_they_are_scanned(self, filled):
        scan = filled.keys()
        for key in scan:
            assert filled.delete(key)
        assert filled.count() == 0

    def test_a_scan_that_is_dropped_half_way_holds_nothing_up(self, filled):
        scan = filled.items()
        next(scan)
        scan.close()
        next(filled.keys())
        assert filled.save("b", 1)
        assert list(scan) == []

    def test_what_a_transaction_deletes_during_its_scan_is_not_shown_as_nothing(self, filled):
        with filled.transaction() as tx:
            tx.save_many({"x": 5, "y": 6})
            shown = {}
            for key, value in tx.items():
                shown[key] = value
                tx.delete_many(["y", "z"])
        stored = {"a": 1, "k" * 480: 2, "x": 5, "y": 6, "z": 3}
        assert shown.items() <= stored.items()
        assert dict(filled.items()) == {"a": 1, "k" * 480: 2, "x": 5}

    def test_a_transaction_may_write_while_it_scans(self, filled):
        with filled.transaction() as tx:
            for key, value in tx.items():
                tx.save(key, value + 10)
                tx.save(f"{key[:1]}'", value)
        assert [value for _, value in filled.items()] == [11, 1, 2, 12, 13, 3]

    def test_two_scans_at_once(self, filled):
        pairs = list(zip(filled.keys(), filled.keys(reverse=True), strict=True))
        assert pairs == [("a", "z"), ("k" * 480, "k" * 480), ("z", "a")]

    def test_items_of_large_values(self, store):
        pairs = {f"k{number}": chr(65 + number) * 10_000 for number in range(20)}
        store.save_many(pairs)
        assert dict(store.items()) == pairs
        assert list(store.items(reverse=True, limit=1)) == [("k9", pairs["k9"])]
