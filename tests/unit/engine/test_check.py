"""Every kind of problem that ``verify`` can report, each made once and reported for what it is."""

import math
import random

import pytest

from kvsage.engine.commit import Operation
from kvsage.errors import CorruptionError, KvsageError
from kvsage.index.contents import decode_content_row, encode_content_row
from kvsage.index.env import LmdbError
from kvsage.index.expiry import expiry_key
from kvsage.index.keydir import CONTENT_ROOT, ROW, decode_row
from kvsage.index.segments import (
    JOINING,
    add_dead,
    forgotten,
    get_meta,
    get_segment,
    listed_segments,
    put_meta,
    put_retired,
    put_segment,
)
from kvsage.log.format import (
    BATCH_BYTES,
    BYTES,
    CONTENT,
    CONTENT_HEAD,
    CONTENT_KEY,
    IS_CONTENT,
    ORIGIN,
    ORIGINS,
    PUT,
    RETIRE,
    FileKind,
    LogEntry,
    Retire,
    decode_entry,
    encode_batch,
    encode_entry,
    encode_retire,
    place,
    split_entries,
)
from kvsage.log.reader import SegmentReader
from kvsage.log.segment import read_header, segment_path
from kvsage.types import Problem

TEXT = b"to be or not to be, that is the question. " * 200
NOT_NEWEST = "a row is not the key's newest entry"
NOT_ITS_ENTRY = "a row does not lead to its entry"


@pytest.fixture
def store(new_store):
    """A few keys of every kind, and nothing wrong with them."""
    store = new_store()
    store.save_many({"a": 1, "b": "text", "c": TEXT, "d": TEXT})
    store.save("a", 2)
    store.save("gone", 1)
    store.delete("gone")
    store.save("e", b"expires", ttl=60)
    store.content.put(TEXT[1:])
    assert problems(store) == []
    return store


def problems(store, *, deep=True):
    report = store.verify(deep=deep)
    assert report.ok == (report.problems == ())
    assert report.deep == deep
    return list(report.problems)


def messages(store, *, deep=True):
    return [problem.message for problem in problems(store, deep=deep)]


def row_of(store, key, db="keydir"):
    with store._engine.index.reading() as txn:
        return decode_row(txn.get(key, db=getattr(store._engine.index, db)))


def put_row(store, key, row, db="keydir"):
    index = store._engine.index
    with index.writing() as txn:
        txn.put(key, ROW.pack(*row), db=getattr(index, db))


def meta_of(store):
    with store._engine.index.reading() as txn:
        return get_meta(txn)


def contents_of(store):
    index = store._engine.index
    with index.reading() as txn:
        return {key: decode_content_row(data) for key, data in txn.cursor(index.contents)}


def put_content_row(store, key, row):
    with store._engine.index.writing() as txn:
        txn.put(key, encode_content_row(row), db=store._engine.index.contents)


def flip(store, segment, offset):
    """Damage one byte of the log under the open store."""
    engine = store._engine
    fd = engine.files.fd(segment)
    (byte,) = engine.disk.read(fd, 1, offset)
    engine.disk.write(fd, [bytes([byte ^ 0x10])], offset)


def rewrite_last(store, change, entries=None):
    """Put a batch that checks in the last one's place, with another body; where it stands."""
    engine = store._engine
    meta = meta_of(store)
    reader = SegmentReader(engine.disk, engine.files.fd(meta.segment), meta.segment, engine.salt)
    batch = reader.batch_at(meta.last)
    framed = [framed for _, framed in split_entries(batch.body, batch.header.entries)]
    body = change([decode_entry(entry) for entry in framed])
    header = batch.header._replace(entries=entries or batch.header.entries)
    chain, head, rest = encode_batch(header, body, place(engine.salt, meta.segment, meta.last))
    engine.disk.write(engine.files.fd(meta.segment), [head, rest], meta.last)
    with engine.index.writing() as txn:
        end = meta.last + BATCH_BYTES + len(body)
        put_meta(txn, meta._replace(offset=end, chain=chain))
    return meta.last


def joined(entries):
    return b"".join(map(encode_entry, entries))


# -- nothing wrong ------------------------------------------------------------------------------


def test_what_was_read_is_counted(store):
    report = store.verify()
    assert (report.ok, report.segments, report.batches) == (True, 1, 6)
    assert report.entries == 5 + 1 + 1 + 1 + 1 + 2  # contents are entries as well
    assert report.bytes == meta_of(store).offset
    deep = store.verify(deep=True)
    assert (deep.batches, deep.entries, deep.bytes) == (6, 11, report.bytes)


