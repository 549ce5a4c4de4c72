"""Compaction moves what is live and nothing else, and drops a deletion only where that is safe."""

import math
import os
import shutil
import threading
from pathlib import Path

import pytest

from kvsage import CorruptionError, StoreLockedError, TransactionStateError
from kvsage.engine import choosing, compaction
from kvsage.engine.choosing import choose, everything
from kvsage.engine.pace import UNPACED, Pace, Stopped
from kvsage.index.keydir import CONTENT_ROOT, decode_row
from kvsage.index.segments import (
    JOINING,
    LISTED,
    SegmentRow,
    all_retired,
    all_segments,
    get_floor,
    get_meta,
    listed_segments,
)
from kvsage.log.format import (
    BY_USER,
    CONTENT,
    DELETE,
    EXPIRED,
    ORIGIN,
    ORIGINS,
    PUT,
    RETIRE,
    FileKind,
    ListedFile,
    Retire,
    decode_entry,
    decode_retire,
    split_entries,
)
from kvsage.log.reader import SegmentReader
from kvsage.log.segment import inspect, list_files, segment_path

TEXT = "to be or not to be, that is the question. " * 200
NOISE = os.urandom(3000)
PATIENCE_S = 60


@pytest.fixture
def store_options(store_options):
    return store_options | {"upkeep_interval": math.inf, "segment_bytes_max": 65536}


@pytest.fixture(autouse=True)
def always_sound(tmp_path, new_store):
    """As the index is, and as a rebuild from the log makes it."""
    yield
    store = new_store()
    assert store.verify(deep=True).problems == ()
    found = dict(store.items())
    store.checkpoint()
    while not store._closed:
        store.close()
    for name in ("with", "without"):
        copy = shutil.copytree(tmp_path / "store", tmp_path / name)
        if name == "without":
            (copy / "index.checkpoint").unlink()
        with new_store(name) as rebuilt:
            assert dict(rebuilt.items()) == found
            assert rebuilt.verify(deep=True).problems == ()


# -- looking into the log -----------------------------------------------------------------------


def seal(store):
    """Begin a new segment; the id of the one before."""
    with store._engine.index.reading() as txn:
        active = get_meta(txn).segment
    compaction.seal(store._engine)
    return active


def compact(store, *sources, pace=UNPACED):
    return compaction.compact_files(store._engine, sources, pace)


def rows(store):
    with store._engine.index.reading() as txn:
        return dict(all_segments(txn))


def copies(store):
    return [segment for segment, row in rows(store).items() if row.kind == FileKind.COPY]


def only_copy(store):
    (copy,) = copies(store)
    return copy


def header_of(store, segment):
    engine = store._engine
    path = list_files(engine.disk, engine.log_path)[segment]
    return inspect(engine.disk, segment, path, engine.identity.uuid).header


def batches(store, segment):
    engine = store._engine
    path = list_files(engine.disk, engine.log_path)[segment]
    file = inspect(engine.disk, segment, path, engine.identity.uuid)
    after_seq = 0 if file.is_copy else file.header.after_seq
    fd = engine.files.fd(segment)
    reader = SegmentReader(engine.disk, fd, segment, engine.salt)
    return list(reader.batches(file.start, file.chain, after_seq))


def entries(store, segment):
    """Every entry of a file but ORIGINS, in its order."""
    found = [
        decode_entry(framed)
        for batch in batches(store, segment)
        for _, framed in split_entries(batch.body, batch.header.entries)
    ]
    return [entry for entry in found if entry.kind != ORIGINS]


def named(found):
    return [(entry.seq, entry.kind, entry.key.decode()) for entry in found]


def retires(store):
    found = []
    for segment in rows(store):
        found += [decode_retire(e.value) for e in entries(store, segment) if e.kind == RETIRE]
    return found


def tombstones(store):
    with store._engine.index.reading() as txn:
        return {
            key.decode(): decode_row(row) for key, row in txn.cursor(store._engine.index.tombstones)
        }


# -- what moves ---------------------------------------------------------------------------------


