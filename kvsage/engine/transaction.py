"""Transactions: operations gathered over a frozen state, committed as one batch.

A transaction stays inside the writer gate from its first verb to its end, so nobody changes what it
read. Its writes are kept beside, already serialized, and nothing of them reaches the index or the
log before the commit: a rollback has nothing to undo.
"""

from __future__ import annotations

import heapq
import os
import threading
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from kvsage.engine.commit import ANYTHING, STORED, Operation
from kvsage.engine.snapshot import EngineSnapshot, bounds, instant
from kvsage.errors import TransactionStateError
from kvsage.log.format import BY_USER, CODEC_MASK, DELETE
from kvsage.store import Transaction, encode_key, not_found, scan_limit
from kvsage.types import TTL, Entry, Version, override

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvsage.engine.engine import Engine
    from kvsage.engine.preparing import Preparer


class Pending(NamedTuple):
    """A value that the transaction has written and not yet committed.

    Attributes:
        codec: of ``data``.
        data: the serialized value.
        expires_ms: when it expires, or 0.
        number: how many writes the transaction had made.
    """

    codec: int
    data: bytes
    expires_ms: int
    number: int


class EngineTransaction(Transaction):
    """All verbs, for the thread that began it, until ``commit`` or ``rollback``."""

    def __init__(
        self, engine: Engine, preparer: Preparer, *, full: bool, owner: object = None
    ) -> None:
        self._owner = owner  # the handle, which closes the store when nobody holds it any more
        self._engine = engine
        self._preparer = preparer
        self._codec = preparer.codec
        self._full = full
        self._thread = 0
        self._generation = engine.generation
        self._pending: dict[bytes, Pending | None] = {}  # None: deleted
        self._writes = 0
        self._state = ""
        self._name = os.urandom(8).hex()
        self._snapshot: EngineSnapshot | None = None
        self._left = False

    # -- its life ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        engine = self._engine
        engine.gate.refuse_nested()
        if self._state or self._snapshot is not None or self._generation != engine.generation:
            raise TransactionStateError("a transaction is entered once; begin another")
        self._thread = threading.get_ident()
        try:
            engine.gate.enter()
            engine.committer.commit_inside((), full=self._full)  # what a dead writer left
            self._snapshot = EngineSnapshot(engine, self._codec)
            return self  # noqa: TRY300  # inside, so that an interrupt finds the handler up to here
        except BaseException:
            try:
                engine.gate.leave()
            finally:
                engine.gate.leave()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if not self._state:
                if kind is None:
                    self.commit()
                else:
                    self.rollback()
        finally:
            self._leave()

    def __del__(self) -> None:
        # An interrupt may come between the end of the block and the first line of __exit__.
        if getattr(self, "_snapshot", None) is not None:
            self._leave()

    def commit(self) -> None:
        """Keep everything, as one batch.

        Raises:
            TransactionStateError: it has ended, or this is another thread.
            StoreFullError, StoreUnavailableError, PoisonedError, ValueTooLargeError: nothing of it
                was kept.
        """
        self._check()
        try:
            operations = [self._operation(key, kept) for key, kept in self._pending.items()]
            if operations:
                self._engine.committer.commit_inside(operations, full=self._full)
        finally:
            self._end("committed")

    def rollback(self) -> None:
        """Keep nothing.

        Raises:
            TransactionStateError: it has ended, or this is another thread.
        """
        self._check()
        self._end("rolled back")

    def _end(self, state: str) -> None:
        self._state = state
        try:
            if self._snapshot is not None:
                self._snapshot.close()
        finally:
            self._leave()

    def _leave(self) -> None:
        """Leave the gate, once for all.

        A transaction in a generator may be finalised on any thread; nobody else must wait for it.
        """
        if self._left or self._generation != self._engine.generation:
            return
        if threading.get_ident() == self._thread:
            self._engine.gate.leave()
        elif self._snapshot is not None:
            self._state = self._state or "rolled back"
            self._snapshot.close()
            self._engine.gate.surrender()
        self._left = True

    def _operation(self, key: bytes, kept: Pending | None) -> Operation:
        if kept is None:
            return Operation(key, DELETE, BY_USER, require=STORED)
        return self._preparer.put(key, kept.codec, kept.data, kept.expires_ms, ANYTHING)

    def _check(self) -> EngineSnapshot:
        if self._state:
            raise TransactionStateError(f"the transaction was {self._state} already")
        if self._snapshot is None:
            raise TransactionStateError("the transaction has not begun: use it in a with block")
        if self._generation != self._engine.generation:
            self._state = "left behind by a fork"
            raise TransactionStateError("a transaction stays in the process that began it")
        if threading.get_ident() != self._thread:
            raise TransactionStateError("a transaction stays on the thread that began it")
        return self._snapshot

    # -- reading ----------------------------------------------------------------------------

    def _written(self, key: bytes) -> tuple[bool, Pending | None]:
        """Whether the transaction has written the key, and what is left of that now."""
        kept = self._pending.get(key)
        if kept is None:
            return key in self._pending, None
        if 0 < kept.expires_ms <= self._engine.clock() * 1000:
            return True, None
        return True, kept

    @override
    def load(self, key: str, default: Any = None) -> Any:
        snapshot = self._check()
        written, kept = self._written(encode_key(key))
        if not written:
            return snapshot.load(key, default)
        return default if kept is None else self._codec.decode(key, kept.codec, kept.data)

    @override
    def load_range(self, key: str, start: int = 0, stop: int | None = None) -> list[Any]:
        snapshot = self._check()
        written, _ = self._written(encode_key(key))
        if not written:
            return snapshot.load_range(key, start, stop)
        return super().load_range(key, start, stop)

    @override
    def exists(self, key: str) -> bool:
        snapshot = self._check()
        written, kept = self._written(encode_key(key))
        return kept is not None if written else snapshot.exists(key)

    @override
    def entry(self, key: str) -> Entry | None:
        snapshot = self._check()
        written, kept = self._written(encode_key(key))
        if not written:
            return snapshot.entry(key)
        if kept is None:
            return None
        value = self._codec.decode(key, kept.codec, kept.data)
        size = len(kept.data)
        return Entry(
            value, f"pending-{kept.number}@{self._name}", instant(kept.expires_ms), size, size
        )

    @override
    def ttl(self, key: str) -> float | None:
        snapshot = self._check()
        written, kept = self._written(encode_key(key))
        if not written:
            return snapshot.ttl(key)
        if kept is None:
            raise not_found(key)
        return kept.expires_ms / 1000 - self._engine.clock() if kept.expires_ms else None

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
        snapshot = self._check()
        lower, upper = bounds(prefix, start, stop)
        mine = sorted((key for key in self._pending if lower <= key < upper), reverse=reverse)
        written = frozenset(mine)
        stored = snapshot.rows(lower, upper, reverse=reverse, limit=None)
        others = (key for key, _ in stored if key not in written)
        there = (key for key in mine if self._written(key)[1] is not None)
        merged = heapq.merge(others, there, reverse=reverse)
        return (key.decode() for key in islice(merged, scan_limit(limit)))

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
        absent = object()
        keys = self.keys(prefix, start=start, stop=stop, reverse=reverse)
        found = ((key, self.load(key, absent)) for key in keys)
        return islice((pair for pair in found if pair[1] is not absent), scan_limit(limit))

    # -- writing ----------------------------------------------------------------------------

    def _put(self, key: bytes, codec: int, data: bytes, expires_ms: int) -> None:
        self._writes += 1
        self._pending[key] = Pending(codec, data, expires_ms, self._writes)

    @override
    def save(
        self, key: str, value: Any, ttl: TTL | None = None, *, if_version: Version | None = None
    ) -> bool:
        self._check()
        encoded = encode_key(key)
        codec, data = self._codec.encode(key, value)
        expires_ms = self._preparer.expires_ms(key, ttl)
        if if_version is not None:
            self._engine.seq_of(if_version)  # refuses what is no version
            entry = self.entry(key)
            if entry is None or entry.version != if_version:
                return False
        self._put(encoded, codec, data, expires_ms)
        return True

    @override
    def add(self, key: str, value: Any, ttl: TTL | None = None) -> bool:
        self._codec.encode(key, value)  # bad input is refused whether the key is there or not
        self._preparer.expires_ms(key, ttl)
        return super().add(key, value, ttl)

    @override
    def replace(self, key: str, value: Any) -> None:
        self._check()
        codec, data = self._codec.encode(key, value)
        self._put(encode_key(key), codec, data, self._expires_ms(key))

    def _expires_ms(self, key: str) -> int:
        """When the key expires, to the millisecond; 0 where never or where it is absent."""
        snapshot = self._check()
        encoded = encode_key(key)
        written, kept = self._written(encoded)
        if written:
            return kept.expires_ms if kept is not None else 0
        row = snapshot.row(encoded)
        return row.expires_ms if row is not None else 0

    @override
    def delete(self, key: str) -> bool:
        there = self.exists(key)
        if there:
            self._writes += 1
            self._pending[encode_key(key)] = None
        return there

    @override
    def touch(self, key: str, ttl: TTL | None) -> bool:
        snapshot = self._check()
        encoded = encode_key(key)
        expires_ms = self._preparer.expires_at_ms(key, ttl)
        written, kept = self._written(encoded)
        if written:
            if kept is not None:
                self._put(encoded, kept.codec, kept.data, expires_ms)
            return kept is not None
        found = snapshot.find(encoded)
        if found is not None:
            self._put(encoded, found.flags & CODEC_MASK, found.data, expires_ms)
        return found is not None
