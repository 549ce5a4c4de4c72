"""Lists that grow: ``append`` and ``extend``, and ``load_range``, on short and on long ones.

A store may keep a long list in pieces, and then it adds to the end and reads a part without the
rest. Nobody can tell but by the time that it takes: all of it is compared with Python's lists.
"""

import itertools
import random
import threading
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from kvsage import (
    SerializationError,
    StoreError,
    TransactionStateError,
    UnsupportedError,
    ValueTooLargeError,
)
from tests.contract.base import StoreContract

NOISE = random.Random(1).randbytes(400_000)


def message(number):
    """One turn of a conversation, 40 to 1,000 bytes of it."""
    size = random.Random(number).randrange(500)
    return {"role": "user", "number": number, "text": NOISE[number : number + size].hex()}


LISTS = {
    "empty": [],
    "short": [1, "two", None, [4.0], {"five": 6}],
    "a few thousand bytes": [message(number) for number in range(12)],
    "conversation": [message(number) for number in range(600)],
    "files": [NOISE[at : at + 30_000].hex() for at in range(0, 300_000, 30_000)],
    "numbers": list(range(40_000)),
    "none": [None] * 70_000,  # past the number that a short header holds
    "lists": [[[message(number)] * 3, number] for number in range(150)],
    "one large item": [{"inside": [message(number) for number in range(300)]}],
    "small and large": [
        item for number in range(12) for item in (number, NOISE[: number * 3000], str(number))
    ],
    "large at the end": [1, 2, 3, NOISE[:100_000]],
}
MORE = {
    "nothing": [],
    "a number": [7],
    "a message": [message(1000)],
    "a large item": [NOISE[:60_000].hex()],
    "a list": [[1, [2, {"three": (4, 5)}]]],
    "many": [message(number) for number in range(2000, 2200)],
    "many numbers": list(range(5000)),
    "what lists of other kinds are made of": [
        (1, (2,)),
        {3},
        datetime(2024, 1, 2, tzinfo=UTC),
        Decimal("1.50"),
        b"bytes",
        -(1 << 63),
        1e300,
    ],
}
LONG = {name: LISTS[name] for name in ("conversation", "files", "numbers", "lists")}

NO_LISTS = {
    "text": "text",
    "long text": NOISE[:60_000].hex(),
    "bytes": b"bytes",
    "long bytes": NOISE[:100_000],
    "number": 1,
    "None": None,
    "mapping": {"a": [1]},
    "long mapping": {str(number): message(number) for number in range(300)},
    "tuple": (1, 2),
    "long tuple": tuple(message(number) for number in range(300)),
    "tuple of numbers": tuple(range(40_000)),
    "set": {1, 2},
    "long set": set(range(20_000)),
    "Decimal": Decimal(1),
}


def by_name(table):
    return pytest.mark.parametrize("value", table.values(), ids=table)


