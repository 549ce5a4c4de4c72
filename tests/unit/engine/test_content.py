"""Content: stored once, whole or not at all, never larger than it says."""

import random
import string
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from kvsage.engine import content
from kvsage.engine.content import (
    CACHE_BYTES_MAX,
    CACHED_BYTES_MAX,
    RawCache,
    address_of,
    compress,
    content_hash,
    content_key_of,
    decode_content,
    decompress,
)
from kvsage.errors import (
    CorruptionError,
    KeyNotFoundError,
    SerializationError,
    ValueTooLargeError,
)
from kvsage.log.format import CONTENT_HEAD, CONTENT_KEY, NODE_NUMBER, STORED_RAW, STORED_ZSTD
from kvsage.options import VALUE_BYTES_LIMIT

TEXT = b"to be or not to be, that is the question. " * 200
NOISE = random.Random(5).randbytes(5000)


def spend(call):
    """What a call allocates at its highest."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def forged(size, window=0x58):
    """A frame that declares ``size`` bytes and holds four."""
    block = (4 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"x"  # the last one: x, four times
    return b"\x28\xb5\x2f\xfd\xc0" + bytes([window]) + size.to_bytes(8, "little") + block


# -- compressing --------------------------------------------------------------------------------


@given(st.one_of(st.binary(max_size=3000), st.binary(max_size=20).map(lambda part: part * 500)))
def test_what_is_compressed_comes_back(raw):
    for level in (1, 3, 19):
        flags, stored = compress(raw, level)
        assert decompress(flags, stored, len(raw)) == raw
        assert decompress(flags, memoryview(stored), len(raw)) == raw
        assert decode_content(flags, CONTENT_HEAD.pack(len(raw)) + stored) == raw
        assert len(stored) <= len(raw)


def test_what_does_not_become_smaller_is_stored_as_it_is():
    assert compress(NOISE, 3) == (STORED_RAW, NOISE)
    assert compress(b"", 3) == (STORED_RAW, b"")
    flags, stored = compress(TEXT, 3)
    assert flags == STORED_ZSTD
    assert len(stored) < len(TEXT) // 10


@pytest.mark.parametrize("length", [0, len(NOISE) - 1, len(NOISE) + 1, VALUE_BYTES_LIMIT])
def test_raw_bytes_of_another_length_are_damage(length):
    with pytest.raises(CorruptionError, match="another length"):
        decompress(STORED_RAW, NOISE, length)


@pytest.mark.parametrize("length", [0, len(TEXT) - 1, len(TEXT) + 1, VALUE_BYTES_LIMIT])
def test_a_frame_of_another_length_is_damage(length):
    _, stored = compress(TEXT, 3)
    with pytest.raises(CorruptionError, match="another length"):
        decompress(STORED_ZSTD, stored, length)


def test_a_frame_that_would_inflate_past_its_record_takes_no_memory():
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(200 << 20))
    assert len(bomb) < 10_000

    def decode():
        with pytest.raises(CorruptionError):
            decompress(STORED_ZSTD, bomb, 100)

    assert spend(decode) < 1 << 20


@pytest.mark.parametrize("size", [VALUE_BYTES_LIMIT + 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 3])
def test_a_frame_and_a_record_that_both_claim_too_much_take_no_memory(size):
    """No content is larger than a value may be, whatever record and frame agree on."""

    def decode():
        with pytest.raises(CorruptionError):
            decompress(STORED_ZSTD, forged(size), size)

    assert spend(decode) < 1 << 20


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"x",
        b"\x28\xb5\x2f\xfd",
        b"no frame at all",
        forged(100),
        forged(4)[:-1],
        forged(4, window=0xF0),  # asks for a window of 1 TiB
        zstandard.ZstdCompressor(write_content_size=False).compress(b"four"),
    ],
    ids=["empty", "byte", "magic", "text", "short", "cut", "window", "undeclared"],
)
def test_what_is_no_whole_frame_is_damage(stored):
    with pytest.raises(CorruptionError):
        decompress(STORED_ZSTD, stored, 4)


def test_the_forged_frame_is_a_frame():
    """Or the tests above would find damage where they did not mean it."""
    assert decompress(STORED_ZSTD, forged(4), 4) == b"xxxx"


def test_every_cut_and_every_flip_of_a_frame_is_damage_or_another_text_of_that_length():
    """A frame bears no checksum of its own: the entry around it does."""
    _, stored = compress(TEXT, 3)
    for length in range(len(stored)):
        with pytest.raises(CorruptionError):
            decompress(STORED_ZSTD, stored[:length], len(TEXT))
    for position in range(len(stored)):
        wrong = bytearray(stored)
        wrong[position] ^= 0x10
        try:
            assert len(decompress(STORED_ZSTD, bytes(wrong), len(TEXT))) == len(TEXT)
        except CorruptionError:
            continue


@pytest.mark.parametrize("flags", [2, 3, 255])
def test_unknown_ways_to_store_are_damage(flags):
    with pytest.raises(CorruptionError, match=f"unknown way.*{flags}"):
        decompress(flags, b"x", 1)


def test_an_entry_too_short_for_its_length_is_damage():
    for length in range(CONTENT_HEAD.size):
        with pytest.raises(CorruptionError, match="too short"):
            decode_content(STORED_RAW, bytes(length))
    assert decode_content(STORED_RAW, bytes(CONTENT_HEAD.size)) == b""


# -- addresses ----------------------------------------------------------------------------------


@given(st.binary(min_size=16, max_size=16), st.integers(0, NODE_NUMBER - 1))
def test_an_address_leads_back_to_its_key(digest, number):
    key = CONTENT_KEY.pack(digest, number)
    address = address_of(key)
    assert address == digest.hex() + (f"-{number}" if number else "")
    assert content_key_of(address) == key


@given(st.binary(min_size=16, max_size=16), st.integers(NODE_NUMBER, (1 << 16) - 1))
def test_a_node_has_no_address(digest, number):
    """A node is the store's own: it is no bytes that anybody saved."""
    assert content_key_of(f"{digest.hex()}-{number}") is None