def test_what_is_live_moves_and_nothing_else(store):
    for number in range(6):
        store.save(f"k{number}", number)
    store.save("k1", "newer")
    store.delete("k4")
    file = seal(store)
    store.save("k2", "in the active file")
    done = compact(store, file)
    copy = only_copy(store)
    assert named(entries(store, copy)) == [
        (1, PUT, "k0"),
        (4, PUT, "k3"),
        (6, PUT, "k5"),
        (7, PUT, "k1"),
    ]
    assert dict(store.items()) == {
        "k0": 0,
        "k1": "newer",
        "k2": "in the active file",
        "k3": 3,
        "k5": 5,
    }
    assert (done.files, done.deletions_dropped) == (1, 1)


def test_an_entry_keeps_its_bytes_its_seq_and_its_expiry(store, clock):
    store.save("expires", 1, ttl=60)
    store.save("expired", 2, ttl=5)
    store.save("dead", 3)
    store.save("dead", 4)
    versions = {key: store.entry(key) for key in ("expires", "dead")}
    file = seal(store)
    before = {entry.key: entry for entry in entries(store, file)}
    clock.now += 10
    compact(store, file)
    after = {entry.key: entry for entry in entries(store, only_copy(store))}
    # It judges by the index alone: that one has expired is the sweep's to say.
    assert after == {key: before[key] for key in (b"expires", b"expired", b"dead")}
    assert {key: store.entry(key) for key in versions} == versions
    assert store.save("dead", 5, if_version=versions["dead"].version)
    assert store.ttl("expires") == 50
    clock.now -= 10
    assert store.load("expired") == 2


def test_contents_and_kvsages_own_keys_move_along(store):
    store.save("one", TEXT)
    store.save("two", TEXT)
    store.save("gone", TEXT[1:])
    address = store.content.put(b"held by its address")
    other = store.content.put(b"let go of")
    file = seal(store)
    store.delete("one")
    store.delete("gone")
    store.content.delete(other)
    compact(store, file)
    kinds = [(entry.kind, entry.key[:2]) for entry in entries(store, only_copy(store))]
    assert [kind for kind, _ in kinds].count(CONTENT) == 2
    assert (PUT, CONTENT_ROOT) in kinds
    assert store.load("two") == TEXT
    assert store.content.get(address) == b"held by its address"
    assert not store.content.exists(other)
    stats = store.stats()
    assert (stats.contents, stats.content_references) == (2, 2)


def test_each_batch_says_where_and_when_its_entries_were_committed(store, clock, monkeypatch):
    monkeypatch.setattr(compaction, "BATCH_BYTES_MAX", 80)
    store.save_many({"a": 1, "b": 2, "c": 3})
    clock.now += 1.5
    with store.transaction() as tx:
        tx.save("b", 20)
        tx.save("d", 40)
    first_ms = 1_700_000_000_000
    file = seal(store)
    compact(store, file)
    copy = only_copy(store)
    expected = [
        (1, b"a", 0, first_ms),
        (1, b"c", 2, first_ms),
        (2, b"b", 0, first_ms + 1500),
        (2, b"d", 1, first_ms + 1500),
    ]
    assert found_origins(store, copy) == expected
    assert len(batches(store, copy)) > 1
    # A copy of a copy says the same.
    clock.now += 100
    store.delete("c")
    compact(store, copy)
    assert found_origins(store, only_copy(store)) == [e for e in expected if e[1] != b"c"]


def found_origins(store, copy):
    """Seq, key, number and time of each entry of a copy."""
    found = []
    for batch in batches(store, copy):
        parts = [decode_entry(f) for _, f in split_entries(batch.body, batch.header.entries)]
        assert parts[0].kind == ORIGINS
        assert all(part.kind != ORIGINS for part in parts[1:])
        origins = ORIGIN.iter_unpack(parts[0].value)
        found += [(e.seq, e.key, n, ms) for e, (n, ms) in zip(parts[1:], origins, strict=True)]
    return found


def test_entries_of_many_files_stand_in_the_order_of_their_commits(store):
    files = []
    for start in (0, 1, 2):
        for number in range(start, 9, 3):
            store.save(f"k{number}", number)
        store.save("dead", start)
        files.append(seal(store))
    store.delete("k4")
    first = compact(store, files[0], files[2])
    assert first.files == 2
    second = compact(store, only_copy(store), files[1])
    assert second.files == 2
    seqs = [entry.seq for entry in entries(store, only_copy(store))]
    assert seqs == sorted(seqs)
    assert len(seqs) == 9
    assert rows(store)[only_copy(store)].last_seq == seqs[-1]


