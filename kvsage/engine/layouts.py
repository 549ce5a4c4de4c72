"""How long lists were cut that this process saved lately.

Who saves a list again after a change saves mostly what was there before. What stands at its
beginning is cut as it was then, since cuts depend on nothing behind them; so the bytes are compared
with those of the last time, which is quick, and only what follows is looked at again. For a
conversation of 0.6 to 0.9 MB that grows that spares a third of the time of a save.

A content that was found equal then lies at a place that no other one will ever have. So where a
node still lies there, its bytes need not be compared once more.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from kvsage.engine.tree import TOP_MAX, Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvsage.engine.engine import Engine

LAYOUTS_MAX = 16
BYTES_MAX = 16 << 20
DATA_BYTES_MAX = 4 << 20  # a larger value is not worth what it would push out
KEY_BYTES = 64


class Layout(NamedTuple):
    """How a list was cut.

    Attributes:
        data: the value that it is in.
        body: where its first element begins there.
        units: nodes of the first level and pieces behind them, that are sure to end where they do.
        depth: how many lists and mappings were around it, since not all depths are cut alike.
    """

    data: bytes
    body: int
    units: list[Piece]
    depth: int

    @property
    def key(self) -> bytes:
        """What other layouts of the same list have in common with this one, most likely."""
        return self.data[self.body : self.body + KEY_BYTES]


class Layouts:
    """The layouts of one handle; bounded, the oldest goes first."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._damage_met = 0
        # Replaced as a whole and never waited for: of two threads one may be forgotten.
        self._kept: list[Layout] = []

    def reused(self, data: bytes, span: tuple[int, int], elements: int, depth: int) -> list[Piece]:
        """Nodes and pieces over the first elements of a list.

        Args:
            data: the value that it is in.
            span: where its first element begins and where its last one ends.
            elements: how many it has.
            depth: how many lists and mappings are around it.
        """
        damage_met = self._engine.raw_cache.damage_met
        if self._damage_met != damage_met:
            self._damage_met, self._kept = damage_met, []
        body, _ = span
        key = data[body : body + KEY_BYTES]
        for layout in reversed(self._kept):
            if layout.depth == depth and layout.data.startswith(key, layout.body):
                count = _common(layout, data, body)
                if count:
                    return _moved(layout, count, span, elements)
        return []

    def keep(self, data: bytes, units: Sequence[Piece], depth: int) -> None:
        """Remember how a list was cut, in place of how it was before.

        Args:
            data: the value that it is in.
            units: as ``Layout`` has them; what follows a large element, or is one, is left out,
                unless it is in a node of the first level.
            depth: as ``Layout`` has it.
        """
        plain = list(takewhile(lambda unit: unit.level or not unit.is_node, units))
        if not all(unit.elements for unit in plain):
            return  # cut as bytes are, which a longer list might not be
        if not plain or len(data) > DATA_BYTES_MAX:
            return
        # Without what is in them, which would keep much alive, and can be found again.
        bare = [_copy(unit, unit.start) for unit in plain]
        for unit, twin in zip(plain, bare, strict=True):
            unit.twin = twin
        layout = Layout(data, plain[0].start, bare, depth)
        key = layout.key
        kept = [old for old in self._kept if old.key != key]
        kept.append(layout)
        while len(kept) > LAYOUTS_MAX or sum([len(old.data) for old in kept]) > BYTES_MAX:
            del kept[0]
        self._kept = kept


def _common(layout: Layout, data: bytes, body: int) -> int:
    """How many units of a layout stand at ``body`` just so."""
    its, start, units = layout.data, layout.body, layout.units
    same, limit = 0, len(units)
    while same < limit:
        # All of them first: most lists only grow. Then halves.
        upto = limit if limit == len(units) else (same + limit + 1) // 2
        first, last = units[same], units[upto - 1]
        piece = its[first.start : last.start + last.length]
        if data.startswith(piece, body + first.start - start):
            same = upto
        else:
            limit = upto - 1
    return same


def _moved(layout: Layout, count: int, span: tuple[int, int], elements: int) -> list[Piece]:
    """The first units as they stand in another value, as far as they hold for its list.

    What equals a longer list may go on behind the end of this one. A unit that ended because of
    what followed it is good only with what followed it. And where there might be too few pieces to
    be grouped, there are no nodes.
    """
    body, end = span
    by = body - layout.body
    units: list[Piece] = []
    for unit in layout.units[:count]:
        elements -= unit.elements
        if elements < 0 or unit.start + by + unit.length > end:
            break
        units.append(unit)
    while units and units[-1].is_forced:
        units.pop()
    if units and units[0].level and sum([unit.count for unit in units]) <= TOP_MAX:
        return []
    return [_copy(unit, unit.start + by) for unit in units]


def _copy(unit: Piece, start: int) -> Piece:
    copy = Piece(unit.key, unit.length, unit.elements, unit.level, unit.literal, start)
    copy.place, copy.count, copy.is_forced = unit.place, unit.count, unit.is_forced
    return copy
