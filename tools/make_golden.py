"""Make the golden store of the present format: what every later kvsage must be able to read.

    python tools/make_golden.py tests/format/golden

Writes ``<format>/`` (``KVSAGE``, the log and a checkpoint, nothing else) and ``<format>.json``
(what is in it). A golden store is made once, when its format is new, and never again: made anew it
would only prove that a kvsage reads what it writes itself. Clock and random numbers are fixed.
"""

import argparse
import json
import math
import random
import secrets
import shutil
import tempfile
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath
from unittest import mock
from uuid import UUID

import msgpack
from xxhash import xxh3_128_digest

from kvsage import LMDBStore, Serializer
from kvsage.engine import compaction, cutting
from kvsage.engine.content import deflate_tree
from kvsage.engine.pace import UNPACED
from kvsage.fs import POSIX
from kvsage.log import format as fmt
from kvsage.log.reader import SegmentReader
from kvsage.log.segment import inspect, segment_path

NOW_S = 1_767_225_600.0  # the first second of 2026
TEXT = "What an agent must not forget, it writes down; what it wrote down, it finds again. " * 10
NOISE = b"".join(map(xxh3_128_digest, map(bytes, range(20))))  # compresses to no less
OPTIONS = {"clock": lambda: NOW_S, "content_bytes_min": 256, "upkeep_interval": math.inf}

# What is larger than that by so much that it becomes a tree.
WORDS = (
    "store",
    "keeps",
    "what",
    "agents",
    "learn",
    "says",
    "where",
    "each",
    "piece",
    "is",
    "found",
)
LINES = [
    " ".join(WORDS[place * step % len(WORDS)] for place in range(3, 15)) + f", {step}"
    for step in range(1, 120)
]
CHAT = [{"role": ("user", "agent")[turn % 2], "says": line} for turn, line in enumerate(LINES)]
LONG_TEXT = "\n".join(LINES)
LONG_NOISE = b"".join(map(xxh3_128_digest, map(bytes, range(300))))
NESTED = {"lines": LINES, "of": {"chat": CHAT[:30], "text": LONG_TEXT[:4500]}}
BY_HAND = [line.upper() for line in LINES[:27]]

VALUES = {
    "none": None,
    "true": True,
    "int": -7,
    "int/64": (1 << 64) - 1,
    "int/huge": 1 << 100,
    "float": 0.1,
    "text": "grün",
    "text/empty": "",
    "bytes": bytes(range(256))[::16],
    "list": [1, [2, [3]]],
    "dict": {"a": 1, "nested": {"b": None}},
    "extended/datetime": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    "extended/date": date(2026, 1, 2),
    "extended/timedelta": timedelta(days=1, microseconds=1),
    "extended/uuid": UUID(int=0x00112233445566778899AABBCCDDEEFF),
    "extended/decimal": Decimal("1.10"),
    "extended/set": {1},
    "extended/frozenset": frozenset({"a"}),
    "extended/tuple": (1, "two"),
    "extended/complex": 1 - 2j,
    "extended/path": Path("/a/b"),
    "extended/purepath": PurePosixPath("/a/b"),
    "key/\u00fc\u20ac\U0001f600": "keys are UTF-8",
    "k" * 480: "as long as a key can be",
}


def make(store_path: Path) -> None:
    """The store. Its first segment is compacted; the second begins where an index was lost.

    The checkpoint is older than the compaction, so whoever begins from it also reads the copy. The
    file that was compacted is still there, and does not count.
    """
    with LMDBStore(store_path, **OPTIONS) as store:
        store.save_many(VALUES)
        for name in ("deleted", "expired", "evicted", "comes back", "replaced"):
            store.save(name, "older")
        make_contents(store)
        make_trees(store)
        store.save("expiring", "within the hour", ttl=3600)
        store.save("replaced", "newer")
        store.delete("deleted")
        store.delete("comes back")
    with LMDBStore(store_path, format="pickle", **OPTIONS) as store:
        store.save("pickle", {"a": (1, 2)})
    append_what_the_engine_does_not_write(store_path)
    shutil.rmtree(store_path / "index")
    (store_path / "INDEX").unlink()
    with LMDBStore(store_path, **OPTIONS) as store:
        store.save("comes back", "newest")
        store.save("second segment", TEXT)
        store.delete("list")
        store.append("tree/grown", "one more behind a rebuild")
        with store.transaction() as tx:
            tx.touch("expiring", 7200)
            tx.delete("content/noise")
        engine = store._engine  # noqa: SLF001  # compacts this file alone
        engine.upkeep.checkpoint()
        compaction.compact_files(engine, [1], UNPACED)
        store.save("after compaction", 1)


def make_contents(store: LMDBStore) -> None:
    """Values that are contents, whole."""
    store.save("content", TEXT)
    store.save("content/again", TEXT)
    store.save("content/noise", NOISE)
    store.save("content/packed", {"text": TEXT[:400]})
    store.content.put(TEXT + "put")


def make_trees(store: LMDBStore) -> None:
    """Values that are trees: two that share almost everything, and some that have changed since.

    What they held before lies in packs, beside pieces that are still there.
    """
    store.save("tree/chat", CHAT)
    store.save("tree/chat/edited", [*CHAT[:50], {"role": "agent", "says": "now"}, *CHAT[50:]])
    store.save("tree/text", LONG_TEXT)
    store.save("tree/noise", LONG_NOISE)
    store.save("tree/numbers", list(range(900)))
    store.save("tree/nested", {"before": LINES[::-1][:60], **NESTED})
    store.save("tree/nested", NESTED)
    store.save("tree/lists", [*LINES[:20], LINES[:50], "between them", LINES[50:]])
    store.save("tree/grown", LINES[:30])
    store.extend("tree/grown", LINES[30:60])
    store.save("tree/expiring", LONG_TEXT[4000:], ttl=3600)
    store.save("tree/gone", LINES[90:])
    store.delete("tree/gone")


