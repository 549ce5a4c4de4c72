"""Where values are cut: between elements, where they say so, and nowhere else.

What an edit may change is said in three promises:

1. No cut in front of the edit moves (of text: none that was decided by bytes in front of it).
2. From the first cut behind the edit that the value had before it as well, all cuts are the same.
   So the new pieces are those around the edit, up to that cut.
   An edit after which the elements are very small on average, or no longer, is the exception: the
   list is then cut in another way, and all of it is new.
3. How many those are is bounded where cuts depend on chance, as they do in all data that nobody
   chose against the hash: a run ends with each element behind its least size with a probability
   of at least one in so many as it is long, so two ways of cutting meet soon. An adversary who
   knows the hash can choose elements none of which ends a run. Then nothing ties the cuts to the
   elements, and all pieces behind an edit may be new: no more than were saved without cutting.
"""

import random
import struct
from statistics import mean

import msgpack
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvsage.engine.cutting import (
    ARRAY,
    DEPTH_MAX,
    LITERAL_BYTES_MAX,
    MAP,
    SMALL_BYTES,
    TEXT,
    Cutter,
    Part,
    Sizes,
    array_header,
    counted,
    cut,
    ends_of,
    is_dense,
    is_headed,
    sizes_for,
)
from kvsage.log.format import BYTES, MSGPACK, STR
from kvsage.serialization import pack, unpack
from tests.support.trees import (
    KINDS,
    VALUES,
    Message,
    as_tuple,
    ends_runs,
    lines,
    lists,
    message,
    messages,
    search,
    small_sizes,
    tiny,
    words,
)

SIZES = Sizes(
    least=256,
    spread=256,
    most=2048,
    whole=1024,
    text_least=1024,
    text_most=4096,
    text_whole=2048,
    pack=16_384,
    literal_most=64,
)
MIXED = lists("message", "tiny", "whole", "list", "noise", "dict", "scalar")


def is_cut_as_elements(value):
    data = pack(value)
    return len(data) > SIZES.whole and not is_dense(len(value), len(data) - 5)


SPARSE = MIXED.filter(is_cut_as_elements)


def leaves(parts):
    """What is stored in the end, one behind the other."""
    for part in parts:
        if part.parts is None:
            yield part
        else:
            yield from leaves(part.parts)


def ends(parts):
    return [part.end for part in parts]


def elements_in(parts):
    return sum(part.elements for part in parts)


def found(wanted, size, count, seed=0):
    """Packed elements that end a run, or do not."""
    return list(map(pack, search(SIZES, size, count, wanted=wanted, seed=seed)))


def list_of(packed):
    return array_header(len(packed)) + b"".join(packed)


# -- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [64, 4096])
def test_pieces_have_a_least_size_for_those_who_ask_for_less(monkeypatch, asked):
    monkeypatch.undo()
    assert sizes_for(asked) == sizes_for(4096)


@given(st.integers(64, 1 << 30))
def test_sizes_fit_one_another(content_bytes_min):
    check_sizes(sizes_for(content_bytes_min))


def test_sizes_of_the_tests_fit_one_another():
    check_sizes(SIZES)
    check_sizes(small_sizes())


def check_sizes(sizes):
    assert 0 < sizes.literal_most < sizes.least <= sizes.whole <= sizes.most <= sizes.text_most
    assert 0 < sizes.spread <= sizes.whole
    assert sizes.literal_most <= LITERAL_BYTES_MAX
    assert sizes.text_least <= sizes.text_most
    assert max(sizes.whole, sizes.text_least) <= sizes.text_whole


# -- MessagePack --------------------------------------------------------------------------------

COUNTS = [0, 1, 15, 16, 255, 65_535, 65_536, (1 << 32) - 1]


@pytest.mark.parametrize("count", COUNTS)
def test_header_of_an_array(count):
    header = array_header(count)
    packer = msgpack.Packer()
    assert header == packer.pack_array_header(count)
    assert counted(header) == (ARRAY, len(header), count)
    mapping = packer.pack_map_header(count)
    assert counted(mapping + b"rest") == (MAP, len(mapping), count)
    assert counted(memoryview(mapping)) == (MAP, len(mapping), count)


