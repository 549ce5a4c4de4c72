"""``load``, flat: what ``EngineSnapshot.load`` does in a dozen calls, in one.

The hot path of the whole library. A system call (``pread``) is as fast here as a mapped slice, and
a failing disk is an error, not a SIGBUS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64_intdigest

from kvsage.engine.engine import Engine, Mismatch
from kvsage.engine.snapshot import View, corruption
from kvsage.errors import StoreClosedError
from kvsage.index.env import LmdbError
from kvsage.index.keydir import ROW, StructError, damaged
from kvsage.log.format import CHECKSUM_BYTES, ENTRY, ENTRY_BYTES, IS_CONTENT, PUT
from kvsage.store import encode_key

if TYPE_CHECKING:
    from kvsage.engine.values import Codec

_row = ROW.unpack
_header = ENTRY.unpack_from


def load_flat(engine: Engine, codec: Codec, key: str, default: Any) -> Any:
    """The value of ``key``, or ``default`` where it is absent.

    Raises:
        CorruptionError: twice in a row the log did not hold what the index said.
    """
    encoded = encode_key(key)
    try:
        txn = engine.index.begin()
    except LmdbError as error:
        txn = engine.index.begin_again(error)
    try:
        data = txn.get(encoded, None, engine.index.keydir)
        if data is None:
            return default
        segment, offset, length, seq, expires_ms, flags = _row(data)
        if expires_ms and expires_ms <= engine.clock() * 1000:
            return default
        if not flags & IS_CONTENT:
            fd = engine.files.fds.get(segment)
            if fd is not None:
                entry = engine.disk.read(fd, length, offset)
                if len(entry) == length >= ENTRY_BYTES:
                    checksum, its_seq, _, size, key_length, kind, its_flags = _header(entry)
                    split = ENTRY_BYTES + key_length
                    if (
                        xxh3_64_intdigest(entry[CHECKSUM_BYTES:]) == checksum
                        and its_seq == seq
                        and its_flags == flags
                        and kind == PUT
                        and split + size == length
                        and key_length == len(encoded)
                        and entry.startswith(encoded, ENTRY_BYTES)
                    ):
                        return codec.decode(key, flags, entry[split:])
    except LmdbError as error:
        raise engine.index.error(error, "reading") from error
    except StructError as error:
        raise damaged(error) from error
    finally:
        txn.abort()
    return _load_carefully(engine, codec, key, encoded, default)


def _load_carefully(engine: Engine, codec: Codec, key: str, encoded: bytes, default: Any) -> Any:
    """Contents, files not open yet, and a second look, on a fresh snapshot, at what did not fit."""
    row = None
    for _ in range(2):
        with engine.index.reading() as txn:
            view = View(engine, txn, engine.clock() * 1000)
            row = view.row(encoded)
            if row is None:
                return default
            try:
                found = view.fetch(encoded, row)
            except Mismatch:
                continue
        return codec.decode(key, found.flags, found.data)
    if engine.closed:  # by another thread, meanwhile
        raise StoreClosedError("the store is closed")
    raise corruption(engine, encoded, row)
