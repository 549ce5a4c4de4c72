"""What goes in comes out with its type, and what cannot is refused; hostile bytes do no harm."""

import dataclasses
import enum
import gc
import io
import json
import os
import pickle  # noqa: TID251  # the promise about it is tested here
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation, localcontext
from functools import reduce
from pathlib import Path, PurePosixPath
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsage import serialization
from kvsage.errors import SerializationError
from kvsage.serialization import Serializer, pack, unpack

SAFE = ("json", "msgpack")
ALL = (*SAFE, "pickle")

# Cheap examples over a wide space: more of them.
thrice = settings(max_examples=3 * settings.default.max_examples)


# --- Types that the whole file uses


class Colour(enum.Enum):
    RED = "r"
    BLUE = range(3)  # a value that neither form holds: the name alone is kept


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: object
    y: object = None


@dataclasses.dataclass
class Node:
    value: object
    children: list = dataclasses.field(default_factory=list)
    seen: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass(frozen=True)
class Empty:
    """Its fields are an empty map, the one empty container that a set may hold."""


for registered in (Colour, Level, Access, Point, Node, Empty):
    Serializer.register(registered, f"test.{registered.__name__.lower()}")


def shape(value):
    """Say all that must survive: types at every depth, offsets, zones, folds, signs, NaN."""
    kind, told = type(value), value
    if kind in (list, tuple):
        told = tuple(map(shape, value))
    elif kind in (set, frozenset):
        told = frozenset(map(shape, value))
    elif kind is dict:
        told = tuple((shape(key), shape(part)) for key, part in value.items())
    elif kind in (Point, Node):
        told = tuple(shape(getattr(value, field.name)) for field in dataclasses.fields(value))
    elif kind in (datetime, time):
        told = (value.isoformat(), value.fold, getattr(value.tzinfo, "key", None))
    elif kind in (float, complex, Decimal):
        told = repr(value)
    return kind, told


ONE_OF_EACH = {
    "none": None,
    "bools": [True, False],
    "ints": [0, -1, 255, 1 << 62, -(1 << 63), (1 << 64) - 1, 1 << 64, -(1 << 63) - 1, 3**200],
    "floats": [0.0, -0.0, 1.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")],
    "str": "grüße \U0001f40d \x00 \\ud800",
    "bytes": bytes(range(256)),
    "list": [[], [[]], {}],
    "tuple": ((), (1,), (1, (2, [3, (4,)])), ({"k": ()},)),
    "sets": [set(), {1, "a", b"a", None, (1, 2)}, frozenset({frozenset({frozenset()}), ((),)})],
    "keys": {1: "int", None: "none", (1, (2,)): "tuple", b"\xff": "bytes", 1.5: "float"},
    "like tags": [{"$set": [1]}, {"$": 1}, {"$dict": []}, {"$set": 1, "more": 2}, {"": 1}],
    "decimals": [Decimal(text) for text in ("1.50", "-0E+9", "NaN", "sNaN7", "-Infinity")],
    "extreme": [
        Decimal("9" * 99),
        Decimal("1E+999999999999999999"),
        Decimal("-1E-1999999999999999997"),
    ],
    "complex": [1 + 2j, complex("-0-nanj")],
    "dates": [date(2026, 11, 23), date.min, timedelta(-1, 5, 7), timedelta.max, timedelta.min],
    "naive": [datetime(2026, 11, 23, 10), datetime.max, datetime.min],  # noqa: DTZ001, DTZ901
    "time": time(1, 2, 3, 4),
    "aware": [
        datetime(2026, 11, 23, 10, tzinfo=UTC),
        datetime(2026, 11, 23, 10, tzinfo=timezone(timedelta(hours=-9, minutes=-30))),
        datetime(2026, 11, 23, 10, tzinfo=ZoneInfo("Asia/Kathmandu")),
        time(10, tzinfo=UTC),
        time(10, tzinfo=ZoneInfo("Europe/Berlin")),
    ],
    "uuid": UUID("12345678-1234-5678-1234-567812345678"),
    "paths": [Path("/tmp/ü"), PurePosixPath("a/b"), Path(os.fsdecode(b"/\xff"))],
    "registered": [Colour.BLUE, Level.HIGH, Access.READ | Access.WRITE, Access(0), {Level.LOW: 1}],
    "objects": Node(Point(1, (Node({Point(2)}),)), [Node(0)]),
}


# --- Both formats hold every type


@pytest.mark.parametrize("form", SAFE)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_type_comes_back(name, form):
    value = ONE_OF_EACH[name]
    assert shape(Serializer.deserialize(Serializer.serialize(value, form), form)) == shape(value)


@pytest.mark.parametrize("form", ALL)
def test_everything_at_once_comes_back(form):
    written = Serializer.serialize(ONE_OF_EACH, form)
    assert shape(Serializer.deserialize(written, form)) == shape(ONE_OF_EACH)


offsets = st.builds(
    timezone, st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))
)
zones = st.none() | st.just(UTC) | offsets | st.timezones()
folds = st.sampled_from([0, 1])
# A name may hold any byte but NUL, and "/" as the separator.
file_names = st.binary(min_size=1, max_size=8).map(
    lambda raw: os.fsdecode(raw.replace(b"\0", b"x"))
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 200), 1 << 200),
    st.floats(),
    st.text(),
    st.sampled_from(["$set", "$dict", "$object", "$", "type"]),
    st.binary(),
    st.complex_numbers(),
    st.decimals(),
    st.datetimes(timezones=zones).flatmap(lambda at: folds.map(lambda f: at.replace(fold=f))),
    st.times(timezones=zones).flatmap(lambda at: folds.map(lambda f: at.replace(fold=f))),
    st.dates(),
    st.timedeltas(),
    st.uuids(),
    st.builds(Path, file_names),
    st.builds(PurePosixPath, file_names),
    st.sampled_from([*Colour, *Level, Access.READ, Access.READ | Access.WRITE]),
)
# A signalling NaN can be held by a list, and by nothing that hashes.
hashable_scalars = scalars.filter(lambda v: not (isinstance(v, Decimal) and v.is_snan()))
hashables = st.recursive(
    hashable_scalars,
    lambda parts: st.one_of(
        st.lists(parts, max_size=4).map(tuple),
        st.frozensets(parts, max_size=4),
        st.builds(Point, parts, parts),
    ),
    max_leaves=5,
)
values = st.recursive(
    scalars | hashables,
    lambda parts: st.one_of(
        st.lists(parts, max_size=5),
        st.lists(parts, max_size=5).map(tuple),
        st.sets(hashables, max_size=4),
        st.dictionaries(st.text(max_size=5) | st.sampled_from(["$set", "$tuple"]), parts),
        st.dictionaries(hashables, parts, max_size=4),
        st.builds(Point, parts, parts),
        st.builds(Node, parts, st.lists(parts, max_size=3)),
    ),
    max_leaves=15,
)


