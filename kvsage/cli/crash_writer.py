"""The process that the demo kills: it writes, and tells a pipe what has been acknowledged.

    python -m kvsage.cli.crash_writer PATH

A line ``>7`` says that write 7 begins, ``<7`` that the store has acknowledged it. Each line is
one write to the pipe, nothing is buffered: what the reader finds is never more than what happened.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys

from kvsage.stores.embedded import LMDBStore

LARGE_EVERY = 16
LARGE_BYTES = 1 << 20
"""Now and then a write that takes long enough to be hit in its middle."""


def key_of(number: int) -> str:
    """The key of a write."""
    return f"writer/{number:08}"


def payload(number: int) -> str:
    """The value of a write, which whoever knows its number can check."""
    size = LARGE_BYTES if number % LARGE_EVERY == 0 else 100 + number * 7919 % 12_000
    return hashlib.shake_128(str(number).encode()).hexdigest(size // 2)


def main() -> None:
    """Write until killed, or until nobody listens any more."""
    out = sys.stdout.fileno()
    with LMDBStore(sys.argv[1], durability="full") as store:
        for number in itertools.count(1):
            value = payload(number)
            os.write(out, b">%d\n" % number)
            store.save(key_of(number), value)
            os.write(out, b"<%d\n" % number)


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)
