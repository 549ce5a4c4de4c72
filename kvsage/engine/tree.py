"""The shape of a tree: pieces of a value, grouped so that its root stays small.

Pieces are leaves (contents), literals (a few bytes that stand in the node itself) and nodes. What a
list or a mapping is cut into is grouped into nodes, those into nodes again, until few are left. A
group ends, from a least number on, behind a piece whose hash says so: like the cuts themselves, the
groups are chosen by what is in them, so a change anywhere changes one node on each level.

Each list or mapping that is cut has a tree of its own. Its header stands in its topmost items, and
so does its tail, the last elements that make no piece yet: what is added to the end changes the
topmost items alone, until a piece is full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from kvsage.engine.cutting import ARRAY, Cutter, counted, ends_of
from kvsage.log.format import NODE_NUMBER, encode_tree, is_node

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvsage.engine.cutting import Part, Sizes
    from kvsage.engine.layouts import Layouts
    from kvsage.log.format import TreeItem

TOP_MAX = 12  # of the topmost items, beside header and tail
MAP_TOP_MAX = 48  # the same in a mapping, which takes those of its values in
GROUP_LEAST = 8
GROUP_MOST = 32
GROUP_MASK = 0x07  # one piece in eight ends a group
NODE_SEED = 1  # so that a node is never mistaken for a leaf of the same bytes

_LEAF_NUMBER = bytes(2)
_NODE_NUMBER = NODE_NUMBER.to_bytes(2, "little")


class Piece:
    """A part of a tree, on its way into a commit.

    Attributes:
        key: its content key; of what may be new, the one that it has if no other content shares its
            hash. Empty for a literal.
        length: bytes that it stands for.
        elements: as ``TreeItem``.
        level: as ``TreeItem``.
        literal: the bytes of a literal.
        start: where those bytes begin in what was cut; -1 where they are not in it.
        pieces: what a node that may be new holds; None where that was not looked at again.
        mark: by which groups are cut.
        place: where a content lies that was found equal: file id, offset and start. None where none
            was, or where nobody looked.
        twin: the same piece as a layout remembers it.
        value: of a node that may be new, what its entry holds if its pieces have the keys that they
            say; empty where nobody has put it together.
        count: of a node, how many pieces of the level below it holds.
        is_forced: whether it ends where it does because of what follows.
    """

    __slots__ = (
        "count",
        "elements",
        "is_forced",
        "key",
        "length",
        "level",
        "literal",
        "mark",
        "pieces",
        "place",
        "start",
        "twin",
        "value",
    )

    def __init__(  # noqa: PLR0913, PLR0917  # one for each field that callers set
        self,
        key: bytes,
        length: int,
        elements: int,
        level: int = 0,
        literal: bytes = b"",
        start: int = -1,
        pieces: list[Piece] | None = None,
    ) -> None:
        self.key = key
        self.length = length
        self.elements = elements
        self.level = level
        self.literal = literal
        self.start = start
        self.pieces = pieces
        self.mark = key[0] if key else xxh3_64_intdigest(literal)
        self.place: tuple[int, int, int] | None = None
        self.twin: Piece | None = None
        self.value = b""
        self.count = 1 if pieces is None else len(pieces)
        self.is_forced: bool = pieces is not None and pieces[-1].is_forced

    @property
    def is_new(self) -> bool:
        """Whether what it stands for is at hand, so that it can be stored."""
        return self.pieces is not None or (self.start >= 0 and not self.literal)

    @property
    def is_node(self) -> bool:
        """Whether it is a node."""
        return bool(self.key) and is_node(self.key)


class Pack(NamedTuple):
    """Leaves that are compressed together.

    Attributes:
        leaves: in their order.
        flags: how they are stored.
        stored: what is stored.
    """

    leaves: list[Piece]
    flags: int
    stored: bytes


class Tree(NamedTuple):
    """A value that is stored as a tree, on its way into a commit.

    Attributes:
        pieces: the items of its root.
        raw: what was cut into those that are new.
        packs: the leaves that nobody had, compressed.
        room: what its entries take in the log, about.
        sizes: by which it was cut.
        seen: the seq of the last commit when the places of pieces were looked up.
    """

    pieces: list[Piece]
    raw: bytes
    packs: list[Pack]
    room: int
    sizes: Sizes
    seen: int


def node_key(value: bytes) -> bytes:
    """The content key of a node, if no other one shares its hash."""
    return xxh3_128_digest(value, NODE_SEED) + _NODE_NUMBER


def node_of(pieces: list[Piece], elements: int, level: int, start: int) -> Piece:
    """A node over pieces, with the content key that theirs give it."""
    length = sum([piece.length for piece in pieces])
    value = encode_tree(pieces)
    node = Piece(node_key(value), length, elements, level, b"", start, pieces)
    node.value = value
    return node


def pieces_of(
    raw: bytes, parts: Iterable[Part], layouts: Layouts | None = None, depth: int = 0
) -> list[Piece]:
    """The pieces of what was cut.

    A large element of a list becomes a node, so that elements can be counted. A large value in a
    mapping does not: a node would be written anew with each change in it.

    Args:
        raw: what was cut.
        parts: the parts of one list, mapping or text.
        layouts: where to remember how lists were cut.
        depth: how many lists and mappings are around that one.
    """
    pieces: list[Piece] = []
    for start, end, elements, is_literal, inside, node, is_forced in parts:
        if node is not None:
            piece = node
        elif is_literal:
            piece = Piece(b"", end - start, elements, 0, raw[start:end], start)
        elif inside is None:
            key = xxh3_128_digest(raw[start:end]) + _LEAF_NUMBER
            piece = Piece(key, end - start, elements, 0, b"", start)
        else:
            top = topmost(pieces_of(raw, inside, layouts, depth + 1), raw, layouts, depth + 1)
            if not elements:
                pieces += map(_leveled, top)
                continue
            piece = node_of(top, elements, 0, start)
        if node is None:
            piece.is_forced = is_forced
        pieces.append(piece)
    return pieces


def _leveled(piece: Piece) -> Piece:
    """A piece as it stands among those of a mapping, where nobody looks for elements in nodes."""
    if not piece.level:
        return piece
    key, length, elements = piece.key, piece.length, piece.elements
    leveled = Piece(key, length, elements, 0, b"", piece.start, piece.pieces)
    leveled.place, leveled.twin = piece.place, piece.twin
    return leveled


def topmost(
    pieces: list[Piece], raw: bytes = b"", layouts: Layouts | None = None, depth: int = 0
) -> list[Piece]:
    """The topmost items over pieces: their header, some others, and their tail.

    Args:
        pieces: of one list, mapping or text, the header first where there is one.
        raw: what they were cut from.
        layouts: where to remember how a list was cut.
        depth: how many lists and mappings are around.
    """
    head = pieces[:1] if pieces[0].literal else []
    tail = pieces[-1:] if pieces[-1].literal and len(pieces) > 1 else []
    rest = pieces[len(head) : len(pieces) - len(tail)]
    is_list = bool(head) and counted(head[0].literal)[0] == ARRAY
    top_max = MAP_TOP_MAX if head and not is_list else TOP_MAX
    nodes = [piece for piece in rest if piece.level]  # reused: more pieces than fit into a root
    units = rest
    if nodes or len(rest) > top_max:
        left = rest[len(nodes) :]
        rest = nodes + group(left) if left else nodes
        units = rest[:-1] + (rest[-1].pieces or rest[-1:])  # the last node may take more
    if layouts is not None and is_list:
        layouts.keep(raw, units, depth)
    while len(rest) > top_max:
        rest = group(rest)
    return head + rest + tail


def opened(piece: Piece, raw: bytes, sizes: Sizes) -> list[Piece]:
    """What a node holds that was reused.

    Args:
        piece: over elements of a list.
        raw: where it stands.
        sizes: by which it was cut.
    """
    span = memoryview(raw)[piece.start : piece.start + piece.length]
    ends = ends_of(span, piece.elements)
    parts = Cutter(raw, sizes).elements(ends, piece.start, is_end=False)
    return pieces_of(raw, parts)


def group(pieces: Sequence[Piece]) -> list[Piece]:
    """One level more: nodes over consecutive pieces of one level."""
    nodes: list[Piece] = []
    first = 0
    for at, piece in enumerate(pieces, 1):
        size = at - first
        if size >= GROUP_LEAST and (not piece.mark & GROUP_MASK or size >= GROUP_MOST):
            nodes.append(_node_over(pieces[first:at]))
            first = at
    if first < len(pieces):
        nodes.append(_node_over(pieces[first:]))
    return nodes


def _node_over(pieces: Sequence[Piece]) -> Piece:
    elements = sum([piece.elements for piece in pieces])
    # Of a tree that grows the first pieces may be there already, and the last ones are new.
    return node_of(list(pieces), elements, pieces[0].level + 1, pieces[0].start)


def held(items: Iterable[TreeItem]) -> list[Piece]:
    """Pieces of a tree that is there; what they stand for is not at hand."""
    return [Piece(*item) for item in items]
