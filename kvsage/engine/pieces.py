"""Files read piece by piece, with a breath behind each piece: summed up, or copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xxhash import xxh3_64

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvsage.engine.pace import Pace
    from kvsage.fs import Disk

PIECE_BYTES = 256 << 10


def pieces(disk: Disk, fd: int, end: int, pace: Pace) -> Iterator[tuple[int, bytes]]:
    """A file's first ``end`` bytes: offset and bytes of one piece after the other.

    Raises:
        Stopped: by the pace.
    """
    for offset in range(0, end, PIECE_BYTES):
        yield offset, disk.read(fd, min(PIECE_BYTES, end - offset), offset)
        pace.breathe()


def checksum_of(disk: Disk, fd: int, end: int, pace: Pace) -> int:
    """xxh3_64 of a file's first ``end`` bytes.

    Raises:
        Stopped: by the pace.
    """
    digest = xxh3_64()
    for _, piece in pieces(disk, fd, end, pace):
        digest.update(piece)
    return digest.intdigest()


def copy_bytes(disk: Disk, source: int, target: int, end: int, pace: Pace) -> None:
    """Write a file's first ``end`` bytes to the same place in another, not flushed.

    Raises:
        StoreFullError, StoreUnavailableError: the other holds some of them.
        Stopped: by the pace; likewise.
    """
    for offset, piece in pieces(disk, source, end, pace):
        disk.write(target, (piece,), offset)
