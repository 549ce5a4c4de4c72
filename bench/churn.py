"""Overwriting at full speed: what the log takes meanwhile, and how long a writer waits.

The data is known beforehand by key and by how often the key was saved, so that all of it can be
checked at the end.
"""

from __future__ import annotations

import math
import random
import shutil
import time
from array import array
from statistics import median
from struct import Struct
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from beside import Beside, directory_bytes, sample_directory

from kvsage import LMDBStore
from kvsage.log.format import CONTENT_HEAD, CONTENT_KEY, ENTRY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from harness import Report

MIX = ((300, 0.4), (1000, 0.4), (16_384, 0.2))  # bytes of a value, and their share of all bytes
BATCH = 100  # records that save_many takes at once
WAIT_MOST_MS = 50
ALONE_TIMES = 3
HEAD = Struct("<QQ")
POOL = random.Random(7).randbytes(1 << 20)  # noqa: S311  # the same in every run


class Records:
    """Values that depend on the key and on how often it was saved; they do not compress.

    Args:
        live_bytes: about how many the store is to hold.
    """

    def __init__(self, live_bytes: int) -> None:
        self.sizes: list[int] = []
        for size, share in MIX:
            self.sizes += [size] * max(1, int(live_bytes * share / self.entry_bytes(size)))
        self.keys = [f"record:{number:08d}" for number in range(len(self.sizes))]
        self.saved = array("Q", bytes(8 * len(self.sizes)))
        self._order = random.Random(8)  # noqa: S311

    @staticmethod
    def entry_bytes(size: int) -> int:
        """What the log needs for a record, without the framing of its commit."""
        key_bytes = len("record:00000000")
        if size < 4096:  # noqa: PLR2004  # content_bytes_min
            return ENTRY_BYTES + key_bytes + size
        content = ENTRY_BYTES + CONTENT_KEY.size + CONTENT_HEAD.size + size
        return content + ENTRY_BYTES + key_bytes + CONTENT_KEY.size

    @property
    def live_bytes(self) -> int:
        """Bytes of the live entries once every record was saved."""
        return sum(map(self.entry_bytes, self.sizes))

    @property
    def user_bytes(self) -> int:
        """Keys and values alone."""
        return sum(self.sizes) + sum(map(len, self.keys))

    def value(self, number: int) -> bytes:
        """What was saved last under a key."""
        saved, size = self.saved[number], self.sizes[number]
        at = (number * 7919 + saved * 104_729) % (len(POOL) - size)
        return HEAD.pack(number, saved) + POOL[at + HEAD.size : at + size]

    def next(self, number: int) -> bytes:
        """What is to be saved next under a key."""
        self.saved[number] += 1
        return self.value(number)

    def chosen(self, count: int) -> Iterator[int]:
        """Keys at random."""
        everything = range(len(self.keys))
        for first in range(0, count, 10_000):
            yield from self._order.choices(everything, k=min(10_000, count - first))

    def fill(self, store: LMDBStore) -> None:
        """Save every record once."""
        for first in range(0, len(self.keys), 1000):
            some = range(first, min(first + 1000, len(self.keys)))
            store.save_many({self.keys[n]: self.next(n) for n in some})

    def wrong(self, store: LMDBStore) -> int:
        """How many keys do not hold what was saved last."""
        load = store.load
        return sum(load(key) != self.value(n) for n, key in enumerate(self.keys))


class Written(NamedTuple):
    """What overwriting came to.

    Attributes:
        waits_s: how long each call took, shortest first.
        records: how many were saved.
        cpu_s: processor time of this process, upkeep included.
        began_s: when, on the monotonic clock.
    """

    waits_s: Sequence[float]
    records: int
    cpu_s: float
    began_s: float

    @property
    def record_s(self) -> float:
        """Seconds a record took the writer."""
        return sum(self.waits_s) / self.records

    def wait_ms(self, share: float) -> float:
        """How long the call took that ``share`` of them were not slower than, in ms."""
        return self.waits_s[min(len(self.waits_s) - 1, int(len(self.waits_s) * share))] * 1e3


def one_by_one(store: LMDBStore, records: Records, count: int) -> Written:
    """Overwrite ``count`` records at random, a commit each."""
    save, keys, took = store.save, records.keys, array("d")
    began_s, began_cpu_s = perf_counter(), time.process_time()
    for number in records.chosen(count):
        value = records.next(number)
        at_s = perf_counter()
        save(keys[number], value)
        took.append(perf_counter() - at_s)
    return Written(sorted(took), count, time.process_time() - began_cpu_s, began_s)


def in_batches(store: LMDBStore, records: Records, count: int) -> Written:
    """Overwrite ``count`` records at random, a hundred in a commit."""
    save_many, keys, took = store.save_many, records.keys, array("d")
    began_s, began_cpu_s = perf_counter(), time.process_time()
    chosen = list(records.chosen(count))
    saved = 0
    for first in range(0, count, BATCH):
        mapping = {keys[n]: records.next(n) for n in dict.fromkeys(chosen[first : first + BATCH])}
        saved += len(mapping)
        at_s = perf_counter()
        save_many(mapping)
        took.append(perf_counter() - at_s)
    return Written(sorted(took), saved, time.process_time() - began_cpu_s, began_s)


