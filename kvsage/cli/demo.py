"""The demo: kvsage at its main job on real files, with every figure measured in the run itself."""

from __future__ import annotations

import platform
import shutil
import signal
import sys
import sysconfig
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from kvsage.cli import demo_steps, render
from kvsage.cli.call import Call, verb
from kvsage.cli.demo_figures import Figures
from kvsage.cli.exits import CORRUPT, OK
from kvsage.cli.ingest import Plan
from kvsage.cli.tree import Selection

if TYPE_CHECKING:
    from collections.abc import Iterator

NOT_TEXT = ("site-packages", "dist-packages", "__pycache__", "*.pyc", "*.so", "*.a")
FILE_BYTES_MAX = 64 << 20
TERMINATED = 143  # what a shell shows for a process that SIGTERM ended


@verb("demo", store=False)
@click.argument(
    "path", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Make the store in DIR, and leave it there.",
)
def demo_command(call: Call, path: Path | None, keep: Path | None) -> int:
    """See kvsage at work on every text file of Python's standard library, or below PATH.

    Saves the files, saves them again and stores nothing twice, lets sessions expire, rolls a
    transaction back, saves a conversation whole after each turn, kills a writing process, recovers,
    and checks everything. Every figure in the table is measured in this run. Exit 4 when a promise
    was broken.
    """
    source = path or Path(sysconfig.get_path("stdlib"))
    plan = Plan(
        sources=(str(source),),
        file_bytes_max=FILE_BYTES_MAX,
        selection=Selection(exclude=NOT_TEXT),
        text_only=True,
    )
    with _workspace(keep) as place:
        figures = Figures(python=platform.python_version(), source=str(source), store=str(place))
        render.note(f"kvsage demo, Python {figures.python}, a fresh store in {place}")
        demo_steps.run(place, plan, figures)
    if call.as_json:
        render.json_line(figures.as_json(), pretty=render.is_terminal(sys.stdout))
    else:
        render.show(figures.table())
    if keep:
        render.note(f"The store is yours: kvsage scan --store {keep}")
    return CORRUPT if figures.broken else OK


@contextmanager
def _workspace(keep: Path | None) -> Iterator[Path]:
    """Where the store goes: the directory to keep, or one that is gone afterwards."""
    if keep is not None:
        if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
            raise click.UsageError(
                f"{keep} is there already and not empty: --keep needs a fresh DIR"
            )
        yield keep.absolute()
        return
    before = signal.signal(signal.SIGTERM, _end)
    directory = Path(tempfile.mkdtemp(prefix="kvsage-demo-"))
    try:
        yield directory / "store"
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def _end(_number: int, _frame: object) -> NoReturn:
    sys.exit(TERMINATED)
