"""What a store's contract tests inherit: how to open it, and the check behind each test.

A store takes part with a class that names its groups and says how it is opened:

    class TestMine(Verbs, Expiry, ...):
        def open_store(self, place, clock, **options):
            return MyStore(place, clock=clock, **options)
"""

import pytest

from tests.support.clock import FakeClock


class StoreContract:
    def open_store(self, place, clock, **options):
        """A handle on the store at ``place``; the second one sees what the first one saved."""
        raise NotImplementedError

    def check(self, store):
        """Fail where ``store`` is not sound, however right its answers were."""

    def writes(self, store):
        """A number that grows with whatever is written; None where the store cannot tell."""

    @pytest.fixture
    def clock(self):
        return FakeClock()

    @pytest.fixture
    def place(self, tmp_path):
        return tmp_path / "store"

    @pytest.fixture
    def opened(self, place, clock):
        """Open the store under test, as often as a test asks; checked and closed behind it."""
        handles = []

        def open_store(**options):
            handles.append(self.open_store(place, clock, **options))
            return handles[-1]

        yield open_store
        if handles:
            with self.open_store(place, clock) as handle:
                self.check(handle)
        for handle in handles:
            handle.close()

    @pytest.fixture
    def store(self, opened):
        return opened()
