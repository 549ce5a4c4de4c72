"""Values in, bytes out: what a store may hold, and how it is written.

Three formats. Stores write MessagePack (`pack`, `unpack`), people read JSON (the default of
`Serializer`), and pickle is used only where the caller names it. The first two hold the same
values, and a value comes back with the type it had, or is refused before anything is written:

    None bool int float str bytes list dict     as MessagePack and JSON have them; any hashable key
    tuple set frozenset                         also nested, also as keys
    int beyond 64 bits, complex, Decimal
    datetime date time timedelta                zone, offset and fold kept
    UUID Path PurePosixPath
    dataclasses and Enum classes                once registered, see `Serializer.register`

Rules:

1. Types are exact. An instance of an unregistered subclass (a namedtuple, an IntEnum, a
   numpy.float64) is refused, never flattened. The one exception: bytearray and memoryview are
   written, and come back, as bytes. (msgpack itself lets one thing of its own through, an ExtType;
   it is no value of kvsage, and reading refuses it or takes it for what its code means.)
2. A value has one encoding, since content is stored once per distinct bytes: the members of a set
   are sorted by theirs. What comes back different is different: 1, 1.0 and True, one instant in two
   zones, a dict in another order.
3. An array or a map is its header followed by its packed elements, so a long value can be cut and
   joined between elements.
4. Reading imports nothing by name and runs nothing but the constructors of registered classes.
5. Every failure is a `SerializationError` with the cause kept.

MessagePack extension codes are part of the disk format: never reused, never given a new meaning.

    code  type             payload
      -1  Timestamp        MessagePack's own
       1  tuple            an array of the items, where none of them has parts
       2  set              an array of the members, sorted by their bytes
       3  frozenset        the same
       8  tuple            any other: empty, the head of the array [head, item, ...]
       9  registered       empty, the head of the array [head, name, version, {field: value}]
      16  int              big-endian two's complement, only beyond 64 bits
      17  Decimal          ASCII, as str() writes it
      18  complex          two big-endian float64: real, imaginary
      32  datetime         ASCII: ISO 8601, then [Zone/Name], then [fold=1], where they apply
      33  date             ASCII: ISO 8601
      34  time             ASCII, as datetime
      35  timedelta        three big-endian int32: days, seconds, microseconds
      48  UUID             its 16 bytes
      49  Path             UTF-8; a file name's bytes that are not UTF-8 stay as they are
      50  PurePosixPath    the same

Tuples with parts and registered objects are headed arrays, not payloads, because a payload is read
and written by a nested call of msgpack, which takes 40 KB and up to 430 KB of the C stack. This way
only sets nest calls, and their depth is bounded.
"""

from __future__ import annotations

import binascii
import dataclasses
import decimal
import enum
import inspect
import io
import json
import math
import re
import reprlib
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, overload
from uuid import UUID
from zoneinfo import ZoneInfo

from msgpack import ExtType, Packer, StackError, Timestamp, Unpacker, unpackb

from kvsage.errors import SerializationError

__all__ = ["Format", "Serializer", "Upgrade", "pack", "unpack"]

Format: TypeAlias = Literal["json", "msgpack", "pickle"]
Upgrade: TypeAlias = Callable[[dict[str, Any]], Mapping[str, Any]]
T = TypeVar("T")

JSON_DEPTH_MAX: Final = 128
SET_DEPTH_MAX: Final = 8
PICKLE_PROTOCOL: Final = 5
PATH_STEPS_MAX: Final = 32

_FLAT_TUPLE: Final = 1
_SET: Final = 2
_FROZENSET: Final = 3
_TUPLE: Final = 8
_OBJECT: Final = 9


# --- Scalars: one row a type ----------------------------------------------------------------------


class _Scalar(NamedTuple):
    """How a type without parts is written: an extension's payload, and a JSON tag's body."""

    type: type
    code: int
    tag: str
    dump: Callable[[Any], bytes]
    load: Callable[[bytes], Any]
    to_json: Callable[[Any], Any]
    from_json: Callable[[Any], Any]


def _expect(body: Any, kind: type) -> Any:
    if type(body) is not kind:
        raise TypeError(f"{kind.__name__} expected, not {type(body).__name__}")
    return body


