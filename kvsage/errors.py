"""Every error that kvsage raises.

No foreign exception escapes a public call: a driver's or the system's error is translated where it
enters, with the original kept as ``__cause__``.

    KvsageError
    ├── InvalidKeyError (ValueError)            not a str, empty, or longer than 480 bytes of UTF-8
    ├── InvalidTTLError (ValueError)            zero, negative, NaN, infinite, or too far away
    ├── ValueTooLargeError (ValueError)         over the store's limit for one value or one commit
    ├── SerializationError (ValueError)         cannot be stored, or bytes that cannot be read back
    ├── ConfigError (ValueError)                an option, URL or configuration that makes no sense
    ├── KeyNotFoundError (KeyError)             a verb that needs the key to exist
    ├── UnsupportedError                        this store has no such ability
    ├── TransactionConflictError                someone else changed what the transaction read
    ├── TransactionStateError (RuntimeError)    wrong thread, already finished, or nested
    ├── ChangesLostError                        the change feed no longer reaches back that far
    ├── DumpError                               a dump that cannot be read or written
    ├── BackupError                             a backup that cannot be made, found or trusted
    ├── StoreError
    │   ├── StoreClosedError                    used after close
    │   ├── ReadOnlyStoreError (PermissionError)  a write to a store opened for reading
    │   ├── NotAStoreError                      the path holds something else
    │   ├── UnsupportedFilesystemError          a network file system, or a platform without flock
    │   ├── StoreLockedError (TimeoutError)     another process holds the store too long
    │   ├── StoreUnavailableError (OSError)     cannot be reached: permissions, I/O, a server down
    │   ├── StoreFullError (OSError)            no space left
    │   └── FormatVersionError                  written by a newer kvsage
    └── DamageError
        ├── CorruptionError                     bytes that do not check, with segment and offset
        └── PoisonedError                       a flush failed: nothing is written until reopened
"""

from __future__ import annotations


class KvsageError(Exception):
    """The base of everything that kvsage raises."""


class InvalidKeyError(KvsageError, ValueError):
    """A key that is not a ``str`` of 1 to 480 bytes of UTF-8."""


class InvalidTTLError(KvsageError, ValueError):
    """A time to live that is not a positive, finite number of seconds."""


class ValueTooLargeError(KvsageError, ValueError):
    """A value over the limit for one value, or a commit over the limit for one commit."""


class SerializationError(KvsageError, ValueError):
    """A value that cannot be stored, or bytes that cannot be read back as one."""


class ConfigError(KvsageError, ValueError):
    """An option, a URL or a configuration that cannot be meant."""


class KeyNotFoundError(KvsageError, KeyError):
    """A verb needed the key to exist, and it does not."""

    # KeyError shows the repr of its argument, which turns a sentence into a quoted string.
    __str__ = Exception.__str__


class UnsupportedError(KvsageError):
    """This store has no such ability; ``store.capabilities`` tells which it has."""


class TransactionConflictError(KvsageError):
    """What the transaction read was changed by someone else before it could commit."""


class TransactionStateError(KvsageError, RuntimeError):
    """A transaction used on another thread, after its end, or inside another one."""


class ChangesLostError(KvsageError):
    """The change feed no longer reaches back to the position asked for."""


class DumpError(KvsageError):
    """A dump that cannot be written, or does not check when read."""


class BackupError(KvsageError):
    """A backup that cannot be made, found or trusted."""


class StoreError(KvsageError):
    """The base of errors about a store as a whole."""


class StoreClosedError(StoreError):
    """The store was used after it had been closed."""


class ReadOnlyStoreError(StoreError, PermissionError):
    """A write to a store that was opened for reading."""


class NotAStoreError(StoreError):
    """The path exists and holds something other than a store."""


class UnsupportedFilesystemError(StoreError):
    """The file system, or the platform, cannot keep what the engine needs."""


class StoreLockedError(StoreError, TimeoutError):
    """Another process or thread held the store for longer than the timeout."""


class StoreUnavailableError(StoreError, OSError):
    """The store cannot be reached: permissions, a failing disk, a server that is down."""


class StoreFullError(StoreError, OSError):
    """No space is left; nothing of the failed operation was kept."""


class FormatVersionError(StoreError):
    """The store was written by a newer kvsage, in a format that this one does not know."""


class DamageError(KvsageError):
    """The base of errors about bytes that cannot be trusted."""


class CorruptionError(DamageError):
    """Bytes that do not check.

    Attributes:
        segment: id of the log file the damage lies in, or None where it lies elsewhere.
        offset: first byte, from the start of that file, that could not be vouched for, or None.
    """

    def __init__(
        self, message: str, *, segment: int | None = None, offset: int | None = None
    ) -> None:
        if segment is not None:
            message = f"{message} (segment {segment}, offset {offset})"
        super().__init__(message)
        self.segment = segment
        self.offset = offset


class PoisonedError(DamageError):
    """A flush to disk failed, so the store takes no writes until it has been opened anew."""
