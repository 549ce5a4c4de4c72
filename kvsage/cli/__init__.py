"""The `kvsage` command: data on stdout, all else on stderr, and exit codes for scripts.

    app                     the root command: finds a verb, and ends every run
    records scan health     the verbs, one file a group; a file is imported when its verb runs
    ingest demo
    opening values tree     what several verbs need: stores, values as text, files of a tree
    demo_steps demo_figures what the demo does, and what it measures
    crash crash_writer      the demo's writer that is killed, on both sides of the pipe
    render rich_screen      tables, sizes, progress; rich only where a person looks at a terminal
    call exits              the options that each verb has; the table of exit codes

A verb returns its exit code, or None for 0, and raises kvsage's errors as they come: what a person
gets to see of an error is decided in `app` alone.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from kvsage.cli.exits import INTERRUPTED, UNAVAILABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

MISSING = "kvsage: the command line is an extra, add it with: pip install 'kvsage[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows the program's name; None for what the process was started with.

    Returns:
        The exit code.
    """
    try:
        # Not at the top: without the extra this very import fails, and deserves a plain answer.
        from kvsage.cli.app import run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print(MISSING, file=sys.stderr)
        return UNAVAILABLE
    except KeyboardInterrupt:
        return INTERRUPTED
    return run(sys.argv[1:] if arguments is None else list(arguments))
