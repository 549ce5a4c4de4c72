"""The demo's crash: a child writes, is killed in mid-write, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Literal

from kvsage.cli import render
from kvsage.cli.crash_writer import LARGE_EVERY, key_of, payload
from kvsage.errors import StoreUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from kvsage.store import PersistenceStore

ACKNOWLEDGED_LEAST = 250
SECONDS_MOST = 15.0
READ_BYTES = 65_536

Interrupted = Literal["none", "absent", "whole", "torn"]


@dataclass(frozen=True, slots=True)
class Killed:
    """What a killed writer had said.

    Attributes:
        acknowledged: numbers of the writes that the store had acknowledged to it.
        begun: the last write that it had begun.
        seconds: from the first write's beginning to the kill.
    """

    acknowledged: tuple[int, ...]
    begun: int
    seconds: float

    @property
    def last_words(self) -> str:
        """How it ended, for a person."""
        done = render.plural(len(self.acknowledged), "write")
        return f"killed after {done} acknowledged and {self.begun:,} begun"


@dataclass(frozen=True, slots=True)
class Survey:
    """What a store holds of a killed writer's work.

    Attributes:
        lost: acknowledged writes that are absent or wrong; none, or the promise is broken.
        interrupted: what became of the write under way: ``absent`` and ``whole`` are both right.
    """

    lost: tuple[int, ...]
    interrupted: Interrupted

    @property
    def last_write(self) -> str:
        """What became of the write under way, for a person."""
        return {
            "none": "no write was under way",
            "absent": "the write under way left no trace",
            "whole": "the write under way is there, whole",
            "torn": "the write under way is TORN",
        }[self.interrupted]


def kill_writer(path: Path) -> Killed:
    """Let a child process write to the store at ``path`` and kill it with SIGKILL in mid-write.

    Raises:
        StoreUnavailableError: the child ended by itself.
    """
    command = [sys.executable, "-m", "kvsage.cli.crash_writer", str(path)]
    # A group of its own, so that Ctrl-C reaches the demo alone, which then ends the child.
    with subprocess.Popen(  # noqa: S603  # our own module
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0
    ) as child:
        assert child.stdout is not None
        try:
            said, seconds = _listen(child.stdout)
        finally:
            child.kill()
        said += child.stdout.read()
    if child.returncode != -signal.SIGKILL:
        raise StoreUnavailableError(
            f"the writer ended by itself, with exit code {child.returncode}"
        )
    numbers = {
        mark: [int(line[1:]) for line in said.split() if line[:1] == mark] for mark in (b">", b"<")
    }
    return Killed(tuple(numbers[b"<"]), max(numbers[b">"], default=0), seconds)


def _listen(pipe: IO[bytes]) -> tuple[bytes, float]:
    """What the child says until it is time to kill it, and how long it has been writing."""
    said = b""
    began = ended = time.perf_counter()
    deadline = began + SECONDS_MOST
    while not _in_mid_write(said):
        ready, _, _ = select.select([pipe], [], [], max(deadline - time.perf_counter(), 0))
        part = os.read(pipe.fileno(), READ_BYTES) if ready else b""
        if not part:
            break
        if not said:
            began = time.perf_counter()
        said += part
        ended = time.perf_counter()
    return said, ended - began


def _in_mid_write(said: bytes) -> bool:
    """Whether a long write has just begun, after enough others."""
    last = said[said.rfind(b"\n", 0, -1) + 1 :]
    if not (last.startswith(b">") and last.endswith(b"\n")):
        return False
    number = int(last[1:])
    return number > ACKNOWLEDGED_LEAST and number % LARGE_EVERY == 0


def survey(store: PersistenceStore, killed: Killed) -> Survey:
    """Compare every acknowledged write, and the one under way, with what the store holds."""
    lost = tuple(
        number for number in killed.acknowledged if store.load(key_of(number)) != payload(number)
    )
    if killed.begun in killed.acknowledged or not killed.begun:
        return Survey(lost, "none")
    value = store.load(key_of(killed.begun))
    if value is None:
        return Survey(lost, "absent")
    return Survey(lost, "whole" if value == payload(killed.begun) else "torn")
