"""A chat that is saved whole after each step: what that costs, beside packing the same value."""

from __future__ import annotations

import gc
import random
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from beside import Beside, load_anew
from msgpack import packb, unpackb
from workloads import checkpoint, conversation, library

from kvsage import LMDBStore

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from pathlib import Path

    from harness import Report

TURNS = 400
CHAT_BYTES = 900_000
DISK_MB = 5

Messages = list[dict[str, str]]
Times = dict[str, list[float]]


def said() -> Messages:
    """All messages of the chat, four a turn."""
    return conversation(library(CHAT_BYTES), TURNS)


def thread(number: int) -> str:
    """The key of one checkpoint."""
    return f"thread-1/checkpoint-{number:06d}"


# -- the rows -------------------------------------------------------------------------------------


def chat(report: Report, base: Path, asked: Namespace) -> None:
    """A checkpoint after each step, whole and under its own key."""
    path, messages = base / "chat", said()
    print(f"\n{len(messages):,} checkpoints of a chat, each whole under its own key")
    with LMDBStore(path, durability="relaxed") as store:
        save_each(report, store, messages, thread)
        load_at_random(report, store, messages, asked.loads)
    on_disk(report, path, "closed", DISK_MB)
    load_in_fresh_processes(report, path, messages, asked)
    with LMDBStore(path, durability="relaxed") as store:
        stats = store.stats()
        report.figure("contents", stats.contents)
        report.figure("nodes", stats.content_nodes)
        compact(report, store)
    on_disk(report, path, "compacted", DISK_MB)


def one_key(report: Report, base: Path, _: Namespace) -> None:
    """The same chat, each checkpoint over the one before."""
    path, messages = base / "one-key", said()
    print(f"\n{len(messages):,} checkpoints of a chat, each over the one before")
    with LMDBStore(path, durability="relaxed") as store:
        save_each(report, store, messages, lambda _: "thread-1")
    on_disk(report, path, "closed", None)
    with LMDBStore(path, durability="relaxed") as store:
        compact(report, store)
        whole = store.load("thread-1") == checkpoint(messages, len(messages))
        report.verdict("the last one is there, whole", whole, (1,), at_most=False)
    on_disk(report, path, "compacted", None)


# -- their parts ----------------------------------------------------------------------------------


def timed(run: Callable[[], object]) -> float:
    """Seconds that it took."""
    begun = perf_counter()
    run()
    return perf_counter() - begun


def save_each(
    report: Report, store: LMDBStore, messages: Messages, key: Callable[[int], str]
) -> None:
    """Save every checkpoint, and pack each beside it; the two take turns in going first."""
    times: Times = {"packb": [], "kvsage save": []}
    packed_bytes = 0
    gc.collect()
    gc.freeze()
    for number in range(1, len(messages) + 1):
        value, name = checkpoint(messages[:number], number), key(number)
        packed_bytes += len(packb(value))
        runs = {"packb": partial(packb, value), "kvsage save": partial(store.save, name, value)}
        for what in sorted(runs, reverse=number % 2 == 0):
            times[what].append(timed(runs[what]))
    report.figure("all values, packed", packed_bytes / 1e6, " MB")
    beside(report, "a save beside packing the value", times, (4,))


def load_at_random(report: Report, store: LMDBStore, messages: Messages, count: int) -> None:
    """Load checkpoints, and unpack each beside it."""
    times: Times = {"unpackb": [], "kvsage load": []}
    for number in picked(messages, count):
        packed, name = packb(checkpoint(messages[:number], number)), thread(number)
        runs = {"unpackb": partial(unpackb, packed), "kvsage load": partial(store.load, name)}
        for what in sorted(runs, reverse=number % 2 == 0):
            times[what].append(timed(runs[what]))
    what = "a load beside unpacking the value, checkpoints at random, in the process that saved"
    beside(report, what, times, (2,))


def picked(messages: Messages, count: int) -> list[int]:
    """Checkpoints at random, by number."""
    order = random.Random(3)  # noqa: S311  # the same in every run
    return order.choices(range(1, len(messages) + 1), k=count)


def beside(report: Report, work: str, times: Times, limits: tuple[float, ...]) -> None:
    """What kvsage took, and what MessagePack alone did for the same values."""
    alone, whole = times
    report.times(work, times, "ms")
    if limits:
        report.ratio(whole, alone, times, limits)
    else:
        report.figure(f"{whole} / {alone}", median(times[whole]) / median(times[alone]))
    report.figure("all of them / all of them", sum(times[whole]) / sum(times[alone]))


def load_in_fresh_processes(
    report: Report, path: Path, messages: Messages, asked: Namespace
) -> None:
    """The last checkpoint and then others, in processes that have loaded nothing yet."""
    keys = [thread(number) for number in (len(messages), *picked(messages, asked.loads))]
    first: Times = {"unpackb": [], "kvsage load": []}
    later: Times = {"unpackb": [], "kvsage load": []}
    for _ in range(asked.processes):
        with Beside(load_anew, path, keys) as process:
            process.tell("begin")
            loads, unpacks = process.told()
        for name, took in (("unpackb", unpacks), ("kvsage load", loads)):
            first[name].append(took[0])
            later[name] += took[1:]
    beside(report, "the first load of a fresh process, the last checkpoint", first, ())
    beside(report, "its other loads, at random", later, ())


def compact(report: Report, store: LMDBStore) -> None:
    """Compact all that has garbage, and say what is left."""
    begun = perf_counter()
    done = store.compact()
    report.figure("compact() took", (perf_counter() - begun) * 1e3, " ms")
    report.figure("log before", done.bytes_before / 1e6, " MB")
    report.figure("log after", done.bytes_after / 1e6, " MB")


def on_disk(report: Report, path: Path, when: str, most_mb: float | None) -> None:
    """What the files of a closed store take."""
    log, index, everything = (
        sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / 1e6
        for place in (path / "log", path / "index", path)
    )
    report.figure(f"log, {when}", log, " MB")
    report.figure(f"index, {when}", index, " MB")
    if most_mb is None:
        report.figure(f"all files, {when}", everything, " MB")
    else:
        report.verdict(f"all files, {when}", everything, (most_mb,), at_most=True, unit=" MB")
