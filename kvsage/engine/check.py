"""``verify``: every byte of the log that holds commits is read and checked.

It reads what was committed when it began; writers and compaction go on meanwhile. ``deep`` also
checks that the index says exactly what the log says: every row leads to its entry, every key leads
to its newest entry, contents are whole and their references counted right, files are as full as
their rows say; and that the checkpoint, if there is one, is whole.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kvsage.engine.assembling import content_entry
from kvsage.engine.checkpoint import find_damage
from kvsage.engine.content import (
    Mismatch,
    content_hash,
    decode_content,
    inflate_tree,
    unpack_pack,
)
from kvsage.engine.references import content_rows
from kvsage.engine.tree import node_key
from kvsage.errors import CorruptionError
from kvsage.index.contents import ContentRow, decode_content_row
from kvsage.index.env import LmdbError, Txn
from kvsage.index.expiry import expiry_key
from kvsage.index.keydir import SYSTEM, Row, content_keys_in, decode_row
from kvsage.index.segments import Meta, SegmentRow, all_retired, all_segments, the_meta
from kvsage.log.format import (
    BATCH_BYTES,
    CONTENT_KINDS,
    DELETE,
    ENTRY_BYTES,
    ENTRY_KIND_AT,
    KINDS,
    NODE,
    ORIGIN,
    ORIGINS,
    PACK,
    PUT,
    RETIRE,
    FileKind,
    LogEntry,
    decode_entry,
    possible,
    references_in,
    split_entries,
    split_keys,
)
from kvsage.log.reader import Batch, SegmentReader
from kvsage.log.segment import read_header
from kvsage.types import Problem, VerifyReport

if TYPE_CHECKING:
    from kvsage.engine.engine import Engine


def verify(engine: Engine, *, deep: bool) -> VerifyReport:
    """Read and check the whole log, and with ``deep`` the index against it."""
    with engine.index.reading() as txn:
        return Check(engine, txn, deep=deep).run()


class Check:
    """One run, over one read transaction."""

    def __init__(self, engine: Engine, txn: Txn, *, deep: bool) -> None:
        self._engine = engine
        self._txn = txn
        self._deep = deep
        self._problems: list[Problem] = []
        self._segments = self._batches = self._entries = self._bytes = 0
        self._newest: dict[bytes, tuple[int, int, int, int]] = {}  # key: seq, kind, segment, offset
        # What each pack brings, so that none is read once for each of its contents.
        self._packed: dict[tuple[int, int], dict[bytes, ContentRow]] = {}
        self._live_bytes: Counter[int] = Counter()
        self._entry_bytes: Counter[int] = Counter()
        self._last_seq: Counter[int] = Counter()
        self._listed: set[int] = set()

    def run(self) -> VerifyReport:
        """The report."""
        meta = the_meta(self._txn)
        rows = list(all_segments(self._txn))
        self._listed = {segment for segment, _ in rows}
        for segment, row in rows:
            end = meta.offset if segment == meta.segment else row.end
            try:
                self._file(segment, row, end, meta)
            except FileNotFoundError:
                self._problem("a file of the log is missing", segment, 0)
        if self._deep:
            try:
                self._rows()
                self._contents()
                self._expiry()
                self._retired()
            except (LmdbError, CorruptionError) as error:
                self._problem(f"the index cannot be read: {error}")
            self._accounts(rows, meta)
            damage = find_damage(self._engine)
            if damage:
                self._problem(damage)
        return VerifyReport(
            tuple(self._problems),
            self._segments,
            self._batches,
            self._entries,
            self._bytes,
            self._deep,
        )

    def _problem(
        self, message: str, segment: int | None = None, offset: int | None = None, key: bytes = b""
    ) -> None:
        keys = (key.decode("utf-8", "backslashreplace"),) if key else ()
        self._problems.append(Problem(message, segment, offset, keys=keys))

    # -- the log ----------------------------------------------------------------------------

    def _file(self, segment: int, row: SegmentRow, end: int, meta: Meta) -> None:
        engine = self._engine
        fd = engine.files.fd(segment)
        self._segments += 1
        self._bytes += end
        found = read_header(engine.disk, fd, engine.identity.uuid)
        if found is None or found[0].segment != segment:
            self._problem("the header does not check", segment, 0)
            return
        header, chain, offset = found
        reader = SegmentReader(engine.disk, fd, segment, engine.salt)
        seq = header.after_seq
        while offset < end:
            for batch in reader.batches(offset, chain, seq, end):
                self._batch(segment, batch, row.kind)
                offset, chain, seq = batch.end, batch.header.checksum, batch.header.seq
            if offset >= end:
                break
            behind = next((b for b in reader.later_batches(offset) if b.offset < end), None)
            upto = end if behind is None else behind.offset
            self._problems.append(Problem("a batch does not check", segment, offset, upto - offset))
            if behind is None:
                return
            offset, chain, seq = behind.offset, behind.header.chain, behind.header.seq - 1
        if segment == meta.segment and (offset, chain, seq) != (meta.offset, meta.chain, meta.seq):
            self._problem("the log does not end where the index says", segment, offset)

    def _batch(self, segment: int, batch: Batch, kind: int) -> None:
        self._batches += 1
        self._entry_bytes[segment] += batch.header.length
        at = batch.offset + BATCH_BYTES
        if kind == FileKind.SEGMENT:
            self._last_seq[segment] = batch.header.seq
        try:
            for number, (offset, framed) in enumerate(
                split_entries(batch.body, batch.header.entries)
            ):
                self._entry(segment, at + offset, framed, batch, kind)
                self._place_in_batch(segment, at + offset, framed, (number, batch, kind))
        except CorruptionError as error:
            self._problem(str(error), segment, batch.offset)

    def _place_in_batch(
        self, segment: int, at: int, framed: bytes, where: tuple[int, Batch, int]
    ) -> None:
        """A batch of a copy begins with the origins of the rest; a RETIRE stands alone."""
        number, batch, kind = where
        entry_kind, others = framed[ENTRY_KIND_AT], batch.header.entries - 1
        leads = kind == FileKind.COPY and number == 0
        if leads and entry_kind != ORIGINS:
            self._problem("a batch of a copy does not say where its entries came from", segment, at)
        elif entry_kind == ORIGINS and not leads:
            self._problem("origins stand where no origins belong", segment, at)
        elif entry_kind == ORIGINS and len(framed) != ENTRY_BYTES + others * ORIGIN.size:
            self._problem("origins are those of another number of entries", segment, at)
        elif entry_kind == RETIRE and (others or kind != FileKind.SEGMENT):
            self._problem("a retirement does not stand alone in a batch of a segment", segment, at)

    def _entry(self, segment: int, at: int, framed: bytes, batch: Batch, kind: int) -> None:
        self._entries += 1
        entry = decode_entry(framed)
        if entry is None or entry.kind not in KINDS:
            self._problem("an entry does not check", segment, at)
            return
        self._last_seq[segment] = max(self._last_seq[segment], entry.seq)
        if kind == FileKind.SEGMENT and entry.seq != batch.header.seq:
            self._problem("an entry bears another number than its batch", segment, at, entry.key)
        if entry.kind == ORIGINS:
            self._entry_bytes[segment] -= len(framed)
        elif entry.kind in CONTENT_KINDS:
            self._content(segment, at, entry)
        elif self._deep and entry.kind in {PUT, DELETE}:
            known = self._newest.get(entry.key)
            if known is None or known[0] <= entry.seq:
                self._newest[entry.key] = (entry.seq, entry.kind, segment, at)

    def _content(self, segment: int, at: int, entry: LogEntry) -> None:
        try:
            if entry.kind == NODE:
                named = [(entry.key, node_key(inflate_tree(entry.value)))]
            elif entry.kind == PACK:
                contents = unpack_pack(entry.flags, entry.value)
                named = [(one.key, content_hash(raw)) for one, raw in contents]
                if self._deep:
                    length = ENTRY_BYTES + len(entry.value)
                    rows = dict(content_rows(entry, (segment, at, length)))
                    self._packed[segment, at] = rows
            else:
                named = [(entry.key, content_hash(decode_content(entry.flags, entry.value)))]
        except CorruptionError as error:
            self._problem(str(error), segment, at)
            return
        for key, digest in named:
            if digest[:16] != key[:16]:
                self._problem("a content is not what its hash says", segment, at)

    # -- the index against it ---------------------------------------------------------------

    def _rows(self) -> None:
        """Every row leads to the newest entry of its key, and every newest entry has its row."""
        index = self._engine.index
        self._references: Counter[bytes] = Counter()
        # Deletions that compaction drops are forgotten after their files were retired.
        forgetting = {file for file, row in all_retired(self._txn).items() if not row.forgotten}
        for db, kind in ((index.keydir, PUT), (index.system, PUT), (index.tombstones, DELETE)):
            for key, data in self._txn.cursor(db):
                row = decode_row(data)
                if kind == DELETE and row.segment in forgetting:
                    continue
                self._live_bytes[row.segment] += row.length
                newest = self._newest.pop(key, None)
                # By seq: while a compaction is under way, an entry stands in two places.
                if newest is None or newest[:2] != (row.seq, kind):
                    self._problem("a row is not the key's newest entry", *row[:2], key)
                self._row(key, row, content_keys_in(data))
        for key, (_, kind, segment, offset) in self._newest.items():
            what = "system" if key[0] == SYSTEM else "keydir" if kind == PUT else "tombstones"
            self._problem(f"a key's newest entry is missing from {what}", segment, offset, key)

    def _row(self, key: bytes, row: Row, refers: bytes) -> None:
        try:
            entry = self._engine.read_entry(key, row)
        except Mismatch:
            self._problem("a row does not lead to its entry", row.segment, row.offset, key)
            return
        if (entry.flags, entry.expires_ms) != (row.flags, row.expires_ms):
            self._problem("a row says other than its entry", row.segment, row.offset, key)
        if not possible(entry):
            self._problem("a reference is none", row.segment, row.offset, key)
        elif refers != references_in(entry):
            self._problem("a row refers to another content", row.segment, row.offset, key)
        else:
            self._references.update(split_keys(refers))

    def _contents(self) -> None:
        """Every content leads to its entry and counts its references."""
        references, contents = self._references, self._engine.index.contents
        for data in self._txn.cursor(contents).iternext(keys=False, values=True):
            references.update(split_keys(decode_content_row(data).children))
        for key, data in self._txn.cursor(contents):
            row = decode_content_row(data)
            self._live_bytes[row.segment] += row.share
            where = (row.segment, row.offset)
            count = references.pop(key, 0)
            if count != row.references:
                self._problem(f"a content has {count} references, not {row.references}", *where)
            self._content_row(key, row)
        for key in references:
            self._problem(f"the content {key[:16].hex()} is missing")

    def _content_row(self, key: bytes, row: ContentRow) -> None:
        """A content's row leads to the entry that holds it, and says what that says."""
        where = (row.segment, row.offset)
        said = self._packed.get(where)
        if said is None:
            try:
                kind, flags, value = content_entry(self._engine, key, row)
            except Mismatch:
                self._problem("a content's row does not lead to it", *where)
                return
            entry = LogEntry(row.seq, 0, kind, flags, key, bytes(value))
            said = dict(content_rows(entry, row[:3])) if possible(entry) else {}
        if key not in said:
            self._problem("a content's row leads to something else", *where)
        elif said[key]._replace(references=row.references) != row:
            self._problem("a content's row says other than its entry", *where)
        elif row.segment not in self._listed:
            self._problem("a content's row leads to a file that does not count", *where)

    def _expiry(self) -> None:
        """The expiry index holds exactly the rows that expire."""
        index = self._engine.index
        there = {key for key, _ in self._txn.cursor(index.expiry)}
        for key, data in self._txn.cursor(index.keydir):
            row = decode_row(data)
            if row.expires_ms:
                expiry = expiry_key(row.expires_ms, key)
                if expiry not in there:
                    self._problem("an expiry is missing", row.segment, row.offset, key)
                there.discard(expiry)
        for expiry in there:
            self._problem("an expiry belongs to no key", key=expiry[8:])

    def _retired(self) -> None:
        """No file both counts and was retired."""
        for segment in sorted(self._listed & all_retired(self._txn).keys()):
            self._problem("a file that was retired is listed", segment)

    def _accounts(self, rows: list[tuple[int, SegmentRow]], meta: Meta) -> None:
        """Dead bytes are what is not live, and files that are sealed as full as their rows say."""
        if self._problems:
            return
        for segment, row in rows:
            entry_bytes = self._entry_bytes[segment]
            dead = entry_bytes - self._live_bytes[segment]
            if dead != row.dead_bytes:
                self._problem(f"{row.dead_bytes} dead bytes are counted; there are {dead}", segment)
            last_seq = self._last_seq[segment] or row.after_seq
            found = (entry_bytes, last_seq)
            if segment != meta.segment and (row.entry_bytes, row.last_seq) != found:
                self._problem(
                    f"a file is said to hold {row.entry_bytes} bytes of entries up to seq "
                    f"{row.last_seq}; it holds {entry_bytes} up to {last_seq}",
                    segment,
                )