@pytest.mark.parametrize("length", [0, 31, 32, 255, 256, 65_535, 65_536])
def test_header_of_text_and_bytes(length):
    """Text below 32 bytes is short of everything, and taken for a number."""
    for value in ("x" * length, b"x" * length, msgpack.ExtType(5, b"x" * length)):
        data = msgpack.packb(value)
        kind, header, count = counted(data)
        assert count == 0
        if length > 31:
            assert kind == TEXT
            assert data[header:] == b"x" * length


@given(st.sampled_from([None, True, 7, -7, 1 << 40, 0.5, "short", -(1 << 63)]))
def test_header_of_anything_else(value):
    assert counted(msgpack.packb(value)) == (0, 0, 0)


@given(VALUES)
def test_what_is_behind_a_head_is_no_list(value):
    data = pack(value)
    kind, header, count = counted(data)
    assert is_headed(data, header) == (kind == ARRAY and not isinstance(value, list))
    if isinstance(value, (list, dict)):
        assert (kind, count) == (ARRAY if isinstance(value, list) else MAP, len(value))


@given(lists(max_size=2), st.binary(max_size=5))
def test_ends_of_elements(value, behind):
    packed = list(map(pack, value))
    data = memoryview(b"".join(packed) + behind)
    expected = [sum(map(len, packed[: at + 1])) for at in range(len(packed))]
    assert ends_of(data, len(value)) == expected
    assert ends_of(data, len(value) // 2, pairs=True) == expected[1::2]


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\x93\x01", b"\xda\xff", b"\xc1\xc1", b"\x91" * 5000], ids=repr
)
def test_elements_that_are_not_there(data):
    with pytest.raises((msgpack.UnpackException, ValueError)):
        ends_of(memoryview(data), 2)


# -- parts --------------------------------------------------------------------------------------


def check_tiling(parts, start, end):
    """Parts stand one behind the other, those of a large element within it."""
    at = start
    for part in parts:
        assert part.start == at < part.end
        at = part.end
        if part.parts is not None:
            assert not part.is_literal
            check_tiling(part.parts, part.start, part.end)
    assert at == end


@given(VALUES)
def test_parts_are_all_of_the_value(value):
    codec = {str: STR, bytes: BYTES}.get(type(value), MSGPACK)
    data = {STR: str.encode, BYTES: bytes}.get(codec, pack)(value)
    parts = cut(codec, data, SIZES)
    if len(data) <= (SIZES.whole if codec == MSGPACK else SIZES.text_whole):
        assert parts is None
    if parts is not None:
        check_tiling(parts, 0, len(data))
        assert len(parts) > 1
        assert not all(part.is_literal for part in parts)


@given(VALUES)
def test_no_piece_is_larger_than_most(value):
    """But for elements and keys: they are not cut below their own least size."""
    codec = {str: STR, bytes: BYTES}.get(type(value), MSGPACK)
    data = {STR: str.encode, BYTES: bytes}.get(codec, pack)(value)
    keys_at_most = 300  # in a mapping of ``VALUES``
    for part in leaves(cut(codec, data, SIZES) or []):
        assert part.end - part.start <= SIZES.text_most + keys_at_most
        if part.is_literal:
            assert part.end - part.start < SIZES.most


@given(SPARSE | SPARSE.map(as_tuple))
def test_parts_of_a_list_are_whole_elements(value):
    data = pack(value)
    assume(counted(data)[0] == ARRAY)  # a flat tuple is one extension type, and cut as bytes
    parts = cut(MSGPACK, data, SIZES)
    assume(parts is not None)
    head, *rest = parts
    assert (head.elements, head.is_literal) == (0, True)
    assert elements_in(rest) == len(value)
    at = 0
    for part in rest:
        piece = array_header(part.elements) + data[part.start : part.end]
        assert unpack(piece) == list(value[at : at + part.elements])
        at += part.elements


