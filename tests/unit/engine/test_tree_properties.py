"""What trees promise for every value and every history.

- What was saved is loaded, whatever was saved before and in how many steps; in a store that was
  closed and opened again, too.
- Equal values have equal trees: the same content keys, in the same order, whatever happened to the
  key before.
- Every content has as many references as there are; what nobody refers to is gone.
"""

from contextlib import contextmanager
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsage import LMDBStore
from kvsage.engine.cutting import DEPTH_MAX
from tests.support.small import OPTIONS, make_small, quick_directory
from tests.support.trees import (
    EDITS,
    VALUES,
    check_counts,
    contents_in,
    edited,
    elements,
    lists,
    plain_tree,
    tree_of,
)

ROOMY = {**OPTIONS, "segment_bytes_max": 20_000}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Opens a store for one example; in the end all of it is checked, and then cleared."""
    numbers = count()
    with pytest.MonkeyPatch.context() as patches:
        make_small(patches)
        with quick_directory(tmp_path_factory.mktemp("trees")) as path:

            @contextmanager
            def open_():
                with LMDBStore(path / str(next(numbers)), **ROOMY) as store:
                    yield store
                    check_counts(store)

            yield open_


def check(store, value, key="k"):
    loaded = store.load(key)
    assert loaded == value
    assert type(loaded) is type(value)
    assert tree_of(store, key) == plain_tree(value)


@given(value=VALUES)
def test_what_was_saved_is_loaded(opened, value):
    with opened() as store:
        store.save("k", value)
        check(store, value)
        store._engine.raw_cache.clear()
        check(store, value)
        store.save("twin", value)
        assert tree_of(store, "twin") == tree_of(store, "k")
    with opened() as store:
        path = store.path
        store.save("k", value)
    with LMDBStore(path, **ROOMY) as store:
        check(store, value)


@given(values=st.lists(VALUES, min_size=1, max_size=3))
def test_contents_go_with_the_last_that_refers_to_them(opened, values):
    with opened() as store:
        for number, value in enumerate(values):
            store.save(f"k/{number}", value)
            store.save(f"twin/{number}", value)
        store.clear("twin/")
        check_counts(store)
        for number, value in enumerate(values):
            check(store, value, f"k/{number}")
        expected = set().union(*(plain_tree(value)[1] for value in values))
        assert contents_in(store).keys() == expected
        store.clear("k/")
        assert contents_in(store) == {}


@given(value=VALUES, edits=st.lists(EDITS, min_size=1, max_size=5))
def test_whatever_is_edited(opened, value, edits):
    with opened() as store:
        store.save("k", value)
        for edit in edits:
            value = edited(value, edit)
            store.save("k", value)
            check(store, value)


@given(value=lists(), added=st.lists(lists(max_size=2), max_size=4))
def test_what_is_added_to_a_list_leads_to_the_tree_of_all_of_it(opened, value, added):
    with opened() as store:
        store.save("k", value, ttl=3600)
        expires_at = store.entry("k").expires_at
        for items in added:
            value = value + items
            if len(items) == 1:
                assert store.append("k", items[0]) == len(value)
            else:
                assert store.extend("k", iter(items)) == len(value)
            check(store, value)
            assert store.entry("k").expires_at == expires_at


@given(
    first=lists(max_size=3),
    script=st.lists(st.tuples(st.sampled_from(["save", "extend", "twin"]), EDITS), max_size=6),
)
def test_a_tree_bears_no_trace_of_how_it_came_about(opened, first, script):
    """Saved whole, extended, edited and shared with other keys, in any order."""
    value = first
    with opened() as store:
        for verb, edit in script:
            if verb == "extend" and isinstance(value, list):
                value = value + edit[-1]
                store.extend("k", edit[-1])
            elif verb == "twin":
                store.save("twin", edited(value, edit))
            else:
                value = edited(value, edit)
                store.save("k", value)
        store.save("k", value)
        check(store, value)


def runs_before_large(count):
    """Most runs of elements end because a large element follows."""
    made = elements([("tiny", 4 * count, 7, False), ("whole", 16 * count, 7, False)])
    tiny, large = made[: 4 * count], made[4 * count :]
    return [one for n in range(count) for one in (*tiny[4 * n : 4 * n + 4], large[n])]


LISTS = {
    "messages": elements([("message", 40, seed, False) for seed in range(3)]),
    "runs of short elements": elements([("tiny", 250, 1, False)]),
    "messages, text and lists": elements(
        [(kind, 40, seed, False) for seed in range(2) for kind in ("message", "lines", "list")]
    ),
    "runs before large elements": runs_before_large(70),
}


@pytest.mark.parametrize("value", LISTS.values(), ids=LISTS)
def test_an_edit_at_any_place_of_a_list_leaves_no_trace(opened, value):
    """What is remembered of a value that was saved may be used for the next one only so far."""
    with opened() as store:
        for at in range(len(value)):
            store.save("k", value)
            verb = ("delete", "insert")[at % 2] if isinstance(value[at], dict) else "replace"
            after = edited(value, (verb, [at], 1, ["else"]))
            store.save("k", after)
            check(store, after)


@pytest.mark.parametrize("value", LISTS.values(), ids=LISTS)
def test_a_list_within_a_list_ends_where_it_ends(opened, value):
    """What follows a list may be what was once a part of it."""
    with opened() as store:
        for at in range(1, len(value), 7):
            first, rest = value[:at], value[at:]
            for after in ([first, *rest], [first, rest], {"a": first, "b": rest}, [[value]]):
                store.save("k", value)
                store.save("k", after)
                check(store, after)


def test_a_list_is_cut_by_how_deep_it_stands(opened):
    """Lists nested deeper than some dozens are cut as bytes are, whatever was saved before."""
    deep = elements([("message", 30, 3, False)])
    for _ in range(DEPTH_MAX - 2):
        deep = [deep, 1]
    value = [*LISTS["messages"][:20], deep, *LISTS["messages"][20:]]
    with opened() as store:
        for _ in range(2):
            for after in (value, [value, 1], [[value, 1], 1], [[[value, 1], 2], 3]):
                store.save("k", after)
                check(store, after)
