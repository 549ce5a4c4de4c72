"""The file of a checkpoint: what is in it, how it is written, and how damage in it is found."""

import math

import pytest
from xxhash import xxh3_64_intdigest

from kvsage.engine import pieces
from kvsage.engine.checkpoint import (
    CHECKPOINT,
    TRAILER_BYTES,
    Checkpoint,
    find_damage,
    read_trailer,
    unpack_checkpoint,
    write_checkpoint,
)
from kvsage.engine.pace import Stopped
from kvsage.errors import CorruptionError, StoreFullError
from kvsage.fs import POSIX
from kvsage.index.env import Index
from kvsage.index.segments import get_meta

KEYS = 300


@pytest.fixture
def store(new_store):
    store = new_store(upkeep_interval=math.inf)
    store.save_many({f"k{number}": number for number in range(KEYS)})
    store.save("text", "x" * 10_000, ttl=60)
    store.delete("k7")
    return store


@pytest.fixture
def path(store):
    """Of the store's checkpoint, written a moment ago."""
    store._engine.upkeep.checkpoint()
    return store._engine.checkpoint_path


@pytest.fixture
def target(tmp_path):
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def rows_of(index):
    """Every row of an index, by database."""
    dbs = {name: getattr(index, name) for name in ("keydir", "system", "tombstones")}
    dbs |= {"expiry": index.expiry, "contents": index.contents}
    with index.reading() as txn:
        found = {name: dict(txn.cursor(db)) for name, db in dbs.items()}
        unnamed = {key: txn.get(key) for key, _ in txn.cursor() if key.decode() not in found}
        return found | {"": unnamed}


def test_what_the_file_says_and_holds(store, path, target):
    data = path.read_bytes()
    body, checksum = data[:-8], data[-8:]
    assert checksum == xxh3_64_intdigest(body).to_bytes(8, "little")
    assert len(data) % 4096 == TRAILER_BYTES
    uuid = store._engine.identity.uuid
    with store._engine.index.reading() as txn:
        seq = get_meta(txn).seq
    expected = (b"kvscheck", 3, 0, 0, uuid, seq, len(data) - TRAILER_BYTES)
    assert CHECKPOINT.unpack(body[-CHECKPOINT.size :]) == expected
    assert read_trailer(POSIX, path) == Checkpoint(uuid, seq, len(data) - TRAILER_BYTES)
    assert find_damage(store._engine) == ""
    assert unpack_checkpoint(store._engine, target)
    index = Index(target, 1 << 30)
    try:
        assert rows_of(index) == rows_of(store._engine.index)
    finally:
        index.close()


def test_it_knows_what_was_committed_when_it_was_written_and_nothing_since(store, path):
    before = read_trailer(POSIX, path)
    store.save("later", 1)
    assert read_trailer(POSIX, path) == before
    store._engine.upkeep.checkpoint()
    assert read_trailer(POSIX, path).seq == before.seq + 1


def test_the_log_is_on_disk_before_the_file_has_its_name(new_store, recording_disk):
    store = new_store(disk=recording_disk, upkeep_interval=math.inf)
    store.save("k", 1)
    recording_disk.calls.clear()
    store._engine.upkeep.checkpoint()
    calls = recording_disk.calls
    flushed = next(n for n, call in enumerate(calls) if call[:2] == ("sync_data", "0000000001.seg"))
    synced = calls.index(("sync", "index.checkpoint.tmp"))
    named = calls.index(("rename", "index.checkpoint.tmp", "index.checkpoint"))
    assert max(flushed, synced) < named
    assert calls[named + 1] == ("sync_directory", "store")


