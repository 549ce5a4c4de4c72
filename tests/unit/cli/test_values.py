from datetime import timedelta

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsage.cli.values import duration, duration_or_never, parse_value, read_argument


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (b"5", 5),
        (b"-2.5", -2.5),
        (b"true", True),
        (b"null", None),
        (b'"5"', "5"),
        (b'{"a": [1, "x"]}', {"a": [1, "x"]}),
        (b" [1] \n", [1]),
        (b"hello", "hello"),
        (b"hello world\n", "hello world\n"),
        (b"007", "007"),
        (b"1.2.3", "1.2.3"),
        (b"2026-01-01", "2026-01-01"),
        ("grün".encode(), "grün"),
        (b"", ""),
    ],
)
def test_json_where_it_is_json_and_text_otherwise(given, value):
    found = parse_value(given)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("broken", [b'{"a": 1', b"[1, 2", b'"open', b"  {a: 1}"])
def test_what_begins_like_json_must_be_json(broken):
    with pytest.raises(click.UsageError, match="--raw saves it as text"):
        parse_value(broken)
    assert parse_value(broken, raw=True) == broken.decode()


def test_raw_takes_everything_as_it_is():
    assert parse_value(b"5", raw=True) == "5"
    assert parse_value(b"\xff\x00", raw=True) == b"\xff\x00"


def test_binary_needs_raw():
    with pytest.raises(click.UsageError, match="not UTF-8"):
        parse_value(b"\xff\x00")


@given(st.binary())
def test_raw_keeps_every_byte(data):
    value = parse_value(data, raw=True)
    assert (value.encode() if isinstance(value, str) else value) == data


def test_argument_stands_for_itself_or_a_file(tmp_path):
    file = tmp_path / "value"
    file.write_bytes(b"\x00content")
    assert read_argument("plain") == b"plain"
    assert read_argument("\udcff") == b"\xff"
    assert read_argument(f"@{file}") == b"\x00content"
    with pytest.raises(click.UsageError, match="No such file"):
        read_argument(f"@{tmp_path / 'absent'}")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        (".5s", 0.5),
        ("500ms", 0.5),
        ("90s", 90),
        ("15m", 900),
        ("24h", 86_400),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("0", 0),  # the store says why not
        ("-5", -5),
    ],
)
def test_durations(text, seconds):
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "1h30m", "nan", "inf", "1e3", "5d" * 9])
def test_what_is_no_duration(text):
    with pytest.raises(click.BadParameter, match="is no time"):
        duration(text)


def test_duration_that_no_clock_can_hold():
    with pytest.raises(click.BadParameter, match="too long"):
        duration("9" * 30 + "w")


def test_never():
    assert duration_or_never("never") is None
    assert duration_or_never("5m") == timedelta(minutes=5)
