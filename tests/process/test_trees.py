"""Processes that save much the same at the same time: chunks are shared, and counted exactly."""

import random

from kvsage import LMDBStore
from tests.support.chunks import chunks_of, conversation

SMALL = {"content_bytes_min": 64, "segment_bytes_max": 65536, "durability": "relaxed"}

WRITER = """
import math, random
from tests.support.chunks import conversation, edited
who, times = map(int, arguments)
store = LMDBStore(path, content_bytes_min=64, segment_bytes_max=65536, durability="relaxed",
    upkeep_interval=math.inf)
chance = random.Random(who)
common = random.Random(99)  # what all of them do alike
value = store.load("base")
say("ready"); hear()
for number in range(times):
    value = edited(value, common)
    if len(value) > 60:
        value = value[:40]
    store.save(f"w{who}", [value, who, number])
    store.append("log", [who, number, value[-1:]])
    if chance.random() < 0.2:
        store.delete(f"w{(who + 1) % 3}")
    if chance.random() < 0.2:
        store.save(f"fork{chance.randrange(4)}", edited(value, chance))
    assert store.load("base") is not None
store.save(f"w{who}", [value, who, "last"])
store.close()
say("done")
"""

COMPACTOR = """
import math
store = LMDBStore(path, upkeep_interval=math.inf)
done = threading.Event()
threading.Thread(target=lambda: (hear(), done.set())).start()
say("ready")
times = 0
while not done.is_set() or times < 3:
    store.compact()
    times += 1
    if times % 3 == 0:
        store.checkpoint()
store.close()
say(times)
"""

READER = """
import math
store = LMDBStore(path, readonly=True)
done = threading.Event()
threading.Thread(target=lambda: (hear(), done.set())).start()
say("ready")
times = 0
while not done.is_set() or times < 3:
    with store.snapshot() as view:
        items = dict(view.items())
        log = items.get("log", [])
        assert view.load_range("log", -5) == log[-5:]
        for who in range(3):
            numbers = [number for writer, number, _ in log if writer == who]
            assert numbers == list(range(len(numbers))), numbers
            value = items.get(f"w{who}")
            assert value is None or value[1] == who
    times += 1
store.close()
say(times)
"""


def test_writers_of_much_the_same_beside_a_compaction(path, child):
    with LMDBStore(path, **SMALL) as store:
        store.save("base", conversation(random.Random(1), 40))
    writers = [child(WRITER, path, who, 40) for who in range(3)]
    others = [child(COMPACTOR, path), child(READER, path)]
    for one in (*writers, *others):
        assert one.line() == "ready"
    for one in writers:
        one.tell("go")
    for one in writers:
        assert one.line() == "done"
        one.finish()
    for one in others:
        one.tell("enough")
        assert int(one.finish()[-1]) >= 3
    with LMDBStore(path, **SMALL) as store:
        log = store.load("log")
        assert len(log) == 120
        chunks_of(store)
        assert store.verify(deep=True).problems == ()
        last = [store.load(f"w{who}") for who in range(3)]
        assert len({repr(value[0]) for value in last if value is not None}) == 1
        items = dict(store.items())
    (path / "INDEX").unlink()
    with LMDBStore(path, **SMALL) as store:
        assert dict(store.items()) == items
        chunks_of(store)


TOGETHER = """
import math, random
from tests.support.chunks import conversation
who, times = map(int, arguments)
store = LMDBStore(path, content_bytes_min=64, durability="relaxed", upkeep_interval=math.inf)
say("ready")
for number in range(times):
    value = conversation(random.Random(number), 60)
    operation = store._preparer.save(f"w{who}/{number}", value, None, 0)
    hear()  # all have looked before any of them writes
    store._engine.committer.commit([operation], full=False)
    say("saved")
store.close()
"""


def test_what_all_bring_at_once_is_stored_once(path, child):
    """Each has looked while nobody had it; whoever comes behind the gate later finds it there."""
    with LMDBStore(path, **SMALL) as store:
        writers = [child(TOGETHER, path, who, 4) for who in range(3)]
        for one in writers:
            assert one.line() == "ready"
        before = 0
        for number in range(4):
            for one in writers:
                one.tell("go")
            for one in writers:
                assert one.line() == "saved"
            chunks = chunks_of(store)
            under = {chunks.under(f"w{who}/{number}") for who in range(3)}
            assert len(under) == 1
            with store.snapshot() as view:
                sizes = [view.entry(f"w{who}/{number}").stored_size for who in range(3)]
            live = store.stats().live_bytes
            # Those who came later wrote their root, and nothing else.
            assert live - before < 1.3 * max(sizes)
            before = live
        for one in writers:
            one.finish()
        assert store.verify(deep=True).problems == ()
        assert store.stats().dead_bytes < 0.2 * live
