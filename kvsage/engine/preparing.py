"""What is done to an operation before the writer gate, where others need not wait for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from kvsage.engine.assembling import EXPANDED_BYTES_MAX, Assembler, raw_content
from kvsage.engine.commit import ANYTHING, PRESENT, TOUCH, Operation
from kvsage.engine.content import Content, Mismatch, compress, content_hash, place_of
from kvsage.engine.cutting import cut, sizes_for
from kvsage.engine.growing import Growth
from kvsage.engine.layouts import Layouts
from kvsage.engine.tree import Pack, Tree, opened, pieces_of, topmost
from kvsage.engine.values import Codec
from kvsage.errors import CorruptionError, InvalidTTLError, StoreUnavailableError
from kvsage.index.contents import decode_content_row
from kvsage.index.env import LmdbError
from kvsage.index.segments import the_meta
from kvsage.log.format import (
    BY_USER,
    CONTENT_KEY,
    DELETE,
    ENTRY_BYTES,
    MSGPACK,
    PACKED,
    PUT,
    TREE_ITEM,
)
from kvsage.store import encode_key
from kvsage.types import TTL, ttl_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kvsage.engine.content import Place
    from kvsage.engine.cutting import Part, Sizes
    from kvsage.engine.engine import Engine
    from kvsage.engine.tree import Piece
    from kvsage.index.contents import ContentRow
    from kvsage.index.env import Txn
    from kvsage.options import StoreOptions


PACK_OVERHEAD = 2 * ENTRY_BYTES + PACKED.size  # of a leaf: its part of a pack and of a node
TREE_OVERHEAD = 4096  # of a few new nodes
LOOKS = 5
Result = TypeVar("Result")
_make = tuple.__new__  # a third of the time of the class's own call


class Preparer:
    """Turns values into operations, under one handle's options."""

    def __init__(self, engine: Engine, options: StoreOptions) -> None:
        self._engine = engine
        self.codec = Codec(options)
        bytes_max = engine.options.bytes_max
        if bytes_max is not None and bytes_max < self.codec.value_bytes_max:
            self.codec.value_bytes_max = bytes_max  # more could not stay for a moment
        self.content_bytes_min = options.content_bytes_min
        self.sizes = sizes_for(options.content_bytes_min)
        self._layouts = Layouts(engine)
        self._level = options.compression_level
        default = options.ttl_default
        self._ttl_default_s = None if default is None else ttl_seconds(default)

    def expires_ms(self, key: str, ttl: TTL | None) -> int:
        """The instant at which a save with ``ttl`` expires, or 0; None means the default."""
        if ttl is not None:
            return self.expires_at_ms(key, ttl)
        seconds = self._ttl_default_s
        return 0 if seconds is None else self._from_now(seconds)

    def expires_at_ms(self, key: str, ttl: TTL | None) -> int:
        """The same, where None means never."""
        if ttl is None:
            return 0
        try:
            return self._from_now(ttl_seconds(ttl))
        except InvalidTTLError as error:
            raise InvalidTTLError(f"the ttl of {key!r}: {error}") from error

    def _from_now(self, seconds: float) -> int:
        return max(1, math.ceil((self._engine.clock() + seconds) * 1000))

    def save(self, key: str, value: Any, ttl: TTL | None, require: int) -> Operation:
        """The operation that saves a value."""
        encoded = encode_key(key)
        expires_ms = self.expires_ms(key, ttl)
        codec, data = self.codec.encode(key, value)
        return self.put(encoded, codec, data, expires_ms, require)

    def put(
        self, encoded: bytes, codec: int, data: bytes, expires_ms: int, require: int
    ) -> Operation:
        """The operation that saves a serialized value."""
        if len(data) < self.content_bytes_min:
            return Operation(encoded, PUT, codec, expires_ms, data, None, require)
        return Operation(encoded, PUT, codec, expires_ms, b"", self.large(codec, data), require)

    def save_many(self, mapping: Mapping[str, Any], expires_ms: int) -> list[Operation]:
        """The operations that save every pair, alike in expiry; ``save`` for each, flat."""
        encode, least = self.codec.encode, self.content_bytes_min
        operations = []
        for key, value in mapping.items():
            flags, data = encode(key, value)
            encoded = encode_key(key)
            if len(data) < least:
                fields = (encoded, PUT, flags, expires_ms, data, None, ANYTHING)
                operations.append(_make(Operation, fields))
            else:
                operations.append(self.put(encoded, flags, data, expires_ms, ANYTHING))
        return operations

    def extend(self, key: str, items: Iterable[Any]) -> tuple[Growth, Operation]:
        """The operation that adds items to the end of a list, and where its length will be told."""
        encoded = encode_key(key)
        growth = Growth(self, [self.codec.packed(key, item) for item in items])
        return growth, Operation(encoded, PUT, MSGPACK, content=growth)

    @staticmethod
    def delete(encoded: bytes) -> Operation:
        """The operation that removes a key at its user's wish, if it is there."""
        return Operation(encoded, DELETE, BY_USER, require=PRESENT)

    def touch(self, key: str, ttl: TTL | None) -> Operation:
        """The operation that gives a key that is there another expiry."""
        encoded = encode_key(key)
        return Operation(encoded, TOUCH, 0, self.expires_at_ms(key, ttl), require=PRESENT)

    def large(self, codec: int, data: bytes) -> Content | Tree:
        """A serialized value that is stored as content: whole, or as a tree where it can be cut."""
        parts = cut(codec, data, self.sizes, self._layouts)
        return self.content(data) if parts is None else self._tree(data, parts)

    def content(self, raw: bytes) -> Content:
        """A content, compressed unless one like it is there to be referred to."""
        digest = content_hash(raw)
        equal_to = self._looked(lambda look: look.equal(digest, raw))
        if equal_to is not None:
            return Content(digest, raw, None, b"", equal_to)
        flags, stored = compress(raw, self._level)
        return Content(digest, raw, flags, stored, None)

    def _tree(self, data: bytes, parts: list[Part]) -> Tree:
        pieces = pieces_of(data, parts, self._layouts)
        return self.tree(topmost(pieces, data, self._layouts), data)

    def tree(self, pieces: list[Piece], raw: bytes) -> Tree:
        """A tree whose new leaves are compressed, several together.

        Args:
            pieces: the items of its root.
            raw: what those that may be new were cut from.
        """
        missing, seen = self._looked(lambda look: (look.missing(pieces, raw), look.seq))
        packs: list[Pack] = []
        leaves: list[Piece] = []
        size = 0
        for leaf in missing:
            if leaves and size + leaf.length > self.sizes.pack:
                packs.append(self._pack(leaves, raw))
                leaves, size = [], 0
            leaves.append(leaf)
            size += leaf.length
        if leaves:
            packs.append(self._pack(leaves, raw))
        room = TREE_OVERHEAD + sum([TREE_ITEM.size + len(piece.literal) for piece in pieces])
        room += sum([len(pack.stored) + PACK_OVERHEAD * len(pack.leaves) for pack in packs])
        return Tree(pieces, raw, packs, room, self.sizes, seen)

    def _pack(self, leaves: list[Piece], raw: bytes) -> Pack:
        view = memoryview(raw)
        joined = b"".join([view[leaf.start : leaf.start + leaf.length] for leaf in leaves])
        return Pack(leaves, *compress(joined, self._level))

    def _looked(self, ask: Callable[[Look], Result]) -> Result:
        """What one look at the contents gives; again where another thread's growing ended it."""
        engine, left = self._engine, LOOKS
        while True:
            txn = engine.index.begin_read()
            try:
                return ask(Look(engine, txn, self.sizes))
            except LmdbError as error:
                failure, left = engine.index.error(error, "reading"), left - 1
                if not left or not isinstance(failure, StoreUnavailableError):
                    raise failure from error
            finally:
                txn.abort()


