import io
import time

import pytest

from kvsage.cli import render


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1536, "1.5 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (20_345_678, "20.3 MB"),
        (5_000_000_000, "5.0 GB"),
        (12_345_000_000_000_000, "12,345.0 TB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_byte_size(count, text):
    assert render.byte_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00085, "850 us"), (0.0123, "12.3 ms"), (4.56, "4.56 s"), (125, "2 min 5 s")],
)
def test_duration(seconds, text):
    assert render.duration(seconds) == text


def test_ratio_of_nothing():
    assert render.ratio(0, 0) is None
    assert render.times(None) == "-"
    assert render.times(render.ratio(30, 4)) == "7.50x"


def test_plural():
    assert [render.plural(n, "file") for n in (0, 1, 1792)] == ["0 files", "1 file", "1,792 files"]


def test_printable_escapes_what_steers_a_terminal():
    assert render.printable("a\tb\nc\r\nd") == "a\tb\nc\r\nd"
    assert render.printable("\x1b[31m\x07\x9b") == "\\x1b[31m\\x07\\x9b"
    assert render.printable("over\rwritten") == "over\\rwritten"
    assert render.printable("\u202egnp.exe") == "\\u202egnp.exe"
    assert render.printable("\udcff") == "\\udcff"
    assert render.printable("žluťoučký 中文 👩‍🚀") == "žluťoučký 中文 👩‍🚀"


def test_one_line():
    assert render.one_line("a\nb\r\nc") == "a\\nb\\r\\nc"


def test_plain_table():
    table = render.Table(
        "Title", ("name", "n"), [[("a", "1"), ("bcdef", "10")], [("z", "5")]], ("left", "right")
    )
    assert list(render.plain(table)) == [
        "Title",
        "  name    n",
        "  -----  --",
        "  a       1",
        "  bcdef  10",
        "",
        "  z       5",
    ]


def test_facts_have_no_headings():
    table = render.facts("Store", [("keys", "3")], [], [("log", "1 B")])
    assert list(render.plain(table)) == ["Store", "  keys  3", "", "  log   1 B"]


def test_terminal_is_asked_for():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert not render.is_terminal(None)
    assert not render.is_terminal(io.StringIO())
    closed = io.StringIO()
    closed.close()
    assert not render.is_terminal(closed)
    assert render.is_terminal(Terminal())


def test_dumb_terminal_gets_plain_text(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "dumb")
    assert not render.is_terminal(Terminal())


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with render.progress("ingest", 4, 4000) as progress:
        for _ in range(2):
            progress.step(1000)
        now = render.NOTE_SECONDS
        progress.step(1000)
        progress.step(1000)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "ingest: 3 of 4 files, 3.0 kB of 4.0 kB\n"
