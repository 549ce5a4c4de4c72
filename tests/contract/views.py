"""Transactions and snapshots: all or nothing, and one point in time."""

import threading

import pytest

from kvsage import KvsageError, Snapshot, StoreError, Transaction, TransactionStateError
from tests.contract.base import StoreContract

LARGE = "a value of some length, " * 1000

WRITING = {
    "save": lambda s: s.save("k", 1),
    "save_many": lambda s: s.save_many({"k": 1}),
    "add": lambda s: s.add("new", 1),
    "delete": lambda s: s.delete("k"),
    "delete_many": lambda s: s.delete_many(["k"]),
    "update": lambda s: s.update("k", lambda value: value),
    "increment": lambda s: s.increment("k"),
    "append": lambda s: s.append("list", 1),
    "extend": lambda s: s.extend("list", [1]),
    "touch": lambda s: s.touch("k", 1),
    "clear": lambda s: s.clear(),
}
READING = {
    "load": lambda s: s.load("k"),
    "exists": lambda s: s.exists("k"),
    "entry": lambda s: s.entry("k"),
    "ttl": lambda s: s.ttl("k"),
    "load_many": lambda s: s.load_many(["k"]),
    "load_range": lambda s: s.load_range("list"),
    "keys": lambda s: list(s.keys()),
    "items": lambda s: list(s.items()),
    "count": lambda s: s.count(),
    "count by prefix": lambda s: s.count("k"),
}


def on_another_thread(fn):
    """What ``fn`` raises, or returns, on a thread of its own."""
    outcome = []

    def run():
        try:
            outcome.append(fn())
        except BaseException as error:  # noqa: BLE001  # it is handed to the test
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert outcome, "the thread hangs"
    return outcome[0]