class Look:
    """Finds contents that are there already, by comparing bytes."""

    def __init__(self, engine: Engine, txn: Txn, sizes: Sizes) -> None:
        self._engine = engine
        self._txn = txn
        self._sizes = sizes

    @property
    def seq(self) -> int:
        """Of the last commit that it sees."""
        return the_meta(self._txn).seq

    def equal(self, digest: bytes, raw: bytes) -> Place | None:
        """Where a content with the very same bytes lies."""
        engine, number = self._engine, 0
        while True:
            key = CONTENT_KEY.pack(digest, number)
            data = self._txn.get(key, None, engine.index.contents)
            if data is None:
                return None
            row = decode_content_row(data)
            try:
                if row.raw_length == len(raw) and raw_content(engine, key, row) == raw:
                    return place_of(row)
            except (Mismatch, CorruptionError):
                return None  # what is damaged is equal to nothing
            number += 1

    def missing(self, pieces: Iterable[Piece], raw: bytes) -> list[Piece]:
        """The leaves that nobody has, each once; of the other pieces their place is noted."""
        found: dict[bytes, Piece] = {}
        self._look(pieces, raw, found)
        return list(found.values())

    def _look(self, pieces: Iterable[Piece], raw: bytes, missing: dict[bytes, Piece]) -> None:
        for piece in pieces:
            if not piece.is_new:
                continue
            if piece.key in missing:
                piece.place = None  # or it is another one of that hash, which has gone
                continue
            data = self._txn.get(piece.key, None, self._engine.index.contents)
            row = None if data is None else decode_content_row(data)
            if self._note(piece, row, raw):
                continue
            if piece.is_node:
                if piece.pieces is None:
                    piece.pieces = opened(piece, raw, self._sizes)
                self._look(piece.pieces, raw, missing)
            elif data is None:
                missing[piece.key] = piece

    def _note(self, piece: Piece, row: ContentRow | None, raw: bytes) -> bool:
        """Whether a content is what a piece stands for; where it is, its place is noted."""
        place = None if row is None else place_of(row)
        there = row is not None and (piece.place == place or self._is_there(piece, row, raw))
        piece.place = place if there else None
        if piece.twin is not None:
            piece.twin.place = piece.place
        return there

    def _is_there(self, piece: Piece, row: ContentRow, raw: bytes) -> bool:
        if row.raw_length != piece.length or piece.start < 0:
            return False
        try:
            if not piece.is_node:
                there = raw_content(self._engine, piece.key, row)
            elif piece.length <= EXPANDED_BYTES_MAX:
                there = Assembler(self._engine, self._txn).expanded(piece.key, piece.length)
            else:
                return False  # too much to be kept in one piece: look for its children
            # Unlike a slice, nothing is copied; unlike a memoryview, they are compared at once.
            return len(there) == piece.length and raw.startswith(there, piece.start)
        except (Mismatch, CorruptionError):
            return False  # what is damaged is equal to nothing
