"""A store as a whole: info, verify, repair."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, is_dataclass
from typing import Any

import click

from kvsage.cli import render
from kvsage.cli.call import Call, verb
from kvsage.cli.exits import CORRUPT, OK
from kvsage.cli.opening import embedded, embedded_path, open_existing, shown
from kvsage.stores.embedded import LMDBStore
from kvsage.types import Problem, ReaderStats, RepairReport, StoreStats, VerifyReport

# -- info ---------------------------------------------------------------------------------------


@verb("info")
def info_command(call: Call) -> None:
    """Show what a store holds, what it costs on disk, and who reads it."""
    url = call.url()
    with open_existing(url, readonly=True) as store:
        stats = store.stats()
    if call.as_json:
        render.json_line({"store": shown(url), **_figures(stats)})
        return
    if not isinstance(stats, StoreStats):
        rows = [(name, str(value)) for name, value in _figures(stats).items()]
        render.show(render.facts(f"Store {shown(url)}", rows))
        return
    render.show(render.facts(f"Store {shown(url)}", *_sections(stats)))
    if stats.segments:
        render.show(_segments(stats))


def _figures(stats: Any) -> dict[str, Any]:
    # Without what a process has done since it opened the store: this one has done nothing.
    if isinstance(stats, StoreStats):
        return {
            **{name: figure for name, figure in asdict(stats).items() if name != "process"},
            "dedup_ratio": stats.dedup_ratio,
            "compression_ratio": stats.compression_ratio,
            "space_ratio": _space_ratio(stats),
        }
    return asdict(stats) if is_dataclass(stats) and not isinstance(stats, type) else dict(stats)


def _space_ratio(stats: StoreStats) -> float | None:
    """What sharing and compression save together: content as keys see it, over bytes on disk."""
    return render.ratio(stats.logical_bytes, stats.content_stored_bytes)


def _sections(stats: StoreStats) -> list[list[tuple[str, str]]]:
    size = render.byte_size
    records = [
        ("keys", f"{stats.keys:,}"),
        ("  expired, not swept yet", f"{stats.expired:,}"),
        ("deletions kept", f"{stats.tombstones:,}"),
        ("commits", f"{stats.commits:,}"),
    ]
    content = [
        ("content, as its keys see it", size(stats.logical_bytes)),
        ("  distinct", size(stats.content_bytes)),
        ("  on disk, nodes included", size(stats.content_stored_bytes)),
        ("dedup ratio", render.times(stats.dedup_ratio)),
        ("compression ratio", render.times(stats.compression_ratio)),
        ("both together", render.times(_space_ratio(stats))),
        ("distinct contents", f"{stats.contents:,}"),
        ("nodes of trees", f"{stats.content_nodes:,}"),
        ("references to either", f"{stats.content_references:,}"),
    ]
    disk = [
        ("log", size(stats.log_bytes)),
        ("  live", size(stats.live_bytes)),
        ("  dead", size(stats.dead_bytes)),
        ("  framing", size(stats.log_bytes - stats.live_bytes - stats.dead_bytes)),
        ("index", size(stats.index_bytes)),
        ("checkpoint", _checkpoint(stats)),
        ("all files", size(stats.disk_bytes)),
        ("files waiting for a reader", f"{stats.files_waiting:,}"),
    ]
    readers = [
        (f"reader in process {reader.pid}", _reading(reader))
        for reader in stats.readers
        if reader.pid != os.getpid()  # this very command
    ]
    return [records, content, disk, readers or [("readers", "none")]]


def _checkpoint(stats: StoreStats) -> str:
    if stats.checkpoint_seq is None:
        return "none" if not stats.checkpoint_bytes else "damaged"
    behind = stats.commits - stats.checkpoint_seq
    return f"{render.byte_size(stats.checkpoint_bytes)}, {render.plural(behind, 'commit')} ago"


def _reading(reader: ReaderStats) -> str:
    if reader.transaction is None or reader.behind is None:
        return "idle"
    return f"{render.plural(reader.behind, 'index transaction')} behind"


def _segments(stats: StoreStats) -> render.Table:
    rows = [
        (
            str(segment.segment),
            segment.state,
            render.byte_size(segment.bytes),
            render.byte_size(segment.live_bytes),
            render.byte_size(segment.dead_bytes),
        )
        for segment in stats.segments
    ]
    align = (render.RIGHT, render.LEFT, render.RIGHT, render.RIGHT, render.RIGHT)
    return render.Table("Log", ("segment", "state", "size", "live", "dead"), [rows], align)


# -- verify -------------------------------------------------------------------------------------


@verb("verify")
@click.option("--deep", is_flag=True, help="Also check log, keys and content against each other.")
def verify_command(call: Call, *, deep: bool) -> int:
    """Check every byte of the log; exit 4 and a list when something is wrong."""
    url = call.url()
    with open_existing(url, readonly=True) as store:
        report = embedded(store, "verify").verify(deep=deep)
    if call.as_json:
        render.json_line({"store": shown(url), "ok": report.ok, **asdict(report)})
    else:
        for text in verify_lines(report):
            render.line(text)
    return OK if report.ok else CORRUPT


def verify_lines(report: VerifyReport) -> list[str]:
    """A report in words: each problem, then what was read."""
    read = ", ".join(
        (
            render.plural(report.segments, "segment"),
            f"{report.batches:,} commits",
            f"{report.entries:,} entries",
            render.byte_size(report.bytes),
        )
    )
    verdict = "ok" if report.ok else render.plural(len(report.problems), "problem")
    depth = ", cross-checked" if report.deep else ""
    return [*_problem_lines(report.problems), f"{verdict}: {read} read{depth}"]


def _problem_lines(problems: tuple[Problem, ...]) -> list[str]:
    return [render.one_line(str(problem)) for problem in problems]


# -- repair -------------------------------------------------------------------------------------


@verb("repair")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and touch nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def repair_command(call: Call, *, dry_run: bool, yes: bool) -> int:
    """Rebuild what can be rebuilt of a damaged store, and say what is lost.

    Damaged files are kept aside as they were. No other process may have the store open. On a
    terminal it shows what it would do and asks; elsewhere it needs --yes.
    """
    path = embedded_path(call.url())
    if dry_run:
        plan = LMDBStore.repair(path, dry_run=True)
        _tell(call, plan)
        return CORRUPT if plan.problems else OK
    if not yes and not _agreed(LMDBStore.repair(path, dry_run=True)):
        render.note("kvsage: nothing was changed")
        return CORRUPT
    _tell(call, LMDBStore.repair(path))
    return OK


def _agreed(plan: RepairReport) -> bool:
    """Whether the person at the terminal wants what ``plan`` says."""
    if not sys.stdin.isatty():
        raise click.UsageError("repair changes the store: give --yes, or look with --dry-run first")
    for text in repair_lines(plan):
        render.note(text)
    return click.confirm("Do it so?", err=True)


def _tell(call: Call, report: RepairReport) -> None:
    if call.as_json:
        render.json_line(asdict(report))
        return
    for text in repair_lines(report):
        render.line(text)


def repair_lines(report: RepairReport) -> list[str]:
    """A report in words: each problem, then what was or would be done."""
    would = "would be " if report.dry_run else ""
    lines = _problem_lines(report.problems) or ["no damage found"]
    if report.rebuilt:
        lines.append(f"index {would}rebuilt from the log")
    if report.problems:
        lines.append(
            f"{report.entries_kept:,} entries {would}kept, "
            f"{render.byte_size(report.bytes_lost)} of log {would}lost"
        )
    lines += [f"lost: {render.one_line(key)}" for key in report.keys_lost]
    if report.saved_to is not None:
        lines.append(f"damaged files {would}kept in {report.saved_to}")
    return lines
