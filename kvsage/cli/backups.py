"""Backups of a store: make, list, check and remove them, and make a store out of one."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvsage.cli import render
from kvsage.cli.call import Call, debug_option, store_option, verb
from kvsage.cli.exits import CORRUPT, OK
from kvsage.cli.opening import embedded, open_existing, shown
from kvsage.cli.values import duration
from kvsage.stores.embedded import LMDBStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from kvsage.types import Backup, BackupVerifyReport

DIRECTORY = click.argument("directory", type=click.Path(path_type=Path))
NAME = click.option("--name", metavar="NAME", help="Only the backup of this name.")
KEEP = click.option(
    "--keep", metavar="N", type=click.IntRange(1), help="Keep the newest N backups."
)
KEEP_FOR = click.option(
    "--keep-for", metavar="TIME", type=duration, help="Keep backups younger than this: 12h, 30d."
)


@click.group("backup", params=[store_option(), debug_option()])
def backup_command() -> None:
    """Back a store up while it is in use, and restore it."""


def _figures(backup: Backup) -> dict[str, Any]:
    return {**asdict(backup), "created_at": backup.created_at.isoformat()}


# -- run ----------------------------------------------------------------------------------------


@verb("run")
@DIRECTORY
@KEEP
@KEEP_FOR
@click.option("--copy", is_flag=True, help="Copy files where a second name would do.")
@click.option("--verify", is_flag=True, help="Also read what is shared with earlier backups.")
def run_command(  # noqa: PLR0913
    call: Call,
    *,
    directory: Path,
    keep: int | None,
    keep_for: timedelta | None,
    copy: bool,
    verify: bool,
) -> None:
    """Back the store up into DIRECTORY.

    What earlier backups there have is shared. With --keep, --keep-for or both, older backups are
    removed once the new one is complete; what either keeps stays.
    """
    url = call.url()
    with open_existing(url, readonly=True) as store:
        report = embedded(store, "backup").backup(
            directory,
            keep=keep,
            keep_for=keep_for,
            link=not copy,
            verify=verify,
            progress=_notes(),
        )
    backup = report.backup
    if call.as_json:
        render.json_line({"store": shown(url), **asdict(report), "backup": _figures(backup)})
        return
    new = report.files_linked + report.files_copied
    render.line(
        f"{backup.name}: {render.byte_size(backup.bytes)} in {render.plural(backup.files, 'file')},"
        f" {new} of them new ({render.byte_size(report.bytes_copied)} copied)"
    )
    for name in report.removed:
        render.line(f"removed: {name}")


def _notes() -> Callable[[int, int], None]:
    """Where a long backup is, every few seconds."""
    next_note = time.monotonic() + render.NOTE_SECONDS

    def tell(done: int, total: int) -> None:
        nonlocal next_note
        if time.monotonic() >= next_note:
            next_note = time.monotonic() + render.NOTE_SECONDS
            render.note(f"backup: {render.byte_size(done)} of {render.byte_size(total)}")

    return tell


# -- list ---------------------------------------------------------------------------------------


@verb("list", store=False)
@DIRECTORY
def list_command(call: Call, *, directory: Path) -> int:
    """List the backups in DIRECTORY.

    The oldest comes first. Exit 4 when one of them is damaged.
    """
    backups = LMDBStore.backups(directory)
    if call.as_json:
        for backup in backups:
            render.json_line(_figures(backup))
    else:
        render.show(_table(directory, backups))
    return CORRUPT if any(backup.damage for backup in backups) else OK


def _table(directory: Path, backups: tuple[Backup, ...]) -> render.Table:
    rows = [
        (
            backup.name,
            f"{backup.seq:,}",
            str(backup.files),
            render.byte_size(backup.bytes),
            render.one_line(backup.damage or ""),
        )
        for backup in backups
    ]
    align = (render.LEFT, render.RIGHT, render.RIGHT, render.RIGHT, render.LEFT)
    columns = ("backup", "commits", "files", "size", "damage")
    title = f"Backups in {render.one_line(str(directory))}"
    return render.Table(title, columns, [rows], align)


# -- verify -------------------------------------------------------------------------------------


@verb("verify", store=False)
@DIRECTORY
@NAME
def verify_command(call: Call, *, directory: Path, name: str | None) -> int:
    """Check every byte of the backups.

    Exit 4 and a list when something is wrong.
    """
    report = LMDBStore.verify_backups(directory, name=name)
    if call.as_json:
        render.json_line({"ok": report.ok, **asdict(report)})
    else:
        for text in verify_lines(report):
            render.line(text)
    return OK if report.ok else CORRUPT


def verify_lines(report: BackupVerifyReport) -> list[str]:
    """A report in words: each problem, then what was read."""
    read = ", ".join(
        (
            render.plural(len(report.backups), "backup"),
            render.plural(report.files, "file"),
            f"{report.batches:,} commits",
            render.byte_size(report.bytes),
        )
    )
    verdict = "ok" if report.ok else render.plural(len(report.problems), "problem")
    problems = [render.one_line(str(problem)) for problem in report.problems]
    return [*problems, f"{verdict}: {read} read"]


# -- prune --------------------------------------------------------------------------------------


@verb("prune", store=False)
@DIRECTORY
@KEEP
@KEEP_FOR
def prune_command(
    call: Call, *, directory: Path, keep: int | None, keep_for: timedelta | None
) -> None:
    """Remove old backups from DIRECTORY.

    What --keep or --keep-for keeps stays, and the newest in any case.
    """
    if keep is None and keep_for is None:
        raise click.UsageError("what may go? Give --keep N, --keep-for TIME, or both")
    removed = LMDBStore.prune_backups(directory, keep=keep, keep_for=keep_for)
    if call.as_json:
        render.json_line({"removed": removed})
        return
    for name in removed:
        render.line(f"removed: {name}")


# -- restore ------------------------------------------------------------------------------------


@verb("restore", store=False)
@click.argument("backup", type=click.Path(path_type=Path))
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="The backup of this name, instead of the newest.")
@click.option("--at", metavar="INSTANT", help="The newest begun by then: 2026-01-31T12:00+01:00.")
@click.option("--overwrite", is_flag=True, help="Replace the store that is at PATH.")
def restore_command(  # noqa: PLR0913
    call: Call, *, backup: Path, path: Path, name: str | None, at: str | None, overwrite: bool
) -> None:
    """Make a store at PATH out of BACKUP.

    BACKUP is a directory of backups, or the manifest of one of them. The store is built beside PATH
    and checked before anything at PATH is touched. An instant without a time zone is one of this
    machine's.
    """
    report = LMDBStore.restore(backup, path, name=name, at=_instant(at), overwrite=overwrite)
    if call.as_json:
        render.json_line({**asdict(report), "backup": _figures(report.backup)})
        return
    size = render.byte_size(report.bytes)
    render.line(
        f"{report.backup.name}: {render.plural(report.keys, 'key')}, {size}, at {report.path}"
    )


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text!r} is no instant: give 2026-01-31T12:00") from error


for _command in (run_command, list_command, verify_command, prune_command, restore_command):
    backup_command.add_command(_command)
