"""The whole contract, by ``LMDBStore`` in both durabilities."""

from kvsage import LMDBStore
from tests.contract.expiry import Expiry
from tests.contract.keys_and_values import KeysAndValues
from tests.contract.scans import Scans
from tests.contract.verbs import Verbs
from tests.contract.versions import Versions
from tests.contract.views import Snapshots, Transactions


class LMDBContract(Verbs, Expiry, Versions, KeysAndValues, Scans, Transactions, Snapshots):
    durability = "full"

    def open_store(self, place, clock, **options):
        return LMDBStore(place, **{"clock": clock, "durability": self.durability, **options})

    def check(self, store):
        report = store.verify(deep=True)
        assert report.ok, report.problems

    def writes(self, store):
        return store.stats().commits


class TestFull(LMDBContract):
    pass


class TestRelaxed(LMDBContract):
    durability = "relaxed"
