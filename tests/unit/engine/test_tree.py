"""How pieces are grouped: a root is small however long a list is, and an edit changes few nodes.

The promises for groups are those for cuts, one level up: no group that ends in front of a change
is another one afterwards, and from the first end of a group behind it that was one before, all are
the same. Where hashes are left to chance a group ends with one piece in eight, from the eighth on,
so ends meet soon; pieces that were chosen against the hash may keep them apart for ever.
"""

import random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from kvsage.engine.cutting import Part, array_header, cut
from kvsage.engine.tree import (
    GROUP_LEAST,
    GROUP_MASK,
    GROUP_MOST,
    TOP_MAX,
    Piece,
    group,
    held,
    node_key,
    node_of,
    opened,
    pieces_of,
    topmost,
)
from kvsage.log.format import (
    MSGPACK,
    TREE_ITEMS_MAX,
    TREE_LEVELS_MAX,
    decode_tree,
    encode_tree,
    is_node,
)
from kvsage.serialization import pack
from tests.support.trees import (
    VALUES,
    lists,
    message,
    messages,
    plain_tree,
    small_sizes,
    tiny,
)


def leaf(number, mark=None):
    """A leaf whose hash begins with a mark, or with chance."""
    key = xxh3_128_digest(number.to_bytes(8, "little")) + b"\0\0"
    if mark is not None:
        key = bytes([mark]) + key[1:]
    return Piece(key, 100 + number % 50, 1 + number % 3, start=number)


def leaves(count, first=0, mark=None):
    return [leaf(number, mark) for number in range(first, first + count)]


def walk(pieces):
    """Leaves and literals, in their order."""
    for piece in pieces:
        if piece.pieces is None:
            yield piece
        else:
            yield from walk(piece.pieces)


def told(pieces):
    """All that is stored of pieces."""
    return [(one.key, one.length, one.elements, one.level, one.literal) for one in pieces]


MARKS = st.lists(st.integers(0, 7) | st.just(0) | st.just(1), max_size=300)


# -- groups -------------------------------------------------------------------------------------


@given(MARKS)
def test_groups_are_consecutive_and_of_a_fair_size(marks):
    pieces = [leaf(number, mark) for number, mark in enumerate(marks)]
    nodes = group(pieces)
    assert [one for node in nodes for one in node.pieces] == pieces
    for node in nodes:
        last = node.pieces[-1]
        size = len(node.pieces)
        if node is not nodes[-1]:
            assert GROUP_LEAST <= size <= GROUP_MOST
            assert size == GROUP_MOST or last.mark & GROUP_MASK == 0
        assert size <= GROUP_MOST
        assert not any(one.mark & GROUP_MASK == 0 for one in node.pieces[GROUP_LEAST - 1 : -1])
        assert node.level == 1
        assert node.length == sum(one.length for one in node.pieces)
        assert node.elements == sum(one.elements for one in node.pieces)
        assert node.start == node.pieces[0].start
        assert node.is_node
        assert node.key == node_key(encode_tree(node.pieces))


def test_groups_that_never_and_always_end():
    assert [len(node.pieces) for node in group(leaves(100, mark=1))] == [32, 32, 32, 4]
    assert [len(node.pieces) for node in group(leaves(100, mark=0))] == [8] * 12 + [4]
    assert group([]) == []


def ends_of_groups(pieces):
    """How many pieces there are in front of the end of each group that is sure to end there."""
    nodes, ends = group(pieces), [0]
    for node in nodes:
        ends.append(ends[-1] + len(node.pieces))
    last = nodes[-1].pieces if nodes else []
    is_sure = len(last) == GROUP_MOST or (
        len(last) >= GROUP_LEAST and last[-1].mark & GROUP_MASK == 0
    )
    return ends[1:] if is_sure else ends[1:-1]


@given(MARKS, MARKS, st.integers(0, 300), st.integers(0, 40))
def test_a_change_moves_the_ends_of_groups_around_it_alone(marks, new, at, count):
    at = min(at, len(marks))
    pieces = [leaf(number, mark) for number, mark in enumerate(marks)]
    other = [leaf(1000 + number, mark) for number, mark in enumerate(new)]
    after = pieces[:at] + other + pieces[at + count :]
    before, changed = ends_of_groups(pieces), ends_of_groups(after)
    assert [end for end in before if end <= at] == [end for end in changed if end <= at]
    behind = len(pieces[at + count :])
    old = {0} | {len(pieces) - end for end in before if len(pieces) - end <= behind}
    fresh = {0} | {len(after) - end for end in changed if len(after) - end <= behind}
    common = max(old & fresh)
    assert {end for end in old if end <= common} == {end for end in fresh if end <= common}


@given(MARKS, MARKS)
def test_a_list_that_grows_is_grouped_anew_from_its_last_group_on(marks, more):
    pieces = [leaf(number, mark) for number, mark in enumerate(marks + more)]
    nodes = group(pieces[: len(marks)])
    last = nodes.pop().pieces if nodes else []
    assert told(nodes + group(last + pieces[len(marks) :])) == told(group(pieces))


# -- the top ------------------------------------------------------------------------------------


def literal(data, elements=0):
    return Piece(b"", len(data), elements, 0, data, 0)


