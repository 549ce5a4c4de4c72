"""``repair`` gives up what cannot be read, keeps all the rest, and brings no older value back."""

import hashlib
import math
import shutil

import pytest

from kvsage import CorruptionError, LMDBStore, NotAStoreError, StoreLockedError
from kvsage.engine import compaction, repair
from kvsage.engine.pace import UNPACED
from kvsage.fs import POSIX, Disk
from kvsage.index.segments import get_floor
from kvsage.log.format import (
    BATCH_BYTES,
    ORIGIN,
    ORIGINS,
    PUT,
    RETIRE,
    STR,
    FileKind,
    LogEntry,
    decode_entry,
    decode_header,
    decode_identity,
    encode_entry,
    header_length,
    split_entries,
)
from kvsage.log.reader import SegmentReader
from kvsage.log.segment import inspect, segment_path

NEVER = {"upkeep_interval": math.inf}
SMALL = {"segment_bytes_max": 65536, "content_bytes_min": 4096, **NEVER}
# Text that does not compress away, so that a content is long enough to be hit in its middle.
TEXT = "".join(chr(48 + (n * n * 7919 + n // 3) % 75) for n in range(6000))
LOCKS = {"LOCK", "OPEN", "WRITE", "NEXT", "lock.mdb"}


def clock():
    return 1_000_000.0


@pytest.fixture
def store_path(tmp_path):
    """Three segments; most keys have an older value in an earlier one."""
    path = tmp_path / "template"
    with LMDBStore(path, clock=clock, **SMALL) as store:
        for generation in ("old", "new"):
            for number in range(6):
                store.save(f"k{number}", f"{generation} {number}")
            store.save("text", f"{generation} {TEXT}")
            store.save_many({f"m{number}": [generation, number] for number in range(4)})
            for number in range(18):
                store.save("filler", f"{generation} {number} " + "~" * 3500)
            store.save("gone", generation)
        store.delete("gone")
        store.save("expires", "soon", ttl=1000)
        store.save("last", 1)
    return path


def contents(path):
    """All that the store holds, which is sound."""
    with LMDBStore(path, clock=clock, **NEVER) as store:
        assert store.verify(deep=True).problems == ()
        return dict(store.items())


def frozen(path):
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in LOCKS
    }


def segments(path):
    return sorted((path / "log").glob("*.seg"))


def harm(file, offset, length=1):
    data = bytearray(file.read_bytes())
    for at in range(offset, min(offset + length, len(data))):
        data[at] ^= 0xA5
    file.write_bytes(data)


def untrust(path):
    (path / "INDEX").unlink()
    shutil.rmtree(path / "index")


def places(file, count):
    """Offsets all over a file: its header, then evenly through what it holds."""
    data = file.read_bytes()
    start = header_length(data)
    step = max(1, (len(data) - start) // count)
    heads = [0, 9, start - 1, start, start + 8, start + 20, start + BATCH_BYTES + 5]
    return sorted({*heads, *range(start, len(data), step)})


def healed(path, before, report):
    """What must hold after any repair; the keys that it cost."""
    after = contents(path)
    lost = before.keys() - after.keys()
    assert after == {key: value for key, value in before.items() if key not in lost}
    assert lost == set(report.keys_lost)
    with LMDBStore(path, clock=clock, **NEVER) as store:
        assert store.verify(deep=True).problems == ()
        assert not store.exists("gone")
        store.save("usable", 1)
        assert "expires" in lost or 0 < store.ttl("expires") <= 1000
    untrust(path)
    assert contents(path) == after | {"usable": 1}
    return lost


@pytest.mark.parametrize("which", [0, 1, -1], ids=["first", "middle", "last"])
def test_damage_anywhere_with_a_trusted_index(store_path, tmp_path, which):
    """The index knows the newest entry of each key: exactly what was hit is lost, and is named."""
    before = contents(store_path)
    file = segments(store_path)[which]
    for number, offset in enumerate(places(file, 12)):
        path = tmp_path / str(number)
        shutil.copytree(store_path, path)
        LMDBStore(path, clock=clock, **NEVER).close()  # a copy is trusted once it was opened
        harm(path / "log" / file.name, offset, 3)
        was = frozen(path)
        planned = LMDBStore.repair(path, dry_run=True, clock=clock)
        assert planned.dry_run
        assert frozen(path) == was
        report = LMDBStore.repair(path, clock=clock)
        assert set(report.keys_lost) == set(planned.keys_lost)
        lost = healed(path, before, report)
        assert len(lost) <= 4
        if report.saved_to is not None:
            (saved,) = [*(path / "lost+found").rglob(file.name)][:1]
            assert hashlib.sha256(saved.read_bytes()).hexdigest() == was[f"log/{file.name}"]
        shutil.rmtree(path)


@pytest.mark.parametrize("which", [0, 1, -1], ids=["first", "middle", "last"])
def test_damage_anywhere_without_an_index(store_path, tmp_path, which):
    before = contents(store_path)
    file = segments(store_path)[which]
    stale = 0
    for number, offset in enumerate(places(file, 12)):
        path = tmp_path / str(number)
        shutil.copytree(store_path, path)
        harm(path / "log" / file.name, offset)
        untrust(path)
        was = frozen(path)
        LMDBStore.repair(path, dry_run=True, clock=clock)
        assert frozen(path) == was
        report = LMDBStore.repair(path, clock=clock)
        after = contents(path)
        for key, value in after.items():
            # Without an index nobody can tell for sure which key a damaged entry was of; but what
            # the report names as lost must be away, and nothing may be made up.
            assert key not in report.keys_lost
            stale += value != before.get(key, value)
        with LMDBStore(path, clock=clock, **NEVER) as store:
            assert store.verify(deep=True).problems == ()
        shutil.rmtree(path)
    assert stale == 0


def test_a_single_flipped_byte_is_refused_before_and_gone_after(store_path):
    before = contents(store_path)
    file = segments(store_path)[0]
    harm(file, header_length(file.read_bytes()) + BATCH_BYTES + 10)
    untrust(store_path)
    with pytest.raises(CorruptionError):
        LMDBStore(store_path)
    report = LMDBStore.repair(store_path, clock=clock)
    assert report.problems
    assert report.rebuilt
    assert report.saved_to
    assert contents(store_path) == before  # what was hit there had been replaced since


def test_a_lost_newest_value_never_gives_way_to_an_older_one(tmp_path):
    path = tmp_path / "store"
    with LMDBStore(path, clock=clock, **NEVER) as store:
        store.save("k", "old")
        store.save("k", "new" * 20)
        store.save("other", 1)
    data = segments(path)[0].read_bytes()
    at = data.index(b"new" * 20)
    harm(segments(path)[0], at, 8)
    report = LMDBStore.repair(path, clock=clock)
    assert report.keys_lost == ("k",)
    assert contents(path) == {"other": 1}
    untrust(path)
    assert contents(path) == {"other": 1}


def test_a_lost_content_takes_all_that_hold_it(tmp_path):
    path = tmp_path / "store"
    with LMDBStore(path, clock=clock, **NEVER) as store:
        store.save("one", "old")
        store.save("one", TEXT)
        store.save("two", TEXT)
        store.save("other", TEXT + "!")
    harm(segments(path)[0], 400, 40)
    report = LMDBStore.repair(path, clock=clock)
    assert set(report.keys_lost) == {"one", "two"}
    assert contents(path) == {"other": TEXT + "!"}


def test_a_missing_segment(store_path):
    before = contents(store_path)
    segments(store_path)[0].unlink()
    untrust(store_path)
    with pytest.raises(CorruptionError):
        LMDBStore(store_path)
    LMDBStore.repair(store_path, clock=clock)
    after = contents(store_path)
    assert all(before[key] == value for key, value in after.items())
    assert after["last"] == 1


@pytest.mark.parametrize("known_by", ["the index", "INDEX"])
def test_a_missing_active_segment(store_path, known_by):
    """No header lists it; the index knows each key of it, INDEX at least that there was one."""
    before = contents(store_path)
    segments(store_path)[-1].unlink()
    if known_by == "INDEX":
        shutil.rmtree(store_path / "index")
    report = LMDBStore.repair(store_path, clock=clock)
    assert [problem.message for problem in report.problems] == [
        "a file of the log is missing or its header is damaged"
    ]
    after = contents(store_path)
    if known_by == "the index":
        assert after == {key: before[key] for key in before.keys() - set(report.keys_lost)}
    assert "last" not in after


def test_an_active_segment_of_which_nothing_checks(tmp_path):
    path = tmp_path / "store"
    with LMDBStore(path, clock=clock, **SMALL) as store:
        store.save("k", "old")
        store._engine.upkeep.compact(UNPACED)
        store.save("k", "new")
        store.save("other", 1)
    active = segments(path)[-1]
    header, found = batches(path, active)
    assert (header.segment, len(found)) == (2, 2)
    for offset in (20, *(batch.offset + 30 for batch in found)):
        harm(active, offset)
    report = LMDBStore.repair(path, clock=clock)
    assert [problem.segment for problem in report.problems] == [2, 2]
    assert contents(path) == {"k": "new", "other": 1}, "each entry checks by itself"


def test_a_sound_store_is_left_as_it_is(store_path):
    before = contents(store_path)
    report = LMDBStore.repair(store_path, clock=clock)
    assert report.problems == ()
    assert report.keys_lost == ()
    assert report.saved_to is None
    assert contents(store_path) == before
    assert not (store_path / "lost+found").exists()


def test_repairing_twice(store_path):
    harm(segments(store_path)[1], 5000, 10)
    LMDBStore.repair(store_path, clock=clock)
    after = contents(store_path)
    assert LMDBStore.repair(store_path, clock=clock).problems == ()
    assert contents(store_path) == after
    harm(segments(store_path)[1], 9000, 10)
    LMDBStore.repair(store_path, clock=clock)
    assert contents(store_path).items() <= after.items()


@pytest.mark.parametrize("kept", [0, 10, 47])
def test_a_damaged_or_missing_identity(store_path, kept):
    before = contents(store_path)
    data = (store_path / "KVSAGE").read_bytes()
    if kept:
        (store_path / "KVSAGE").write_bytes(data[:kept])
    else:
        (store_path / "KVSAGE").unlink()
    with pytest.raises(CorruptionError):
        LMDBStore(store_path)
    LMDBStore.repair(store_path, clock=clock)
    assert contents(store_path) == before


# -- compacted files ----------------------------------------------------------------------------


def files(path, pattern="*.[sc][ep][gy]"):
    return sorted((path / "log").glob(pattern))


def batches(path, file):
    """Header of a log file, and its batches."""
    data = file.read_bytes()
    header, chain = decode_header(data)
    disk = Disk()
    fd = disk.open(file)
    try:
        salt = decode_identity((path / "KVSAGE").read_bytes()).salt
        reader = SegmentReader(disk, fd, header.segment, salt)
        return header, list(reader.batches(header_length(data), chain, header.after_seq))
    finally:
        disk.close(fd)


def entries(path, file):
    """Every entry of a log file with its seq, which of its commit it was, and when that was."""
    header, found = batches(path, file)
    out = []
    for batch in found:
        framed = [piece for _, piece in split_entries(batch.body, batch.header.entries)]
        origins = [(number, batch.header.time_ms) for number in range(len(framed))]
        if header.kind == FileKind.COPY:
            first = decode_entry(framed.pop(0))
            assert first.kind == ORIGINS
            origins = list(ORIGIN.iter_unpack(first.value))
        for piece, origin in zip(framed, origins, strict=True):
            entry = decode_entry(piece)
            out.append((entry.seq, *origin, entry.kind, entry.key, entry.value))
    return out


def retire_batch(path):
    """The file that holds the last RETIRE, and its batch."""
    for file in reversed(files(path, "*.seg")):
        for batch in reversed(batches(path, file)[1]):
            if decode_entry(batch.body[: batch.header.length]) is not None:
                entry = decode_entry(batch.body)
                if entry.kind == RETIRE:
                    return file, batch
    raise AssertionError("no RETIRE")


def compact(path, **between):
    """Compact all that is sealed."""
    with LMDBStore(path, clock=clock, **SMALL) as store:
        assert store.compact().files_compacted


@pytest.fixture
def compacted_path(store_path):
    """All but the last commits lie in one copy."""
    compact(store_path)
    with LMDBStore(store_path, clock=clock, **SMALL) as store:
        store.save("after", 1)
        store.delete("m0")
    (copy,) = files(store_path, "*.cpy")
    assert len(files(store_path)) == 2
    assert len(entries(store_path, copy)) > 12
    return store_path


@pytest.mark.parametrize("trusted", [True, False])
def test_damage_anywhere_in_a_copy(compacted_path, tmp_path, trusted):
    before = contents(compacted_path)
    (file,) = files(compacted_path, "*.cpy")
    for number, offset in enumerate(places(file, 12)):
        path = tmp_path / str(number)
        shutil.copytree(compacted_path, path)
        contents(path)
        harm(path / "log" / file.name, offset, 3 if trusted else 1)
        if not trusted:
            untrust(path)
        report = LMDBStore.repair(path, clock=clock)
        assert report.problems
        after = contents(path)
        assert {key: before[key] for key in after} == after
        if trusted:
            assert healed(path, before, report) == set(report.keys_lost)
        else:
            assert set(report.keys_lost).isdisjoint(after)
        assert not (path / "log" / file.name).exists()
        shutil.rmtree(path)


def test_a_copy_that_repair_makes_keeps_where_its_entries_came_from(store_path):
    file = segments(store_path)[1]
    known = entries(store_path, file)
    header, found = batches(store_path, file)
    hit = next(batch for batch in found if batch.header.entries == 4)
    _, (second, _), *_ = split_entries(hit.body, 4)
    harm(file, hit.offset + BATCH_BYTES + second + 34, 2)
    LMDBStore.repair(store_path, clock=clock)
    (copy,) = files(store_path, "*.cpy")
    made, _ = batches(store_path, copy)
    assert made.judged_seq == header.after_seq, "deletions since then are needed"
    assert [listed.segment for listed in made.files] == [int(file.stem)]
    seq = hit.header.seq
    expected = [
        (its, n, 0 if its == seq else when, *rest)  # the damage may be in the time
        for its, n, when, *rest in known
        if (its, n) != (seq, 1)
    ]
    assert entries(store_path, copy) == expected
    # And once more, out of a copy: what can be read says the same again.
    harm(copy, copy.stat().st_size - 2, 2)
    LMDBStore.repair(store_path, clock=clock)
    (again,) = files(store_path, "*.cpy")
    assert entries(store_path, again) == expected[:-1]
    assert batches(store_path, again)[0].judged_seq == header.after_seq


def test_entries_behind_lost_bytes_are_counted_on_in_order(store_path):
    """Which one of its commit an entry was is unknown there; the order of the file is not."""
    file = segments(store_path)[1]
    hit = next(b for b in batches(store_path, file)[1] if b.header.entries == 4)
    places = [offset for offset, _ in split_entries(hit.body, 4)]
    harm(file, hit.offset + BATCH_BYTES + places[1] + 20, 12)  # its lengths, kind and flags
    LMDBStore.repair(store_path, clock=clock)
    (copy,) = files(store_path, "*.cpy")
    found = [
        (n, key) for seq, n, _, _, key, _ in entries(store_path, copy) if seq == hit.header.seq
    ]
    assert found == [(0, b"m0"), (1, b"m2"), (2, b"m3")]
    everything = [entry[:2] for entry in entries(store_path, copy)]
    assert everything == sorted(set(everything))


def test_two_damaged_batches_cost_two_entries(store_path):
    before = contents(store_path)
    file = segments(store_path)[-1]
    last = [batch for batch in batches(store_path, file)[1] if batch.header.entries == 1][-3:]
    harm(file, last[0].end - 4, 8)  # the end of one, and the checksum of the next
    report = LMDBStore.repair(store_path, clock=clock)
    assert len(report.problems) == 1
    assert len(healed(store_path, before, report)) <= 1


def test_a_value_that_holds_entries_is_never_taken_for_them(tmp_path):
    path = tmp_path / "store"
    old = encode_entry(LogEntry(2, 0, PUT, STR, b"k", b"made up"))
    with LMDBStore(path, clock=clock, **SMALL) as store:
        for number in range(4):
            store.save(f"n{number}", number)
        store.save("value", old * 3)
        store.save("last", 1)
    hit = batches(path, segments(path)[0])[1][4]
    harm(segments(path)[0], hit.offset + BATCH_BYTES + 24, 5)  # its lengths
    LMDBStore.repair(path, clock=clock)
    assert contents(path) == {"n0": 0, "n1": 1, "n2": 2, "n3": 3, "last": 1}


def test_a_deletion_is_kept_for_the_older_version_in_a_repaired_file(tmp_path):
    path = tmp_path / "store"
    with LMDBStore(path, clock=clock, **SMALL) as store:
        store.save("k", "old")
        store.save("hit", "x" * 100)
        for number in range(20):
            store.save("filler", f"{number}" + "~" * 3500)
        store.delete("k")
        for number in range(20):
            store.save("filler", f"{number}" + "~" * 3500)
    first, second, *_ = segments(path)
    data = first.read_bytes()
    harm(first, data.index(b"x" * 100), 4)
    LMDBStore.repair(path, clock=clock)
    with LMDBStore(path, clock=clock, **SMALL) as store:
        compaction.compact_files(store._engine, [int(second.stem)], UNPACED)
        assert store.verify(deep=True).problems == ()
    untrust(path)
    assert "k" not in contents(path)


def held_open(path, work):
    """Compact while a snapshot keeps the old files; then let the process end as if killed."""
    with LMDBStore(path, clock=clock, **SMALL) as store, store.snapshot() as view:
        view.load("last")
        work(store)
        kept = {file.name: file.read_bytes() for file in files(path)}
    for name, data in kept.items():
        (path / "log" / name).write_bytes(data)


def test_files_that_were_retired_do_not_count(store_path):
    before = contents(store_path)
    held_open(store_path, lambda store: store.compact())
    retired = segments(store_path)[:3]
    for file in retired:
        harm(file, 0, 200)
    report = LMDBStore.repair(store_path, clock=clock)
    assert report.problems == ()
    assert contents(store_path) == before
    assert not any(file.exists() for file in retired)


def test_what_a_copy_was_made_of_stands_for_it(store_path):
    before = contents(store_path)
    held_open(store_path, lambda store: store.compact())
    (copy,) = files(store_path, "*.cpy")
    for damage in (lambda: harm(copy, 3000, 50), copy.unlink):
        damage()
        (store_path / "INDEX").unlink(missing_ok=True)
        planned = LMDBStore.repair(store_path, dry_run=True, clock=clock)
        assert [problem.segment for problem in planned.problems] == [int(copy.stem)]
        assert "stands for it" in planned.problems[0].message
        assert planned.keys_lost == ()
    LMDBStore.repair(store_path, clock=clock)
    assert contents(store_path) == before


def test_a_copy_stands_for_missing_files_when_its_retire_is_lost(compacted_path):
    before = contents(compacted_path)
    file, batch = retire_batch(compacted_path)
    harm(file, batch.offset + BATCH_BYTES + 2, 30)
    untrust(compacted_path)
    with pytest.raises(CorruptionError):
        LMDBStore(compacted_path)
    report = LMDBStore.repair(compacted_path, clock=clock)
    assert report.keys_lost == ()
    assert any("stands for it" in problem.message for problem in report.problems)
    assert contents(compacted_path) == before
    with LMDBStore(compacted_path, clock=clock, **NEVER) as store:
        assert store.verify(deep=True).problems == ()


def test_a_log_whose_only_segment_lost_its_header(compacted_path):
    before = contents(compacted_path)
    (segment,) = segments(compacted_path)
    harm(segment, 20, 4)
    LMDBStore.repair(compacted_path, clock=clock)
    after = contents(compacted_path)
    assert after == before
    with LMDBStore(compacted_path, clock=clock, **NEVER) as store:
        assert store.verify(deep=True).problems == ()


class Killed(Exception):  # noqa: N818  # it is no error
    """Where a compaction or a repair ends."""


def left_joining(path, monkeypatch):
    """A copy that rows lead to already and no RETIRE names."""

    retire = compaction._retire

    def stop(engine, said, *rest):
        if said.copy:
            raise Killed
        retire(engine, said, *rest)  # files without anything live go first, without a copy

    with monkeypatch.context() as patched, LMDBStore(path, clock=clock, **SMALL) as store:
        patched.setattr(compaction, "_retire", stop)
        with pytest.raises(Killed):
            store.compact()
    (copy,) = files(path, "*.cpy")
    return copy


def test_a_joining_copy_is_ignored_and_removed(store_path, monkeypatch):
    before = contents(store_path)
    copy = left_joining(store_path, monkeypatch)
    report = LMDBStore.repair(store_path, clock=clock)
    assert report.problems == ()
    assert not copy.exists()
    assert contents(store_path) == before
    with LMDBStore(store_path, clock=clock, **NEVER) as store:
        assert store.verify(deep=True).problems == ()


def test_a_joining_copy_stands_for_what_it_was_made_of(store_path, monkeypatch):
    before = contents(store_path)
    copy = left_joining(store_path, monkeypatch)
    uuid = decode_identity((store_path / "KVSAGE").read_bytes()).uuid
    source = inspect(POSIX, int(copy.stem), copy, uuid).header.files[0].segment
    harm(segment_path(store_path / "log", source), 20_000, 3000)
    report = LMDBStore.repair(store_path, clock=clock)
    assert report.keys_lost == ()
    assert [problem.segment for problem in report.problems] == [source]
    assert copy.exists()
    assert contents(store_path) == before


def test_a_damaged_joining_copy_stands_for_nothing(store_path, monkeypatch):
    before = contents(store_path)
    copy = left_joining(store_path, monkeypatch)
    harm(copy, 2000, 30)
    harm(segments(store_path)[0], 3000, 30)
    report = LMDBStore.repair(store_path, clock=clock)
    assert not copy.exists()
    after = contents(store_path)
    assert after == {key: before[key] for key in before.keys() - set(report.keys_lost)}


def test_what_a_killed_repair_left_stands_for_nothing(tmp_path, monkeypatch):
    """It knows which keys it lost; a copy alone would bring their older values back."""
    path = tmp_path / "store"
    with LMDBStore(path, clock=clock, **SMALL) as store:
        store.save("k", "old")
        store.save("k", "new" * 20)
        for number in range(20):
            store.save("filler", f"{number} " + "~" * 3500)
    first, _ = segments(path)
    harm(first, first.read_bytes().index(b"new" * 20), 8)
    (path / "INDEX").unlink()

    def stop(_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(repair.Repair, "_remove_derived", stop)
        with pytest.raises(Killed):
            LMDBStore.repair(path, clock=clock)
    assert len(files(path, "*.cpy")) == 1
    report = LMDBStore.repair(path, clock=clock)
    assert report.keys_lost == ("k",)
    assert contents(path).keys() == {"filler"}


def test_a_deletion_that_was_lost_is_made_again(tmp_path):
    path = tmp_path / "store"
    with LMDBStore(path, clock=clock) as store:
        store.save("k", "old")
        store.delete("k")
        store.save("other", 1)
    file = segments(path)[0]
    hit = batches(path, file)[1][1]
    harm(file, hit.offset, BATCH_BYTES + 30)  # nobody can read even the key's name
    report = LMDBStore.repair(path, clock=clock)
    assert report.keys_lost == ()
    assert contents(path) == {"other": 1}
    untrust(path)
    assert contents(path) == {"other": 1}


def floor(path):
    with LMDBStore(path, clock=clock, **NEVER) as store, store._engine.index.reading() as txn:
        return get_floor(txn)


def test_the_floor_is_kept_and_rises_to_the_newest_commit_with_any_loss(compacted_path):
    known = floor(compacted_path)
    assert known > 0, "compaction has dropped a deletion"
    LMDBStore.repair(compacted_path, clock=clock)
    assert floor(compacted_path) == known
    with LMDBStore(compacted_path, clock=clock, **NEVER) as store:
        newest = store.stats().commits
    (copy,) = files(compacted_path, "*.cpy")
    harm(copy, copy.stat().st_size - 2, 1)  # one flipped byte, which costs one key at most
    LMDBStore.repair(compacted_path, clock=clock)
    assert floor(compacted_path) == newest
    header, _ = batches(compacted_path, segments(compacted_path)[-1])
    assert header.floor_seq == newest


def test_what_is_derived_and_what_was_never_finished_goes(store_path):
    with LMDBStore(store_path, clock=clock, **SMALL) as store:
        store._engine.upkeep.checkpoint()
    leftovers = [store_path / "index.checkpoint.tmp", store_path / "log" / "0000000077.cpy.tmp"]
    for file in leftovers:
        file.write_bytes(b"half")
    harm(segments(store_path)[0], 3000, 30)
    LMDBStore.repair(store_path, clock=clock)
    assert not (store_path / "index.checkpoint").exists()
    assert not any(file.exists() for file in leftovers)
    assert not files(store_path, "*77*")


OPEN = """
store = LMDBStore(path)
say("open")
hear()
store.close()
"""


def test_who_may_not_be_repaired(store_path, tmp_path, child):
    for place in (tmp_path / "nothing", tmp_path):
        with pytest.raises(NotAStoreError):
            LMDBStore.repair(place)
    with LMDBStore(store_path), pytest.raises(StoreLockedError):
        LMDBStore.repair(store_path)
    user = child(OPEN, store_path)
    assert user.line() == "open"
    with pytest.raises(StoreLockedError):
        LMDBStore.repair(store_path, dry_run=True)
    user.finish()
    assert LMDBStore.repair(store_path).problems == ()
