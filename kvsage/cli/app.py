"""The root command: which verbs there are, and how a run ends."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, cast

import click
from typing_extensions import override

from kvsage.cli.call import Call, debug_option, store_option
from kvsage.cli.exits import BROKEN_PIPE, INTERRUPTED, OK, UNEXPECTED, USAGE, exit_code
from kvsage.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Place(NamedTuple):
    """Where a verb is, and what the list of verbs says of it without importing it."""

    group: str
    module: str
    help: str


VERBS = {
    "demo": Place("Start here", "demo", "See kvsage at work on a tree of real files."),
    "get": Place("Records", "records", "Print the value of a key."),
    "set": Place("Records", "records", "Save a value under a key."),
    "del": Place("Records", "records", "Remove keys."),
    "exists": Place("Records", "records", "Tell whether a key is there."),
    "ttl": Place("Records", "records", "Print the seconds until a key expires."),
    "touch": Place("Records", "records", "Let a key expire later, sooner, or never."),
    "scan": Place("Records", "scan", "List keys in order, with or without their values."),
    "count": Place("Records", "scan", "Count keys."),
    "changes": Place("Records", "changes", "List what was saved and removed, in order."),
    "ingest": Place("Files", "ingest", "Save files and directory trees, one key a file."),
    "info": Place("Store", "health", "Show what a store holds and what it costs."),
    "verify": Place("Store", "health", "Check every byte of a store."),
    "repair": Place("Store", "health", "Rebuild what can be rebuilt of a damaged store."),
    "sweep": Place("Store", "upkeep", "Remove what has expired."),
    "compact": Place("Store", "upkeep", "Give the space of garbage back."),
    "backup": Place("Store", "backups", "Make, check and restore backups of a store."),
}

EXIT_CODES = """\b
Exit codes: 0 ok, 1 not found, 2 usage, 3 store unavailable or locked,
4 corrupt, 5 conflict or full, 130 interrupted."""


class Verbs(click.Group):
    """Commands that are imported when they run, so that ``--help`` needs none of them."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = VERBS.get(cmd_name)
        if place is None:
            return None
        module = importlib.import_module(f"kvsage.cli.{place.module}")
        return cast("click.Command", getattr(module, f"{cmd_name}_command"))

    @override
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            near = difflib.get_close_matches(name, VERBS, n=1)
            ctx.fail(f"no such command {name!r}" + (f", did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)

    @override
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in dict.fromkeys(place.group for place in VERBS.values()):
            rows = [(name, place.help) for name, place in VERBS.items() if place.group == group]
            with formatter.section(group):
                # One width for all groups keeps the descriptions in one column.
                width = max(map(len, VERBS))
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])


def _version(context: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001  # click calls it so
    if value:
        from importlib import metadata  # noqa: PLC0415  # a tenth of what --help may take

        try:
            version = metadata.version("kvsage")
        except metadata.PackageNotFoundError:
            version = "(run from its source, not installed)"
        click.echo(f"kvsage {version}")
        context.exit()


@click.group(
    cls=Verbs,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[store_option(), debug_option()],
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Show the version and exit.",
)
def kvsage() -> None:
    """Keep what a process must not forget: an embedded key-value store.

    `kvsage demo` shows what it does, on real files and in less than a minute.
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command and say what went wrong, if anything did.

    Args:
        arguments: what follows the program's name.

    Returns:
        The exit code.
    """
    call = Call()
    try:
        code = _invoke(arguments, call)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, because at the interpreter's end an error has nowhere to go
    except (KeyboardInterrupt, click.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        code = BROKEN_PIPE
        _discard_stdout()
    except click.ClickException as error:
        code = USAGE
        _say_usage(error)
    except Exception as error:  # noqa: BLE001  # the last place where it can be explained
        code = exit_code(error)
        _say(error, debug=call.debug)
    return code


def _invoke(arguments: Sequence[str], call: Call) -> int:
    # Not kvsage.main(): that one handles closed pipes and Ctrl-C in click's way.
    try:
        with kvsage.make_context("kvsage", list(arguments), obj=call) as context:
            return cast("int | None", kvsage.invoke(context)) or OK
    except click.exceptions.Exit as end:
        return end.exit_code


def _say(error: BaseException, *, debug: bool) -> None:
    told = error.strerror if isinstance(error, OSError) else None
    text = " ".join(str(told or error).split())  # one line, whatever the error holds
    if exit_code(error) == UNEXPECTED:
        text = f"unexpected {type(error).__name__}: {text}"
        text += "" if debug else " (--debug shows where)"
    elif isinstance(error, CorruptionError):
        text += "; `kvsage repair --dry-run` shows what can be saved"
    with suppress(OSError):
        if debug:
            traceback.print_exception(error)
        print(f"kvsage: {text or type(error).__name__}", file=sys.stderr)


def _say_usage(error: click.ClickException) -> None:
    text = error.format_message()
    with suppress(OSError):
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            print(text, file=sys.stderr)
            return
        context = error.ctx if isinstance(error, click.UsageError) else None
        text = " ".join(text.split()).removesuffix(".")
        hint = f" (see {context.command_path} --help)" if context else ""
        print(f"kvsage: {text[:1].lower()}{text[1:]}{hint}", file=sys.stderr)


def _discard_stdout() -> None:
    """Give the interpreter's last flush a place to go, now that the reader has left."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
