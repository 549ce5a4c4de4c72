"""A store whose clock stands still, and a clock that can be moved."""

import pytest

from kvsage import LMDBStore


class Clock:
    """Wall time that passes when it is told to."""

    def __init__(self, now=1_700_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store_options():
    """What every store of a test module is opened with; a module may say otherwise."""
    return {"durability": "relaxed", "sync_interval": 3600}


@pytest.fixture
def new_store(tmp_path, clock, store_options):
    """Opens stores, the same one unless named otherwise; closes them in the end."""
    stores = []

    def open_(name="store", **options):
        options = {**store_options, "clock": clock, **options}
        stores.append(LMDBStore(tmp_path / name, **options))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


@pytest.fixture
def store(new_store):
    return new_store()
