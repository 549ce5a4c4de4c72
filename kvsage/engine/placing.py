"""What an operation writes beside its own entry: contents, packs of them, and nodes of trees.

It runs behind the writer gate. What was prepared before it, outside, may have changed meanwhile:
a content that was found equal may have gone or moved, one that was not there may have come. So the
place of each is looked up again, and bytes are compared wherever it is not the one that was seen.

Entries come before those that refer to them: packs and contents, then nodes from the leaves up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest

from kvsage.engine.assembling import node_value, raw_content
from kvsage.engine.content import NODE_VALUE, Mismatch, compress, deflate_tree, place_of
from kvsage.engine.cutting import sizes_for
from kvsage.engine.references import References
from kvsage.engine.tree import node_key, opened
from kvsage.errors import CorruptionError, StoreFullError
from kvsage.index.contents import ContentRow
from kvsage.log.format import (
    CHECKSUM_BYTES,
    CONTENT,
    CONTENT_HEAD,
    CONTENT_KEY,
    ENTRY_BODY,
    NODE,
    NODE_NUMBER,
    NUMBER_END,
    PACK,
    TreeItem,
    encode_pack,
    encode_tree,
    packed_as,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvsage.engine.content import Content, Place
    from kvsage.engine.engine import Engine
    from kvsage.engine.tree import Pack, Piece, Tree
    from kvsage.index.env import Txn

HASH_BYTES = 16
NO_SIZES = sizes_for(0)


class Placing:
    """The contents of one operation.

    Attributes:
        references: what it changes in the counts.
        entries: framed, in their order.
        length: of them all.
        raw: what is worth keeping at hand once it is committed, by place.
        noted: where pieces lie then that a layout remembers.
    """

    def __init__(
        self, engine: Engine, txn: Txn, at: tuple[int, int, int], fresh: dict[bytes, bytes]
    ) -> None:
        # The first entry will stand at a file id and an offset, and bear a seq. Of contents that
        # the same batch brings ``fresh`` has the bytes, those of this operation included.
        self._engine = engine
        self._segment, self._offset, self._seq = at
        self._fresh = fresh
        self._placed: dict[int, bytes] = {}  # content keys of leaves in packs, by id of the piece
        self._raw = b""
        self._sizes = NO_SIZES
        self._unchanged = False
        self.references = References(engine.index, txn)
        self.entries: list[bytes] = []
        self.length = 0
        self.raw: list[tuple[Place, bytes]] = []
        self.noted: list[tuple[Piece, Place]] = []

    # -- whole values -----------------------------------------------------------------------

    def content(self, content: Content) -> bytes:
        """The content key of a whole value, which is written where it is new."""
        key, row = self.find(content.hash, content.raw, content.equal_to)
        if row is None:
            flags, stored = content.flags, content.stored
            if flags is None:  # the one that it was found equal to has gone meanwhile
                flags, stored = self._compress(content.raw)
            self._add_content(key, content.raw, flags, stored)
        self.references.hold(key)
        return key

    def find(
        self, digest: bytes, raw: bytes, equal_to: Place | None
    ) -> tuple[bytes, ContentRow | None]:
        """The content key that some bytes have, with its row; or the one that they would get."""
        for number in range(NODE_NUMBER):
            key = CONTENT_KEY.pack(digest, number)
            row = self.references.row(key)
            if row is None or self._is_same(key, row, raw, equal_to):
                return key, row
        raise _too_many(NODE_NUMBER)

    def _is_same(self, key: bytes, row: ContentRow, raw: bytes, equal_to: Place | None) -> bool:
        """Whether the bytes are equal, whatever their hashes say."""
        if row.raw_length != len(raw):
            return False
        if equal_to is not None and equal_to == place_of(row):
            return True
        fresh = self._fresh.get(key)
        try:
            return (raw_content(self._engine, key, row) if fresh is None else fresh) == raw
        except (Mismatch, CorruptionError):
            return False  # what is damaged is equal to nothing

    def _compress(self, raw: bytes) -> tuple[int, bytes]:
        return compress(raw, self._engine.options.compression_level)

    def _add_content(self, key: bytes, raw: bytes, flags: int, stored: bytes) -> Place:
        """Write a content by itself; where it will lie."""
        place = self._frame(CONTENT, flags, key, CONTENT_HEAD.pack(len(raw)) + stored)
        self._add(key, ContentRow(*place, self._seq, len(raw), 0, 0, place[2]), raw)
        return (*place[:2], 0)

    def _add(self, key: bytes, row: ContentRow, raw: bytes) -> None:
        self.references.add(key, row)
        self._fresh[key] = raw
        self.raw.append((place_of(row), raw))

    def _frame(self, kind: int, flags: int, key: bytes, value: bytes) -> tuple[int, int, int]:
        """One entry more; its file id, offset and length."""
        rest = ENTRY_BODY.pack(self._seq, 0, len(value), len(key), kind, flags) + key + value
        framed = xxh3_64_intdigest(rest).to_bytes(CHECKSUM_BYTES, "little") + rest
        offset = self._offset + self.length
        self.entries.append(framed)
        self.length += len(framed)
        return self._segment, offset, len(framed)

    # -- trees ------------------------------------------------------------------------------

    def tree(self, tree: Tree, *, unchanged: bool = False) -> tuple[bytes, bytes]:
        """The value of a PUT that is a tree, and the content keys that it refers to.

        Args:
            tree: what was prepared.
            unchanged: whether nothing has been committed since.
        """
        self._raw, self._sizes = tree.raw, tree.sizes
        self._unchanged = unchanged
        for pack in tree.packs:
            self._pack(pack)
        value, keys = self._encode(tree.pieces)
        self.references.hold(keys)
        return self._deflate(value), keys

    def _encode(self, pieces: Sequence[Piece], value: bytes = b"") -> tuple[bytes, bytes]:
        """The items of a node or root, and the content keys in them.

        Args:
            pieces: what they are made of.
            value: the items, if all content keys are those that the pieces say.
        """
        keys = [b"" if piece.literal else self._key(piece) for piece in pieces]
        if not value or keys != [piece.key for piece in pieces]:
            value = encode_tree(
                [
                    TreeItem(key, piece.length, piece.elements, piece.level, piece.literal)
                    for key, piece in zip(keys, pieces, strict=True)
                ]
            )
        return value, b"".join(keys)

    def _key(self, piece: Piece) -> bytes:
        """The content key of a leaf or node, which is written where it is new."""
        key = self._placed.get(id(piece))
        if key is not None:
            return key
        if not piece.is_new or self._is_where_it_was(piece):
            return piece.key
        if piece.is_node:
            return self._node(piece)
        raw = self._raw_of(piece)
        key, row = self.find(piece.key[:HASH_BYTES], raw, None)
        if row is None:
            self._add_content(key, raw, *self._compress(raw))
        return key

    def _is_where_it_was(self, piece: Piece) -> bool:
        if piece.place is None or self._unchanged:
            return piece.place is not None
        row = self.references.row(piece.key)
        return row is not None and place_of(row) == piece.place

    def _raw_of(self, piece: Piece) -> bytes:
        return self._raw[piece.start : piece.start + piece.length]

    def _node(self, piece: Piece) -> bytes:
        if piece.pieces is None:  # it was there when it was prepared
            piece.pieces = opened(piece, self._raw, self._sizes)
        value, children = self._encode(piece.pieces, piece.value)
        digest = node_key(value)[:HASH_BYTES]
        for number in range(NODE_NUMBER, NUMBER_END):
            key = CONTENT_KEY.pack(digest, number)
            row = self.references.row(key)
            if row is None:
                place = self._frame(NODE, 0, key, self._deflate(value))
                counts = (self._seq, piece.length, 0, 0, place[2])
                self.references.add(key, ContentRow(*place, *counts, children))
                self._fresh[key] = value
                self.raw.append(((*place[:2], NODE_VALUE), value))
                self._note(piece, key, (*place[:2], 0))
                return key
            if self._is_same_node(key, row, value):
                return key
        raise _too_many(NUMBER_END - NODE_NUMBER)

    def _note(self, piece: Piece, key: bytes, place: Place) -> None:
        if piece.twin is not None and key == piece.key:
            self.noted.append((piece.twin, place))

    def _deflate(self, value: bytes) -> bytes:
        return deflate_tree(value, self._engine.options.compression_level)

    def _is_same_node(self, key: bytes, row: ContentRow, value: bytes) -> bool:
        fresh = self._fresh.get(key)
        try:
            return (node_value(self._engine, key, row) if fresh is None else fresh) == value
        except (Mismatch, CorruptionError):
            return False

    def _pack(self, pack: Pack) -> None:
        """Leaves that nobody had when they were compressed."""
        leaves, flags, stored = pack
        new = []
        for leaf in leaves:
            raw, key, row = self._raw_of(leaf), leaf.key, None
            if not self._unchanged or key in self._fresh:  # else it is as new as it was
                key, row = self.find(key[:HASH_BYTES], raw, None)
            self._placed[id(leaf)] = key
            if row is None:
                new.append((leaf, key, raw))
        if not new:
            return  # all of them have come meanwhile
        if len(new) < len(leaves):  # some have; nothing is ever written twice
            flags, stored = self._compress(b"".join([raw for *_, raw in new]))
        if len(new) == 1:
            leaf, key, raw = new[0]
            self._note(leaf, key, self._add_content(key, raw, flags, stored))
            return
        table = [(key, len(raw)) for _, key, raw in new]
        place = self._frame(PACK, flags, b"", encode_pack(table, stored))
        packed = packed_as(table, place[2])
        for (leaf, key, raw), (_, start, length, share) in zip(new, packed, strict=True):
            self._add(key, ContentRow(*place, self._seq, length, 0, start, share), raw)
            self._note(leaf, key, (*place[:2], start))


def _too_many(count: int) -> StoreFullError:
    return StoreFullError(f"{count} different contents share one hash; there is no number for more")
