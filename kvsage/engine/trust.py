"""INDEX, as an engine reads and writes it: whether the next opener may trust the index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvsage.index.segments import (
    Meta,
    the_meta,
)
from kvsage.index.trust import Trust, boot_id, encode_trust, read_trust

if TYPE_CHECKING:
    from pathlib import Path

    from kvsage.engine.engine import Engine


def looks_trusted(path: Path, trust: Trust | None, uuid: bytes) -> bool:
    """Whether INDEX vouches for the very file that is there."""
    if trust is None or trust.uuid != uuid:
        return False
    try:
        status = (path / "index" / "data.mdb").stat()
    except OSError:
        return False
    if (status.st_dev, status.st_ino) != (trust.device, trust.inode):
        return False
    if trust.clean:
        return status.st_size == trust.size
    return bool(trust.boot) and trust.boot == boot_id()


def mark_used(engine: Engine) -> None:
    """Let INDEX say "not clean", durably, before the first change to a cleanly closed index.

    Behind the writer gate. No other process can close clean while this one has the store open, so
    once is enough.
    """
    if engine.used:
        return
    trust = read_trust(engine.disk, engine.trust_path)
    if trust is None or trust.clean:
        with engine.index.reading() as txn:
            meta = the_meta(txn)
        write_trust(engine, meta, clean=False)
    engine.used = True


def write_trust(engine: Engine, meta: Meta, *, clean: bool) -> None:
    """Replace INDEX."""
    status = (engine.index_path / "data.mdb").stat()
    end = (meta.segment, meta.offset, meta.seq, meta.chain) if clean else (0, 0, 0, 0)
    trust = Trust(
        clean,
        engine.identity.uuid,
        boot_id(),
        status.st_dev,
        status.st_ino,
        status.st_size if clean else 0,
        meta.epoch,
        *end,
    )
    engine.disk.replace(engine.trust_path, encode_trust(trust))
