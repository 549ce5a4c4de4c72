"""Durable saves from many threads: kvsage beside its peers in one run, in under a minute.

Every thread saves as fast as it can, each save on disk before the call returns; what is counted is
the saves of all of them together. The stores take turns, round by round. In kvsage the threads that
meet share one flush, and that is what this is about.
"""

from __future__ import annotations

import argparse
import sqlite3
import threading
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from harness import Report, machine, workplace
from peers import Kvsage, RawLmdb, RocksDict, Sqlite
from quick import opened
from typing_extensions import override
from workloads import session

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = (1, 4, 16, 64)
TARGETS = {16: (4.0,), 64: (6.0,)}  # times the best peer
KEYS = 100  # of each thread, written over and over
BUSY_TIMEOUT_S = 60


class SqliteThreads(Sqlite):
    """sqlite3 with one connection for each thread; they wait for each other's locks."""

    options = (Sqlite.options[0], f"{Sqlite.options[1]}, a connection a thread, busy timeout")

    def __init__(self, path: Path, *, full: bool) -> None:
        super().__init__(path, full=full)
        self.connection.close()
        self.path = path / "kv.db"
        self.synchronous = "FULL" if full else "NORMAL"
        self.mine = threading.local()
        self.connections: list[sqlite3.Connection] = []
        self.close = self.close_all

    def connect(self) -> sqlite3.Connection:
        """This thread's connection."""
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute(f"PRAGMA synchronous={self.synchronous}")
        self.connections.append(connection)
        return connection

    def close_all(self) -> None:
        """Close the connections of all threads."""
        while self.connections:
            self.connections.pop().close()

    @override
    def saves(self, keys: list[str], records: list[Any]) -> None:
        if not hasattr(self.mine, "peer"):
            self.mine.peer = peer = Sqlite.__new__(Sqlite)
            peer.connection = self.connect()
        self.mine.peer.saves(keys, records)


PEERS = (Kvsage, RawLmdb, SqliteThreads, RocksDict)


def saves_per_second(store: Any, threads: int, round_s: float) -> tuple[float, float]:
    """Saves of all threads together in a second, and the longest that any one took, in seconds."""
    ready = threading.Barrier(threads + 1)
    over = threading.Event()
    saves: list[int] = []
    longest: list[float] = []

    def work(number: int) -> None:
        keys = [[store.key(f"session:{number:02d}:{n:04d}")] for n in range(KEYS)]
        # Another record at each turn: equal bytes would cost SQLite next to nothing.
        records = [[session(n, turn)] for turn in range(3) for n in range(KEYS)]
        store.saves(keys[0], records[0])  # opens what a thread needs for itself
        save: Callable[[Any, Any], None] = store.saves
        done, most = 0, 0.0
        ready.wait()
        before = perf_counter()
        for key, record in zip(cycle(keys), cycle(records), strict=False):
            save(key, record)
            now = perf_counter()
            most = max(most, now - before)
            before = now
            done += 1
            if over.is_set():
                break
        saves.append(done)
        longest.append(most)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    begun = perf_counter()
    over.wait(round_s)
    over.set()
    for worker in workers:
        worker.join()
    return sum(saves) / (perf_counter() - begun), max(longest)


def measure(
    report: Report, stores: dict[str, Any], threads: int, count: int, round_s: float
) -> None:
    """One row: so many threads on each store in turn."""
    there = {name: store for name, store in stores.items() if store is not None}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in there}
    names = list(there)
    for number in range(count):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(saves_per_second(there[name], threads, round_s))
    print(f"\n{threads} threads, saves a second of all of them; the longest that one save took")
    rates = {name: median(rate for rate, _ in each) for name, each in found.items()}
    for name, each in found.items():
        low, high = min(rate for rate, _ in each), max(rate for rate, _ in each)
        longest_ms = median(most for _, most in each) * 1e3
        spread = f"({low:,.0f} .. {high:,.0f})"
        print(f"  {name:<12} {rates[name]:>10,.0f}   {spread:<20} {longest_ms:>8.1f} ms")
        report.figures.append({"threads": threads, "of": name, "saves_per_s, longest_s": each})
    ours = rates.pop(Kvsage.name)
    best = max(rates, key=rates.__getitem__)
    what = f"kvsage / {best}, the best of the others"
    if threads in TARGETS:
        report.verdict(what, ours / rates[best], TARGETS[threads], at_most=False)
    else:
        report.figure(what, ours / rates[best])


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="for each number of threads")
    parser.add_argument("--round-s", type=float, default=0.5, help="seconds of each")
    parser.add_argument("--dir", type=Path, default=Path(), help="where the stores go")
    parser.add_argument("--json", type=Path, help="keep every figure there")
    arguments = parser.parse_args()
    report = Report()
    with workplace(arguments.dir) as base:
        facts = machine(base)
        for name, fact in facts.items():
            print(f"{name:<14} {fact}")
        with opened(base, PEERS, full=True) as stores:
            for threads in THREADS:
                measure(report, stores, threads, arguments.rounds, arguments.round_s)
    report.finish(facts, arguments.json, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
