"""Commits to a store with large values, drawn one by one: what to do, and what then is there."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.support.chunks import conversation, edited, message

KEYS = [f"k{number}" for number in range(6)]
ITEMS_MAX = 60
PREFIX = "content "


class Step(NamedTuple):
    """One commit.

    Attributes:
        name: of it, for people.
        do: makes it happen in a store.
        after: all that the store then holds, by key; contents that were put by ``PREFIX`` and what
            tells them apart.
    """

    name: str
    do: Callable[[Any], object]
    after: dict[str, Any]


def drawn(chance, model, *, late=True):
    """The next commits, one in most cases.

    Args:
        chance: a ``random.Random``.
        model: what the store holds.
        late: whether a save may be prepared before another commit, and committed behind it.
    """
    makers = [save] * 6 + [together, extend, extend, delete, again, come_back, touch, put, transact]
    made = chance.choice([*makers, beside, beside] if late else makers)(chance, model)
    return made if isinstance(made, list) else [made]


def large(chance, model):
    """A value of this store, a little changed, or a new one."""
    held = [value for value in model.values() if isinstance(value, (list, str, dict))]
    if not held or chance.random() < 0.15:
        return conversation(chance, chance.randint(2, 25))
    if chance.random() < 0.1:
        text = "\n".join(str(message(chance)) for _ in range(9))
        return {"a text": text, "and a list": chance.choice(held)}
    value = chance.choice(held)
    if isinstance(value, list) and len(value) > ITEMS_MAX:
        value = value[ITEMS_MAX // 2 :]
    elif isinstance(value, dict) and len(str(value)) > 5000:
        value = conversation(chance, 3)
    return edited(value, chance)


def save(chance, model):
    key, value = chance.choice(KEYS), large(chance, model)
    return Step(f"save {key}", lambda store: store.save(key, value), model | {key: value})


def together(chance, model):
    """The same twice, something like it, and something else."""
    value = large(chance, model)
    values = [value, value, edited(value, chance), large(chance, model)]
    pairs = dict(zip(chance.sample(KEYS, 4), values, strict=True))
    return Step("save together", lambda store: store.save_many(pairs), model | pairs)


def extend(chance, model):
    key, items = chance.choice(KEYS), conversation(chance, chance.randint(1, 9))
    before = model.get(key, [])
    if not isinstance(before, list):
        return save(chance, model)
    after = model | {key: before + items}
    return Step(f"extend {key}", lambda store: store.extend(key, items), after)


def delete(chance, model):
    key = chance.choice(KEYS)
    after = {name: value for name, value in model.items() if name != key}
    return Step(f"delete {key}", lambda store: store.delete(key), after)


def again(chance, model):
    """A value goes and comes again in one commit."""
    key, other = chance.sample(KEYS, 2)
    value = model.get(key, "nothing")

    def do(store):
        with store.transaction() as tx:
            tx.delete(key)
            tx.save(other, value)

    after = {name: one for name, one in model.items() if name != key}
    return Step(f"{key} moves to {other}", do, after | {other: value})


def come_back(chance, model):
    """All that is there is let go, and a value is saved again that was saved twice before."""
    value = large(chance, model)
    if isinstance(value, list):
        value = [*value, *conversation(chance, 50)]
    key = chance.choice(KEYS)
    left = {name: one for name, one in model.items() if name.startswith(PREFIX)}
    return [
        Step(f"save {key}", lambda store: store.save(key, value), model | {key: value}),
        Step(f"{key} again", lambda store: store.save(key, value), model | {key: value}),
        Step("let all go", lambda store: store.clear(), left),
        Step(f"{key} comes back", lambda store: store.save(key, value), left | {key: value}),
    ]


def transact(chance, model):
    """As ``again``, and the key gets something of what another one had."""
    key, other = chance.sample(KEYS, 2)
    value, new = large(chance, model), large(chance, model)

    def do(store):
        with store.transaction() as tx:
            tx.save("grows", tx.load_range("grows", -3))
            tx.save(other, new)
            tx.save(key, value)
            tx.extend("grows", [value])
            tx.extend("grows", [1, 2])

    grown = [*model.get("grows", [])[-3:], value, 1, 2]
    return Step("a transaction", do, model | {other: new, key: value, "grows": grown})


def touch(chance, model):
    key = chance.choice(KEYS)
    return Step(f"touch {key}", lambda store: store.touch(key, 1e6), model)


def put(chance, model):
    """A content of its own; it is the leaf of many a list."""
    raw = b"x" * 64 + chance.choice([b"", b"y"])
    name = f"{PREFIX}{len(raw)}"
    if name in model:
        after = {key: value for key, value in model.items() if key != name}

        def do(store):
            address = store.content.put(raw)  # which is there: nothing is committed
            store.content.delete(address)

        return Step("let a content go", do, after)
    return Step("put a content", lambda store: store.content.put(raw), model | {name: raw})


def beside(chance, model):
    """A save that was prepared while others changed what it found."""
    key, value = chance.choice(KEYS), large(chance, model)
    meanwhile = chance.choice([save, delete, again, extend])(chance, model)
    if chance.random() < 0.4:
        likely = edited(value, chance)
        other = chance.choice(KEYS)
        meanwhile = Step(
            "much the same", lambda store: store.save(other, likely), model | {other: likely}
        )
    prepared = []

    def first(store):
        prepared.append(store._preparer.save(key, value, None, 0))
        meanwhile.do(store)

    def second(store):
        store._engine.committer.commit([prepared.pop()], full=False)

    return [
        Step(f"{meanwhile.name}, before", first, meanwhile.after),
        Step(f"a late save of {key}", second, meanwhile.after | {key: value}),
    ]


def holds(store, model):
    """Whether a store holds exactly this."""
    expected = {key: value for key, value in model.items() if not key.startswith(PREFIX)}
    assert dict(store.items()) == expected