def test_the_copy_and_the_record_of_it(store):
    store.save("k", 1)
    store.save("k", 2)
    store.save("m", 1)
    files = [seal(store)]
    store.save("l", 1)
    store.delete("m")
    files.append(seal(store))
    ends = [rows(store)[file].end for file in files]
    store.save("behind", 1)
    judged_seq = store.stats().commits
    compact(store, *files)
    copy = only_copy(store)
    header, row = header_of(store, copy), rows(store)[copy]
    assert header.kind == FileKind.COPY
    assert header.files == tuple(map(ListedFile, files, ends))
    assert header.judged_seq == row.after_seq == judged_seq
    assert (header.after_seq, header.chain) == (0, 0)
    assert row.state == LISTED
    assert row.dead_bytes == 0
    assert row.end == batches(store, copy)[-1].end
    # The deletion of m has seq 5 and hid what stood in a file that goes with it.
    assert retires(store) == [Retire(copy, row.end, 5, tuple(files))]
    with store._engine.index.reading() as txn:
        assert get_floor(txn) == 5
        assert set(all_retired(txn)) == set(files)
        assert {segment for segment, _ in listed_segments(txn)} == {copy, 3}
    store.save("on", 1)
    seal(store)
    assert header_of(store, max(rows(store))).floor_seq == 5


def test_files_in_which_nothing_is_live_leave_no_copy(store):
    store.save("k", 1)
    store.delete("k")
    file = seal(store)
    done = compact(store, file)
    assert done.bytes_after == 0
    assert copies(store) == []
    assert retires(store) == [Retire(0, 0, 2, (file,))]
    assert file not in rows(store)


def test_the_copy_is_on_disk_with_its_name_before_anything_leads_to_it(new_store, recording_disk):
    store = new_store("store", disk=recording_disk)
    store.save("k", 1)
    store.save("k", 2)
    file = seal(store)
    recording_disk.calls.clear()
    compact(store, file)
    calls = [call for call in recording_disk.calls if call[0] != "write" or ".cpy" in str(call[1])]
    name = "0000000003.cpy"
    assert calls == [
        ("write", f"{name}.tmp", *calls[0][2:]),
        ("write", f"{name}.tmp", *calls[1][2:]),
        ("sync", f"{name}.tmp"),
        ("rename", f"{name}.tmp", name),
        ("sync_directory", "log"),
        ("sync_data", "0000000002.seg"),  # the RETIRE
    ]
    store.close()


# -- deletions ----------------------------------------------------------------------------------


def test_a_deletion_goes_where_nothing_older_can_stand(store):
    store.save("k", 1)
    store.save("stays", 1)
    store.delete("k")
    file = seal(store)
    assert compact(store, file).deletions_dropped == 1
    assert tombstones(store) == {}
    assert named(entries(store, only_copy(store))) == [(2, PUT, "stays")]


def test_a_deletion_stays_while_an_older_file_holds_something_dead(store):
    store.save("k", 1)
    store.save("stays", 1)
    older = seal(store)
    store.delete("k")
    newer = seal(store)
    assert compact(store, newer).deletions_dropped == 0
    assert named(entries(store, only_copy(store))) == [(3, DELETE, "k")]
    # Once the older one is gone it goes with the next.
    assert compact(store, older).deletions_dropped == 0
    assert compact(store, *copies(store)).deletions_dropped == 1
    assert tombstones(store) == {}


def test_a_deletion_goes_where_the_older_files_hold_nothing_dead(store):
    store.save("all live", 1)
    seal(store)
    store.save("k", 1)
    store.delete("k")
    file = seal(store)
    assert compact(store, file).deletions_dropped == 1
    assert tombstones(store) == {}


def test_a_deletion_goes_where_only_later_files_hold_something_dead(store):
    store.save("k", 1)
    store.delete("k")
    file = seal(store)
    store.save("l", 1)
    store.save("l", 2)
    seal(store)
    assert compact(store, file).deletions_dropped == 1


def test_a_deletion_goes_with_the_file_of_what_it_hides(store):
    store.save("k", 1)
    files = [seal(store)]
    store.delete("k")
    files.append(seal(store))
    assert compact(store, *files).deletions_dropped == 1
    assert tombstones(store) == {}


