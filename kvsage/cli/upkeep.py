"""Upkeep on request: sweep and compact, which otherwise happen by themselves."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from kvsage.cli import render
from kvsage.cli.call import Call, verb
from kvsage.cli.opening import embedded_path, shown
from kvsage.stores.embedded import LMDBStore

if TYPE_CHECKING:
    from kvsage.types import CompactionReport


def _unattended(url: str) -> LMDBStore:
    """The store, opened so that nothing is done to it but what the command asks for."""
    return LMDBStore(embedded_path(url), upkeep_interval=math.inf)


@verb("sweep")
def sweep_command(call: Call) -> None:
    """Remove every key that has expired.

    Expired keys are absent for everyone anyway, and a process that has the store open sweeps by
    itself. This is for a store that nobody has open for long.
    """
    url = call.url()
    with _unattended(url) as store:
        swept = store.sweep()
    if call.as_json:
        render.json_line({"store": shown(url), "keys_swept": swept})
    else:
        render.line(f"{render.plural(swept, 'key')} swept")


@verb("compact")
@click.option("--checkpoint", is_flag=True, help="Also write a checkpoint, for a quick recovery.")
def compact_command(call: Call, *, checkpoint: bool) -> None:
    """Give the space of replaced, deleted and expired records back.

    A process that has the store open does it by itself when a third of the log is garbage; this
    leaves next to none. Others read and write meanwhile.
    """
    url = call.url()
    with _unattended(url) as store:
        report = store.compact()
        if checkpoint:
            store.checkpoint()
    if call.as_json:
        render.json_line({"store": shown(url), **asdict(report)})
    else:
        for text in compact_lines(report):
            render.line(text)


def compact_lines(report: CompactionReport) -> list[str]:
    """A report in words."""
    size = render.byte_size
    done = (
        f"{render.plural(report.files_compacted, 'file')} compacted",
        f"{size(report.bytes_copied)} copied",
        f"{render.plural(report.deletions_dropped, 'deletion')} dropped",
    )
    lines = [
        f"log: {size(report.bytes_before)} before, {size(report.bytes_after)} after",
        ", ".join(done),
    ]
    if report.files_waiting:
        lines.append(
            f"{render.plural(report.files_waiting, 'file')} left to be removed when no reader "
            "looks into them any more"
        )
    return lines
