"""``append``, ``extend`` and ``load_range``: the tree of the whole list, without the rest of it."""

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsage import LMDBStore
from kvsage.engine import assembling
from kvsage.errors import SerializationError, UnsupportedError, ValueTooLargeError
from kvsage.serialization import pack
from tests.support.small import OPTIONS, make_small
from tests.support.trees import (
    KINDS,
    Message,
    check_counts,
    contents_in,
    elements,
    lines,
    message,
    messages,
    plain_tree,
    search,
    small_sizes,
    tiny,
    tree_of,
    words,
)


@pytest.fixture
def store_options(monkeypatch):
    make_small(monkeypatch)
    return {**OPTIONS, "segment_bytes_max": 100_000}


def check(store, value, key="k"):
    assert store.load(key) == value
    assert tree_of(store, key) == plain_tree(value)


# -- growing ------------------------------------------------------------------------------------


def never(number):
    (text,) = search(small_sizes(), 40, 1, wanted=False, seed=number)
    return text


STEPS = {
    "messages": lambda rng, _: message(rng),
    "numbers": lambda rng, _: rng.randrange(1 << 40),
    "short text": lambda rng, _: tiny(rng),
    "text that is large": lambda rng, _: KINDS["whole"](rng),
    "huge elements": lambda rng, _: lines(rng, 60),
    "lists": lambda rng, _: messages(rng, 12),
    "numbers, then messages": lambda rng, n: rng.randrange(99) if n < 90 else message(rng),
    "messages, then numbers": lambda rng, n: message(rng) if n < 20 else rng.randrange(99),
    "anything": lambda rng, _: KINDS[rng.choice(list(KINDS))](rng),
    "nothing": lambda _, __: None,
    "elements that end no run": lambda _, n: never(n),
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_list_that_grows_past_every_threshold(store, kind):
    """From nothing: within the entry, one content, a tree, a tree of more levels; 15 and 16."""
    rng, value, shapes = random.Random(kind), [], set()
    count = {"numbers": 400, "nothing": 600, "messages": 220}.get(kind, 130)
    for number in range(count):
        value = [*value, STEPS[kind](rng, number)]
        assert store.append("k", value[-1]) == len(value)
        top, _ = tree = tree_of(store, "k")
        assert tree == plain_tree(value)
        shapes.add(max(item[3] for item in top) if isinstance(top, list) else len(top))
    assert store.load("k") == value
    check_counts(store)
    assert {0, 18} <= shapes or kind in {"huge elements", "lists", "text that is large", "anything"}
    assert len(shapes) > 1


@pytest.mark.parametrize("size", [1, 3, 40])
def test_a_list_grows_by_many_items_at_once(store, size):
    rng, value = random.Random(size), []
    for _ in range(12):
        more = [KINDS[rng.choice(["message", "tiny", "list"])](rng) for _ in range(size)]
        value = value + more
        assert store.extend("k", iter(more)) == len(value)
        check(store, value)
    assert store.extend("k", []) == len(value)
    check(store, value)
    check_counts(store)


@pytest.mark.parametrize("seed", range(3))
def test_lists_of_numbers_grow_as_well(store, seed):
    """Cut as bytes are, which look ahead: what comes behind may move the last cuts."""
    rng = random.Random(seed)
    for _ in range(12):
        value = [rng.randrange(300) for _ in range(rng.randrange(150, 900))]
        more = [rng.randrange(300) for _ in range(rng.randrange(1, 300))]
        store.save("k", value)
        store.extend("k", more)
        check(store, value + more)


@pytest.mark.parametrize("kind", ["message", "number"])
def test_a_list_grows_past_65_535_elements(new_store, kind):
    """Its header becomes longer by two bytes."""
    store = new_store(content_bytes_min=8192, segment_bytes_max=1 << 26, value_bytes_max=1 << 25)
    rng = random.Random(1)
    value = [tiny(rng) + "x" * 20 if kind == "message" else 7 for _ in range(65_533)]
    store.save("k", value)
    for number in range(6):
        value.append(f"one more {number}")
        assert store.append("k", value[-1]) == len(value)
        assert store.load_range("k", -3) == value[-3:]
        assert store.load_range("k", 65_530) == value[65_530:]
    assert store.load("k") == value
    store.save("twin", value)
    assert tree_of(store, "k") == tree_of(store, "twin")


@pytest.mark.parametrize("size", [0, 3, 90, 900])
@pytest.mark.parametrize(
    "made",
    [
        tuple,
        lambda made: dict(enumerate(made)),
        str,
        lambda made: Message("a", made),
    ],
    ids=["tuple", "mapping", "text", "object"],
)
def test_what_is_no_list_does_not_grow(store, made, size):
    value = made(messages(random.Random(1), size // 60))
    store.save("k", value)
    before = tree_of(store, "k")
    for call in (
        lambda: store.append("k", 1),
        lambda: store.extend("k", [1, 2]),
        lambda: store.load_range("k", 0, 1),
    ):
        with pytest.raises(UnsupportedError, match="not a list"):
            call()
    assert store.load("k") == value
    assert tree_of(store, "k") == before


def test_bytes_are_no_list(store):
    for length in (3, 100, 3000):
        store.save("k", b"\x93" * length)
        with pytest.raises(UnsupportedError, match="holds a bytes"):
            store.append("k", 1)
        with pytest.raises(UnsupportedError, match="holds a bytes"):
            store.load_range("k")


def test_an_item_that_cannot_be_stored_changes_nothing(store):
    value = messages(random.Random(1), 60)
    store.save("k", value)
    with pytest.raises(SerializationError, match="'k'"):
        store.extend("k", [1, object()])
    check(store, value)


def test_a_list_grows_up_to_the_largest_value(new_store):
    store = new_store(value_bytes_max=6000)
    value, rng = [], random.Random(1)
    while len(pack([*value, item := message(rng)])) <= 6000:
        value.append(item)
        store.append("k", item)
    with pytest.raises(ValueTooLargeError, match="'k'"):
        store.append("k", item)
    check(store, value)
    with pytest.raises(ValueTooLargeError):
        store.append("k", "x" * 5000)
    check(store, value)


def test_a_list_that_expired_begins_anew(store, clock):
    store.save("k", messages(random.Random(1), 60), ttl=5)
    clock.now += 6
    assert store.load_range("k") == []
    assert store.append("k", 1) == 1
    assert store.ttl("k") is None
    check(store, [1])
    check_counts(store)
    assert contents_in(store) == {}


def test_how_long_a_list_lives_stays(store, clock):
    rng = random.Random(1)
    store.save("k", [], ttl=100)
    for number in range(90):
        clock.now += 1
        store.append("k", message(rng) if number < 60 or number % 9 == 0 else tiny(rng))
        assert store.ttl("k") == 99 - number
    store.touch("k", None)
    store.append("k", 1)
    assert store.ttl("k") is None


def test_a_list_grows_in_a_store_that_was_closed_and_compacted(new_store):
    value = messages(random.Random(1), 100)
    store = new_store()
    store.save("k", value)
    for number in range(5):
        store.save("other", messages(random.Random(number + 5), 100))
        store.compact()
        value = [*value, message(random.Random(number + 50))]
        store.append("k", value[-1])
        check(store, value)
        store.close()
        store = new_store()
        check(store, value)
    check_counts(store)


def test_lists_that_share_all_but_the_end_share_it(store):
    value = messages(random.Random(1), 100)
    for number in range(5):
        store.save(f"{number}", value)
        store.append(f"{number}", f"the end of {number}" * 9)
    assert len(contents_in(store)) < 1.3 * len(plain_tree(value)[1])
    for number in range(5):
        check(store, [*value, f"the end of {number}" * 9], f"{number}")
    check_counts(store)


@pytest.fixture
def contents_read(monkeypatch):
    """The content keys of all that is read from the log."""
    keys = []
    read = assembling.content_entry

    def content_entry(engine, key, row):
        keys.append(key)
        return read(engine, key, row)

    monkeypatch.setattr(assembling, "content_entry", content_entry)
    return keys


def test_what_is_added_costs_nothing_for_what_was_there(store, contents_read):
    """A few nodes are read, and a few written; whether the list is long or short."""
    value = messages(random.Random(1), 1500)
    store.save("k", value)
    for number in range(30):
        store._engine.raw_cache.clear()
        del contents_read[:]
        before = store.stats().log_bytes
        store.append("k", message(random.Random(number)))
        assert len(contents_read) <= 6
        assert store.stats().log_bytes - before < 8000
    assert len(plain_tree(value)[1]) > 500


# -- parts --------------------------------------------------------------------------------------

PARTS = {
    "nothing": [],
    "small": [1, 2, 3],
    "one content": messages(random.Random(1), 2),
    "a tree": messages(random.Random(1), 12),
    "a tree of several levels": messages(random.Random(2), 40),
    "short elements": elements([("tiny", 45, 1, False)]),
    "numbers": list(range(70)),
    "large elements": elements(
        [("whole", 45, 1, False), ("list", 45, 1, False), ("lines", 40, 2, False)]
    ),
    "one large element": [lines(random.Random(1), 40)],
    "all kinds": [KINDS[kind](random.Random(1)) for kind in KINDS],
}


@pytest.mark.parametrize("value", PARTS.values(), ids=PARTS)
def test_every_part_is_the_slice(store, value):
    store.save("k", value)
    view = store.snapshot()
    reach = range(-len(value) - 2, len(value) + 3)
    stops = [None, *reach]
    for start in reach:
        for stop in stops if len(value) < 25 else stops[start % 3 :: 3]:
            assert view.load_range("k", start, stop) == value[start:stop]
    assert view.load_range("k") == value
    view.close()


@given(
    recipe=st.lists(st.sampled_from(["message", "tiny", "whole", "list"]), min_size=1, max_size=40),
    asked=st.lists(
        st.tuples(st.integers(-300, 300), st.integers(-300, 300) | st.none()), max_size=9
    ),
)
def test_parts_of_any_list(opened, recipe, asked):
    rng = random.Random(str(recipe))
    value = [KINDS[kind](rng) for kind in recipe for _ in range(5)]
    opened.save("k", value[:-3])
    opened.extend("k", value[-3:])
    for start, stop in asked:
        assert opened.load_range("k", start, stop) == value[start:stop]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A store that all examples share."""
    with pytest.MonkeyPatch.context() as patches:
        make_small(patches)
        with LMDBStore(tmp_path_factory.mktemp("growing") / "s", **OPTIONS) as store:
            yield store


def test_a_part_reads_what_it_needs(store, contents_read):
    value = messages(random.Random(1), 1500)
    store.save("k", value)
    for start in (0, 700, 1490):
        store._engine.raw_cache.clear()
        del contents_read[:]
        assert store.load_range("k", start, start + 5) == value[start : start + 5]
        assert len(contents_read) <= 20
    assert store.load_range("k", 700, 700) == []
    assert store.load_range("k", 9000) == []
    assert store.load_range("k", -3, None) == value[-3:]


def test_parts_in_snapshots_and_transactions(store):
    value = messages(random.Random(1), 100)
    store.save("k", value)
    with store.snapshot() as view:
        with store.transaction() as tx:
            assert tx.load_range("k", 40, 42) == value[40:42]
            assert tx.append("k", "one") == 101
            assert tx.load_range("k", 99) == [value[99], "one"]
            assert view.load_range("k", 99) == value[99:]
        assert view.load_range("k", 99) == value[99:]
    assert store.load_range("k", 99) == [value[99], "one"]
    check(store, [*value, "one"])


def test_items_of_every_type_are_read_as_they_were(store):
    value = [
        datetime(2001, 2, 3, tzinfo=UTC),
        10**40,
        (1, [2]),
        {3, 4},
        Message("a", [words(random.Random(1), 100)]),
        b"bytes",
    ] * 20
    store.save("k", value[:60])
    for item in value[60:]:
        store.append("k", item)
    check(store, value)
    for at in range(0, 120, 7):
        assert store.load_range("k", at, at + 9) == value[at : at + 9]


def test_an_absent_list_has_no_part(store):
    assert store.load_range("absent") == store.load_range("absent", 5, 9) == []
