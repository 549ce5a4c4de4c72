"""How the pieces of large values are best compressed: alone, with a dictionary, or together.

zstd at level 3, over the pieces that cutting gives. A dictionary is trained on the pieces of one
half of the values and used on those of the other half. Bytes are shares of what was compressed;
times are CPU time of this process, the least of a few rounds.
"""

from __future__ import annotations

import argparse
import itertools
from time import process_time
from typing import TYPE_CHECKING, Any, NamedTuple

import zstandard
from msgpack import packb
from workloads import conversation, library, log_records

from kvsage.engine.cutting import cut, sizes_for
from kvsage.log.format import MSGPACK, STR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LEVEL = 3
VALUES = 8
VALUE_BYTES = 900_000
TURNS = 400
LOG_RECORDS = 4500
DICTIONARIES_KIB = (16, 64, 112)
PACKS_KIB = (16, 32, 64, 128, 256)
SIZES = sizes_for(4096)


class Way(NamedTuple):
    """One way to compress: what each frame holds, and the dictionary."""

    name: str
    frames: Sequence[bytes]
    dictionary: zstandard.ZstdCompressionDict | None = None


def pieces_of(codec: int, data: bytes) -> Iterator[bytes]:
    """The pieces of a value that would be contents."""
    rest = list(reversed(cut(codec, data, SIZES) or []))
    while rest:
        part = rest.pop()
        if part.parts is not None:
            rest += reversed(part.parts)
        elif not part.is_literal:
            yield data[part.start : part.end]


def packed(pieces: Sequence[bytes], kib: int) -> list[bytes]:
    """Neighbouring pieces joined, up to a size."""
    packs, one = [], b""
    for piece in pieces:
        if one and len(one) + len(piece) > kib << 10:
            packs.append(one)
            one = b""
        one += piece
    return [*packs, one] if one else packs


def corpora() -> Iterator[tuple[str, list[list[bytes]], list[bytes]]]:
    """Name, pieces by value, and what is measured whole."""
    text = library(VALUES * VALUE_BYTES)
    cuts = [text[at : at + VALUE_BYTES] for at in range(0, len(text), VALUE_BYTES)]
    talks = [packb(conversation(one, TURNS, n)) for n, one in enumerate(cuts)]
    yield "conversations", [list(pieces_of(MSGPACK, one)) for one in talks], talks
    code = [one.encode() for one in cuts]
    yield "code, as one text", [list(pieces_of(STR, one)) for one in code], code
    records = log_records(VALUES * LOG_RECORDS)
    logs = [packb(records[n * LOG_RECORDS : (n + 1) * LOG_RECORDS]) for n in range(VALUES)]
    yield "log records", [list(pieces_of(MSGPACK, one)) for one in logs], logs


def steps() -> tuple[list[bytes], list[bytes]]:
    """What single saves of a growing conversation bring: new pieces, joined, and what they say.

    The first list is to be trained on, from another conversation.
    """
    text = library(2 * VALUE_BYTES)
    both = []
    for number in range(2):
        talk = conversation(text[number * VALUE_BYTES : (number + 1) * VALUE_BYTES], TURNS, number)
        known: set[bytes] = set()
        brought = []
        for count in range(1, len(talk) + 1, 4):
            new = [one for one in pieces_of(MSGPACK, packb(talk[:count])) if one not in known]
            known.update(new)
            brought += [b"".join(new)] if new else []
        both.append(brought)
    return both[0], both[1]


def ways(pieces: list[list[bytes]], values: list[bytes]) -> Iterator[Way]:
    """All that are compared, on the second half of the values."""
    half = len(values) // 2
    known = list(itertools.chain.from_iterable(pieces[:half]))
    measured = list(itertools.chain.from_iterable(pieces[half:]))
    trained = {kib: zstandard.train_dictionary(kib << 10, known) for kib in DICTIONARIES_KIB}
    yield Way("each alone", measured)
    for kib, dictionary in trained.items():
        yield Way(f"each alone, dictionary of {kib} KiB", measured, dictionary)
    for kib in PACKS_KIB:
        yield Way(f"together up to {kib} KiB", packed(measured, kib))
    yield Way("together up to 256 KiB, dictionary of 64 KiB", packed(measured, 256), trained[64])
    yield Way("each value in one frame", values[half:])


def measure(way: Way, rounds: int) -> tuple[int, int, float, float]:
    """Bytes before and after, and seconds to compress and to decompress all of it."""
    options: dict[str, Any] = {}
    if way.dictionary is not None:
        way.dictionary.precompute_compress(level=LEVEL)
        options = {"dict_data": way.dictionary}
    compressor = zstandard.ZstdCompressor(level=LEVEL, **options)
    decompressor = zstandard.ZstdDecompressor(**options)
    frames = [compressor.compress(one) for one in way.frames]
    return (
        sum(map(len, way.frames)),
        sum(map(len, frames)),
        least(rounds, lambda: [compressor.compress(one) for one in way.frames]),
        least(rounds, lambda: [decompressor.decompress(one) for one in frames]),
    )


def least(rounds: int, run: Callable[[], object]) -> float:
    """CPU seconds of the quickest round."""
    took = []
    for _ in range(rounds):
        begun = process_time()
        run()
        took.append(process_time() - begun)
    return min(took)


def show(title: str, compared: Iterator[Way], rounds: int) -> None:
    """A table of them."""
    print(f"\n{title}\n")
    print("| frames | how many | bytes | compress | decompress |")
    print("|---|---|---|---|---|")
    for way in compared:
        before, after, packing, unpacking = measure(way, rounds)
        cells = (
            way.name,
            f"{len(way.frames):,}",
            f"{after / before:.1%}",
            f"{packing / before * 1e9:.1f} ms/MB",
            f"{unpacking / before * 1e9:.1f} ms/MB",
        )
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (5)")
    rounds = parser.parse_args().rounds
    for name, pieces, values in corpora():
        measured = [len(one) for some in pieces[len(values) // 2 :] for one in some]
        size = sum(measured) // len(measured)
        show(
            f"{name}: {len(measured):,} pieces of {size:,} B on average",
            ways(pieces, values),
            rounds,
        )
    known, brought = steps()
    alone = Way("each alone", brought)
    trained = [
        Way(
            f"each alone, dictionary of {kib} KiB",
            brought,
            zstandard.train_dictionary(kib << 10, known),
        )
        for kib in DICTIONARIES_KIB
    ]
    size = sum(map(len, brought)) // len(brought)
    title = (
        f"what saves of a growing conversation bring: {len(brought):,} times {size:,} B on average"
    )
    show(title, iter([alone, *trained]), rounds)


if __name__ == "__main__":
    main()