def test_a_deletion_stays_for_a_copy_that_was_judged_before_it(store):
    store.save("k", 1)
    store.save("dead", 1)
    store.save("dead", 2)
    compact(store, seal(store))
    copy = only_copy(store)
    store.delete("k")
    newer = seal(store)
    assert compact(store, newer).deletions_dropped == 0
    later = max(copies(store))
    assert named(entries(store, later)) == [(5, DELETE, "k")]
    compact(store, copy)
    store.save("x", 1)
    seal(store)
    assert compact(store, later).deletions_dropped == 1


def test_a_deletion_goes_although_a_copy_was_judged_after_it(store):
    store.save("k", 1)
    older = seal(store)
    store.delete("k")
    store.save("l", 1)
    newer = seal(store)
    store.save("m", 1)
    store.save("m", 2)
    judged_later = seal(store)
    compact(store, older)
    compact(store, judged_later)
    assert compact(store, newer).deletions_dropped == 1


def test_a_deletion_stays_for_a_checkpoint_that_was_made_before_it(store):
    store.save("k", 1)
    store.checkpoint()
    files = [seal(store)]
    store.delete("k")
    files.append(seal(store))
    assert compact(store, *files).deletions_dropped == 0
    store.checkpoint()
    assert compact(store, *copies(store)).deletions_dropped == 1


def test_a_deletion_stays_for_a_checkpoint_that_cannot_be_read(store, tmp_path):
    store.save("k", 1)
    store.delete("k")
    file = seal(store)
    (tmp_path / "store" / "index.checkpoint").write_bytes(b"no checkpoint at all")
    assert compact(store, file).deletions_dropped == 0
    assert store.compact().deletions_dropped == 1  # which writes a new one first


def test_why_a_key_was_deleted_moves_along(store, clock):
    store.save("swept", 1, ttl=5)
    store.save("deleted", 1)
    seal(store)
    clock.now += 10
    store.sweep()
    store.delete("deleted")
    compact(store, seal(store))
    assert {key: row.flags for key, row in tombstones(store).items()} == {
        "swept": EXPIRED,
        "deleted": BY_USER,
    }


def test_a_key_saved_again_meanwhile_is_not_forgotten(store):
    """Its deletion was dropped, and then there was another one, in a file that stays."""
    store.save("k", 1)
    store.delete("k")
    file = seal(store)

    class Interrupting(Pace):
        def breathe(self):
            store.save("k", 2)
            store.delete("k")

    compaction._forget(store._engine, [b"k"] * 200, (99,), Interrupting())
    assert "k" in tombstones(store)
    compact(store, file, pace=Interrupting())
    assert tombstones(store)["k"].segment == 2


# -- writes to the very keys that are moving -------------------------------------------------------


def between_copy_and_move(monkeypatch, work):
    real = compaction._join

    def join(engine, copy):
        work()
        real(engine, copy)

    monkeypatch.setattr(compaction, "_join", join)


def test_writes_between_the_copy_and_the_move(store, monkeypatch):
    for number in range(6):
        store.save(f"k{number}", number)
    store.save("text", TEXT)
    store.save("same text", TEXT)
    store.save("expiring", 1, ttl=60)
    store.delete("k0")
    file = seal(store)

    def meanwhile():
        store.save("k1", "newer")
        store.delete("k2")
        store.delete("k3")
        store.save("k3", "again")
        store.touch("expiring", 90)
        store.delete("text")
        store.delete("same text")
        store.save("k0", "back")

    between_copy_and_move(monkeypatch, meanwhile)
    compact(store, file)
    expected = {"expiring": 1, "k0": "back", "k1": "newer", "k3": "again", "k4": 4, "k5": 5}
    assert dict(store.items()) == expected
    row = rows(store)[only_copy(store)]
    assert 0 < row.dead_bytes < row.entry_bytes
    assert store.stats().contents == 0


def test_a_content_let_go_of_and_taken_up_again_meanwhile(store, monkeypatch):
    store.save("text", TEXT)
    store.save("dead", 1)
    file = seal(store)

    def meanwhile():
        store.delete("text")
        store.save("other", TEXT)

    between_copy_and_move(monkeypatch, meanwhile)
    compact(store, file)
    assert store.load("other") == TEXT
    assert store.stats().contents == 1


def test_a_content_that_more_keys_refer_to_meanwhile(store, monkeypatch):
    store.save("text", TEXT)
    file = seal(store)
    between_copy_and_move(monkeypatch, lambda: store.save("other", TEXT))
    compact(store, file)
    store.delete("text")
    assert store.load("other") == TEXT


