"""Running the command, each time with its streams and its exit code.

``run`` and ``on_terminal`` do it as a user does, in a process of its own; ``call`` and ``keep``
save the start of a process where a test is about what a verb says and does.
"""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from kvsage.cli import main

COMMAND = [sys.executable, "-m", "kvsage"]


class Outcome(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


Run = Callable[..., Outcome]


def environment(**changes: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("KVSAGE_") and name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")
    }
    return {**kept, "TERM": "xterm-256color", **changes}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the command away from any terminal; `env` adds to the environment, `stdin` is bytes."""

    def run(*arguments: object, stdin: bytes = b"", **env: str) -> Outcome:
        done = subprocess.run(
            [*COMMAND, *map(_text, arguments)],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env=environment(**env),
            timeout=120,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr.decode())

    return run


def _text(argument: object) -> str:
    return argument if isinstance(argument, str) else str(argument)


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the command and leave it running; its streams are pipes unless told otherwise."""
    with ExitStack() as ends:

        def spawn(*arguments: object, **streams: object) -> subprocess.Popen[bytes]:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
            process = subprocess.Popen(
                [*COMMAND, *map(_text, arguments)],
                stdin=subprocess.DEVNULL,
                cwd=tmp_path,
                env=environment(TMPDIR=str(tmp_path)),
                # Tests that run in the background ignore SIGINT, and so would their children.
                **{"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes},
            )
            ends.enter_context(process)
            ends.callback(process.kill)
            return process

        yield spawn


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Run:
    """Run the command in this process; `env` adds to the environment, `stdin` is bytes."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - environment().keys():
        monkeypatch.delenv(name)

    def call(*arguments: object, stdin: bytes = b"", **env: str) -> Outcome:
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            for name, value in env.items():
                patch.setenv(name, value)
            code = main([*map(_text, arguments)])
        out, err = capsysbinary.readouterr()
        return Outcome(code, out, err.decode())

    return call


@pytest.fixture
def keep(call: Run, store: Path) -> Run:
    """Run the command on the test's store, in this process."""

    def keep(verb: str, *arguments: object, stdin: bytes = b"") -> Outcome:
        return call(verb, "--store", store, *arguments, stdin=stdin)

    return keep


@pytest.fixture
def on_terminal(tmp_path: Path, store: Path) -> Run:
    """Run the command on the test's store with a terminal for all three streams."""

    def on_terminal(verb: str, *arguments: object, stdin: bytes = b"", **env: str) -> Outcome:
        command = [*COMMAND, verb, *map(_text, arguments)]
        return _with_terminal(command, tmp_path, {"KVSAGE_STORE": str(store), **env}, stdin)

    return on_terminal


# In one process, what each command showed with a mark behind it.
ONE_AFTER_ANOTHER = """
import json, sys
from kvsage.cli import main
for command in json.loads(sys.argv[1]):
    main(command)
    print(end="\\x1e", flush=True)
"""


@pytest.fixture
def each_on_terminal(tmp_path: Path, store: Path) -> Callable[..., list[bytes]]:
    """Run commands on the test's store, one after another on one terminal; what each showed."""

    def each_on_terminal(*commands: list[str]) -> list[bytes]:
        command = [sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(commands)]
        done = _with_terminal(command, tmp_path, {"KVSAGE_STORE": str(store)})
        assert done.code == 0, done.out
        *shown, rest = done.out.split(b"\x1e")
        assert rest == b""
        return shown

    return each_on_terminal


def _with_terminal(
    command: list[str], place: Path, env: dict[str, str], stdin: bytes = b""
) -> Outcome:
    ours, theirs = pty.openpty()
    shown = bytearray()
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=place,
        env=environment(**{"COLUMNS": "100", **env}),
    )
    os.close(theirs)
    reader = threading.Thread(target=_drain, args=(ours, shown))
    reader.start()
    if stdin:
        os.write(ours, stdin)
    try:
        code = process.wait(timeout=120)
    finally:
        process.kill()
        reader.join()
        os.close(ours)
    return Outcome(code, bytes(shown).replace(b"\r\n", b"\n"), "")


def _drain(terminal: int, shown: bytearray) -> None:
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux says EIO when the last writer has gone
            return
        if not part:
            return
        shown += part
