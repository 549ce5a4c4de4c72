"""What the crash tests share: children to kill, copies to damage, a second process to ask."""

import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvsage import LMDBStore
from tests.support.small import quick_directory

PATIENCE_S = 60

PRELUDE = """
import os, sys
from kvsage import LMDBStore
from kvsage.engine import cutting
cutting.PIECE_UNIT_LEAST = 64  # as in the tests' own process
path, *arguments = sys.argv[1:]
def say(*words):
    print(*words, flush=True)
def hear():
    return sys.stdin.readline().strip()
"""


def take(fd: int) -> bytes:
    """What stands in a pipe, waiting for at least something; nothing at its end."""
    ready, _, _ = select.select([fd], [], [], PATIENCE_S)
    assert ready, "the child fell silent"
    return os.read(fd, 1 << 16)


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

    def line(self) -> str:
        """The next thing that it said."""
        while b"\n" not in self._heard:
            data = take(self.process.stdout.fileno())
            assert data, f"the child ended with {self.process.wait(PATIENCE_S)}"
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def ask(self, words: str) -> str:
        self.process.stdin.write(words.encode() + b"\n")
        return self.line()

    def rest(self) -> list[str]:
        """Everything else that it says, to its end; a line cut short is no line."""
        while data := take(self.process.stdout.fileno()):
            self._heard += data
        *lines, _ = self._heard.split(b"\n")
        return [line.decode() for line in lines]

    def kill(self) -> list[str]:
        """SIGKILL; everything that it had said."""
        self.process.kill()
        said = self.rest()
        self.process.wait(PATIENCE_S)
        return said

    def finish(self) -> None:
        """Let it end by itself, and well."""
        self.process.stdin.close()
        assert self.process.wait(PATIENCE_S) == 0

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self.process.stdin.close()
        self.process.stdout.close()


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


Work = Callable[[Callable[[object], None]], object]


@pytest.fixture
def fork() -> Callable[[Work], tuple[int, list[str]]]:
    """Run ``work(say)`` in a forked child; its exit code (-9 when killed) and what it said."""

    def run(work: Work) -> tuple[int, list[str]]:
        heard, out = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(lambda words: os.write(out, f"{words}\n".encode()))
                status = 0
            except BaseException:  # noqa: BLE001  # shown by the parent, whatever it is
                os.write(out, traceback.format_exc().encode())
            finally:
                os._exit(status)
        os.close(out)
        said = b""
        try:
            while data := take(heard):
                said += data
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            os.close(heard)
            _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in {0, -signal.SIGKILL}, said.decode()
        return code, said.decode().splitlines()

    return run


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where stores lie that need no real disk."""
    with quick_directory(tmp_path) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "store"


@pytest.fixture
def checked() -> Callable[..., dict[str, object]]:
    """Open, verify deeply, write at once; everything that the store holds."""

    def check(path: Path, **options: object) -> dict[str, object]:
        with LMDBStore(path, lock_timeout=5, **options) as store:
            assert store.verify(deep=True).problems == ()
            found = dict(store.items())
            store.save("~after", 1)
            assert store.load("~after") == 1
            assert store.delete("~after")
        return found

    return check