DIGEST = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "address",
    [
        "",
        "-",
        DIGEST[:-1],
        DIGEST + "0",
        DIGEST.upper(),
        DIGEST + "-",
        DIGEST + "-0",
        DIGEST + "-01",
        DIGEST + "-+1",
        DIGEST + "--1",
        DIGEST + "-1-1",
        DIGEST + "-32768",
        DIGEST + "-65535",
        DIGEST + "-65536",
        DIGEST + "-" + "9" * 5000,
        DIGEST + "-\u0661",
        DIGEST + "-1 ",
        " " + DIGEST[1:],
        DIGEST[:30] + " a",
        "g" * 32,
        "\u0661" * 32,
        "k" * 400,
    ],
)
def test_what_is_no_address_leads_nowhere(address, store):
    assert content_key_of(address) is None
    assert store.content.exists(address) is False
    assert store.content.delete(address) is False
    with pytest.raises(KeyNotFoundError):
        store.content.get(address)


@given(st.text(string.hexdigits + "- ", max_size=40))
def test_an_address_has_one_spelling(address):
    key = content_key_of(address)
    assert key is None or address_of(key) == address


# -- the cache of raw bytes ---------------------------------------------------------------------


def test_the_cache_gives_back_what_was_put():
    cache = RawCache()
    assert cache.get(b"a") is None
    cache.put(b"a", b"raw")
    assert cache.get(b"a") == b"raw"
    cache.put(b"a", b"longer")
    assert cache.get(b"a") == b"longer"
    cache.clear()
    assert cache.get(b"a") is None


def test_what_is_too_large_is_not_kept():
    cache = RawCache()
    cache.put(b"a", bytes(CACHED_BYTES_MAX))
    assert cache.get(b"a") is None
    cache.put(b"a", bytes(CACHED_BYTES_MAX - 1))
    assert cache.get(b"a") is not None


def test_what_was_used_longest_ago_goes_first():
    cache = RawCache()
    size = CACHED_BYTES_MAX - 1
    fits = CACHE_BYTES_MAX // size
    for number in range(fits):
        cache.put(b"%d" % number, bytes(size))
    cache.get(b"0")
    cache.put(b"one more", bytes(size))
    assert cache.get(b"1") is None
    assert cache.get(b"0") is not None
    assert cache.get(b"one more") is not None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), max_size=60))
