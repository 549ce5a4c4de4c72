"""Values that become trees, edits of them, and what the index says of their contents."""

import dataclasses
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from kvsage.engine.assembling import items_of
from kvsage.engine.content import content_hash
from kvsage.engine.cutting import cut, sizes_for
from kvsage.engine.tree import pieces_of, topmost
from kvsage.index.contents import decode_content_row
from kvsage.index.keydir import content_keys_in, decode_row
from kvsage.log.format import CONTENT_KEY, IS_TREE, MSGPACK, STR, references_in, split_keys
from kvsage.serialization import Serializer, pack
from tests.support.small import OPTIONS

_letters = random.Random(3)
WORDS = [
    "".join(_letters.choices("etaoinshrdlucmfwypvbgkqjxz", k=size))
    for size in range(1, 9)
    for _ in range(40)
]


@dataclasses.dataclass
class Message:
    """A registered class."""

    role: str
    parts: list


Serializer.register(Message, "test.trees.message")


# -- values -------------------------------------------------------------------------------------


def words(rng, count):
    return " ".join(rng.choices(WORDS, k=count))


def lines(rng, count):
    return "\n".join(words(rng, rng.randrange(1, 12)) for _ in range(count))


def message(rng):
    """A mapping of 40 to 300 bytes."""
    return {"role": rng.choice(["user", "agent"]), "text": words(rng, rng.randrange(2, 30))}


def messages(rng, count):
    return [message(rng) for _ in range(count)]


def short(rng):
    """A few bytes; a list of such elements is dense."""
    return rng.choice([rng.randrange(1 << 40), rng.choice(WORDS), None, rng.random()])


def scalar(rng):
    """One of the types that are no list, mapping, text or bytes."""
    number = rng.getrandbits(100)
    return rng.choice(
        [
            number,
            -(number**9),
            datetime(2001, 2, 3, tzinfo=UTC) + timedelta(seconds=number % 10**9),
            Decimal(number).scaleb(-7),
            UUID(int=number),
            complex(number % 99, 1),
            rng.random(),
        ]
    )


def tiny(rng):
    """An element of 13 to 20 bytes, as one of many in a run."""
    return f"{rng.getrandbits(48):012x}" + "z" * rng.randrange(8)


KINDS = {
    "message": message,
    "tiny": tiny,
    "short": short,
    "scalar": scalar,
    "whole": lambda rng: words(rng, rng.randrange(70, 90)),  # large, and stays whole
    "lines": lambda rng: lines(rng, rng.randrange(10, 40)),
    "noise": lambda rng: rng.randbytes(rng.randrange(200, 1200)),
    "blank": lambda rng: "x" * rng.randrange(200, 1500),  # text without any place to cut
    "list": lambda rng: messages(rng, rng.randrange(3, 18)),
    "numbers": lambda rng: [rng.randrange(1 << 20) for _ in range(rng.randrange(30, 200))],
    "dict": lambda rng: {tiny(rng): message(rng) for _ in range(rng.randrange(2, 12))},
    "keys": lambda rng: {(words(rng, 40), n): [message(rng)] * n for n in range(4)},
    "tuple": lambda rng: tuple(messages(rng, rng.randrange(3, 9))),
    "flat": lambda rng: tuple(tiny(rng) for _ in range(rng.randrange(3, 40))),
    "set": lambda rng: {tiny(rng) for _ in range(rng.randrange(5, 25))},
    "object": lambda rng: Message(tiny(rng), messages(rng, rng.randrange(1, 9))),
    "deep": lambda rng: nested(rng, rng.randrange(1, 5)),
}
SMALL = ("message", "tiny", "short", "scalar")


def nested(rng, depth):
    inside = messages(rng, rng.randrange(1, 6)) if depth == 0 else nested(rng, depth - 1)
    return [*messages(rng, rng.randrange(4)), inside, *messages(rng, rng.randrange(4))]


def elements(recipe):
    """The elements that a recipe stands for: a few draws for a long list, and many alike."""
    made = []
    for kind, count, seed, alike in recipe:
        rng = random.Random(seed)
        make = KINDS[kind]
        one = make(rng)
        number = count if kind in SMALL else 1 + count // 16
        made += [one] * number if alike else [one, *(make(rng) for _ in range(number - 1))]
    return made


def recipes(*kinds, max_size=4):
    """Recipes of elements, of all kinds or some."""
    some = st.sampled_from(kinds or list(KINDS))
    step = st.tuples(some, st.integers(1, 45), st.integers(0, 9), st.booleans())
    return st.lists(step, max_size=max_size)


def lists(*kinds, max_size=4):
    return recipes(*kinds, max_size=max_size).map(elements)


def as_mapping(made):
    return {f"{number:x}{number % 7 * 'k'}": one for number, one in enumerate(made)}


def as_tuple(made):
    return tuple(made)


def as_text(made):
    return "\n".join(map(str, made))


def as_bytes(made):
    return str(made).encode()


def as_object(made):
    return Message("user", made)


VALUES = st.one_of(
    lists(),
    *(lists().map(shape) for shape in (as_mapping, as_tuple, as_text, as_bytes, as_object)),
    st.sampled_from(list(KINDS)).map(lambda kind: KINDS[kind](random.Random(kind))),
)


# -- edits --------------------------------------------------------------------------------------

PLACES = st.integers(0, 1 << 16)
EDITS = st.tuples(
    st.sampled_from(["insert", "delete", "replace", "append", "prepend", "swap", "wrap", "unwrap"]),
    st.lists(PLACES, min_size=1, max_size=4),
    st.integers(1, 9),
    recipes(max_size=2).map(elements),
)


