"""Print the worked example of docs/format.md: a store of three commits, every byte explained.

    python tools/format_example.py

The store is a real one, made in a temporary directory by the engine. Only what would differ from
run to run is fixed: the clock, and the random numbers. The bytes are explained by
``inspect_segment``, which knows the format from the document alone.
"""

import itertools
import secrets
import tempfile
from pathlib import Path
from unittest import mock

from inspect_segment import Report, inspect_store

from kvsage import LMDBStore
from kvsage.engine import preparing
from kvsage.engine.cutting import sizes_for

NOW_S = 1_767_225_600.0  # the first second of 2026
# So that a small value is a tree.
SIZES = sizes_for(0)._replace(least=32, spread=32, most=256, whole=128, literal_most=31)
RANDOM_BYTES = bytes.fromhex("00112233445566778899aabbccddeeff")
RANDOM_BITS = (0x1111111111111111, 0x2222222222222222, 0x3333333333333333)


def make(path: Path) -> None:
    """The store of the example, closed clean."""
    bits = itertools.cycle(RANDOM_BITS)
    with (
        mock.patch.object(secrets, "token_bytes", lambda count: RANDOM_BYTES[:count]),
        mock.patch.object(secrets, "randbits", lambda count: next(bits) % (1 << count)),
        mock.patch.object(preparing, "sizes_for", return_value=SIZES),
        LMDBStore(path, clock=lambda: NOW_S, content_bytes_min=64) as store,
    ):
        store.save("greeting", "hello", ttl=60)
        with store.transaction() as tx:
            tx.delete("greeting")
            tx.save("table", bytes(range(64)))
        rows = [bytes(range(row, row + 70)) for row in (0, 100)]
        store.save("rows", [rows[0], [rows[1], rows[1]], "done"])


def main() -> None:
    """Make it and explain it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "store")
        make(path)
        report = Report(with_bytes=True)
        inspect_store(path, report)
    print("\n".join(report.lines).rstrip())


if __name__ == "__main__":
    main()
