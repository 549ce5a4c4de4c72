"""Single records: get, set, del, exists, ttl, touch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kvsage.cli import render
from kvsage.cli.call import Call, verb
from kvsage.cli.exits import NOT_FOUND, OK
from kvsage.cli.opening import open_existing, open_or_create
from kvsage.cli.values import duration, duration_or_never, parse_value, read_argument, write_value
from kvsage.store import not_found

if TYPE_CHECKING:
    from datetime import timedelta

ABSENT = object()


@verb("get")
@click.argument("key")
@click.option("--raw", is_flag=True, help="Text and bytes exactly as they are, also on a terminal.")
def get_command(call: Call, key: str, *, raw: bool) -> None:
    """Print the value of KEY.

    Text and bytes go into a pipe or file exactly as they were saved, anything else as one line of
    JSON. A terminal shows text as text and everything else as indented JSON.
    """
    if raw and call.as_json:
        raise click.UsageError("--raw and --json exclude each other")
    with open_existing(call.url(), readonly=True) as store:
        value = store.load(key, ABSENT)
    if value is ABSENT:
        raise not_found(key)
    write_value(value, raw=raw, force_json=call.as_json)


@verb("set", prints=False)
@click.argument("key")
@click.argument("value")
@click.option("--raw", is_flag=True, help="Save VALUE as text (bytes where it is not UTF-8).")
@click.option(
    "--ttl",
    type=duration,
    metavar="TIME",
    help="Let KEY expire after 90 (seconds), 15m, 24h, 7d.",
)
def set_command(call: Call, key: str, value: str, *, raw: bool, ttl: timedelta | None) -> None:
    """Save VALUE under KEY, in place of what is there; make the store where there is none.

    VALUE is JSON where it is valid JSON, and text otherwise; what begins like JSON ({, [ or ") and
    is not valid is refused. --raw takes it as it is. @FILE stands for the content of a file, - for
    stdin. A VALUE that begins with - goes after --.
    """
    parsed = parse_value(read_argument(value), raw=raw)
    with open_or_create(call.url()) as store:
        store.save(key, parsed, ttl)


@verb("del", prints=False)
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def del_command(call: Call, keys: tuple[str, ...]) -> int:
    """Remove every KEY; exit 1 when one of them was not there (the others are removed)."""
    with open_existing(call.url()) as store:
        absent = [key for key in keys if not store.delete(key)]
    for key in absent:
        render.note(f"kvsage: {not_found(key)}")
    return NOT_FOUND if absent else OK


@verb("exists")
@click.argument("key")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit code tells.")
def exists_command(call: Call, key: str, *, quiet: bool) -> int:
    """Print true when KEY is there (exit 0), false when it is not (exit 1)."""
    with open_existing(call.url(), readonly=True) as store:
        found = store.exists(key)
    if not quiet:
        render.json_line({"key": key, "exists": found} if call.as_json else found)
    return OK if found else NOT_FOUND


@verb("ttl")
@click.argument("key")
def ttl_command(call: Call, key: str) -> None:
    """Print the seconds until KEY expires, or "permanent"."""
    with open_existing(call.url(), readonly=True) as store:
        seconds = store.ttl(key)
    if call.as_json:
        render.json_line({"key": key, "ttl": seconds})
    else:
        render.line("permanent" if seconds is None else f"{seconds:.3f}")


@verb("touch", prints=False)
@click.argument("key")
@click.argument("ttl", metavar="TIME|never", type=duration_or_never)
def touch_command(call: Call, key: str, ttl: timedelta | None) -> None:
    """Let KEY expire after TIME from now (90, 15m, 24h, 7d), or never."""
    with open_existing(call.url()) as store:
        found = store.touch(key, ttl)
    if not found:
        raise not_found(key)