@pytest.mark.parametrize("every", [1, 2, 5])
def test_writes_between_all_steps(store, monkeypatch, every):
    monkeypatch.setattr(compaction, "CHUNK", 3)
    monkeypatch.setattr(compaction, "BATCH_BYTES_MAX", 100)
    monkeypatch.setattr(compaction, "STEP_ROWS", 1)
    expected = {f"k{number:02}": number for number in range(40)}
    store.save_many(expected)
    for number in range(0, 40, 3):
        store.delete(f"k{number:02}")
        del expected[f"k{number:02}"]
    file = seal(store)

    class Interrupting(Pace):
        breaths = 0

        def breathe(self):
            self.breaths += 1
            if self.breaths % every == 0:
                key = f"k{self.breaths * 7 % 40:02}"
                if self.breaths % 2:
                    store.save(key, ["new", self.breaths])
                    expected[key] = ["new", self.breaths]
                else:
                    store.delete(key)
                    expected.pop(key, None)

    pace = Interrupting()
    compact(store, file, pace=pace)
    assert pace.breaths > 20
    assert dict(store.items()) == dict(sorted(expected.items()))


def test_an_account_that_does_not_add_up_stops_it(store, monkeypatch):
    """Rows that still lead to a file keep it from being retired, whatever went wrong."""
    store.save("k", 1)
    store.save("l", 1)
    file = seal(store)
    monkeypatch.setattr(compaction, "_move_rows", lambda *_: None)
    with pytest.raises(CorruptionError, match="rows still lead"):
        compact(store, file)
    monkeypatch.undo()
    assert retires(store) == []
    assert rows(store)[3].state == JOINING
    assert store.load("k") == 1
    compaction.finish(store._engine, UNPACED)
    assert [retire.files for retire in retires(store)] == [(file,)]


# -- stopping, damage ---------------------------------------------------------------------------


@pytest.mark.parametrize("breath", [1, 3, 5, 8])
def test_it_stops_when_the_pace_says_so_and_the_next_run_finishes(store, monkeypatch, breath):
    monkeypatch.setattr(compaction, "CHUNK", 5)
    monkeypatch.setattr(compaction, "STEP_ROWS", 1)
    for _ in range(2):
        store.save_many({f"k{number:02}": number for number in range(20)})
    file = seal(store)

    class Stopping(Pace):
        left = breath

        def breathe(self):
            self.left -= 1
            if not self.left:
                raise Stopped

    with pytest.raises(Stopped):
        compact(store, file, pace=Stopping())
    assert store.count() == 20
    assert store.verify(deep=True).ok
    store.compact()
    assert store.count() == 20
    assert file not in rows(store)
    assert not list(store._engine.log_path.glob("*.tmp"))


@pytest.mark.parametrize("where", ["batch", "header"])
def test_damage_in_a_source_is_raised_and_changes_nothing(store, tmp_path, where):
    store.save_many({f"k{number}": number for number in range(5)})
    store.save("k0", "newer")
    file = seal(store)
    path = segment_path(tmp_path / "store" / "log", file)
    offset = batches(store, file)[0].offset if where == "batch" else 20
    whole = path.read_bytes()
    flipped = bytes([whole[offset + 60] ^ 1]) if where == "batch" else bytes([whole[offset] ^ 1])
    at = offset + 60 if where == "batch" else offset
    path.write_bytes(whole[:at] + flipped + whole[at + 1 :])
    before, names = rows(store), sorted(path.parent.iterdir())
    with pytest.raises(CorruptionError) as caught:
        compact(store, file)
    assert (caught.value.segment, caught.value.offset) == (
        file,
        offset if where == "batch" else 0,
    )
    assert (rows(store), sorted(path.parent.iterdir())) == (before, names)
    path.write_bytes(whole)
    assert compact(store, file).files == 1


def test_not_inside_a_transaction_of_the_same_thread(store):
    store.save("k", 1)
    with store.transaction(), pytest.raises(TransactionStateError):
        store.compact()
    assert store.load("k") == 1


