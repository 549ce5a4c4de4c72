"""A log whose checksums are right and whose entries make no sense is damage, nothing else."""

import contextlib

import pytest

from kvsage import CorruptionError, KvsageError, LMDBStore
from kvsage.log.format import (
    BATCH_BYTES,
    CONTENT,
    PUT,
    BatchHeader,
    LogEntry,
    decode_batch_header,
    decode_identity,
    encode_batch,
    encode_entry,
    place,
)

ENTRIES = {
    "a content too short": (CONTENT, b"k" * 18, b""),
    "an empty key": (PUT, b"", b"x"),
    "a key too long": (PUT, b"k" * 600, b"x"),
}


@pytest.mark.parametrize(("kind", "key", "value"), ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("trusted", [True, False], ids=["adopted", "rebuilt"])
def test_what_makes_no_sense_is_reported_as_corruption(tmp_path, kind, key, value, trusted):
    path = tmp_path / "s"
    store = LMDBStore(path)
    store.save("a", 1)
    log = path / "log" / "0000000001.seg"
    data = log.read_bytes()
    start = data.index(b"BVK1") - 8
    last = decode_batch_header(data, start)
    tail = start + BATCH_BYTES + last.length
    identity = decode_identity((path / "KVSAGE").read_bytes())
    fields = BatchHeader(0, 1, 0, last.seq + 1, last.seq, 0, last.checksum)
    framed = encode_entry(LogEntry(last.seq + 1, 0, kind, 0, key, value))
    _, head, rest = encode_batch(fields, framed, place(identity.salt, 1, tail))
    with log.open("r+b") as file:
        file.seek(tail)
        file.write(head + rest)
    if trusted:
        with pytest.raises(CorruptionError):
            store.save("b", 2)
        with contextlib.suppress(KvsageError):
            store.close()
        return
    left = tmp_path / "copied"
    left.mkdir()
    (left / "log").mkdir()
    (left / "KVSAGE").write_bytes((path / "KVSAGE").read_bytes())
    (left / "log" / log.name).write_bytes(log.read_bytes())
    with pytest.raises(CorruptionError):
        LMDBStore(left)