@pytest.mark.parametrize("form", SAFE)
@given(value=values)
def test_any_value_comes_back(form, value):
    written = Serializer.serialize(value, form)
    read = Serializer.deserialize(written, form)
    assert shape(read) == shape(value)
    assert Serializer.serialize(read, form) == written


@given(value=values)
def test_an_array_is_its_header_and_its_packed_elements(value):
    assert pack([value, value]) == b"\x92" + pack(value) * 2
    assert pack({"k": value}) == b"\x81" + pack("k") + pack(value)


@given(st.lists(hashables, max_size=8), st.randoms())
def test_a_set_has_one_encoding(members, random):
    first = frozenset(members)
    random.shuffle(members)
    # One of several equal members stays, and which one depends on the order: keep the same ones.
    second = frozenset(sorted(first, key=lambda _: random.random()))
    for form in SAFE:
        assert Serializer.serialize(first, form) == Serializer.serialize(second, form)


def test_bytes_do_not_depend_on_the_seed_of_hashes():
    program = (
        "from kvsage.serialization import Serializer as S\n"
        "v = [{'a', 'b', 'c', 'd', ('e', 1)}, {'k': frozenset('xyz')}]\n"
        "print(S.serialize(v).hex(), S.serialize(v, 'msgpack').hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            cwd=Path(serialization.__file__).parent.parent,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1


# --- The forms themselves


def test_json_is_what_json_dumps_writes():
    assert Serializer.serialize({"a": 1}) == b'{"a": 1}'
    plain = {"a": [1, 2.5, None, True, {"b": "c"}], "ü": '"\n\x01'}
    assert Serializer.serialize(plain) == json.dumps(plain, ensure_ascii=False).encode()
    assert Serializer.deserialize(json.dumps(plain).encode()) == plain


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (1 << 64, {"$int": "0x10000000000000000"}),
        (float("-inf"), {"$float": "-inf"}),
        (b"\xff\x00", {"$bytes": "/wA="}),
        ((1, "a"), {"$tuple": [1, "a"]}),
        ({3, 1, 2}, {"$set": [1, 2, 3]}),
        (frozenset({1}), {"$frozenset": [1]}),
        ({1: "a"}, {"$dict": [[1, "a"]]}),
        ({"$set": [1]}, {"$dict": [["$set", [1]]]}),
        ({"$set": [1], "b": 2}, {"$set": [1], "b": 2}),
        (Decimal("1.50"), {"$decimal": "1.50"}),
        (1 - 2j, {"$complex": [1.0, -2.0]}),
        (
            datetime(2026, 11, 23, 10, tzinfo=timezone(timedelta(hours=1))),
            {"$datetime": "2026-11-23T10:00:00+01:00"},
        ),
        (
            datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
            {"$datetime": "2026-10-25T02:30:00+01:00[Europe/Berlin][fold=1]"},
        ),
        (date(2026, 11, 23), {"$date": "2026-11-23"}),
        (time(10, 0, 0, 5), {"$time": "10:00:00.000005"}),
        (timedelta(days=1, seconds=-1), {"$timedelta": [0, 86399, 0]}),
        (UUID(int=1), {"$uuid": "00000000-0000-0000-0000-000000000001"}),
        (Path("/a"), {"$path": "/a"}),
        (Path(os.fsdecode(b"\xff")), {"$path": {"$bytes": "/w=="}}),
        (PurePosixPath("b"), {"$purepath": "b"}),
        (msgpack.Timestamp(1, 2), {"$timestamp": [1, 2]}),
        (
            Level.HIGH,
            {"$object": {"type": "test.level", "version": 1, "fields": {"name": "HIGH"}}},
        ),
        (
            Point(1),
            {"$object": {"type": "test.point", "version": 1, "fields": {"x": 1, "y": None}}},
        ),
    ],
)
def test_the_json_form(value, form):
    assert json.loads(Serializer.serialize(value)) == form


@pytest.mark.parametrize(
    ("value", "bytes_in_hex"),
    [
        ({"a": 1}, "81a16101"),
        ((1, "a"), "d6019201a161"),
        ((), "d50190".replace("d501", "d401")),
        ({2, 1}, "c7030292 0102".replace(" ", "")),
        (frozenset(), "d40390"),
        (([],), "92c7000890"),
        (Access.READ, "94c70009ab746573742e616363657373 0181a576616c756501".replace(" ", "")),
        (1 << 64, "c70910010000000000000000"),
        (-(1 << 63) - 1, "c70910ff7fffffffffffffff"),
        (Decimal("1.5"), "c70311312e35"),
        (1j, "d812 0000000000000000 3ff0000000000000".replace(" ", "")),
        (datetime(2026, 1, 2, tzinfo=UTC), "c71920" + b"2026-01-02T00:00:00+00:00".hex()),
        (date(2026, 1, 2), "c70a21" + b"2026-01-02".hex()),
        (time(1, 2), "d722" + b"01:02:00".hex()),
        (timedelta(-1, 2, 3), "c70c23ffffffff0000000200000003"),
        (UUID(int=1), "d83000000000000000000000000000000001"),
        (Path("/a"), "d5312f61"),
        (PurePosixPath("b"), "d43262"),
        (msgpack.Timestamp(1), "d6ff00000001"),
    ],
)
def test_the_disk_format_never_changes(value, bytes_in_hex):
    assert pack(value).hex() == bytes_in_hex
    assert shape(unpack(bytes.fromhex(bytes_in_hex))) == shape(value)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(1 << 63), (1 << 64) - 1)
        | st.floats()
        | st.text(),
        lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts),
    )
)
def test_plain_values_are_plain_messagepack(value):
    assert pack(value) == msgpack.packb(value)