def check_runs(parts, data, packed):
    """Each run ends where the rule says, said without any cleverness."""
    at = 0
    for number, part in enumerate(parts):
        run = packed[at : at + part.elements]
        at += part.elements
        before_large = at < len(packed) and len(packed[at]) > SIZES.whole
        is_last = number == len(parts) - 1
        size = 0
        for place, element in enumerate(run):
            size += len(element)
            closes = size >= SIZES.least and (ends_runs(element, SIZES) or size >= SIZES.most)
            if place < len(run) - 1:
                assert not closes
                assert len(element) <= SIZES.whole
        if len(run) == 1 and len(run[0]) > SIZES.whole:
            assert not part.is_literal
            continue
        assert len(run[-1]) <= SIZES.whole
        assert part.parts is None
        if is_last:
            assert closes or part.is_literal  # the tail, which nothing has closed yet
        else:
            assert closes or before_large
        if closes:
            assert not part.is_literal
        elif not is_last:
            assert part.is_literal == (size <= SIZES.literal_most)
        assert data[part.start : part.end] == b"".join(run)
    assert at == len(packed)


@given(SPARSE)
def test_a_run_ends_where_an_element_says_so(value):
    data = pack(value)
    parts = cut(MSGPACK, data, SIZES)
    assume(parts is not None)
    check_runs(parts[1:], data, list(map(pack, value)))


def test_a_run_of_elements_that_never_end_one_ends_at_the_most():
    packed = found(wanted=False, size=50, count=100)
    parts = cut(MSGPACK, list_of(packed), SIZES)[1:]
    assert {part.end - part.start for part in parts[:-1]} == {2050}
    check_runs(parts, list_of(packed), packed)


def test_a_run_of_elements_that_always_end_one_ends_at_the_least():
    packed = found(wanted=True, size=50, count=100)
    parts = cut(MSGPACK, list_of(packed), SIZES)[1:]
    assert [part.end - part.start for part in parts] == [300] * 16 + [200]
    assert [part.is_literal for part in parts] == [False] * 16 + [True]


def test_elements_of_which_none_has_ended_a_run_are_not_cut():
    """Nothing but a header and a tail would come out: the list, or the element, stays whole."""
    few, more = found(wanted=False, size=50, count=30), found(wanted=False, size=50, count=60)
    assert cut(MSGPACK, list_of(few), SIZES) is None
    assert cut(MSGPACK, list_of(more), SIZES) is not None
    parts = cut(MSGPACK, list_of([*more, list_of(few)]), SIZES)
    assert parts[-1] == Part(parts[-2].end, len(list_of([*more, list_of(few)])), 1)


@pytest.mark.parametrize("size", [1025, 1500, 2047, 2048])
def test_a_large_element_stands_alone(size):
    large = pack(random.Random(1).randbytes(size - 3))
    small = pack("a short one")
    data = list_of([small, large, large, small, small, large])
    rest = cut(MSGPACK, data, SIZES)[1:]
    assert [part.end - part.start for part in rest] == [12, size, size, 24, size]
    assert [part.elements for part in rest] == [1, 1, 1, 2, 1]
    assert [part.is_literal for part in rest] == [True, False, False, True, False]


def test_pairs_of_a_mapping_stay_together():
    """But a large value stands alone, and its key with the pairs before it."""
    rng = random.Random(4)
    value = {f"key {number}": words(rng, 9) for number in range(60)}
    value["large"] = messages(rng, 30)
    value["next"] = 1
    data = pack(value)
    head, *rest = cut(MSGPACK, data, SIZES)
    assert head.end == 3
    assert elements_in(rest) == len(value)  # each begins with its key
    large = next(part for part in rest if part.parts is not None)
    assert unpack(data[large.start : large.end]) == value["large"]
    whole_pairs = [part for part in rest if part.end < large.start]
    pairs = {}
    for part in whole_pairs:
        pairs |= unpack(struct.pack(">BH", 0xDE, part.elements) + data[part.start : part.end])
    assert list(pairs.items()) == list(value.items())[: len(pairs)]
    assert len(pairs) > 40
    assert data[: large.start].endswith(pack("large"))
    assert data[large.end :] == pack("next") + b"\x01"


