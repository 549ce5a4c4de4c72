"""What a store that runs for years needs: space, waits, opening, and what upkeep costs.

Every row is printed with its target where it has one. Targets that are missed are said plainly and
fail nothing. All of it takes about four minutes; --only picks rows.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from array import array
from collections import OrderedDict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import background
import churn
from background import key, save_all
from beside import Beside, directory_bytes, load_some, sample_directory
from harness import Report, machine, workplace
from msgpack import packb
from workloads import session

from kvsage import LMDBStore
from kvsage.log.format import ENTRY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FEW_KEYS = 10_000
SCALE_LOADS = 1000  # a round
OPENED_KEYS = 1_000_000
SPACE_KEYS = 50_000
BOUND_BYTES = 16 << 20
CACHED_BYTES = 1000  # a value of the cache
CACHE_KEYS = 60_000  # four times what fits
CACHE_LOADS = 200_000
ZIPF = 1.0
RECORD = random.Random(9).randbytes(270)  # noqa: S311  # the same in every run


# -- space ----------------------------------------------------------------------------------------


def overwritten(report: Report, base: Path, _: argparse.Namespace) -> None:
    """Everything overwritten five times, and compacted: the log, and what stands beside it."""
    path = base / "overwritten"
    live = sum(ENTRY_BYTES + len(key(n)) + len(packb(session(n, 5))) for n in range(SPACE_KEYS))
    print(f"\n{SPACE_KEYS:,} records of 270 B, overwritten five times, and compacted")
    with LMDBStore(path, durability="relaxed", upkeep_interval=math.inf) as store:
        for turn in range(6):
            save_all(store, range(SPACE_KEYS), turn)
        before = directory_bytes(path / "log")
        begun = perf_counter()
        store.compact()
        report.figure("compact() took", perf_counter() - begun, " s")
        store.checkpoint()
        stats = store.stats()
        log = directory_bytes(path / "log")
        report.figure("log before", before / 1e6, " MB")
        report.figure("log", log / 1e6, " MB")
        report.figure("live entries", live / 1e6, " MB")
        report.verdict("log / live entries", log / live, (1.3,), at_most=True)
        report.figure("index", stats.index_bytes / 1e6, " MB")
        report.figure("checkpoint", stats.checkpoint_bytes / 1e6, " MB")
    for what, gone in (
        ("open, clean", ()),
        ("rebuild of the index", ("INDEX", "index.checkpoint")),
    ):
        for name in gone:
            (path / name).unlink()
        report.figure(f"{what}, after that", open_once(path) * 1e3, " ms")


def bounded(report: Report, base: Path, _: argparse.Namespace) -> None:
    """A cache in front of something slow: a key that is not there is saved."""
    numbers = zipf(CACHE_KEYS, CACHE_LOADS)
    path = base / "bounded"
    print(
        f"\ncache, bytes_max {BOUND_BYTES / 1e6:,.1f} MB: {CACHE_LOADS:,} loads of {CACHE_KEYS:,} "
        f"keys of {CACHED_BYTES:,} B, Zipf {ZIPF:g};\n  what is not there is saved; counted from "
        "the second half on"
    )
    with LMDBStore(path, durability="relaxed", bytes_max=BOUND_BYTES) as store:
        with Beside(sample_directory, path / "log") as sampler:
            hits, held, took = cached(store, numbers)
            sampler.tell("end")
            sums = sampler.told()
        report.verdict("log / bytes_max, at worst", max(sums) / BOUND_BYTES, (1,), at_most=True)
        over = sum(size > BOUND_BYTES for size in sums) / len(sums)
        report.figure("share of looks at which it was over bytes_max", over)
        report.figure("log / bytes_max, median", median(sums) / BOUND_BYTES)
        report.figure("a load took, with the save of what was not there", took * 1e6, " us")
        report.figure("keys held, median of the second half", median(held))
        report.figure("keys evicted", store.stats().process.evicted)
        churn.sound(report, store)
    half = CACHE_LOADS // 2
    rate = sum(hits[half:]) / half
    report.figure("hit rate", rate)
    capacity = int(median(held))
    most = BOUND_BYTES // (ENTRY_BYTES + len(key(0)) + CACHED_BYTES)
    fifo = hit_rate(numbers, capacity, moves=False)
    report.figure("hit rate of FIFO over as many keys, computed", fifo)
    report.figure("of LRU", hit_rate(numbers, capacity, moves=True))
    report.figure(
        "of LRU over all that bytes_max has room for", hit_rate(numbers, most, moves=True)
    )
    report.verdict("hit rate / that of FIFO", rate / fifo, (1,), at_most=False)


def zipf(keys: int, count: int) -> list[int]:
    """Keys by Zipf's law, the frequent ones anywhere."""
    order = random.Random(10)  # noqa: S311  # the same in every run
    names = order.sample(range(keys), keys)
    weights = itertools.accumulate(1 / rank**ZIPF for rank in range(1, keys + 1))
    return order.choices(names, cum_weights=list(weights), k=count)