def _textual(
    kind: type, code: int, tag: str, write: Callable[[Any], str], read: Callable[[str], Any]
) -> _Scalar:
    """A type whose payload is the very text that JSON shows."""
    return _Scalar(
        type=kind,
        code=code,
        tag=tag,
        dump=lambda value: write(value).encode("ascii"),
        load=lambda payload: read(payload.decode("ascii")),
        to_json=write,
        from_json=lambda body: read(_expect(body, str)),
    )


def _int_payload(value: int) -> bytes:
    # Binary: decimal text costs quadratic time, and Python refuses it beyond 4300 digits.
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


# The caller's precision, traps and capitals may not change what is written or read.
_EXACT: Final = decimal.Context(
    prec=decimal.MAX_PREC,
    Emin=decimal.MIN_EMIN,
    Emax=decimal.MAX_EMAX,
    capitals=1,
    clamp=0,
    flags=[],
    traps=[decimal.InvalidOperation],
)

_ZONE_NAME: Final = r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*"
_ZONE: Final = re.compile(_ZONE_NAME)
_STAMP: Final = re.compile(rf"([^\[]*)(?:\[({_ZONE_NAME})\])?(\[fold=1\])?")
_TINY_OFFSET: Final = re.compile(r"([+-])00:00:00\.(\d{6})$")


def _stamp_text(value: datetime | time) -> str:
    text = value.isoformat()
    zone = value.tzinfo
    if isinstance(zone, ZoneInfo) and _ZONE.fullmatch(zone.key or ""):
        text += f"[{zone.key}]"
    return f"{text}[fold=1]" if value.fold else text


def _stamp(kind: type[datetime | time], text: str) -> datetime | time:
    parts = _STAMP.fullmatch(text)
    if parts is None:
        raise ValueError(f"not a {kind.__name__}: {text[:80]!r}")
    value = kind.fromisoformat(parts[1])
    if value.tzinfo is UTC and not parts[1].endswith("+00:00"):
        value = value.replace(tzinfo=_tiny_offset(parts[1]))
    if parts[3]:
        value = value.replace(fold=1)
    if parts[2]:
        value = _in_zone(value, parts[2])
    return value


def _tiny_offset(text: str) -> timezone:
    # fromisoformat takes an offset below one second for UTC (seen in Python 3.11).
    parts = _TINY_OFFSET.search(text)
    return timezone(timedelta(microseconds=int(parts[1] + parts[2]))) if parts else UTC


def _in_zone(value: datetime | time, key: str) -> datetime | time:
    try:
        zoned = value.replace(tzinfo=ZoneInfo(key))
    except (KeyError, ValueError, OSError):  # this machine does not know the zone
        return value
    # Rules of zones change. Where they no longer give the offset that was written, the fixed offset
    # keeps both the instant and the time on the wall.
    return zoned if zoned.utcoffset() == value.utcoffset() else value


def _timedelta_parts(body: Any) -> timedelta:
    days, seconds, microseconds = (_expect(part, int) for part in _expect(body, list))
    return timedelta(days, seconds, microseconds)


def _complex_parts(body: Any) -> complex:
    real, imaginary = (_expect(part, float) for part in _expect(body, list))
    return complex(real, imaginary)


def _path_json(path: PurePath) -> str | dict[str, str]:
    # A POSIX file name is any bytes; JSON text can't hold those that are not UTF-8.
    raw = _path_payload(path)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return _bytes_json(raw)


def _path_payload(path: PurePath) -> bytes:
    return str(path).encode("utf-8", "surrogateescape")


def _path(kind: type[PurePath], code: int, tag: str) -> _Scalar:
    def load(payload: bytes) -> PurePath:
        return kind(payload.decode("utf-8", "surrogateescape"))

    def from_json(body: Any) -> PurePath:
        return load(body if type(body) is bytes else _expect(body, str).encode())

    return _Scalar(type(kind()), code, tag, _path_payload, load, _path_json, from_json)


