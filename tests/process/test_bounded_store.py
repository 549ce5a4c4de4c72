"""Several processes in one bounded store: their reads count together, one at a time evicts."""

import math
import os

from kvsage import LMDBStore

BYTES_MAX = 1 << 20

OPEN = """
store = LMDBStore(path, durability="relaxed", bytes_max=1 << 20, upkeep_interval=float("inf"))
"""


def bounded(path):
    return LMDBStore(path, durability="relaxed", bytes_max=BYTES_MAX, upkeep_interval=math.inf)


def test_what_another_process_reads_stays(child, path):
    with bounded(path) as store:
        number = 0
        reader = child(
            OPEN + "say('open')\nwhile key := hear(): say(len(store.load(key, b'')))", path
        )
        assert reader.line() == "open"
        for _ in range(4):
            for _ in range(600):
                store.save(f"key{number:05}", os.urandom(2000))
                number += 1
            assert reader.ask("key00007") == "2000"
            assert store.sweep() > 0
        assert store.exists("key00007")
        assert not store.exists("key00008")
        reader.tell("")
        reader.finish()


BUSY = """
number, count = map(int, arguments)
store = LMDBStore(path, durability="relaxed", bytes_max=1 << 20, upkeep_interval=0.005)
def value(key):
    return (key * 400).encode()
say("open")
wrong = 0
for i in range(count):
    key = f"{number}/{i:04}"
    store.save(key, value(key))
    for other in range(3):
        key = f"{other}/{max(0, i - 40):04}"
        if store.load(key, None) not in (None, value(key)):
            wrong += 1
    if i % 100 == 0:
        say(i)
say("wrong", wrong)
store.close()
"""


def test_many_write_read_and_evict(child, path):
    with bounded(path) as store:
        children = [child(BUSY, path, number, 700) for number in range(3)]
        for one in children:
            assert one.line() == "open"
        while (said := children[0].line()) != "200":
            assert said.isdecimal()
        children[0].kill()
        for one in children[1:]:
            assert one.finish()[-1] == "wrong 0"
        # Of what the others wrote last nothing is sure: it was not read, and older keys were.
        store.save("last", ("last" * 400).encode())
        assert store.load("last")
        store.sweep()
        stats = store.stats()
        assert stats.log_bytes <= BYTES_MAX
        assert 100 < stats.keys < 700
        for key, value in store.items():
            assert value == (key * 400).encode()
        assert store.exists("last")
        assert store.verify(deep=True).ok