def cached(store: LMDBStore, numbers: Sequence[int]) -> tuple[list[bool], list[int], float]:
    """Load each key, save it where it is not there: hits, keys held in the end, seconds a load."""
    hits, held = [], []
    pool = RECORD * 5
    begun = perf_counter()
    for at, number in enumerate(numbers):
        name = key(number)
        hit = store.load(name) is not None
        if not hit:
            first = number % 256
            store.save(name, pool[first : first + CACHED_BYTES])
        hits.append(hit)
        if at > len(numbers) // 2 and not at % 2000:
            held.append(store.stats().keys)
    return hits, held, (perf_counter() - begun) / len(numbers)


def hit_rate(numbers: Sequence[int], capacity: int, *, moves: bool) -> float:
    """Of the second half, in a cache of so many keys: FIFO, or LRU where a hit moves its key."""
    cache: OrderedDict[int, None] = OrderedDict()
    half, hits = len(numbers) // 2, 0
    for at, number in enumerate(numbers):
        if number in cache:
            hits += at >= half
            if moves:
                cache.move_to_end(number)
            continue
        cache[number] = None
        if len(cache) > capacity:
            cache.popitem(last=False)
    return hits / half


# -- size -----------------------------------------------------------------------------------------


def made(base: Path, keys: int) -> Path:
    """A closed store of so many records, made once."""
    path = base / f"keys-{keys}"
    if not path.exists():
        begun = perf_counter()
        with LMDBStore(path, durability="relaxed", upkeep_interval=math.inf) as store:
            for first in range(0, keys, 1000):
                store.save_many(dict.fromkeys(map(key, range(first, first + 1000)), RECORD))
        print(f"\n(a store of {keys:,} records of 270 B, made in {perf_counter() - begun:.1f} s)")
    return path


def warm(path: Path) -> None:
    """Read all of a store once, so that it is in the file system's cache."""
    for file in (path / "index" / "data.mdb", *sorted((path / "log").iterdir())):
        with file.open("rb") as opened:
            while opened.read(1 << 20):
                pass


def scale(report: Report, base: Path, arguments: argparse.Namespace) -> None:
    """Loads from many keys and from few."""
    counts = (FEW_KEYS, arguments.keys)
    order = random.Random(11)  # noqa: S311  # the same in every run
    stores = {}
    for count in counts:
        path = made(base, count)
        warm(path)
        stores[count] = LMDBStore(path, durability="relaxed", upkeep_interval=math.inf)
    took: dict[int, list[array[float]]] = {count: [] for count in counts}
    before = disk_reads()
    for number in range(4 * arguments.rounds + 1):
        for count, store in stores.items():
            each = array("d")
            load_some(store, [key(n) for n in order.sample(range(count), SCALE_LOADS)], each)
            if number:  # the first round only warms up
                took[count].append(each)
    reads = disk_reads() - before
    for store in stores.values():
        store.close()
    few, many = (f"{count:,} keys" for count in counts)
    medians = [[median(each) for each in took[count]] for count in counts]
    report.times(
        "load, 270 B, at random, median of each round", {few: medians[0], many: medians[1]}
    )
    ratio = median(medians[1]) / median(medians[0])
    report.verdict(f"{many} / {few}", ratio, (2.5,), at_most=True)
    for name, count in ((few, counts[0]), (many, counts[1])):
        report.figure(f"p99, {name}", background.percentile_us(took[count], 0.99), " us")
    report.figure("KiB read from the disk meanwhile (the cache had let go of them)", reads / 1024)