def test_an_empty_store_is_whole(new_store):
    report = new_store().verify(deep=True)
    assert (report.ok, report.batches, report.entries) == (True, 0, 0)


def test_writers_go_on_meanwhile(store, monkeypatch):
    """What is committed after the check began is not looked at, and is no problem."""
    from kvsage.engine import check  # noqa: PLC0415  # to write in the middle of a check

    run = check.Check.run

    def run_and_write(self):
        store.save("a", 3)
        store.save("c", TEXT[2:])
        store.delete("d")
        return run(self)

    monkeypatch.setattr(check.Check, "run", run_and_write)
    assert problems(store) == []


# -- the log ------------------------------------------------------------------------------------


@pytest.fixture
def two_files(new_store):
    """A store of two segments, opened again so that no descriptor is held."""
    noise = random.Random(1)
    with new_store(segment_bytes_max=1 << 16) as store:
        for number in range(30):
            store.save(f"k{number:02}", noise.randbytes(3000))
        assert meta_of(store).segment == 2
    return new_store(segment_bytes_max=1 << 16)


def test_a_missing_file(two_files):
    segment_path(two_files._engine.log_path, 1).unlink()
    assert problems(two_files, deep=False) == [Problem("a file of the log is missing", 1, 0)]
    deep = problems(two_files)
    assert deep[0] == Problem("a file of the log is missing", 1, 0)
    lost = {problem.keys[0] for problem in deep[1:]}
    assert lost == {f"k{number:02}" for number in range(len(lost))}
    assert {problem.message for problem in deep[1:]} == {NOT_NEWEST, NOT_ITS_ENTRY}


def test_a_damaged_header(two_files):
    flip(two_files, 1, 20)
    assert problems(two_files, deep=False) == [Problem("the header does not check", 1, 0)]


def test_a_damaged_batch_and_the_batches_behind_it_are_read(two_files):
    row, behind = row_of(two_files, b"k03"), row_of(two_files, b"k04")
    flip(two_files, 1, row.offset + 100)
    start = row.offset - BATCH_BYTES
    length = behind.offset - BATCH_BYTES - start
    found = Problem("a batch does not check", 1, start, length)
    assert problems(two_files, deep=False) == [found]
    report = two_files.verify(deep=True)
    assert report.batches == 29
    assert report.problems[0] == found
    assert [problem.keys for problem in report.problems[1:]] == [("k03",), ("k03",)]
    assert messages(two_files)[1:] == [NOT_NEWEST, NOT_ITS_ENTRY]
    with pytest.raises(CorruptionError) as raised:
        two_files.load("k03")
    assert (raised.value.segment, raised.value.offset) == (1, row.offset)
    assert len(two_files.load_many(f"k{number:02}" for number in range(30) if number != 3)) == 29


def test_damage_at_the_end_of_a_sealed_file(two_files):
    rows = [row_of(two_files, f"k{number:02}".encode()) for number in range(30)]
    last = max(row for row in rows if row.segment == 1)
    flip(two_files, 1, last.offset + 5)
    start, length = last.offset - BATCH_BYTES, BATCH_BYTES + last.length
    assert problems(two_files, deep=False) == [Problem("a batch does not check", 1, start, length)]


def test_damage_in_the_last_batch(store):
    meta = meta_of(store)
    flip(store, 1, meta.offset - 1)
    assert problems(store, deep=False) == [
        Problem("a batch does not check", 1, meta.last, meta.offset - meta.last)
    ]


def test_two_damages(two_files):
    for key in (b"k02", b"k05"):
        flip(two_files, 1, row_of(two_files, key).offset)
    assert messages(two_files, deep=False) == ["a batch does not check"] * 2


@pytest.mark.parametrize("field", ["chain", "seq"])
def test_an_index_that_knows_another_end(store, field):
    meta = meta_of(store)
    with store._engine.index.writing() as txn:
        put_meta(txn, meta._replace(**{field: getattr(meta, field) + 1}))
    found = Problem("the log does not end where the index says", 1, meta.offset)
    assert problems(store) == [found]


def test_entries_that_do_not_fill_their_batch(store):
    store.save("last", 1)
    at = rewrite_last(store, joined, entries=2)
    assert problems(store) == [Problem("the entries of a batch do not fill it", 1, at)]


