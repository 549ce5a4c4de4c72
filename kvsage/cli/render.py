"""How results look: bytes and JSON for programs, aligned text in a log, rich on a terminal.

Data goes to stdout, always as UTF-8; notes, progress and complaints go to stderr. rich is imported
only where one of the two is a terminal, and where it is missing the plain form does.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOTE_SECONDS = 5.0
"""How often a long task says where it is, where there is no terminal to draw a bar on."""

KILO = 1000
MINUTE = 60

STEERING = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]|\\r(?!\\n)"
)

RIGHT = "right"
LEFT = "left"


# -- streams ------------------------------------------------------------------------------------


def is_terminal(stream: IO[Any] | None) -> bool:
    """Whether a person looks at ``stream``, on something that can place a cursor."""
    try:
        seen = stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
    return seen and os.environ.get("TERM") != "dumb"


def write(data: bytes) -> None:
    """Write bytes to stdout as they are."""
    if sys.stdout is None:
        raise OSError("standard output is closed")
    sys.stdout.buffer.write(data)


def line(text: str) -> None:
    """Write one line of data."""
    write(text.encode("utf-8", "backslashreplace") + b"\n")


def json_line(value: object, *, pretty: bool = False) -> None:
    """Write one JSON value: a line, or indented for a person."""
    line(json.dumps(value, ensure_ascii=False, indent=2 if pretty else None))


def note(text: str) -> None:
    """Tell the person something that is not the result, after the results so far."""
    if sys.stdout is not None:
        sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """``text`` without what could steer a terminal; line ends and tabs stay."""
    return STEERING.sub(lambda match: _escape(match[0]), text)


def one_line(text: str) -> str:
    """``text`` on one line, for a list or a message."""
    return printable(text).replace("\n", "\\n").replace("\r", "\\r")


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


# -- numbers ------------------------------------------------------------------------------------


def byte_size(count: float) -> str:
    """A number of bytes for people: ``512 B``, ``1.5 kB``, ``20.3 MB``; 1 kB is 1,000 bytes."""
    if abs(count) < KILO:
        return f"{count:,.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= KILO
        if abs(count) < KILO - 0.05:  # what rounds to 1000.0 takes the next unit
            return f"{count:.1f} {unit}"
    return f"{count / KILO:,.1f} TB"


def duration(seconds: float) -> str:
    """A measured time for people: ``850 us``, ``12.3 ms``, ``4.56 s``, ``2 min 5 s``."""
    if seconds * KILO < 1:
        return f"{seconds * KILO * KILO:.0f} us"
    if seconds < 1:
        return f"{seconds * KILO:.1f} ms"
    if seconds < MINUTE:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), MINUTE)
    return f"{minutes} min {rest} s"


def times(ratio: float | None) -> str:
    """A ratio for people: ``3.4x``, or a dash where there was nothing to compare."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def ratio(whole: float, part: float) -> float | None:
    """How many times ``part`` goes into ``whole``; None where nothing was stored."""
    return whole / part if part else None


def plural(count: int, noun: str) -> str:
    """``1 file``, ``2 files``, ``1,792 files``."""
    ending = "" if count == 1 else "s"
    return f"{count:,} {noun}{ending}"


# -- tables -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """Rows in sections, for a person.

    Attributes:
        title: what it shows.
        columns: the headings; all empty for a table without.
        sections: rows; a line is drawn, or left free, between sections.
        align: ``left`` or ``right`` for each column.
    """

    title: str
    columns: Sequence[str]
    sections: Sequence[Sequence[Sequence[str]]]
    align: Sequence[str]


def facts(title: str, *sections: Sequence[tuple[str, str]]) -> Table:
    """A table of names and values."""
    return Table(title, ("", ""), [section for section in sections if section], (LEFT, LEFT))


def show(table: Table) -> None:
    """Print a table on stdout."""
    if is_terminal(sys.stdout):
        try:
            # Not at the top: rich takes as long to load as all the rest, and pipes do not need it.
            from kvsage.cli import rich_screen  # noqa: PLC0415
        except ModuleNotFoundError:
            pass
        else:
            rich_screen.show(table.title, table.columns, table.sections, table.align)
            return
    for text in plain(table):
        line(text)


def plain(table: Table) -> Iterator[str]:
    """The lines of a table in a log."""
    rows = [table.columns, *(row for section in table.sections for row in section)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(table.columns))]

    def lined(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if align == RIGHT else cell.ljust(width)
            for cell, width, align in zip(row, widths, table.align, strict=True)
        )
        return ("  " + "  ".join(cells)).rstrip()

    yield table.title
    if any(table.columns):
        yield lined(table.columns)
        yield "  " + "  ".join("-" * width for width in widths)
    for number, section in enumerate(table.sections):
        if number:
            yield ""
        yield from map(lined, section)


# -- progress -----------------------------------------------------------------------------------


class Progress(Protocol):
    """Where a long task reports each thing it has done."""

    def step(self, size: int) -> None:
        """One more thing of ``size`` bytes is done."""


class Silent:
    """Progress that nobody watches."""

    def step(self, size: int) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Lines:
    """Progress in a log: a line every few seconds, none for what is done sooner."""

    label: str
    count: int
    total: int
    done: int = 0
    bytes: int = 0
    next_note: float = field(default_factory=lambda: time.monotonic() + NOTE_SECONDS)

    def step(self, size: int) -> None:
        """Count one more, and say so when it is time."""
        self.done += 1
        self.bytes += size
        now = time.monotonic()
        if now >= self.next_note:
            self.next_note = now + NOTE_SECONDS
            note(f"{self.label}: {self.done:,} of {self.count:,} files, {self.share()}")

    def share(self) -> str:
        """How many bytes of all."""
        return f"{byte_size(self.bytes)} of {byte_size(self.total)}"


@contextmanager
def progress(label: str, count: int, total: int) -> Iterator[Progress]:
    """Show how far a task over ``count`` files with ``total`` bytes has come."""
    if is_terminal(sys.stderr):
        try:
            from kvsage.cli import rich_screen  # noqa: PLC0415
        except ModuleNotFoundError:
            pass
        else:
            with rich_screen.bar(label, count, total) as bar:
                yield bar
            return
    yield Lines(label, count, total)