def disk_reads() -> int:
    """Bytes that this process has had read from the disk; 0 where nobody counts."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes")), 0)


def opening(report: Report, base: Path, arguments: argparse.Namespace) -> None:
    """A large store opened: clean, from its log alone, from a checkpoint."""
    count = min(arguments.keys, OPENED_KEYS)
    path = made(base, count)
    clean = [open_once(path) for _ in range(arguments.rounds)]
    report.times(f"open, {count:,} keys, clean", {"kvsage": clean}, "ms")
    report.verdict("open", median(clean) * 1e3, (50,), at_most=True, unit=" ms")
    (path / "index.checkpoint").unlink(missing_ok=True)
    rebuilds = [open_untrusted(path) for _ in range(2)]
    report.times("rebuild of the index from the log alone", {"kvsage": rebuilds}, "ms")
    rate = count / median(rebuilds)
    report.verdict("entries/s", rate, (100_000, 200_000), at_most=False)
    with LMDBStore(path, durability="relaxed", upkeep_interval=math.inf) as store:
        begun = perf_counter()
        store.checkpoint()
        report.figure("checkpoint() took", perf_counter() - begun, " s")
    copied = [open_untrusted(path) for _ in range(arguments.rounds)]
    report.times("open right after a checkpoint, not closed clean", {"kvsage": copied}, "ms")
    report.verdict("open", median(copied), (2,), at_most=True, unit=" s")


def open_untrusted(path: Path) -> float:
    """Seconds that opening took where nothing says that the index can be trusted."""
    (path / "INDEX").unlink()
    return open_once(path)


def open_once(path: Path) -> float:
    """Seconds that opening took."""
    begun = perf_counter()
    store = LMDBStore(path, durability="relaxed", upkeep_interval=math.inf)
    took = perf_counter() - begun
    store.close()
    return took


# -- all of it ------------------------------------------------------------------------------------


def churn_by_save(report: Report, base: Path, arguments: argparse.Namespace) -> None:
    """Overwriting, a commit each."""
    live_bytes = arguments.live_mb << 20
    churn.churn(report, base, churn.one_by_one, live_bytes=live_bytes, times=arguments.times)


def churn_in_batches(report: Report, base: Path, arguments: argparse.Namespace) -> None:
    """Overwriting, many in a commit."""
    live_bytes = arguments.live_mb << 20
    churn.churn(report, base, churn.in_batches, live_bytes=live_bytes, times=arguments.times)


ROWS: dict[str, Callable[[Report, Path, argparse.Namespace], None]] = {
    "churn": churn_by_save,
    "batches": churn_in_batches,
    "overwritten": overwritten,
    "bounded": bounded,
    "latency": lambda report, base, asked: background.latency(report, base, asked.rounds),
    "rates": lambda report, base, asked: background.rates(report, base, asked.rounds),
    "scale": scale,
    "opening": opening,
}


def asked() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    option = parser.add_argument
    option("--dir", type=Path, default=Path(), help="where to put the stores (here)")
    option("--only", action="append", choices=ROWS, help="a row; may be given again")
    option("--live-mb", type=int, default=64, help="live data of the churn, in MiB (64)")
    option("--times", type=float, default=20, help="how often it is overwritten (20)")
    option("--keys", type=int, default=1_000_000, help="keys of the large store (1,000,000)")
    option("--full", action="store_true", help="10,000,000 keys")
    option("--rounds", type=int, default=5, help="rounds of what is done more than once (5)")
    option("--json", type=Path, help="also write every figure into this file")
    arguments = parser.parse_args()
    if arguments.full:
        arguments.keys = 10_000_000
    return arguments


def main() -> None:
    """Measure and print."""
    arguments = asked()
    report = Report()
    with workplace(arguments.dir) as base:
        facts = machine(base)
        for name in ("SQLite", "diskcache", "rocksdict", "plyvel"):
            del facts[name]  # nobody is compared with here
        print(*(f"{name}: {fact}" for name, fact in facts.items()), sep="\n")
        begun = perf_counter()
        for name in arguments.only or ROWS:
            ROWS[name](report, base, arguments)
        print(f"\nAll of it took {perf_counter() - begun:.0f} s")
    parameters = {name: getattr(arguments, name) for name in ("live_mb", "times", "keys", "rounds")}
    report.finish(facts, arguments.json, **parameters)


if __name__ == "__main__":
    main()
