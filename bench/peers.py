"""kvsage and those it is measured against, each as its users would write the loop.

All have the same verbs, over many keys at once so that the loop is a peer's own. ``key`` makes of a
``str`` what the peer wants, outside of what is timed. ``full`` asks for a flush to disk before a
commit returns; without it the operating system has the commit when it returns. ``options`` says
how, first without and then with.
"""

from __future__ import annotations

import importlib
import sqlite3
from typing import TYPE_CHECKING, Any

from msgpack import packb, unpackb
from typing_extensions import override

from kvsage import LMDBStore

if TYPE_CHECKING:
    from pathlib import Path

MAP_BYTES = 4 << 30


class Peer:
    """What all of them can do; ``path`` is free for each to make what it wants there."""

    name: str
    module: str
    options: tuple[str, str]

    def loads(self, keys: list[Any]) -> None:
        """Load the record of each key."""
        raise NotImplementedError

    def saves(self, keys: list[Any], records: list[Any]) -> None:
        """Save each record with a commit of its own."""
        raise NotImplementedError

    def save_many(self, keys: list[Any], records: list[Any]) -> None:
        """Save all records in one commit."""
        raise NotImplementedError


class Kvsage(Peer):
    """The store itself."""

    name = module = "kvsage"
    options = ("durability=relaxed: on disk within 0.1 s", "durability=full")
    key = staticmethod(str)

    def __init__(self, path: Path, *, full: bool) -> None:
        self.store = LMDBStore(path, durability="full" if full else "relaxed")
        self.close = self.store.close

    @override
    def loads(self, keys: list[str]) -> None:
        load = self.store.load
        for key in keys:
            load(key)

    @override
    def saves(self, keys: list[str], records: list[Any]) -> None:
        save = self.store.save
        for key, record in zip(keys, records, strict=True):
            save(key, record)

    @override
    def save_many(self, keys: list[str], records: list[Any]) -> None:
        self.store.save_many(dict(zip(keys, records, strict=True)))


class RawLmdb(Peer):
    """A loop by hand over py-lmdb and msgpack."""

    name, module = "py-lmdb", "lmdb"
    options = ("one database, metasync=False, sync=False: flushed by nobody", "sync=True")
    key = staticmethod(str.encode)

    def __init__(self, path: Path, *, full: bool) -> None:
        lmdb = importlib.import_module("lmdb")
        self.env = lmdb.open(str(path), map_size=MAP_BYTES, metasync=full, sync=full, lib_version=0)
        self.close = self.env.close

    @override
    def loads(self, keys: list[bytes]) -> None:
        env = self.env
        for key in keys:
            with env.begin() as txn:
                unpackb(txn.get(key))

    @override
    def saves(self, keys: list[bytes], records: list[Any]) -> None:
        env = self.env
        for key, record in zip(keys, records, strict=True):
            with env.begin(write=True) as txn:
                txn.put(key, packb(record))

    @override
    def save_many(self, keys: list[bytes], records: list[Any]) -> None:
        with self.env.begin(write=True) as txn:
            for key, record in zip(keys, records, strict=True):
                txn.put(key, packb(record))


class Sqlite(Peer):
    """sqlite3, tuned, and msgpack."""

    name = module = "sqlite3"
    options = (
        "WAL, synchronous=NORMAL, mmap 256 MiB, cache 64 MiB, upsert, prepared",
        "synchronous=FULL",
    )
    key = staticmethod(str)
    select = "SELECT value FROM kv WHERE key = ?"
    insert = "INSERT INTO kv VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"

    def __init__(self, path: Path, *, full: bool) -> None:
        path.mkdir()
        # Autocommit; the connection keeps its statements prepared.
        self.connection = sqlite3.connect(path / "kv.db", isolation_level=None)
        synchronous = f"synchronous={'FULL' if full else 'NORMAL'}"
        for pragma in ("journal_mode=WAL", synchronous, "mmap_size=268435456", "cache_size=-65536"):
            self.connection.execute(f"PRAGMA {pragma}")
        # With row ids, as SQLite advises for rows beyond a twentieth of a page.
        self.connection.execute("CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB)")
        self.close = self.connection.close

    @override
    def loads(self, keys: list[str]) -> None:
        execute, select = self.connection.cursor().execute, self.select
        for key in keys:
            unpackb(execute(select, (key,)).fetchone()[0])

    @override
    def saves(self, keys: list[str], records: list[Any]) -> None:
        execute, insert = self.connection.cursor().execute, self.insert
        for key, record in zip(keys, records, strict=True):
            execute(insert, (key, packb(record)))

    @override
    def save_many(self, keys: list[str], records: list[Any]) -> None:
        rows = ((key, packb(record)) for key, record in zip(keys, records, strict=True))
        self.connection.execute("BEGIN")
        self.connection.executemany(self.insert, rows)
        self.connection.execute("COMMIT")


class DiskCache(Peer):
    """diskcache, which pickles records by itself."""

    name = module = "diskcache"
    options = ("WAL, synchronous=NORMAL, mmap 64 MiB, no eviction, pickle", "synchronous=FULL")
    key = staticmethod(str)

    def __init__(self, path: Path, *, full: bool) -> None:
        self.cache = importlib.import_module("diskcache").Cache(
            str(path),
            eviction_policy="none",
            cull_limit=0,
            size_limit=MAP_BYTES,
            sqlite_synchronous=2 if full else 1,
        )
        self.close = self.cache.close

    @override
    def loads(self, keys: list[str]) -> None:
        get = self.cache.get
        for key in keys:
            get(key)

    @override
    def saves(self, keys: list[str], records: list[Any]) -> None:
        put = self.cache.set
        for key, record in zip(keys, records, strict=True):
            put(key, record)


class RocksDict(Peer):
    """rocksdict and msgpack."""

    name = module = "rocksdict"
    options = ("raw mode, its log on, sync=False", "sync=True")
    key = staticmethod(str.encode)

    def __init__(self, path: Path, *, full: bool) -> None:
        rocksdict = importlib.import_module("rocksdict")
        self.db = rocksdict.Rdict(str(path), rocksdict.Options(raw_mode=True))
        options = rocksdict.WriteOptions()
        options.sync = full
        self.db.set_write_options(options)
        self.close = self.db.close

    @override
    def loads(self, keys: list[bytes]) -> None:
        db = self.db
        for key in keys:
            unpackb(db[key])

    @override
    def saves(self, keys: list[bytes], records: list[Any]) -> None:
        db = self.db
        for key, record in zip(keys, records, strict=True):
            db[key] = packb(record)


class Plyvel(Peer):
    """plyvel (LevelDB) and msgpack."""

    name = module = "plyvel"
    options = ("its log on, sync=False", "sync=True")
    key = staticmethod(str.encode)

    def __init__(self, path: Path, *, full: bool) -> None:
        self.db = importlib.import_module("plyvel").DB(str(path), create_if_missing=True)
        self.full = full
        self.close = self.db.close

    @override
    def saves(self, keys: list[bytes], records: list[Any]) -> None:
        put, full = self.db.put, self.full
        for key, record in zip(keys, records, strict=True):
            put(key, packb(record), sync=full)