def test_a_large_key_is_not_cut():
    value = {
        tuple(words(random.Random(n), 9) for n in range(300)): 1,
        "b": words(random.Random(1), 50),
    }
    data = pack(value)
    parts = cut(MSGPACK, data, SIZES)
    check_tiling(parts, 0, len(data))
    assert any(part.end - part.start > 5 * SIZES.most for part in leaves(parts))


LARGE = {
    "list": lambda rng: messages(rng, 60),
    "tuple": lambda rng: tuple(messages(rng, 60)),
    "mapping": lambda rng: {tiny(rng): message(rng) for _ in range(60)},
    "object": lambda rng: Message("user", messages(rng, 60)),
    "set": lambda rng: {tiny(rng) for _ in range(400)},
    "numbers": lambda rng: [rng.randrange(1 << 30) for _ in range(1500)],
    "text": lambda rng: lines(rng, 300),
    "bytes": lambda rng: rng.randbytes(9000),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_element_is_cut_for_itself_as_it_is_elsewhere(kind):
    """Wherever it stands, its parts are the same."""
    rng = random.Random(3)
    large = LARGE[kind](rng)
    alone = pack(large)
    inside = Cutter(alone, SIZES).value(0, len(alone))
    assert len(inside) > 2
    few = messages(rng, 3)
    for around in ([large], [*few, large, 1], {"k": few, "l": large, "m": 5}, ([], large)):
        data = pack(around)
        at = data.index(alone)
        (found,) = [
            part
            for part in leaves_and_nodes(cut(MSGPACK, data, SIZES))
            if part.start == at and part.parts
        ]
        assert [end - at for end in ends(found.parts)] == ends(inside)


def leaves_and_nodes(parts):
    for part in parts:
        yield part
        yield from leaves_and_nodes(part.parts or [])


def test_lists_within_lists_are_cut_down_to_a_depth():
    value = messages(random.Random(2), 40)
    for _ in range(DEPTH_MAX + 3):
        value = [value, "beside"]
    data = pack(value)
    parts = cut(MSGPACK, data, SIZES)
    check_tiling(parts, 0, len(data))
    depth = 0
    while parts is not None:
        depth += 1
        last = parts
        parts = next((part.parts for part in parts if part.parts is not None), None)
    assert depth == DEPTH_MAX + 1
    assert not any(part.elements for part in last)


# -- text ---------------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.integers(0, 99).map(lambda seed: lines(random.Random(seed), 400).encode()),
    st.integers(0, 99).map(lambda seed: random.Random(seed).randbytes(15_000)),
    st.integers(0, 99).map(lambda seed: words(random.Random(seed), 2000).encode()),
    st.integers(0, 99).map(lambda seed: random.Random(seed).randbytes(6000).hex().encode()),
    st.tuples(st.sampled_from([b"\n", b" ", b"e", b"x", b"e \n"]), st.integers(0, 20_000)).map(
        lambda drawn: drawn[0] * drawn[1]
    ),
    st.binary(max_size=900),
)


def text_ends(data):
    return ends(Cutter(data, SIZES).text(0, len(data)))


@given(TEXTS)
def test_pieces_of_text(data):
    parts = Cutter(data, SIZES).text(0, len(data))
    check_tiling(parts, 0, len(data))
    assert not any(part.is_literal or part.elements for part in parts)
    for part in parts[:-1]:
        assert SIZES.text_least < part.end - part.start <= SIZES.text_most
    assert all(part.end - part.start <= SIZES.text_most for part in parts)
    assert cut(STR, data, SIZES) == (
        parts if len(data) > SIZES.text_whole and len(parts) > 1 else None
    )


