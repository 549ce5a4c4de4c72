"""Contents whose hashes collide are never taken for one another, whatever is cached or replayed."""

import os
import struct

import pytest
from xxhash import xxh3_128_digest

from kvsage import LMDBStore

# xxh3's public secret. A lane whose low half equals the secret's adds nothing but itself, so two
# such lanes may trade: the collision below is a real one.
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
)


def colliding(filler):
    """Two contents that differ and share their xxh3_128."""
    lanes = [bytearray(filler * 1100)[:8192] for _ in range(2)]
    for content, (first, second) in zip(lanes, ((1000, 2000), (1001, 1999)), strict=True):
        struct.pack_into("<II", content, 0, *struct.unpack_from("<I", SECRET, 0), first)
        struct.pack_into("<II", content, 64, *struct.unpack_from("<I", SECRET, 8), second)
    one, other = map(bytes, lanes)
    assert one != other
    assert xxh3_128_digest(one) == xxh3_128_digest(other)
    return one, other


def test_a_content_is_not_read_from_the_cache_of_the_one_that_had_its_place(tmp_path):
    one, other = colliding(b"abcdefgh")
    with LMDBStore(tmp_path / "s") as store:
        store.save("one", one)
        assert store.load("one") == one
        store.delete("one")
        store.save("other", other)
        assert store.load("other") == other


def test_a_snapshot_keeps_its_own_content(tmp_path):
    one, other = colliding(b"abcdefgh")
    with LMDBStore(tmp_path / "s") as store:
        store.save("one", one)
        with store.snapshot() as view:
            store.delete("one")
            store.save("other", other)
            store.load("other")
            assert view.load("one") == one


def test_the_cache_knows_nothing_of_what_another_process_stored(tmp_path):
    one, other = colliding(b"abcdefgh")
    with LMDBStore(tmp_path / "s") as store:
        store.save("one", one)
        assert store.load("one") == one
        pid = os.fork()
        if not pid:
            try:
                store.delete("one")
                store.save("other", other)
                store.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert store.load("other") == other


@pytest.mark.parametrize("verb", ["save", "put"])
def test_a_content_is_not_found_equal_to_what_is_no_longer_there(tmp_path, verb):
    one, other = colliding(b"abcdefgh")
    with LMDBStore(tmp_path / "s") as store:
        store.save("one", one)
        store.load("one")
        store.delete("one")
        store.save("other", other)
        address = store.content.put(one) if verb == "put" else store.save("again", one)
    with LMDBStore(tmp_path / "s") as store:
        assert store.load("other") == other
        assert (store.content.get(address) if verb == "put" else store.load("again")) == one