@pytest.mark.parametrize("step", ["_join", "_move_rows", "_retire", "_forget"])
def test_a_writer_that_holds_the_gate_too_long(new_store, monkeypatch, step):
    """The compaction gives up where it is, the writer is not disturbed, the next run finishes."""
    store = new_store("store", lock_timeout=0.05)
    store.save_many({f"k{number}": number for number in range(5)})
    store.delete("k0")
    store.save("k1", "newer")
    go, holding, over = threading.Event(), threading.Event(), threading.Event()
    real = getattr(compaction, step)

    def beside():
        assert go.wait(PATIENCE_S)
        with store.transaction() as tx:
            tx.save("k2", "by the writer")
            holding.set()
            assert over.wait(PATIENCE_S)

    def held_up(*arguments):
        go.set()
        assert holding.wait(PATIENCE_S)
        return real(*arguments)

    monkeypatch.setattr(compaction, step, held_up)
    writer = threading.Thread(target=beside)
    writer.start()
    with pytest.raises(StoreLockedError):
        store.compact()
    over.set()
    writer.join(PATIENCE_S)
    monkeypatch.undo()
    expected = {"k1": "newer", "k2": "by the writer", "k3": 3, "k4": 4}
    assert dict(store.items()) == expected
    assert store.verify(deep=True).ok
    assert store.compact().files_waiting == 0
    assert dict(store.items()) == expected
    assert not [row for row in rows(store).values() if row.state == JOINING]


# -- files that go ------------------------------------------------------------------------------


def test_a_file_goes_when_the_last_snapshot_that_may_look_into_it_ends(store, tmp_path):
    store.save("k", NOISE)
    store.save("dead", 1)
    store.save("dead", 2)
    path = segment_path(tmp_path / "store" / "log", 1)
    with store.snapshot() as view:
        assert view.load("dead") == 2
        report = store.compact()
        assert report.files_waiting == 1
        assert path.exists()
        store.save("k", 2)
        assert store.compact().files_waiting == 1  # what came after the snapshot it does not keep
        assert view.load("k") == NOISE
        assert dict(view.items()) == {"dead": 2, "k": NOISE}
        with store.snapshot() as later:
            assert later.load("k") == 2
            assert compaction.reclaim(store._engine) == 1
    assert path.exists()
    assert compaction.reclaim(store._engine) == 0
    assert not path.exists()
    assert sorted(list_files(store._engine.disk, path.parent)) == sorted(rows(store))


def test_nothing_is_kept_open_of_a_file_that_went(store):
    store.save("k", NOISE)
    store.save("k", 1)
    assert store.load("k") == 1
    assert 1 in store._engine.files.fds
    store.compact()
    assert 1 not in store._engine.files.fds
    held = [link.readlink() for link in Path("/proc/self/fd").glob("*") if link.is_symlink()]
    assert not [name for name in map(str, held) if str(store.path) in name and "deleted" in name]


def test_ids_are_not_used_twice(store):
    """Not even that of the newest file of all, a copy in which nothing is live any more."""
    seen = set()
    for round_ in range(6):
        store.save_many({f"k{number}": [round_, NOISE] for number in range(4)})
        file = seal(store)
        store.save("k0", round_)
        compact(store, file)
        (copy,) = set(copies(store)) - seen
        seen |= {copy}
        store.save_many({f"k{number}": round_ for number in range(4)})
        compact(store, copy)
        compaction.reclaim(store._engine)
        assert not seen & set(rows(store))


# -- what to compact ----------------------------------------------------------------------------


@pytest.fixture
def engine_with(store, monkeypatch):
    """An engine with these sealed files: entry bytes and dead bytes of each, by id."""

    def make(files, limit=1000, seqs=None):
        active = max(files) + 1
        made = {
            segment: SegmentRow(
                100, 100 + total, (seqs or {}).get(segment, segment), 9, total, dead, 1, LISTED
            )
            for segment, (total, dead) in files.items()
        }
        made[active] = SegmentRow(100, 100, 9, 9, 0, 0, 1, LISTED)
        meta = get_meta_of(store)._replace(segment=active)
        monkeypatch.setattr(choosing, "files_now", lambda _: (meta, made))
        monkeypatch.setattr(choosing, "WORTH_BYTES", 10)
        store._engine.segment_limit = limit
        return store._engine

    return make