def test_a_damaged_entry_in_a_batch_that_checks(store):
    store.save("last", 1)
    at = rewrite_last(store, lambda entries: joined(entries)[:-1] + b"\x7e") + BATCH_BYTES
    assert problems(store, deep=False) == [Problem("an entry does not check", 1, at)]
    assert messages(store) == ["an entry does not check", NOT_NEWEST, NOT_ITS_ENTRY]


def test_an_entry_of_an_unknown_kind(store):
    store.save("last", 1)
    at = rewrite_last(store, lambda e: joined([e[0]._replace(kind=9)])) + BATCH_BYTES
    assert problems(store, deep=False) == [Problem("an entry does not check", 1, at)]


def test_an_entry_with_another_number(store):
    store.save("last", 1)
    at = rewrite_last(store, lambda e: joined([e[0]._replace(seq=e[0].seq + 5)])) + BATCH_BYTES
    expected = Problem("an entry bears another number than its batch", 1, at, keys=("last",))
    assert problems(store, deep=False) == [expected]
    assert messages(store) == [expected.message, NOT_NEWEST, NOT_ITS_ENTRY]


LENGTH = CONTENT_HEAD.pack(4)


@pytest.mark.parametrize(
    ("flags", "value", "message"),
    [
        (0, b"short", "a content entry is too short"),
        (9, LENGTH + b"four", "a content is stored in an unknown way (9)"),
        (0, LENGTH + b"three", "a content has another length than its record says"),
        (1, LENGTH + b"four", "a content's frame cannot be decompressed"),
        (
            1,
            LENGTH + b"\x28\xb5\x2f\xfd\x20\x05\x29\0\0hello",
            "a content's frame declares another length than its record",
        ),
        (0, LENGTH + b"four", "a content is not what its hash says"),
    ],
)
def test_a_content_that_is_not_what_it_says(store, flags, value, message):
    store.save("last", TEXT[2:])

    def change(entries):
        content, put = entries
        assert content.kind == CONTENT
        return joined([content._replace(flags=flags, value=value), put])

    at = rewrite_last(store, change) + BATCH_BYTES
    assert problems(store, deep=False) == [Problem(message, 1, at)]


# -- copies, retired files, checkpoints ----------------------------------------------------------


@pytest.fixture
def compacted(new_store):
    """One copy, with deletions and contents in it, and an active segment."""
    store = new_store(segment_bytes_max=1 << 16, upkeep_interval=math.inf)
    for number in range(12):
        store.save(f"k{number:02}", random.Random(number).randbytes(9000))
        store.save(f"k{number:02}", f"newer {number}")
    store.delete("k03")
    store.save("text", TEXT, ttl=60)
    assert store.compact().files_compacted
    store.save("after", 1)
    assert problems(store) == []
    return store


def files_of(store):
    """Rows of the files that count: of the copy and of the active segment."""
    with store._engine.index.reading() as txn:
        rows = dict(listed_segments(txn))
    (copy,) = [segment for segment, row in rows.items() if row.kind == FileKind.COPY]
    return copy, rows[copy]


def rewrite_copy(store, change):
    """Put batches that check in the place of a copy's, with other bodies; where the first stands.

    Args:
        store: whose copy.
        change: gives the entries of a batch for those that are there.
    """
    engine = store._engine
    segment, row = files_of(store)
    fd = engine.files.fd(segment)
    chain = read_header(engine.disk, fd, engine.identity.uuid)[1]
    reader = SegmentReader(engine.disk, fd, segment, engine.salt)
    offset, pieces = row.start, []
    for batch in list(reader.batches(row.start, chain, 0, row.end)):
        framed = split_entries(batch.body, batch.header.entries)
        entries = change([decode_entry(entry) for _, entry in framed])
        header = batch.header._replace(entries=len(entries), chain=chain)
        body, seed = joined(entries), place(engine.salt, segment, offset)
        chain, head, rest = encode_batch(header, body, seed)
        pieces += [head, rest]
        offset += len(head) + len(rest)
    engine.disk.write(fd, pieces, row.start)
    engine.disk.truncate(fd, offset)
    with engine.index.writing() as txn:
        put_segment(txn, segment, row._replace(end=offset))
    return segment, row.start + BATCH_BYTES


def test_a_copy_without_origins(compacted):
    segment, at = rewrite_copy(compacted, lambda entries: entries[1:])
    expected = "a batch of a copy does not say where its entries came from"
    assert problems(compacted, deep=False) == [Problem(expected, segment, at)]


