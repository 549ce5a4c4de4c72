"""Ctrl-C at every line: an operation that was interrupted is done whole or not at all.

A trace raises KeyboardInterrupt at the n-th line of the engine that an operation runs through, for
n = 1, 2, 3 ... until it comes to its end. After each one: the store answers old or new, and goes on
answering the same; another process writes at once; this one writes too; everything verifies.
"""

import fcntl
import linecache
import os
import shutil
import sys
from itertools import count
from pathlib import Path

import pytest

import kvsage
from kvsage import LMDBStore

PACKAGE = Path(kvsage.__file__).parent
TRACED = tuple(str(PACKAGE / layer) + os.sep for layer in ("engine", "log", "fs", "index"))

# Where a rotation goes and a plain commit does not.
OF_ROTATION = tuple(
    str(PACKAGE / place) for place in ("engine/rotation.py", "log/writer.py", "fs/posix.py")
)

OTHER = """
from kvsage import StoreLockedError
store = LMDBStore(path, lock_timeout=0, durability="relaxed")
say("ready")
while word := hear():
    try:
        store.save("other", word)
        say("written")
    except StoreLockedError:
        say("locked")
store.close()
"""

# Python prints an interrupt that comes inside a finaliser, and goes on.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line.

    Two kinds of line are left out, because a signal is only raised where a call begins or ends: a
    bare ``try:``, which no handler covers yet, and the way out of a ``with``, which shows as its
    first line again.
    """

    def __init__(self, number, traced=TRACED):
        self.left = number
        self.traced = traced
        self.where = []
        self.last = {}

    def __call__(self, frame, event, _argument):
        if not frame.f_code.co_filename.startswith(self.traced):
            return None
        if event == "line" and not self._out_of_reach(frame):
            self.left -= 1
            if self.left == 0:
                self.where = [f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"]
                raise KeyboardInterrupt  # which ends the tracing too
        return self

    def _out_of_reach(self, frame):
        code, line = frame.f_code, frame.f_lineno
        before = self.last.get(frame, 0)
        self.last[frame] = line
        text = linecache.getline(code.co_filename, line).strip()
        return text == "try:" or (line < before and text.startswith("with "))

    def run(self, work):
        """Whether ``work`` came to its end."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except KeyboardInterrupt:
            return False
        finally:
            sys.settrace(before)
            self.last.clear()
        return True


def save(store, number):
    store.save("k", number)


def save_many(store, number):
    store.save_many({f"k{n}": f"{number} of {n} " * 700 for n in range(3)})


def transaction(store, number):
    with store.transaction() as tx:
        tx.save("a", tx.load("a", 0) + 1)
        tx.save("b", "x" * 5000 + str(number))
        tx.delete("c")
    store.save("c", number)


def content(store, number):
    store.content.delete(store.content.put(f"content {number} " * 500))


def pieces(store, number):
    """A value of several pieces, of which half were there before."""
    texts = [f"{number * (n < 6)} of {n} " * 300 for n in range(12)]
    store.save("pieces", texts)


def extend(store, number):
    store.extend("list", [f"{number} of {n} " * 300 for n in range(4)])


VERBS = {
    "save": save,
    "save_many": save_many,
    "transaction": transaction,
    "content": content,
    "pieces": pieces,
    "extend": extend,
    "increment": lambda store, _: store.increment("n"),
    "delete": lambda store, _: store.delete("k"),
}
FLUSHED = (save, transaction)  # a flush adds a few lines to a commit, the same ones to each


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_at_every_line(path, child, verb):
    durability = "full" if verb in FLUSHED else "relaxed"
    stuck = []
    with LMDBStore(path, durability=durability, lock_timeout=0, sync_interval=3600) as store:
        store.save_many({"k": -1, "a": 0, "c": 0, "n": 0})
        other = child(OTHER, path)
        assert other.line() == "ready"
        for number in count(1):
            before = dict(store.items())
            store.save("k", number - 1)
            before["k"] = number - 1
            interrupt = Interrupt(number)
            ended = interrupt.run(lambda: verb(store, number))  # noqa: B023
            found, where = dict(store.items()), interrupt.where
            assert whole(verb, before, found), where
            if other.ask(str(number)) != "written" or store._engine.gate.is_mine():
                stuck += where
                store._engine.gate.leave()  # so that one run finds every such line
                store.save("k2", 0)  # which also lets go of the turnstile
                found["k2"] = 0
                assert other.ask(str(number)) == "written", where
            found["other"] = str(number)
            store.save("k2", number)
            assert dict(store.items()) == found | {"k2": number}, where
            if ended or number % 25 == 0:
                assert store.verify(deep=True).problems == (), where
            if ended:
                assert number > 50
                break
        other.finish()
    assert not stuck, sorted(set(stuck))


def free(path):
    """Whether nobody holds a lock of the writer gate, asked as another process would."""
    for name in ("WRITE", "NEXT"):
        with (path / name).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True


def test_at_every_line_of_a_rotation(tmp_path):
    noises = [os.urandom(40_000) for _ in range(2)]
    stuck = []
    for number in count(1):
        # Each in a store of its own: the work of a rotation grows with the number of segments.
        path = tmp_path / str(number)
        with LMDBStore(path, durability="relaxed", segment_bytes_max=65536) as store:
            store.save("large", [0, noises[0]])
            interrupt = Interrupt(number, OF_ROTATION)
            ended = interrupt.run(lambda: store.save("large", [1, noises[1]]))
            if not free(path) or store._engine.gate.is_mine():
                stuck += interrupt.where
                store._engine.gate.leave()
            (value, _) = store.load("large")
            store.save("after", 1)
            assert store.load("large") == [value, noises[value]], interrupt.where
            assert store.verify(deep=True).problems == (), interrupt.where
        with LMDBStore(path) as store:
            assert store.load("large") == [value, noises[value]], interrupt.where
        if ended:
            assert value == 1
            assert number > 50
            break
        shutil.rmtree(path)
    assert not stuck, sorted(set(stuck))


def whole(verb, before, found):
    """Whether ``found`` is ``before``, or what a whole ``verb`` may have made of it."""
    changed = {key for key in before | found if before.get(key) != found.get(key)}
    if verb is save_many:
        return changed in (set(), {"k0", "k1", "k2"})
    if verb is transaction:
        # Two commits: the transaction, then the key that it deleted is saved again.
        return changed in (set(), {"a", "b"}, {"a", "b", "c"}) or changed == {"c"}
    if verb is extend and changed:
        was, now = before.get("list", []), found["list"]
        return changed == {"list"} and now[:-4] == was and len(now) == len(was) + 4
    return len(changed) <= 1