@pytest.mark.parametrize(("codec", "limit"), [(STR, 2048), (BYTES, 2048), (MSGPACK, 1024)])
def test_up_to_a_size_all_stays_whole(codec, limit):
    if codec == MSGPACK:
        packed = found(wanted=True, size=64, count=14)
        left = limit - len(list_of(packed)) - 2
        data = list_of([*packed, pack("x" * left)])
        assert len(data) == limit
        assert cut(codec, data, SIZES) is None
        assert cut(codec, list_of([*packed, pack("x" * (left + 1))]), SIZES) is not None
    else:
        data = random.Random(1).randbytes(3 * limit)
        assert cut(codec, data[:limit], SIZES) is None
        assert cut(codec, data, SIZES) is not None


def test_text_within_a_list_stays_whole_up_to_its_own_size():
    for length, is_cut in ((1100, False), (2045, False), (2046, True), (6000, True)):
        text = words(random.Random(1), 2000)[:length]
        _, part, *_ = cut(MSGPACK, pack([text, 1]), SIZES)
        assert (part.parts is not None) == is_cut


def test_text_is_cut_at_line_ends_where_it_has_some():
    data = lines(random.Random(8), 3000).encode()
    places = text_ends(data)[:-1]
    at_lines = sum(data[place - 1] == ord("\n") for place in places)
    assert at_lines > 0.6 * len(places)


# -- dense lists --------------------------------------------------------------------------------


def test_lists_of_very_small_elements_are_cut_as_bytes_are():
    value = list(range(100_000, 103_000))
    data = pack(value)
    assert is_dense(len(value), len(data) - 3)
    head, *rest = cut(MSGPACK, data, SIZES)
    assert (head.end, head.is_literal) == (3, True)
    assert elements_in(rest) == 0
    assert rest == [
        part._replace(start=part.start, end=part.end)
        for part in Cutter(data, SIZES).text(3, len(data))
    ]


@given(st.integers(1, 1000), st.integers(0, 64_000))
def test_dense_is_below_32_bytes_on_average(count, body_bytes):
    assert is_dense(count, body_bytes) == (body_bytes / count < SMALL_BYTES == 32)
    assert not is_dense(count, SMALL_BYTES * count)
    assert is_dense(count, SMALL_BYTES * count - 1)


# -- edits: promises 1 and 2 --------------------------------------------------------------------


def check_around(old, new, before, behind):
    """Cuts in front of an edit stay, and those behind it from the first that both have.

    Args:
        old: where the cuts were, and how many bytes there were.
        new: where they are, and how many there are.
        before: bytes in front of the edit.
        behind: bytes behind it.
    """
    (old, old_size), (new, new_size) = old, new
    assert [end for end in old if end <= before] == [end for end in new if end <= before]
    from_end_old = {0} | {old_size - end for end in old if old_size - end <= behind}
    from_end_new = {0} | {new_size - end for end in new if new_size - end <= behind}
    common = max(from_end_old & from_end_new)
    assert {end for end in from_end_old if end <= common} == {
        end for end in from_end_new if end <= common
    }


SPLICES = st.tuples(
    MIXED,
    lists("message", "tiny", "whole", max_size=2),
    st.integers(0, 1 << 16),
    st.integers(0, 9),
)


@given(SPLICES)
def test_an_edit_of_a_list_moves_the_cuts_around_it_alone(drawn):
    value, new, place, count = drawn
    at = place % (len(value) + 1)
    after = value[:at] + new + value[at + count :]
    runs = []
    for one in (value, after):
        packed = list(map(pack, one))
        sizes = [sum(map(len, packed[: n + 1])) for n in range(len(packed))]
        parts = Cutter(b"".join(packed), SIZES).elements(sizes, 0)
        closed = parts[:-1] if parts and parts[-1].is_literal else parts
        runs.append((ends(closed), sum(map(len, packed))))
    front = sum(len(pack(one)) for one in value[:at])
    back = sum(len(pack(one)) for one in value[at + count :])
    # A run in front of the edit may have ended because of a large element behind it.
    before_large = at < len(value) and len(pack(value[at])) > SIZES.whole
    before_large = before_large or (at < len(after) and len(pack(after[at])) > SIZES.whole)
    check_around(*runs, front - before_large, back)


