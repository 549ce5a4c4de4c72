import errno
import inspect

import pytest

from kvsage import errors
from kvsage.cli import exits

DOCUMENTED = {
    errors.KeyNotFoundError: 1,
    errors.InvalidKeyError: 2,
    errors.InvalidTTLError: 2,
    errors.ValueTooLargeError: 2,
    errors.SerializationError: 2,
    errors.ConfigError: 2,
    errors.UnsupportedError: 2,
    errors.ReadOnlyStoreError: 2,
    errors.StoreClosedError: 3,
    errors.NotAStoreError: 3,
    errors.UnsupportedFilesystemError: 3,
    errors.StoreLockedError: 3,
    errors.StoreUnavailableError: 3,
    errors.FormatVersionError: 3,
    errors.PoisonedError: 3,
    errors.CorruptionError: 4,
    errors.TransactionConflictError: 5,
    errors.StoreFullError: 5,
}


@pytest.mark.parametrize(("kind", "code"), DOCUMENTED.items())
def test_documented_codes(kind, code):
    assert exits.exit_code(kind("why")) == code


def test_every_error_of_kvsage_has_a_code_of_the_table():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    leaves = [kind for kind in kinds if not kind.__subclasses__()]
    assert len(leaves) > 15
    codes = {kind.__name__: exits.exit_code(kind("why")) for kind in leaves}
    unexplained = {name for name, code in codes.items() if code not in range(1, 6)}
    assert unexplained == {"TransactionStateError"}  # a mistake of the program, not of its user


def test_the_systems_own_errors():
    assert exits.exit_code(OSError(errno.ENOSPC, "full")) == 5
    assert exits.exit_code(PermissionError(errno.EACCES, "no")) == 3
    assert exits.exit_code(OSError("anything")) == 3
    assert exits.exit_code(ZeroDivisionError()) == exits.UNEXPECTED
