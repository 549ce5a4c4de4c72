"""Read a log file by docs/format.md alone: header, batches, entries, chain, and the first error.

    python tools/inspect_segment.py STORE              every file of a store's log
    python tools/inspect_segment.py STORE/log/0000000001.seg
    python tools/inspect_segment.py --bytes ...        every byte, with what it stands for

It imports nothing of kvsage, so that the format has a second reader, which cannot share a mistake
with the first. It only reads, takes no lock and looks at no index: of a store that is in use it
shows what has reached the file. Of a whole store it also puts together what each key holds by its
newest entry, from contents, packs and nodes.

Exit codes: 0 all of it checks (a torn tail does too), 1 something is damaged, 2 usage.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from struct import Struct
from typing import Any

import msgpack
import zstandard
from xxhash import xxh3_64_intdigest, xxh3_128_digest

IDENTITY = Struct("<8sHH4s16sQQ")
HEADER = Struct("<8sHHI16sIIIIQQQQQQ")
LISTED_FILE = Struct("<II")
TIMELINE = Struct("<QQ")
BATCH = Struct("<QIIIIQQQQ")
ENTRY = Struct("<QQQIHBB")
END = Struct("<QIIIIQQ")
CONTENT_KEY = Struct("<16sH")
CONTENT_HEAD = Struct("<Q")
TREE_HEAD = Struct("<QHB")
TREE_ITEM = Struct("<18sIIB")
PACK_HEAD = Struct("<IQ")
PACKED = Struct("<18sI")
RETIRE_HEAD = Struct("<IIQ")
RETIRED_FILE = Struct("<I")
ORIGIN = Struct("<IQ")

IDENTITY_NAMES = "magic, format, address bytes, zero, store uuid, created ms, checksum"
HEADER_NAMES = (
    "magic, format, kind, header bytes, store uuid, segment, files listed, timelines listed, zero, "
    "nonce, timeline, after seq, chain, floor seq, created ms"
)
BATCH_NAMES = "checksum, magic, entries, body bytes, zero, seq, flushed seq, committed ms, chain"
ENTRY_NAMES = "checksum, seq, expires ms, value bytes, key bytes, kind, flags"
END_NAMES = "checksum, magic, segment, offset, zero, seq, chain"
ITEM_NAMES = "content key, bytes, elements, level"

BATCH_MAGIC, END_MAGIC = b"BVK1", b"END1"
BODY_MAX = 1 << 30
FILE_KINDS = {1: "segment", 2: "copy"}
COPY = 2
PUT, DELETE, CONTENT, RETIRE, ORIGINS, PACK, NODE = range(1, 8)
KINDS = {
    PUT: "PUT",
    DELETE: "DELETE",
    CONTENT: "CONTENT",
    RETIRE: "RETIRE",
    ORIGINS: "ORIGINS",
    PACK: "PACK",
    NODE: "NODE",
}
CODECS = {0: "msgpack", 1: "str", 2: "bytes", 3: "json", 4: "pickle"}
REASONS = {0: "by the user", 1: "expired", 2: "evicted"}
STORED = {0: "raw", 1: "zstd"}
IS_CONTENT, IS_TREE = 8, 16
NODE_NUMBER, NODE_SEED = 0x8000, 1
LITERAL = b"\xff" * 18
ITEMS_MAX, LEVELS_MAX, DEPTH_MAX = 1024, 64, 160
VALUE_MAX = (1 << 30) - (1 << 20)
SHOWN_MAX = 60


class Damage(Exception):  # noqa: N818  # what was found, not a failure of this program
    """Bytes that do not check, and where."""

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(f"offset {offset}: {message}")


class Report:
    """What goes to stdout: a line for each thing found, and under it its bytes where asked for."""

    def __init__(self, *, with_bytes: bool) -> None:
        self.with_bytes = with_bytes
        self.lines: list[str] = []

    def line(self, text: str = "") -> None:
        """One line."""
        self.lines.append(text)

    def fields(self, data: bytes, at: int, struct: Struct, names: str) -> None:
        """Every field of a fixed part that stands at ``at`` of the file."""
        if not self.with_bytes:
            return
        offset = 0
        for name, token in zip(names.split(", "), tokens(struct), strict=True):
            piece = data[offset : offset + Struct("<" + token).size]
            if token.endswith("s"):
                printable = piece.isascii() and piece.decode().isprintable()
                value = piece.decode() if printable else ""
            else:
                value = readable(name, int.from_bytes(piece, "little"))
            self.piece(at + offset, piece, f"{name} {value}".rstrip())
            offset += len(piece)

    def piece(self, at: int, data: bytes, text: str) -> None:
        """Bytes in hexadecimal, sixteen a line, with what they are beside the first."""
        if not self.with_bytes:
            return
        for start in range(0, max(len(data), 1), 16):
            shown = data[start : start + 16].hex(" ")
            self.line(f"  {at + start:06x}  {shown:<47}  {text if not start else ''}".rstrip())


def tokens(struct: Struct) -> Iterator[str]:
    """The pieces of a struct's format: ``<8sHH`` gives 8s, H, H."""
    count = ""
    for char in struct.format[1:]:
        if char.isdigit():
            count += char
        else:
            yield count + char
            count = ""