@given(TEXTS, st.binary(max_size=200), st.integers(0, 1 << 16), st.integers(0, 300))
def test_an_edit_of_text_moves_the_cuts_around_it_alone(data, new, place, count):
    at = place % (len(data) + 1)
    after = data[:at] + new + data[at + count :]
    assume(data and after)
    old, fresh = text_ends(data), text_ends(after)
    # A cut is decided by the bytes up to the most that its piece could have taken.
    decided = max([0, *(end for end in old if end + SIZES.text_most <= at)])
    back = len(data[at + count :])
    # And near the end, by how much is left.
    check_around((old[:-1], len(data)), (fresh[:-1], len(after)), decided, back)


# -- edits: promise 3 ---------------------------------------------------------------------------


def new_parts(codec, before, after):
    """How many pieces of ``after`` are not among those of ``before``."""
    pieces = [
        {data[part.start : part.end] for part in leaves(cut(codec, data, SIZES) or [])}
        for data in (before, after)
    ]
    return len(pieces[1] - pieces[0])


@given(st.integers(0, 1 << 32), st.sampled_from(["message", "whole", "mixed"]))
def test_of_elements_left_to_chance_an_edit_makes_few_new_pieces(seed, kind):
    """The header and the tail are two of them; the rest is where the cuts meet again."""
    rng = random.Random(seed)
    kinds = ["message", "scalar", "whole", "tiny"] if kind == "mixed" else [kind]
    value = [KINDS[rng.choice(kinds)](rng) for _ in range(200)]
    data = pack(value)
    counts = []
    for _ in range(6):
        at = rng.randrange(len(value))
        new = [KINDS[rng.choice(kinds)](rng) for _ in range(rng.randrange(2))]
        after = value[:at] + new + value[at + rng.randrange(2) :]
        counts.append(new_parts(MSGPACK, data, pack(after)))
    assert mean(counts) <= 8
    assert max(counts) <= 30


@given(st.integers(0, 1 << 32))
def test_of_text_left_to_chance_an_edit_makes_few_new_pieces(seed):
    rng = random.Random(seed)
    data = lines(rng, 1500).encode()
    counts = []
    for _ in range(10):
        at = rng.randrange(len(data))
        after = data[:at] + words(rng, rng.randrange(3)).encode() + data[at + rng.randrange(9) :]
        counts.append(new_parts(STR, data, after))
    assert mean(counts) <= 5
    assert max(counts) <= 20


@pytest.mark.parametrize("wanted", [True, False], ids=["that end runs", "that end none"])
def test_repeated_elements_make_few_different_pieces(wanted):
    """What is the same everywhere is stored once, wherever it is cut."""
    (element,) = found(wanted=wanted, size=50, count=1)
    data = list_of([element] * 400)
    pieces = {data[part.start : part.end] for part in leaves(cut(MSGPACK, data, SIZES))}
    assert len(pieces) == 3  # the header, the runs, and the tail
    longer = list_of([b"\xc0", *[element] * 400])
    assert new_parts(MSGPACK, data, longer) <= 4


def test_elements_chosen_against_the_hash_make_no_more_pieces_than_their_bytes_fill():
    """All that is promised: the pieces behind the edit are new, and as large as can be."""
    packed = found(wanted=False, size=50, count=400)
    first = found(wanted=False, size=60, count=1)
    data, after = list_of(packed), list_of([*first, *packed])
    count = len(list(leaves(cut(MSGPACK, after, SIZES))))
    assert count <= len(after) // SIZES.most + 2
    assert new_parts(MSGPACK, data, after) == count
