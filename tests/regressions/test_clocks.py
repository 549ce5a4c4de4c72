"""Whatever the clock says, what leaves is a value or one of kvsage's errors."""

import pytest

from kvsage import LMDBStore

CLOCKS = {
    "before 1970": -86_400.0,
    "1970": 0.0,
    "after 9999": 300_000_000_000.0,
    "far": 9e15,
}


@pytest.fixture(params=CLOCKS.values(), ids=CLOCKS)
def clock(request):
    return lambda: request.param


def test_a_store_is_made_and_written_under_any_clock(tmp_path, clock):
    with LMDBStore(tmp_path / "s", clock=clock, segment_bytes_max=64 << 10) as store:
        assert store.save("a", 1)
        assert store.load("a") == 1
        assert store.count() == 1
        for number in range(40):
            store.save(f"n{number}", b"x" * 3000)
        assert store.verify(deep=True).ok


def test_an_expiry_is_told_under_any_clock(tmp_path, clock):
    with LMDBStore(tmp_path / "s", clock=clock) as store:
        store.save("a", 1, ttl=10**11)
        assert store.ttl("a") > 0
        assert store.entry("a").value == 1
        with store.transaction() as tx:
            tx.save("b", 1, ttl=10**11)
            assert tx.entry("b").value == 1
