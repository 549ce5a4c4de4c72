"""``store.content``: bytes by address, kept once."""

import random

import pytest
import xxhash

from kvsage import (
    KeyNotFoundError,
    ReadOnlyStoreError,
    SerializationError,
    StoreClosedError,
    TransactionStateError,
    ValueTooLargeError,
)
from tests.contract.base import StoreContract

LARGE = b"a content of some length, " * 1000
NOISE = random.Random(1).randbytes(300_000)
# Large enough to be kept in pieces: bytes, text, lists and mappings, of long and of short elements.
LARGER = [
    NOISE,
    NOISE.hex(),
    [NOISE[at : at + 1000].hex() for at in range(0, 100_000, 1000)],
    {str(at): [at, NOISE[at : at + 5].hex()] for at in range(20_000)},
    list(range(100_000)),
    {"files": [NOISE[:100_000].hex(), NOISE[100_000:200_000]], "about": "two"},
]

NO_HASHES = ["", "x", "a" * 31, "a" * 33, "g" * 32, "A" * 32, "é" * 32]
NO_NUMBERS = ["-", "-0", "-x", "-1-1", "-99999999", "-" + "9" * 5000]
NO_ADDRESSES = [*NO_HASHES, *("a" * 32 + number for number in NO_NUMBERS)]
NO_ADDRESSES += [None, 5, b"a" * 32]

VERBS = {
    "put": lambda s: s.content.put(b"new"),
    "delete": lambda s: s.content.delete(xxhash.xxh3_128_hexdigest(b"there")),
    "get": lambda s: s.content.get(xxhash.xxh3_128_hexdigest(b"there")),
    "exists": lambda s: s.content.exists(xxhash.xxh3_128_hexdigest(b"there")),
}