@pytest.mark.parametrize("change", [lambda value: value[ORIGIN.size :], lambda value: value + b"x"])
def test_origins_of_another_number_of_entries(compacted, change):
    def shorten(entries):
        return [entries[0]._replace(value=change(entries[0].value)), *entries[1:]]

    segment, at = rewrite_copy(compacted, shorten)
    expected = "origins are those of another number of entries"
    assert problems(compacted, deep=False) == [Problem(expected, segment, at)]


def test_origins_behind_another_entry(compacted):
    rewrite_copy(compacted, lambda entries: [*entries, entries[0]])
    assert messages(compacted, deep=False) == [
        "origins are those of another number of entries",
        "origins stand where no origins belong",
    ]


def test_origins_in_a_segment(store):
    store.save("last", 1)
    seq = meta_of(store).seq
    at = rewrite_last(store, lambda _: joined([LogEntry(seq, 0, ORIGINS, 0, b"", b"")]))
    expected = Problem("origins stand where no origins belong", 1, at + BATCH_BYTES)
    assert problems(store, deep=False) == [expected]


def test_a_retirement_beside_another_entry(store):
    store.save("last", 1)
    retire = LogEntry(meta_of(store).seq, 0, RETIRE, 0, b"", encode_retire(Retire(0, 0, 0, (77,))))
    at = rewrite_last(store, lambda e: joined([retire, e[0]]), entries=2) + BATCH_BYTES
    expected = "a retirement does not stand alone in a batch of a segment"
    assert problems(store, deep=False) == [Problem(expected, 1, at)]


def test_a_retirement_in_a_copy(compacted):
    value = encode_retire(Retire(0, 0, 0, (77,)))
    retire = LogEntry(1, 0, RETIRE, 0, b"", value)
    origins = LogEntry(0, 0, ORIGINS, 0, b"", ORIGIN.pack(0, 0))
    segment, at = rewrite_copy(compacted, lambda _: [origins, retire])
    expected = "a retirement does not stand alone in a batch of a segment"
    offset = at + len(encode_entry(origins))
    assert problems(compacted, deep=False) == [Problem(expected, segment, offset)]


@pytest.mark.parametrize("field", ["entry_bytes", "last_seq"])
def test_a_file_that_holds_more_than_its_row_says(compacted, field):
    segment, row = files_of(compacted)
    wrong = row._replace(**{field: getattr(row, field) - 1})
    with compacted._engine.index.writing() as txn:
        put_segment(txn, segment, wrong)
    assert problems(compacted, deep=False) == []
    expected = (
        f"a file is said to hold {wrong.entry_bytes} bytes of entries up to seq {wrong.last_seq}; "
        f"it holds {row.entry_bytes} up to {row.last_seq}"
    )
    assert problems(compacted) == [Problem(expected, segment)]


def test_a_sealed_segment_that_holds_less_than_its_row_says(two_files):
    with two_files._engine.index.writing() as txn:
        row = get_segment(txn, 1)
        put_segment(txn, 1, row._replace(entry_bytes=row.entry_bytes + 8))
    (problem,) = problems(two_files)
    assert problem.segment == 1
    assert problem.message.startswith(f"a file is said to hold {row.entry_bytes + 8} bytes")


def test_a_copy_that_rows_lead_to_and_no_retirement_names(compacted):
    """Compaction is under way: its entries stand in two places, and no row is wrong."""
    segment, row = files_of(compacted)
    with compacted._engine.index.writing() as txn:
        put_segment(txn, segment, row._replace(state=JOINING))
    assert problems(compacted) == []


def retired_with_deletion(compacted, *, forgotten_too):
    """Let the file of a deletion count no more, as compaction does that drops it."""
    compacted.delete("k05")
    with compacted._engine.index.writing() as txn:
        row = decode_row(txn.get(b"k05", db=compacted._engine.index.tombstones))
        elsewhere = ROW.pack(*row._replace(segment=99))
        txn.put(b"k05", elsewhere, db=compacted._engine.index.tombstones)
        put_retired(txn, 99)
        if forgotten_too:
            forgotten(txn, [99])


def test_a_deletion_that_is_yet_to_be_forgotten(compacted):
    """Its own entry is in the log as well here, so the row alone is what is missing."""
    retired_with_deletion(compacted, forgotten_too=False)
    assert messages(compacted) == ["a key's newest entry is missing from tombstones"]


def test_a_deletion_that_should_have_been_forgotten(compacted):
    retired_with_deletion(compacted, forgotten_too=True)
    assert messages(compacted) == [NOT_ITS_ENTRY]


