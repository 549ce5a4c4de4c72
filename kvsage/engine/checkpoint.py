"""Checkpoints: a compact copy of the index in one file, from which recovery begins.

It spares reading the log from its beginning, and nothing more: it is derived, checked whole before
it is used, and a recovery that cannot use it reads the log instead.

Rules:

- The log is on disk up to the commit that the copy stands for before the copy gets its name.
- No compaction runs meanwhile: it asks the checkpoint which deletions may still hide something.

The file is LMDB's copy, then a trailer (``CHECKPOINT`` and a checksum of all that stands before
it).
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64

from kvsage.engine.pace import UNPACED
from kvsage.engine.pieces import checksum_of, pieces
from kvsage.errors import CorruptionError
from kvsage.index.segments import the_meta
from kvsage.index.trust import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from kvsage.engine.engine import Engine
    from kvsage.engine.pace import Pace
    from kvsage.fs import Disk
    from kvsage.index.env import Txn

MAGIC = b"kvscheck"
CHECKPOINT = Struct("<8sHHI16sQQ")  # magic, index version, zero, zero, uuid, seq, bytes of the copy
CHECKSUM_BYTES = 8
TRAILER_BYTES = CHECKPOINT.size + CHECKSUM_BYTES


class Checkpoint(NamedTuple):
    """What a trailer says.

    Attributes:
        uuid: of the store.
        seq: the last commit that the copy knows.
        index_bytes: length of LMDB's copy, at the file's beginning.
    """

    uuid: bytes
    seq: int
    index_bytes: int


def write_checkpoint(engine: Engine, pace: Pace) -> Checkpoint:
    """Replace the store's checkpoint by one of now. The caller keeps compaction away.

    Raises:
        StoreFullError, StoreUnavailableError: the one before is still there.
        Stopped: by the pace; likewise.
    """
    disk, beside = engine.disk, engine.checkpoint_path.with_name("index.checkpoint.tmp")
    txn = engine.index.begin_read()
    try:
        engine.flusher.flush()
        said = copy_index(engine, txn, beside, pace)
    finally:
        txn.abort()
    disk.rename(beside, engine.checkpoint_path)
    disk.sync_directory(engine.path)
    return said


def copy_index(engine: Engine, txn: Txn, path: Path, pace: Pace) -> Checkpoint:
    """Write what a read transaction sees as a checkpoint at ``path``, flushed.

    Raises:
        StoreFullError, StoreUnavailableError: there is no such file.
        Stopped: by the pace; likewise.
    """
    disk, meta = engine.disk, the_meta(txn)
    try:
        fd = disk.open(path, write=True, create=True)
        try:
            disk.truncate(fd, 0)
            engine.index.copy(txn, fd)
            said = Checkpoint(engine.identity.uuid, meta.seq, disk.size(fd))
            trailer = CHECKPOINT.pack(MAGIC, VERSION, 0, 0, *said)
            disk.write(fd, (trailer,), said.index_bytes)
            checksum = _checksum(disk, fd, said.index_bytes + len(trailer), pace)
            disk.write(fd, (checksum,), said.index_bytes + len(trailer))
            disk.sync(fd)
        finally:
            disk.close(fd)
    except BaseException:
        disk.unlink(path)
        raise
    return said


def _checksum(disk: Disk, fd: int, length: int, pace: Pace) -> bytes:
    return checksum_of(disk, fd, length, pace).to_bytes(CHECKSUM_BYTES, "little")


def read_trailer(disk: Disk, path: Path) -> Checkpoint | None:
    """What a checkpoint says it is, its bytes not checked; None where there is none.

    Raises:
        CorruptionError: there is a file, and it is none.
    """
    try:
        fd = disk.open(path)
    except FileNotFoundError:
        return None
    try:
        return _trailer(disk, fd)
    finally:
        disk.close(fd)


def _trailer(disk: Disk, fd: int) -> Checkpoint:
    size = disk.size(fd)
    data = disk.read(fd, CHECKPOINT.size, max(0, size - TRAILER_BYTES))
    if len(data) == CHECKPOINT.size:
        magic, version, _, _, *said = CHECKPOINT.unpack(data)
        checkpoint = Checkpoint._make(said)
        if (magic, version) == (MAGIC, VERSION) and checkpoint.index_bytes == size - TRAILER_BYTES:
            return checkpoint
    raise CorruptionError("the checkpoint is damaged")


def find_damage(engine: Engine) -> str:
    """What is wrong with the store's checkpoint, all of it read; empty where nothing is."""
    disk = engine.disk
    try:
        fd = disk.open(engine.checkpoint_path)
    except FileNotFoundError:
        return ""
    try:
        said = _trailer(disk, fd)
        covered = said.index_bytes + CHECKPOINT.size
        whole = _checksum(disk, fd, covered, UNPACED) == disk.read(fd, CHECKSUM_BYTES, covered)
    except CorruptionError as error:
        return str(error)
    finally:
        disk.close(fd)
    if not whole:
        return "the checkpoint is damaged"
    return "" if said.uuid == engine.identity.uuid else "the checkpoint is that of another store"


def unpack_checkpoint(engine: Engine, directory: Path) -> bool:
    """Put the index of the store's checkpoint into ``directory``, if there is a sound one."""
    disk = engine.disk
    try:
        said = read_trailer(disk, engine.checkpoint_path)
        if said is None or said.uuid != engine.identity.uuid:
            return False
        copy_checked(disk, engine.checkpoint_path, directory / "data.mdb", said)
    except (CorruptionError, FileNotFoundError):
        disk.unlink(directory / "data.mdb")
        return False
    return True


def copy_checked(disk: Disk, path: Path, target: Path, said: Checkpoint) -> None:
    """Copy the index out of a checkpoint, checking every byte on the way.

    Raises:
        CorruptionError: the checksum does not match.
    """
    covered = said.index_bytes + CHECKPOINT.size
    digest = xxh3_64()
    source = disk.open(path)
    try:
        fd = disk.open(target, write=True, create=True)
        try:
            for offset, piece in pieces(disk, source, covered, UNPACED):
                digest.update(piece)
                disk.write(fd, (piece,), offset)
            disk.truncate(fd, said.index_bytes)
        finally:
            disk.close(fd)
        checksum = disk.read(source, CHECKSUM_BYTES, covered)
    finally:
        disk.close(source)
    if digest.intdigest().to_bytes(CHECKSUM_BYTES, "little") != checksum:
        raise CorruptionError("the checkpoint is damaged")
