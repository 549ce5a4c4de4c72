"""The contract that every tier keeps.

    PersistenceStore      four abstract verbs; the rest where those four allow it
    └── TransactionalStore    adds ``transaction()``; every verb is atomic through it
    Snapshot              the reading verbs, at one point in time
    └── Transaction           and the writing verbs, all or nothing

A verb that cannot be kept with what a store has raises ``UnsupportedError``; it never pretends.
``add``, ``update``, ``increment``, ``append`` and ``touch`` promise that no other writer comes in
between, so four plain verbs cannot give them, and a transaction can.

Keys are ``str`` of 1 to 480 bytes of UTF-8 and sort by those bytes. A key past its expiry is absent
for every verb.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kvsage.errors import (
    InvalidKeyError,
    KeyNotFoundError,
    TransactionConflictError,
    UnsupportedError,
)
from kvsage.types import TTL, Capabilities, Entry, Version, override, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType

KEY_BYTES_MAX = 480

Result = TypeVar("Result")

_encode = str.encode  # unbound, so that nothing but a str has it


# -- what goes into a verb, checked once --------------------------------------------------------


def encode_key(key: str) -> bytes:
    """The bytes of a key.

    Raises:
        InvalidKeyError: not a ``str``, empty, too long, or holding a lone surrogate.
    """
    try:
        data = _encode(key)
    except TypeError:
        raise InvalidKeyError(f"a key is a str, not {type(key).__name__}: {shown(key)}") from None
    except UnicodeEncodeError as error:
        raise InvalidKeyError(f"key {key!r:.100} is not valid Unicode text") from error
    if not data:
        raise InvalidKeyError("a key holds at least one character")
    if len(data) > KEY_BYTES_MAX:
        raise InvalidKeyError(
            f"key {key!r:.60}... takes {len(data)} bytes of UTF-8; at most {KEY_BYTES_MAX} fit"
        )
    return data


def encode_bound(bound: str | None, name: str) -> bytes | None:
    """The bytes of a prefix or of the end of a range, which may be empty."""
    if bound is None:
        return None
    if not isinstance(bound, str):
        raise InvalidKeyError(f"{name} is a str, not {type(bound).__name__}: {shown(bound)}")
    try:
        return bound.encode()
    except UnicodeEncodeError as error:
        raise InvalidKeyError(f"{name} {bound!r:.100} is not valid Unicode text") from error


def scan_limit(limit: int | None) -> int | None:
    """A scan's limit; below zero it is zero, and no limit is past what can be counted."""
    return None if limit is None else min(max(limit, 0), sys.maxsize)


def not_a_list(key: str, value: object) -> UnsupportedError:
    """The error of a list verb on something else."""
    return UnsupportedError(f"{key!r} holds a {type(value).__name__}, not a list")