class Transactions(StoreContract):
    def test_all_of_it_is_kept_at_the_end(self, store):
        store.save_many({"a": 1, "b": 2})
        with store.transaction() as tx:
            assert isinstance(tx, Transaction)
            tx.save("a", LARGE)
            tx.delete("b")
            tx.add("c", 3)
            assert dict(store.items()) == {"a": 1, "b": 2}
        assert dict(store.items()) == {"a": LARGE, "c": 3}

    def test_it_is_one_commit(self, store):
        if self.writes(store) is None:
            pytest.skip("this store counts no commits")
        before = self.writes(store)
        with store.transaction() as tx:
            for number in range(10):
                tx.save(f"k{number}", LARGE[number:])
        assert self.writes(store) == before + 1

    def test_nothing_of_it_is_kept_on_an_exception(self, store):
        store.save_many({"a": 1, "b": LARGE})
        before = self.writes(store)

        def write_and_fail():
            with store.transaction() as tx:
                for write in WRITING.values():
                    tx.save_many({"k": 1, "list": []})
                    write(tx)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write_and_fail()
        assert dict(store.items()) == {"a": 1, "b": LARGE}
        assert self.writes(store) == before

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_any_exception_rolls_back(self, store, error):
        def write_and_fail():
            with store.transaction() as tx:
                tx.save("k", 1)
                raise error

        with pytest.raises(error):
            write_and_fail()
        assert not store.exists("k")
        assert store.save("k", 2)

    def test_rollback_and_commit_by_name(self, store):
        with store.transaction() as tx:
            tx.save("a", 1)
            tx.rollback()
        with store.transaction() as tx:
            tx.save("b", 1)
            tx.commit()
        assert dict(store.items()) == {"b": 1}

    def test_an_empty_transaction_writes_nothing(self, store):
        before = self.writes(store)
        with store.transaction() as tx:
            assert tx.load("k") is None
            assert tx.delete("k") is False
        assert self.writes(store) == before

    def test_what_is_undone_within_it_writes_nothing(self, store):
        before = self.writes(store)
        with store.transaction() as tx:
            tx.save("k", LARGE)
            tx.delete("k")
        assert self.writes(store) == before
        assert not store.exists("k")

    def test_it_reads_its_own_writes(self, store):
        store.save_many({"a": 1, "b": LARGE, "l": [1]})
        with store.transaction() as tx:
            tx.save("a", LARGE)
            tx.save("c", {"d": 1}, ttl=10)
            tx.delete("b")
            assert tx.load("a") == LARGE
            assert tx.load("b", "gone") == "gone"
            assert tx.exists("c") is True
            assert tx.exists("b") is False
            assert tx.entry("b") is None
            assert tx.entry("c").value == {"d": 1}
            assert tx.entry("a").size == len(LARGE)
            assert tx.ttl("c") == 10
            assert tx.load_many("abc") == {"a": LARGE, "c": {"d": 1}}
        assert dict(store.items()) == {"a": LARGE, "c": {"d": 1}, "l": [1]}

    def test_it_builds_on_its_own_writes(self, store):
        store.save_many({"a": LARGE, "c": 1, "l": [1]})
        with store.transaction() as tx:
            assert tx.add("a", 0) is False
            assert tx.add("b", "again") is True
            assert tx.add("b", "too late") is False
            assert tx.delete("a") is True
            assert tx.delete("a") is False
            assert tx.increment("n") == 1
            assert tx.increment("n") == 2
            assert tx.append("l", 2) == 2
            assert tx.extend("l", [3, 4]) == 4
            assert tx.load_range("l", 1, 3) == [2, 3]
            assert tx.update("u", lambda value: value, "default") == "default"
            assert tx.count() == 5
            assert list(tx.keys()) == ["b", "c", "l", "n", "u"]
            assert tx.clear("c") == 1
            assert tx.save_many({"x": 1, "y": 2}) == 2
            assert tx.delete_many(["x", "x", "absent"]) == 1
        expected = {"b": "again", "l": [1, 2, 3, 4], "n": 2, "u": "default", "y": 2}
        assert dict(store.items()) == expected

    def test_clear_then_save(self, store):
        store.save_many({"a": LARGE, "b": 2})
        with store.transaction() as tx:
            assert tx.clear() == 2
            assert tx.count() == 0
            tx.save("b", LARGE)
        assert dict(store.items()) == {"b": LARGE}

    def test_many_values_in_one(self, store):
        pairs = {f"k{number:04}": number for number in range(2000)}
        with store.transaction() as tx:
            for key, value in pairs.items():
                tx.save(key, value)
        assert dict(store.items()) == pairs

    def test_an_error_that_is_caught_inside_costs_only_its_verb(self, store):
        with store.transaction() as tx:
            tx.save("a", 1)
            with pytest.raises(KvsageError):
                tx.save("b", object())
            with pytest.raises(KvsageError):
                tx.save("c", 1, ttl=-1)
            with pytest.raises(KvsageError):
                tx.increment("a", "x")
        assert dict(store.items()) == {"a": 1}

    # -- its borders ------------------------------------------------------------------------

    @pytest.mark.parametrize("verb", [*WRITING, *READING])
    def test_it_is_of_no_use_after_its_end(self, store, verb):
        store.save_many({"k": 1, "list": []})
        before = self.writes(store)
        for end in ("commit", "rollback", "nothing"):
            with store.transaction() as tx:
                if end != "nothing":
                    getattr(tx, end)()
            with pytest.raises(TransactionStateError):
                {**WRITING, **READING}[verb](tx)
        for end in (tx.commit, tx.rollback):
            with pytest.raises(TransactionStateError):
                end()
        assert self.writes(store) == before

    @pytest.mark.parametrize("verb", [*WRITING, *READING])
    def test_it_is_of_no_use_before_its_beginning(self, store, verb):
        tx = store.transaction()
        with pytest.raises(TransactionStateError):
            {**WRITING, **READING}[verb](tx)
        assert store.save("k", 1)  # and holds nobody up

    def test_a_scan_begun_inside_ends_with_it(self, store):
        store.save_many({"a": 1, "b": 2})
        for scan in ("keys", "items"):
            with store.transaction() as tx:
                rest = getattr(tx, scan)()
                next(rest)
            with pytest.raises(KvsageError):
                list(rest)

    @pytest.mark.parametrize("verb", [*WRITING, *READING, "commit", "rollback"])
    def test_it_belongs_to_its_thread(self, store, verb):
        store.save_many({"k": 1, "list": []})
        use = {
            **WRITING,
            **READING,
            "commit": lambda tx: tx.commit(),
            "rollback": lambda tx: tx.rollback(),
        }[verb]
        with store.transaction() as tx:
            tx.save("mine", 1)
            assert isinstance(on_another_thread(lambda: use(tx)), TransactionStateError)
        assert dict(store.items()) == {"k": 1, "list": [], "mine": 1}

    def test_entered_on_another_thread_it_holds_nobody_up(self, store):
        tx = store.transaction()

        def enter():
            with tx:
                tx.save("k", 1)

        outcome = on_another_thread(enter)
        assert outcome is None or isinstance(outcome, TransactionStateError)
        assert on_another_thread(lambda: store.add("other", 1)) is True

    @pytest.mark.parametrize("verb", WRITING)
    def test_the_stores_writing_verbs_are_refused_inside_it(self, store, verb):
        store.save_many({"k": 1, "list": []})
        with store.transaction() as tx:
            tx.save("mine", 1)
            with pytest.raises(TransactionStateError):
                WRITING[verb](store)
        assert dict(store.items()) == {"k": 1, "list": [], "mine": 1}

    @pytest.mark.parametrize("verb", READING)
    def test_the_stores_reading_verbs_show_what_is_committed(self, store, verb):
        store.save_many({"k": 1, "list": []})
        read = READING[verb]
        expected = read(store)
        with store.transaction() as tx:
            tx.save_many({"k": 2, "list": [1], "k2": 3}, ttl=10)
            assert read(store) == expected

    def test_a_second_one_on_the_same_thread_is_refused(self, store):
        with store.transaction() as tx:
            tx.save("k", 1)
            with pytest.raises(TransactionStateError), store.transaction():
                pass
            with pytest.raises(TransactionStateError):
                store.transact(lambda inner: inner.save("k", 2))
        assert store.load("k") == 1

    def test_two_made_first_and_entered_one_in_the_other_are_refused(self, store):
        outer, inner = store.transaction(), store.transaction()
        with outer:
            outer.save("k", 1)
            with pytest.raises(TransactionStateError), inner:
                inner.save("k", 2)
        assert store.load("k") == 1
        assert on_another_thread(lambda: store.save("k", 3)) is True

    def test_entering_one_twice_is_refused(self, store):
        with store.transaction() as tx:
            tx.save("k", 1)
            with pytest.raises(TransactionStateError), tx:
                pass
        with pytest.raises(TransactionStateError), tx:
            pass
        assert on_another_thread(lambda: store.save("k", 3)) is True

    def test_another_handles_verbs_are_refused_inside_it_too(self, store, opened):
        # They would wait for the transaction, and it for them.
        other = opened()
        with store.transaction() as tx:
            tx.save("k", 1)
            with pytest.raises(TransactionStateError):
                other.save("k", 2)
        assert other.load("k") == 1

    def test_another_thread_waits_for_its_end(self, store):
        began = threading.Event()

        def add():
            began.set()
            return store.increment("n")

        outcome = []
        thread = threading.Thread(target=lambda: outcome.append(add()), daemon=True)
        with store.transaction() as tx:
            tx.increment("n", 10)
            thread.start()
            assert began.wait(60)
            tx.increment("n", 10)
        thread.join(60)
        assert outcome == [21]

    def test_threads_that_increment_in_transactions_lose_nothing(self, store):
        def work():
            for _ in range(25):
                store.increment("verb")
                with store.transaction() as tx:
                    tx.save("read", tx.load("read", 0) + 1)
                store.transact(lambda tx: tx.append("list", 1))

        threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert store.load("verb") == 100
        assert store.load("read") == 100
        assert store.load("list") == [1] * 100


