"""Open, close, read-only, and several handles on one store."""

import gc
import threading

import pytest

from kvsage import (
    Capabilities,
    ConfigError,
    KvsageError,
    NotAStoreError,
    PersistenceStore,
    ReadOnlyStoreError,
    StoreClosedError,
    StoreError,
    TransactionalStore,
)
from tests.contract.base import StoreContract
from tests.contract.views import READING, WRITING

LARGE = "a value of some length, " * 1000

VIEWS = {
    "snapshot": lambda s: s.snapshot().close(),
    "transaction": lambda s: s.transaction().__enter__().rollback(),
    "transact": lambda s: s.transact(lambda tx: tx.load("k")),
    "stats": lambda s: s.stats(),
}


class Lifecycle(StoreContract):
    # -- what it is -------------------------------------------------------------------------

    def test_it_is_a_store_that_says_what_it_can_do(self, store):
        assert isinstance(store, PersistenceStore)
        assert isinstance(store.capabilities, Capabilities)
        assert store.capabilities.transactions == isinstance(store, TransactionalStore)
        assert type(store).capabilities == store.capabilities

    def test_its_text_tells_its_kind_and_place(self, store, place):
        assert type(store).__name__ in repr(store)
        assert str(place) in repr(store)

    # -- close ------------------------------------------------------------------------------

    @pytest.mark.parametrize("verb", [*READING, *WRITING, *VIEWS])
    def test_every_verb_of_a_closed_store_is_refused(self, store, verb):
        store.save_many({"k": 1, "list": []})
        store.close()
        with pytest.raises(StoreClosedError):
            {**READING, **WRITING, **VIEWS}[verb](store)

    def test_a_second_close_does_nothing(self, store, opened):
        other = opened()
        store.close()
        store.close()
        assert other.save("k", 1)  # the second close was not the other handle's

    def test_the_with_block_closes(self, opened):
        with opened() as store:
            assert store.save("k", 1)
        with pytest.raises(StoreClosedError):
            store.load("k")

    def test_the_with_block_closes_on_an_error_and_keeps_what_was_saved(self, opened):
        def fail(store):
            with store:
                store.save("k", 1)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail(opened())
        assert opened().load("k") == 1

    def test_a_snapshot_ends_with_its_store(self, store):
        store.save_many({"a": 1, "b": LARGE})
        view = store.snapshot()
        rest = view.items()
        next(rest)
        store.close()
        for read in READING.values():
            with pytest.raises(StoreError):
                read(view)
        with pytest.raises(StoreError):
            next(rest)
        view.close()

    def test_a_scan_ends_with_its_store(self, store):
        store.save_many({"a": 1, "b": 2})
        scans = [store.keys(), store.items()]
        for scan in scans:
            next(scan)
        begun_after = store.keys()
        store.close()
        for scan in (*scans, begun_after):
            with pytest.raises(StoreError):
                list(scan)

    def test_a_store_closed_inside_its_transaction_keeps_nothing_half(self, store, opened):
        def close_inside():
            with store.transaction() as tx:
                tx.save_many({"a": 1, "b": 2})
                store.close()

        try:
            close_inside()
        except KvsageError:
            expected = {}
        else:
            expected = {"a": 1, "b": 2}
        again = opened()
        assert dict(again.items()) == expected
        assert again.save("c", 3)

    def test_threads_that_use_a_store_while_it_is_closed_get_its_error(self, store):
        began = threading.Barrier(5)
        strange = []

        def work():
            began.wait(60)
            try:
                while True:
                    store.save("k", LARGE)
                    store.load("k")
                    store.append("l", 1)
                    list(store.items())
            except StoreError:
                pass
            except BaseException as error:  # noqa: BLE001  # it is handed to the test
                strange.append(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        began.wait(60)
        store.close()
        for thread in threads:
            thread.join(60)
        assert not strange, strange
        assert not any(thread.is_alive() for thread in threads)

    def test_a_dropped_handle_closes_itself(self, store, place, clock):
        other = self.open_store(place, clock)
        other.save("k", 1)
        del other
        gc.collect()
        assert store.load("k") == 1

    # -- several handles --------------------------------------------------------------------

    def test_handles_see_each_others_writes(self, opened):
        one, two = opened(), opened()
        one.save("a", 1)
        two.save("b", LARGE)
        assert dict(one.items()) == dict(two.items()) == {"a": 1, "b": LARGE}
        version = one.entry("a").version
        assert two.save("a", 2, if_version=version) is True
        assert one.save("a", 3, if_version=version) is False

    def test_closing_one_leaves_the_other_working(self, opened):
        one, two = opened(), opened()
        one.save("a", 1)
        view = two.snapshot()
        one.close()
        with pytest.raises(StoreClosedError):
            one.load("a")
        assert two.load("a") == 1
        assert two.save("b", 2)
        assert list(view.keys()) == ["a"]
        view.close()
        three = opened()
        two.close()
        assert dict(three.items()) == {"a": 1, "b": 2}

    # -- read-only --------------------------------------------------------------------------

    @pytest.fixture
    def readonly(self, opened):
        writer = opened()
        writer.save_many({"k": 1, "list": [1], "large": LARGE})
        writer.close()
        return opened(readonly=True)

    @pytest.mark.parametrize("verb", [*WRITING, "transaction", "transact"])
    def test_every_writing_verb_of_a_readonly_store_is_refused(self, readonly, verb):
        before = self.writes(readonly)
        with pytest.raises(ReadOnlyStoreError) as caught:
            {**WRITING, **VIEWS}[verb](readonly)
        assert isinstance(caught.value, PermissionError)
        assert self.writes(readonly) == before
        assert dict(readonly.items()) == {"k": 1, "list": [1], "large": LARGE}

    @pytest.mark.parametrize("verb", READING)
    def test_every_reading_verb_of_a_readonly_store_works(self, readonly, verb):
        READING[verb](readonly)
        with readonly.snapshot() as view:
            READING[verb](view)

    def test_a_readonly_handle_sees_what_others_write(self, readonly, opened):
        writer = opened()
        writer.save("k", 2)
        assert readonly.load("k") == 2
        with pytest.raises(ReadOnlyStoreError):
            readonly.save("k", 3)
        readonly.close()
        assert writer.save("k", 4)

    def test_a_missing_store_is_not_made_for_reading(self, place, clock):
        with pytest.raises(NotAStoreError, match="store"):
            self.open_store(place, clock, readonly=True)
        assert not place.exists()
        place.mkdir()
        with pytest.raises(NotAStoreError):
            self.open_store(place, clock, readonly=True)
        names = {path.name for path in place.iterdir()}
        assert "KVSAGE" not in names
        assert "log" not in names

    def test_what_was_refused_for_reading_can_be_made_for_writing(self, place, clock):
        place.mkdir()
        with pytest.raises(NotAStoreError):
            self.open_store(place, clock, readonly=True)
        with self.open_store(place, clock) as store:
            assert store.save("k", 1)

    # -- options ----------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("name", "value"),
        [("value_bytes_max", 0), ("value_bytes_max", "1"), ("readonly", "yes"), ("readonly", None)],
    )
    def test_an_option_that_cannot_be_meant_is_refused_before_anything_is_made(
        self, place, clock, name, value
    ):
        with pytest.raises(ConfigError, match=name):
            self.open_store(place, clock, **{name: value})
        assert not place.exists()

    @pytest.mark.parametrize("ttl", [0, -1, True, "5"])
    def test_a_ttl_default_that_cannot_be_meant_is_refused(self, place, clock, ttl):
        with pytest.raises(ConfigError, match="ttl_default"):
            self.open_store(place, clock, ttl_default=ttl)
        assert not place.exists()

    def test_an_unknown_option_is_refused(self, place, clock):
        with pytest.raises((TypeError, KvsageError), match="colour"):
            self.open_store(place, clock, colour="red")
        assert not place.exists()
