"""Large values as trees of content: what a save costs, of almost the same and of something new.

A chat is saved whole after each step, values are saved that never repeat, a conversation is edited
in the middle, and a long list grows at its end. Every row is printed with its target where it has
one. Targets that are missed are said plainly and fail nothing. All of it takes under a minute;
--only picks rows, --quick takes fewer rounds.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import chat
from harness import Report, machine, rounds, workplace
from msgpack import packb
from workloads import conversation, library, log_records, message, sources

from kvsage import LMDBStore
from kvsage.engine import preparing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZES = {"1 MB": (1_000_000, 1), "100 kB": (100_000, 5), "20 kB": (20_000, 20)}  # how many a round
TURN_BYTES = 2250  # of a conversation
LOG_BYTES = 220  # of a record
EDITED_BYTES = 900_000
LIST_LENGTH = 10_000
MESSAGE_BYTES = 300
GROUP = 20  # appends or saves a round
SLICE = 20

cut = preparing.cut


# -- values that never repeat ---------------------------------------------------------------------


def files(size: int, _: int) -> Iterator[Any]:
    """Lists of whole files, each a message."""
    order = random.Random(5)  # noqa: S311  # the same in every run
    value: list[dict[str, str]] = []
    length = 0
    for number, (_, text) in enumerate(sources()):
        value.append(message(text, number, order))
        length += len(text)
        if length >= size:
            yield value
            value, length = [], 0


def messages(size: int, count: int) -> Iterator[Any]:
    """Conversations."""
    for number, text in enumerate(texts(size, count)):
        yield conversation(text, max(1, size // TURN_BYTES), number)


def logs(size: int, count: int) -> Iterator[Any]:
    """Lists of records of a log."""
    each = size // LOG_BYTES
    records = log_records(each * count)
    for number in range(count):
        yield records[number * each : (number + 1) * each]


def texts(size: int, count: int) -> Iterator[str]:
    """Texts."""
    text = library(size * count)
    for number in range(count):
        yield text[number * size : (number + 1) * size]


def noise(size: int, count: int) -> Iterator[bytes]:
    """Bytes that do not compress."""
    order = random.Random(6)  # noqa: S311  # the same in every run
    for _ in range(count):
        yield order.randbytes(size)


KINDS: dict[str, Callable[[int, int], Iterator[Any]]] = {
    "a list of whole files": files,
    "a list of messages": messages,
    "a list of log records": logs,
    "one text": texts,
    "random bytes": noise,
}
TREE, WHOLE = "kvsage save", "the same, stored whole"


def never(report: Report, base: Path, asked: argparse.Namespace) -> None:
    """Values of which nothing is there already: as trees, and whole."""
    for kind, make in KINDS.items():
        for name, (size, group) in SIZES.items():
            count = group * (asked.rounds + 1)
            values = list(islice(make(size, count), count))
            stores = {
                each: LMDBStore(base / f"never-{kind}-{size}-{each}", durability="relaxed")
                for each in (TREE, WHOLE)
            }
            subjects = {each: partial(saves, stores, values, group, each) for each in stores}
            try:
                times = rounds(asked.rounds, group, subjects)
                stats = {each: store.stats() for each, store in stores.items()}
            finally:
                preparing.cut = cut
                for store in stores.values():
                    store.close()
            report.times(f"save, relaxed, of what is not there: {kind}, {name}", times, "ms")
            report.ratio(TREE, WHOLE, times, (1.2,))
            log = [stats[each].log_bytes for each in (TREE, WHOLE)]
            index = [stats[each].index_bytes for each in (TREE, WHOLE)]
            report.verdict("bytes of log / those", log[0] / log[1], (1.1,), at_most=True)
            both = (log[0] + index[0]) / (log[1] + index[1])
            report.figure("bytes of log and index / those", both)


def saves(
    stores: dict[str, LMDBStore], values: list[Any], group: int, name: str, number: int
) -> Callable[[], object]:
    """The saves of one round into one of the stores, the one with trees or the one without."""
    preparing.cut = cut if name == TREE else lambda *_: None
    save = stores[name].save
    chosen = values[number * group : (number + 1) * group]
    pairs = [(f"{number}:{n}", value) for n, value in enumerate(chosen)]
    return lambda: [save(key, value) for key, value in pairs]


# -- edited ---------------------------------------------------------------------------------------


def edited(report: Report, base: Path, asked: argparse.Namespace) -> None:
    """A conversation, saved again and again under other keys with one message changed."""
    order = random.Random(7)  # noqa: S311  # the same in every run
    text = library(EDITED_BYTES * 2)
    talk = conversation(text[:EDITED_BYTES], EDITED_BYTES // TURN_BYTES)
    fresh = conversation(text[EDITED_BYTES:], EDITED_BYTES // TURN_BYTES, seed=2)
    print(f"\na conversation of {EDITED_BYTES:,} characters, {asked.edits} edits of each kind")
    with LMDBStore(base / "edited", durability="relaxed") as store:
        store.save("first", talk)
        for name, edit in EDITS.items():
            costs = []
            for number in range(asked.edits):
                at = order.randrange(len(talk))
                edit(talk, at, fresh.pop())
                costs.append(cost_of(store, f"{name}-{number}", talk))
            grown, contents, nodes, took, packed = zip(*costs, strict=True)
            report.figure(f"{name}: bytes of log, median", median(grown), " B")
            report.figure(f"{name}: at most", max(grown), " B")
            report.figure(f"{name}: new contents, mean", sum(contents) / len(contents))
            report.figure(f"{name}: at most", max(contents))
            report.figure(f"{name}: new nodes, mean", sum(nodes) / len(nodes))
            report.figure(f"{name}: save / packb", median(took) / median(packed))
        same = store.load(f"{name}-{asked.edits - 1}") == talk
        report.verdict("the last one is there, whole", same, (1,), at_most=False)


EDITS: dict[str, Callable[[list[Any], int, Any], object]] = {
    "insert": lambda talk, at, one: talk.insert(at, one),
    "delete": lambda talk, at, _: talk.pop(at),
    "replace": lambda talk, at, one: talk.__setitem__(at, one),
}


def cost_of(store: LMDBStore, key: str, value: Any) -> tuple[int, int, int, float, float]:
    """Bytes of log, contents and nodes that a save brings; seconds of it, and of packing alone."""
    before = store.stats()
    packed = chat.timed(partial(packb, value))
    took = chat.timed(partial(store.save, key, value))
    after = store.stats()
    return (
        after.log_bytes - before.log_bytes,
        after.contents - before.contents,
        after.content_nodes - before.content_nodes,
        took,
        packed,
    )


# -- a long list ----------------------------------------------------------------------------------


class LongList:
    """A list of messages in a store, and the same in memory. Each method prepares one round."""

    def __init__(self, store: LMDBStore) -> None:
        self._store = store
        self._order = random.Random(8)  # noqa: S311  # the same in every run
        self._text = library(8_000_000)
        self._number = 0
        self.items = self._messages(LIST_LENGTH)
        store.save("list", self.items)

    def _messages(self, count: int) -> list[dict[str, str]]:
        numbers = range(self._number, self._number + count)
        self._number += count
        size = MESSAGE_BYTES - len(packb(message("", 0, self._order))) - 2
        return [message(self._text[n * size : (n + 1) * size], n, self._order) for n in numbers]

    def save(self, _: int) -> Callable[[], object]:
        """Single records, each with a key of its own."""
        save, chosen = self._store.save, self._messages(GROUP)
        pairs = [(f"record:{n}", one) for n, one in enumerate(chosen, self._number)]
        return lambda: [save(key, one) for key, one in pairs]

    def append(self, _: int) -> Callable[[], object]:
        """As many messages to the end, one after the other."""
        append, chosen = self._store.append, self._messages(GROUP)
        self.items += chosen
        return lambda: [append("list", one) for one in chosen]

    def load_range(self, _: int) -> Callable[[], object]:
        """A few messages from anywhere."""
        load_range = self._store.load_range
        starts = [self._order.randrange(LIST_LENGTH) for _ in range(GROUP)]
        return lambda: [load_range("list", start, start + SLICE) for start in starts]

    def load_last(self, _: int) -> Callable[[], object]:
        """The last few."""
        load_range = self._store.load_range
        return lambda: [load_range("list", -SLICE) for _ in range(GROUP)]

    def load_all(self, _: int) -> Callable[[], object]:
        """All of it, as often."""
        load = self._store.load
        return lambda: [load("list") for _ in range(GROUP)]


def appended(report: Report, base: Path, asked: argparse.Namespace) -> None:
    """One message to the end of a long list, beside saving one small record."""
    for durability in ("relaxed", "full"):
        with LMDBStore(base / f"appended-{durability}", durability=durability) as store:
            long = LongList(store)
            before = store.stats().log_bytes
            subjects = {"kvsage append": long.append}
            rounds(1, GROUP, subjects)
            grown = (store.stats().log_bytes - before) / GROUP / 2
            subjects["a save of one such message"] = long.save
            times = rounds(asked.rounds, GROUP, subjects)
            work = f"{MESSAGE_BYTES} B to the end of {LIST_LENGTH:,} messages, {durability}"
            report.times(work, times)
            report.ratio(*times, times, (3,))
            report.figure("bytes of log an append", grown, " B")
            if durability == "relaxed":
                loads(report, long, asked)
            same = store.load("list") == long.items
            report.verdict("the list is there, whole", same, (1,), at_most=False)


def loads(report: Report, long: LongList, asked: argparse.Namespace) -> None:
    """A few messages of many, beside all of them."""
    subjects = {
        f"kvsage load_range of {SLICE}": long.load_range,
        f"kvsage load_range of the last {SLICE}": long.load_last,
        "load of all": long.load_all,
    }
    times = rounds(asked.rounds, GROUP, subjects)
    report.times(f"a part of {LIST_LENGTH:,} messages", times)
    few, _, everything = times
    report.figure("load of all / load_range", median(times[everything]) / median(times[few]))


# -- all of it ------------------------------------------------------------------------------------

ROWS: dict[str, Callable[[Report, Path, argparse.Namespace], None]] = {
    "chat": chat.chat,
    "one-key": chat.one_key,
    "never": never,
    "edited": edited,
    "append": appended,
}


def asked() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    option = parser.add_argument
    option("--dir", type=Path, default=Path(), help="where to put the stores (here)")
    option("--only", action="append", choices=ROWS, help="a row; may be given again")
    option("--quick", action="store_true", help="fewer rounds")
    option("--json", type=Path, help="also write every figure into this file")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.rounds = 5 if quick else 15
    arguments.loads = 100 if quick else 300
    arguments.edits = 20 if quick else 60
    arguments.processes = 1 if quick else 5
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
        print(f"Medians of {arguments.rounds} interleaved rounds, (least .. most).")
        begun = perf_counter()
        for name in arguments.only or ROWS:
            ROWS[name](report, base, arguments)
        print(f"\nAll of it took {perf_counter() - begun:.0f} s")
    report.finish(facts, arguments.json, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
