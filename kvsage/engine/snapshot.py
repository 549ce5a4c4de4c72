"""Reading: one key, or many in order, in one read transaction of the index.

The transaction is held until the bytes are read: while it is, nobody removes the file that its rows
point into. Everything read is checked to be whole and to be the entry of the key asked for; LMDB's
pages bear no checksum, so a flipped bit there shows up here.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from kvsage.engine.assembling import Assembler, content_row, items_of, placed, put_entry
from kvsage.engine.changes import position_at
from kvsage.engine.content import Mismatch, Missing
from kvsage.engine.growing import part_of
from kvsage.errors import CorruptionError, KvsageError, StoreClosedError, StoreUnavailableError
from kvsage.index.env import LmdbError, Txn
from kvsage.index.expiry import EXPIRY
from kvsage.index.keydir import SYSTEM, Row, content_keys_in, decode_row
from kvsage.log.format import IS_TREE, MSGPACK, split_keys
from kvsage.store import Snapshot, encode_bound, encode_key, not_found
from kvsage.types import Entry, Position, override

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvsage.engine.engine import Engine
    from kvsage.engine.values import Codec

FAR = 1 << 62
EPOCH = datetime.fromtimestamp(0, UTC)


class Found(NamedTuple):
    """A key's value as it lies in the log.

    Attributes:
        row: the key's row.
        flags: of the entry.
        data: the serialized value.
    """

    row: Row
    flags: int
    data: bytes


class View:
    """Reads in one transaction, at one instant."""

    def __init__(self, engine: Engine, txn: Txn, now_ms: float) -> None:
        self.engine = engine
        self.txn = txn
        self.now_ms = now_ms

    def row(self, key: bytes) -> Row | None:
        """The row of a key that is there and has not expired."""
        index = self.engine.index
        data = self.txn.get(key, None, index.system if key[0] == SYSTEM else index.keydir)
        if data is None:
            return None
        row = decode_row(data)
        return None if 0 < row.expires_ms <= self.now_ms else row

    def fetch(self, key: bytes, row: Row) -> Found:
        """What the row points to.

        Raises:
            Mismatch: it is not there.
            CorruptionError: its content cannot be decompressed.
        """
        entry = put_entry(self.engine, key, row)
        try:
            return Found(row, entry.flags, self.value(entry.flags, entry.value))
        except CorruptionError as error:
            raise placed(error, row) from error

    def part(self, key: bytes, row: Row, start: int, stop: int | None) -> bytes | None:
        """A slice of a list that is a tree, as MessagePack; None where all of it must be read.

        Raises:
            Mismatch: some of it is not there.
            CorruptionError: some of it cannot be decompressed.
        """
        if row.flags != MSGPACK | IS_TREE:
            return None
        entry = put_entry(self.engine, key, row)
        return part_of(Assembler(self.engine, self.txn), items_of(entry.value), start, stop)

    def value(self, flags: int, value: bytes) -> bytes:
        """The serialized value that the value of a PUT holds or refers to.

        Raises:
            Mismatch: some of it is not there.
            CorruptionError: some of it cannot be decompressed.
        """
        return Assembler(self.engine, self.txn).value(flags, value)

    def content(self, content_key: bytes) -> bytes:
        """Raw bytes of a content.

        Raises:
            Mismatch: it is not there.
            CorruptionError: it cannot be decompressed.
        """
        return Assembler(self.engine, self.txn).content(content_key)

    def stored_bytes(self, key: bytes, row: Row) -> int:
        """What the entry of a key and the contents that it refers to take in the log."""
        index = self.engine.index
        data = self.txn.get(key, None, index.system if key[0] == SYSTEM else index.keydir)
        total, seen = row.length, set[bytes]()
        left = [] if data is None else split_keys(content_keys_in(data))
        while left:
            content_key = left.pop()
            if content_key not in seen:
                seen.add(content_key)
                found = content_row(self.engine, self.txn, content_key)
                total += found.share
                left += split_keys(found.children)
        return total

    def scan(
        self, lower: bytes, upper: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Row]]:
        """Keys in ``[lower, upper)`` that are there, with their rows, in the order of bytes."""
        cursor = self.txn.cursor(self.engine.index.keydir)
        if reverse:
            found = upper and (cursor.prev() if cursor.set_range(upper) else cursor.last())
            rows = cursor.iterprev() if found else iter(())
        else:
            found = cursor.set_range(lower) if lower else cursor.first()
            rows = cursor.iternext() if found else iter(())
        now_ms = self.now_ms
        for key, data in rows:
            if not lower <= key < upper:
                return
            row = decode_row(data)
            if not 0 < row.expires_ms <= now_ms:
                yield key, row

    def expired_count(self) -> int:
        """Rows that have expired and are still in the index."""
        cursor = self.txn.cursor(self.engine.index.expiry)
        limit = EXPIRY.pack(max(0, int(self.now_ms)))
        count = 0
        for key in cursor.iternext(keys=True, values=False):
            if key[: EXPIRY.size] > limit:
                break
            count += 1
        return count


def bounds(prefix: str, start: str | None, stop: str | None) -> tuple[bytes, bytes]:
    """The range of key bytes that a scan covers; 0xff stands behind every byte of UTF-8."""
    first = encode_bound(prefix, "prefix") or b""
    lower = max(first, encode_bound(start, "start") or b"")
    upper = first + b"\xff"
    if stop is not None:
        upper = min(upper, encode_bound(stop, "stop") or b"")
    return lower, upper


def instant(expires_ms: int) -> datetime | None:
    """When a key expires, for a caller."""
    if not expires_ms:
        return None
    try:
        return datetime.fromtimestamp(expires_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):  # past the year 9999, by a clock that runs ahead
        return datetime.max.replace(tzinfo=UTC)


def corruption(key: bytes, row: Row | None, mismatch: Mismatch) -> CorruptionError:
    """The error of a key whose entry, or the content that it refers to, cannot be read."""
    name = key.decode("utf-8", "backslashreplace")
    place = mismatch.args or ((None, None) if row is None else row[:2])
    is_record = row is None or (place == row[:2] and not isinstance(mismatch, Missing))
    what = "record" if is_record else "content"
    return CorruptionError(f"the {what} of {name!r} is damaged", segment=place[0], offset=place[1])


class EngineSnapshot(Snapshot):
    """The reading verbs at one point in time. Threads may share it; they take turns."""

    def __init__(self, engine: Engine, codec: Codec, *, owner: object = None) -> None:
        self._owner = owner  # the handle, which closes the store when nobody holds it any more
        self._engine = engine
        self._codec = codec
        self._lock = threading.RLock()  # guards the transaction, which LMDB wants used by one
        txn = engine.index.begin_read()
        self._generation = engine.generation
        self._view: View | None = View(engine, txn, engine.clock() * 1000)

    def _open(self) -> View:
        view = self._view
        if view is None or self._generation != self._engine.generation:
            raise StoreClosedError("the snapshot is closed")
        return view

    def close(self) -> None:
        """Let go of the point in time."""
        with self._lock:
            view, self._view = self._view, None
            if view is not None and self._generation == self._engine.generation:
                view.txn.abort()

    def enter(self, *, wait: bool) -> bool:
        """Take a turn for several verbs, until ``leave``; false where it is not free at once.

        Args:
            wait: for whoever has it now, as long as that takes.
        """
        return self._lock.acquire(blocking=wait)

    def leave(self) -> None:
        """End a turn."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def position(self) -> Position:
        """The last commit that this view shows: changes since then follow it without a gap."""
        with self._lock:
            view = self._open()
            try:
                return position_at(view.engine, view.txn)
            except LmdbError as error:
                raise self._ended(error) from error

    def find(self, key: bytes) -> Found | None:
        """A key's value as it lies in the log; None where it is absent."""
        reads = self._engine.reads
        with self._lock:
            view = self._open()
            row = None
            try:
                row = view.row(key)
                if row is None:
                    return None
                if reads is not None:
                    reads.mark(key)
                return view.fetch(key, row)
            except Mismatch as error:
                raise corruption(key, row, error) from error
            except LmdbError as error:
                raise self._ended(error) from error

    def row(self, key: bytes) -> Row | None:
        """A key's row; None where it is absent."""
        with self._lock:
            try:
                return self._open().row(key)
            except LmdbError as error:
                raise self._ended(error) from error

    @override
    def load(self, key: str, default: Any = None) -> Any:
        found = self.find(encode_key(key))
        return default if found is None else self._codec.decode(key, found.flags, found.data)

    @override
    def load_range(self, key: str, start: int = 0, stop: int | None = None) -> list[Any]:
        encoded = encode_key(key)
        with self._lock:
            view = self._open()
            row = None
            try:
                row = view.row(encoded)
                part = None if row is None else view.part(encoded, row, start, stop)
            except Mismatch as error:
                raise corruption(encoded, row, error) from error
            except LmdbError as error:
                raise self._ended(error) from error
        if part is None:
            return super().load_range(key, start, stop)
        if self._engine.reads is not None:
            self._engine.reads.mark(encoded)
        return list(self._codec.decode(key, MSGPACK, part))

    @override
    def exists(self, key: str) -> bool:
        return self.row(encode_key(key)) is not None

    @override
    def entry(self, key: str) -> Entry | None:
        encoded = encode_key(key)
        with self._lock:
            found = self.find(encoded)
            if found is None:
                return None
            try:
                stored_bytes = self._open().stored_bytes(encoded, found.row)
            except Mismatch as error:
                raise corruption(encoded, found.row, error) from error
            except LmdbError as error:
                raise self._ended(error) from error
        return Entry(
            self._codec.decode(key, found.flags, found.data),
            self._engine.version(found.row.seq),
            instant(found.row.expires_ms),
            len(found.data),
            stored_bytes,
        )

    @override
    def ttl(self, key: str) -> float | None:
        row = self.row(encode_key(key))
        if row is None:
            raise not_found(key)
        return (row.expires_ms - self._open().now_ms) / 1000 if row.expires_ms else None

    @override
    def keys(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[str]:
        lower, upper = bounds(prefix, start, stop)
        rows = self.rows(lower, upper, reverse=reverse, limit=limit)
        return (key.decode() for key, _ in rows)

    @override
    def items(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[str, Any]]:
        lower, upper = bounds(prefix, start, stop)
        rows = self.rows(lower, upper, reverse=reverse, limit=limit)
        return (self._item(key, row) for key, row in rows)

    def _item(self, key: bytes, row: Row) -> tuple[str, Any]:
        name = key.decode()
        with self._lock:
            try:
                found = self._open().fetch(key, row)
            except Mismatch as error:
                raise corruption(key, row, error) from error
            except LmdbError as error:
                raise self._ended(error) from error
        return name, self._codec.decode(name, found.flags, found.data)

    def rows(
        self, lower: bytes, upper: bytes, *, reverse: bool, limit: int | None
    ) -> Iterator[tuple[bytes, Row]]:
        """Keys and rows in ``[lower, upper)``."""
        left = FAR if limit is None else limit
        if left <= 0:
            return
        with self._lock:
            rows = self._open().scan(lower, upper, reverse=reverse)
        while left > 0:
            with self._lock:
                self._open()
                try:
                    pair = next(rows, None)
                except LmdbError as error:
                    raise self._ended(error) from error
            if pair is None:
                return
            yield pair
            left -= 1

    @override
    def count(self, prefix: str = "") -> int:
        with self._lock:
            view = self._open()
            try:
                if not prefix:
                    entries = int(view.txn.stat(self._engine.index.keydir)["entries"])
                    return entries - view.expired_count()
                lower, upper = bounds(prefix, None, None)
                return sum(1 for _ in view.scan(lower, upper))
            except LmdbError as error:
                raise self._ended(error) from error

    def _ended(self, error: LmdbError) -> KvsageError:
        if self._engine.closed:
            return StoreClosedError("the store of the snapshot was closed")
        return StoreUnavailableError(f"the snapshot has ended: {error}")
