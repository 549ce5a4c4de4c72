"""What can be read of bytes that do not check: whole entries, and those with one flipped bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest

from kvsage.log.format import CHECKSUM_BYTES, ENTRY_BYTES, decode_entry, entry_length

if TYPE_CHECKING:
    from collections.abc import Iterator

CORRECTED_BYTES_MAX = 16 << 10  # trying every bit costs the square of the length
LENGTHS = range(24, 30)  # where value length and key length stand in an entry


def whole_at(data: bytes, at: int) -> bytes:
    """The entry at ``at``, with its one flipped bit flipped back if it has one; empty for none."""
    as_it_is = data[at : at + entry_length(data, at)]
    if decode_entry(as_it_is) is not None:
        return as_it_is
    header = bytearray(data[at : at + ENTRY_BYTES])
    for bit in range(8 * LENGTHS.start, 8 * LENGTHS.stop):  # a wrong length hides the entry's end
        header[bit // 8] ^= 1 << bit % 8
        length = entry_length(header, 0)
        entry = bytes(header) + data[at + ENTRY_BYTES : at + length]
        if decode_entry(entry) is not None:
            return entry
        header[bit // 8] ^= 1 << bit % 8
    return corrected(as_it_is)


def corrected(framed: bytes) -> bytes:
    """An entry with its one flipped bit flipped back; empty where that is not what it has."""
    if not ENTRY_BYTES <= len(framed) <= CORRECTED_BYTES_MAX:
        return b""
    checksum = int.from_bytes(framed[:CHECKSUM_BYTES], "little")
    body = bytearray(framed[CHECKSUM_BYTES:])
    actual = xxh3_64_intdigest(body)
    if (actual ^ checksum).bit_count() == 1:
        return actual.to_bytes(CHECKSUM_BYTES, "little") + body
    for bit in range(8 * len(body)):
        body[bit // 8] ^= 1 << bit % 8
        if xxh3_64_intdigest(body) == checksum:
            return framed[:CHECKSUM_BYTES] + bytes(body)
        body[bit // 8] ^= 1 << bit % 8
    return b""


def grouped(framed: list[bytes], limit: int) -> Iterator[list[bytes]]:
    """Consecutive entries, in groups of about ``limit`` bytes."""
    group: list[bytes] = []
    size = 0
    for entry in framed:
        if group and size + len(entry) > limit:
            yield group
            group, size = [], 0
        group.append(entry)
        size += len(entry)
    if group:
        yield group


def is_text(key: bytes) -> bool:
    """Whether these could be the bytes of a caller's key."""
    try:
        return "\0" not in key.decode()  # zeros over a key are damage, not a key
    except UnicodeDecodeError:
        return False