_SCALARS: Final = (
    _Scalar(
        type=int,
        code=16,
        tag="$int",
        dump=_int_payload,
        load=lambda payload: int.from_bytes(payload, "big", signed=True),
        to_json=hex,
        from_json=lambda body: int(_expect(body, str), 16),
    ),
    _textual(decimal.Decimal, 17, "$decimal", _EXACT.to_sci_string, _EXACT.create_decimal),
    _Scalar(
        type=complex,
        code=18,
        tag="$complex",
        dump=lambda value: struct.pack(">dd", value.real, value.imag),
        load=lambda payload: complex(*struct.unpack(">dd", payload)),
        to_json=lambda value: [_float_json(value.real), _float_json(value.imag)],
        from_json=_complex_parts,
    ),
    _textual(datetime, 32, "$datetime", _stamp_text, partial(_stamp, datetime)),
    _textual(date, 33, "$date", date.isoformat, date.fromisoformat),
    _textual(time, 34, "$time", _stamp_text, partial(_stamp, time)),
    _Scalar(
        type=timedelta,
        code=35,
        tag="$timedelta",
        dump=lambda value: struct.pack(">iii", value.days, value.seconds, value.microseconds),
        load=lambda payload: timedelta(*struct.unpack(">iii", payload)),
        to_json=lambda value: [value.days, value.seconds, value.microseconds],
        from_json=_timedelta_parts,
    ),
    _Scalar(
        type=UUID,
        code=48,
        tag="$uuid",
        dump=lambda value: value.bytes,
        load=lambda payload: UUID(bytes=payload),
        to_json=str,
        from_json=lambda body: UUID(_expect(body, str)),
    ),
    _path(Path, 49, "$path"),
    _path(PurePosixPath, 50, "$purepath"),
)
_SCALAR_OF_TYPE: Final = {scalar.type: scalar for scalar in _SCALARS}


# --- The registry of types ------------------------------------------------------------------------

_TYPE_NAME: Final = re.compile(r"[a-z][a-z0-9._-]{0,62}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Type:
    """A registered class: how it is taken apart into named fields and built again."""

    cls: type
    name: str
    version: int
    upgrade: Upgrade | Mapping[int, Upgrade]
    take_apart: Callable[[Any], dict[str, Any]]
    build: Callable[[dict[str, Any]], Any]

    def load(self, version: int, fields: dict[str, Any]) -> Any:
        if not 1 <= version <= self.version:
            raise SerializationError(
                f"{self.name!r} is of version {reprlib.repr(version)}; "
                f"registered here is version {self.version}"
            )
        try:
            if version < self.version:
                fields = self._upgraded(version, fields)
            return self.build(fields)
        except Exception as error:
            raise SerializationError(
                f"{self.name!r} (version {version}) cannot be built: {_reason(error)}"
            ) from error

    def _upgraded(self, version: int, fields: dict[str, Any]) -> dict[str, Any]:
        if callable(self.upgrade):
            return dict(self.upgrade(fields))
        for step in range(version, self.version):
            if step in self.upgrade:
                fields = dict(self.upgrade[step](fields))
        return fields


_Parts: TypeAlias = tuple[Callable[[Any], dict[str, Any]], Callable[[dict[str, Any]], Any]]


def _dataclass_parts(cls: type) -> _Parts:
    names = [field.name for field in dataclasses.fields(cls)]
    known = frozenset(names)
    set_later = [field.name for field in dataclasses.fields(cls) if not field.init]
    foreign = _required_parameters(cls) - known
    if foreign:
        raise SerializationError(
            f"{cls.__qualname__} cannot be registered: its constructor requires "
            f"{sorted(foreign)}, which are not fields"
        )

    def take_apart(value: Any) -> dict[str, Any]:
        return {name: getattr(value, name) for name in names}

    def build(fields: dict[str, Any]) -> Any:
        if not known.issuperset(fields):
            raise ValueError(f"unknown fields {sorted(map(repr, fields.keys() - known))}")
        later = {name: fields.pop(name) for name in set_later if name in fields}
        value = cls(**fields)
        for name, part in later.items():
            object.__setattr__(value, name, part)  # frozen dataclasses refuse setattr
        return value

    return take_apart, build


def _required_parameters(cls: type) -> set[str]:
    try:
        parameters = inspect.signature(cls).parameters.values()
    except NameError:  # Python 3.14 evaluates annotations here, also those only a checker can
        return set()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in parameters if p.default is p.empty and p.kind not in optional}


def _enum_parts(cls: Any) -> _Parts:
    # A Flag's value may be several members at once, so there it stands for itself.
    if issubclass(cls, enum.Flag):
        return (
            lambda flags: {"value": flags.value},
            lambda fields: _expect(cls(_expect(_only("value", fields), int)), cls),
        )
    return (
        lambda member: {"name": member.name},
        lambda fields: cls.__members__[_only("name", fields)],
    )


def _only(name: str, fields: dict[str, Any]) -> Any:
    if fields.keys() != {name}:
        raise ValueError(f"only the field {name!r} expected, not {sorted(map(repr, fields))}")
    return fields[name]


