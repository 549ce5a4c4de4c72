"""The commit: how operations become a batch in the log and rows in the index.

The order of things, and why:

1. Pass the writer gate. Nobody else writes until the end.
2. Begin the index's write transaction and read where the log ends.
3. If the log holds a batch past that end, its writer died before it could index it: apply it.
4. Make room with written zeros, sealing the segment and beginning a new one when it is full.
5. Apply the operations to the index transaction; nobody sees it yet.
6. Write the batch at the tail. From its first byte on, another process would apply it.
7. ``full``: flush the log. THE COMMIT POINT: from here on the batch survives a power cut.
8. Commit the index transaction, without a flush: now it is visible. Durable before visible.

Whatever goes wrong between 6 and 8, an interrupt included, the batch is either found committed or
made void (its header zeroed and flushed) before anybody else can enter. A flush that failed poisons
the store, and so does a batch that could not be made void: what the disk holds is no longer known,
so nobody builds on it.

``Committer.put`` is 1 to 5 said flat, for one small value where all is in order; ``_append`` is 6
to 8 for both ways. A single operation that finds the gate taken joins others: see ``group``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64_intdigest

from kvsage.engine.content import Content, Mismatch
from kvsage.engine.group import Group
from kvsage.engine.growing import Growth
from kvsage.engine.placing import Placing
from kvsage.engine.references import release
from kvsage.engine.rotation import adopt, begin_segment, retire
from kvsage.engine.trust import mark_used
from kvsage.errors import CorruptionError, KvsageError, PoisonedError, ValueTooLargeError
from kvsage.index.env import LmdbError, MapFull, Txn
from kvsage.index.expiry import EXPIRY
from kvsage.index.keydir import (
    CONTENT_ROOT,
    ROW,
    SYSTEM,
    StructError,
    content_keys_in,
    damaged,
    set_deleted,
    set_live,
)
from kvsage.index.segments import (
    META,
    META_KEY,
    Meta,
    add_dead,
    get_meta,
)
from kvsage.log.format import (
    BATCH_BODY_MAX,
    BATCH_BYTES,
    BATCH_MAGIC,
    BATCH_MAGIC_BYTES,
    BATCH_REST,
    BATCH_ZERO,
    BYTES,
    CHECKSUM_BYTES,
    CONTENT_HEAD,
    ENTRY_BODY,
    ENTRY_BYTES,
    IS_CONTENT,
    IS_TREE,
    MAGIC_OFFSET,
    PLACE_BITS,
    PUT,
    RETIRE,
)
from kvsage.log.writer import make_room

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvsage.engine.content import Place
    from kvsage.engine.engine import Engine
    from kvsage.engine.later import Laters
    from kvsage.engine.tree import Piece, Tree

# What an operation requires of its key; a version requires the entry with that seq. STORED is a
# row, whether it has expired or not, EXPIRED_ROW one that has; NEVER holds of no key.
ANYTHING, ABSENT, PRESENT, STORED, NEVER, EXPIRED_ROW = 0, -1, -2, -3, -4, -5

TOUCH = -1
"""In place of a kind: the entry that is there, written again with another expiry."""

TOUCH_ROOM = 4096  # what a touched value is thought to take, as nobody has looked yet
SETTLE_TRIES = 100
# A commit without a flush is over sooner than two threads have changed places. So who meets one
# waits for it on the spot: 16 threads then make 13,000 saves a second, and through the queue 8,000.
PATIENCE_S = 1.0
JOINED_BYTES_MAX = 64 << 10  # up to here a copy is quicker than a vectored write
NOTHING = bytes(len(BATCH_MAGIC_BYTES))  # where the next batch would begin, nothing was written


_meta = META.unpack
_row = ROW.unpack_from
_pack_row = ROW.pack
ROW_BYTES = ROW.size
_pack_meta = META.pack
_entry = ENTRY_BODY.pack
_batch = BATCH_REST.pack


class Operation(NamedTuple):
    """One change of one key.

    Attributes:
        key: the key's bytes.
        kind: PUT, DELETE, TOUCH, or RETIRE with an empty key.
        flags: of the entry.
        expires_ms: when it expires, or 0.
        value: the value's bytes; empty for a DELETE, and where ``content`` holds it.
        content: the value, where it is stored once by hash, or what is added to it.
        require: one of the constants above, or the seq of the entry that must be there.
    """

    key: bytes
    kind: int
    flags: int
    expires_ms: int = 0
    value: bytes = b""
    content: Content | Tree | Growth | None = None
    require: int = ANYTHING


class ShortOfRoom(Exception):  # noqa: N818  # a signal inside the commit; nobody outside sees it
    """The batch takes more bytes than room was made for; its argument says how many."""


class Committer:
    """Commits for one engine.

    ``commit``, ``one``, ``put`` and ``keep_content`` pass the writer gate; the rest runs behind it.

    Attributes:
        group: the single operations that wait to be committed together.
        last: seq and results of the batch that was last on its way to the log. Whether it got there
            the index tells: an interrupt may come between the commit and the news of it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.group = Group(engine, self)
        self._laters: Laters | None = None
        self._making = threading.Lock()  # guards that there are no two of them
        self.last: tuple[int, list[bool]] | None = None
        # Of the batch being built: its contents by content key and by the place that they get, and
        # where pieces lie then that a layout remembers.
        self._fresh: dict[bytes, bytes] = {}
        self._raw: list[tuple[Place, bytes]] = []
        self._noted: list[tuple[Piece, Place]] = []

    @property
    def laters(self) -> Laters:
        """The operations whose caller does not wait, and their thread."""
        laters = self._laters
        if laters is None:
            from kvsage.engine.later import Laters  # noqa: PLC0415  # futures bring logging along

            made = Laters(self._engine, self.group)
            with self._making:
                laters = self._laters = self._laters or made
        return laters

    def stop(self) -> None:
        """Behind the closing of the gate: end the thread that commits for those who do not wait."""
        if self._laters is not None:
            self._laters.stop()

    def commit(self, operations: Sequence[Operation], *, full: bool) -> list[bool]:
        """Commit the operations whose requirement holds, as one batch; which of them did.

        Raises:
            StoreLockedError, StoreFullError, StoreUnavailableError, PoisonedError,
            ValueTooLargeError: none of it was kept.
        """
        gate = self._engine.gate
        gate.refuse_nested()
        try:
            try:
                gate.enter()
                return self.commit_inside(operations, full=full)
            finally:
                gate.leave()
        finally:
            gate.leave()

    def one(self, operation: Operation, *, full: bool) -> bool:
        """Commit one operation, together with those of other threads; whether it took place.

        Raises:
            As ``commit``.
        """
        gate = self._engine.gate
        gate.refuse_nested()
        try:
            try:
                if gate.enter_now(0.0 if full else PATIENCE_S):
                    return self.commit_inside((operation,), full=full)[0]
            finally:
                gate.leave()
        finally:
            gate.leave()
        return self.group.commit(operation, full=full)

    def put(self, key: bytes, flags: int, data: bytes, expires_ms: int, full: bool) -> None:  # noqa: FBT001  # a keyword costs a tenth of what this saves
        """Commit the save of one small value: ``commit``, flat, for what happens all the time.

        Measured when it was made: through ``commit`` as it was then a save took 3.4 times the CPU
        time of a bare py-lmdb put, so 2.1 times.
        """
        engine = self._engine
        gate = engine.gate
        if gate.is_mine():
            gate.refuse_nested()
        joins = bool(gate.waiting)
        try:
            try:
                if joins or not gate.enter_now(0.0 if full else PATIENCE_S):
                    joins = True
                elif not self._put(key, flags, data, expires_ms, full):
                    operation = Operation(key, PUT, flags, expires_ms, data)
                    self.commit_inside((operation,), full=full)
            except MapFull:
                engine.index.grow()
                operation = Operation(key, PUT, flags, expires_ms, data)
                self.commit_inside((operation,), full=full)
            except LmdbError as error:
                raise engine.index.error(error, "committing") from error
            except StructError as error:
                raise damaged(error) from error
            finally:
                gate.leave()
        finally:
            gate.leave()
        if joins:
            operation = Operation(key, PUT, flags, expires_ms, data)
            self.group.commit(operation, full=full)

    def _put(self, key: bytes, flags: int, data: bytes, expires_ms: int, full: bool) -> bool:  # noqa: FBT001  # see put
        """Whether it was committed; where anything is out of the ordinary, nothing was done."""
        engine = self._engine
        index = engine.index
        try:
            txn = index.begin(None, None, True)  # noqa: FBT003  # quicker than by keyword
        except LmdbError:
            return False  # another process has grown the map, say: the other way follows it
        try:
            segment, tail, _, chain, seq, flushed_seq, timeline, epoch, poisoned = _meta(
                txn.get(META_KEY) or b""
            )
            room = tail + BATCH_BYTES + ENTRY_BYTES + len(key) + len(data)
            if poisoned or not engine.ready or room > engine.room_end.get(segment, 0):
                return False
            fd = engine.files.fds.get(segment)
            if fd is None or engine.disk.read(fd, 4, tail + MAGIC_OFFSET) != NOTHING:
                return False
            seq += 1
            rest = _entry(seq, expires_ms, len(data), len(key), PUT, flags) + key + data
            entry = xxh3_64_intdigest(rest).to_bytes(CHECKSUM_BYTES, "little") + rest
            length = len(entry)
            # As set_live and add_dead do it.
            row = _pack_row(segment, tail + BATCH_BYTES, length, seq, expires_ms, flags)
            before = txn.replace(key, row, index.keydir)
            if expires_ms:
                txn.put(EXPIRY.pack(expires_ms) + key, b"", db=index.expiry)
            if before is None:
                before = txn.pop(key, index.tombstones)
            if before is not None:
                old = _row(before)
                dead = {old[0]: old[2]}
                if old[4] and old[4] != expires_ms:
                    txn.delete(EXPIRY.pack(old[4]) + key, db=index.expiry)
                if len(before) > ROW_BYTES:
                    release(index, txn, content_keys_in(before), dead)
                add_dead(txn, dead)
            now_ms = max(0, int(engine.clock() * 1000))
            rest = _batch(BATCH_MAGIC, 1, length, 0, seq, flushed_seq, now_ms, chain) + entry
            self._append(txn, fd, (segment, tail, seq, timeline, epoch, flushed_seq), rest, full)
            engine.metrics.batches += 1
            engine.metrics.operations += 1
        finally:
            txn.abort()  # nothing after a commit
        return True

    def keep_content(self, content: Content, *, full: bool) -> bytes:
        """Let a content be held by its own address, if it is not yet; its content key."""
        gate = self._engine.gate
        gate.refuse_nested()
        try:
            try:
                gate.enter()
                return self._keep_content(content, full=full)
            finally:
                gate.leave()
        finally:
            gate.leave()

    def _keep_content(self, content: Content, *, full: bool) -> bytes:
        index = self._engine.index
        self.commit_inside((), full=full)  # what a dead writer left counts too
        with index.reading() as txn:
            placing = Placing(self._engine, txn, (0, 0, 0), {})
            key, _ = placing.find(content.hash, content.raw, content.equal_to)
            if txn.get(CONTENT_ROOT + key, None, index.system) is not None:
                return key
        operation = Operation(CONTENT_ROOT + key, PUT, BYTES, content=content)
        self.commit_inside((operation,), full=full)
        return key

    def commit_inside(self, operations: Sequence[Operation], *, full: bool) -> list[bool]:
        """``commit`` for who is inside the gate already."""
        room = BATCH_BYTES
        for key, kind, _, _, value, content, _ in operations:
            # About so much: of a content that is there already only the reference is written.
            room += ENTRY_BYTES + len(key) + len(value)
            if content is not None:
                room += content.room
            elif kind == TOUCH:
                room += TOUCH_ROOM
        while True:
            if room > BATCH_BODY_MAX:
                raise _too_large(room)
            try:
                return self._attempt(operations, room, full=full)
            except ShortOfRoom as short:
                (room,) = short.args
            except MapFull:
                self._engine.index.grow()
            except LmdbError as error:
                raise self._engine.index.error(error, "committing") from error
            except StructError as error:
                raise damaged(error) from error
            except KvsageError:
                if self._engine.poison_due:  # now that the transaction has ended
                    self._engine.poison()
                raise

    def _attempt(self, operations: Sequence[Operation], room: int, *, full: bool) -> list[bool]:
        # Flat for speed: what a plain save does is here and in _apply, the rest in prepare.
        engine = self._engine
        disk, index = engine.disk, engine.index
        txn = index.begin_write()
        try:
            meta = _meta(txn.get(META_KEY) or b"")
            segment, tail, _, chain, seq, flushed_seq, timeline, epoch, poisoned = meta
            changed = False
            fd = engine.files.fds.get(segment)
            if (
                fd is None
                or poisoned
                or not engine.ready
                or tail + room > engine.room_end.get(segment, 0)
                or disk.read(fd, 4, tail + MAGIC_OFFSET) != NOTHING
            ):
                prepared, changed = self.prepare(txn, Meta._make(meta), room)
                segment, tail, _, chain, seq, flushed_seq, timeline, epoch, _ = prepared
                fd = engine.files.fds[segment]
                meta = prepared
            seq += 1
            dead: dict[int, int] = {}
            entries: list[bytes] = []
            results = self._apply(txn, operations, entries, (segment, tail, seq), dead)
            if not entries:
                if changed:
                    txn.put(META_KEY, META.pack(*meta))
                    txn.commit()
                return results
            if dead:
                add_dead(txn, dead)
            body = entries[0] if len(entries) == 1 else b"".join(entries)
            if len(body) > BATCH_BODY_MAX:
                raise _too_large(len(body))
            if BATCH_BYTES + len(body) > room:
                raise ShortOfRoom(BATCH_BYTES + len(body))
            now_ms = max(0, int(engine.clock() * 1000))
            fields = (BATCH_MAGIC, len(entries), len(body), 0, seq, flushed_seq, now_ms, chain)
            rest = BATCH_REST.pack(*fields) + body
            at = (segment, tail, seq, timeline, epoch, flushed_seq)
            self.last = (seq, results)
            self._append(txn, fd, at, rest, full)
            if self._raw:
                engine.raw_cache.put_all(self._raw)
                for piece, place in self._noted:
                    piece.place = place
            engine.metrics.batches += 1
            engine.metrics.operations += sum(results)
            return results
        finally:
            txn.abort()  # nothing after a commit
            if self._fresh:
                self._fresh.clear()
                self._raw.clear()
                self._noted.clear()

    def _append(
        self,
        txn: Txn,
        fd: int,
        at: tuple[int, int, int, int, int, int],
        rest: bytes,
        full: bool,  # noqa: FBT001  # see put
    ) -> None:
        """Steps 6 to 8: the batch into the log, and the index transaction behind it."""
        engine = self._engine
        segment, tail, seq, timeline, epoch, flushed_seq = at
        checksum = xxh3_64_intdigest(rest, engine.salt ^ (segment << PLACE_BITS | tail))
        end = tail + CHECKSUM_BYTES + len(rest)
        if full:
            flushed_seq = seq
        txn.put(
            META_KEY, _pack_meta(segment, end, tail, checksum, seq, flushed_seq, timeline, epoch, 0)
        )
        head = checksum.to_bytes(CHECKSUM_BYTES, "little")
        parts = (head + rest,) if len(rest) < JOINED_BYTES_MAX else (head, rest)
        try:
            engine.disk.write(fd, parts, tail)
            if full:
                engine.flush_log(fd)
            txn.commit()
        except BaseException:
            self._settle(txn, fd, (tail, seq))
            raise

    def prepare(self, txn: Txn, meta: Meta, room: int) -> tuple[Meta, bool]:
        """Where the next batch goes, with ``room`` bytes there; whether the log was ahead.

        Raises:
            PoisonedError: a flush has failed.
        """
        engine = self._engine
        if meta.poisoned or engine.poisoned:
            raise PoisonedError(
                "a flush to disk failed earlier, so nothing is written until every process has "
                "closed the store and one has opened it again"
            )
        mark_used(engine)
        before = meta
        fd = engine.log_fd(meta.segment)
        ahead = engine.disk.read(fd, len(BATCH_MAGIC_BYTES), meta.offset + MAGIC_OFFSET)
        if ahead == BATCH_MAGIC_BYTES or len(ahead) < len(BATCH_MAGIC_BYTES):
            # Bytes of a batch, or the end of the file, which a writer that died may have sealed.
            meta = adopt(engine, txn, meta)
        limit = engine.segment_limit
        if meta.offset + room > limit and meta.last:
            meta = begin_segment(engine, txn, meta)
            engine.weigh()
            engine.upkeep.wake()
        fd = engine.log_fd(meta.segment)
        size = make_room(engine.disk, fd, meta.offset + room, limit)
        engine.room_end = {meta.segment: min(size, limit)}
        engine.ready = True
        return meta, meta != before

    # -- applying ---------------------------------------------------------------------------

    def _apply(
        self,
        txn: Txn,
        operations: Sequence[Operation],
        entries: list[bytes],
        at: tuple[int, int, int],
        dead: dict[int, int],
    ) -> list[bool]:
        """Rows for the operations, their framed entries into ``entries``; which took place."""
        engine = self._engine
        index = engine.index
        segment, tail, seq = at
        offset = tail + BATCH_BYTES
        results = []
        for operation in operations:
            key, kind, flags, expires_ms, value, content, require = operation
            if require and not self._holds(txn, key, require):
                results.append(False)
                continue
            refers = b""
            placing = None
            touches = kind == TOUCH
            if isinstance(content, Growth):
                flags, expires_ms, value, content, refers = content.on(engine, txn, key)
                touches = bool(refers)
            if kind == TOUCH:
                kind, flags, value, refers = self._stored(txn, key)
            elif content is not None:
                placing = Placing(engine, txn, (segment, offset, seq), self._fresh)
                if isinstance(content, Content):
                    refers = placing.content(content)
                    value = refers + CONTENT_HEAD.pack(len(content.raw))
                    flags |= IS_CONTENT
                else:
                    # An earlier operation of the batch may have ended what was seen.
                    unchanged = content.seen == seq - 1 and not results
                    value, refers = placing.tree(content, unchanged=unchanged)
                    flags |= IS_TREE
                entries += placing.entries
                self._raw += placing.raw
                self._noted += placing.noted
                offset += placing.length
            rest = _entry(seq, expires_ms, len(value), len(key), kind, flags) + key + value
            entry = xxh3_64_intdigest(rest).to_bytes(8, "little") + rest
            if kind == RETIRE:
                retire(txn, value)
                dead[segment] = dead.get(segment, 0) + len(entry)
            else:
                row = _pack_row(segment, offset, len(entry), seq, expires_ms, flags) + refers
                set_row = set_live if kind == PUT else set_deleted
                before = set_row(index, txn, key, row, dead)
                held = b"" if before is None else content_keys_in(before)
                if placing is not None:
                    placing.references.release(held)
                    placing.references.settle(dead)
                elif held and not touches:  # else it goes on referring to its contents
                    release(index, txn, held, dead)
            entries.append(entry)
            offset += len(entry)
            results.append(True)
        return results

    def _holds(self, txn: Txn, key: bytes, require: int) -> bool:
        """Whether the key is as the operation requires; what expired is absent."""
        index = self._engine.index
        data = txn.get(key, None, index.system if key[0] == SYSTEM else index.keydir)
        if data is None:
            return require == ABSENT
        if require == STORED:
            return True
        _, _, _, seq, expires_ms, _ = _row(data)
        if expires_ms and expires_ms <= self._engine.clock() * 1000:
            return require in {ABSENT, EXPIRED_ROW}
        return require == PRESENT or require == seq  # noqa: PLR1714  # seqs and constants differ

    def _stored(self, txn: Txn, key: bytes) -> tuple[int, int, bytes, bytes]:
        """Kind, flags and value of the entry that a key has, and the content keys in its row."""
        data = txn.get(key, None, self._engine.index.keydir) or b""
        row = _row(data)
        try:
            entry = self._engine.read_entry(key, row)
        except Mismatch:
            entry = None
        if entry is None or (entry.kind, entry.expires_ms, entry.flags) != (PUT, *row[4:]):
            name = key.decode("utf-8", "backslashreplace")
            raise CorruptionError(
                f"the record of {name!r} is damaged", segment=row[0], offset=row[1]
            )
        return PUT, entry.flags, entry.value, content_keys_in(data)

    # -- when it goes wrong -----------------------------------------------------------------

    def _settle(self, txn: Txn, fd: int, at: tuple[int, int]) -> None:
        """Decide the fate of a batch that may or may not be in the log: committed, or void.

        An interrupt may come at any point, here too; it is held back until the fate is decided.
        """
        tail, seq = at
        engine = self._engine
        failed = engine.poison_due
        for _ in range(SETTLE_TRIES):
            try:
                txn.abort()
                with engine.index.reading() as view:
                    meta = get_meta(view)
                if meta is not None and meta.seq >= seq:
                    return  # the interrupt came after the commit
                failed = not self._void(fd, tail) or failed
                if failed:
                    engine.poison()
            except KeyboardInterrupt:
                continue
            except KvsageError:
                break
            else:
                return
        engine.poisoned, engine.ready = True, False

    def _void(self, fd: int, tail: int) -> bool:
        """Zero the header of the batch at the tail, on disk too; whether it worked."""
        try:
            self._engine.disk.write(fd, (BATCH_ZERO,), tail)
            self._engine.disk.sync_data(fd)
        except KvsageError:
            return False
        return True


def _too_large(size: int) -> ValueTooLargeError:
    return ValueTooLargeError(
        f"one commit of {size} bytes; at most {BATCH_BODY_MAX} go together: split it"
    )
