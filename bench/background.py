"""Background work: what it does to the loads beside it, and how fast it is."""

from __future__ import annotations

import math
import random
import threading
from array import array
from statistics import median
from time import perf_counter, perf_counter_ns, sleep
from typing import TYPE_CHECKING, NamedTuple

from beside import LOOKS, Beside, follow, load_on_demand, load_some
from workloads import session

from kvsage import LMDBStore
from kvsage.engine.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness import Report

KEYS = 100_000
OVERWRITTEN = 0.6  # of all keys, before each compaction
SEGMENT_BYTES = 4 << 20  # what upkeep compacts are sealed ones
IDLE_S = 0.5
FOLLOWED = 300
FOLLOW_PAUSE_S = 0.005


def key(number: int) -> str:
    """The key of a session."""
    return f"session:{number:08d}"


def save_all(store: LMDBStore, numbers: Sequence[int], turn: int = 0) -> None:
    """Save sessions as of some turn, a thousand in a commit."""
    for first in range(0, len(numbers), 1000):
        store.save_many({key(n): session(n, turn) for n in numbers[first : first + 1000]})


# -- the loads beside it --------------------------------------------------------------------------


class Loads(NamedTuple):
    """Loads in a closed loop: on a thread beside the work, or in a process beside it."""

    where: str
    during: Callable[[Callable[[], object]], array[float]]


class Latency:
    """One store, whose background work comes when it is told to."""

    def __init__(self, store: LMDBStore, base: Path, beside: Beside) -> None:
        self.store = store
        self.base = base
        self.beside = beside
        self.keys = [key(n) for n in range(KEYS)]
        self.order = random.Random(6)  # noqa: S311  # the same in every run
        self.turn = self.backups = 0

    # What is done meanwhile: prepare, and give what is to be done.

    def idle(self) -> Callable[[], object]:
        """Nothing."""
        return lambda: sleep(IDLE_S)

    def upkeep(self) -> Callable[[], object]:
        """Compaction as it happens by itself, rests included."""
        self._overwrite()
        upkeep = self.store._engine.upkeep  # noqa: SLF001  # its thread would begin when it likes
        return lambda: upkeep.look(Pace(upkeep._rest))  # noqa: SLF001

    def compact(self) -> Callable[[], object]:
        """Compaction that somebody waits for."""
        self._overwrite()
        return self.store.compact

    def backup(self) -> Callable[[], object]:
        """A first backup, which reads every byte."""
        self.backups += 1
        directory = self.base / f"backup-{self.backups}"
        return lambda: self.store.backup(directory)

    def _overwrite(self) -> None:
        self.turn += 1
        chosen = self.order.sample(range(KEYS), int(KEYS * OVERWRITTEN))
        save_all(self.store, chosen, self.turn)

    # The loads.

    def on_a_thread(self, work: Callable[[], object]) -> array[float]:
        """Load on this thread while another one works."""
        took = array("d")
        worker = threading.Thread(target=work)
        worker.start()
        while worker.is_alive() or not took:
            load_some(self.store, self.order.choices(self.keys, k=LOOKS), took)
        worker.join()
        return took

    def in_a_process(self, work: Callable[[], object]) -> array[float]:
        """Load in another process while this one works."""
        self.beside.tell("begin")
        work()
        self.beside.tell("end")
        took: array[float] = self.beside.told()
        return took


def latency(report: Report, base: Path, count: int) -> None:
    """p99 of load while compaction and backup run, beside that of an idle store."""
    path = base / "latency"
    keys = [key(n) for n in range(KEYS)]
    with LMDBStore(
        path, durability="relaxed", upkeep_interval=math.inf, segment_bytes_max=SEGMENT_BYTES
    ) as store:
        save_all(store, range(KEYS))
        with Beside(load_on_demand, path, keys) as beside:
            work = Latency(store, base, beside)
            works = {"idle": work.idle, "upkeep": work.upkeep, "compact()": work.compact}
            works["backup()"] = work.backup
            print(
                f"\nload, 270 B, {KEYS:,} keys at random, in a closed loop, {count} rounds of each "
                "in turn; upkeep: as by itself;\n  compact(), backup(): somebody waits"
            )
            ways = {"the same process": work.on_a_thread, "another process": work.in_a_process}
            for where, way in ways.items():
                took: dict[str, list[array[float]]] = {name: [] for name in works}
                for _ in range(count):
                    for name, prepare in works.items():
                        took[name].append(way(prepare()))
                _compared(report, where, took)


