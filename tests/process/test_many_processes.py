"""Several processes read and write one store at once."""

import pytest

from kvsage import LMDBStore

ACCOUNTS = 8
TOTAL = 800
PROCESSES = 4
TIMES = 200

TRANSFERS = """
import random
seed, times = map(int, arguments)
chance = random.Random(seed)
store = LMDBStore(path, durability="relaxed")
say("ready"); hear()
for number in range(times):
    with store.transaction() as tx:
        source, target = chance.sample(range(8), 2)
        amount = chance.randrange(20)
        tx.save(f"account:{source}", tx.load(f"account:{source}") - amount)
        tx.save(f"account:{target}", tx.load(f"account:{target}") + amount)
        tx.save(f"writer:{seed}", number)
store.close()
"""

SUMS = """
store = LMDBStore(path, readonly=True)
ways = {
    "items": lambda: [v for _, v in store.items("account:")],
    "load_many": lambda: list(store.load_many(f"account:{n}" for n in range(8)).values()),
}
def one_snapshot():
    with store.snapshot() as view:
        first = [view.load(f"account:{n}") for n in range(8)]
        again = [value for _, value in view.items("account:")]
        assert first == again, (first, again)
        return first
ways["snapshot"] = one_snapshot
reads, seen = 0, set()
done = threading.Event()
threading.Thread(target=lambda: (hear(), done.set())).start()
say("ready")
while not done.is_set() or reads < 3:
    for name, way in ways.items():
        values = way()
        assert len(values) == 8 and sum(values) == 800, (name, values)
        seen.add(tuple(values))
        reads += 1
store.close()
say(len(seen))
"""


