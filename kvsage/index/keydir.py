"""Rows of the keydir: where the newest entry of a key lies.

The same row stands in ``keydir`` (the caller's keys), ``system`` (kvsage's own, which begin with
0xff and so are no UTF-8) and ``tombstones`` (deleted keys; ``flags`` says why).
"""

from __future__ import annotations

import struct
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from kvsage.errors import CorruptionError
from kvsage.index.expiry import EXPIRY

if TYPE_CHECKING:
    from kvsage.index.env import Index, Txn

StructError = struct.error
ROW = Struct("<IIIQQB")
assert ROW.size == 29

SYSTEM = 0xFF
CONTENT_ROOT = bytes((SYSTEM,)) + b"c"
"""A content that was put by its address is held by the key of this prefix and its content key."""


class Row(NamedTuple):
    """Where an entry lies and what must be known without reading it."""

    segment: int
    offset: int
    length: int
    seq: int
    expires_ms: int
    flags: int


def decode_row(data: bytes) -> Row:
    """The row in ``data``.

    Raises:
        CorruptionError: a row of another length.
    """
    try:
        return Row._make(ROW.unpack(data))
    except StructError as error:
        raise damaged(error) from error


def damaged(error: StructError) -> CorruptionError:
    """The error of a row that is no row: a flipped bit in a page may change a length."""
    return CorruptionError(f"the index is damaged ({error}); repair builds it anew")


def set_live(
    index: Index, txn: Txn, key: bytes, row: tuple[int, ...], dead: dict[int, int]
) -> tuple[int, ...] | None:
    """Let ``key`` lead to ``row``; the row it led to before.

    Args:
        index: whose databases.
        txn: a write transaction.
        key: of the entry.
        row: the fields of a ``Row``.
        dead: where the bytes that nothing refers to any more are counted, by file id.
    """
    data = txn.replace(key, ROW.pack(*row), index.system if key[0] == SYSTEM else index.keydir)
    expires_ms = row[4]
    if expires_ms:
        txn.put(EXPIRY.pack(expires_ms) + key, b"", db=index.expiry)
    if data is None:
        buried = txn.pop(key, index.tombstones)
        if buried is not None:
            segment, _, length, _, _, _ = ROW.unpack(buried)
            dead[segment] = dead.get(segment, 0) + length
        return None
    old = ROW.unpack(data)
    segment, _, length, _, old_expires_ms, _ = old
    dead[segment] = dead.get(segment, 0) + length
    if old_expires_ms and old_expires_ms != expires_ms:
        txn.delete(EXPIRY.pack(old_expires_ms) + key, db=index.expiry)
    return old


def set_deleted(
    index: Index, txn: Txn, key: bytes, row: tuple[int, ...], dead: dict[int, int]
) -> tuple[int, ...] | None:
    """Let ``key`` be absent, with its tombstone at ``row``; the row it led to before."""
    buried = txn.replace(key, ROW.pack(*row), index.tombstones)
    if buried is not None:
        segment, _, length, _, _, _ = ROW.unpack(buried)
        dead[segment] = dead.get(segment, 0) + length
    data = txn.pop(key, index.system if key[0] == SYSTEM else index.keydir)
    if data is None:
        return None
    old = ROW.unpack(data)
    segment, _, length, _, old_expires_ms, _ = old
    dead[segment] = dead.get(segment, 0) + length
    if old_expires_ms:
        txn.delete(EXPIRY.pack(old_expires_ms) + key, db=index.expiry)
    return old