def _type_for(
    cls: Any, name: Any, version: int, upgrade: Upgrade | Mapping[int, Upgrade] | None
) -> _Type:
    if not (isinstance(name, str) and _TYPE_NAME.fullmatch(name)):
        raise SerializationError(
            f"not a name for a type (1 to 63 of a-z, 0-9, '.', '_', '-', a letter first): {name!r}"
        )
    if type(version) is not int or version < 1:
        raise SerializationError(f"the version of {name!r} is a whole number from 1: {version!r}")
    if not isinstance(cls, type):
        raise SerializationError(f"{name!r} registers a class, not {cls!r}")
    if not (upgrade is None or callable(upgrade) or isinstance(upgrade, Mapping)):
        raise SerializationError(f"the upgrade of {name!r} is a function or a mapping of them")
    if issubclass(cls, enum.Enum):
        parts = _enum_parts(cls)
    elif dataclasses.is_dataclass(cls):
        parts = _dataclass_parts(cls)
    else:
        raise SerializationError(
            f"{cls.__qualname__} cannot be registered: neither a dataclass nor an Enum"
        )
    return _Type(cls, name, version, upgrade or {}, *parts)


# Read without a lock: a dict gives each reader a whole entry or none.
_TYPE_OF_CLASS: Final[dict[type, _Type]] = {}
_TYPE_OF_NAME: Final[dict[str, _Type]] = {}
_registering = threading.Lock()  # guards that name and class enter both mappings together


def _register(
    cls: Any, name: Any, version: int, upgrade: Upgrade | Mapping[int, Upgrade] | None
) -> Any:
    entry = _type_for(cls, name, version, upgrade)
    with _registering:
        for known in (_TYPE_OF_NAME.get(entry.name), _TYPE_OF_CLASS.get(entry.cls)):
            if known is None:
                continue
            if (known.cls, known.name, known.version) != (entry.cls, entry.name, entry.version):
                raise SerializationError(
                    f"{known.name!r} version {known.version} is already registered for "
                    f"{known.cls.__module__}.{known.cls.__qualname__}"
                )
        _TYPE_OF_NAME[entry.name] = entry
        _TYPE_OF_CLASS[entry.cls] = entry
    return cls


def _type_of(cls: type) -> _Type:
    entry = _TYPE_OF_CLASS.get(cls)
    if entry is None:
        registrable = issubclass(cls, enum.Enum) or dataclasses.is_dataclass(cls)
        hint = ", which is not registered (Serializer.register)" if registrable else ""
        raise TypeError(f"a {cls.__module__}.{cls.__qualname__}{hint}")
    return entry


def _build(name: Any, version: Any, fields: Any) -> Any:
    entry = _TYPE_OF_NAME.get(name)
    if entry is None:
        raise SerializationError(f"no type is registered under the name {reprlib.repr(name)}")
    return entry.load(version, fields)


# --- MessagePack ----------------------------------------------------------------------------------

_NATIVE: Final = (type(None), bool, int, float, str, bytes, bytearray, memoryview)
_WITHOUT_PARTS: Final = frozenset({*_NATIVE, *_SCALAR_OF_TYPE})

_extension: Final = ExtType._make  # checks nothing, and codes and payloads of ours need no check
_TUPLE_HEAD: Final = _extension((_TUPLE, b""))
_OBJECT_HEAD: Final = _extension((_OBJECT, b""))


class _Packing:
    """Says in MessagePack's terms what msgpack does not know, at one depth of sets within sets."""

    def __init__(self, set_depth: int = 0) -> None:
        self._set_depth = set_depth

    def packer(self) -> Any:
        return Packer(default=self._substitute, strict_types=True)

    def _substitute(self, value: Any) -> Any:
        kind = type(value)
        scalar = _SCALAR_OF_TYPE.get(kind)
        if scalar is not None:
            return _extension((scalar.code, scalar.dump(value)))
        if kind is tuple:
            if _WITHOUT_PARTS.issuperset(map(type, value)):
                return _extension((_FLAT_TUPLE, _packed(list(value))))
            return [_TUPLE_HEAD, *value]
        if kind is set or kind is frozenset:
            return _extension((_SET if kind is set else _FROZENSET, self._members(value)))
        entry = _type_of(kind)
        return [_OBJECT_HEAD, entry.name, entry.version, entry.take_apart(value)]

    def _members(self, members: set[Any] | frozenset[Any]) -> bytes:
        if self._set_depth == SET_DEPTH_MAX:
            raise ValueError(f"sets nested more than {SET_DEPTH_MAX} deep")
        packer = _Packing(self._set_depth + 1).packer()
        # Packed within an array, as it will stand in one: that level counts for the depth allowed.
        packed = sorted(packer.pack([member])[1:] for member in members)
        return b"".join([packer.pack_array_header(len(packed)), *packed])