def get_meta_of(store):
    with store._engine.index.reading() as txn:
        return get_meta(txn)


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ({1: (900, 0), 2: (900, 0)}, []),
        ({1: (900, 100), 2: (900, 200)}, []),
        ({1: (900, 450), 2: (900, 0)}, [1]),  # one file is half garbage
        ({1: (900, 449), 2: (900, 0)}, []),
        ({1: (900, 300), 2: (900, 300)}, [1]),  # a third of all; both do not fit into one
        ({1: (900, 299), 2: (900, 299)}, []),
        ({1: (900, 500), 2: (900, 900), 3: (900, 0)}, [2, 1]),  # the worst first
        ({1: (900, 500), 2: (900, 900), 3: (900, 149)}, [2, 1]),  # too little garbage in 3
        ({1: (600, 500), 2: (600, 600), 3: (600, 100)}, [2, 1, 3]),
        ({1: (0, 0), 2: (900, 0)}, [1]),  # nothing but framing
        ({1: (9, 9), 2: (900, 0)}, [1]),
        (dict.fromkeys(range(1, 8), (100, 0)), []),
        (dict.fromkeys(range(1, 9), (100, 0)), list(range(1, 9))),  # many small ones
        (dict.fromkeys(range(1, 9), (130, 0)), []),  # an eighth of a segment is not small
        (dict.fromkeys(range(1, 12), (120, 0)), list(range(1, 9))),  # as fit into one
    ],
)
def test_what_to_compact_next(engine_with, files, chosen):
    assert choose(engine_with(files)) == chosen


def test_little_garbage_is_not_worth_a_copy(engine_with, monkeypatch):
    engine = engine_with({1: (900, 500)})
    monkeypatch.setattr(choosing, "WORTH_BYTES", 501)
    assert choose(engine) == []
    monkeypatch.setattr(choosing, "WORTH_BYTES", 500)
    assert choose(engine) == [1]


def test_a_damaged_file_is_left_alone(engine_with):
    engine = engine_with({1: (900, 900), 2: (900, 500)})
    assert choose(engine) == [1, 2]
    assert choose(engine, {1}) == [2]


def test_not_too_many_at_once(engine_with):
    engine = engine_with(dict.fromkeys(range(1, 100), (1, 1)))
    assert len(choose(engine)) == choosing.SOURCES_MAX


def test_everything_with_garbage_in_the_order_of_its_judging(engine_with):
    files = {1: (60_000, 100), 2: (60_000, 0), 3: (100, 1), 4: (0, 0), 5: (100, 1)}
    engine = engine_with(files, 65536, {1: 7, 2: 1, 3: 8, 4: 3, 5: 5})
    assert everything(engine) == [[4, 5, 1, 3]]
    engine = engine_with(files | {3: (30_000, 1)}, 65536, {1: 7, 2: 1, 3: 8, 4: 3, 5: 5})
    assert everything(engine) == [[4, 5, 1], [3]]


def test_files_with_deletions_belong_to_everything(store):
    store.save("live", 1)
    store.save("k", 1)
    first = seal(store)
    assert everything(store._engine) == []
    store.delete("k")
    store.save("also live", 1)
    second = seal(store)
    store.save("live too", 1)
    seal(store)
    assert rows(store)[second].dead_bytes == 0
    assert everything(store._engine) == [[first, second]]


def test_small_files_are_joined(store):
    for number in range(10):
        store.save(f"k{number}", number)
        seal(store)
    chosen = choose(store._engine)
    assert chosen == list(range(1, 11))
    compact(store, *chosen)
    assert len(rows(store)) == 2
    assert choose(store._engine) == []
    assert len(store.load_many(f"k{number}" for number in range(10))) == 10


def test_the_report_of_a_compaction(store):
    store.save_many({f"k{number}": NOISE for number in range(5)})
    store.save_many({f"k{number}": NOISE + b"2" for number in range(5)})
    store.save("gone", 1)
    store.delete("gone")
    before = sum(segment.bytes for segment in store.stats().segments)
    report = store.compact()
    after = sum(segment.bytes for segment in store.stats().segments)
    assert report.files_compacted == 1
    assert (report.bytes_before, report.bytes_after) == (before, after)
    assert 5 * len(NOISE) < report.bytes_copied < 6 * len(NOISE)
    assert report.bytes_after - report.bytes_copied < 500
    assert report.deletions_dropped == 1
    assert report.files_waiting == 0
    again = store.compact()
    assert again.bytes_copied == 0
    assert again.bytes_after <= report.bytes_after
