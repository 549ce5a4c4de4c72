"""Rows of the keydir: where the newest entry of a key lies.

The same row stands in ``keydir`` (the caller's keys), ``system`` (kvsage's own, which begin with
0xff and so are no UTF-8) and ``tombstones`` (deleted keys; ``flags`` says why). Behind the row of
an entry that refers to contents stand their content keys, so that references can be counted without
reading the log.
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
CONTENT_KEY_BYTES = 18
_row = ROW.unpack_from
PLACE = Struct(
    "<II"
)  # file id and offset, with which every row of an entry begins, a content's too
PLACE_AND_SEQ = Struct("<IIIQ")  # and its length and seq

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
    if len(data) < ROW.size or (len(data) - ROW.size) % CONTENT_KEY_BYTES:
        raise damaged(StructError(f"a row of {len(data)} bytes"))
    return Row._make(_row(data))


def damaged(error: struct.error) -> CorruptionError:
    """The error of a row that is no row: a flipped bit in a page may change a length."""
    return CorruptionError(f"the index is damaged ({error}); repair builds it anew")


def content_keys_in(data: bytes) -> bytes:
    """The content keys in the row of an entry that refers to contents; empty in any other row."""
    return data[ROW.size :]


def set_live(index: Index, txn: Txn, key: bytes, row: bytes, dead: dict[int, int]) -> bytes | None:
    """Let ``key`` lead to ``row``; the row it led to before.

    Args:
        index: whose databases.
        txn: a write transaction.
        key: of the entry.
        row: a packed ``Row``, and the content keys where the entry refers to contents.
        dead: where the bytes that nothing refers to any more are counted, by file id.
    """
    before = txn.replace(key, row, index.system if key[0] == SYSTEM else index.keydir)
    expires_ms = _row(row)[4]
    if expires_ms:
        txn.put(EXPIRY.pack(expires_ms) + key, b"", db=index.expiry)
    if before is None:
        buried = txn.pop(key, index.tombstones)
        if buried is not None:
            segment, _, length, _, _, _ = _row(buried)
            dead[segment] = dead.get(segment, 0) + length
        return None
    segment, _, length, _, old_expires_ms, _ = _row(before)
    dead[segment] = dead.get(segment, 0) + length
    if old_expires_ms and old_expires_ms != expires_ms:
        txn.delete(EXPIRY.pack(old_expires_ms) + key, db=index.expiry)
    return before


def set_deleted(
    index: Index, txn: Txn, key: bytes, row: bytes, dead: dict[int, int]
) -> bytes | None:
    """Let ``key`` be absent, with its tombstone at ``row``; the row it led to before."""
    buried = txn.replace(key, row, index.tombstones)
    if buried is not None:
        segment, _, length, _, _, _ = _row(buried)
        dead[segment] = dead.get(segment, 0) + length
    before = txn.pop(key, index.system if key[0] == SYSTEM else index.keydir)
    if before is None:
        return None
    segment, _, length, _, old_expires_ms, _ = _row(before)
    dead[segment] = dead.get(segment, 0) + length
    if old_expires_ms:
        txn.delete(EXPIRY.pack(old_expires_ms) + key, db=index.expiry)
    return before