def test_one_that_cannot_be_written_leaves_the_one_before(store, path, monkeypatch):
    before = path.read_bytes()
    store.save("later", 1)

    def full(*_):
        raise StoreFullError("no space left")

    for verb in ("write", "sync"):
        with monkeypatch.context() as patched:
            patched.setattr(type(store._engine.disk), verb, full)
            with pytest.raises(StoreFullError):
                store._engine.upkeep.checkpoint()
        assert path.read_bytes() == before
        assert not path.with_name("index.checkpoint.tmp").exists()
    store._engine.upkeep.checkpoint()
    assert read_trailer(POSIX, path).seq > 0
    assert store.verify(deep=True).problems == ()


def test_a_half_written_one_counts_for_nothing_and_is_written_over(store, path):
    path.unlink()
    path.with_name("index.checkpoint.tmp").write_bytes(b"\xee" * 1_000_000)
    assert read_trailer(POSIX, path) is None
    store._engine.upkeep.checkpoint()
    assert find_damage(store._engine) == ""


def test_where_there_is_none(store, target):
    assert read_trailer(POSIX, store._engine.checkpoint_path) is None
    assert find_damage(store._engine) == ""
    assert not unpack_checkpoint(store._engine, target)
    assert list(target.iterdir()) == []


def test_every_flip_is_found(store, path, target):
    good = path.read_bytes()
    trailer = len(good) - TRAILER_BYTES
    for offset in (*range(0, trailer, 997), *range(trailer, len(good))):
        bad = bytearray(good)
        bad[offset] ^= 1 << offset % 8
        path.write_bytes(bad)
        assert find_damage(store._engine) == "the checkpoint is damaged", offset
        assert not unpack_checkpoint(store._engine, target)
        assert list(target.iterdir()) == []


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"x", lambda d: d[4096:]])
def test_another_length_is_found(store, path, target, change):
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CorruptionError):
        read_trailer(POSIX, path)
    assert not unpack_checkpoint(store._engine, target)


@pytest.mark.parametrize("length", [0, 1, 8, CHECKPOINT.size, TRAILER_BYTES - 1])
def test_what_is_too_short_to_be_one(path, length):
    path.write_bytes(path.read_bytes()[-length:] if length else b"")
    with pytest.raises(CorruptionError):
        read_trailer(POSIX, path)


def sealed(data, *fields):
    """The file with another trailer and a checksum that is right."""
    body = data[:-TRAILER_BYTES] + CHECKPOINT.pack(*fields)
    return body + xxh3_64_intdigest(body).to_bytes(8, "little")


@pytest.mark.parametrize(("magic", "version"), [(b"kvsindex", 2), (b"kvscheck", 1)])
def test_another_magic_or_version_is_none(store, path, target, magic, version):
    _, _, _, _, *said = CHECKPOINT.unpack(path.read_bytes()[-TRAILER_BYTES:-8])
    path.write_bytes(sealed(path.read_bytes(), magic, version, 0, 0, *said))
    with pytest.raises(CorruptionError):
        read_trailer(POSIX, path)
    assert not unpack_checkpoint(store._engine, target)


def test_that_of_another_store_is_not_used(store, path, target):
    *fields, _, seq, length = CHECKPOINT.unpack(path.read_bytes()[-TRAILER_BYTES:-8])
    path.write_bytes(sealed(path.read_bytes(), *fields, bytes(16), seq, length))
    assert find_damage(store._engine) == "the checkpoint is that of another store"
    assert not unpack_checkpoint(store._engine, target)


def test_a_file_longer_than_a_piece(store, path, target, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4099)
    assert find_damage(store._engine) == ""
    assert unpack_checkpoint(store._engine, target)
    assert (target / "data.mdb").read_bytes() == path.read_bytes()[:-TRAILER_BYTES]


def test_a_close_stops_it_and_the_one_before_stays(store, path):
    class Stopping:
        def breathe(self):
            raise Stopped

    before = path.read_bytes()
    store.save("b", 1)
    with pytest.raises(Stopped):
        write_checkpoint(store._engine, Stopping())
    assert path.read_bytes() == before
    assert not path.with_name("index.checkpoint.tmp").exists()
    assert find_damage(store._engine) == ""