def test_a_retired_file_that_is_listed(compacted):
    segment, row = files_of(compacted)
    with compacted._engine.index.writing() as txn:
        put_retired(txn, segment)
        put_segment(txn, segment, row)
    assert problems(compacted) == [Problem("a file that was retired is listed", segment)]


def test_a_content_in_a_file_that_does_not_count(compacted):
    segment, _ = files_of(compacted)
    with compacted._engine.index.writing() as txn:
        put_retired(txn, segment)
    found = problems(compacted)
    content = next(iter(contents_of(compacted).values()))
    expected = "a content's row leads to a file that does not count"
    assert Problem(expected, segment, content.offset) in found


def test_a_checkpoint_that_is_whole(compacted):
    compacted._engine.upkeep.checkpoint()
    assert compacted._engine.checkpoint_path.exists()
    assert problems(compacted) == []


@pytest.mark.parametrize("offset", [0, 5000, -1, -9, -20, -40, -55])
def test_a_checkpoint_that_is_damaged(compacted, offset):
    compacted._engine.upkeep.checkpoint()
    path = compacted._engine.checkpoint_path
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)
    assert problems(compacted, deep=False) == []
    assert messages(compacted) == ["the checkpoint is damaged"]


@pytest.mark.parametrize("length", [0, 7, 55, 56, 5000])
def test_a_checkpoint_that_is_cut(compacted, length):
    compacted._engine.upkeep.checkpoint()
    path = compacted._engine.checkpoint_path
    path.write_bytes(path.read_bytes()[:length])
    assert messages(compacted) == ["the checkpoint is damaged"]


def test_a_checkpoint_of_another_store(compacted, new_store):
    other = new_store("other")
    other.save("k", 1)
    other._engine.upkeep.checkpoint()
    data = other._engine.checkpoint_path.read_bytes()
    compacted._engine.checkpoint_path.write_bytes(data)
    assert messages(compacted) == ["the checkpoint is that of another store"]


# -- the index against the log ------------------------------------------------------------------


def test_a_row_that_leads_to_an_older_entry(store):
    older = row_of(store, b"b")
    store.save("b", "newer")
    put_row(store, b"b", older)
    assert problems(store, deep=False) == []
    assert problems(store) == [Problem(NOT_NEWEST, 1, older.offset, keys=("b",))]


@pytest.mark.parametrize(
    ("db", "key", "name"),
    [
        ("keydir", b"a", "a"),
        ("tombstones", b"gone", "gone"),
        ("system", None, None),
    ],
)
def test_a_row_that_is_missing(store, db, key, name):
    index = store._engine.index
    held = CONTENT_ROOT + next(k for k, row in contents_of(store).items() if row.seq == 6)
    row = row_of(store, key or held, db)
    with index.writing() as txn:
        assert txn.delete(key or held, db=getattr(index, db))
    found = problems(store)
    assert found[0].message == f"a key's newest entry is missing from {db}"
    assert (found[0].segment, found[0].offset) == (row.segment, row.offset)
    if key is None:  # nothing refers to its content any more
        assert [problem.message for problem in found[1:]] == ["a content has 0 references, not 1"]
    else:
        assert found[0].keys == (name,)
        assert len(found) == 1


def test_a_key_that_is_both_there_and_deleted(store):
    put_row(store, b"a", row_of(store, b"a"), "tombstones")
    assert NOT_NEWEST in messages(store)


def test_a_row_that_leads_astray(store):
    row = row_of(store, b"b")
    wrong = row._replace(offset=row.offset + 1)
    put_row(store, b"b", wrong)
    assert problems(store) == [Problem(NOT_ITS_ENTRY, 1, wrong.offset, keys=("b",))]


def test_a_row_that_leads_to_no_file(store):
    put_row(store, b"b", row_of(store, b"b")._replace(segment=99))
    assert messages(store) == [NOT_ITS_ENTRY]


@pytest.mark.parametrize("field", ["flags", "expires_ms"])
def test_a_row_that_says_other_than_its_entry(store, field):
    row = row_of(store, b"b")
    put_row(store, b"b", row._replace(**{field: 4}))
    found = problems(store)
    assert found[0] == Problem("a row says other than its entry", 1, row.offset, keys=("b",))
    assert [p.message for p in found[1:]] == ["an expiry is missing"] * (field == "expires_ms")


def test_a_row_that_is_no_row(store):
    """LMDB's pages bear no checksum: a flipped bit may well change the length of a row."""
    with store._engine.index.writing() as txn:
        txn.put(b"b", b"short", db=store._engine.index.keydir)
    assert not store.verify(deep=True).ok
    with pytest.raises(KvsageError):
        store.load("b")
    with pytest.raises(KvsageError):
        store.save("b", 1)


