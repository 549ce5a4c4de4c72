"""What runs in a process of its own beside what is measured: it looks, loads, or follows."""

from __future__ import annotations

import multiprocessing
import os
import random
from array import array
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any, Self

from msgpack import packb, unpackb

from kvsage import LMDBStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

LOOK_S = 0.02
LOOKS = 64  # loads between two looks at the pipe
ANSWER_S = 120.0


class Beside:
    """A process that runs ``function(pipe, *arguments)``; it says once that it is ready."""

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=function, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        self.told()

    def tell(self, what: str) -> None:
        """Say something to it."""
        self._pipe.send(what)

    def told(self) -> Any:
        """What it says next.

        Raises:
            TimeoutError: nothing for long.
            EOFError: it is gone.
        """
        if not self._pipe.poll(ANSWER_S):
            raise TimeoutError("the process beside says nothing")
        return self._pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(ANSWER_S)


def sample_directory(pipe: Connection, path: Path) -> None:
    """Sum up the files of a directory every 20 ms; at the end tell all the sums."""
    sums = array("Q")
    pipe.send("ready")
    while not pipe.poll(LOOK_S):
        sums.append(directory_bytes(path))
    pipe.recv()
    pipe.send(sums)


def directory_bytes(path: Path) -> int:
    """Bytes of all files of a directory, the room made for what comes included."""
    total = 0
    with os.scandir(path) as files:
        for file in files:
            try:
                total += file.stat().st_size
            except FileNotFoundError:
                continue  # removed meanwhile
    return total


def load_on_demand(pipe: Connection, path: Path, keys: Sequence[str]) -> None:
    """Load at random from being told to begin until being told to end; tell how long each took."""
    with LMDBStore(path, durability="relaxed", upkeep_interval=float("inf")) as store:
        order = random.Random(5)  # noqa: S311  # the same in every run
        pipe.send("ready")
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            took = array("d")
            while not pipe.poll():
                load_some(store, order.choices(keys, k=LOOKS), took)
            pipe.recv()
            pipe.send(took)


def load_some(store: LMDBStore, keys: Sequence[str], took: array[float]) -> None:
    """Load each of the keys and note how long it took."""
    load, append = store.load, took.append
    for key in keys:
        begun = perf_counter()
        load(key)
        append(perf_counter() - begun)


def follow(pipe: Connection, path: Path, count: int) -> None:
    """Receive ``count`` changes whose values are the times of saving; tell the delays, in ns."""
    delays = array("q")
    with LMDBStore(path, upkeep_interval=float("inf")) as store:
        since = store.position()
        with store.changes(since=since, follow=True, timeout=ANSWER_S) as changes:
            pipe.send("ready")
            for change in changes:
                now = perf_counter_ns()
                delays.append(now - change.value)
                if len(delays) == count:
                    break
    pipe.send(delays)


def load_anew(pipe: Connection, path: Path, keys: Sequence[str]) -> None:
    """Load keys in a process that has loaded nothing yet, once told to.

    Tells how long each took, and how long unpacking alone of the same values then took.
    """
    with LMDBStore(path, durability="relaxed", upkeep_interval=float("inf")) as store:
        pipe.send("ready")
        pipe.recv()
        loads, unpacks = array("d"), array("d")
        load_some(store, keys, loads)
        for key in keys:
            packed = packb(store.load(key))
            begun = perf_counter()
            unpackb(packed)
            unpacks.append(perf_counter() - begun)
        pipe.send((loads, unpacks))
