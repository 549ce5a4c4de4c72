"""kvsage beside its peers in one run: ratios against their targets, in about a minute.

All of them work on the same data on the same file system, round by round in turn, so that whatever
else the machine does meets all alike. A ratio is that of the medians; the spread is shown beside
them. Targets that are missed are said plainly and fail nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import zstandard
from harness import Report, Subject, machine, rounds, workplace
from peers import DiskCache, Kvsage, Plyvel, RawLmdb, RocksDict, Sqlite
from workloads import session, texts

from kvsage import LMDBStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

KEYS = 20_000
MANY_KEYS = 100_000
OLD_TEXTS = 300  # 19 MiB: they do not fit into the cache of raw contents
GROUP = 10  # texts a round
PEERS = (Kvsage, RawLmdb, Sqlite, DiskCache, RocksDict, Plyvel)


@contextlib.contextmanager
def opened(base: Path, kinds: Sequence[Any], *, full: bool) -> Iterator[dict[str, Any]]:
    """Fresh stores by name; None for a peer that is not installed."""
    with contextlib.ExitStack() as stack:
        stores: dict[str, Any] = {}
        for kind in kinds:
            stores[kind.name] = None
            if importlib.util.find_spec(kind.module) is not None:
                path = Path(tempfile.mkdtemp(dir=base, prefix=kind.name)) / "store"
                stores[kind.name] = store = kind(path, full=full)
                stack.callback(store.close)
        yield stores


def compared(
    count: int, operations: int, stores: dict[str, Any], begin: Callable[[Any, int], Any]
) -> dict[str, list[float]]:
    """``rounds`` over stores; what is absent has no times."""
    there = {name: store for name, store in stores.items() if store is not None}
    subjects: dict[str, Subject] = {
        name: lambda number, store=store: begin(store, number) for name, store in there.items()
    }
    times = rounds(count, operations, subjects)
    return {name: times.get(name, []) for name in stores}


# -- the rows -----------------------------------------------------------------------------------


def load(report: Report, base: Path, count: int) -> None:
    """Single records, hot, in random order."""
    records = [session(number) for number in range(KEYS)]
    order = random.Random(1)  # noqa: S311  # the same in every run
    with opened(base, (Kvsage, RawLmdb, Sqlite, DiskCache, RocksDict), full=False) as stores:
        for store in filter(None, stores.values()):
            store.saves([store.key(f"session:{n:08d}") for n in range(KEYS)], records)

        def begin(store: Any, _: int) -> Callable[[], object]:
            keys = [store.key(f"session:{n:08d}") for n in order.sample(range(KEYS), 500)]
            return lambda: store.loads(keys)

        times = compared(2 * count, 500, stores, begin)
    report.times(f"load, a dict of 270 B as MessagePack, hot, {KEYS:,} keys at random", times)
    report.ratio("kvsage", "py-lmdb", times, (2, 1.5))
    report.ratio("diskcache", "kvsage", times, (3,))
    report.ratio("sqlite3", "kvsage", times, (1.5,))
    report.ratio("kvsage", "rocksdict", times, (1,))


def save(report: Report, base: Path, count: int) -> None:
    """Single records, relaxed, one thread: changed ones over what is there, and new ones."""
    order = random.Random(2)  # noqa: S311  # the same in every run
    with opened(base, PEERS, full=False) as stores:
        records = [session(number) for number in range(KEYS)]
        for store in filter(None, stores.values()):
            store.saves([store.key(f"session:{n:08d}") for n in range(KEYS)], records)

        def again(store: Any, number: int) -> Callable[[], object]:
            chosen = order.sample(range(KEYS), 200)
            keys = [store.key(f"session:{n:08d}") for n in chosen]
            changed = [session(n, number + 1) for n in chosen]  # equal bytes would cost SQLite less
            return lambda: store.saves(keys, changed)

        def new(store: Any, number: int) -> Callable[[], object]:
            chosen = order.sample(range(KEYS), 200)
            keys = [store.key(f"session:{n:08d}:{number}") for n in chosen]
            fresh = [session(n) for n in chosen]
            return lambda: store.saves(keys, fresh)

        for what, begin in (("changed over what is there", again), ("new", new)):
            times = compared(2 * count, 200, stores, begin)
            report.times(f"save, relaxed, one thread, a dict of 270 B, {what}", times)
            report.ratio("kvsage", "py-lmdb", times, (2.2, 1.5))
            report.ratio("sqlite3", "kvsage", times, (1.5,))
            report.ratio("diskcache", "kvsage", times, (5,))
            for name in ("rocksdict", "plyvel"):
                if times[name]:
                    value = median(times["kvsage"]) / median(times[name])
                    print(f"    {'kvsage / ' + name:<44} {value:>10,.2f}   far goal 1")


def save_full(report: Report, base: Path, count: int) -> None:
    """Single records, each on disk before the call returns."""
    with opened(base, (Kvsage, RawLmdb, Sqlite, RocksDict, Plyvel), full=True) as stores:

        def begin(store: Any, number: int) -> Callable[[], object]:
            keys = [store.key(f"session:{n * 7919 % 1000:08d}") for n in range(30)]
            records = [session(n, number) for n in range(30)]
            return lambda: store.saves(keys, records)

        times = compared(count, 30, stores, begin)
    report.times("save, full, one thread", times)
    report.ratio("py-lmdb", "kvsage", times, (1.5,))
    report.ratio("kvsage", "sqlite3", times, (1,))


def save_many(report: Report, base: Path, count: int) -> None:
    """20,000 new records in one commit, in no order."""
    records = [session(number) for number in range(KEYS)]
    shuffled = random.Random(3).sample(range(KEYS), KEYS)  # noqa: S311  # the same in every run
    with opened(base, (Kvsage, RawLmdb, Sqlite), full=False) as stores:

        def save(store: Any, number: int) -> Callable[[], object]:
            keys = [store.key(f"round-{number:03d}:{n:08d}") for n in shuffled]
            return lambda: store.save_many(keys, records)

        times = compared(count, KEYS, stores, save)
    report.times(f"save_many, {KEYS:,} new records in one commit, relaxed, a record", times)
    report.ratio("kvsage", "py-lmdb", times, (2.5,))
    report.ratio("sqlite3", "kvsage", times, (2,))


class Contents:
    """Texts of 64 KiB as ``str``; turning them into bytes and back is part of the peer's work too.

    Each method prepares one group of texts and gives what is to be timed.
    """

    def __init__(self, store: LMDBStore, file: int, count: int) -> None:
        everything = texts(OLD_TEXTS + GROUP * (count + 2))
        self.store = store
        self.file = file
        self.old = everything[:OLD_TEXTS]
        self.warm = everything[OLD_TEXTS : OLD_TEXTS + GROUP]
        self.fresh = everything[OLD_TEXTS + GROUP :]
        self.compress = zstandard.ZstdCompressor(level=3).compress
        self.decompress = zstandard.ZstdDecompressor().decompress
        self.frames = [self.compress(text.encode()) for text in self.old]
        # The old ones in a circle that is longer than the cache: the next ones have long left it.
        # Only what goes through the store draws from it, or some would come round too early.
        self.circle = itertools.cycle(range(OLD_TEXTS))
        for number, text in enumerate(self.old):
            store.save(f"old:{number}", text)
        for number, text in enumerate(self.warm):
            store.save(f"warm:{number}", text)
        for number in range(OLD_TEXTS):
            store.load(f"old:{number}")

    def write(self, number: int) -> Callable[[], object]:
        """Compress and write, by hand."""
        file, compress = self.file, self.compress
        chosen = self.fresh[number * GROUP : (number + 1) * GROUP]
        return lambda: [os.write(file, compress(text.encode())) for text in chosen]

    def save(self, number: int) -> Callable[[], object]:
        """Save what the store does not hold."""
        return self.saving("new", number, self.fresh[number * GROUP : (number + 1) * GROUP])

    def save_cold(self, number: int) -> Callable[[], object]:
        """Save what it holds, and has to read back for the comparison."""
        chosen = [self.old[n] for n in itertools.islice(self.circle, GROUP)]
        return self.saving("cold", number, chosen)

    def save_warm(self, number: int) -> Callable[[], object]:
        """Save what it holds and has in its cache."""
        self.load_warm(number)()
        return self.saving("again", number, self.warm)

    def saving(self, prefix: str, number: int, chosen: list[str]) -> Callable[[], object]:
        """Save texts under keys that are new."""
        save = self.store.save
        pairs = [(f"{prefix}:{number}:{n}", text) for n, text in enumerate(chosen)]
        return lambda: [save(key, text) for key, text in pairs]

    def unpack(self, number: int) -> Callable[[], object]:
        """Decompress and decode frames in memory, by hand."""
        decompress = self.decompress
        chosen = [self.frames[n % OLD_TEXTS] for n in range(number * GROUP, (number + 1) * GROUP)]
        return lambda: [decompress(frame).decode() for frame in chosen]

    def load_cold(self, _: int) -> Callable[[], object]:
        """Load what is not in the cache of raw contents."""
        load = self.store.load
        keys = [f"old:{n}" for n in itertools.islice(self.circle, GROUP)]
        return lambda: [load(key) for key in keys]

    def load_warm(self, _: int) -> Callable[[], object]:
        """Load what is."""
        load = self.store.load
        keys = [f"warm:{n}" for n in range(GROUP)]
        for key in keys:
            load(key)
        return lambda: [load(key) for key in keys]


def content(report: Report, base: Path, count: int) -> None:
    """First and second saves of texts, and loads, with a cold and with a warm cache."""
    file = os.open(base / "frames", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with LMDBStore(base / "content", durability="relaxed") as store:
        work = Contents(store, file, count)
        peer, first = "zstd level 3 + write", "kvsage first save"
        cold, warm = "kvsage second save, cold", "kvsage second save, warm"
        subjects = {peer: work.write, first: work.save, cold: work.save_cold, warm: work.save_warm}
        times = rounds(count, GROUP, subjects)
        report.times("content, relaxed: save of a str of 64 KiB", times)
        report.ratio(first, peer, times, (1.3,))
        report.ratio(cold, first, times, (0.4,))
        report.ratio(warm, first, times, (0.4,))
        peer, cold, warm = "zstd decompress + decode", "kvsage load, cold", "kvsage load, warm"
        subjects = {peer: work.unpack, cold: work.load_cold, warm: work.load_warm}
        times = rounds(count, GROUP, subjects)
        report.times("content: load of a str of 64 KiB", times)
        report.ratio(cold, peer, times, (1.3,))
        report.ratio(warm, peer, times, (1.3,))
    os.close(file)


def increments(report: Report, base: Path) -> None:
    """Four processes, one key: nothing may be lost."""
    path = str(base / "increments")
    program = (
        "import sys; from kvsage import LMDBStore\n"
        "with LMDBStore(sys.argv[1], durability='relaxed') as store:\n"
        "    for _ in range(200): store.increment('n')"
    )
    with LMDBStore(path, durability="relaxed") as store:
        begun = perf_counter()
        command = [sys.executable, "-c", program, path]
        children = [subprocess.Popen(command) for _ in range(4)]  # noqa: S603
        for child in children:
            child.wait()
        took = perf_counter() - begun
        total = store.load("n")
    print(f"\nincrement, 4 processes x 200 on one key (in {took:.2f} s, starting included)")
    report.verdict("counted", total, (800,), at_most=False)


def opening(report: Report, base: Path, count: int) -> None:
    """Import, open and rebuild."""
    program = "from time import perf_counter as now; t = now(); import kvsage; print(now() - t)"
    command = [sys.executable, "-c", program]
    # The first one compiles, into a place of its own in case that the tree is not for writing.
    place = {"PYTHONPYCACHEPREFIX": str(base / "pycache"), "PYTHONDONTWRITEBYTECODE": ""}
    runs = (
        subprocess.check_output(command, env=os.environ | place)  # noqa: S603
        for _ in range(count + 1)
    )
    imports = [float(run) for run in runs][1:]
    report.times("import kvsage, in a fresh interpreter", {"kvsage": imports}, "ms")
    report.verdict("import", median(imports) * 1e3, (100,), at_most=True, unit=" ms")
    numbers = range(MANY_KEYS)
    for how, size in (("batches of 1,000", 1000), ("a commit each", 1)):
        path = base / how.replace(" ", "-")
        with LMDBStore(path, durability="relaxed") as store:
            for first in numbers[::size]:
                rows = range(first, first + size)
                store.save_many({f"session:{n * 7919 % MANY_KEYS:08d}": session(n) for n in rows})
        opens, rebuilds = [], []
        for _ in range(3):
            opens.append(open_once(path))
            (path / "INDEX").unlink()  # nothing says now that the index can be trusted
            rebuilds.append(open_once(path))
        if size > 1:
            report.times(f"open a clean store of {MANY_KEYS:,} keys", {"kvsage": opens}, "ms")
            report.verdict("open", median(opens) * 1e3, (50,), at_most=True, unit=" ms")
        report.times(
            f"rebuild of the index, {MANY_KEYS:,} entries, {how}", {"kvsage": rebuilds}, "ms"
        )
        rate = MANY_KEYS / median(rebuilds)
        report.verdict("entries/s", rate, (100_000, 200_000), at_most=False)


def open_once(path: Path) -> float:
    """Seconds that opening took."""
    begun = perf_counter()
    store = LMDBStore(path, durability="relaxed")
    took = perf_counter() - begun
    store.close()
    return took


# -- all of it ----------------------------------------------------------------------------------


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path(), help="where to put the stores (here)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="also write every figure into this file")
    arguments = parser.parse_args()
    count = 5 if arguments.quick else 15
    report = Report()
    with workplace(arguments.dir) as base:
        facts = machine(base)
        print(*(f"{name}: {fact}" for name, fact in facts.items()), sep="\n")
        print("relaxed and full mean:")
        for kind in PEERS:
            print(f"  {kind.name:<10} {kind.options[0]}; {kind.options[1]}")
        print(f"Medians of {count} interleaved rounds, (least .. most).")
        load(report, base, count)
        save(report, base, count)
        save_full(report, base, count)
        save_many(report, base, min(count, 7))
        content(report, base, count)
        increments(report, base)
        opening(report, base, min(count, 7))
    report.finish(facts, arguments.json, rounds=count)


if __name__ == "__main__":
    main()
