"""Eviction: a bounded store lets go of what was not read lately when its log nears ``bytes_max``.

The log's files are the queue, the one with the lowest id its head. A file is visited in the order
of its entries: a key that was read since the last visit loses its mark and stays, any other is
deleted, until enough is free. Compaction then moves what is left of the visited files into a copy
with a new id, at the tail: a second chance. Ids are never used twice, so the order is that of age.

An eviction is a deletion to the log, marked as what it is: a rebuild must not bring back an older
value. It takes the very version that was judged; a key saved anew meanwhile stays. kvsage's own
keys stay, so a content that was put by its address does too.

Deletions cost bytes themselves, and what they hide goes only with the file that holds it. So what
is aimed at is the size that the log will have when everything visited is compacted and deletions
are dropped (``_used``); where the deletions alone keep it too large, everything is compacted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvsage.engine import choosing, compaction
from kvsage.engine.commit import Operation
from kvsage.engine.pace import UNPACED, Pace
from kvsage.engine.rotation import files_now, live_bytes, log_bytes
from kvsage.engine.sweep import BATCH_KEYS, sweep
from kvsage.errors import CorruptionError
from kvsage.index.keydir import ROW, SYSTEM
from kvsage.log.format import BATCH_BYTES, DELETE, ENTRY_BYTES, EVICTED, ORIGIN, PUT, FileKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvsage.engine.engine import Engine
    from kvsage.engine.reads import Reads
    from kvsage.index.segments import Meta, SegmentRow

START_SHARE = 0.9  # of bytes_max: a pass begins, so that its copies and what is written fit in
LOG_SHARE = 0.8  # of bytes_max: larger than this the log need not be after a pass
GOAL_SHARE = 0.75  # of bytes_max, so that there is room to write before the next pass
ROUNDS = 2  # in the second one nothing is marked but what was read during the first
WORTH_SHARE = 1 / 8  # compacting a file that would shrink by less is not worth it
BURIED_SHARE = 1 / 8  # deletions above this share of bytes_max are worth compacting everything
CHUNK = 256


def is_due(engine: Engine) -> bool:
    """Whether the log nears ``bytes_max`` and eviction may help: one look at the files' rows."""
    bytes_max, reads = engine.options.bytes_max, engine.reads
    if bytes_max is None or reads is None:
        return False
    meta, rows = _files(engine)
    return meta.segment != reads.stuck_in and log_bytes(rows.values()) > bytes_max * START_SHARE


def evict(engine: Engine, pace: Pace = UNPACED) -> int:
    """Bring the log of a bounded store under ``bytes_max``; how many keys were evicted.

    What has expired goes first. The caller holds the compaction lock.

    Raises:
        StoreLockedError, StoreFullError, StoreUnavailableError, PoisonedError, CorruptionError:
            the rest is done by the next pass.
        Stopped: by the pace.
    """
    reads = engine.reads
    if reads is None or not is_due(engine):
        return 0
    sweep(engine, pace)
    return _Pass(engine, reads, pace).run()


def _files(engine: Engine) -> tuple[Meta, dict[int, SegmentRow]]:
    with engine.index.reading() as txn:
        return files_now(txn)


def _shrinks_by(row: SegmentRow) -> int:
    """How many bytes smaller a copy of the file would be, about."""
    if not row.entry_bytes:
        return row.end - row.start
    live_share = live_bytes(row) / row.entry_bytes
    if row.kind == FileKind.COPY:
        return int((row.end - row.start) * (1 - live_share))
    batches = row.last_seq - row.after_seq
    return int(row.dead_bytes + batches * (BATCH_BYTES - ORIGIN.size * live_share))


