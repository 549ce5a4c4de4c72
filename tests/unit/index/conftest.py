"""An index of its own for each test."""

import pytest

from kvsage.index.env import Index


@pytest.fixture
def index(tmp_path):
    (tmp_path / "index").mkdir()
    index = Index(tmp_path / "index", 1 << 30)
    yield index
    index.close()


@pytest.fixture
def txn(index):
    """A write transaction that comes to nothing."""
    txn = index.begin_write()
    yield txn
    txn.abort()