Write: TypeAlias = "Callable[[LMDBStore, Records, int], Written]"
HOW: dict[Write, str] = {one_by_one: "save", in_batches: f"save_many of {BATCH}"}


# -- the rows -----------------------------------------------------------------------------------


def churn(report: Report, base: Path, write: Write, *, live_bytes: int, times: float) -> None:
    """Overwrite everything ``times`` times while upkeep runs, and look at all that is promised."""
    records = Records(live_bytes)
    count = int(len(records.keys) * times)
    print(
        f"\nchurn, {HOW[write]}, one thread, relaxed: {len(records.keys):,} records of 300 B, 1 KB "
        f"and 16 KB\n  ({records.live_bytes / 1e6:,.1f} MB of live entries, "
        f"{records.user_bytes / 1e6:,.1f} MB of keys and values), overwritten at random, "
        f"{times:g} times all of them"
    )
    alone = without_upkeep(base / "alone", live_bytes, write)
    path = base / "churn"
    with LMDBStore(path, durability="relaxed") as store:
        records.fill(store)
        store.compact()
        with Beside(sample_directory, path / "log") as sampler:
            written = write(store, records, count)
            sampler.tell("end")
            sums = sampler.told()
        space(report, records, store, sums)
        waits(report, written, alone)
        afterwards(report, records, store, written)
    shutil.rmtree(path)


def without_upkeep(path: Path, live_bytes: int, write: Write) -> Written:
    """The same for a while on a store that is left to itself."""
    records = Records(live_bytes)
    with LMDBStore(path, durability="relaxed", upkeep_interval=math.inf) as store:
        records.fill(store)
        written = write(store, records, ALONE_TIMES * len(records.keys))
    shutil.rmtree(path)
    return written


def space(report: Report, records: Records, store: LMDBStore, sums: Sequence[int]) -> None:
    """What the log took meanwhile."""
    live = records.live_bytes
    engine = store._engine  # noqa: SLF001  # how large its segments are is nobody else's business
    segment = engine.segment_limit
    worst = max(sums)
    print(
        f"  log: {worst / 1e6:,.1f} MB at most in {len(sums):,} looks, median "
        f"{median(sums) / 1e6:,.1f} MB; segments of {segment / 1e6:,.1f} MB (engine.segment_limit, "
        f"of {store.options.segment_bytes_max / 1e6:,.1f} MB that they may have)"
    )
    report.verdict(
        "log / (2 x live + 2 segments), at worst",
        worst / (2 * live + 2 * segment),
        (1,),
        at_most=True,
    )
    report.figure("log / live entries, at worst", worst / live)
    report.figure("log / live entries, median", median(sums) / live)


def waits(report: Report, written: Written, alone: Written) -> None:
    """How long the writer waited, and what upkeep cost."""
    report.verdict("longest call", written.wait_ms(1), (WAIT_MOST_MS,), at_most=True, unit=" ms")
    report.figure("longest call without upkeep", alone.wait_ms(1), " ms")
    for share, name in ((0.999, "p99.9"), (0.99, "p99"), (0.5, "median")):
        report.figure(f"{name} of calls", written.wait_ms(share), " ms")
        report.figure(f"{name} of calls without upkeep", alone.wait_ms(share), " ms")
    report.figure("a record took the writer", written.record_s * 1e6, " us")
    report.figure("writer's time / that without upkeep", written.record_s / alone.record_s)
    cpu = written.cpu_s / written.records, alone.cpu_s / alone.records
    report.figure("processor time / that without upkeep", cpu[0] / cpu[1])


def afterwards(report: Report, records: Records, store: LMDBStore, written: Written) -> None:
    """What is there when all is done."""
    done = store.stats().process
    average = records.live_bytes / len(records.keys)
    report.figure("compactions", done.compactions)
    copied = done.compaction_bytes_copied / (written.records * average)
    report.figure("bytes copied by compaction for each that was written", copied)
    begun = perf_counter()
    store.compact()
    report.figure("compact() at the end took", perf_counter() - begun, " s")
    log = directory_bytes(store.path / "log")
    ratio = log / records.live_bytes
    report.verdict("log / live entries after compact()", ratio, (1.3,), at_most=True)
    report.figure("log / keys and values after compact()", log / records.user_bytes)
    sound(report, store)
    wrong = records.wrong(store)
    report.verdict("keys that do not hold what was saved last", wrong, (0,), at_most=True)


def sound(report: Report, store: LMDBStore) -> None:
    """That every byte checks, and upkeep met no error."""
    problems = store.verify(deep=True).problems
    report.verdict("problems that verify(deep=True) finds", len(problems), (0,), at_most=True)
    error = store.stats().process.upkeep_error
    report.verdict("errors that upkeep met", int(error is not None), (0,), at_most=True)
    for problem in (*problems[:5], *([] if error is None else [error])):
        print(f"      {problem}")