@pytest.mark.parametrize("count", [1, TOP_MAX, TOP_MAX + 1, 200, 3000, 20_000])
def test_the_top_is_small_however_much_is_below(count):
    pieces = leaves(count)
    header, tail = literal(array_header(count)), literal(b"tail", 1)
    for head, rest in (([header], [tail]), ([header], []), ([], [])):
        top = topmost([*head, *pieces, *rest])
        assert top[: len(head)] == head
        assert top[len(top) - len(rest) :] == rest
        middle = top[len(head) : len(top) - len(rest)]
        assert 1 <= len(middle) <= TOP_MAX
        assert list(walk(middle)) == pieces
        assert len({one.level for one in middle}) == 1
        check_nodes(middle)
        assert middle[0].level < 6 < TREE_LEVELS_MAX
        assert TOP_MAX + 2 <= GROUP_MOST < TREE_ITEMS_MAX


def test_what_fits_into_the_top_is_not_grouped():
    pieces = leaves(TOP_MAX)
    assert topmost(pieces) == pieces
    assert [one.level for one in topmost(leaves(TOP_MAX + 1))] == [1] * len(
        topmost(leaves(TOP_MAX + 1))
    )


# -- pieces -------------------------------------------------------------------------------------


def joined(raw, pieces):
    found = b""
    for piece in walk(pieces):
        data = piece.literal or raw[piece.start : piece.start + piece.length]
        assert len(data) == piece.length
        assert raw[piece.start : piece.start + piece.length] == data
        if not piece.literal:
            assert piece.key == xxh3_128_digest(data) + b"\0\0"
        found += data
    return found


@given(VALUES)
def test_the_pieces_of_a_value_are_its_bytes(value):
    data = pack(value)
    parts = cut(MSGPACK, data, small_sizes())
    if parts is not None:
        top = topmost(pieces_of(data, parts))
        assert joined(data, top) == data
        assert decode_tree(encode_tree(top)) == told(top)
        check_nodes(top)


def check_nodes(pieces):
    for piece in pieces:
        assert piece.is_node == (piece.pieces is not None)
        assert piece.is_new == (not piece.literal)
        if piece.pieces is not None:
            assert decode_tree(encode_tree(piece.pieces)) == told(piece.pieces)
            assert piece.key == node_key(encode_tree(piece.pieces))
            assert piece.length == sum(one.length for one in piece.pieces)
            if piece.level:
                assert {one.level for one in piece.pieces} == {piece.level - 1}
            check_nodes(piece.pieces)


def test_a_node_is_never_mistaken_for_a_leaf():
    """Not even one whose bytes are those of a node."""
    value = encode_tree(leaves(9))
    (piece,) = pieces_of(value, [Part(0, len(value), 0)])
    assert is_node(node_key(value))
    assert not is_node(piece.key)
    assert node_key(value)[:16] != piece.key[:16]


def test_what_a_node_holds_decides_its_key():
    pieces = leaves(9)
    key = node_of(pieces, 9, 1, 0).key
    assert node_of(leaves(9), 5, 2, 7).key == key
    assert node_of(pieces[:-1], 9, 1, 0).key != key
    assert node_of(pieces[::-1], 9, 1, 0).key != key
    for field in ("length", "elements", "level"):
        changed = leaves(9)
        setattr(changed[3], field, getattr(changed[3], field) + 1)
        assert node_of(changed, 9, 1, 0).key != key


@given(VALUES)
def test_a_tree_that_is_there_is_held_as_it_is(value):
    data = pack(value)
    parts = cut(MSGPACK, data, small_sizes())
    if parts is not None:
        top = topmost(pieces_of(data, parts))
        back = held(decode_tree(encode_tree(top)))
        assert told(back) == told(top)
        assert [one.mark for one in back] == [one.mark for one in top]
        assert not any(one.is_new for one in back)


@given(lists("message", "tiny", "whole", "list", "noise"))
def test_what_a_node_over_elements_holds_is_found_again(value):
    data = pack(value)
    for node in topmost(pieces_of(data, cut(MSGPACK, data, small_sizes()) or [Part(0, 1, 0)])):
        if node.level == 1 and node.elements:
            assert told(opened(node, data, small_sizes())) == told(node.pieces)


# -- edits --------------------------------------------------------------------------------------


def new_contents(before, after):
    return len(plain_tree(after)[1] - plain_tree(before)[1])


@given(st.integers(0, 1 << 32))
def test_of_data_left_to_chance_an_edit_makes_few_new_contents(seed):
    """New pieces around the edit, and around those one node or two on each level."""
    rng = random.Random(seed)
    value = messages(rng, 250)
    counts = []
    for _ in range(5):
        at = rng.randrange(len(value))
        new = messages(rng, rng.randrange(2))
        after = value[:at] + new + value[at + rng.randrange(2) :]
        counts.append(new_contents(value, after))
    assert mean(counts) <= 8
    assert max(counts) <= 30


@given(st.integers(0, 1 << 32))
def test_an_element_more_at_the_end_makes_a_piece_at_most_and_a_node_on_each_level(seed):
    """No chance in it: pieces that are there stay, and one node on each level is another."""
    rng = random.Random(seed)
    value = messages(rng, rng.randrange(200))
    levels = 3
    pieces_of_one = 1 + len(plain_tree([message(rng)])[1])
    for _ in range(5):
        after = [*value, tiny(rng)]
        assert new_contents(value, after) <= 1 + levels
        value = after
        after = [*value, message(rng)]
        assert new_contents(value, after) <= pieces_of_one + 1 + levels
        value = after


def test_a_change_deep_inside_makes_new_nodes_on_the_way_there_alone():
    rng = random.Random(5)
    value = deep = messages(rng, 40)
    for _ in range(8):
        value = [*messages(rng, 30), value, *messages(rng, 30)]
    before = plain_tree(value)[1]
    deep[20] = message(rng)
    new = plain_tree(value)[1] - before
    assert len(before) > 200
    assert 9 <= len(new) <= 9 * 5
