import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kvsage import LMDBStore, cli, errors
from kvsage.cli import records
from kvsage.cli.app import VERBS

IN_PROCESS = "import sys; from kvsage.cli import main; code = main(sys.argv[1:]); "


def test_help_lists_every_verb(run):
    shown = run("--help")
    assert (shown.code, shown.err) == (0, "")
    assert all(f"  {verb} " in shown.text for verb in VERBS)
    assert "Exit codes: 0 ok" in shown.text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"Usage: kvsage {verb} ")
    assert shown.err == ""
    if verb != "demo":
        assert "--store URL" in shown.out


def test_help_loads_no_verb_and_no_rich():
    program = IN_PROCESS + "print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True
    )
    loaded = set(shown.stdout.splitlines()[-1].split())
    assert {"kvsage.cli.app", "click"} <= loaded
    assert not {"rich", "kvsage.cli.records", "kvsage.cli.demo", "kvsage.cli.render"} & loaded


def test_a_pipe_needs_no_rich(tmp_path):
    program = IN_PROCESS + "print('rich' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program, "set", "-s", tmp_path / "s", "key", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "False\n"


def test_without_click_the_extra_is_named():
    program = "import sys; sys.modules['click'] = None; from kvsage.cli import main; exit(main())"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (shown.returncode, shown.stdout) == (3, "")
    assert "pip install 'kvsage[cli]'" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_no_arguments_show_the_help(call):
    shown = call()
    assert (shown.code, shown.out) == (2, b"")
    assert shown.err.startswith("Usage: kvsage")


def test_version(call):
    shown = call("--version")
    assert shown.code == 0
    assert shown.text.startswith("kvsage ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gett"], "no such command 'gett', did you mean get? (see kvsage --help)"),
        (["wobble"], "no such command 'wobble' (see kvsage --help)"),
        (["get"], "missing argument 'KEY' (see kvsage get --help)"),
        (["get", "key"], "which store? Give --store PATH"),
        (["get", "--store", "s", "key", "key"], "got unexpected extra argument"),
        (["scan", "--store", "s", "--limit", "-1"], "invalid value for '-n'"),
        (["set", "--store", "s", "k", "1", "--ttl", "soon"], "'soon' is no time"),
        (["ingest", "--store", "s", "absent"], "'absent' does not exist"),
        (["get", "--raw", "--json", "--store", "s", "k"], "exclude each other"),
        (["get", "--store", "nosuch://host", "k"], "nosuch"),
    ],
)
def test_usage_errors_are_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.delenv("KVSAGE_STORE", raising=False)
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("kvsage: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err


def test_store_from_the_environment_or_before_or_after_the_verb(call, store, tmp_path):
    other = tmp_path / "other"
    assert call("set", "key", '"environment"', KVSAGE_STORE=str(store)).code == 0
    assert call("--store", other, "set", "key", '"before"', KVSAGE_STORE=str(store)).code == 0
    assert call("get", "key", KVSAGE_STORE=str(store)).out == b"environment"
    assert call("get", "-s", other, "key", KVSAGE_STORE=str(store)).out == b"before"
    assert call("-s", store, "get", "-s", other, "key").out == b"before"
    assert call("get", "key", KVSAGE_STORE="").code == 2


class Broken:
    """Stands where a store would be opened."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, *_arguments, **_options):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.StoreLockedError("another process\nholds it"), 3, "another process holds it"),
        (
            errors.CorruptionError("bad", segment=3, offset=9),
            4,
            "bad (segment 3, offset 9); `kvsage repair --dry-run` shows what can be saved",
        ),
        (errors.StoreFullError(28, "no space left", "/s"), 5, "no space left"),
        (errors.TransactionConflictError("changed"), 5, "changed"),
        (OSError(5, "Input/output error"), 3, "Input/output error"),
        (errors.FormatVersionError(), 3, "FormatVersionError"),
        (click.Abort(), 130, None),
        (KeyboardInterrupt(), 130, None),
        (ZeroDivisionError("oops"), 70, "unexpected ZeroDivisionError: oops (--debug shows where)"),
    ],
)
def test_every_error_ends_in_one_line_and_its_code(monkeypatch, capsys, error, code, message):
    monkeypatch.setattr(records, "open_existing", Broken(error))
    assert cli.main(["get", "--store", "s", "key"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == ("" if message is None else f"kvsage: {message}\n")


@pytest.mark.parametrize("how", [["--debug", "get"], ["get", "--debug"]])
def test_debug_shows_the_traceback(call, how):
    shown = call(*how, "--store", "absent", "key")
    assert shown.code == 3
    assert shown.err.startswith("Traceback")
    assert shown.err.splitlines()[-1].startswith("kvsage: no store at absent")


def test_debug_from_the_environment(call):
    assert "Traceback" in call("get", "-s", "absent", "key", KVSAGE_DEBUG="1").err
    assert "Traceback" not in call("get", "-s", "absent", "key", KVSAGE_DEBUG="0").err


@pytest.fixture
def long_store(store):
    """More keys than a pipe takes in."""
    with LMDBStore(store) as opened:
        opened.save_many({f"{number:04}-{'x' * 160}": None for number in range(1000)})
    return store


def test_a_closed_pipe_ends_quietly(long_store, spawn):
    process = spawn("scan", "--store", long_store)
    first = process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141
    assert first.startswith(b"0000-")


def test_a_full_disk_behind_stdout_is_an_error(long_store, spawn):
    with Path("/dev/full").open("wb") as full:
        process = spawn("scan", "--store", long_store, stdout=full)
    assert process.stderr.read() == b"kvsage: No space left on device\n"
    assert process.wait(timeout=60) == 5


def test_a_closed_stdout_is_an_error(store, keep, spawn):
    keep("set", "key", "1")
    process = spawn("get", "--store", store, "key", preexec_fn=lambda: os.close(1))
    assert process.stderr.read() == b"kvsage: standard output is closed\n"
    assert process.wait(timeout=60) == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path, spawn, number, code):
    process = spawn("demo")
    said = [process.stderr.readline() for _ in range(2)]  # by now it is at work
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    assert b"Traceback" not in process.stderr.read()
    assert process.stdout.read() == b""
    assert process.wait(timeout=60) == code
    assert said[1].startswith(b"1/6 ")
    assert list(tmp_path.iterdir()) == []