def tree_by_hand() -> list[tuple[int, int, bytes, bytes]]:
    """Kind, flags, key and value of entries that bring a tree of other cuts and groups.

    A list of texts: sixteen of them, each a leaf, in three levels of nodes with two items each, and
    the rest as a literal that is compressed.
    """
    entries = []
    items = []
    for line in BY_HAND[:16]:
        raw = msgpack.packb(line)
        key = fmt.CONTENT_KEY.pack(xxh3_128_digest(raw), 0)
        entries.append((fmt.CONTENT, fmt.STORED_RAW, key, fmt.CONTENT_HEAD.pack(len(raw)) + raw))
        items.append(fmt.TreeItem(key, len(raw), 1, 0, b""))
    for level in (1, 2, 3):
        pairs = zip(items[::2], items[1::2], strict=True)
        items = []
        for pair in pairs:
            value = fmt.encode_tree(pair)
            key = fmt.CONTENT_KEY.pack(xxh3_128_digest(value, 1), fmt.NODE_NUMBER)
            entries.append((fmt.NODE, 0, key, value))
            length, elements = (sum(item[field] for item in pair) for field in (1, 2))
            items.append(fmt.TreeItem(key, length, elements, level, b""))
    header = fmt.TreeItem(b"", 3, 0, 0, b"\xdc\x00" + bytes((len(BY_HAND),)))
    tail = b"".join(map(msgpack.packb, BY_HAND[16:]))
    rest = fmt.TreeItem(b"", len(tail), len(BY_HAND[16:]), 0, tail)
    root = deflate_tree(fmt.encode_tree([header, *items, rest]), 3)
    return [*entries, (fmt.PUT, fmt.MSGPACK | fmt.IS_TREE, b"tree/by hand", root)]


def append_what_the_engine_does_not_write(store_path: Path) -> None:
    """One batch of entries that format 1 has and that take more than a store to come about."""
    identity = fmt.decode_identity((store_path / "KVSAGE").read_bytes())
    path = segment_path(store_path / "log", 1)
    file = inspect(POSIX, 1, path, identity.uuid)
    fd = POSIX.open(path, write=True)
    reader = SegmentReader(POSIX, fd, 1, identity.salt)
    *_, last = reader.batches(file.start, file.chain, 0)
    seq = last.header.seq + 1
    json_value = b'{"a": [1, 2.5, null, "gr\xc3\xbcn"]}'
    entries = [
        fmt.LogEntry(seq, 0, fmt.PUT, fmt.JSON, b"json", json_value),
        fmt.LogEntry(seq, 0, fmt.DELETE, fmt.EXPIRED, b"expired", b""),
        fmt.LogEntry(seq, 0, fmt.DELETE, fmt.EVICTED, b"evicted", b""),
        *(fmt.LogEntry(seq, 0, *entry) for entry in tree_by_hand()),
    ]
    body = b"".join(map(fmt.encode_entry, entries))
    flushed = last.header.seq
    header = fmt.BatchHeader(
        0, len(entries), 0, seq, flushed, int(NOW_S * 1000), last.header.checksum
    )
    _, head, rest = fmt.encode_batch(header, body, fmt.place(identity.salt, 1, last.end))
    POSIX.write(fd, [head, rest], last.end)  # over the end mark, as a commit does
    POSIX.close(fd)


def describe(store: LMDBStore) -> dict[str, object]:
    """What the store holds, as JSON can say it."""
    entries = {}
    for key, value in store.items():
        entry = store.entry(key)
        entries[key] = {
            "value": json.loads(Serializer.serialize(value)),
            "version": entry.version,
            "expires_at": entry.expires_at and entry.expires_at.isoformat(),
            "size": entry.size,
            "stored_size": entry.stored_size,
        }
    address = store.content.put(TEXT + "put")
    contents = {address: store.content.get(address).decode()}
    commits, batches = store.stats().commits, store.verify().batches
    return {
        "now": NOW_S,
        "commits": commits,
        "batches": batches,
        "keys": entries,
        "contents": contents,
    }


def readable(description: dict[str, object]) -> str:
    """JSON with a line for each key of the store."""
    keys = description["keys"]
    assert isinstance(keys, dict)
    rest = json.dumps({**description, "keys": None}, indent=1, sort_keys=True)
    lines = [
        f"  {json.dumps(key)}: {json.dumps(entry, sort_keys=True)}"
        for key, entry in sorted(keys.items())
    ]
    return rest.replace("null", "{\n" + ",\n".join(lines) + "\n }", 1) + "\n"


def main() -> None:
    """Make it, and write down what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", type=Path, help="the directory of golden stores")
    target = parser.parse_args().target / str(fmt.FORMAT)
    numbers = random.Random(1)  # noqa: S311  # the same each time, and that is all
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(secrets, "token_bytes", numbers.randbytes),
        mock.patch.object(secrets, "randbits", numbers.getrandbits),
        mock.patch.object(cutting, "PIECE_UNIT_LEAST", 64),  # so that small values are trees
    ):
        made = Path(directory, "store")
        make(made)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        shutil.copy(made / "KVSAGE", target)
        shutil.copy(made / "index.checkpoint", target)
        shutil.copytree(made / "log", target / "log")
        with LMDBStore(made, format="pickle", **OPTIONS) as store:
            description = describe(store)
    target.with_suffix(".json").write_text(readable(description), encoding="ascii")


if __name__ == "__main__":
    main()
