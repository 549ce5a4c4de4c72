"""What a rebuild gathers from the log, and entries that cannot be though their batch checks."""

import shutil
from itertools import product

import pytest

from kvsage.engine import rebuild
from kvsage.engine.rebuild import Replay
from kvsage.errors import CorruptionError
from kvsage.fs.posix import POSIX
from kvsage.index.env import Index
from kvsage.index.keydir import CONTENT_ROOT, ROW, Row
from kvsage.log.format import (
    BATCH_BYTES,
    CONTENT,
    CONTENT_HEAD,
    DELETE,
    ENTRY,
    ENTRY_BYTES,
    IS_CONTENT,
    ORIGIN,
    ORIGINS,
    PUT,
    RETIRE,
    BatchHeader,
    FileKind,
    LogEntry,
    Retire,
    SegmentHeader,
    encode_batch,
    encode_entry,
    encode_retire,
    place,
)
from kvsage.log.reader import WINDOW_BYTES, SegmentReader
from kvsage.log.segment import LogFile, segment_path

SALT = 0x5EED
PAIRS = list(product(product((PUT, DELETE), (1, 2)), repeat=2))  # of entries: kind and seq
GOOD = encode_entry(LogEntry(1, 0, PUT, 0, b"good", b"\x01"))


def framed(kind, key, value=b"\x01"):
    return encode_entry(LogEntry(1, 0, kind, 0, key, value))


def claiming(entry, *, value=0, key=0):
    """The entry with other lengths in its header."""
    fields = list(ENTRY.unpack_from(entry))
    fields[3] += value
    fields[4] += key
    return ENTRY.pack(*fields) + entry[ENTRY_BYTES:]


def lose_index(path):
    shutil.rmtree(path / "index")
    (path / "INDEX").unlink()


def rewrite_only_batch(new_store, path, body, count):
    """Let the log's only batch hold ``body``, with a checksum that is right; where the body is."""
    with new_store() as store:
        store.save("k", 1)
        engine = store._engine
    file = segment_path(path / "log", 1)
    fd = POSIX.open(file, write=True)
    try:
        reader = SegmentReader(POSIX, fd, 1, engine.salt)
        (batch,) = reader.later_batches(0)
        header = batch.header._replace(entries=count)
        _, *parts = encode_batch(header, body, place(engine.salt, 1, batch.offset))
        POSIX.truncate(fd, batch.offset)
        POSIX.write(fd, parts, batch.offset)
    finally:
        POSIX.close(fd)
    lose_index(path)
    return batch.offset + BATCH_BYTES


def test_a_batch_that_was_rewritten_whole_is_taken(new_store, tmp_path):
    """So that the tests below are refused for the entries alone; a RETIRE has no key."""
    retire = framed(RETIRE, b"", encode_retire(Retire(0, 0, 0, (77,))))
    rewrite_only_batch(new_store, tmp_path / "store", GOOD + retire + framed(DELETE, b"gone"), 3)
    assert list(new_store().keys()) == ["good"]


@pytest.mark.parametrize(
    ("entry", "count", "at"),
    [
        (b"", 2, len(GOOD)),
        (b"", 0, 0),
        (GOOD[: ENTRY_BYTES - 1], 2, len(GOOD)),
        (GOOD[:-1], 2, len(GOOD)),
        (GOOD, 1, len(GOOD)),
        (claiming(GOOD, value=1), 2, len(GOOD)),
        (claiming(GOOD, value=-1), 2, 2 * len(GOOD) - 1),
        (claiming(GOOD, value=(1 << 32) - 2), 2, len(GOOD)),
        (claiming(GOOD, value=(1 << 32) - 2) + GOOD, 3, len(GOOD)),
        (claiming(GOOD, key=(1 << 16) - 5), 2, len(GOOD)),
        (framed(PUT, b""), 2, len(GOOD)),
        (framed(DELETE, b"", b""), 2, len(GOOD)),
        (framed(PUT, b"k" * 481), 2, len(GOOD)),
        (framed(CONTENT, b"", CONTENT_HEAD.pack(1)), 2, len(GOOD)),
        (framed(CONTENT, b"k" * 17, CONTENT_HEAD.pack(1)), 2, len(GOOD)),
        (framed(CONTENT, b"k" * 18, b"1234567"), 2, len(GOOD)),
        (framed(RETIRE, b"", bytes(16)), 2, len(GOOD)),
        (framed(RETIRE, b"", bytes(21)), 2, len(GOOD)),
        (encode_entry(LogEntry(1, 0, PUT, IS_CONTENT, b"k", bytes(25))), 2, len(GOOD)),
    ],
)
def test_impossible_entries_are_damage(new_store, tmp_path, entry, count, at):
    base = rewrite_only_batch(new_store, tmp_path / "store", GOOD + entry, count)
    with pytest.raises(CorruptionError, match="do not fill") as caught:
        new_store()
    assert (caught.value.segment, caught.value.offset) == (1, base + at)
    assert not (tmp_path / "store" / "index").exists()


