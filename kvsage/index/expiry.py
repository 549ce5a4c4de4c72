"""The expiry index: instant, then key, so that what expired first stands first.

Big-endian, since LMDB sorts by bytes.
"""

from __future__ import annotations

from struct import Struct

EXPIRY = Struct(">Q")


def expiry_key(expires_ms: int, key: bytes) -> bytes:
    """The row's key; it has no value."""
    return EXPIRY.pack(expires_ms) + key


def split_expiry_key(data: bytes) -> tuple[int, bytes]:
    """Instant and key."""
    return int(EXPIRY.unpack_from(data)[0]), data[EXPIRY.size :]