def test_bytearray_and_memoryview_come_back_as_bytes():
    for buffer in (bytearray(b"ab"), memoryview(b"ab"), memoryview(b"xabx")[1:3]):
        for form in SAFE:
            read = Serializer.deserialize(Serializer.serialize(buffer, form), form)
            assert shape(read) == (bytes, b"ab")


def test_reading_takes_any_buffer_and_keeps_none():
    written = bytearray(pack([b"abc", (1, [b"d"])]))
    for view in (bytes(written), written, memoryview(written)):
        assert unpack(view) == [b"abc", (1, [b"d"])]
    read = unpack(memoryview(written))
    written[:] = bytes(len(written))
    assert read == [b"abc", (1, [b"d"])]
    assert Serializer.deserialize(memoryview(b'{"a": 1}')) == {"a": 1}


def test_decimals_do_not_depend_on_the_context():
    value = Decimal("1.23456789E+50")
    with localcontext() as context:
        context.prec, context.capitals = 3, 0
        context.traps[InvalidOperation] = False
        written = [Serializer.serialize(value, form) for form in SAFE]
        for form, data in zip(SAFE, written, strict=True):
            assert Serializer.deserialize(data, form).as_tuple() == value.as_tuple()
        with pytest.raises(SerializationError):
            Serializer.deserialize(b'{"$decimal": "garbage"}')
    assert written == [Serializer.serialize(value, form) for form in SAFE]


# --- Time zones


@pytest.mark.parametrize("form", SAFE)
def test_a_zone_comes_back_as_itself(form):
    zone = ZoneInfo("Europe/Berlin")
    for fold in (0, 1):  # the hour that comes twice
        at = datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=zone)
        read = Serializer.deserialize(Serializer.serialize(at, form), form)
        assert read.tzinfo is zone
        assert read.fold == fold
        assert read.utcoffset() == timedelta(hours=2 - fold)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T10:00:00+05:00[Nowhere/City]",  # a zone that this machine does not know
        "2026-11-23T10:00:00+05:00[Europe/Berlin]",  # an offset that the zone does not give
        "2026-11-23T10:00:00+05:00[Europe]",  # a directory
        f"2026-11-23T10:00:00+05:00[{'A' * 999}]",
    ],
)
def test_a_zone_that_does_not_fit_leaves_instant_and_wall_clock(text):
    read = Serializer.deserialize(json.dumps({"$datetime": text}).encode())
    assert read == datetime(2026, 11, 23, 10, tzinfo=timezone(timedelta(hours=5)))
    assert read.utcoffset() == timedelta(hours=5)


@pytest.mark.parametrize("error", [KeyError, ValueError, PermissionError])
def test_a_zone_that_cannot_be_loaded_leaves_its_offset(monkeypatch, error):
    def refuse(key):
        raise error(key)

    monkeypatch.setattr(serialization, "ZoneInfo", refuse)
    read = Serializer.deserialize(b'{"$time": "10:00:00+01:00[Europe/Berlin]"}')
    assert read == time(10, tzinfo=timezone(timedelta(hours=1)))


def test_any_other_zone_keeps_its_offset():
    class Odd(tzinfo):
        def utcoffset(self, _):
            return timedelta(hours=3)

    # The smallest zone file: version 1, one kind of local time, two hours east of UTC.
    counts = struct.pack(">6l", 0, 0, 0, 0, 1, 4)
    tzif = b"TZif" + bytes(16) + counts + struct.pack(">lbb", 7200, 0, 0) + b"ODD\0"
    unnamed, misnamed = (ZoneInfo.from_file(io.BytesIO(tzif), key) for key in (None, "x]y"))
    for zone in (Odd(), unnamed, misnamed):
        at = datetime(2026, 11, 23, tzinfo=zone)
        for form in SAFE:
            read = Serializer.deserialize(Serializer.serialize(at, form), form)
            assert read.utcoffset() == at.utcoffset()
            assert type(read.tzinfo) is timezone


@pytest.mark.parametrize("microseconds", [1, -1, 999_999, -999_999])
def test_an_offset_below_a_second_is_not_utc(microseconds):
    offset = timezone(timedelta(microseconds=microseconds))
    for at in (datetime(2026, 1, 1, tzinfo=offset), time(1, tzinfo=offset)):
        for form in SAFE:
            read = Serializer.deserialize(Serializer.serialize(at, form), form)
            assert read.utcoffset() == at.utcoffset()
    assert Serializer.deserialize(b'{"$datetime": "2026-01-01T00:00:00Z"}').tzinfo is UTC


# --- What cannot be stored is refused, and named


class Text(str):
    __slots__ = ()


class Unregistered(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass(frozen=True)
class UnregisteredPoint(Point):
    z: int = 0


Pair = namedtuple("Pair", "a b")  # noqa: PYI024

REFUSED = [
    object(),
    Text("a"),
    Pair(1, 2),
    OrderedDict(a=1),
    Unregistered.ONE,
    UnregisteredPoint(1),
    type("Whole", (int,), {})(1),
    type("Real", (float,), {})(1.0),
    type("Raw", (bytes,), {})(b""),
    type("Several", (list,), {})(),
    type("Moment", (datetime,), {})(2026, 1, 1),
    range(3),
    len,
    Point,
    Ellipsis,
    NotImplemented,
    iter([]),
]


@pytest.mark.parametrize("form", SAFE)
@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_other_types_are_refused_and_never_flattened(value, form):
    for around in (value, [value], {"k": value}, (1, value), Point(value)):
        with pytest.raises(SerializationError, match=type(value).__qualname__) as caught:
            Serializer.serialize(around, form)
        assert isinstance(caught.value.__cause__, TypeError)
    if getattr(value, "__hash__", None) is not None:
        for around in ({value}, {value: 1}, frozenset({(value,)})):
            with pytest.raises(SerializationError, match=type(value).__qualname__):
                Serializer.serialize(around, form)


@pytest.mark.parametrize("form", SAFE)
@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "value:"),
        ({"a": [0, {"b": object()}]}, r"value\['a'\]\[1\]\['b'\]:"),
        ({"a": {1: (0, Point(1, [object()]))}}, r"value\['a'\]\[1\]\[1\]\.y\[0\]:"),
        ([{(1, Text("k")): 1}], r"value\[0\]\.key\(\(1, 'k'\)\)\[1\]:"),
        ([{1, (2, Text("k"))}], r"value\[0\]\.member\[1\]:"),
        ({"a": ["ok", "\ud800"]}, r"value\['a'\]\[1\]:.*surrogates"),
    ],
)
def test_the_error_says_where(value, path, form):
    with pytest.raises(SerializationError, match=path):
        Serializer.serialize(value, form)