def readable(name: str, number: int) -> str:
    """A number the way that its name suggests."""
    if name in {"checksum", "chain", "timeline", "nonce"}:
        return f"{number:016x}"
    if name.endswith(" ms"):
        return instant(number)
    if name == "magic":
        return number.to_bytes(4, "little").decode("ascii", "replace")
    return str(number)


def instant(milliseconds: int) -> str:
    """When, in UTC."""
    if not milliseconds:
        return "0 (never)"
    try:
        moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError):
        return f"{milliseconds} ms"
    return f"{milliseconds} ({moment:%Y-%m-%d %H:%M:%S})"


def short(value: object) -> str:
    """Not more of a value than fits a line."""
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}... ({len(text)} characters)"


def some(number: int, what: str) -> str:
    """A number of things."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# -- identity -----------------------------------------------------------------------------------


def read_identity(data: bytes, report: Report) -> None:
    """The file KVSAGE."""
    if len(data) != IDENTITY.size or not data.startswith(b"kvsage\0\1"):
        raise Damage(0, "not an identity")
    _, version, address_bytes, _, uuid, _, checksum = IDENTITY.unpack(data)
    if version != 1:
        raise Damage(8, f"format {version}, and this reads format 1")
    if xxh3_64_intdigest(data[:40]) != checksum:
        raise Damage(40, "the checksum does not match")
    if address_bytes != 16:  # noqa: PLR2004  # an xxh3_128
        raise Damage(10, "addresses of another size")
    report.line(f"KVSAGE: format {version}, store {uuid.hex()}")
    report.fields(data, 0, IDENTITY, IDENTITY_NAMES)


# -- one log file -------------------------------------------------------------------------------


class LogFile:
    """One file of the log, read front to back."""

    def __init__(self, data: bytes, report: Report) -> None:
        self.data = data
        self.report = report
        self.files: tuple[tuple[int, int], ...] = ()
        self.retired: list[tuple[int, int, tuple[int, ...]]] = []  # copy, its end, retired files
        self.kind = self.segment = self.seq = self.chain = self.tail = 0
        self.salt = 0
        self.held = Held()

    def read(self, end: int | None = None) -> None:
        """Read all of it.

        Args:
            end: where a later header says that its batches end, if one lists this file.
        """
        self.header()
        while end is None or self.tail < end:
            problem = self.batch()
            if problem:
                break
        else:
            problem = ""
        if end is not None and self.tail != end:
            raise Damage(self.tail, f"{problem}, and a later header lists the file up to {end}")
        if end is None:
            self.behind(problem)

    def header(self) -> None:
        """The header, with its lists."""
        data = self.data
        if len(data) < HEADER.size + 8 or not data.startswith(b"kvsgment"):
            raise Damage(0, "no segment header")
        fields = HEADER.unpack_from(data)
        _, version, kind, length, uuid, segment, files, timelines, _ = fields[:9]
        nonce, timeline, after_seq, chain, other_seq, _ = fields[9:]
        if length != HEADER.size + 8 * files + 16 * timelines + 8 or length > len(data):
            raise Damage(12, "the header's length is not that of its lists")
        checksum = xxh3_64_intdigest(data[: length - 8])
        if checksum.to_bytes(8, "little") != data[length - 8 : length]:
            raise Damage(length - 8, "the header's checksum does not match")
        if version != 1:
            raise Damage(8, f"format {version}, and this reads format 1")
        self.kind, self.segment, self.seq = kind, segment, after_seq
        self.chain, self.tail = checksum, length
        self.salt = int.from_bytes(uuid[:8], "little")
        self.report.line(
            f"header: {FILE_KINDS.get(kind, kind)} {segment} of store {uuid.hex()}, "
            f"nonce {nonce:016x}, timeline {timeline:016x}, after seq {after_seq} ({chain:016x})"
            + (f", judged at seq {other_seq}" if kind == COPY else f", floor {other_seq}")
        )
        names = HEADER_NAMES.replace("floor", "judged") if kind == COPY else HEADER_NAMES
        self.report.fields(data, 0, HEADER, names)
        self.lists(files, timelines)
        self.report.piece(length - 8, data[length - 8 : length], f"checksum {checksum:016x}")

    def lists(self, files: int, timelines: int) -> None:
        """The two lists of a header."""
        at = HEADER.size
        for _ in range(files):
            listed = LISTED_FILE.unpack_from(self.data, at)
            self.files += (listed,)
            verb = "holds what is live in file" if self.kind == COPY else "lists file"
            self.report.line(f"  {verb} {listed[0]} up to {listed[1]}")
            self.report.fields(self.data[at : at + 8], at, LISTED_FILE, "file, end")
            at += 8
        for _ in range(timelines):
            timeline, after_seq = TIMELINE.unpack_from(self.data, at)
            self.report.line(f"  timeline {timeline:016x} after seq {after_seq}")
            self.report.fields(self.data[at : at + 16], at, TIMELINE, "timeline, after seq")
            at += 16

    def batch_at(self, at: int) -> tuple[tuple[int, ...], bytes] | str:
        """Fields and body of the batch at ``at``, or what does not check."""
        data = self.data
        if len(data) - at < BATCH.size:
            return "the file ends"
        fields = BATCH.unpack_from(data, at)
        checksum, _, _, length, zero = fields[:5]
        if data[at + 8 : at + 12] != BATCH_MAGIC or zero or length > BODY_MAX:
            return "no batch stands here"
        end = at + BATCH.size + length
        if end > len(data):
            return "a batch is cut by the file's end"
        seed = self.salt ^ (self.segment << 32 | at)
        if xxh3_64_intdigest(data[at + 8 : end], seed) != checksum:
            return "a batch's checksum does not match"
        return fields, data[at + BATCH.size : end]

    def batch(self) -> str:
        """Read the batch at the tail and step behind it; what stopped the reading, or nothing."""
        at = self.tail
        found = self.batch_at(at)
        if isinstance(found, str):
            return found
        (checksum, _, count, length, _, seq, flushed_seq, time_ms, chain), body = found
        if chain != self.chain:
            return "a batch follows something else"
        if seq != self.seq + 1:
            return f"a batch bears seq {seq} after {self.seq}"
        self.report.line(
            f"batch at {at}: seq {seq}, {count} {'entry' if count == 1 else 'entries'}, "
            f"{length} bytes, {instant(time_ms)}, flushed up to {flushed_seq}, "
            f"checksum {checksum:016x} chained to {chain:016x}"
        )
        self.report.fields(self.data[at : at + BATCH.size], at, BATCH, BATCH_NAMES)
        self.entries(at + BATCH.size, body, count)
        self.tail, self.chain, self.seq = at + BATCH.size + length, checksum, seq
        return ""

    def entries(self, base: int, body: bytes, count: int) -> None:
        """The entries of a batch; together they fill it."""
        at = 0
        origins: list[tuple[int, int]] = []
        for number in range(count):
            if len(body) - at < ENTRY.size:
                raise Damage(base + at, "the entries do not fill their batch")
            fields = ENTRY.unpack_from(body, at)
            length = ENTRY.size + fields[4] + fields[3]
            if at + length > len(body):
                raise Damage(base + at, "an entry reaches past its batch")
            framed = body[at : at + length]
            if xxh3_64_intdigest(framed[8:]) != fields[0]:
                raise Damage(base + at, "an entry's checksum does not match")
            kind, value = fields[5], framed[ENTRY.size + fields[4] :]
            self.stands_right(base + at, kind, number, count)
            origin = f", was {origins.pop(0)[0]} of its commit" if origins else ""
            self.entry(base + at, framed, fields, origin)
            if kind == ORIGINS:
                origins = list(ORIGIN.iter_unpack(value))
                if len(origins) != count - 1:
                    raise Damage(base + at, "origins of another number of entries")
            at += length
        if at != len(body):
            raise Damage(base + at, "the entries do not fill their batch")

    def stands_right(self, at: int, kind: int, number: int, count: int) -> None:
        """Whether an entry of this kind may be the one with this number in its batch."""
        if (kind == ORIGINS) != (self.kind == COPY and number == 0):
            raise Damage(at, "a batch of a copy begins with its origins, and no other has any")
        if kind == RETIRE and (self.kind == COPY or count > 1):
            raise Damage(at, "a retirement does not stand alone in a batch of a segment")

    def entry(self, at: int, framed: bytes, fields: tuple[int, ...], origin: str) -> None:
        """One entry that checks."""
        _, seq, expires_ms, _, key_length, kind, flags = fields
        if kind not in KINDS:
            raise Damage(at, f"an entry of kind {kind}")
        split = ENTRY.size + key_length
        key, value = framed[ENTRY.size : split], framed[split:]
        name, how, what = DESCRIBE[kind](at, key, value, flags)
        expiry = f", expires {instant(expires_ms)}" if expires_ms else ""
        self.report.line(f"  {KINDS[kind]} at {at}: seq {seq}{origin}, {name}{how}{expiry}{what}")
        self.report.fields(framed[: ENTRY.size], at, ENTRY, ENTRY_NAMES)
        if key:
            self.report.piece(at + ENTRY.size, key, "key")
        if kind == ORIGINS:
            self.many(at + split, value, ORIGIN, "entry of its commit, committed ms")
        elif kind == RETIRE:
            copy, end, _ = RETIRE_HEAD.unpack_from(value)
            self.retired.append((copy, end, retired_files(value)))
            self.report.fields(value, at + split, RETIRE_HEAD, "copy, end, floor seq")
            behind = at + split + RETIRE_HEAD.size
            self.many(behind, value[RETIRE_HEAD.size :], RETIRED_FILE, "retired file")
        elif kind == NODE or (kind == PUT and flags & IS_TREE):
            self.tree(at + split, value)
        elif kind == PACK:
            self.pack(at + split, value)
        elif value:
            self.report.piece(at + split, value, "value")
        self.held.take(kind, seq, flags, key, value)

    def tree(self, at: int, value: bytes) -> None:
        """The items of a root or a node, and the bytes of those that are literal."""
        report, items = self.report, items_of(at, value)
        report.fields(value[: TREE_HEAD.size], at, TREE_HEAD, "bytes, items, literals stored")
        here, literals = at + TREE_HEAD.size, []
        for key, length, elements, level, literal in items:
            report.line(
                f"    {item_name(key)} of {some(length, 'byte')}"
                + (f", {some(elements, 'element')}" if elements else "")
                + (f", level {level}" if level else "")
                + (f" = {short(literal)}" if literal else "")
            )
            packed = TREE_ITEM.pack(key, length, elements, level)
            report.fields(packed, here, TREE_ITEM, ITEM_NAMES)
            here += TREE_ITEM.size
            literals.append(literal)
        if value[here - at :] != b"".join(literals):
            literals = [value[here - at :]]
        for literal in filter(None, literals):
            report.piece(here, literal, "literal")
            here += len(literal)

    def pack(self, at: int, value: bytes) -> None:
        """The contents of a pack, and how much of the entry counts for each."""
        report, contents = self.report, packed_in(at, value)
        report.fields(value[: PACK_HEAD.size], at, PACK_HEAD, "contents, bytes")
        here = at + PACK_HEAD.size
        for key, start, length in contents:
            share = share_of(value, start, length)
            size = some(length, "byte")
            report.line(f"    {content_name(key)} of {size} at {start}, share {share}")
            report.fields(PACKED.pack(key, length), here, PACKED, "content key, bytes")
            here += PACKED.size
        report.piece(here, value[here - at :], "stored")

    def many(self, at: int, data: bytes, struct: Struct, names: str) -> None:
        """The same fixed part again and again."""
        for offset in range(0, len(data), struct.size):
            self.report.fields(data[offset : offset + struct.size], at + offset, struct, names)

    def behind(self, problem: str) -> None:
        """What stands behind the last batch: nothing, zeros, an end mark, a torn tail or damage."""
        data, at = self.data, self.tail
        if self.end_mark(at):
            return
        if not data[at:].strip(b"\0"):
            ahead = len(data) - at
            self.report.line(f"ends at {at}" + (f", {ahead} zeros ahead" if ahead else ""))
            return
        vouching = self.voucher(at)
        if vouching:
            raise Damage(at, f"{problem}, and {vouching}")
        self.report.line(f"ends at {at} with a torn tail: {problem}")

    def end_mark(self, at: int) -> bool:
        """Whether an end mark stands at ``at``."""
        data = self.data[at : at + END.size]
        if len(data) < END.size or data[8:12] != END_MAGIC:
            return False
        checksum, _, segment, offset, _, seq, chain = END.unpack(data)
        seed = self.salt ^ (self.segment << 32 | at)
        if (segment, offset) != (self.segment, at) or xxh3_64_intdigest(data[8:], seed) != checksum:
            return False
        if at == self.tail and (seq, chain) != (self.seq, self.chain):
            raise Damage(at, "an end mark belongs to another batch")
        if at == self.tail:
            self.report.line(f"end mark at {at}: closed clean after seq {seq}")
            self.report.fields(data, at, END, END_NAMES)
        return True

    def voucher(self, after: int) -> str:
        """What was written later than the gap at ``after`` and says that there was none, if any."""
        at = after
        while (hit := self.data.find(BATCH_MAGIC, at + 8)) >= 0:
            at = hit - 8
            found = self.batch_at(at)
            if not isinstance(found, str) and found[0][6] > self.seq:
                return f"the batch at {at} says that the log was on disk up to seq {found[0][6]}"
            at += 1
        at = after
        while (hit := self.data.find(END_MAGIC, at + 8)) >= 0:
            at = hit - 8
            if self.end_mark(at):
                return f"an end mark stands at {at}"
            at += 1
        return ""


# -- what an entry holds ------------------------------------------------------------------------


def key_name(at: int, key: bytes) -> str:
    """A key as it is shown."""
    if key[:1] == b"\xff":
        return f"system key {key.hex(' ')}"
    try:
        return repr(key.decode())
    except UnicodeDecodeError:
        raise Damage(at, "a key that is not UTF-8") from None


def describe_put(at: int, key: bytes, value: bytes, flags: int) -> tuple[str, str, str]:
    """A key's value, or its reference to a content."""
    name = key_name(at, key)
    codec = CODECS.get(flags & 7)
    if codec is None:
        raise Damage(at, f"codec {flags & 7}")
    if flags & IS_TREE:
        items = items_of(at, value)
        length = sum(item[1] for item in items)
        return name, f", {codec}", f" = tree of {length} bytes in {some(len(items), 'item')}"
    if not flags & IS_CONTENT:
        return name, f", {codec}", f" = {short(decoded(at, codec, value))}"
    if len(value) != CONTENT_KEY.size + CONTENT_HEAD.size:
        raise Damage(at, "a reference of another length")
    (raw,) = CONTENT_HEAD.unpack_from(value, CONTENT_KEY.size)
    return name, f", {codec}", f" = {content_name(value)} of {raw} bytes"


