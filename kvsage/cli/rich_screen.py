"""The look on a terminal: the one module that imports rich, which honours NO_COLOR itself."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def show(
    title: str,
    columns: Sequence[str],
    sections: Sequence[Sequence[Sequence[str]]],
    align: Sequence[str],
) -> None:
    """Print a table on stdout."""
    table = Table(
        title=Text(title),
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        border_style="dim",
        show_edge=False,
        collapse_padding=True,  # all columns of the demo fit into 80
        header_style="bold",
        show_header=any(columns),
    )
    for place, (heading, side) in enumerate(zip(columns, align, strict=True)):
        table.add_column(
            Text(heading),
            justify=cast("Literal['left', 'right']", side),
            style="" if place else "cyan",
            overflow="fold",
        )
    for section in sections:
        for row in section:
            table.add_row(*(Text(cell) for cell in row))  # Text: a `[` in a key is no markup
        table.add_section()
    Console(highlight=False).print(table)


@dataclass(slots=True)
class Bar:
    """One task in a progress bar."""

    screen: Progress
    task: TaskID
    count: int
    done: int = 0

    def step(self, size: int) -> None:
        """One more file of ``size`` bytes is done."""
        self.done += 1
        self.screen.update(self.task, advance=size, files=f"{self.done:,} of {self.count:,} files")


@contextmanager
def bar(label: str, count: int, total: int) -> Iterator[Bar]:
    """Draw a progress bar on stderr, and take it away at the end."""
    screen = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[files]}"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with screen:
        # A tree of empty files has nothing to weigh; a bar without total would run to and fro.
        task = screen.add_task(label, total=total or 1, files="")
        yield Bar(screen, task, count)