def edited(value, edit):
    """The value after an edit somewhere in it, at any depth; it is not changed itself."""
    verb, (place, *_), count, new = edit
    if isinstance(value, Message):
        return Message(value.role, edited(value.parts, edit))
    if isinstance(value, dict):
        return _edited_mapping(value, edit)
    if isinstance(value, (str, bytes)):
        text = as_text(new)[: 9 * count]
        text = text if isinstance(value, str) else text.encode()
        return _spliced(value, verb, place, 9 * count, text)
    return _edited_elements(value, edit) if isinstance(value, (list, tuple)) else new


def _edited_elements(value, edit):
    verb, (place, *deeper), count, new = edit
    at = place % len(value) if value else 0
    if deeper and value and isinstance(value[at], (list, tuple, dict, str, bytes, Message)):
        inside = edited(value[at], (verb, deeper, count, new))
        return type(value)([*value[:at], inside, *value[at + 1 :]])
    if verb in {"wrap", "unwrap"}:
        last = at + (9 * count if verb == "wrap" else 1)
        inside = value[at:last]
        unwrapped = inside[0] if inside and isinstance(inside[0], list) else inside
        return type(value)(
            [*value[:at], *([list(inside)] if verb == "wrap" else unwrapped), *value[last:]]
        )
    return _spliced(value, verb, place, count, type(value)(new))


def _spliced(value, verb, place, count, new):
    at = place % (len(value) + 1)
    if verb == "swap":
        return value[at:] + value[:at]
    first, last, new = {
        "append": (len(value), len(value), new),
        "prepend": (0, 0, new),
        "insert": (at, at, new),
        "delete": (at, at + count, new[:0]),
        "replace": (at, at + count, new),
    }.get(verb, (at, at, new))
    return value[:first] + new + value[last:]


def _edited_mapping(value, edit):
    verb, (place, *deeper), count, new = edit
    pairs = list(value.items())
    at = place % len(pairs) if pairs else 0
    if deeper and pairs:
        key, inside = pairs[at]
        pairs[at] = (key, edited(inside, (verb, deeper, count, new)))
        return dict(pairs)
    return dict(_spliced(pairs, verb, place, count, [(f"new {place}", new)]))


# -- chosen against the hash --------------------------------------------------------------------


def ends_runs(packed, sizes):
    """Whether a serialized element ends a run of at least the least size."""
    return xxh3_64_intdigest(packed) * sizes.spread < len(packed) << 64


def search(sizes, size, count, *, wanted, seed=0):
    """Texts of some size that, serialized, end a run, or do not."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        text = rng.randbytes(size).hex()[: size - 2]
        if ends_runs(pack(text), sizes) == wanted:
            found.append(text)
    return found


# -- the tree of a value --------------------------------------------------------------------------


def small_sizes():
    """Those of ``OPTIONS``, in tests: runs of 32 to 256 bytes, whole up to 128."""
    return sizes_for(OPTIONS["content_bytes_min"])


def plain_tree(value, sizes=None):
    """The tree that a value has, whatever was there before: as ``tree_of`` tells it."""
    if isinstance(value, (str, bytes)):
        codec, data = STR, value.encode() if isinstance(value, str) else value
    else:
        codec, data = MSGPACK, pack(value)
    if len(data) < OPTIONS["content_bytes_min"]:
        return b"", set()
    parts = cut(codec, data, sizes or small_sizes())
    if parts is None:
        key = CONTENT_KEY.pack(content_hash(data), 0)
        return key, {key}
    top = topmost(pieces_of(data, parts))
    seen, left = set(), list(top)
    while left:
        piece = left.pop()
        seen.add(piece.key)
        left += piece.pieces or []
    items = [(one.key, one.length, one.elements, one.level, one.literal) for one in top]
    return items, seen - {b""}


# -- what the index says ------------------------------------------------------------------------


def tree_of(store, key):
    """The items of the root under a key, and the content keys of all that they lead to.

    In place of the items the content key, where the value is one content, or nothing.
    """
    engine, encoded = store._engine, key.encode()
    index = engine.index
    with index.reading() as txn:
        data = txn.get(encoded, db=index.keydir)
        row, keys = decode_row(data), content_keys_in(data)
        entry = engine.read_entry(encoded, row)
        seen, left = set(), split_keys(keys)
        while left:
            one = left.pop()
            if one not in seen:
                seen.add(one)
                found = decode_content_row(txn.get(one, db=index.contents))
                left += split_keys(found.children)
    assert references_in(entry) == keys
    return items_of(entry.value) if row.flags & IS_TREE else keys, seen


def contents_in(store):
    """Every content in the index, with its row."""
    index = store._engine.index
    with index.reading() as txn:
        return {bytes(key): decode_content_row(data) for key, data in txn.cursor(index.contents)}


def check_counts(store):
    """References are counted from the index, from scratch; live and dead bytes from the log."""
    index = store._engine.index
    counts = Counter()
    with index.reading() as txn:
        for db in (index.keydir, index.system):
            for _, data in txn.cursor(db):
                decode_row(data)
                counts.update(split_keys(content_keys_in(data)))
    rows = contents_in(store)
    for row in rows.values():
        counts.update(split_keys(row.children))
    assert {key: row.references for key, row in rows.items()} == counts
    report = store.verify(deep=True)
    assert report.ok, report.problems