def test_every_reader_sees_one_consistent_snapshot(path, child):
    with LMDBStore(path) as store:
        store.save_many({f"account:{n}": TOTAL // ACCOUNTS for n in range(ACCOUNTS)})
    readers = [child(SUMS, path) for _ in range(2)]
    writers = [child(TRANSFERS, path, seed, 300) for seed in range(2)]
    for one in (*readers, *writers):
        assert one.line() == "ready"
    for one in writers:
        one.tell("go")
    for one in writers:
        one.finish()
    for one in readers:
        one.tell("enough")
    distinct = [int(one.finish()[-1]) for one in readers]
    # Readers that never saw the sum move would prove nothing.
    assert max(distinct) > 1
    with LMDBStore(path) as store:
        assert sum(value for _, value in store.items("account:")) == TOTAL
        assert store.load_many(["writer:0", "writer:1"]) == {"writer:0": 299, "writer:1": 299}


ADDING = """
who, times = map(int, arguments)
store = LMDBStore(path, durability="relaxed", content_bytes_min=64)
failed = []
def add(thread):
    try:
        for number in range(times):
            item = [who, thread, number, "x" * (number * 37 % 400)]
            if number % 4:
                length = store.append("list", item)
            else:
                length = store.extend("list", [item[:3], item])
            # Where it was told to be it is, whatever others add behind it.
            found = store.load_range("list", length - 1, length)
            assert found == [item], (length, found, item)
    except BaseException as error:
        failed.append(error)
        raise
say("ready"); hear()
threads = [threading.Thread(target=add, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
store.close()
assert not failed
"""

WATCHING = """
expected = [(n, full) for n in range(500) for full in ((True,) if n % 4 else (False, True))]
store = LMDBStore(path, readonly=True)
done = threading.Event()
threading.Thread(target=lambda: (hear(), done.set())).start()
lengths = []
say("ready")
while not done.is_set() or len(lengths) < 3:
    with store.snapshot() as view:
        items = view.load("list", [])
        assert view.load_range("list", -7) == items[-7:]
        middle = len(items) // 2
        assert view.load_range("list", middle, middle + 3) == items[middle : middle + 3]
    found = {}
    for who, thread, number, *text in items:
        found.setdefault((who, thread), []).append((number, bool(text)))
    for those in found.values():
        assert those == expected[: len(those)], those
    assert not lengths or len(items) >= lengths[-1]
    lengths.append(len(items))
store.close()
say(len(set(lengths)))
"""


def test_no_item_added_to_a_list_is_lost(path, child):
    """From three threads of each of four processes at once, with one that looks on."""
    times = 40
    LMDBStore(path).close()
    watching = child(WATCHING, path)
    adding = [child(ADDING, path, who, times) for who in range(PROCESSES)]
    for one in (watching, *adding):
        assert one.line() == "ready"
    for one in adding:
        one.tell("go")
    for one in adding:
        one.finish()
    watching.tell("enough")
    assert int(watching.finish()[-1]) > 1
    with LMDBStore(path, content_bytes_min=64) as store:
        items = store.load("list")
        assert len(items) == PROCESSES * 3 * (times + times // 4)
        for who in range(PROCESSES):
            for thread in range(3):
                mine = [item for item in items if item[:2] == [who, thread] and len(item) == 4]
                assert [number for _, _, number, _ in mine] == [*range(times)]
                assert [len(text) for *_, text in mine] == [n * 37 % 400 for n in range(times)]
        assert store.verify(deep=True).problems == ()
        contents = store.stats().contents
        store.save("copy", items)  # saved as a whole it is in the very same pieces
        assert store.stats().contents == contents


COUNTING = """
how, times = arguments[0], int(arguments[1])
store = LMDBStore(path, durability="relaxed")
def increment():
    store.increment("n")
def update():
    store.update("n", lambda value: value + 1, 0)
def transaction():
    with store.transaction() as tx:
        tx.save("n", tx.load("n", 0) + 1)
def if_version():
    while True:
        entry = store.entry("n")
        if entry is None:
            if store.add("n", 1):
                return
        elif store.save("n", entry.value + 1, if_version=entry.version):
            return
def count(many):
    for _ in range(many):
        globals()[how]()
say("ready"); hear()
if how == "increment" and len(arguments) > 2:
    threads = [threading.Thread(target=count, args=(times // 4,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
else:
    count(times)
store.close()
"""


@pytest.mark.parametrize(
    "how",
    [["increment"], ["update"], ["transaction"], ["if_version"], ["increment", "threads"]],
    ids=" with ".join,
)
def test_no_update_is_lost(path, child, how):
    verb, *threads = how
    children = [child(COUNTING, path, verb, TIMES, *threads) for _ in range(PROCESSES)]
    for one in children:
        assert one.line() == "ready"
    for one in children:
        one.tell("go")
    for one in children:
        one.finish()
    with LMDBStore(path) as store:
        assert store.load("n") == PROCESSES * TIMES


BUSY = """
store = LMDBStore(path, durability="relaxed")
done = threading.Event()
threading.Thread(target=lambda: (hear(), done.set())).start()
number = 0
while not done.is_set():
    store.save("busy", number)
    number += 1
    if number == 10:
        say("busy")
store.close()
say(number)
"""


def test_a_busy_writer_starves_nobody(path, child):
    busy = [child(BUSY, path) for _ in range(2)]
    for one in busy:
        assert one.line() == "busy"
    # Two processes that never pause want the gate; each of these still gets its turn in time.
    with LMDBStore(path, durability="relaxed", lock_timeout=10) as store:
        for number in range(50):
            store.save("patient", number)
        for _ in range(20):
            store.increment("patient")
        assert store.load("patient") == 69
        for one in busy:
            one.tell("enough")
        written = [int(one.finish()[-1]) for one in busy]
        assert store.load("busy") + 1 in written


def test_one_store_under_two_spellings(path, child, tmp_path):
    (tmp_path / "link").symlink_to(path)
    path.mkdir()
    spellings = [path, tmp_path / "link", path / ".." / "store"]
    stores = [LMDBStore(spelling) for spelling in spellings]
    for number, store in enumerate(stores):
        store.save(f"k{number}", number)
    for store in stores:
        assert dict(store.items()) == {"k0": 0, "k1": 1, "k2": 2}
    stores[0].close()
    # A lock that closing one spelling dropped would let this child in and corrupt the rest.
    other = child(COUNTING, tmp_path / "link", "increment", 50)
    other.line()
    other.tell("go")
    for _ in range(50):
        stores[1].increment("n")
    other.finish()
    assert stores[2].load("n") == 100
    for store in stores[1:]:
        store.close()


GROWN = """
store = LMDBStore(path, readonly=True, index_map_bytes=1 << 20)
say("ready")
with store.snapshot() as view:
    assert view.load("first") == 1
while (word := hear()) != "enough":
    say(store.load(word), store.count("k"))
store.close()
"""


def test_a_reader_outlives_the_growth_of_the_index(path, child):
    small, keys = 1 << 20, 20_000
    with LMDBStore(path, durability="relaxed", index_map_bytes=small) as store:
        store.save("first", 1)
        reader = child(GROWN, path)
        assert reader.line() == "ready"
        for start in range(0, keys, 2_000):
            store.save_many({f"k{n:08d}{'x' * 60}": n for n in range(start, start + 2_000)})
        last = f"k{keys - 1:08d}{'x' * 60}"
        assert store.stats().index_bytes > small
        assert reader.ask(last) == f"{keys - 1} {keys}"
        # The reader's process writes as well, into the map that it followed.
        writer = child(COUNTING, path, "increment", 20)
        writer.line()
        writer.tell("go")
        writer.finish()
        assert reader.ask("n") == f"20 {keys}"
        reader.tell("enough")
        reader.finish()
