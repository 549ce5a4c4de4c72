"""Large values to edit, and what a store made of them: which chunks, and how often held."""

import copy
from collections import Counter
from struct import Struct
from typing import NamedTuple

TEXT = """
the a of and to in is was he for it with as his on be at by had not are but from or have an they
which one you were her all she there would their we him been has when who will more no if out so
"""
WORDS = TEXT.split()

# Said once more, so that a test does not count with what it checks.
ROW_BYTES, CONTENT_KEY_BYTES = 29, 18
CONTENT_ROW = Struct("<IIIQQQII")


class Chunk(NamedTuple):
    """A row of the contents: place of its entry, length of that, and so on."""

    segment: int
    offset: int
    length: int
    seq: int
    raw_length: int
    references: int
    start: int
    share: int
    children: tuple[bytes, ...]


def split(keys):
    """Content keys that stand one behind the other."""
    assert len(keys) % CONTENT_KEY_BYTES == 0
    starts = range(0, len(keys), CONTENT_KEY_BYTES)
    return tuple(keys[at : at + CONTENT_KEY_BYTES] for at in starts)


def is_node(key):
    return key[17] >= 0x80


class Chunks(NamedTuple):
    """The contents of a store: their rows, and what the rows of keys refer to."""

    rows: dict[bytes, Chunk]
    roots: dict[bytes, tuple[bytes, ...]]

    def under(self, key):
        """The chunks of a key, its own and those of all nodes below."""
        found = set()
        left = list(self.roots[key.encode()])
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += self.rows[one].children
        return frozenset(found)

    def counted(self):
        """How often each chunk is referred to, counted from the keys down."""
        count = Counter(one for held in self.roots.values() for one in held)
        nodes = [key for key in count if is_node(key)]
        seen = set(nodes)
        while nodes:
            children = self.rows[nodes.pop()].children
            count.update(children)
            found = {key for key in children if is_node(key)} - seen
            seen |= found
            nodes += found
        return count


def chunks_of(store):
    """What a store holds, counts checked: a row for all that is referred to, and for no more."""
    its = store._engine.index
    with its.reading() as txn:
        rows = {
            key: Chunk(*CONTENT_ROW.unpack_from(data), split(data[CONTENT_ROW.size :]))
            for key, data in txn.cursor(its.contents)
        }
        roots = {
            key: split(data[ROW_BYTES:])
            for db in (its.keydir, its.system)
            for key, data in txn.cursor(db)
        }
    chunks = Chunks(rows, roots)
    assert chunks.counted() == {key: row.references for key, row in rows.items()}
    return chunks


# -- values ---------------------------------------------------------------------------------------


def sentence(chance, words):
    return " ".join(chance.choices(WORDS, k=words))


def message(chance):
    """One step of a conversation: mostly of 100 to 200 bytes, some of thousands, some nested."""
    kind = chance.random()
    if kind < 0.1:
        lines = [sentence(chance, chance.randint(3, 12)) for _ in range(chance.randint(5, 60))]
        return {"role": "tool", "output": "\n".join(lines)}
    if kind < 0.2:
        calls = [{"id": number, "text": sentence(chance, 6)} for number in range(12)]
        return {"role": "assistant", "calls": calls, "n": chance.randint(0, 1 << 40)}
    if kind < 0.25:
        return ["a list", [sentence(chance, 20), None, b"\0" * chance.randint(0, 300)]]
    return {"role": chance.choice(["user", "assistant"]), "text": sentence(chance, 30)}


def conversation(chance, steps):
    return [message(chance) for _ in range(steps)]


def edited(value, chance):
    """A value like another one, changed in one place."""
    if isinstance(value, dict):
        return edited_mapping(dict(value), chance)
    if isinstance(value, list):
        return edited_list(list(value), chance)
    if isinstance(value, (str, bytes)):
        at = chance.randint(0, len(value))
        behind = at + chance.choice([0, 1, 30])
        new = chance.choice(["", sentence(chance, 5), "\n"])
        return value[:at] + (new if isinstance(value, str) else new.encode()) + value[behind:]
    return chance.choice([None, 7, sentence(chance, 10)])


def edited_mapping(value, chance):
    how, keys = chance.random(), sorted(value)
    if keys and how < 0.6:
        key = chance.choice(keys)
        value[key] = edited(value[key], chance)
    elif keys and how < 0.75:
        del value[chance.choice(keys)]
    else:
        value[sentence(chance, 2)] = message(chance)
    return value


def edited_list(value, chance):
    at = chance.randint(0, len(value))
    how = chance.choice(("add", "add", "put in", "take out", "change", "deeper", "again", "turn"))
    if how == "put in":
        value[at:at] = conversation(chance, chance.randint(1, 4))
    elif how == "take out":
        del value[at : at + chance.randint(1, 6)]
    elif how == "change" and value:
        value[at % len(value)] = message(chance)
    elif how == "deeper" and value:
        value[at % len(value)] = edited(value[at % len(value)], chance)
    elif how == "again":
        value += copy.deepcopy(value[at : at + 12])
    elif how == "turn":
        value[at : at + 5] = value[at : at + 5][::-1]
    else:
        value += conversation(chance, chance.randint(1, 3))
    return value