def test_the_cache_never_holds_more_than_its_bound(puts):
    bound = content.CACHE_BYTES_MAX
    content.CACHE_BYTES_MAX = 100
    try:
        cache = RawCache()
        for number, size in puts:
            cache.put(b"%d" % number, bytes(size))
            kept = [cache.get(b"%d" % number) for number in range(10)]
            assert sum(len(raw) for raw in kept if raw is not None) <= 100
            assert cache.get(b"%d" % number) == bytes(size)
    finally:
        content.CACHE_BYTES_MAX = bound


# -- in a store ---------------------------------------------------------------------------------


def test_an_address_is_the_hash_of_the_bytes(store):
    address = store.content.put(TEXT)
    assert address == xxh3_128_hexdigest(TEXT)
    assert content_hash(TEXT) == xxh3_128_digest(TEXT)
    assert store.content.get(address) == TEXT
    assert store.content.put("grün") == xxh3_128_hexdigest("grün".encode())
    assert store.content.put(bytearray(b"x")) == store.content.put(memoryview(b"x"))
    assert store.content.put(b"") == store.content.put("")


def test_a_content_put_twice_is_there_once(store):
    first = store.content.put(TEXT)
    before = store.stats()
    assert store.content.put(TEXT) == first
    after = store.stats()
    assert (after.contents, after.content_references) == (1, 1)
    assert after.commits == before.commits
    assert store.content.delete(first)
    assert not store.content.delete(first)
    assert not store.content.exists(first)
    assert store.stats().contents == 0
    assert store.verify(deep=True).ok


def test_a_content_stays_while_any_key_holds_it(store):
    store.save("a", TEXT)
    address = store.content.put(TEXT)
    store.save("b", TEXT)
    assert (store.stats().contents, store.stats().content_references) == (1, 3)
    store.content.delete(address)
    store.delete("a")
    assert store.content.get(address) == TEXT
    store.save("b", 1)
    assert not store.content.exists(address)
    with pytest.raises(KeyNotFoundError):
        store.content.get(address)
    assert store.verify(deep=True).ok


def test_contents_that_share_a_hash_are_kept_apart(store, monkeypatch):
    monkeypatch.setattr("kvsage.engine.preparing.content_hash", lambda _: bytes(16))
    raws = [TEXT, NOISE, TEXT + b"!"]
    addresses = [store.content.put(raw) for raw in raws]
    assert addresses == ["0" * 32, "0" * 32 + "-1", "0" * 32 + "-2"]
    assert [store.content.get(address) for address in addresses] == raws
    assert [store.content.put(raw) for raw in raws] == addresses
    store.save("key", NOISE)
    assert store.stats().contents == 3
    assert store.load("key") == NOISE


def test_contents_that_share_a_hash_within_one_commit(store, monkeypatch):
    monkeypatch.setattr("kvsage.engine.preparing.content_hash", lambda _: bytes(16))
    store.save_many({"a": TEXT, "b": NOISE, "c": TEXT, "d": NOISE})
    assert store.stats().contents == 2
    assert store.load_many("abcd") == {"a": TEXT, "b": NOISE, "c": TEXT, "d": NOISE}


@pytest.mark.parametrize("data", [None, 5, ["x"], {"a": 1}])
def test_a_content_is_bytes_or_text(store, data):
    with pytest.raises(SerializationError, match=type(data).__name__):
        store.content.put(data)
    assert store.stats().commits == 0


def test_text_that_is_none_is_refused(store):
    with pytest.raises(SerializationError, match="Unicode"):
        store.content.put("\ud800")


def test_a_content_over_the_limit_is_refused(new_store):
    store = new_store(value_bytes_max=1000)
    store.content.put(bytes(1000))
    with pytest.raises(ValueTooLargeError, match=r"1001 bytes.*1000 .value_bytes_max"):
        store.content.put(bytes(1001))
    with pytest.raises(ValueTooLargeError):
        store.content.put("ü" * 501)
