"""Values as a command line gives and shows them.

On the way in, JSON is taken as JSON; what cannot be JSON is text; what looks like JSON and is not
is refused, because a forgotten bracket should not be saved as text. `--raw` ends all guessing.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from kvsage.cli import render
from kvsage.errors import SerializationError
from kvsage.serialization import Serializer

JSON_BEGINS = ("{", "[", '"')
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "": 1}
DURATION = re.compile(r"([+-]?\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|d|w|)", re.ASCII)


# -- in -----------------------------------------------------------------------------------------


def read_argument(argument: str) -> bytes:
    """The bytes that an argument stands for: itself, ``@file``, or ``-`` for stdin."""
    if argument == "-":
        return sys.stdin.buffer.read()
    if argument.startswith("@"):
        try:
            return Path(argument[1:]).read_bytes()
        except OSError as error:
            raise click.UsageError(f"cannot read {argument[1:]!r}: {error.strerror}") from error
    return argument.encode("utf-8", "surrogateescape")


def parse_value(data: bytes, *, raw: bool = False) -> Any:
    """The value that ``data`` means.

    Args:
        data: what was given.
        raw: take it as it is: text, or bytes where it is not UTF-8.

    Raises:
        click.UsageError: not UTF-8, or it begins like JSON and is none.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        if raw:
            return data
        raise click.UsageError("the value is not UTF-8 text; --raw saves it as bytes") from None
    if raw:
        return text
    try:
        return Serializer.deserialize(data, format="json")
    except SerializationError as error:
        if text.lstrip().startswith(JSON_BEGINS):
            raise click.UsageError(
                f"the value looks like JSON and is not: {error}; --raw saves it as text"
            ) from error
        return text


def duration(text: str) -> timedelta:
    """A time to live: seconds, or a number with ms, s, m, h, d or w.

    Raises:
        click.BadParameter: it is something else.
    """
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is no time: give seconds, or 500ms, 90s, 15m, 24h, 7d")
    try:
        return timedelta(seconds=float(match[1]) * UNITS[match[2]])
    except OverflowError:
        raise click.BadParameter(f"{text!r} is too long") from None


def duration_or_never(text: str) -> timedelta | None:
    """The same, or None for ``never``."""
    return None if text == "never" else duration(text)


# -- out ----------------------------------------------------------------------------------------


def as_json(value: Any) -> str:
    """A value in the documented JSON form, on one line."""
    return Serializer.serialize(value, format="json").decode()


def write_value(value: Any, *, raw: bool = False, force_json: bool = False) -> None:
    """Print one value.

    Text and bytes go into a pipe as they are, and under ``raw`` anywhere; anything else is JSON. A
    terminal gets text as text, indented JSON, and nothing that could steer it.
    """
    terminal = render.is_terminal(sys.stdout)
    if isinstance(value, (str, bytes)) and not force_json:
        if raw or not terminal:
            render.write(
                value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
            )
            return
        text = _readable(value)
        if text is not None:
            render.write(text.encode() + b"\n" * (not text.endswith("\n")))
            return
    text = as_json(value)
    if terminal and not raw:
        text = json.dumps(json.loads(text), ensure_ascii=False, indent=2)
        text = render.printable(text)
    render.line(text)


def _readable(value: str | bytes) -> str | None:
    """Text that a terminal may show, or None for bytes that are not text."""
    try:
        text = value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError:
        return None
    shown = render.printable(text)
    # A text keeps its look with a stray control character escaped; bytes full of them are no text.
    return shown if isinstance(value, str) or shown == text else None