class _Pass:
    """One pass over the oldest files of one store."""

    def __init__(self, engine: Engine, reads: Reads, pace: Pace) -> None:
        assert engine.options.bytes_max is not None
        self._engine = engine
        self._upkeep = engine.upkeep
        self._reads = reads
        self._pace = pace
        self._bytes_max = engine.options.bytes_max
        self._goal = int(self._bytes_max * GOAL_SHARE)
        self._evicted = 0
        self._buried_bytes = self._count_tombstones()
        self._visited: set[int] = set()

    def run(self) -> int:
        """Evict, then compact; how many keys went."""
        for _ in range(ROUNDS):
            self._round()
        self._give_back()
        meta, rows = _files(self._engine)
        is_stuck = log_bytes(rows.values()) > self._bytes_max * START_SHARE
        self._reads.stuck_in = meta.segment if is_stuck else 0
        return self._evicted

    # -- what to evict ----------------------------------------------------------------------

    def _round(self) -> None:
        """Visit file after file until enough is free."""
        spared: set[int] = set()
        for segment in self._sealed():
            if self._used() <= self._goal:
                break
            self._visit(segment, spared)
        # Not before: of two keys that share a mark the first would take it from the second.
        self._reads.clear(spared)

    def _sealed(self) -> list[int]:
        """The files that can be visited, the oldest first."""
        meta, rows = _files(self._engine)
        active = rows.pop(meta.segment)
        if active.end > max(self._engine.segment_limit, self._bytes_max - self._goal):
            compaction.seal(self._engine)  # one commit that holds more than its share
            rows[meta.segment] = active
        return sorted(rows.keys() - self._upkeep.damaged)

    def _used(self) -> int:
        """What the log would take with all garbage, framing and deletions out of it."""
        index = self._engine.index
        with index.reading() as txn:
            _, rows = files_now(txn)
            databases = (index.keydir, index.system, index.contents)
            entries = sum(int(txn.stat(db)["entries"]) for db in databases)
        live = sum(live_bytes(row) for row in rows.values())
        return live + ORIGIN.size * entries - self._droppable_bytes()

    def _droppable_bytes(self) -> int:
        """Bytes of deletions that compacting everything would drop, as far as is known."""
        return max(0, self._buried_bytes - self._reads.kept_bytes)

    def _count_tombstones(self) -> int:
        """Bytes of the deletions in the log."""
        total = 0
        with self._engine.index.reading() as txn:
            cursor = txn.cursor(self._engine.index.tombstones)
            for number, row in enumerate(cursor.iternext(keys=False, values=True)):
                total += ROW.unpack_from(row)[2]
                if not number % CHUNK:
                    self._pace.breathe()
        return total

    def _visit(self, segment: int, spared: set[int]) -> None:
        """Evict what was not read, until enough is free."""
        self._visited.add(segment)
        try:
            for operations in self._unread(segment, spared):
                self._remove(operations)
                if self._used() <= self._goal:
                    break
        except CorruptionError:
            self._upkeep.damaged.add(segment)  # the next pass goes on without it
            raise

    def _unread(self, segment: int, spared: set[int]) -> Iterator[list[Operation]]:
        """Evictions of a file's keys that bear no mark, in batches; the marks that were met."""
        reads = self._reads
        batch: list[Operation] = []
        judge = compaction.Judge(self._engine, (segment,), self._pace)
        for seq, _, _, kind, key, _ in judge.live(segment, contents=False):
            if kind != PUT or key[0] == SYSTEM:
                continue
            slot = reads.slot(key)
            if reads.is_marked(slot):
                spared.add(slot)
                continue
            batch.append(Operation(key, DELETE, EVICTED, require=seq))
            if len(batch) >= BATCH_KEYS:
                yield batch
                batch = []
        if batch:
            yield batch

    def _remove(self, operations: list[Operation]) -> None:
        engine = self._engine
        results = engine.committer.commit(operations, full=False)
        gone = [operation for operation, done in zip(operations, results, strict=True) if done]
        self._buried_bytes += sum(ENTRY_BYTES + len(operation.key) for operation in gone)
        self._evicted += len(gone)
        engine.metrics.evicted += len(gone)
        self._pace.breathe()

    # -- giving the space back --------------------------------------------------------------

    def _give_back(self) -> None:
        """Compact what was visited, then whatever shrinks most, until the log is small enough."""
        _, rows = _files(self._engine)
        visited = [s for s in sorted(self._visited) if rows[s].dead_bytes]
        for group in choosing.grouped(rows, visited, self._engine.segment_limit):
            self._upkeep.compact_held(group, self._pace)
        while self._is_large() and (worth := self._worth()):
            self._upkeep.compact_held(worth, self._pace)
        if self._is_large() and self._droppable_bytes() > self._bytes_max * BURIED_SHARE:
            self._dig_up()

    def _is_large(self) -> bool:
        return log_bytes(_files(self._engine)[1].values()) > self._bytes_max * LOG_SHARE

    def _worth(self) -> list[int]:
        """Sealed files that would shrink, those that would most; as many as make one copy."""
        meta, rows = _files(self._engine)
        left = rows.keys() - self._upkeep.damaged - {meta.segment}
        gain = {segment: _shrinks_by(rows[segment]) for segment in left}
        size = {segment: rows[segment].end - rows[segment].start for segment in left}
        worth = [segment for segment in left if gain[segment] > size[segment] * WORTH_SHARE]
        worth.sort(key=lambda segment: gain[segment], reverse=True)
        return choosing.fitting(rows, worth, self._engine.segment_limit)

    def _dig_up(self) -> None:
        """Compact everything that holds garbage or deletions, which then need not be kept."""
        engine = self._engine
        compaction.seal(engine)
        if engine.checkpoint_path.exists():
            # Else deletions would be kept for the old one's sake.
            self._upkeep.checkpoint_held(self._pace)
        for group in choosing.everything(engine):
            if not self._is_large():
                return
            self._upkeep.compact_held(group, self._pace)
        self._reads.kept_bytes = self._count_tombstones()