_PACKING: Final = _Packing()

# A packer holds one value at a time, and while it packs, this thread may pack another value (in a
# finalizer) and so may other threads. So a packer belongs to one call, and waits here in between:
# making one costs as much as packing a small record. pop and append are atomic.
_idle: Final[deque[Any]] = deque(maxlen=16)
_IDLE_BYTES_MAX: Final = 1 << 20  # a buffer that has grown much beyond is better given back


def _packed(value: Any) -> bytes:
    try:
        packer = _idle.pop()
    except IndexError:
        packer = _PACKING.packer()
    data: bytes = packer.pack(value)
    if len(data) <= _IDLE_BYTES_MAX:
        _idle.append(packer)
    return data


def pack(value: Any) -> bytes:
    """Write a value as MessagePack, the form in which stores keep it.

    Args:
        value: anything that the module's docstring lists, nested up to 1024 deep (an object counts
            twice), sets within sets up to 8 deep.

    Returns:
        Bytes that `unpack` reads back.

    Raises:
        SerializationError: the value, or a part of it, cannot be stored; the message names the part
            and its type.
    """
    try:
        return _packed(value)
    except Exception as error:
        raise _unwritable(value, error, _packed) from error


class _PartsAheadError(Exception):
    """Something with parts, met by a reader that knows only what has none."""


def _load(loads: Mapping[int, Callable[[bytes], Any]], code: int, payload: bytes) -> Any:
    load = loads.get(code)
    if load is not None:
        return load(payload)
    if code in _LOAD_FLAT or code in _HEADS:
        raise _PartsAheadError("parts where there can be none")
    raise ValueError(f"unknown extension code {code}")


_LOAD_SCALAR: Final = {scalar.code: scalar.load for scalar in _SCALARS}
_load_scalar: Final = partial(_load, _LOAD_SCALAR)


def _flat(payload: bytes) -> Any:
    return _expect(unpackb(payload, ext_hook=_load_scalar, strict_map_key=False), list)


_LOAD_FLAT: Final[dict[int, Callable[[bytes], Any]]] = {
    **_LOAD_SCALAR,
    _FLAT_TUPLE: lambda payload: tuple(_flat(payload)),
    _SET: lambda payload: set(_flat(payload)),
    _FROZENSET: lambda payload: frozenset(_flat(payload)),
}
_load_flat: Final = partial(_load, _LOAD_FLAT)


class _Head:
    """Stands for the head of a tuple or an object until its array is complete."""


_HEADS: Final = {_TUPLE: _Head(), _OBJECT: _Head()}
_MAP: Final = re.compile(rb"[\x80-\x8f\xde\xdf]")


class _Unpacking:
    """Reads one value that holds more than `_load_flat` can read.

    A hook on every array makes that slower, so only such values come here, for a second reading.
    """

    def __init__(self, set_depth: int = 0) -> None:
        self._set_depth = set_depth
        self._heads_open = 0

    def read(self, data: bytes | bytearray | memoryview) -> Any:
        try:
            value = unpackb(data, ext_hook=self._load, list_hook=self._array, strict_map_key=False)
        except StackError:
            self._heads_open = 0
            value = self._read_parts(data)
        if self._heads_open:
            raise ValueError("a head that does not stand first in an array")
        return value

    def _read_parts(self, data: bytes | bytearray | memoryview) -> Any:
        # msgpack packs one level more than it unpacks, so the outermost is taken off here.
        unpacker = Unpacker(
            ext_hook=self._load,
            list_hook=self._array,
            strict_map_key=False,
            max_buffer_size=len(data),
        )
        unpacker.feed(data)
        if _MAP.match(data):
            size = unpacker.read_map_header()
            value: Any = {unpacker.unpack(): unpacker.unpack() for _ in range(size)}
        else:
            size = unpacker.read_array_header()
            value = self._array([unpacker.unpack() for _ in range(size)])
        if unpacker.tell() != len(data):
            raise ValueError("something stands behind the value")
        return value

    def _load(self, code: int, payload: bytes) -> Any:
        head = _HEADS.get(code)
        if head is not None:
            if payload:
                raise ValueError("a head with a payload")
            self._heads_open += 1
            return head
        if code == _SET:
            return set(self._members(payload))
        if code == _FROZENSET:
            return frozenset(self._members(payload))
        return _load(_LOAD_FLAT, code, payload)

    def _members(self, payload: bytes) -> Any:
        if self._set_depth == SET_DEPTH_MAX:
            raise ValueError(f"sets nested more than {SET_DEPTH_MAX} deep")
        return _expect(_Unpacking(self._set_depth + 1).read(payload), list)

    def _array(self, items: list[Any]) -> Any:
        if not items or type(items[0]) is not _Head:
            return items
        self._heads_open -= 1
        if items[0] is _HEADS[_TUPLE]:
            return tuple(items[1:])
        _, name, version, fields = items
        return _build(name, version, fields)


