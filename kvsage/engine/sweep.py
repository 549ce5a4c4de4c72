"""The sweep: what has expired is removed, so that its space can be given back.

To a reader a key is gone from the instant at which it expires; the sweep changes nothing that
anybody can see. It is a deletion to the log, marked as one by expiry: a rebuild must not bring back
an older value, and whoever follows the changes is told.

Each batch is one commit of its own, small, so that no writer waits for long. Whether a row has
expired is judged again inside that commit, by the clock at that time: a key that was given more
time meanwhile stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvsage.engine.commit import EXPIRED_ROW, Operation
from kvsage.engine.pace import UNPACED, Pace
from kvsage.index.expiry import split_expiry_key
from kvsage.log.format import DELETE, EXPIRED

if TYPE_CHECKING:
    from kvsage.engine.engine import Engine

BATCH_KEYS = 200


def is_due(engine: Engine) -> bool:
    """Whether something has expired: one look at the head of the expiry index."""
    with engine.index.reading() as txn:
        cursor = txn.cursor(engine.index.expiry)
        return cursor.first() and split_expiry_key(cursor.key())[0] <= engine.clock() * 1000


def sweep(engine: Engine, pace: Pace = UNPACED) -> int:
    """Remove everything that has expired; how many keys.

    Raises:
        StoreLockedError, StoreFullError, StoreUnavailableError, PoisonedError: the rest is still
            there, for the next run.
        Stopped: by the pace.
    """
    swept, after = 0, b""
    while True:
        expired = _expired(engine, after)
        if not expired:
            return swept
        after = expired[-1]
        pace.breathe()
        operations = [
            Operation(split_expiry_key(row)[1], DELETE, EXPIRED, require=EXPIRED_ROW)
            for row in expired
        ]
        # Flushed with whatever is flushed next: what a power cut brings back has expired still.
        removed = sum(engine.committer.commit(operations, full=False))
        engine.metrics.swept += removed
        swept += removed
        pace.breathe()


def _expired(engine: Engine, after: bytes) -> list[bytes]:
    """The first rows behind ``after`` whose instant has come, at most as many as go together."""
    now_ms = engine.clock() * 1000
    found: list[bytes] = []
    with engine.index.reading() as txn:
        cursor = txn.cursor(engine.index.expiry)
        there = cursor.set_range(after + b"\0") if after else cursor.first()
        while there and len(found) < BATCH_KEYS and split_expiry_key(cursor.key())[0] <= now_ms:
            found.append(cursor.key())
            there = cursor.next()
    return found
