"""How measuring is done and shown: rounds in turn, the report with its verdicts, the machine."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from kvsage.fs.mounts import MOUNTS, filesystem_of

Subject = Callable[[int], Callable[[], object]]  # by round: prepare, and give what is to be timed


class Report:
    """Prints what was measured against its targets, and keeps it."""

    def __init__(self) -> None:
        self.figures: list[dict[str, Any]] = []
        self.missed = 0

    def times(self, work: str, times: dict[str, list[float]], unit: str = "us") -> None:
        """What one operation took each of them, in seconds, round by round."""
        scale = {"us": 1e6, "ms": 1e3}[unit]
        print(f"\n{work}")
        for name, each in times.items():
            if each:
                low, mid, high = (f"{x * scale:.2f}" for x in (min(each), median(each), max(each)))
                print(f"  {name:<46} {mid:>10} {unit}   ({low} .. {high})")
            else:
                print(f"  {name:<46}     absent")
            self.figures.append({"work": work, "of": name, "seconds": each})

    def ratio(
        self, upper: str, lower: str, times: dict[str, list[float]], limits: tuple[float, ...]
    ) -> None:
        """``upper`` over ``lower``: kvsage over a peer at most, a peer over kvsage at least."""
        if times[upper] and times[lower]:
            value = median(times[upper]) / median(times[lower])
            self.verdict(f"{upper} / {lower}", value, limits, at_most=upper.startswith("kvsage"))

    def verdict(
        self, what: str, value: float, limits: tuple[float, ...], *, at_most: bool, unit: str = ""
    ) -> None:
        """One figure against its target and, where there is one, its goal."""
        met = [value <= limit if at_most else value >= limit for limit in limits]
        word = "MISSED" if not met[0] else "met, goal too" if len(met) > 1 and met[1] else "met"
        self.missed += not met[0]
        target = f"{'at most' if at_most else 'at least'} {limits[0]:,g}{unit}"
        goal = f" (goal {limits[1]:,g})" if len(limits) > 1 else ""
        print(f"    {what:<58} {value:>10,.2f}{unit}   {target}{goal}: {word}")
        self.figures.append({"what": what, "value": value, "target": target + goal, "met": met})

    def figure(self, what: str, value: float, unit: str = "") -> None:
        """One figure that has no target."""
        print(f"    {what:<58} {value:>10,.2f}{unit}")
        self.figures.append({"what": what, "value": value, "unit": unit})

    def finish(self, facts: dict[str, str], path: Path | None, **asked: Any) -> None:
        """The sum of it, and a file with everything where one is wanted."""
        print(f"\n{self.missed} targets missed" if self.missed else "\nEvery target was met")
        if path is not None:
            kept = {"facts": facts, **asked, "figures": self.figures}
            path.write_text(json.dumps(kept, indent=1) + "\n")


def rounds(count: int, operations: int, subjects: dict[str, Subject]) -> dict[str, list[float]]:
    """Seconds an operation took, by subject and round; the first round only warms up."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    gc.collect()
    gc.freeze()  # the data at hand is no garbage that the timed loops should look through
    for number in range(count + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            run = subjects[name](number)
            begun = perf_counter()
            run()
            if number:
                times[name].append((perf_counter() - begun) / operations)
    return times


@contextlib.contextmanager
def workplace(directory: Path) -> Iterator[Path]:
    """A directory for the stores, which goes with them."""
    base = Path(tempfile.mkdtemp(prefix=".kvsage-bench-", dir=directory.resolve()))
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def machine(base: Path) -> dict[str, str]:
    """Where this was measured."""
    cpu = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), cpu)
    kind = ""
    with contextlib.suppress(OSError):
        kind = filesystem_of(base, MOUNTS.read_text(errors="surrogateescape"))
    facts = {
        "machine": f"{os.cpu_count()} x {cpu}, {platform.system()} {platform.release()}",
        "file system": kind or "unknown",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "load average": f"{os.getloadavg()[0]:.1f} (a busy machine says little)",
        "SQLite": sqlite3.sqlite_version,
    }
    for name in ("kvsage", "lmdb", "msgpack", "zstandard", "diskcache", "rocksdict", "plyvel"):
        facts[name] = "absent"
        if importlib.util.find_spec(name) is not None:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                facts[name] = "not installed, run from its tree"
                facts[name] = importlib.metadata.version(name)
    return facts