def unpack(data: bytes | bytearray | memoryview) -> Any:
    """Read back what `pack` wrote.

    Args:
        data: exactly one value; any other bytes are safe to hand in.

    Returns:
        The value, which shares no memory with ``data``.

    Raises:
        SerializationError: the bytes are cut short, have something behind the value, or are not
            what `pack` writes; or a registered type is unknown here, newer, or cannot be built.
    """
    try:
        return unpackb(data, ext_hook=_load_flat, strict_map_key=False)
    except (_PartsAheadError, StackError):
        read = _Unpacking().read
    except Exception as error:
        raise _unreadable(error) from error
    return _guarded(read, data)


# --- JSON -----------------------------------------------------------------------------------------
#
# What JSON does not have is a mapping of exactly one key, which begins with "$". A mapping of the
# user's that looks like that, or has keys other than str, is written as {"$dict": [[key, value]]}.

_JSON_NATIVE: Final = frozenset({str, bool, type(None)})
_NON_FINITE: Final = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def _to_json(value: Any, depth: int = 0) -> Any:
    kind = type(value)
    if kind in _JSON_NATIVE:
        return value
    if depth > JSON_DEPTH_MAX:
        raise RecursionError
    write = _TO_JSON.get(kind)
    if write is not None:
        return write(value, depth + 1)
    if kind in _SCALAR_OF_TYPE:
        return _scalar_json(value)
    entry = _type_of(kind)
    fields = {name: _to_json(part, depth + 1) for name, part in entry.take_apart(value).items()}
    return {"$object": {"type": entry.name, "version": entry.version, "fields": fields}}


def _scalar_json(value: Any) -> dict[str, Any]:
    scalar = _SCALAR_OF_TYPE[type(value)]
    return {scalar.tag: scalar.to_json(value)}


def _int_json(value: int) -> int | dict[str, str]:
    return value if -(1 << 63) <= value < 1 << 64 else _scalar_json(value)


def _float_json(value: float) -> float | dict[str, str]:
    # RFC 8259 knows no NaN and no infinities, and PostgreSQL and jq refuse them.
    return value if math.isfinite(value) else {"$float": repr(value)}


def _bytes_json(value: bytes | bytearray | memoryview) -> dict[str, str]:
    return {"$bytes": binascii.b2a_base64(value, newline=False).decode("ascii")}