class Contents(StoreContract):
    @pytest.mark.parametrize("data", [b"", b"a", LARGE, random.Random(1).randbytes(3 << 20)])
    def test_put_gives_the_address_and_get_the_bytes(self, store, data):
        address = store.content.put(data)
        assert address == xxhash.xxh3_128_hexdigest(data)
        assert store.content.get(address) == data
        assert store.content.exists(address) is True

    def test_text_is_kept_as_utf_8(self, store):
        address = store.content.put("é")
        assert address == xxhash.xxh3_128_hexdigest("é".encode())
        assert store.content.get(address) == "é".encode()
        assert store.content.put("é".encode()) == address

    @pytest.mark.parametrize("data", [bytearray(b"abc"), memoryview(b"abc")])
    def test_other_kinds_of_bytes(self, store, data):
        assert store.content.get(store.content.put(data)) == b"abc"

    def test_putting_it_again_writes_nothing(self, store):
        address = store.content.put(LARGE)
        before = self.writes(store)
        assert store.content.put(LARGE) == address
        assert self.writes(store) == before
        assert store.content.delete(address) is True
        assert store.content.exists(address) is False

    def test_an_absent_address(self, store):
        address = xxhash.xxh3_128_hexdigest(b"absent")
        assert store.content.exists(address) is False
        assert store.content.delete(address) is False
        with pytest.raises(KeyNotFoundError, match=address):
            store.content.get(address)

    @pytest.mark.parametrize("address", NO_ADDRESSES, ids=range(len(NO_ADDRESSES)))
    def test_what_is_no_address_leads_nowhere(self, store, address):
        before = self.writes(store)
        assert store.content.exists(address) is False
        assert store.content.delete(address) is False
        with pytest.raises(KeyNotFoundError):
            store.content.get(address)
        assert self.writes(store) == before

    @pytest.mark.parametrize("data", [None, 5, ["a"], "\ud800", object()])
    def test_only_bytes_and_text_are_content(self, store, data):
        before = self.writes(store)
        with pytest.raises(SerializationError):
            store.content.put(data)
        assert self.writes(store) == before

    def test_a_content_of_the_limit_fits_and_one_byte_more_does_not(self, opened):
        store = opened(value_bytes_max=100)
        assert store.content.put(b"x" * 100)
        before = self.writes(store)
        for too_large in (b"x" * 101, "é" * 51):
            with pytest.raises(ValueTooLargeError, match="100"):
                store.content.put(too_large)
        assert self.writes(store) == before

    # -- contents and keys ------------------------------------------------------------------

    def test_contents_are_no_keys(self, store):
        address = store.content.put(LARGE)
        assert list(store.keys()) == []
        assert store.count() == 0
        assert store.load(address) is None
        assert store.clear() == 0
        assert store.content.exists(address)

    def test_a_key_with_the_same_bytes_holds_the_content(self, store):
        address = store.content.put(LARGE)
        store.save("bytes", LARGE)
        store.save("text", LARGE.decode())
        assert store.content.delete(address) is True
        assert store.content.delete(address) is False
        assert store.content.get(address) == LARGE
        store.delete("bytes")
        assert store.content.exists(address) is True
        store.save("text", "short")
        assert store.content.exists(address) is False

    def test_a_content_outlives_the_keys_with_its_bytes(self, store):
        address = store.content.put(LARGE)
        store.save("k", LARGE)
        store.delete("k")
        assert store.content.get(address) == LARGE

    def test_the_same_bytes_are_kept_once(self, store):
        noise = random.Random(1).randbytes(50_000)
        store.content.put(noise)
        before = store.stats().log_bytes
        for number in range(20):
            store.save(f"k{number}", noise)
        assert store.stats().contents == 1
        assert store.stats().content_references == 21
        assert store.stats().log_bytes - before < 20 * 500

    def test_the_same_bytes_in_one_commit_are_kept_once(self, store):
        noise = random.Random(1).randbytes(50_000)
        store.save_many({f"k{number}": noise for number in range(20)})
        assert store.stats().contents == 1
        assert store.stats().log_bytes < 70_000
        store.save_many({f"k{number}": 1 for number in range(20)})
        assert store.stats().contents == 0

    @pytest.mark.parametrize("value", LARGER)
    def test_the_same_pieces_are_kept_once(self, store, value):
        store.save("k", value)
        first = store.stats()
        assert first.contents > 1
        for number in range(20):
            store.save(f"k{number}", value)
        stats = store.stats()
        assert stats.contents == first.contents
        assert stats.content_bytes == first.content_bytes
        assert stats.log_bytes - first.log_bytes < 20 * 5000
        store.delete_many(store.keys())
        assert store.stats().contents == 0
        assert store.stats().content_references == 0

    @pytest.mark.parametrize("value", LARGER)
    def test_the_same_pieces_in_one_commit_are_kept_once(self, store, value):
        store.save_many({f"k{number}": value for number in range(20)})
        stats = store.stats()
        assert stats.contents > 1
        assert stats.log_bytes < stats.content_bytes + 20 * 5000
        store.save_many({f"k{number}": value for number in range(20)})
        assert store.stats().contents == stats.contents
        store.save_many({f"k{number}": 1 for number in range(20)})
        assert store.stats().contents == 0

    def test_what_a_change_leaves_alone_is_not_stored_again(self, store):
        value = [f"{number}: {random.Random(number).randbytes(300).hex()}" for number in range(500)]
        store.save("k", value)
        before = store.stats()
        for number, changed in enumerate(
            (
                [*value, "at the end"],
                ["at the beginning", *value],
                [*value[:250], "in the middle", *value[250:]],
                value[:250] + value[251:],
            )
        ):
            store.save(f"k{number}", changed)
            assert store.load(f"k{number}") == changed
            after = store.stats()
            assert after.contents - before.contents < 10
            assert after.log_bytes - before.log_bytes < 60_000  # of 300,000
            before = after
        assert store.load("k") == value

    def test_a_content_has_its_address_however_many_values_have_pieces_like_it(self, store):
        store.save("k", NOISE)
        address = store.content.put(NOISE)
        assert address == xxhash.xxh3_128_hexdigest(NOISE)
        store.delete("k")
        assert store.content.get(address) == NOISE
        store.save("k", NOISE)
        assert store.content.delete(address) is True
        assert store.content.exists(address) is False
        assert store.load("k") == NOISE

    # -- its borders ------------------------------------------------------------------------

    def test_contents_outlive_the_handle(self, store, opened):
        kept, gone = store.content.put(LARGE), store.content.put(b"gone")
        store.content.delete(gone)
        store.close()
        again = opened()
        assert again.content.get(kept) == LARGE
        assert not again.content.exists(gone)

    @pytest.mark.parametrize("verb", VERBS)
    def test_a_closed_store(self, store, verb):
        store.content.put(b"there")
        kept = store.content
        store.close()
        with pytest.raises(StoreClosedError):
            VERBS[verb](store)
        with pytest.raises(StoreClosedError):
            kept.get(xxhash.xxh3_128_hexdigest(b"there"))

    @pytest.mark.parametrize("verb", VERBS)
    def test_a_readonly_store(self, opened, verb):
        writer = opened()
        writer.content.put(b"there")
        writer.close()
        store = opened(readonly=True)
        if verb in {"put", "delete"}:
            with pytest.raises(ReadOnlyStoreError):
                VERBS[verb](store)
        else:
            assert VERBS[verb](store)
        assert store.content.get(xxhash.xxh3_128_hexdigest(b"there")) == b"there"

    @pytest.mark.parametrize("verb", ["put", "delete"])
    def test_writing_is_refused_inside_a_transaction(self, store, verb):
        store.content.put(b"there")
        with store.transaction() as tx:
            tx.save("k", 1)
            with pytest.raises(TransactionStateError):
                VERBS[verb](store)
            assert VERBS["get"](store) == b"there"
        assert store.load("k") == 1