class Snapshots(StoreContract):
    def test_it_shows_one_point_in_time(self, store):
        store.save_many({"a": 1, "b": LARGE, "l": [1, 2]})
        store.save("t", 1, ttl=10)
        with store.snapshot() as view:
            assert isinstance(view, Snapshot)
            version = view.entry("a").version
            store.save("a", 2)
            store.delete("b")
            store.save("c", 3)
            store.append("l", 3)
            store.touch("t", 20)
            assert view.load("a") == 1
            assert view.load("b") == LARGE
            assert view.load("c", "absent") == "absent"
            assert view.exists("b") is True
            assert view.exists("c") is False
            assert view.entry("a").value == 1
            assert view.entry("a").version == version
            assert view.entry("c") is None
            assert view.ttl("t") == 10
            assert view.load_range("l", 1) == [2]
            assert view.load_many("abc") == {"a": 1, "b": LARGE}
            assert list(view.keys()) == ["a", "b", "l", "t"]
            assert dict(view.items("b")) == {"b": LARGE}
            assert view.count() == 4
            assert view.count("b") == 1
        assert dict(store.items()) == {"a": 2, "c": 3, "l": [1, 2, 3], "t": 1}

    def test_it_has_no_writing_verbs(self, store):
        with store.snapshot() as view:
            assert not [verb for verb in WRITING if hasattr(view, verb)]

    def test_it_is_held_across_many_writes(self, store):
        pairs = {f"k{number}": chr(65 + number % 26) * 6000 for number in range(60)}
        store.save_many(pairs)
        with store.snapshot() as view:
            for turn in range(10):
                for key in pairs:
                    store.save(key, f"{turn} {key} " * 500)
                store.clear("k1")
            assert dict(view.items()) == pairs
            assert view.count() == len(pairs)

    def test_several_at_once_keep_each_their_own_time(self, store):
        views = []
        for number in range(5):
            store.save("n", number)
            store.save(f"k{number}", number)
            views.append(store.snapshot())
        store.clear()
        for number, view in reversed(list(enumerate(views))):
            assert view.load("n") == number
            assert view.count() == number + 2
            view.close()

    @pytest.mark.parametrize("verb", READING)
    def test_it_is_of_no_use_after_its_end(self, store, verb):
        store.save_many({"k": 1, "list": []})
        with store.snapshot() as view:
            READING[verb](view)
        with pytest.raises(StoreError):
            READING[verb](view)

    def test_a_scan_begun_inside_ends_with_it(self, store):
        store.save_many({"a": 1, "b": 2})
        for scan in ("keys", "items"):
            with store.snapshot() as view:
                rest = getattr(view, scan)()
                next(rest)
            with pytest.raises(StoreError):
                list(rest)

    def test_a_second_close_does_nothing(self, store):
        view = store.snapshot()
        view.close()
        view.close()
        with view:
            pass

    def test_threads_may_share_it(self, store):
        pairs = {f"k{number}": number for number in range(50)}
        store.save_many(pairs)
        with store.snapshot() as view:
            store.clear()
            assert on_another_thread(lambda: dict(view.items())) == pairs
            assert on_another_thread(lambda: view.load("k7")) == 7

    def test_one_taken_inside_a_transaction_shows_what_is_committed(self, store):
        store.save("k", 1)
        with store.transaction() as tx:
            tx.save("k", 2)
            with store.snapshot() as view:
                assert view.load("k") == 1
        assert store.load("k") == 2