def added(key: str, value: object, delta: int) -> int:
    """``value + delta`` for ``increment``; only integers can be counted up."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise UnsupportedError(f"{key!r} holds a {type(value).__name__}, not an integer")
    if type(delta) is not int:
        raise UnsupportedError(f"a delta is an integer, not {type(delta).__name__}")
    return value + delta


# -- views of a store ---------------------------------------------------------------------------


class Snapshot(ABC):
    """The reading verbs at one point in time; expiry too is judged by the time of its beginning."""

    @abstractmethod
    def load(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default`` where it is absent."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether ``key`` is there."""

    @abstractmethod
    def entry(self, key: str) -> Entry | None:
        """Value, version, expiry and sizes of ``key``, or None where it is absent."""

    @abstractmethod
    def ttl(self, key: str) -> float | None:
        """Seconds until ``key`` expires, None when it is permanent.

        Raises:
            KeyNotFoundError: the key is absent.
        """

    @abstractmethod
    def keys(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[str]:
        """The keys in the order of their bytes.

        Args:
            prefix: only keys that begin with it.
            start: only keys at or after it.
            stop: only keys before it.
            reverse: from the last to the first.
            limit: at most so many.
        """

    @abstractmethod
    def items(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Keys and values, selected as by ``keys``."""

    def load_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those of ``keys`` that are there."""
        absent = object()
        found = ((key, self.load(key, absent)) for key in keys)
        return {key: value for key, value in found if value is not absent}

    def load_range(self, key: str, start: int = 0, stop: int | None = None) -> list[Any]:
        """The slice ``[start:stop]`` of the list under ``key``; empty where the key is absent."""
        value = self.load(key, [])
        if not isinstance(value, list):
            raise not_a_list(key, value)
        return value[start:stop]

    def count(self, prefix: str = "") -> int:
        """How many keys begin with ``prefix``."""
        return sum(1 for _ in self.keys(prefix))


class Transaction(Snapshot):
    """All verbs, over a state that no one else changes; kept at the end, or none of it.

    Reads see what the transaction has written. It belongs to the thread that began it.
    """

    @abstractmethod
    def save(
        self, key: str, value: Any, ttl: TTL | None = None, *, if_version: Version | None = None
    ) -> bool:
        """See ``PersistenceStore.save``."""

    @abstractmethod
    def delete(self, key: str) -> bool:
        """See ``PersistenceStore.delete``."""

    @abstractmethod
    def touch(self, key: str, ttl: TTL | None) -> bool:
        """See ``PersistenceStore.touch``."""

    @abstractmethod
    def replace(self, key: str, value: Any) -> None:
        """Save ``value`` under a key that keeps its expiry; permanent where it was absent."""

    def add(self, key: str, value: Any, ttl: TTL | None = None) -> bool:
        """See ``PersistenceStore.add``."""
        return not self.exists(key) and self.save(key, value, ttl)

    def update(self, key: str, fn: Callable[[Any], Any], default: Any = None) -> Any:
        """See ``PersistenceStore.update``."""
        value = fn(self.load(key, default))
        self.replace(key, value)
        return value

    def increment(self, key: str, delta: int = 1) -> int:
        """See ``PersistenceStore.increment``."""
        value = added(key, self.load(key, 0), delta)
        self.replace(key, value)
        return value

    def append(self, key: str, item: Any) -> int:
        """See ``PersistenceStore.append``."""
        return self.extend(key, [item])

    def extend(self, key: str, items: Iterable[Any]) -> int:
        """See ``PersistenceStore.extend``."""
        value = self.load(key, [])
        if not isinstance(value, list):
            raise not_a_list(key, value)
        value = [*value, *items]
        self.replace(key, value)
        return len(value)

    def save_many(self, mapping: Mapping[str, Any], ttl: TTL | None = None) -> int:
        """See ``PersistenceStore.save_many``."""
        for key, value in mapping.items():
            self.save(key, value, ttl)
        return len(mapping)

    def delete_many(self, keys: Iterable[str]) -> int:
        """See ``PersistenceStore.delete_many``."""
        return sum(self.delete(key) for key in keys)

    def clear(self, prefix: str = "") -> int:
        """See ``PersistenceStore.clear``."""
        return self.delete_many(list(self.keys(prefix)))


# -- stores -------------------------------------------------------------------------------------


class PersistenceStore(ABC):
    """A store: whoever writes ``save``, ``load``, ``delete`` and ``exists`` has one.

    The other verbs are derived where those four allow it, one key at a time and so without a
    promise about what happens in between, and raise ``UnsupportedError`` where they do not.
    """

    capabilities: Capabilities = Capabilities()

    @abstractmethod
    def save(self, key: str, value: Any, ttl: TTL | None = None) -> bool:
        """Save ``value`` under ``key``, in place of what is there, its expiry included.

        Stores with ``capabilities.versions`` also take ``if_version``: the save happens only while
        the key is in the state that ``entry(key).version`` named.

        Args:
            key: 1 to 480 bytes of UTF-8.
            value: anything that ``Serializer`` holds.
            ttl: seconds or a ``timedelta``; None for the store's ``ttl_default``, and where it has
                none, permanent.

        Returns:
            True once it is kept; False only when ``if_version`` was given and someone else had
            changed or removed the key.

        Raises:
            InvalidKeyError, InvalidTTLError, SerializationError, ValueTooLargeError: before
                anything is written.
        """

    @abstractmethod
    def load(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default`` where it is absent."""

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Remove ``key``; whether it was there."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether ``key`` is there."""

    # -- derived ----------------------------------------------------------------------------

    def save_many(self, mapping: Mapping[str, Any], ttl: TTL | None = None) -> int:
        """Save every pair; how many. Together or not at all where the store has transactions."""
        for key, value in mapping.items():
            self.save(key, value, ttl)
        return len(mapping)

    def load_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those of ``keys`` that are there."""
        absent = object()
        found = ((key, self.load(key, absent)) for key in keys)
        return {key: value for key, value in found if value is not absent}

    def delete_many(self, keys: Iterable[str]) -> int:
        """Remove every one of ``keys``; how many were there."""
        return sum(self.delete(key) for key in keys)

    def load_range(self, key: str, start: int = 0, stop: int | None = None) -> list[Any]:
        """The slice ``[start:stop]`` of the list under ``key``; empty where the key is absent."""
        value = self.load(key, [])
        if not isinstance(value, list):
            raise not_a_list(key, value)
        return value[start:stop]

    def items(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Keys and values, selected as by ``keys``."""
        absent = object()
        chosen = self.keys(prefix, start=start, stop=stop, reverse=reverse)
        found = ((key, self.load(key, absent)) for key in chosen)
        return islice((pair for pair in found if pair[1] is not absent), scan_limit(limit))

    def count(self, prefix: str = "") -> int:
        """How many keys begin with ``prefix``."""
        return sum(1 for _ in self.keys(prefix))

    def clear(self, prefix: str = "") -> int:
        """Remove every key that begins with ``prefix``; how many there were."""
        return self.delete_many(list(self.keys(prefix)))

    # -- beyond the four verbs --------------------------------------------------------------

    def _unsupported(self, verb: str) -> UnsupportedError:
        return UnsupportedError(f"{type(self).__name__} has no {verb}()")

    def add(self, key: str, value: Any, ttl: TTL | None = None) -> bool:
        """Save only where ``key`` is absent; whether it was."""
        raise self._unsupported("add")

    def entry(self, key: str) -> Entry | None:
        """Value, version, expiry and sizes of ``key``, or None where it is absent."""
        raise self._unsupported("entry")

    def update(self, key: str, fn: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace the value by ``fn(value)``, with no other writer in between; the new value.

        The expiry stays. ``fn`` gets ``default`` where the key is absent. It may be called again
        after a conflict, so it must have no other effect.
        """
        raise self._unsupported("update")

    def increment(self, key: str, delta: int = 1) -> int:
        """Add ``delta`` to an integer, 0 where the key is absent; the new value. Expiry stays.

        Raises:
            UnsupportedError: the key holds something other than an integer.
        """
        raise self._unsupported("increment")

    def append(self, key: str, item: Any) -> int:
        """Add ``item`` to the end of a list, empty where absent; the new length. Expiry stays.

        Raises:
            UnsupportedError: the key holds something other than a list.
        """
        raise self._unsupported("append")

    def extend(self, key: str, items: Iterable[Any]) -> int:
        """Add all ``items`` to the end of a list, as ``append`` does; the new length."""
        raise self._unsupported("extend")

    def touch(self, key: str, ttl: TTL | None) -> bool:
        """Let ``key`` expire after ``ttl`` from now, never when None; whether it was there."""
        raise self._unsupported("touch")

    def ttl(self, key: str) -> float | None:
        """Seconds until ``key`` expires, None when it is permanent.

        Raises:
            KeyNotFoundError: the key is absent.
        """
        raise self._unsupported("ttl")

    def keys(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[str]:
        """The keys in the order of their bytes, as of one point in time where snapshots exist.

        Args:
            prefix: only keys that begin with it.
            start: only keys at or after it.
            stop: only keys before it.
            reverse: from the last to the first.
            limit: at most so many.
        """
        raise self._unsupported("keys")

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """The reading verbs at one point in time, until the ``with`` block ends."""
        raise self._unsupported("snapshot")

    def transaction(self) -> AbstractContextManager[Transaction]:
        """All verbs as one unit: kept when the ``with`` block ends, none of it on an exception."""
        raise self._unsupported("transaction")

    def transact(self, fn: Callable[[Transaction], Result], retries: int = 10) -> Result:
        """Run ``fn`` in a transaction, again after a conflict, at most ``retries`` times more."""
        for attempt in range(retries + 1):
            try:
                with self.transaction() as tx:
                    return fn(tx)
            except TransactionConflictError:
                if attempt == retries:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def stats(self) -> Any:
        """What the store holds and costs, as far as this kind of store can tell."""
        raise self._unsupported("stats")

    def close(self) -> None:  # noqa: B027  # most stores have nothing to release
        """Release what the store holds; a second close does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class TransactionalStore(PersistenceStore):
    """A store with transactions, through which every verb is atomic.

    A store that can do a verb better overrides it.
    """

    @override
    @abstractmethod
    def transaction(self) -> AbstractContextManager[Transaction]:
        """All verbs as one unit: kept when the ``with`` block ends, none of it on an exception."""

    @override
    def save_many(self, mapping: Mapping[str, Any], ttl: TTL | None = None) -> int:
        return self.transact(lambda tx: tx.save_many(mapping, ttl))

    @override
    def delete_many(self, keys: Iterable[str]) -> int:
        chosen = list(keys)
        return self.transact(lambda tx: tx.delete_many(chosen))

    @override
    def clear(self, prefix: str = "") -> int:
        return self.transact(lambda tx: tx.clear(prefix))

    @override
    def add(self, key: str, value: Any, ttl: TTL | None = None) -> bool:
        return self.transact(lambda tx: tx.add(key, value, ttl))

    @override
    def entry(self, key: str) -> Entry | None:
        return self.transact(lambda tx: tx.entry(key))

    @override
    def update(self, key: str, fn: Callable[[Any], Any], default: Any = None) -> Any:
        return self.transact(lambda tx: tx.update(key, fn, default))

    @override
    def increment(self, key: str, delta: int = 1) -> int:
        return self.transact(lambda tx: tx.increment(key, delta))

    @override
    def append(self, key: str, item: Any) -> int:
        return self.transact(lambda tx: tx.append(key, item))

    @override
    def extend(self, key: str, items: Iterable[Any]) -> int:
        chosen = list(items)
        return self.transact(lambda tx: tx.extend(key, chosen))

    @override
    def touch(self, key: str, ttl: TTL | None) -> bool:
        return self.transact(lambda tx: tx.touch(key, ttl))

    @override
    def ttl(self, key: str) -> float | None:
        return self.transact(lambda tx: tx.ttl(key))


def not_found(key: str) -> KeyNotFoundError:
    """The error of a verb that needs the key."""
    return KeyNotFoundError(f"no key {key!r}")