class Lists(StoreContract):
    # -- growing ----------------------------------------------------------------------------

    @by_name(LISTS)
    @pytest.mark.parametrize("items", MORE.values(), ids=MORE)
    def test_extend_adds_to_the_end(self, store, value, items):
        store.save_many({"l": value, "other": value})
        assert store.extend("l", items) == len(value + items)
        assert store.load("l") == value + items
        assert store.extend("l", iter(items)) == len(value + 2 * items)
        assert store.append("l", items) == len(value + 2 * items) + 1
        found = store.load("l")
        assert found == [*value, *items, *items, items]
        assert list(map(type, found)) == list(map(type, [*value, *items, *items, items]))
        assert store.load("other") == value

    def test_a_list_grows_item_by_item(self, store):
        expected = []
        for number in range(200):
            expected.append(message(number))
            assert store.append("l", message(number)) == len(expected)
            if number % 20 == 0:
                assert store.load("l") == expected
                assert store.load_range("l", -3) == expected[-3:]
        assert store.load("l") == expected

    @pytest.mark.parametrize("size", [0, 1, 30, 500, 5000, 40_000])
    def test_a_list_grows_by_items_of_one_size(self, store, size):
        item = NOISE[:size].hex()
        expected = []
        for count in (1, 1, 14, 1, 20, 3):
            expected += [item] * count
            assert store.extend("l", [item] * count) == len(expected)
            assert store.load("l") == expected

    @by_name(LISTS)
    def test_what_is_added_to_a_list_is_added_to_no_copy_of_it(self, store, value):
        store.save("l", value)
        store.save("copy", store.load("l"))
        version = store.entry("copy").version
        for item in (1, message(7), NOISE[:50_000]):
            store.append("l", item)
        assert store.load("l") == [*value, 1, message(7), NOISE[:50_000]]
        assert store.load("copy") == value
        assert store.entry("copy").version == version
        store.save("l", value)
        assert store.load("l") == store.load("copy")

    @by_name(LISTS)
    def test_a_list_that_was_replaced_or_deleted_begins_anew(self, store, value):
        store.save("l", value)
        store.append("l", "old")
        store.save("l", ["new"])
        assert store.extend("l", [1, 2]) == 3
        assert store.load("l") == ["new", 1, 2]
        store.save("l", value)
        store.delete("l")
        assert store.append("l", "new") == 1
        assert store.load("l") == ["new"]

    def test_an_empty_extension_of_what_is_absent_is_an_empty_list(self, store):
        assert store.extend("l", []) == 0
        assert store.load("l", "absent") == []

    def test_an_item_changed_after_it_was_added_changes_nothing(self, store):
        item = {"texts": ["a"] * 2000}
        store.append("l", item)
        items = [item, item]
        store.extend("l", items)
        item["texts"].append("changed")
        items.append("more")
        assert store.load("l") == [{"texts": ["a"] * 2000}] * 3

    @by_name(LISTS)
    def test_it_is_a_change_like_any_other(self, store, value):
        store.save("l", value)
        before = store.entry("l").version
        store.append("l", 1)
        entry = store.entry("l")
        assert entry.value == [*value, 1]
        assert entry.version != before
        assert store.save("l", "late", if_version=before) is False
        assert store.save("l", "in time", if_version=entry.version) is True

    def test_it_outlives_the_handle(self, store, opened):
        store.save_many(LONG)
        for key in LONG:
            store.extend(key, [message(1), NOISE[:50_000]])
        store.close()
        again = opened()
        for key, value in LONG.items():
            expected = [*value, message(1), NOISE[:50_000]]
            assert again.load(key) == expected
            assert again.load_range(key, -2) == expected[-2:]
            assert again.append(key, "again") == len(expected) + 1
            assert again.load(key) == [*expected, "again"]

    # -- expiry -----------------------------------------------------------------------------

    @by_name(LISTS)
    def test_a_list_keeps_its_expiry_as_it_grows(self, store, clock, value):
        store.save("l", value, ttl=10)
        clock.advance(4)
        assert store.append("l", 1) == len(value) + 1
        assert store.ttl("l") == 6
        assert store.extend("l", [message(2), NOISE[:50_000]]) == len(value) + 3
        assert store.ttl("l") == 6
        clock.advance(5.5)
        assert store.load("l") == [*value, 1, message(2), NOISE[:50_000]]
        clock.advance(0.5)
        assert store.load("l", "absent") == "absent"
        assert store.load_range("l") == []

    @by_name(LISTS)
    def test_a_list_that_has_expired_begins_anew_and_permanent(self, store, clock, value):
        store.save_many({"l": value, "m": value}, ttl=10)
        clock.advance(10)
        assert store.append("l", 1) == 1
        assert store.extend("m", [1, 2]) == 2
        assert [store.load("l"), store.load("m")] == [[1], [1, 2]]
        assert [store.ttl("l"), store.ttl("m")] == [None, None]
        clock.advance(1000)
        assert store.append("l", 2) == 2

    @by_name(NO_LISTS)
    def test_what_has_expired_may_have_been_no_list(self, store, clock, value):
        store.save("l", value, ttl=10)
        clock.advance(10)
        assert store.load_range("l") == []
        assert store.append("l", 1) == 1
        assert store.load("l") == [1]

    def test_an_absent_list_begins_permanent(self, store):
        store.append("l", 1)
        store.extend("m", LISTS["conversation"])
        assert [store.ttl("l"), store.ttl("m")] == [None, None]
        store.touch("m", 10)
        store.append("m", 1)
        assert store.ttl("m") == 10
        store.touch("m", None)
        store.append("m", 1)
        assert store.ttl("m") is None

    # -- what is refused --------------------------------------------------------------------

    @by_name(NO_LISTS)
    def test_what_is_no_list_does_not_grow(self, store, value):
        store.save("k", value)
        before = self.writes(store)
        for verb in (
            lambda: store.append("k", 1),
            lambda: store.extend("k", [1]),
            lambda: store.extend("k", []),
            lambda: store.extend("k", LISTS["conversation"]),
            lambda: store.load_range("k"),
            lambda: store.load_range("k", 1, 2),
            lambda: store.load_range("k", -1),
        ):
            with pytest.raises(UnsupportedError, match="'k'"):
                verb()
        assert self.writes(store) == before
        assert store.load("k") == value
        assert type(store.load("k")) is type(value)

    @by_name(LISTS)
    def test_items_that_cannot_be_stored_are_refused_before_anything_is_written(self, store, value):
        store.save("l", value)
        before = self.writes(store)
        for bad in (object(), "\ud800", [1, {2: object()}]):
            with pytest.raises(SerializationError, match="'l'"):
                store.append("l", bad)
            with pytest.raises(SerializationError, match="'l'"):
                store.extend("l", [1, bad, 2])
            with pytest.raises(SerializationError, match="'absent'"):
                store.append("absent", bad)
        assert self.writes(store) == before
        assert store.load("l") == value
        assert store.exists("absent") is False

    @pytest.mark.parametrize("there", [True, False])
    def test_items_that_end_in_an_error_leave_nothing(self, store, there):
        if there:
            store.save("l", LISTS["conversation"])
        before = self.writes(store)

        def items():
            yield 1
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            store.extend("l", items())
        for nothing in (None, 5):
            with pytest.raises(TypeError):
                store.extend("l", nothing)
        assert self.writes(store) == before
        assert store.load("l") == (LISTS["conversation"] if there else None)

    @pytest.mark.parametrize("limit", [100, 5000, 100_000])
    def test_a_list_grows_up_to_the_limit_and_no_further(self, opened, limit):
        store = opened(value_bytes_max=limit)
        # Each item takes 51 bytes, and the header one to three.
        item, most = "x" * 49, {100: 1, 5000: 97, 100_000: 1960}[limit]
        assert store.extend("l", [item] * most) == most
        before = self.writes(store)
        with pytest.raises(ValueTooLargeError, match="'l'"):
            store.append("l", item)
        with pytest.raises(ValueTooLargeError, match="'l'"):
            store.extend("l", [item, 1])
        with pytest.raises(ValueTooLargeError, match="'m'"):
            store.extend("m", [item] * (most + 1))
        with pytest.raises(ValueTooLargeError, match="'m'"):
            store.append("m", "x" * limit)
        assert self.writes(store) == before
        assert store.load("l") == [item] * most
        assert store.exists("m") is False
        assert store.append("l", "small") == most + 1

    # -- reading a part ---------------------------------------------------------------------

    @by_name(LISTS)
    def test_load_range_is_a_slice(self, store, value):
        store.save("l", value)
        length = len(value)
        places = {0, 1, 5, length // 3, length // 2, length - 2, length - 1, length, length + 9}
        places |= {-place for place in places} | {1 << 70, -(1 << 70)}
        for start, stop in itertools.product(sorted(places), [None, *sorted(places)]):
            assert store.load_range("l", start, stop) == value[start:stop]
        assert store.load_range("l") == value
        assert store.load_range("l", stop=3) == value[:3]
        assert store.load_range("l", -3) == value[-3:]

    @by_name(LONG)
    def test_load_range_finds_every_item(self, store, value):
        store.save("l", value)
        step = max(1, len(value) // 150)
        for number in range(0, len(value), step):
            assert store.load_range("l", number, number + 1) == [value[number]]
            assert store.load_range("l", -number - 1, len(value) - number) == [value[-number - 1]]

    @by_name(LISTS)
    def test_load_range_of_a_list_that_has_grown(self, store, value):
        expected = list(value)
        store.save("l", value)
        for number in range(12):
            items = [message(number)] * number + [NOISE[: number * 2000]]
            expected += items
            store.extend("l", items)
            for start, stop in ((-number, None), (-number - 40, -3), (number, 20), (-1, None)):
                assert store.load_range("l", start, stop) == expected[start:stop]

    def test_a_part_that_was_loaded_may_be_changed(self, store):
        store.save("l", LISTS["lists"])
        part = store.load_range("l", 5, 8)
        part[0][0].append("changed")
        part.append("more")
        assert store.load_range("l", 5, 8) == LISTS["lists"][5:8]
        assert store.load("l") == LISTS["lists"]

    @pytest.mark.parametrize("bad", ["1", 1.0, [1]])
    @by_name({"short": [1, 2, 3], **LONG})
    def test_the_ends_of_a_range_are_whole_numbers(self, store, value, bad):
        store.save("l", value)
        with pytest.raises((TypeError, StoreError)):
            store.load_range("l", bad)
        with pytest.raises((TypeError, StoreError)):
            store.load_range("l", 0, bad)

    # -- transactions and snapshots ---------------------------------------------------------

    @by_name(LISTS)
    def test_in_a_transaction(self, store, value):
        store.save("l", value)
        with store.transaction() as tx:
            assert tx.append("l", 1) == len(value) + 1
            assert tx.extend("l", [message(2), NOISE[:50_000]]) == len(value) + 3
            expected = [*value, 1, message(2), NOISE[:50_000]]
            assert tx.load("l") == expected
            assert tx.load_range("l", -3) == expected[-3:]
            assert tx.load_range("l", 2, 5) == expected[2:5]
            assert tx.append("new", 1) == 1
            assert tx.extend("new", value) == len(value) + 1
        assert dict(store.items()) == {"l": expected, "new": [1, *value]}
        assert store.append("l", "behind it") == len(expected) + 1
        assert store.load("l") == [*expected, "behind it"]

    @by_name(LISTS)
    def test_a_transaction_that_is_rolled_back_adds_nothing(self, store, value):
        store.save("l", value)
        before = self.writes(store)
        with store.transaction() as tx:
            tx.append("l", 1)
            tx.extend("l", [message(2), NOISE[:50_000]])
            tx.append("new", 1)
            tx.rollback()
        assert self.writes(store) == before
        assert dict(store.items()) == {"l": value}
        assert store.append("l", 1) == len(value) + 1
        assert store.load("l") == [*value, 1]

    @by_name(NO_LISTS)
    def test_a_transaction_refuses_what_is_no_list_and_goes_on(self, store, value):
        store.save("k", value)
        with store.transaction() as tx:
            tx.append("l", 1)
            for verb in (
                lambda: tx.append("k", 1),
                lambda: tx.extend("k", [1]),
                lambda: tx.load_range("k", 1),
            ):
                with pytest.raises(UnsupportedError, match="'k'"):
                    verb()
            with pytest.raises(SerializationError, match="'l'"):
                tx.append("l", object())
            tx.append("l", 2)
        assert store.load("l") == [1, 2]
        assert store.load("k") == value

    def test_a_transaction_keeps_the_expiry(self, store, clock):
        store.save_many({"l": [1], "m": LISTS["conversation"]}, ttl=10)
        store.save("gone", LISTS["conversation"], ttl=9)
        clock.advance(9)
        with store.transaction() as tx:
            assert tx.append("l", 2) == 2
            assert tx.append("m", 2) == 601
            assert tx.append("gone", 2) == 1
            assert [tx.ttl("l"), tx.ttl("m"), tx.ttl("gone")] == [1, 1, None]
        assert [store.ttl("l"), store.ttl("m"), store.ttl("gone")] == [1, 1, None]
        clock.advance(1)
        assert dict(store.items()) == {"gone": [2]}

    def test_the_stores_own_verbs_are_refused_inside_a_transaction(self, store):
        store.save("l", LISTS["conversation"])
        with store.transaction() as tx:
            tx.append("l", 1)
            with pytest.raises(TransactionStateError):
                store.append("l", 2)
            with pytest.raises(TransactionStateError):
                store.extend("l", [2])
            assert store.load_range("l", -1) == LISTS["conversation"][-1:]
        assert store.load("l") == [*LISTS["conversation"], 1]

    @by_name(LISTS)
    def test_a_snapshot_shows_a_list_as_it_was(self, store, value):
        store.save_many({"grows": value, "is replaced": value, "goes": value})
        store.append("grows", "before")
        with store.snapshot() as view:
            for number in range(5):
                store.extend("grows", [message(number), NOISE[: number * 10_000]])
            store.save("is replaced", ["new"])
            store.append("is replaced", 1)
            store.delete("goes")
            store.append("new", 1)
            for key, there in (
                ("grows", [*value, "before"]),
                ("is replaced", value),
                ("goes", value),
            ):
                assert view.load(key) == there
                for start, stop in ((0, None), (-2, None), (3, 9), (-9, -4), (len(there), None)):
                    assert view.load_range(key, start, stop) == there[start:stop]
            assert view.load_range("new") == []
        assert store.load_range("grows", len(value), len(value) + 2) == ["before", message(0)]

    @by_name(NO_LISTS)
    def test_a_snapshot_has_no_part_of_what_is_no_list(self, store, value):
        store.save("k", value)
        with store.snapshot() as view:
            store.save("k", [1, 2])
            for start, stop in ((0, None), (1, 2), (-1, None)):
                with pytest.raises(UnsupportedError, match="'k'"):
                    view.load_range("k", start, stop)

    # -- several at once --------------------------------------------------------------------

    def test_threads_that_add_to_one_list_lose_nothing(self, store):
        store.save("l", LISTS["conversation"])
        begun = len(LISTS["conversation"])
        found = {}

        def add(thread):
            found[thread] = lengths = []
            for number in range(25):
                item = [thread, number, NOISE[: number * 37].hex()]
                if number % 5:
                    lengths.append(store.append("l", item))
                else:
                    lengths.append(store.extend("l", [item[:2], item]))
                # Where it was told to be it is, whatever else is added behind it.
                length = lengths[-1]
                assert store.load_range("l", length - 1, length) == [item]

        self.at_once(*[lambda thread=thread: add(thread) for thread in range(4)])
        items = store.load("l")
        assert items[:begun] == LISTS["conversation"]
        assert len(items) == begun + 4 * (25 + 5)
        for thread, lengths in found.items():
            assert lengths == sorted(set(lengths))
            mine = [item for item in items[begun:] if item[0] == thread]
            assert [number for _, number, *text in mine if text] == [*range(25)]
            assert [items[length - 1][:2] for length in lengths] == [
                [thread, number] for number in range(25)
            ]

    def test_one_that_fails_beside_others_fails_alone(self, opened):
        store = opened(value_bytes_max=100_000)
        long = [message(number) for number in range(80)]
        store.save_many({"text": "text", "long text": NOISE[:20_000], "long": long})
        store.save("full", ["x" * 99_000])
        outcomes = []

        def grow(key):
            for number in range(1, 11):
                assert store.append(key, "x" * 1000) >= number
                outcomes.append(key)

        def fail(key, error):
            for _ in range(10):
                with pytest.raises(error, match=f"'{key}'"):
                    store.append(key, "x" * 1000)

        with store.transaction() as tx:  # those that begin meanwhile wait, and then meet
            threads = self.begin(
                lambda: grow("new"),
                lambda: fail("text", UnsupportedError),
                lambda: grow("long"),
                lambda: fail("full", ValueTooLargeError),
                lambda: fail("long text", UnsupportedError),
                lambda: grow("another"),
            )
            tx.save("begun", 1)
        self.end(threads)
        for key, before in (("new", []), ("another", []), ("long", long)):
            assert store.load(key) == before + ["x" * 1000] * 10
            assert outcomes.count(key) == 10
        assert store.load("text") == "text"
        assert store.load("long text") == NOISE[:20_000]
        assert store.load("full") == ["x" * 99_000]

    @classmethod
    def at_once(cls, *calls):
        cls.end(cls.begin(*calls))

    @staticmethod
    def begin(*calls):
        """Threads that run the calls, and what they raised."""
        begun = threading.Barrier(len(calls) + 1)
        errors = []

        def run(call):
            begun.wait(60)
            try:
                call()
            except BaseException as error:  # noqa: BLE001  # it is handed to the test
                errors.append(error)

        threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
        for thread in threads:
            thread.start()
        begun.wait(60)
        return threads, errors

    @staticmethod
    def end(begun):
        threads, errors = begun
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        if errors:
            raise errors[0]
