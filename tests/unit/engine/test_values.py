"""Values as entries hold them; what a record says of itself never runs code."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsage.engine.values import Codec
from kvsage.errors import CorruptionError, KvsageError, SerializationError, ValueTooLargeError
from kvsage.log.format import BYTES, CODEC_MASK, IS_CONTENT, IS_TREE, JSON, MSGPACK, PICKLE, STR
from kvsage.options import StoreOptions

PLAIN = Codec(StoreOptions())
TRUSTING = Codec(StoreOptions(format="pickle"))

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.floats(allow_nan=False)
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=10,
)


def making(path):
    """A pickle that makes a directory when it is loaded."""
    return b"cos\nmkdir\n(V" + str(path).encode() + b"\ntR."


@given(VALUES)
def test_values_come_back(value):
    for codec in (PLAIN, TRUSTING):
        flags, data = codec.encode("k", value)
        assert codec.decode("k", flags, data) == value
        assert codec.decode("k", flags | IS_CONTENT, data) == value


def test_text_and_bytes_are_stored_as_they_are():
    for codec in (PLAIN, TRUSTING):
        assert codec.encode("k", "grün") == (STR, "grün".encode())
        assert codec.encode("k", b"\xff\0") == (BYTES, b"\xff\0")
    assert PLAIN.encode("k", [1]) == (MSGPACK, b"\x91\x01")
    assert TRUSTING.encode("k", [1])[0] == PICKLE


def test_a_kind_of_text_is_told_from_text():
    class Name(str):
        __slots__ = ()

    with pytest.raises(SerializationError):  # not stored as text, which would lose its class
        TRUSTING.encode("k", Name("a"))


def test_json_is_read():
    assert PLAIN.decode("k", JSON, b'{"a": [1, null]}') == {"a": [1, None]}


def test_a_pickle_is_never_loaded_unless_asked_for(tmp_path):
    made = tmp_path / "made"
    for flags in (PICKLE, PICKLE | IS_CONTENT, PICKLE | IS_TREE):
        with pytest.raises(SerializationError, match=r"'k' is a pickle.*format=\"pickle\""):
            PLAIN.decode("k", flags, making(made))
    for flags in range(256):
        if flags & CODEC_MASK != BYTES:
            with pytest.raises(KvsageError):
                PLAIN.decode("k", flags | 0xE0, making(made) + b"\xff")
    assert not made.exists()
    TRUSTING.decode("k", PICKLE, making(made))
    assert made.is_dir()  # the pickle would have done it


def test_a_pickle_in_a_store_is_not_loaded_by_who_did_not_ask(new_store, tmp_path):
    made = tmp_path / "made"

    class Making:
        def __reduce__(self):
            return type(made).mkdir, (made,)

    with new_store(format="pickle") as trusting:
        trusting.save("k", Making())
        trusting.save("other", {"a": 1})
        trusting.save("text", "abc")
    store = new_store()
    for read in (
        store.load,
        store.entry,
        lambda key: list(store.items(prefix=key)),
        lambda key: store.load_many([key]),
        lambda key: store.update(key, str),
        store.load_range,
    ):
        for key in ("k", "other"):
            with pytest.raises(SerializationError, match="is a pickle"):
                read(key)
    assert store.load("text") == "abc"
    assert store.exists("k")
    assert store.ttl("k") is None
    assert store.touch("k", 60)
    assert store.verify(deep=True).ok
    assert not made.exists()
    assert store.delete("k")
    store.close()
    assert new_store(format="pickle").load("other") == {"a": 1}


@pytest.mark.parametrize("codec", [5, 6, 7])
def test_a_codec_that_format_1_does_not_have_is_damage(codec):
    with pytest.raises(CorruptionError, match=f"'k' has an unknown codec .{codec}"):
        PLAIN.decode("k", codec, b"")


@pytest.mark.parametrize(
    ("flags", "data"),
    [
        (STR, b"\xff"),
        (JSON, b"{"),
        (JSON, b"\xff"),
        (JSON, b""),
        (MSGPACK, b""),
        (MSGPACK, b"\x91"),
        (MSGPACK, b"\x01\x01"),
        (MSGPACK, b"\xc1"),
        (MSGPACK, b"\xdd\xff\xff\xff\xff"),
    ],
)
def test_bytes_that_are_no_value_are_named(flags, data):
    with pytest.raises(SerializationError, match="the value of 'k' cannot be read"):
        PLAIN.decode("k", flags, data)


@pytest.mark.parametrize("data", [b"", b"x", b"\x80\x05.", b"cno.such\nthing\n."])
def test_a_pickle_that_is_none_is_named(data):
    with pytest.raises(SerializationError, match="the value of 'k' cannot be read"):
        TRUSTING.decode("k", PICKLE, data)


@given(st.integers(0, 255), st.binary(max_size=40))
def test_noise_is_a_value_or_kvsages_error(flags, noise):
    with contextlib.suppress(KvsageError):
        PLAIN.decode("k", flags, noise)


@pytest.mark.parametrize("value", ["\ud800", object(), [object()], lambda: 1, {1, (2, object())}])
def test_what_cannot_be_stored_is_named(value):
    with pytest.raises(SerializationError, match="the value of 'the key' cannot be stored"):
        PLAIN.encode("the key", value)


def test_what_pickle_cannot_hold_is_named():
    with pytest.raises(SerializationError, match="the value of 'the key' cannot be stored"):
        TRUSTING.encode("the key", lambda: 1)


@pytest.mark.parametrize(
    ("value", "size"), [("x" * 101, 101), ("ü" * 51, 102), (bytes(101), 101), ([b"x" * 98], 101)]
)
def test_values_over_the_limit_are_named_with_their_size(value, size):
    codec = Codec(StoreOptions(value_bytes_max=100))
    with pytest.raises(ValueTooLargeError, match=f"'k' takes {size} bytes; at most 100"):
        codec.encode("k", value)


def test_values_of_just_the_limit():
    codec = Codec(StoreOptions(value_bytes_max=100))
    for value in ("x" * 100, bytes(100), [b"x" * 97]):
        assert len(codec.encode("k", value)[1]) == 100
