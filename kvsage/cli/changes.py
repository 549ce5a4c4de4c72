"""The feed of changes: changes."""

from __future__ import annotations

import itertools
import json
import re
import sys
from typing import TYPE_CHECKING

import click

from kvsage.cli import render
from kvsage.cli.call import Call, verb
from kvsage.cli.opening import embedded, open_existing
from kvsage.cli.values import as_json
from kvsage.errors import ChangesLostError

if TYPE_CHECKING:
    from kvsage.types import Change

PLACE = re.compile(r"(\d{1,20})(?:\.(\d{1,10}))?", re.ASCII)  # a position without its timeline


@verb("changes")
@click.option(
    "--since",
    metavar="POSITION",
    help="Only what follows POSITION, as printed before; or commit 12, or entry 3 of it: 12.3.",
)
@click.option("--prefix", default="", metavar="PREFIX", help="Only keys that begin with PREFIX.")
@click.option("--consumer", metavar="NAME", help="Go on where NAME was, and remember how far.")
@click.option("-f", "--follow", is_flag=True, help="At the end, wait for more.")
@click.option("-n", "--limit", type=click.IntRange(min=0), metavar="N", help="At most N changes.")
@click.option("--values", is_flag=True, help="Show the values too, as JSON.")
def changes_command(  # noqa: PLR0913
    call: Call,
    *,
    since: str | None,
    prefix: str,
    consumer: str | None,
    follow: bool,
    limit: int | None,
    values: bool,
) -> None:
    """List every change in the order of the commits, those of other processes too.

    A line has the position (for --since), the time (UTC), what happened (put, delete, expired,
    evicted) and the key, with tabs between, and with --values the value as JSON. --json prints one
    object a line. Compaction may have left the latest change of a key alone; a value that is gone
    because its key changed again is shown as nothing.

    A consumer is known by its name from its first run on, and deletions are kept until it has
    passed them, for a week after it was last heard of.
    """
    with open_existing(call.url(), readonly=consumer is None) as opened:
        store = embedded(opened, "changes")
        with store.changes(_place(since), prefix, follow=follow, consumer=consumer) as feed:
            for change in itertools.islice(feed, limit):
                if call.as_json:
                    _print_json(change, values=values)
                else:
                    _print(change, values=values)
                if (follow or consumer is not None) and sys.stdout is not None:
                    sys.stdout.flush()  # for whoever waits for it, and before it counts as passed


def _place(since: str | None) -> str | tuple[int, int] | int | None:
    """What was given as ``--since``, as ``store.changes`` takes it."""
    match = None if since is None else PLACE.fullmatch(since)
    if match is None:
        return since
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def _what(change: Change) -> str:
    return change.kind if change.reason in {None, "user"} else str(change.reason)


def _value(change: Change) -> str | None:
    """The value as JSON; None of a delete, and where it is gone."""
    try:
        return None if change.kind == "delete" else as_json(change.value)
    except ChangesLostError:
        return None


def _print(change: Change, *, values: bool) -> None:
    terminal = render.is_terminal(sys.stdout)
    key = render.one_line(change.key) if terminal else change.key
    parts = [str(change.position), change.time.isoformat(), _what(change), key]
    value = _value(change) if values else None
    if value is not None:
        parts.append(render.one_line(value) if terminal else value)
    render.line("\t".join(parts))


def _print_json(change: Change, *, values: bool) -> None:
    fields = {
        "position": str(change.position),
        "time": change.time.isoformat(),
        "kind": change.kind,
        "key": change.key,
    }
    if change.reason is not None:
        fields["reason"] = change.reason
    if change.expires_at is not None:
        fields["expires_at"] = change.expires_at.isoformat()
    text = json.dumps(fields, ensure_ascii=False)
    value = _value(change) if values else None
    # Put together as text: the value has its own JSON form already.
    render.line(text if value is None else f'{text[:-1]}, "value": {value}}}')
