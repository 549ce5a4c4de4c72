"""``repair`` gives up what cannot be read, keeps all the rest, and brings no older value back."""

import hashlib
import shutil

import pytest

from kvsage import CorruptionError, LMDBStore, NotAStoreError, StoreLockedError
from kvsage.log.format import BATCH_BYTES, header_length

SMALL = {"segment_bytes_max": 65536, "content_bytes_min": 4096}
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
    with LMDBStore(path, clock=clock) as store:
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
    with LMDBStore(path, clock=clock) as store:
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
        contents(path)  # a copy is trusted once it was opened
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
        with LMDBStore(path, clock=clock) as store:
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
    with LMDBStore(path, clock=clock) as store:
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
    with LMDBStore(path, clock=clock) as store:
        store.save("one", "old")
        store.save("one", TEXT)
        store.save("two", TEXT)
        store.save("other", TEXT + "!")
    harm(segments(path)[0], 600, 40)
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
