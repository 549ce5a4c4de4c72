"""Many records: scan, count."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from kvsage.cli import render
from kvsage.cli.call import Call, verb
from kvsage.cli.opening import open_existing
from kvsage.cli.values import as_json

if TYPE_CHECKING:
    from collections.abc import Iterable


@verb("scan")
@click.argument("prefix", default="")
@click.option("--start", metavar="KEY", help="Only keys at or after KEY.")
@click.option("--stop", metavar="KEY", help="Only keys before KEY.")
@click.option("--reverse", is_flag=True, help="From the last key to the first.")
@click.option("-n", "--limit", type=click.IntRange(min=0), metavar="N", help="At most N keys.")
@click.option("--values", is_flag=True, help="Show the values too, as JSON.")
def scan_command(call: Call, prefix: str, *, values: bool, **selection: Any) -> None:
    """List the keys that begin with PREFIX (all without it), in the order of their bytes.

    One key a line, or with --values the key, a tab, and the value as JSON. --json prints one object
    a line, which is also the form for keys that hold line ends. What it lists is the state of the
    moment at which it began.
    """
    with open_existing(call.url(), readonly=True) as store:
        if values:
            _print_pairs(store.items(prefix, **selection), json_lines=call.as_json)
        else:
            _print_keys(store.keys(prefix, **selection), json_lines=call.as_json)


@verb("count")
@click.argument("prefix", default="")
def count_command(call: Call, prefix: str) -> None:
    """Print how many keys begin with PREFIX (all without it)."""
    with open_existing(call.url(), readonly=True) as store:
        count = store.count(prefix)
    render.json_line({"prefix": prefix, "count": count} if call.as_json else count)


def _print_keys(keys: Iterable[str], *, json_lines: bool) -> None:
    terminal = render.is_terminal(sys.stdout)
    for key in keys:
        if json_lines:
            render.json_line({"key": key})
        else:
            render.line(render.one_line(key) if terminal else key)


def _print_pairs(pairs: Iterable[tuple[str, Any]], *, json_lines: bool) -> None:
    width = shutil.get_terminal_size().columns if render.is_terminal(sys.stdout) else None
    for key, value in pairs:
        shown = as_json(value)
        if json_lines:
            # Put together as text: the value has its own JSON form already.
            render.line(f'{{"key": {as_json(key)}, "value": {shown}}}')
        elif width is None:
            render.line(f"{key}\t{shown}")
        else:
            text = render.one_line(f"{key}  {shown[:width]}")
            render.line(text if len(text) <= width else text[: width - 3] + "...")