def test_an_unregistered_class_is_told_how_to_register():
    for value in (Unregistered.ONE, UnregisteredPoint(1)):
        with pytest.raises(SerializationError, match=r"Serializer\.register"):
            pack(value)


@pytest.mark.parametrize("form", SAFE)
def test_strings_that_are_not_text_are_refused(form):
    for value in ("\ud800", {"\udfff": 1}, ("a\ud800",), {"\ud800"}):
        with pytest.raises(SerializationError):
            Serializer.serialize(value, form)


def test_a_zone_that_raises_is_reported():
    class Broken(tzinfo):
        def utcoffset(self, _):
            raise OSError("no zone today")

    for form in SAFE:
        with pytest.raises(SerializationError, match="no zone today"):
            Serializer.serialize([datetime(2026, 1, 1, tzinfo=Broken())], form)


def test_an_object_without_one_of_its_fields_is_reported():
    broken = Node.__new__(Node)
    for form in SAFE:
        with pytest.raises(SerializationError, match="value"):
            Serializer.serialize([broken], form)


@pytest.mark.parametrize("form", ["yaml", "", "JSON", None, 1])
def test_an_unknown_format_is_refused(form):
    with pytest.raises(SerializationError, match="unknown form"):
        Serializer.serialize({}, form)
    with pytest.raises(SerializationError, match="unknown form"):
        Serializer.deserialize(b"{}", form)


# --- Depth


def nested(wrap, depth, innermost):
    value = innermost
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize("innermost", [1, [], {}, (), (1, [2])])
@pytest.mark.parametrize(
    "wrap",
    [lambda v: [v], lambda v: {"k": v}, lambda v: (v,), lambda v: [0, (v, 0)], Point, Node],
    ids=["list", "dict", "tuple", "mixed", "slots", "object"],
)
def test_what_is_packed_can_be_unpacked_at_any_depth(wrap, innermost):
    for depth in (400, *range(505, 516), *range(1018, 1030)):
        value = nested(wrap, depth, innermost)
        try:
            written = pack(value)
        except SerializationError:
            assert depth > 500
        else:
            assert pack(unpack(written)) == written
    with pytest.raises(SerializationError):
        pack(nested(wrap, 1100, innermost))


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"k": v}, lambda v: (v,), Point])
def test_json_nests_128_deep(wrap):
    value = nested(wrap, 128, [])
    assert shape(Serializer.deserialize(Serializer.serialize(value))) == shape(value)
    with pytest.raises(SerializationError, match="deep"):
        Serializer.serialize(nested(wrap, 130, []))


@pytest.mark.parametrize("form", SAFE)
def test_sets_nest_8_deep(form):
    value = nested(lambda v: frozenset({v}), 8, 1)
    assert Serializer.deserialize(Serializer.serialize(value, form), form) == value
    with pytest.raises(SerializationError, match="8"):
        Serializer.serialize(frozenset({value}), form)


def test_the_deepest_set_members_come_back():
    for innermost in (1, Empty()):
        for depth in range(1015, 1030):
            value = {nested(lambda v: (v,), depth, innermost)}
            try:
                written = pack(value)
            except SerializationError:
                continue
            assert pack(unpack(written)) == written


@pytest.mark.parametrize("form", SAFE)
def test_a_value_that_holds_itself_is_refused(form):
    in_list, in_dict, in_object = [], {}, Node(0)
    in_list.append(in_list)
    in_dict["k"] = [(1, in_dict)]
    in_object.children.append(in_object)
    for value in (in_list, in_dict, in_object):
        with pytest.raises(SerializationError):
            Serializer.serialize(value, form)


def test_pickle_that_nests_too_deep_is_refused():
    with pytest.raises(SerializationError, match="deep"):
        Serializer.serialize(nested(lambda v: [v], 100_000, 1), "pickle")


