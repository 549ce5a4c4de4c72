"""Where a large value is cut: between its elements, at places that its elements choose.

What decides about a cut stands close to it: the hash of the element before it, or the bytes around
it in a text. So a change anywhere moves the cuts around it, and all others stay where they are,
whoever wrote the value before and in how many steps.

- A list or a mapping is cut between elements. A run of them ends behind the first one, from a least
  size on, whose hash is low enough for its length; so runs of long and of short elements are alike
  in size. The header, which changes whenever an element is added, stands alone, and so do the
  elements at the end that make no whole run yet.
- An element that is large is cut for itself, at any depth.
- Text and bytes, and lists of very small elements, whose own places would cost more time than they
  are worth, are cut behind a line, or a byte, that is followed by certain others.

Nothing here is part of the format: a reader joins whatever pieces there are.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple

from msgpack import OutOfData, Unpacker
from xxhash import xxh3_64_intdigest

from kvsage.log.format import MSGPACK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvsage.engine.layouts import Layouts
    from kvsage.engine.tree import Piece

PIECE_UNIT_LEAST = 4096
CUT_MOST = (1 << 30) - (16 << 20)  # what pieces take beside their bytes must fit into a commit
PACK_MOST = 1 << 20  # the cache must hold the rest of a pack while a value is read
LITERAL_BYTES_MAX = 256
SMALL_BYTES = 32  # elements below this on average are cut as bytes are
KEY_ROOM = 256
DEPTH_MAX = 32  # deeper lists and mappings are cut as bytes are


class Sizes(NamedTuple):
    """How large pieces are, in bytes.

    Attributes:
        least: of a run of elements, its last one included.
        spread: what comes on top of that, on average.
        most: a run ends behind the element that reaches this.
        whole: a list or mapping up to this is not cut.
        text_least: of a piece of text.
        text_most: a piece of text ends here.
        text_whole: text up to this is not cut.
        pack: contents that are written together are compressed together up to this.
        literal_most: a run up to this, which a large element cut off, is not worth an entry.
    """

    least: int
    spread: int
    most: int
    whole: int
    text_least: int
    text_most: int
    text_whole: int
    pack: int
    literal_most: int


def sizes_for(content_bytes_min: int) -> Sizes:
    """The sizes for a store that takes values from ``content_bytes_min`` on for content.

    Pieces are not smaller than they are by default: short values may well be worth storing once,
    but a piece costs 150 bytes and some 15 us on top of what it holds.
    """
    small = max(content_bytes_min, PIECE_UNIT_LEAST)
    return Sizes(
        least=small,
        spread=small,
        most=4 * small,
        whole=4 * small,
        text_least=4 * small,
        text_most=16 * small,
        text_whole=16 * small,
        pack=min(64 * small, PACK_MOST),
        literal_most=min(LITERAL_BYTES_MAX, small - 1),
    )


class Part(NamedTuple):
    """A part of a value that is cut.

    Attributes:
        start: where it begins.
        end: where it ends.
        elements: of the list or mapping that it is a part of, how many begin in it.
        is_literal: whether it is too short to be stored for itself.
        parts: what it is cut into; None for a piece that stays whole.
        node: the node over several pieces that is known already.
        is_forced: whether it ends there because of what follows, which may change.
    """

    start: int
    end: int
    elements: int
    is_literal: bool = False
    parts: list[Part] | None = None
    node: Piece | None = None
    is_forced: bool = False


def cut(codec: int, data: bytes, sizes: Sizes, layouts: Layouts | None = None) -> list[Part] | None:
    """The parts of a serialized value, in their order; None where it stays whole.

    Args:
        codec: of the value.
        data: the value.
        sizes: of the parts.
        layouts: how lists were cut before.
    """
    whole = sizes.whole if codec == MSGPACK else sizes.text_whole
    if not whole < len(data) <= CUT_MOST:
        return None
    cutter = Cutter(data, sizes, layouts)
    parts = cutter.value(0, len(data)) if codec == MSGPACK else cutter.text(0, len(data))
    return None if parts is None or len(parts) == 1 else parts


# -- MessagePack, as far as cutting needs it -----------------------------------------------------

ARRAY, MAP, TEXT = 1, 2, 3
# By first byte: what begins there and how long its header is. Numbers and the like are not here.
HEADERS = dict.fromkeys(range(0x80, 0x90), (MAP, 1)) | dict.fromkeys(range(0x90, 0xA0), (ARRAY, 1))
HEADERS |= {0xDC: (ARRAY, 3), 0xDD: (ARRAY, 5), 0xDE: (MAP, 3), 0xDF: (MAP, 5)}
HEADERS |= {0xD9: (TEXT, 2), 0xDA: (TEXT, 3), 0xDB: (TEXT, 5)}  # text
HEADERS |= {0xC4: (TEXT, 2), 0xC5: (TEXT, 3), 0xC6: (TEXT, 5)}  # bytes
HEADERS |= {0xC7: (TEXT, 3), 0xC8: (TEXT, 4), 0xC9: (TEXT, 6)}  # extension types
# What a tuple or a registered object begins with: an array, and in it one of these.
HEADS = (b"\xc7\x00\x08", b"\xc7\x00\x09")
HEAD_BYTES = 3
FIXED_MAX, ARRAY_16_MAX = 15, 0xFFFF


def array_header(count: int) -> bytes:
    """The header of an array, as MessagePack writes it."""
    if count <= FIXED_MAX:
        return bytes((0x90 | count,))
    if count <= ARRAY_16_MAX:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def counted(data: bytes | memoryview) -> tuple[int, int, int]:
    """What the value at the start of ``data`` is, how long its header is, and of how many elements.

    The count is that of an array or mapping, and 0 for anything else.
    """
    kind, length = HEADERS.get(data[0], (0, 0)) if data else (0, 0)
    if kind not in {ARRAY, MAP}:
        return kind, length, 0
    return kind, length, data[0] & 0x0F if length == 1 else int.from_bytes(data[1:length], "big")


def is_headed(data: bytes | memoryview, at: int) -> bool:
    """Whether the elements of an array are behind a head that makes something else of it."""
    return data[at : at + HEAD_BYTES] in HEADS


def is_dense(count: int, body_bytes: int) -> bool:
    """Whether elements are too small to be looked at one by one."""
    return body_bytes < SMALL_BYTES * count


def ends_of(data: memoryview, count: int, *, pairs: bool = False) -> list[int]:
    """Where each of the first ``count`` values in ``data`` ends; of pairs, if that is wanted.

    Raises:
        msgpack.UnpackException, ValueError: there are not so many.
    """
    unpacker = Unpacker(max_buffer_size=0)
    unpacker.feed(data)
    skip: Any = unpacker.skip  # gives None, so that a step fits into a comprehension
    tell = unpacker.tell
    if pairs:
        return [skip() or skip() or tell() for _ in range(count)]
    return [skip() or tell() for _ in range(count)]


# -- cutting ------------------------------------------------------------------------------------

# A line that begins, behind its blanks, with three bytes of certain quarters of all bytes: one in
# 64 where bytes are random. Where there is no such line, a blank and four of them, or an e (in
# base64, hexadecimal and every language that has it) and four.
_QUARTERS = (
    rb"[\x00-\x0f\x23-\x2a\x30-\x33\x41-\x44\x51-\x54\x61-\x64\x72-\x73\x80-\xa3]",
    rb"[\x10-\x1f\x20\x2b-\x2e\x35-\x38\x45-\x48\x55-\x58\x61\x65-\x68\x6e\x75-\x76\xa4-\xc3]",
    rb"[\x21-\x24\x39-\x3c\x49-\x4c\x59-\x5c\x69-\x6d\x6f\x79-\x7c\x00-\x0f\xc4-\xdf]",
    rb"[\x22\x25-\x28\x32-\x35\x4d-\x50\x5d-\x60\x65\x70-\x74\x7d-\x7f\x10-\x1f\xe0-\xff]",
)
ANCHORS = tuple(
    (first, re.compile(first + b"".join([b"(?=", *before, *_QUARTERS[:quarters], b")"]), re.DOTALL))
    for first, before, quarters in ((b"\n", (rb"[ \t]*",), 3), (b" ", (), 4), (b"e", (), 4))
)

HASH_END = 1 << 64  # behind every hash of 64 bits


def ends_run(element: bytes, spread: int) -> bool:
    """Whether a run of elements ends behind this one, once it is long enough.

    ``Cutter.elements`` says the same, flat.
    """
    return xxh3_64_intdigest(element) < len(element) * (HASH_END // spread)


class Cutter:
    """Cuts one value."""

    def __init__(self, data: bytes, sizes: Sizes, layouts: Layouts | None = None) -> None:
        self._data = data
        self._view = memoryview(data)
        self._sizes = sizes
        self._layouts = layouts

    def value(self, start: int, end: int, depth: int = 0) -> list[Part] | None:
        """The parts of the MessagePack value at ``start``; None where it stays whole."""
        if end - start <= self._sizes.whole:
            return None
        kind, header, _ = counted(self._view[start : start + 8])
        if kind in {ARRAY, MAP} and depth < DEPTH_MAX:
            parts = self._container(start, end, depth)
            return None if all(part.is_literal for part in parts) else parts
        if end - start <= self._sizes.text_whole:
            return None
        head = [Part(start, start + header, 0, is_literal=True)] if header else []
        return head + self.text(start + header, end)

    def _container(self, start: int, end: int, depth: int) -> list[Part]:
        """The parts of a list or mapping, its header first."""
        kind, header, count = counted(self._view[start : start + 8])
        body = start + header
        if kind == ARRAY and is_headed(self._data, body):
            body, count = body + HEAD_BYTES, count - 1
        parts = [Part(start, body, 0, is_literal=True)]
        if is_dense(count, end - body):
            return parts + self.text(body, end)
        if self._layouts is not None and kind == ARRAY:
            for node in self._layouts.reused(self._data, (body, end), count, depth):
                body, count = body + node.length, count - node.elements
                parts.append(Part(node.start, body, node.elements, node=node))
        ends = ends_of(self._view[body:end], count, pairs=kind == MAP)
        return parts + self.elements(ends, body, depth=depth, pairs=kind == MAP)

    def elements(
        self,
        ends: Sequence[int],
        base: int,
        *,
        depth: int = 0,
        pairs: bool = False,
        is_end: bool = True,
    ) -> list[Part]:
        """The parts of consecutive elements.

        Args:
            ends: where each one ends, counted from ``base``.
            base: where the first one begins.
            depth: how many lists and mappings are around them.
            pairs: they are the pairs of a mapping.
            is_end: they are the last ones, so that more may follow some day.
        """
        least, spread, most, whole = self._sizes[:4]
        data, count = self._data, len(ends)
        scale = HASH_END // spread
        parts: list[Part] = []
        run = first = 0  # where the run begins, and with which element
        at = bisect_left(ends, least)
        while at < count:
            start, end = ends[at - 1] if at else 0, ends[at]
            size = end - start
            if size > whole:
                split = start
                if pairs:
                    split += self._key_length(base + start, base + end)
                if split > run:
                    part = self._run(base + run, base + split, at - first + pairs)
                    parts.append(part._replace(is_forced=True))
                inside = self.value(base + split, base + end, depth + 1)
                parts.append(Part(base + split, base + end, int(not pairs), parts=inside))
            elif end - run >= most or (
                xxh3_64_intdigest(data[base + start : base + end]) < size * scale
            ):
                parts.append(self._run(base + run, base + end, at + 1 - first))
            else:
                at += 1
                continue
            run, first = end, at + 1
            at = bisect_left(ends, run + least, first)
        if count and ends[-1] > run:
            part = self._run(base + run, base + ends[-1], count - first)
            parts.append(part._replace(is_literal=True) if is_end else part)
        return parts

    def _key_length(self, start: int, end: int) -> int:
        """Bytes of the key of a pair; keys are short, and a whole pair is dear to copy."""
        try:
            return ends_of(self._view[start : min(end, start + KEY_ROOM)], 1)[0]
        except OutOfData:
            return ends_of(self._view[start:end], 1)[0]

    def _run(self, start: int, end: int, elements: int) -> Part:
        return Part(start, end, elements, is_literal=end - start <= self._sizes.literal_most)

    def text(self, start: int, end: int) -> list[Part]:
        """The parts of text or bytes."""
        least, most = self._sizes.text_least, self._sizes.text_most
        parts: list[Part] = []
        while end - start > least:
            limit = min(start + most, end)
            split = self._anchor(start + least, limit)
            parts.append(Part(start, split, 0))
            start = split
        if end > start:
            parts.append(Part(start, end, 0))
        return parts

    def _anchor(self, start: int, end: int) -> int:
        """Behind the first anchor; ``end`` where there is none."""
        for first, anchor in ANCHORS:
            # A byte is found in a hundredth of the time that a pattern takes to miss it.
            at = self._data.find(first, start, end)
            match = anchor.search(self._data, at, end) if at >= 0 else None
            if match:
                return match.end()
        return end
