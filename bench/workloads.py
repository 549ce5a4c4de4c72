"""What is stored: session records of about 270 bytes, and text from Python's own sources.

The text stands alone, in messages of a conversation, in checkpoints of one, or in records of a log.
"""

from __future__ import annotations

import itertools
import random
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TEXT_BYTES = 64 << 10

# Who speaks in a turn, and how many characters in the middle: a question, a call of a tool, what
# the tool said, an answer. Lengths vary by lognormal law, tools most of all.
TURN = (("human", 120, 0.8), ("ai", 160, 0.5), ("tool", 700, 1.1), ("ai", 550, 0.7))
CHECKPOINTED_AT = 1_700_000_000


def session(number: int, turn: int = 0) -> dict[str, Any]:
    """A session record as of some turn; MessagePack makes about 270 bytes of it."""
    return {
        "session_id": f"session-{number:08d}",
        "user": f"user-{number % 997:04d}",
        "created_at": 1_700_000_000.25 + number,
        "last_seen": 1_700_003_600.75 + number,
        "active": number % 3 != 0,
        "turns": turn,
        "score": number / 7,
        "context": {
            "cwd": f"/home/user/projects/project-{number % 31}",
            "files": ["main.py", "store.py", "README.md"],
            "tokens": number * 17 % 128_000,
        },
        "preferences": {"theme": "dark", "language": "en"},
        "last_message": f"look at failing test {number}" + " again" * (turn % 4),
    }


# -- text -----------------------------------------------------------------------------------------


def sources() -> Iterator[tuple[str, str]]:
    """The modules of the standard library by dotted name, in the order of their paths.

    Raises:
        RuntimeError: there are none.
    """
    library = Path(sysconfig.get_path("stdlib"))
    found = False
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts:
            found = True
            # One byte a character, so that a length in bytes is exact.
            text = path.read_bytes().decode("ascii", "replace").replace("\ufffd", "?")
            yield ".".join(path.relative_to(library).with_suffix("").parts), text
    if not found:
        raise RuntimeError(f"no Python sources under {library} to take text from")


def library(length: int) -> str:
    """So many characters of the sources, or all of them where that is less."""
    texts, total = [], 0
    for _, text in sources():
        texts.append(text)
        total += len(text)
        if total >= length:
            break
    return "".join(texts)[:length]


def texts(count: int) -> list[str]:
    """``count`` texts of 64 KiB, all different; they overlap where the sources are not enough.

    Raises:
        RuntimeError: there are no sources to speak of.
    """
    text = library((count + 1) * TEXT_BYTES)
    step = min(TEXT_BYTES, (len(text) - TEXT_BYTES) // count)
    if step <= 0:
        raise RuntimeError("there are too few Python sources to take text from")
    return [text[at : at + TEXT_BYTES] for at in itertools.islice(range(0, len(text), step), count)]


# -- conversations --------------------------------------------------------------------------------


def conversation(text: str, turns: int, seed: int = 1) -> list[dict[str, str]]:
    """Messages that hold all of ``text``, four a turn, of the lengths that such messages have."""
    order = random.Random(seed)  # noqa: S311  # the same in every run
    drawn = [order.lognormvariate(0, spread) * size for _, size, spread in TURN * turns]
    scale = len(text) / sum(drawn)
    ends = [round(end * scale) for end in itertools.accumulate(drawn)]
    return [
        message(text[start:end], number, order)
        for number, (start, end) in enumerate(itertools.pairwise([0, *ends]))
    ]


def message(text: str, number: int, order: random.Random) -> dict[str, str]:
    """One message of a conversation."""
    return {
        "type": TURN[number % len(TURN)][0],
        "id": f"{order.getrandbits(64):016x}",
        "content": text,
    }


def checkpoint(messages: Sequence[dict[str, str]], step: int) -> dict[str, Any]:
    """All that an agent keeps after a step: the messages so far, and what surrounds them."""
    seconds, version = divmod(step * 3137, 1000)[0], f"{step:032d}.{step * 0.618 % 1:.16f}"
    return {
        "v": 4,
        "ts": f"2026-01-{1 + seconds // 86_400:02d}T{seconds // 3600 % 24:02d}:"
        f"{seconds // 60 % 60:02d}:{seconds % 60:02d}.{step * 7919 % 1_000_000:06d}+00:00",
        "id": f"1f0d{step:04x}-7c3a-6b12-8000-{step * 2_654_435_761 % (1 << 48):012x}",
        "step": step,
        "channel_values": {"messages": list(messages), "branch:to:model": None},
        "channel_versions": {"__start__": version, "messages": version, "branch:to:model": version},
        "versions_seen": {
            "__input__": {},
            "__start__": {"__start__": version},
            "model": {"branch:to:model": version},
        },
        "updated_channels": ["messages"],
    }


def log_records(count: int, seed: int = 2) -> list[dict[str, Any]]:
    """Records of a structured log, 100 to 400 bytes each, about lines of the sources."""
    order = random.Random(seed)  # noqa: S311  # the same in every run
    records: list[dict[str, Any]] = []
    for name, text in sources():
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        at = 0
        while at < len(lines):
            said = lines[at : at + order.choice((1, 1, 2, 3, 5))]
            at += len(said)
            records.append(
                {
                    "time": CHECKPOINTED_AT + len(records) * 0.37 + order.random(),
                    "level": order.choice(("DEBUG", "INFO", "INFO", "INFO", "WARNING")),
                    "logger": name,
                    "line": at,
                    "request": f"{order.getrandbits(48):012x}",
                    "user": f"user-{order.randrange(5000):05d}",
                    "ms": round(order.expovariate(0.05), 3),
                    "message": "\n".join(said),
                }
            )
            if len(records) >= count:
                return records
    return records
