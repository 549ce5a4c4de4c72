"""Named consumers of changes: how far each has come, kept in the store under a key of its own.

A consumer that has not passed a deletion holds it back from compaction, for as long as the option
``changes_kept`` says: one that has not been heard of for longer has to begin anew.
"""

from __future__ import annotations

import contextlib
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from kvsage.engine.changes import refuse_lost, whole_seq
from kvsage.engine.commit import STORED, Operation
from kvsage.engine.content import Mismatch
from kvsage.engine.snapshot import EPOCH, instant
from kvsage.errors import ChangesLostError, ConfigError, CorruptionError
from kvsage.index.keydir import SYSTEM, StructError, decode_row
from kvsage.log.format import BY_USER, BYTES, DELETE, PUT
from kvsage.types import Consumer, Position, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvsage.engine.engine import Engine
    from kvsage.index.env import Txn

CONSUMER_ROOT = bytes((SYSTEM,)) + b"f"
"""Prefix of the keys under which consumers are kept; their names follow."""

NAME_BYTES_MAX = 200
RECORD = Struct("<QIQQQ")


class Record(NamedTuple):
    """What is kept of a consumer.

    Attributes:
        seq: of its position, as the next two.
        n: as above.
        timeline: as above.
        floor: up to which dropped deletions do not matter to it, since it began after that.
        time_ms: when it was written.
    """

    seq: int
    n: int
    timeline: int
    floor: int
    time_ms: int

    @property
    def position(self) -> Position:
        """What it has passed."""
        return Position(self.seq, self.n, self.timeline)


def consumer_key(name: object) -> bytes:
    """The key of a consumer.

    Raises:
        ConfigError: no consumer can have such a name.
    """
    try:
        encoded = name.encode() if isinstance(name, str) else b""
    except UnicodeEncodeError:
        encoded = b""
    if not 0 < len(encoded) <= NAME_BYTES_MAX:
        raise ConfigError(
            f"a consumer has a name of 1 to {NAME_BYTES_MAX} bytes of UTF-8, not {shown(name)}"
        )
    return CONSUMER_ROOT + encoded


def find(engine: Engine, txn: Txn, key: bytes) -> Record | None:
    """What is kept under the key of a consumer; None where nothing is.

    Raises:
        CorruptionError: it is damaged.
    """
    data = txn.get(key, None, engine.index.system)
    return None if data is None else _decode(engine, key, data)


def _decode(engine: Engine, key: bytes, data: bytes) -> Record:
    row = decode_row(data)
    try:
        return Record._make(RECORD.unpack(engine.read_entry(key, row).value))
    except (Mismatch, StructError) as error:
        name = key[len(CONSUMER_ROOT) :].decode("utf-8", "backslashreplace")
        raise CorruptionError(
            f"the position of consumer {name!r} is damaged", segment=row.segment, offset=row.offset
        ) from error


def put(key: bytes, record: Record) -> Operation:
    """The operation that keeps a record."""
    return Operation(key, PUT, BYTES, 0, RECORD.pack(*record))


def drop(engine: Engine, name: object) -> bool:
    """Forget a consumer; whether there was one."""
    operation = Operation(consumer_key(name), DELETE, BY_USER, require=STORED)
    return engine.committer.commit((operation,), full=True)[0]


def _rows(engine: Engine, txn: Txn) -> Iterator[tuple[bytes, bytes]]:
    cursor = txn.cursor(engine.index.system)
    found = cursor.set_range(CONSUMER_ROOT)
    while found and cursor.key().startswith(CONSUMER_ROOT):
        yield cursor.item()
        found = cursor.next()


def _readable(engine: Engine, txn: Txn) -> Iterator[Record]:
    """Those that can be read: what is damaged must begin anew, and waits for nothing."""
    for key, data in _rows(engine, txn):
        with contextlib.suppress(CorruptionError):
            yield _decode(engine, key, data)


def consumers(engine: Engine, txn: Txn) -> dict[str, Consumer]:
    """Every consumer by its name."""
    found = {}
    for key, data in _rows(engine, txn):
        record = _decode(engine, key, data)
        time = instant(record.time_ms) or EPOCH
        found[key[len(CONSUMER_ROOT) :].decode()] = Consumer(record.position, time)
    return found


def oldest_needed(engine: Engine, txn: Txn) -> int | None:
    """The seq behind which deletions must stay, for the consumers that have not passed them.

    Deletions of that commit and of earlier ones were passed by every consumer; None where no
    consumer holds anything back.
    """
    since_ms = (engine.clock() - engine.options.changes_kept) * 1000
    needed = []
    for record in _readable(engine, txn):
        if record.time_ms < since_ms or record.timeline != engine.timeline_of(record.seq):
            continue
        try:
            refuse_lost(txn, record[:2], record.floor)
        except ChangesLostError:
            continue  # it must begin anew in any case
        needed.append(whole_seq(record[:2]))
    return min(needed, default=None)
