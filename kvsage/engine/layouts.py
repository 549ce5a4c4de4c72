"""How long lists were cut that this process saved lately.

Who saves a list again after a change saves mostly what was there before. What stands at its
beginning is cut as it was then, since cuts depend on nothing behind them; so the bytes are compared
with those of the last time, which is quick, and only what follows is looked at again. For a
conversation of 0.9 MB that grows that is a quarter of the time of a save.

A content that was found equal then lies at a place that no other one will ever have. So where a
node still lies there, its bytes need not be compared once more.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from kvsage.engine.tree import Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYOUTS_MAX = 16
BYTES_MAX = 16 << 20
DATA_BYTES_MAX = 4 << 20  # a larger value is not worth what it would push out
KEY_BYTES = 64
NODES_LEAST = 4  # fewer might have been too few pieces to be grouped at all


class Layout(NamedTuple):
    """How a list was cut.

    Attributes:
        data: the value that it is in.
        body: where its first element begins there.
        nodes: the nodes over its pieces, up to the last that is sure to end where it does.
    """

    data: bytes
    body: int
    nodes: list[Piece]

    @property
    def key(self) -> bytes:
        """What other layouts of the same list have in common with this one, most likely."""
        return self.data[self.body : self.body + KEY_BYTES]


class Layouts:
    """The layouts of one handle; bounded, the oldest goes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the list
        self._kept: list[Layout] = []

    def reused(self, data: bytes, body: int) -> list[Piece]:
        """Nodes over the first elements of the list whose elements begin at ``body``."""
        key = data[body : body + KEY_BYTES]
        for layout in reversed(self._kept):
            if layout.data.startswith(key, layout.body):
                count = _common(layout, data, body)
                if count >= NODES_LEAST:
                    return _moved(layout, count, body)
        return []

    def keep(self, data: bytes, nodes: Sequence[Piece]) -> None:
        """Remember how a list was cut, in place of how it was before.

        Args:
            data: the value that it is in.
            nodes: those of the first level, but the last one, which may grow.
        """
        if len(nodes) < NODES_LEAST or len(data) > DATA_BYTES_MAX:
            return
        # Without what is in them, which would keep much alive, and can be found again.
        bare = [_copy(node, node.start) for node in nodes]
        for node, twin in zip(nodes, bare, strict=True):
            node.twin = twin
        layout = Layout(data, nodes[0].start, bare)
        key = layout.key
        with self._lock:
            kept = [old for old in self._kept if old.key != key]
            kept.append(layout)
            while len(kept) > LAYOUTS_MAX or sum([len(old.data) for old in kept]) > BYTES_MAX:
                del kept[0]
            self._kept = kept


def _common(layout: Layout, data: bytes, body: int) -> int:
    """How many nodes of a layout stand at ``body`` just so."""
    its, start, nodes = layout.data, layout.body, layout.nodes
    same, limit = 0, len(nodes)
    while same < limit:
        # All of them first: most lists only grow. Then halves.
        upto = limit if limit == len(nodes) else (same + limit + 1) // 2
        first, last = nodes[same], nodes[upto - 1]
        piece = its[first.start : last.start + last.length]
        if data.startswith(piece, body + first.start - start):
            same = upto
        else:
            limit = upto - 1
    return same


def _moved(layout: Layout, count: int, body: int) -> list[Piece]:
    by = body - layout.body
    return [_copy(node, node.start + by) for node in layout.nodes[:count]]


def _copy(node: Piece, start: int) -> Piece:
    copy = Piece(node.key, node.length, node.elements, node.level, b"", start)
    copy.place = node.place
    return copy
