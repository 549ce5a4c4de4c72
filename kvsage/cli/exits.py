"""The exit code of every error: one table, so that a script can rely on it."""

from __future__ import annotations

import errno

from kvsage import errors

OK = 0
NOT_FOUND = 1
USAGE = 2
UNAVAILABLE = 3
CORRUPT = 4
CONFLICT = 5
UNEXPECTED = 70  # EX_SOFTWARE: a mistake in kvsage itself
INTERRUPTED = 130  # what a shell shows for a process that SIGINT ended
BROKEN_PIPE = 141  # the same for SIGPIPE

CODES: dict[type[BaseException], int] = {
    errors.KeyNotFoundError: NOT_FOUND,
    errors.InvalidKeyError: USAGE,
    errors.InvalidTTLError: USAGE,
    errors.ValueTooLargeError: USAGE,
    errors.SerializationError: USAGE,
    errors.ConfigError: USAGE,
    errors.UnsupportedError: USAGE,
    errors.ReadOnlyStoreError: USAGE,
    errors.StoreError: UNAVAILABLE,
    errors.PoisonedError: UNAVAILABLE,
    errors.BackupError: UNAVAILABLE,
    errors.DumpError: CORRUPT,
    errors.DamageError: CORRUPT,
    errors.TransactionConflictError: CONFLICT,
    errors.ChangesLostError: CONFLICT,
    errors.StoreFullError: CONFLICT,
    errors.KvsageError: UNEXPECTED,
    OSError: UNAVAILABLE,
}
"""The nearest base of an error decides; what is not here is a mistake in kvsage."""

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def exit_code(error: BaseException) -> int:
    """The code with which a command that met ``error`` ends."""
    kind = next((kind for kind in type(error).__mro__ if kind in CODES), None)
    if kind is None:
        return UNEXPECTED
    if kind is OSError and isinstance(error, OSError) and error.errno in NO_SPACE:
        return CONFLICT
    return CODES[kind]
