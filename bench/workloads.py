"""What is stored: session records of about 270 bytes, and text from Python's own sources."""

from __future__ import annotations

import itertools
import sysconfig
from pathlib import Path
from typing import Any

TEXT_BYTES = 64 << 10


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


def texts(count: int) -> list[str]:
    """``count`` texts of 64 KiB, all different; they overlap where the sources are not enough.

    Raises:
        RuntimeError: there are no sources to speak of.
    """
    library = Path(sysconfig.get_path("stdlib"))
    sources = (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    limit = (count + 1) * TEXT_BYTES
    data = bytearray()
    for path in sources:
        data += path.read_bytes()
        if len(data) >= limit:
            break
    # One byte a character, so that the length in bytes is exact.
    text = data.decode("ascii", "replace").replace("\ufffd", "?")
    step = min(TEXT_BYTES, (len(text) - TEXT_BYTES) // count)
    if step <= 0:
        raise RuntimeError(f"no Python sources under {library} to take text from")
    return [text[at : at + TEXT_BYTES] for at in itertools.islice(range(0, len(text), step), count)]