def test_the_deepest_values_fit_a_small_stack():
    """A stack overflow is no exception but a dead process, so it is tried in another one."""
    program = """
import threading
from msgpack import ExtType, packb
from kvsage.errors import SerializationError
from kvsage.serialization import pack, unpack

def nested(wrap, depth, value):
    for _ in range(depth):
        value = wrap(value)
    return value

def tuples_in_sets(value):
    return frozenset({nested(lambda v: (v, ()), 1000, value)})

def sets_and_lists(levels):
    data = b"\\x01"
    for _ in range(levels):
        data = packb(ExtType(2, b"\\x91" * 1000 + data))
    return data

def run():
    for work in (
        lambda: unpack(pack(nested(lambda v: [(v, [])], 500, 1))),
        lambda: pack(nested(tuples_in_sets, 7, 1)),
        lambda: unpack(sets_and_lists(50)),
    ):
        try:
            work()
        except SerializationError:
            pass
    print("alive")

threading.stack_size(4 << 20)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(serialization.__file__).parent.parent,
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


# --- Bytes that are cut, changed or made up


def reads_or_refuses(data, form):
    """Give the value or the refusal; any other exception fails the test."""
    try:
        return Serializer.deserialize(data, form)
    except SerializationError as error:
        return error


DAMAGED = {
    "str": "ü",
    "numbers": [1 << 64, 300, 1.5, 1j, Decimal("1.5"), None, True],
    "bytes": b"abc",
    "tuples": ((1, "a"), ([2],)),
    "sets": [{1}, frozenset({frozenset({(1, (2,))})})],
    (1,): {"$set": 1},
    "times": [date(2026, 11, 23), time(1, 2), timedelta(1)],
    "aware": datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    "ids": [UUID(int=9), Path("/a"), PurePosixPath("b")],
    "objects": [Point(Level.LOW), Access.READ],
}


@pytest.mark.parametrize("form", ALL)
def test_bytes_cut_short_are_refused(form):
    written = Serializer.serialize(DAMAGED, form)
    for end in range(len(written)):
        with pytest.raises(SerializationError) as caught:
            Serializer.deserialize(written[:end], form)
        assert caught.value.__cause__ is not None


@pytest.mark.parametrize("form", ALL)
def test_bytes_behind_the_value_are_refused(form):
    for value in (DAMAGED, 1, [], "a"):
        with pytest.raises(SerializationError):
            Serializer.deserialize(Serializer.serialize(value, form) + b" 1", form)


@pytest.mark.parametrize("form", SAFE)
def test_a_changed_byte_is_refused_or_another_value(form):
    written = Serializer.serialize(DAMAGED, form)
    bits = {1, 2, 4, 8, 16, 32, 64, 128}
    all_others = settings.default.max_examples > 1000  # all that a byte can become, or a share
    for place in range(len(written)):
        step = 1 if all_others else 16
        more = range(1 + place % step, 256, step) if form == "msgpack" else ()
        for flip in bits.union(more):
            changed = bytearray(written)
            changed[place] ^= flip
            reads_or_refuses(changed, form)


@pytest.mark.parametrize("form", SAFE)
@given(value=values, data=st.data())
def test_any_damage_is_refused_or_another_value(form, value, data):
    written = bytearray(Serializer.serialize(value, form))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(written) - 1))
        written[place] = data.draw(st.integers(0, 255))
    reads_or_refuses(written, form)
    reads_or_refuses(written[: data.draw(st.integers(0, len(written)))], form)


@pytest.mark.parametrize("form", SAFE)
@given(data=st.binary(max_size=200))
@thrice
def test_any_bytes_are_refused_or_a_value(form, data):
    reads_or_refuses(data, form)


def json_nodes(parts):
    body = {
        "type": st.sampled_from(["test.point", "test.access", "test.level", "no"]) | parts,
        "version": st.integers(-1, 2) | parts,
        "fields": st.dictionaries(st.sampled_from(["x", "y", "name", "value"]), parts),
    }
    tags = st.sampled_from([*serialization._FROM_JSON, "a"])
    return st.one_of(
        st.lists(parts, max_size=4),
        st.dictionaries(tags, parts, max_size=2),
        st.fixed_dictionaries({"$object": st.fixed_dictionaries(body)}),
    )


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    json_nodes,
    max_leaves=10,
)


@given(json_trees)
@thrice
def test_any_tags_are_refused_or_a_value(tree):
    read = reads_or_refuses(json.dumps(tree).encode(), "json")
    if not isinstance(read, SerializationError):
        Serializer.serialize(read)


def ext(code, payload=b""):
    return msgpack.packb(msgpack.ExtType(code, payload))


CODES = [scalar.code for scalar in serialization._SCALARS]


def messagepack_nodes(parts):
    arrays = st.lists(parts, max_size=4)
    body = st.tuples(
        st.just(msgpack.ExtType(9, b"")),
        st.sampled_from(["test.point", "test.access", "no"]) | parts,
        st.integers(-1, 2) | parts,
        st.dictionaries(st.sampled_from(["x", "y", "value"]), parts) | parts,
    )
    return st.one_of(
        arrays,
        arrays.map(lambda items: [msgpack.ExtType(8, b""), *items]),
        body,
        st.builds(msgpack.ExtType, st.sampled_from([1, 2, 3]), arrays.map(msgpack.packb)),
        st.builds(msgpack.ExtType, st.sampled_from([*CODES, 0, 8, 9]), st.binary(max_size=16)),
        st.dictionaries(st.text(max_size=3), parts, max_size=3),
    )


extensions = st.recursive(
    st.none() | st.integers(0, 255) | st.binary(max_size=4) | st.text(max_size=4),
    messagepack_nodes,
    max_leaves=10,
)


@given(extensions)
@thrice
def test_any_extensions_are_refused_or_a_value(tree):
    read = reads_or_refuses(msgpack.packb(tree), "msgpack")
    if not isinstance(read, SerializationError):
        pack(read)


HOSTILE = {
    "nothing": (b"", "msgpack"),
    "no json": (b"", "json"),
    "never used": (b"\xc1", "msgpack"),
    "array of 4 G": (b"\xdd\xff\xff\xff\xff", "msgpack"),
    "map of 4 G": (b"\xdf\xff\xff\xff\xff", "msgpack"),
    "bytes of 4 GB": (b"\xc6\xff\xff\xff\xff", "msgpack"),
    "text of 4 GB": (b"\xdb\xff\xff\xff\xff", "msgpack"),
    "extension of 4 GB": (b"\xc9\xff\xff\xff\xff\x10", "msgpack"),
    "deep arrays": (b"\x91" * 100_000, "msgpack"),
    "deep maps": (b"\x81\xa1a" * 100_000, "msgpack"),
    "deep json arrays": (b"[" * 100_000, "json"),
    "deep json objects": (b'{"a":' * 100_000, "json"),
    "deep json tags": (b'{"$tuple":[' * 100_000, "json"),
    "deepest array with a rest": (b"\x91" * 1024 + b"\x90\x01", "msgpack"),
    "deepest map with a rest": (b"\x81\xa1a" * 1024 + b"\x80\x01", "msgpack"),
    "text that is not UTF-8": (b"\xa1\xff", "msgpack"),
    "surrogate in UTF-8": (b"\xa3\xed\xa0\x80", "msgpack"),
    "json that is not UTF-8": (b'"\xff"', "json"),
    "json in UTF-16": ('{"a": 1}'.encode("utf-16"), "json"),
    "half a character": (b'["\\ud800"]', "json"),
    "half a character as key": (b'{"\\uDFFF": 1}', "json"),
    "half a character in a path": (b'{"$path": "\\ud800"}', "json"),
    "key without hash": (b"\x81\x90\x01", "msgpack"),
    "key of tuple without hash": (b"\x81\x92\xc7\x00\x08\x90\x01", "msgpack"),
    "member without hash": (ext(2, b"\x91\x90"), "msgpack"),
    "json member without hash": (b'{"$set": [[]]}', "json"),
    "json key without hash": (b'{"$dict": [[[], 1]]}', "json"),
    "pair of three": (b'{"$dict": [[1, 2, 3]]}', "json"),
    "pair in text": (b'{"$dict": ["ab"]}', "json"),
    "unknown code": (ext(99), "msgpack"),
    "unknown code in a tuple": (ext(1, b"\x91" + ext(99)), "msgpack"),
    "unknown code in a set": (ext(2, b"\x91" + ext(0)), "msgpack"),
    "unknown code beside a tuple": (b"\x92\x92\xc7\x00\x08\x01" + ext(99), "msgpack"),
    "unknown tag": (b'{"$exec": "x"}', "json"),
    "timestamp of 3 bytes": (b"\xc7\x03\xff\x00\x00\x00", "msgpack"),
    "timestamp of 4e9 ns": (b"\xd7\xff" + b"\xff" * 8, "msgpack"),
    "json timestamp": (b'{"$timestamp": [1, -1]}', "json"),
    "head alone": (ext(8), "msgpack"),
    "head at the end": (b"\x92\x01" + ext(8), "msgpack"),
    "head twice": (b"\x92" + ext(8) * 2, "msgpack"),
    "head as a value": (b"\x81\xa1a" + ext(9), "msgpack"),
    "head as a key": (b"\x81" + ext(8) + b"\x01", "msgpack"),
    "head as a member": (ext(2, b"\x91" + ext(8)), "msgpack"),
    "head in a flat tuple": (ext(1, b"\x92\x01" + ext(8)), "msgpack"),
    "head with a payload": (b"\x91" + ext(8, b"x"), "msgpack"),
    "tuple of a map": (ext(1, b"\x80"), "msgpack"),
    "tuple of nothing": (ext(1), "msgpack"),
    "tuple with a rest": (ext(1, b"\x90\x90"), "msgpack"),
    "tuple in a flat tuple": (ext(1, b"\x91" + ext(1, b"\x90")), "msgpack"),
    "set of an int": (ext(2, b"\x01"), "msgpack"),
    "set of a tuple": (ext(2, b"\x92" + ext(8) + b"\x01"), "msgpack"),
    "sets without end": (
        reduce(lambda data, _: ext(3, b"\x91" + data), range(60), b"\x01"),
        "msgpack",
    ),
    "tuple of text": (b'{"$tuple": "ab"}', "json"),
    "set of text": (b'{"$set": "ab"}', "json"),
    "object of nothing": (b"\x91" + ext(9), "msgpack"),
    "object without fields": (b"\x93" + ext(9) + pack("test.point") + b"\x01", "msgpack"),
    "object of a list": (b"\x94" + ext(9) + pack("test.point") + b"\x01\x90", "msgpack"),
    "object named by bytes": (b"\x94" + ext(9) + pack(b"test.point") + b"\x01\x80", "msgpack"),
    "json object with more": (
        b'{"$object": {"type": "test.point", "version": 1, "fields": {"x": 1}, "more": 1}}',
        "json",
    ),
    "decimal of garbage": (ext(17, b"1.2.3"), "msgpack"),
    "decimal of no ASCII": (ext(17, b"\xff"), "msgpack"),
    "decimal of nothing": (ext(17), "msgpack"),
    "decimal of a list": (b'{"$decimal": [0, [1], 0]}', "json"),
    "complex cut short": (ext(18, b"\x00" * 15), "msgpack"),
    "complex of ints": (b'{"$complex": [1, 2]}', "json"),
    "datetime in year 0": (ext(32, b"0000-01-01T00:00:00"), "msgpack"),
    "datetime in month 13": (ext(32, b"2026-13-01T00:00:00"), "msgpack"),
    "datetime with an offset of 25 hours": (ext(32, b"2026-01-01T00:00:00+25:00"), "msgpack"),
    "datetime with two zones": (ext(32, b"2026-01-01T00:00:00+00:00[UTC][UTC]"), "msgpack"),
    "zone that climbs": (ext(32, b"2026-01-01T00:00:00+00:00[../../etc/passwd]"), "msgpack"),
    "zone that is absolute": (ext(32, b"2026-01-01T00:00:00+00:00[/etc/passwd]"), "msgpack"),
    "zone that is a module": (ext(32, b"2026-01-01T00:00:00+00:00[os.path/x]"), "msgpack"),
    "date of a datetime": (ext(33, b"2026-01-01T00:00:00"), "msgpack"),
    "time of day 25": (ext(34, b"25:00:00"), "msgpack"),
    "timedelta out of range": (ext(35, b"\x7f" + b"\xff" * 11), "msgpack"),
    "timedelta of floats": (b'{"$timedelta": [0.5, 0, 0]}', "json"),
    "timedelta of huge ints": (b'{"$timedelta": [99999999999999999999, 0, 0]}', "json"),
    "uuid of 15 bytes": (ext(48, b"\x00" * 15), "msgpack"),
    "uuid of an int": (b'{"$uuid": 1}', "json"),
    "int of 5000 digits": (b"9" * 5000, "json"),
    "int of garbage": (b'{"$int": "0xyz"}', "json"),
    "int of a number": (b'{"$int": 1}', "json"),
    "float of garbage": (b'{"$float": "1e5"}', "json"),
    "bytes of garbage": (b'{"$bytes": "a"}', "json"),
    "bytes with a space": (b'{"$bytes": "YW Jj"}', "json"),
    "bytes of an int": (b'{"$bytes": 3}', "json"),
    "path of an int": (b'{"$path": 3}', "json"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused(name):
    data, form = HOSTILE[name]
    with pytest.raises(SerializationError) as caught:
        Serializer.deserialize(data, form)
    assert caught.value.__cause__ is not caught.value
    if form == "msgpack":
        with pytest.raises(SerializationError):
            unpack(b"\x92\x01" + data)


@pytest.mark.parametrize("name", [name for name in HOSTILE if " 4 G" in name])
def test_declared_lengths_allocate_nothing(name):
    tracemalloc.start()
    try:
        with pytest.raises(SerializationError):
            unpack(HOSTILE[name][0])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("data", ["text", None, 1, ["a"], {}])
def test_what_is_not_bytes_is_refused(data, form):
    with pytest.raises(SerializationError):
        Serializer.deserialize(data, form)


def test_refused_bytes_leave_nothing_behind():
    data = msgpack.packb([["x" * 1000] * 10, msgpack.ExtType(99, b"")])
    for _ in range(10):
        reads_or_refuses(data, "msgpack")
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(1000):
            reads_or_refuses(data, "msgpack")
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 1 << 18
    finally:
        tracemalloc.stop()


def test_surrogate_pairs_and_spelled_out_escapes_are_text():
    assert Serializer.deserialize(b'"\\ud83d\\udc0d"') == "\U0001f40d"
    assert Serializer.deserialize(b'"\\\\ud800"') == "\\ud800"


def test_numbers_of_python_s_own_json_are_read():
    assert shape(Serializer.deserialize(b"[NaN, -Infinity]")) == shape(
        [float("nan"), float("-inf")]
    )


# --- Pickle


class Marked:
    """Says so when it is unpickled."""

    loaded = 0

    def __reduce__(self):
        return (mark, ())


def mark():
    Marked.loaded += 1


def test_pickle_runs_only_when_named():
    Marked.loaded = 0
    bomb = pickle.dumps(Marked())
    tries = [
        (bomb, "json"),
        (bomb, "msgpack"),
        (ext(99, bomb), "msgpack"),
        (ext(2, bomb), "msgpack"),
        (json.dumps({"$pickle": bomb.hex()}).encode(), "json"),
    ]
    for data, form in tries:
        with pytest.raises(SerializationError):
            Serializer.deserialize(data, form)
    with pytest.raises(SerializationError):
        unpack(bomb)
    assert Marked.loaded == 0
    Serializer.deserialize(bomb, "pickle")
    assert Marked.loaded == 1


def test_pickle_holds_what_the_others_refuse():
    value = [range(3), Pair(1, 2), OrderedDict(a=1)]
    read = Serializer.deserialize(Serializer.serialize(value, "pickle"), "pickle")
    assert (read, type(read[1])) == (value, Pair)
    with pytest.raises(SerializationError) as caught:
        Serializer.serialize(lambda: None, "pickle")
    assert caught.value.__cause__ is not None


def test_pickle_that_raises_is_refused():
    for data in (b"", b"garbage", pickle.dumps(1)[:-1], b"cno_such_module\nx\n."):
        with pytest.raises(SerializationError):
            Serializer.deserialize(data, "pickle")


def test_reading_imports_nothing():
    before = set(sys.modules)
    for name in ("antigravity.fly", "this", "test.antigravity", "antigravity:fly"):
        for version in (0, 1):
            body = {"type": name, "version": version, "fields": {}}
            reads_or_refuses(json.dumps({"$object": body}).encode(), "json")
            reads_or_refuses(b"\x94" + ext(9) + pack(name) + pack(version) + b"\x80", "msgpack")
    assert set(sys.modules) - before == set()


# --- The registry


def written_as(name, version, fields):
    """Say how a record of another time or program looks, in both formats."""
    body = {"$object": {"type": name, "version": version, "fields": fields}}
    head = msgpack.ExtType(9, b"")
    return [
        (json.dumps(body).encode(), "json"),
        (msgpack.packb([head, name, version, fields]), "msgpack"),
    ]


@pytest.mark.usefixtures("registry")
def test_register_is_a_call_or_a_decorator():
    @Serializer.register("fact", version=3)
    @dataclasses.dataclass
    class Fact:
        text: str

    @dataclasses.dataclass
    class Rule:
        text: str

    assert Serializer.register(Rule, "rule") is Rule
    for value in (Fact("a"), Rule("b")):
        assert unpack(pack(value)) == value
    assert json.loads(Serializer.serialize(Fact("a")))["$object"]["version"] == 3


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "name", ["", "A", "1a", "a b", "os:path", "a" * 64, "ä", "a\n", ".a", None, 1, b"a"]
)
def test_names_that_cannot_be(name):
    with pytest.raises(SerializationError, match="name"):
        Serializer.register(UnregisteredPoint, name)


@pytest.mark.usefixtures("registry")
def test_the_longest_name():
    Serializer.register(UnregisteredPoint, "a" + "-" * 62)
    assert unpack(pack(UnregisteredPoint(1))) == UnregisteredPoint(1)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("version", [0, -1, 1.0, "1", True, None])
def test_versions_that_cannot_be(version):
    with pytest.raises(SerializationError, match="version"):
        Serializer.register(UnregisteredPoint, "p", version=version)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("target", [Text, Pair, int, object, Point(1), Colour.RED, len, None])
def test_only_dataclasses_and_enums_are_registered(target):
    with pytest.raises(SerializationError):
        Serializer.register(target, "thing")


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("upgrade", [1, "upper", [len]])
def test_upgrades_that_cannot_be(upgrade):
    with pytest.raises(SerializationError, match="upgrade"):
        Serializer.register(UnregisteredPoint, "p", version=2, upgrade=upgrade)


@pytest.mark.usefixtures("registry")
def test_a_name_is_registered_once():
    Serializer.register(UnregisteredPoint, "point", version=2)
    Serializer.register(UnregisteredPoint, "point", version=2)
    with pytest.raises(SerializationError, match="UnregisteredPoint"):
        Serializer.register(Unregistered, "point", version=2)
    with pytest.raises(SerializationError, match="version 2"):
        Serializer.register(UnregisteredPoint, "point", version=3)
    with pytest.raises(SerializationError, match="'point'"):
        Serializer.register(UnregisteredPoint, "other")
    with pytest.raises(SerializationError):
        pack(Unregistered.ONE)


@pytest.mark.usefixtures("registry")
def test_a_class_that_its_fields_cannot_build_is_not_registered():
    @dataclasses.dataclass
    class Needy:
        kept: int
        given: dataclasses.InitVar[int]

    @dataclasses.dataclass
    class Content:
        kept: int
        given: dataclasses.InitVar[int] = 0

    with pytest.raises(SerializationError, match="given"):
        Serializer.register(Needy, "needy")
    Serializer.register(Content, "content")
    assert unpack(pack(Content(1))) == Content(1)
    for data, form in written_as("content", 1, {"kept": 1, "given": 2}):
        with pytest.raises(SerializationError, match="given"):
            Serializer.deserialize(data, form)


def test_fields_that_the_constructor_does_not_take_are_kept():
    node = Node(1)
    node.seen = 7
    for form in SAFE:
        assert Serializer.deserialize(Serializer.serialize(node, form), form).seen == 7


@pytest.mark.usefixtures("registry")
def test_frozen_objects_keep_them_too():
    @Serializer.register("frozen")
    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Frozen:
        a: int
        b: int = dataclasses.field(init=False, default=0)

    value = Frozen(a=1)
    object.__setattr__(value, "b", 5)
    assert unpack(pack(value)) == value


@pytest.mark.parametrize(
    ("name", "version", "fields", "says"),
    [
        ("test.ghost", 1, {}, "test.ghost"),
        ("test.point", 2, {"x": 1}, "version 2.*version 1"),
        ("test.point", 0, {"x": 1}, "version 0"),
        ("test.point", -(1 << 62), {"x": 1}, "version"),
        ("test.point", 1, {"x": 1, "color": 2}, "color"),
        ("test.point", 1, {}, "x"),
        ("test.level", 1, {"name": "TOP"}, "TOP"),
        ("test.level", 1, {"name": "__class__"}, "__class__"),
        ("test.level", 1, {}, "name"),
        ("test.level", 1, {"name": []}, "list"),
        ("test.level", 1, {"name": "HIGH", "value": 2}, "value"),
        ("test.access", 1, {"value": 99}, "99"),
        ("test.access", 1, {"value": "READ"}, "int"),
        ("test.access", 1, {"name": "READ"}, "value"),
    ],
)
def test_records_that_do_not_fit_are_refused(name, version, fields, says):
    for data, form in written_as(name, version, fields):
        with pytest.raises(SerializationError, match=says):
            Serializer.deserialize(data, form)


def test_fields_that_a_record_lacks_take_their_defaults():
    for data, form in written_as("test.point", 1, {"x": 1}):
        assert Serializer.deserialize(data, form) == Point(1, None)


@pytest.mark.usefixtures("registry")
def test_a_constructor_that_raises_is_reported():
    @Serializer.register("picky")
    @dataclasses.dataclass
    class Picky:
        a: int

        def __post_init__(self):
            if self.a < 0:
                raise KeyError("negative")

    for data, form in written_as("picky", 1, {"a": -1}):
        with pytest.raises(SerializationError, match=r"picky.*negative") as caught:
            Serializer.deserialize(data, form)
        assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.usefixtures("registry")
def test_upgrade_by_one_function():
    def from_any(fields):
        return {"name": fields.get("name") or fields["title"], "tags": list(fields.get("tags", ()))}

    @Serializer.register("note", version=3, upgrade=from_any)
    @dataclasses.dataclass
    class Note:
        name: str
        tags: list

    for fields, version in (({"title": "a"}, 1), ({"name": "a", "tags": ()}, 2)):
        for data, form in written_as("note", version, fields):
            assert Serializer.deserialize(data, form) == Note("a", [])
    for data, form in written_as("note", 3, {"title": "a"}):
        with pytest.raises(SerializationError, match="title"):
            Serializer.deserialize(data, form)


@pytest.mark.usefixtures("registry")
def test_upgrade_step_by_step():
    steps = {
        1: lambda fields: {"cents": fields["euros"] * 100},
        3: lambda fields: {**fields, "currency": "EUR"},
    }

    @Serializer.register("price", version=4, upgrade=steps)
    @dataclasses.dataclass
    class Price:
        cents: int
        currency: str

    older = [(1, {"euros": 2}), (2, {"cents": 200}), (3, {"cents": 200})]
    for version, fields in older:
        for data, form in written_as("price", version, fields):
            assert Serializer.deserialize(data, form) == Price(200, "EUR")


@pytest.mark.usefixtures("registry")
def test_upgrade_of_enums():
    Serializer.register(
        Unregistered, "number", version=2, upgrade=lambda old: {"name": old["name"].upper()}
    )
    for data, form in written_as("number", 1, {"name": "one"}):
        assert Serializer.deserialize(data, form) is Unregistered.ONE


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "upgrade",
    [lambda fields: fields["missing"], lambda _: None, lambda _: 1 / 0, {1: len}],
)
def test_an_upgrade_that_fails_is_reported(upgrade):
    Serializer.register(UnregisteredPoint, "p", version=2, upgrade=upgrade)
    for data, form in written_as("p", 1, {"x": 1}):
        with pytest.raises(SerializationError, match="'p'") as caught:
            Serializer.deserialize(data, form)
        assert caught.value.__cause__ is not None


@pytest.mark.usefixtures("registry")
def test_a_record_without_an_upgrade_is_taken_as_it_is():
    Serializer.register(UnregisteredPoint, "p", version=5)
    for data, form in written_as("p", 2, {"x": 1}):
        assert Serializer.deserialize(data, form) == UnregisteredPoint(1)


@pytest.mark.usefixtures("registry")
def test_a_class_may_be_moved_and_renamed():
    Serializer.register(UnregisteredPoint, "p")
    data = pack(UnregisteredPoint(1))
    moved = dataclasses.make_dataclass("Elsewhere", ["x", "y", "z"])
    serialization._TYPE_OF_NAME.pop("p")
    Serializer.register(moved, "p")
    assert unpack(data) == moved(1, None, 0)


# --- Many at once


def test_threads_do_not_mix_their_values():
    wrong = []

    def work(number):
        value = {"n": number, "t": (number, {number}), "text": str(number) * 50}
        for _ in range(500):
            read = unpack(pack(value))
            wrong.extend([] if read == value else [read])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


@pytest.mark.usefixtures("registry")
def test_packing_may_pack_on_the_way():
    @Serializer.register("nosy")
    @dataclasses.dataclass
    class Nosy:
        a: int

        def __getattribute__(self, name):
            if name == "a":
                assert unpack(pack([1, (2, {3})])) == [1, (2, {3})]
            return object.__getattribute__(self, name)

    assert unpack(pack(["before", Nosy(1), "after"])) == ["before", Nosy(1), "after"]


def test_a_refused_value_leaves_the_next_one_alone():
    for _ in range(50):
        with pytest.raises(SerializationError):
            pack(["x" * 100, object()])
        assert pack({"a": 1}) == b"\x81\xa1a\x01"


def test_large_values_are_not_held_on_to():
    serialization._idle.clear()
    assert len(unpack(pack("x" * (4 << 20)))) == 4 << 20
    assert len(serialization._idle) == 0
    pack("x")
    assert len(serialization._idle) == 1