def _list_json(value: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
    # A call for each plain item would double the price of a list.
    return [item if type(item) in _JSON_NATIVE else _to_json(item, depth) for item in value]


def _members_json(value: set[Any] | frozenset[Any], depth: int) -> list[Any]:
    inside_a_set = _Packing(1).packer()
    return [_to_json(member, depth) for member in sorted(value, key=inside_a_set.pack)]


def _dict_json(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    if set(map(type, value)) <= {str} and not (len(value) == 1 and next(iter(value))[:1] == "$"):
        return {
            key: part if type(part) in _JSON_NATIVE else _to_json(part, depth)
            for key, part in value.items()
        }
    pairs = [[_to_json(key, depth), _to_json(part, depth)] for key, part in value.items()]
    return {"$dict": pairs}


_TO_JSON: Final[dict[type, Callable[[Any, int], Any]]] = {
    int: lambda value, _depth: _int_json(value),
    float: lambda value, _depth: _float_json(value),
    bytes: lambda value, _depth: _bytes_json(value),
    bytearray: lambda value, _depth: _bytes_json(value),
    memoryview: lambda value, _depth: _bytes_json(value),
    Timestamp: lambda value, _depth: {"$timestamp": [value.seconds, value.nanoseconds]},
    list: _list_json,
    dict: _dict_json,
    tuple: lambda value, depth: {"$tuple": _list_json(value, depth)},
    set: lambda value, depth: {"$set": _members_json(value, depth)},
    frozenset: lambda value, depth: {"$frozenset": _members_json(value, depth)},
}


def _object_from_json(body: Any) -> Any:
    if _expect(body, dict).keys() != {"type", "version", "fields"}:
        raise ValueError("an $object has exactly type, version and fields")
    return _build(body["type"], body["version"], body["fields"])


def _dict_from_json(body: Any) -> dict[Any, Any]:
    return dict(_expect(pair, list) for pair in _expect(body, list))


def _timestamp_from_json(body: Any) -> Any:
    seconds, nanoseconds = (_expect(part, int) for part in _expect(body, list))
    return Timestamp(seconds, nanoseconds)


_FROM_JSON: Final[dict[str, Callable[[Any], Any]]] = {
    **{scalar.tag: scalar.from_json for scalar in _SCALARS},
    "$float": lambda body: _NON_FINITE[_expect(body, str)],
    "$bytes": lambda body: binascii.a2b_base64(_expect(body, str), strict_mode=True),
    "$timestamp": _timestamp_from_json,
    "$tuple": lambda body: tuple(_expect(body, list)),
    "$set": lambda body: set(_expect(body, list)),
    "$frozenset": lambda body: frozenset(_expect(body, list)),
    "$dict": _dict_from_json,
    "$object": _object_from_json,
}


def _untag(mapping: dict[str, Any]) -> Any:
    if len(mapping) != 1:
        return mapping
    ((tag, body),) = mapping.items()
    if tag[:1] != "$":
        return mapping
    read = _FROM_JSON.get(tag)
    if read is None:
        raise ValueError(f"unknown tag {tag[:80]!r}")
    return read(body)


_JSON_WRITER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False)
_JSON_READER: Final = json.JSONDecoder(object_hook=_untag)
_ESCAPED_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def _write_json(value: Any) -> bytes:
    return _JSON_WRITER.encode(_to_json(value)).encode()


def _read_json(data: bytes | bytearray | memoryview) -> Any:
    text = str(data, "utf-8")
    if _ESCAPED_SURROGATE.search(text):
        # Half a character, which JSON's escapes can spell and no format can write again.
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    return _JSON_READER.decode(text)


# --- Pickle ---------------------------------------------------------------------------------------


def _write_pickle(value: Any) -> bytes:
    import pickle  # noqa: PLC0415  # only where the caller opted in

    return pickle.dumps(value, protocol=PICKLE_PROTOCOL)


def _read_pickle(data: bytes | bytearray | memoryview) -> Any:
    stream = io.BytesIO(data)
    import pickle  # noqa: PLC0415

    value = pickle.Unpickler(stream).load()
    if stream.tell() != len(data):
        raise ValueError("something stands behind the value")
    return value


# --- Errors ---------------------------------------------------------------------------------------


def _is_depth(error: Exception) -> bool:
    if isinstance(error, (RecursionError, StackError)):
        return True
    return str(error).startswith("recursion limit exceeded")  # msgpack's packer: a ValueError


def _reason(error: Exception) -> str:
    return "nested too deep" if _is_depth(error) else str(error) or type(error).__name__


def _unreadable(error: Exception) -> SerializationError:
    return SerializationError(f"cannot read a value from these bytes: {_reason(error)}")


def _guarded(
    read: Callable[[bytes | bytearray | memoryview], Any], data: bytes | bytearray | memoryview
) -> Any:
    try:
        return read(data)
    except SerializationError:
        raise
    except Exception as error:
        raise _unreadable(error) from error


def _unwritable(value: Any, error: Exception, write: Callable[[Any], bytes]) -> SerializationError:
    if _is_depth(error):
        return SerializationError("cannot store value: nested too deep, or it contains itself")
    path = "value"
    with suppress(Exception):  # a value odd enough may also refuse to be looked at
        path = _culprit(value, write)
    return SerializationError(f"cannot store {path}: {_reason(error)}")


def _culprit(value: Any, write: Callable[[Any], bytes]) -> str:
    """Where the part that cannot be written lies, by writing part after part again."""
    path = "value"
    for _ in range(PATH_STEPS_MAX):
        culprit = next((part for part in _parts(value) if not _can_write(part[1], write)), None)
        if culprit is None:
            break
        path += culprit[0]
        value = culprit[1]
    return path


def _can_write(part: Any, write: Callable[[Any], bytes]) -> bool:
    with suppress(Exception):
        write(part)
        return True
    return False


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    if kind is dict:
        for key, part in list(value.items()):
            shown = reprlib.repr(key)
            yield f".key({shown})", key
            yield f"[{shown}]", part
    elif kind is list or kind is tuple:
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif kind is set or kind is frozenset:
        yield from ((".member", part) for part in list(value))
    elif kind in _TYPE_OF_CLASS:
        for name, part in _TYPE_OF_CLASS[kind].take_apart(value).items():
            yield f".{name}", part


# --- The public face ------------------------------------------------------------------------------

_WRITE: Final[dict[str, Callable[[Any], bytes]]] = {
    "json": _write_json,
    "msgpack": _packed,
    "pickle": _write_pickle,
}
_READ: Final[dict[str, Callable[[bytes | bytearray | memoryview], Any]]] = {
    "json": _read_json,
    "msgpack": unpack,
    "pickle": _read_pickle,
}


def _of_format(table: dict[str, T], format: str) -> T:
    if format not in table:
        raise SerializationError(f"unknown format {format!r}: json, msgpack or pickle")
    return table[format]


class Serializer:
    """Values to bytes and back, in the format the caller names, and the registry of types."""

    @staticmethod
    def serialize(data: Any, format: Format = "json") -> bytes:
        """Write a value.

        Args:
            data: anything that the module's docstring lists; for pickle, anything that can be
                pickled. As JSON a value may nest 128 deep, as MessagePack 1024.
            format: "json" (UTF-8 text that shows every type), "msgpack" or "pickle".

        Returns:
            Bytes that `deserialize` reads back when given the same format.

        Raises:
            SerializationError: the value, or a part of it, cannot be stored; or no such format.
        """
        write = _of_format(_WRITE, format)
        try:
            return write(data)
        except Exception as error:
            raise _unwritable(data, error, write) from error

    @staticmethod
    def deserialize(data: bytes | bytearray | memoryview, format: Format = "json") -> Any:
        """Read a value back.

        Args:
            data: exactly one value. As JSON and MessagePack, bytes from anywhere are safe to read;
                **as pickle they can run any code**, so name that format only for bytes that nobody
                else could have written.
            format: the format that `serialize` was given; it is never guessed from the bytes.

        Returns:
            The value, each part with the type that it had.

        Raises:
            SerializationError: the bytes are not a value in this format; a registered type is
                unknown here, newer, or cannot be built; or no such format.
        """
        return _guarded(_of_format(_READ, format), data)

    @overload
    @staticmethod
    def register(
        target: type[T],
        name: str,
        *,
        version: int = 1,
        upgrade: Upgrade | Mapping[int, Upgrade] | None = None,
    ) -> type[T]: ...

    @overload
    @staticmethod
    def register(
        target: str,
        *,
        version: int = 1,
        upgrade: Upgrade | Mapping[int, Upgrade] | None = None,
    ) -> Callable[[type[T]], type[T]]: ...

    @staticmethod
    def register(
        target: type[T] | str,
        name: str | None = None,
        *,
        version: int = 1,
        upgrade: Upgrade | Mapping[int, Upgrade] | None = None,
    ) -> type[T] | Callable[[type[T]], type[T]]:
        """Let instances of a dataclass, or members of an Enum, be stored, in the whole process.

        Call it as ``Serializer.register(Session, "session")`` or put
        ``@Serializer.register("session")`` above the class. Records carry the name and the version,
        never a module path, so the class may be moved and renamed. A dataclass is kept as its
        fields (those that a record lacks take their defaults), an Enum as its member's name, a Flag
        as its value.

        Args:
            target: the class, or the name when used as a decorator.
            name: 1 to 63 of a-z, 0-9, ".", "_", "-", beginning with a letter. Part of each record.
            version: from 1; raise it when the fields change.
            upgrade: brings the fields of an older record, a dict, to those of this version. Either
                one function for all older versions, or a mapping of version to the function that
                makes the step to the next version; a version without a function needs no change.
                Enums have the one field "name", Flags "value".

        Returns:
            The class.

        Raises:
            SerializationError: neither a dataclass nor an Enum; a name or version that cannot be;
                or the name or the class is registered already, and differently.
        """
        if isinstance(target, str) and name is None:
            return lambda cls: _register(cls, target, version, upgrade)
        registered: type[T] = _register(target, name, version, upgrade)
        return registered
