"""``load``, flat: what ``EngineSnapshot.load`` does in a dozen calls, in one.

The hot path of the whole library: said in calls it took 1.75 times as long as a bare loop over
py-lmdb and msgpack, so about 1.5 times (docs/decisions/0010). A system call (``pread``) is as fast
here as a mapped slice, and a failing disk is an error, not a SIGBUS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64_intdigest

from kvsage.engine.assembling import Assembler
from kvsage.engine.content import Mismatch
from kvsage.engine.snapshot import View, corruption
from kvsage.errors import KvsageError, StoreClosedError, StoreUnavailableError
from kvsage.index.env import LmdbError
from kvsage.index.keydir import ROW, StructError
from kvsage.log.format import CHECKSUM_BYTES, ENTRY, ENTRY_BYTES, PUT, REFERS
from kvsage.serialization import unpack
from kvsage.store import KEY_BYTES_MAX, encode_key
from kvsage.types import override

if TYPE_CHECKING:
    from kvsage.engine.engine import Engine
    from kvsage.engine.values import Codec

_encode = str.encode
_row = ROW.unpack_from
_header = ENTRY.unpack_from
LOOKS = 5
ABSENT = object()


class Loader:
    """``load`` for one handle."""

    __slots__ = ("_codec", "_engine", "closed")

    def __init__(self, engine: Engine, codec: Codec) -> None:
        self._engine = engine
        self._codec = codec
        self.closed = False

    def load(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default`` where it is absent.

        Raises:
            CorruptionError: twice in a row the log did not hold what the index said.
        """
        begin, keydir, fds, clock, pread = self._engine.reading
        try:
            encoded = _encode(key)
            txn = begin()
        except (TypeError, UnicodeEncodeError, LmdbError, Mismatch):
            return self._load_carefully(key, default)
        try:
            data = txn.get(encoded, None, keydir)
            if data is None:
                if self.closed or len(encoded) > KEY_BYTES_MAX:
                    return self._load_carefully(key, default)
                return default
            segment, offset, length, seq, expires_ms, flags = _row(data)
            if expires_ms and expires_ms <= clock() * 1000:
                return default
            if not self.closed:
                entry = pread(fds[segment], length, offset)
                checksum, its_seq, its_expires_ms, size, key_length, kind, its_flags = _header(
                    entry
                )
                split = ENTRY_BYTES + key_length
                if (
                    xxh3_64_intdigest(entry[CHECKSUM_BYTES:]) == checksum
                    and its_seq == seq
                    and entry[ENTRY_BYTES:split] == encoded
                    and split + size == length
                    and kind == PUT
                    and its_flags == flags
                    and its_expires_ms == expires_ms
                ):
                    if not flags:  # MessagePack, and all of it here
                        return unpack(entry[split:])
                    data = entry[split:]
                    if flags & REFERS:
                        data = Assembler(self._engine, txn).value(flags, data)
                    return self._codec.decode(key, flags, data)
        except (LmdbError, StructError, KeyError, OSError, KvsageError, Mismatch):
            pass  # a damaged row, a file not open yet, a bad disk: the careful way tells which
        finally:
            txn.abort()
        return self._load_carefully(key, default)

    def _load_carefully(self, key: str, default: Any) -> Any:
        """What did not fit, and why; twice, the second time on a fresh snapshot."""
        engine = self._engine
        encoded = encode_key(key)
        if self.closed:
            raise StoreClosedError("the store is closed")
        if engine.inherited:
            engine.reopen()
        row, mismatch, mismatches = None, Mismatch(), 0
        for attempt in range(LOOKS):
            try:
                with engine.index.reading() as txn:
                    view = View(engine, txn, engine.clock() * 1000)
                    row = view.row(encoded)
                    if row is None:
                        return default
                    found = view.fetch(encoded, row)
            except Mismatch as error:
                mismatch, mismatches = error, mismatches + 1
                if mismatches > 1:
                    break
                continue
            except StoreUnavailableError:  # another thread grew the map, which ends transactions
                if attempt == LOOKS - 1:
                    raise
                continue
            return self._codec.decode(key, found.flags, found.data)
        if engine.closed:  # by another thread, meanwhile
            raise StoreClosedError("the store is closed")
        raise corruption(encoded, row, mismatch)


class MarkingLoader(Loader):
    """``load`` for one handle of a bounded store, which evicts what nobody reads."""

    __slots__ = ()

    @override
    def load(self, key: str, default: Any = None) -> Any:
        value = Loader.load(self, key, ABSENT)
        if value is ABSENT:
            return default
        reads = self._engine.reads
        if reads is not None:
            reads.mark(_encode(key))
        return value
