"""kvsage keeps what an AI-agent process must not forget."""

from typing import TYPE_CHECKING, Any

from kvsage.errors import (
    BackupError,
    ChangesLostError,
    ConfigError,
    CorruptionError,
    DamageError,
    DumpError,
    FormatVersionError,
    InvalidKeyError,
    InvalidTTLError,
    KeyNotFoundError,
    KvsageError,
    NotAStoreError,
    PoisonedError,
    ReadOnlyStoreError,
    SerializationError,
    StoreClosedError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreUnavailableError,
    TransactionConflictError,
    TransactionStateError,
    UnsupportedError,
    UnsupportedFilesystemError,
    ValueTooLargeError,
)
from kvsage.serialization import Serializer
from kvsage.store import PersistenceStore, Snapshot, Transaction, TransactionalStore
from kvsage.stores.embedded import LMDBStore
from kvsage.stores.registry import open  # kvsage.open
from kvsage.types import Capabilities, Change, Consumer, Entry, Position

if TYPE_CHECKING:
    from kvsage.aio import AsyncStore

__all__ = [
    "AsyncStore",
    "BackupError",
    "Capabilities",
    "Change",
    "ChangesLostError",
    "ConfigError",
    "Consumer",
    "CorruptionError",
    "DamageError",
    "DumpError",
    "Entry",
    "FormatVersionError",
    "InvalidKeyError",
    "InvalidTTLError",
    "KeyNotFoundError",
    "KvsageError",
    "LMDBStore",
    "NotAStoreError",
    "PersistenceStore",
    "PoisonedError",
    "Position",
    "ReadOnlyStoreError",
    "SerializationError",
    "Serializer",
    "Snapshot",
    "StoreClosedError",
    "StoreError",
    "StoreFullError",
    "StoreLockedError",
    "StoreUnavailableError",
    "Transaction",
    "TransactionConflictError",
    "TransactionStateError",
    "TransactionalStore",
    "UnsupportedError",
    "UnsupportedFilesystemError",
    "ValueTooLargeError",
    "open",
]


def __getattr__(name: str) -> Any:
    if name == "AsyncStore":
        from kvsage import aio  # noqa: PLC0415  # asyncio takes as long to load as all the rest

        return aio.AsyncStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