def test_a_content_row_that_is_no_row(store):
    key = next(iter(contents_of(store)))
    with store._engine.index.writing() as txn:
        txn.put(key, b"short", db=store._engine.index.contents)
    assert not store.verify(deep=True).ok
    with pytest.raises(KvsageError):
        store.content.get(key[:16].hex())


def test_a_reference_of_another_length(store):
    operation = Operation(b"odd", PUT, BYTES | IS_CONTENT, value=b"short")
    store._engine.committer.commit((operation,), full=False)
    row = row_of(store, b"odd")
    expected = Problem("a reference is none", 1, row.offset, keys=("odd",))
    assert problems(store) == [expected]
    with pytest.raises(CorruptionError):
        store.load("odd")


def test_references_counted_wrong(store):
    key, row = next((k, row) for k, row in contents_of(store).items() if row.references == 2)
    put_content_row(store, key, row._replace(references=3))
    assert problems(store) == [Problem("a content has 2 references, not 3", 1, row.offset)]


def test_a_content_row_that_leads_astray(store):
    key, row = next(iter(contents_of(store).items()))
    put_content_row(store, key, row._replace(offset=row.offset + 1))
    assert problems(store) == [Problem("a content's row does not lead to it", 1, row.offset + 1)]


def test_a_content_row_that_leads_to_an_entry_of_another_kind(store):
    key, row = next(iter(contents_of(store).items()))
    store._engine.committer.commit((Operation(key, PUT, BYTES, value=b"x"),), full=False)
    other = row_of(store, key, "system" if key[0] == 0xFF else "keydir")
    wrong = row._replace(offset=other.offset, length=other.length, seq=other.seq)
    put_content_row(store, key, wrong)
    expected = Problem("a content's row leads to something else", 1, other.offset)
    assert problems(store) == [expected]


def test_a_content_that_is_missing(store):
    key = next(key for key, row in contents_of(store).items() if row.references == 2)
    with store._engine.index.writing() as txn:
        txn.delete(key, db=store._engine.index.contents)
    assert problems(store) == [Problem(f"the content {key[:16].hex()} is missing")]
    assert len(key) == CONTENT_KEY.size
    with pytest.raises(CorruptionError):
        store.load("c")


def test_an_expiry_that_is_missing(store):
    row = row_of(store, b"e")
    with store._engine.index.writing() as txn:
        txn.delete(expiry_key(row.expires_ms, b"e"), db=store._engine.index.expiry)
    assert problems(store) == [Problem("an expiry is missing", 1, row.offset, keys=("e",))]


def test_an_expiry_of_no_key(store):
    index = store._engine.index
    with index.writing() as txn:
        txn.put(expiry_key(5, b"nobody"), b"", db=index.expiry)
    assert problems(store) == [Problem("an expiry belongs to no key", keys=("nobody",))]


@pytest.mark.parametrize("by", [1, 100])
def test_dead_bytes_counted_wrong(store, by):
    dead = store.stats().dead_bytes
    with store._engine.index.writing() as txn:
        add_dead(txn, {1: by})
    expected = f"{dead + by} dead bytes are counted; there are {dead}"
    assert problems(store) == [Problem(expected, 1)]


def test_an_index_that_cannot_be_read(store, monkeypatch):
    def fail(_):
        raise LmdbError("MDB_CORRUPTED")

    monkeypatch.setattr("kvsage.engine.check.decode_row", fail)
    assert messages(store, deep=False) == []
    assert messages(store) == ["the index cannot be read: MDB_CORRUPTED"]


# -- all bytes ----------------------------------------------------------------------------------


def loaded(store, key):
    try:
        return store.load(key)
    except CorruptionError:
        return "damaged"


def test_every_flip_in_the_log_is_found_and_no_key_reads_wrong(new_store):
    store = new_store()
    store.save_many({"a": [1, 2], "c": TEXT})
    store.save("b", "text", ttl=60)
    store.delete("a")
    values = {"b": "text", "c": TEXT}
    for offset in range(meta_of(store).offset):
        flip(store, 1, offset)
        store._engine.raw_cache.clear()
        assert not store.verify().ok, offset
        for key, value in values.items():
            assert loaded(store, key) in (value, "damaged")
        assert store.load("a") is None
        flip(store, 1, offset)
    assert problems(store) == []