def decoded(at: int, codec: str, value: bytes) -> object:
    """The value, as far as this can be told without kvsage's own types."""
    try:
        if codec == "str":
            return value.decode()
        if codec == "msgpack":
            return msgpack.unpackb(value, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Damage(at, f"a value that is not {codec}: {error}") from None
    return value  # a pickle is never opened here


def describe_delete(at: int, key: bytes, value: bytes, flags: int) -> tuple[str, str, str]:
    """A key that is gone."""
    if value or flags not in REASONS:
        raise Damage(at, "a deletion with a value or for no known reason")
    return key_name(at, key), f", {REASONS[flags]}", ""


def describe_content(at: int, key: bytes, value: bytes, flags: int) -> tuple[str, str, str]:
    """Bytes that are stored once."""
    if len(key) != CONTENT_KEY.size or is_node(key) or len(value) < CONTENT_HEAD.size:
        raise Damage(at, "a content of another shape")
    raw, stored = raw_content(at, flags, value), len(value) - CONTENT_HEAD.size
    if xxh3_128_digest(raw) != key[:16]:
        raise Damage(at, "a content is not what its key says")
    how = f", {len(raw)} bytes stored {STORED[flags]} in {stored}"
    return content_name(key), how, ""


def raw_content(at: int, flags: int, value: bytes) -> bytes:
    """The bytes that the value of a CONTENT holds."""
    (raw_length,) = CONTENT_HEAD.unpack_from(value)
    return unpacked(at, flags, value[CONTENT_HEAD.size :], raw_length)


def unpacked(at: int, flags: int, stored: bytes, raw_length: int) -> bytes:
    """The raw bytes of a content, a pack or literals."""
    raw = stored
    if flags not in STORED or raw_length > VALUE_MAX:
        raise Damage(at, "bytes that are stored in another way")
    if flags == 1:
        try:
            if zstandard.frame_content_size(stored) != raw_length:
                raise Damage(at, "a frame declares another length")
            raw = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(stored)
        except zstandard.ZstdError as error:
            raise Damage(at, f"a frame: {error}") from None
    if len(raw) != raw_length:
        raise Damage(at, "stored bytes of another length than is said")
    return raw


def is_node(key: bytes) -> bool:
    """Whether a content key names a node."""
    return CONTENT_KEY.unpack_from(key)[1] >= NODE_NUMBER


def content_name(key: bytes) -> str:
    """A content key as it is shown; a node is counted from 0 too."""
    digest, number = CONTENT_KEY.unpack_from(key)
    if number >= NODE_NUMBER:
        return f"node {digest.hex()}-{number - NODE_NUMBER}"
    return f"content {digest.hex()}-{number}"


# -- trees and packs ----------------------------------------------------------------------------

Item = tuple[bytes, int, int, int, bytes]  # content key, bytes, elements, level, literal bytes


def items_of(at: int, value: bytes) -> list[Item]:
    """The items of a root or a node."""
    if len(value) < TREE_HEAD.size:
        raise Damage(at, "a tree is too short")
    length, count, stored_as = TREE_HEAD.unpack_from(value)
    behind = TREE_HEAD.size + TREE_ITEM.size * count
    if not 0 < count <= ITEMS_MAX or len(value) < behind:
        raise Damage(at, f"a tree of {count} items")
    table = list(TREE_ITEM.iter_unpack(value[TREE_HEAD.size : behind]))
    if sum(size for _, size, _, _ in table) != length:
        raise Damage(at, "the items of a tree do not add up to it")
    literal_length = sum(size for key, size, _, _ in table if key == LITERAL)
    literals = unpacked(at, stored_as, value[behind:], literal_length)
    items: list[Item] = []
    for key, size, elements, level in table:
        is_literal = key == LITERAL
        if not size or level >= LEVELS_MAX or (level and (is_literal or not is_node(key))):
            raise Damage(at, "an item of a tree that cannot be")
        items.append((key, size, elements, level, literals[:size] if is_literal else b""))
        literals = literals[size:] if is_literal else literals
    return items


def with_raw_literals(value: bytes, items: list[Item]) -> bytes:
    """The value of a node with its literal bytes as they are, which is what its key is made of."""
    length, count, _ = TREE_HEAD.unpack_from(value)
    table = value[TREE_HEAD.size : TREE_HEAD.size + TREE_ITEM.size * count]
    return TREE_HEAD.pack(length, count, 0) + table + b"".join(item[4] for item in items)


def item_name(key: bytes) -> str:
    """What an item is."""
    return "literal" if key == LITERAL else content_name(key)


def packed_in(at: int, value: bytes) -> list[tuple[bytes, int, int]]:
    """Content key, start and length of each content of a pack."""
    if len(value) < PACK_HEAD.size:
        raise Damage(at, "a pack is too short")
    count, length = PACK_HEAD.unpack_from(value)
    stored_at = PACK_HEAD.size + PACKED.size * count
    if not count or len(value) < stored_at:
        raise Damage(at, f"a pack of {count} contents")
    contents, start = [], 0
    for key, size in PACKED.iter_unpack(value[PACK_HEAD.size : stored_at]):
        if not size or is_node(key):
            raise Damage(at, "a content in a pack that cannot be")
        contents.append((key, start, size))
        start += size
    if start != length:
        raise Damage(at, "the contents of a pack do not fill it")
    return contents


def share_of(value: bytes, start: int, length: int) -> int:
    """What counts of a pack's entry for the content that begins at ``start``."""
    whole, (_, raw_length) = ENTRY.size + len(value), PACK_HEAD.unpack_from(value)
    return whole * (start + length) // raw_length - whole * start // raw_length


def raw_pack(at: int, flags: int, value: bytes) -> bytes:
    """The raw bytes of all contents of a pack."""
    count, raw_length = PACK_HEAD.unpack_from(value)
    return unpacked(at, flags, value[PACK_HEAD.size + PACKED.size * count :], raw_length)


def describe_pack(at: int, key: bytes, value: bytes, flags: int) -> tuple[str, str, str]:
    """Contents that are stored together."""
    contents = packed_in(at, value)
    if key:
        raise Damage(at, "a pack with a key")
    raw = raw_pack(at, flags, value)
    for content_key, start, length in contents:
        if xxh3_128_digest(raw[start : start + length]) != content_key[:16]:
            raise Damage(at, "a content is not what its key says")
    stored = len(value) - PACK_HEAD.size - PACKED.size * len(contents)
    how = f", {len(raw)} bytes stored {STORED[flags]} in {stored}"
    return some(len(contents), "content"), how, ""


def describe_node(at: int, key: bytes, value: bytes, flags: int) -> tuple[str, str, str]:
    """A part of a tree."""
    if len(key) != CONTENT_KEY.size or not is_node(key) or key == LITERAL or flags:
        raise Damage(at, "a node of another shape")
    items = items_of(at, value)
    if xxh3_128_digest(with_raw_literals(value, items), NODE_SEED) != key[:16]:
        raise Damage(at, "a node is not what its key says")
    return (
        content_name(key),
        f", {sum(item[1] for item in items)} bytes in {some(len(items), 'item')}",
        "",
    )


class Held:
    """What entries hold: the newest of each key, and the contents that it may refer to."""

    def __init__(self) -> None:
        self.keys: dict[bytes, tuple[int, int, int, bytes]] = {}  # seq, kind, flags, value
        # Seq, kind, flags, value of the entry, and where in its raw bytes a content begins and
        # how long it is.
        self.contents: dict[bytes, tuple[int, int, int, bytes, int, int]] = {}
        self._unpacked = (b"", b"")  # the value of a pack, and its raw bytes

    def take(self, kind: int, seq: int, flags: int, key: bytes, value: bytes) -> None:
        """One entry that checks."""
        if kind in {PUT, DELETE} and self.is_newer(self.keys, key, seq):
            self.keys[key] = (seq, kind, flags, value)
        elif kind in {CONTENT, NODE} and self.is_newer(self.contents, key, seq):
            self.contents[key] = (seq, kind, flags, value, 0, 0)
        elif kind == PACK:
            for content_key, start, length in packed_in(0, value):
                if self.is_newer(self.contents, content_key, seq):
                    self.contents[content_key] = (seq, kind, flags, value, start, length)

    @staticmethod
    def is_newer(known: Mapping[bytes, tuple[Any, ...]], key: bytes, seq: int) -> bool:
        """Whether an entry counts, and not the one that is known."""
        return key not in known or known[key][0] <= seq

    def merge(self, other: "Held") -> None:
        """What another file holds."""
        for mine, its in ((self.keys, other.keys), (self.contents, other.contents)):
            for key, entry in its.items():
                if self.is_newer(mine, key, entry[0]):
                    mine[key] = entry

    def check(self, report: Report) -> bool:
        """Put together what each key holds; whether all of it is there."""
        present = through = wrong = 0
        for key, (_, kind, flags, value) in sorted(self.keys.items()):
            if kind != PUT:
                continue
            present += 1
            through += bool(flags & (IS_CONTENT | IS_TREE))
            try:
                decoded(0, CODECS[flags & 7], self.value(flags, value))
            except Damage as error:
                report.line(f"DAMAGED, the value of {key_name(0, key)}: {error}")
                wrong += 1
        report.line(
            f"{some(present, 'key')}, {through} through content: "
            + (f"{wrong} cannot be read" if wrong else "all of it is there")
        )
        return not wrong

    def value(self, flags: int, value: bytes) -> bytes:
        """The serialized value that a PUT holds or refers to."""
        if flags & IS_TREE:
            return self.joined(items_of(0, value), 0)
        if not flags & IS_CONTENT:
            return value
        (length,) = CONTENT_HEAD.unpack_from(value, CONTENT_KEY.size)
        return self.piece(value[: CONTENT_KEY.size], length, 0)

    def joined(self, items: list[Item], depth: int) -> bytes:
        """What the items of a root or a node stand for."""
        if depth > DEPTH_MAX or sum(item[1] for item in items) > VALUE_MAX:
            raise Damage(0, "a tree without end")
        return b"".join([item[4] or self.piece(item[0], item[1], depth) for item in items])

    def piece(self, key: bytes, length: int, depth: int) -> bytes:
        """What a content or a node stands for."""
        if key not in self.contents:
            raise Damage(0, f"{content_name(key)} is missing")
        _, kind, flags, value, start, size = self.contents[key]
        if kind == NODE:
            raw = self.joined(items_of(0, value), depth + 1)
        elif kind == PACK:
            if self._unpacked[0] is not value:
                self._unpacked = (value, raw_pack(0, flags, value))
            raw = self._unpacked[1][start : start + size]
        else:
            raw = raw_content(0, flags, value)
        if len(raw) != length:
            raise Damage(0, f"{content_name(key)} has another length")
        return raw


def retired_files(value: bytes) -> tuple[int, ...]:
    """The ids in the value of a RETIRE entry."""
    return tuple(number for (number,) in RETIRED_FILE.iter_unpack(value[RETIRE_HEAD.size :]))


def describe_retire(at: int, key: bytes, value: bytes, flags: int) -> tuple[str, str, str]:
    """Files that count no more."""
    length = len(value) - RETIRE_HEAD.size
    if length < RETIRED_FILE.size or length % RETIRED_FILE.size or key or flags:
        raise Damage(at, "a retirement of another shape")
    copy, end, floor_seq = RETIRE_HEAD.unpack_from(value)
    place = f", copy {copy} up to {end} in their place" if copy else ", nothing in their place"
    numbers = ", ".join(map(str, retired_files(value)))
    return f"retires {numbers}", place, f", floor {floor_seq}"


def describe_origins(at: int, key: bytes, value: bytes, flags: int) -> tuple[str, str, str]:
    """Where the entries behind it were written first."""
    if len(value) % ORIGIN.size or key or flags:
        raise Damage(at, "origins of another shape")
    return f"of {len(value) // ORIGIN.size}", "", ""


DESCRIBE = {
    PUT: describe_put,
    DELETE: describe_delete,
    CONTENT: describe_content,
    RETIRE: describe_retire,
    ORIGINS: describe_origins,
    PACK: describe_pack,
    NODE: describe_node,
}


# -- a store ------------------------------------------------------------------------------------


def inspect_file(
    path: Path, report: Report, end: int | None = None, held: Held | None = None
) -> bool:
    """Read one log file; whether all is well.

    Args:
        path: of the file.
        report: where it is told.
        end: where a later header says that its batches end, if one lists this file.
        held: takes what its entries hold.
    """
    report.line(f"{path.parent.name}/{path.name}")
    log_file = LogFile(path.read_bytes(), report)
    try:
        log_file.read(end)
    except Damage as error:
        report.line(f"DAMAGED, {error}")
        return False
    finally:
        if held is not None:
            held.merge(log_file.held)
    return True


def inspect_store(path: Path, report: Report, held: Held | None = None) -> bool:
    """Read a store: its identity, and every file that counts; whether all is well.

    Args:
        path: of the store.
        report: where it is told.
        held: takes what all of its entries hold.
    """
    try:
        read_identity((path / "KVSAGE").read_bytes(), report)
    except Damage as error:
        report.line(f"DAMAGED, {error}")
        return False
    report.line()
    files = sorted((path / "log").glob("[0-9]" * 10 + ".[sc][ep][gy]"))
    segments = [file for file in files if file.suffix == ".seg"]
    if not segments:
        report.line("DAMAGED, the log has no file")
        return False
    ends = files_that_count(segments[-1])
    well, held = True, Held() if held is None else held
    for file in files:
        number = int(file.stem)
        if file != segments[-1] and number not in ends:
            report.line(f"log/{file.name}\nnothing names it: left over, it does not count")
        else:
            well = inspect_file(file, report, ends.pop(number, None), held) and well
        report.line()
    for number in ends:
        report.line(f"DAMAGED, file {number} counts and is missing")
    if not well or ends:
        return False
    return held.check(report)  # of a damaged log much would be missing


def files_that_count(newest: Path) -> dict[int, int]:
    """Where each file ends that counts beside the newest segment, by what that one says."""
    log_file = LogFile(newest.read_bytes(), Report(with_bytes=False))
    with contextlib.suppress(Damage):  # reported when the file is read again
        log_file.read()
    ends = dict(log_file.files)
    for copy, end, files in log_file.retired:
        for number in files:
            ends.pop(number, None)
        if copy:
            ends[copy] = end
    return ends


def main(arguments: list[str]) -> int:
    """Read what the command line names."""
    with_bytes = "--bytes" in arguments
    paths = [Path(argument) for argument in arguments if argument != "--bytes"]
    if not paths or any(not path.exists() for path in paths):
        print(__doc__, file=sys.stderr)
        return 2
    well = True
    for path in paths:
        report = Report(with_bytes=with_bytes)
        if path.is_dir():
            well = inspect_store(path, report) and well
        else:
            well = inspect_file(path, report) and well
        print("\n".join(report.lines).rstrip())
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
