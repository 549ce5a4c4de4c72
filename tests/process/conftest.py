"""Processes of one's own, heard through pipes, never waited for without a bound."""

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvsage import LMDBStore

PATIENCE_S = 60

PRELUDE = """
import os, sys, threading
from kvsage import LMDBStore
from kvsage.engine import cutting
cutting.PIECE_UNIT_LEAST = 64  # as in the tests' own process
path, *arguments = sys.argv[1:]
def say(*words):
    print(*words, flush=True)
def hear():
    return sys.stdin.readline().strip()
"""


class Child:
    """A fresh interpreter that runs a program; ``say`` there arrives as ``line`` here."""

    def __init__(self, program: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._heard = b""
        self.ended = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def read(self) -> bool:
        """Take in what it said, waiting for at least something; False at the end."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        assert ready, "the child fell silent"
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        self._heard += data
        self.ended = not data
        return bool(data)

    def line(self) -> str:
        """The next thing that it said."""
        while b"\n" not in self._heard:
            assert self.read(), f"the child ended with {self.process.wait(PATIENCE_S)}"
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def tell(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(words.encode() + b"\n")

    def ask(self, words: str) -> str:
        self.tell(words)
        return self.line()

    def rest(self) -> list[str]:
        """Everything else that it says, to its end; a line cut short is no line."""
        while not self.ended:
            self.read()
        *lines, _ = self._heard.split(b"\n")
        return [line.decode() for line in lines]

    def finish(self) -> list[str]:
        """Wait for a good end; what it still said."""
        said = self.rest()
        assert self.process.wait(PATIENCE_S) == 0
        return said

    def kill(self) -> list[str]:
        """SIGKILL; everything that it had said."""
        self.process.kill()
        said = self.rest()
        self.process.wait(PATIENCE_S)
        return said

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    """Start children; those that are left at the end are ended."""
    started: list[Child] = []

    def start(program: str, *arguments: object) -> Child:
        started.append(Child(program, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where the store lies; whatever the test did to it, it verifies at the end."""
    yield tmp_path / "store"
    if (tmp_path / "store" / "KVSAGE").exists():
        with LMDBStore(tmp_path / "store") as store:
            assert store.verify(deep=True).problems == ()