def test_batches_across_the_windows_of_the_file(new_store, tmp_path):
    """Headers and entries across the end of a window, and a batch larger than one."""
    values = {f"k{number:03}": b"\xee" * (9973 + number) for number in range(250)}
    assert sum(map(len, values.values())) > 2 * WINDOW_BYTES
    with new_store(content_bytes_min=1 << 20) as store:
        for key, value in values.items():
            store.save(key, value)
        large = {f"m{number:03}": b"\xee" * 9000 for number in range(150)}
        assert sum(map(len, large.values())) > WINDOW_BYTES
        store.save_many(large)
        store.save("last", 1)
    lose_index(tmp_path / "store")
    store = new_store()
    assert {key: store.load(key) for key in store.keys()} == {**values, **large, "last": 1}  # noqa: SIM118
    assert store.verify(deep=True).problems == ()


def test_keys_that_are_gathered_in_many_parts(new_store, tmp_path, monkeypatch):
    """Overwritten, deleted and saved again, with contents and expiries, a few keys at a time."""
    expected = {}
    with new_store() as store:
        for number in range(300):
            key = f"k{number * 7 % 40}"
            if number % 3 == 0 and key in expected:
                store.delete(key)
                del expected[key]
            else:
                expected[key] = f"{number} " * (4000 if number % 5 == 0 else 1)
                store.save(key, expected[key], ttl=60 if number % 4 == 0 else None)
        address = store.content.put(b"held by its address " * 500)
    lose_index(tmp_path / "store")
    monkeypatch.setattr(rebuild, "CHUNK", 3)
    store = new_store()
    assert {key: store.load(key) for key in store.keys()} == expected  # noqa: SIM118
    assert store.content.get(address) == b"held by its address " * 500
    assert store.verify(deep=True).problems == ()


LEADING = encode_entry(LogEntry(0, 0, ORIGINS, 0, b"", ORIGIN.pack(0, 1)))


def write_copy(path, key, entries):
    """Batches of one entry each, their number its flags; where they end, and the last checksum."""
    chain, offset = 7, 0
    with path.open("wb") as file:
        for number, (kind, seq) in enumerate(entries, 1):
            body = LEADING + encode_entry(LogEntry(seq, 0, kind, number, key, b""))
            header = BatchHeader(0, 2, 0, number, 0, 0, chain)
            chain, *parts = encode_batch(header, body, place(SALT, 1, offset))
            offset += file.write(b"".join(parts))
    return offset, chain


@pytest.mark.parametrize("key", [b"k", CONTENT_ROOT + b"k" * 18], ids=["keydir", "system"])
@pytest.mark.parametrize("chunk", [100, 0], ids=["gathered at once", "one after the other"])
@pytest.mark.parametrize("entries", PAIRS, ids=str)
def test_the_highest_seq_wins_wherever_it_stands(tmp_path, monkeypatch, key, chunk, entries):
    """Of two with one seq, a copied entry and what it was copied from, the later stands."""
    monkeypatch.setattr(rebuild, "CHUNK", chunk)
    path = tmp_path / "file.cpy"
    offset, chain = write_copy(path, key, entries)
    (tmp_path / "index").mkdir()
    index = Index(tmp_path / "index", 1 << 20)
    try:
        replay = Replay(POSIX, index, SALT)
        header = SegmentHeader(FileKind.COPY, b"", 1, 0, 0, 0, 0, 0, 0, (), ())
        read = replay.file(LogFile(1, path, header, 7, 0), offset)
        replay.flush()
        dbs = {"keydir": index.keydir, "system": index.system, "tombstones": index.tombstones}
        with index.reading() as txn:
            found = {name: dict(txn.cursor(db)) for name, db in dbs.items()}
    finally:
        index.close()
    length = ENTRY_BYTES + len(key)
    assert read.tail == (offset, offset // 2, chain, 2)
    assert read.entry_bytes == 2 * length
    assert read.last_seq == max(seq for _, seq in entries)
    newest = 1 if entries[0][1] > entries[1][1] else 2
    kind, seq = entries[newest - 1]
    live = "keydir" if key == b"k" else "system"
    at = offset // 2 * (newest - 1) + BATCH_BYTES + len(LEADING)
    row = Row(1, at, length, seq, 0, newest)
    expected = {name: {} for name in dbs}
    expected[live if kind == PUT else "tombstones"][key] = ROW.pack(*row)
    assert found == expected
