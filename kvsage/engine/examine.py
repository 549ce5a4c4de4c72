"""Reading log files that no index speaks for: does each check, and do they make one log?"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from kvsage.engine.pieces import checksum_of
from kvsage.engine.rebuild import listed_after
from kvsage.errors import CorruptionError
from kvsage.log.reader import SegmentReader, retires_in
from kvsage.log.segment import read_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from kvsage.engine.pace import Pace
    from kvsage.fs import Disk
    from kvsage.log.format import FileKind, Identity, Retire, SegmentHeader


class Examined(NamedTuple):
    """A log file whose every batch checks.

    Attributes:
        header: what it says of itself.
        checksum: xxh3_64 of its bytes, up to its end.
        batches: how many commits are in it.
        seq: number of the last one, or of the last before the file.
        chain: checksum of what stands last.
        retires: what its RETIRE entries say.
    """

    header: SegmentHeader
    checksum: int
    batches: int
    seq: int
    chain: int
    retires: tuple[Retire, ...]


def examine(  # noqa: PLR0913  # which file, whose, and how fast
    disk: Disk, fd: int, segment: int, kind: FileKind, end: int, *, store: Identity, pace: Pace
) -> Examined:
    """Read a log file up to ``end`` and check it.

    Raises:
        CorruptionError: it does not check.
    """
    found = read_header(disk, fd, store.uuid)
    if found is None or (found[0].segment, found[0].kind) != (segment, kind):
        raise CorruptionError("the header does not check", segment=segment, offset=0)
    header, chain, offset = found
    reader = SegmentReader(disk, fd, segment, store.salt)
    seq, batches = header.after_seq, 0
    retires: list[Retire] = []
    for batch in reader.batches(offset, chain, seq, end):
        offset, chain, seq = batch.end, batch.header.checksum, batch.header.seq
        batches += 1
        retires += retires_in(batch)
        pace.breathe()
    if offset != end:
        raise CorruptionError("a batch does not check", segment=segment, offset=offset)
    checksum = checksum_of(disk, fd, end, pace)
    return Examined(header, checksum, batches, seq, chain, tuple(retires))


def refuse_another_log(active: Examined, ends: Iterable[tuple[int, int]]) -> None:
    """Refuse files that are not exactly those that the active segment says make the log.

    Args:
        active: the active segment.
        ends: id and end of every other file.

    Raises:
        CorruptionError: one is missing, or one too many, or ends elsewhere.
    """
    listed = listed_after(active.header.files, active.retires)
    differing = set(listed.items()) ^ set(ends)
    if differing:
        segment, end = min(differing)
        raise CorruptionError(
            "the log's list of its files says other than what is there", segment=segment, offset=end
        )


@contextlib.contextmanager
def opened(disk: Disk, path: Path) -> Iterator[int]:
    """A descriptor for a ``with`` block."""
    fd = disk.open(path)
    try:
        yield fd
    finally:
        disk.close(fd)