def _compared(report: Report, where: str, took: dict[str, list[array[float]]]) -> None:
    print(f"  in {where}: p99 of each round, pooled p50 / p99 / p99.9, loads a second")
    idle_us = percentile_us(took["idle"], 0.99)
    for name, each in took.items():
        by_round = " ".join(f"{percentile_us([one], 0.99):.1f}" for one in each)
        p50, p99, p999 = (percentile_us(each, share) for share in (0.5, 0.99, 0.999))
        rate = sum(map(len, each)) / sum(map(sum, each))
        print(
            f"    {name:<10} {by_round:<40} {p50:>8.1f} / {p99:.1f} / {p999:.1f} us  "
            f"{rate:>9,.0f}/s"
        )
        report.figures.append(
            {"what": f"load during {name}, {where}", "p99_us": p99, "p50_us": p50}
        )
    for name in list(took)[1:]:
        ratio = percentile_us(took[name], 0.99) / idle_us
        report.verdict(f"p99 of load in {where} during {name} / idle", ratio, (2,), at_most=True)


def percentile_us(each: Sequence[array[float]], share: float) -> float:
    """A percentile over several runs, in microseconds."""
    ordered = sorted(took for one in each for took in one)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e6


# -- how fast it is -------------------------------------------------------------------------------


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        """What it says."""
        return self.now


def rates(report: Report, base: Path, count: int) -> None:
    """Sweep, backup, restore, changes; none of them has a target."""
    print(f"\nrates, {KEYS:,} records of 270 B, relaxed, saved a thousand in a commit")
    _sweep(report, base / "sweep")
    path = base / "rates"
    with LMDBStore(path, durability="relaxed", upkeep_interval=math.inf) as store:
        save_all(store, range(KEYS))
        _backups(report, store, base)
        _history(report, store, count)
        _follow(report, store)


def _sweep(report: Report, path: Path) -> None:
    clock = Hands()
    with LMDBStore(path, durability="relaxed", upkeep_interval=math.inf, clock=clock) as store:
        store.save_many({key(n): session(n) for n in range(KEYS)}, ttl=60)
        clock.now += 61
        begun = perf_counter()
        swept = store.sweep()
        report.figure("sweep", swept / (perf_counter() - begun), " keys/s")


def _backups(report: Report, store: LMDBStore, base: Path) -> None:
    megabytes = store.stats().log_bytes / 1e6
    directory = base / "backups"
    for what, link in (("links", True), ("copies", False)):
        begun = perf_counter()
        store.backup(directory / what, link=link)
        report.figure(f"first backup, {what}", megabytes / (perf_counter() - begun), " MB/s")
        save_all(store, range(KEYS // 100), turn=1)
        begun = perf_counter()
        store.backup(directory / what, link=link)
        report.figure(
            f"next backup, {what}, after 1 % changed", (perf_counter() - begun) * 1e3, " ms"
        )
    begun = perf_counter()
    LMDBStore.restore(directory / "links", base / "restored")
    report.figure("restore", megabytes / (perf_counter() - begun), " MB/s")


def _history(report: Report, store: LMDBStore, count: int) -> None:
    times, changes = [], 0
    for _ in range(count):
        begun = perf_counter()
        changes = sum(1 for _ in store.changes())
        times.append(perf_counter() - begun)
    report.figure("changes() over the history, values not read", changes / median(times), " /s")
    begun = perf_counter()
    for change in store.changes():
        _ = change.value
    report.figure(
        "changes() over the history, values read", changes / (perf_counter() - begun), " /s"
    )


def _follow(report: Report, store: LMDBStore) -> None:
    with Beside(follow, store.path, FOLLOWED) as beside:
        for number in range(FOLLOWED):
            store.save(f"followed:{number}", perf_counter_ns())
            sleep(FOLLOW_PAUSE_S)
        delays = sorted(beside.told())
    for share, name in ((0.5, "median"), (0.99, "p99")):
        delay = delays[int(len(delays) * share)] / 1e6
        report.figure(f"from save() to its receipt in another process, {name}", delay, " ms")
