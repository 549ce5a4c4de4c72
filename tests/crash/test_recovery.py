"""Opening what a crash, a copy or damage left: rebuilt in silence, or refused as it is."""

import contextlib
import hashlib
import os
import random
import secrets
import shutil
import signal
import struct

import pytest

from kvsage import (
    CorruptionError,
    FormatVersionError,
    KvsageError,
    LMDBStore,
    NotAStoreError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedFilesystemError,
)
from kvsage.fs import Disk, mounts
from kvsage.index import trust
from kvsage.index.segments import get_meta
from kvsage.log.format import (
    BATCH_BYTES,
    ENTRY_KIND_AT,
    NODE,
    PACK,
    PUT,
    decode_header,
    decode_identity,
    header_length,
    split_entries,
)
from kvsage.log.reader import SegmentReader

SMALL = {"segment_bytes_max": 65536}
NOISE = bytes(range(256)) * 100  # 25,600 bytes, three to a small segment
RAW = {"content_bytes_min": 1 << 20}


@pytest.fixture
def reboot(tmp_path, monkeypatch):
    """Let the machine have booted anew."""

    def boot():
        name = tmp_path / f"boot-{secrets.token_hex(4)}"
        name.write_text(f"{secrets.token_hex(18)}\n")
        monkeypatch.setattr(trust, "BOOT_ID", name)

    return boot


def leave(path, work, fork, **options):
    """Let a process work on the store and die without closing it."""

    def run(say):
        store = LMDBStore(path, **options)
        work(store, say)
        os._exit(0)

    return fork(run)[1]


def frozen(path):
    """Every file of the store but the lock files, byte for byte."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in {"lock.mdb", "LOCK", "OPEN", "WRITE", "NEXT"}
    }


def segments(path):
    return sorted((path / "log").glob("*.seg"))


def batches(path, file):
    """The batches of a segment, in order."""
    salt = decode_identity((path / "KVSAGE").read_bytes()).salt
    data = file.read_bytes()
    header, chain = decode_header(data)
    start = header_length(data)
    fd = os.open(file, os.O_RDONLY)
    try:
        reader = SegmentReader(Disk(), fd, header.segment, salt)
        return list(reader.batches(start, chain, header.after_seq))
    finally:
        os.close(fd)


def flip(file, offset, bit=0x10):
    with file.open("r+b") as opened:
        opened.seek(offset)
        (byte,) = opened.read(1)
        opened.seek(offset)
        opened.write(bytes([byte ^ bit]))


def untrust(path):
    (path / "INDEX").unlink(missing_ok=True)
    shutil.rmtree(path / "index", ignore_errors=True)


# -- when the index cannot be trusted -----------------------------------------------------------


def five_commits(store, say):
    for number in range(5):
        store.save(f"k{number}", number)
    store.save("text", "content " * 1000)
    store.save("gone", 1)
    store.delete("gone")
    say(store.entry("k4").version)


FIVE = {f"k{number}": number for number in range(5)} | {"text": "content " * 1000}


def test_after_a_reboot_the_index_is_built_anew_and_nothing_is_lost(path, fork, reboot):
    (token,) = leave(path, five_commits, fork)
    before = (path / "index" / "data.mdb").stat().st_ino
    reboot()
    with LMDBStore(path) as store:
        assert (path / "index" / "data.mdb").stat().st_ino != before
        assert dict(store.items()) == FIVE
        assert store.verify(deep=True).problems == ()
        # A version that was acknowledged stands for the same entry in every later timeline.
        assert store.entry("k4").version == token
        assert store.save("k4", "new", if_version=token)
        assert store.entry("k4").version.partition("@")[2] != token.partition("@")[2]
        assert len(store._engine.timelines) == 2


def test_within_one_boot_the_index_is_kept(path, fork):
    leave(path, five_commits, fork)
    before = (path / "index" / "data.mdb").stat().st_ino
    with LMDBStore(path) as store:
        assert (path / "index" / "data.mdb").stat().st_ino == before
        assert dict(store.items()) == FIVE
        assert len(store._engine.timelines) == 1


def test_versions_of_a_lost_tail_are_refused(path, fork, reboot):
    def work(store, say):
        store.save("k", "kept")
        say(store.entry("k").version)
        store.save("k", "lost with the power")
        say(store.entry("k").version)

    kept, lost = leave(path, work, fork, durability="relaxed", sync_interval=3600)
    (file,) = segments(path)
    last = batches(path, file)[-1]
    with file.open("r+b") as opened:  # a batch that never reached the disk
        opened.seek(last.offset)
        opened.write(bytes(last.end - last.offset))
    reboot()
    with LMDBStore(path) as store:
        assert store.load("k") == "kept"
        assert store.entry("k").version == kept
        store.save("k", "another")  # bears the same seq as the lost one, in a timeline of its own
        assert store.entry("k").version.partition("@")[0] == lost.partition("@")[0]
        assert not store.save("k", "blind", if_version=lost)
        assert store.load("k") == "another"


def test_a_lost_tail_in_a_timeline_of_its_own_is_refused_too(path, fork, reboot):
    """Two reboots, each with a lost tail: three histories issue the same seq."""
    tokens = []
    with LMDBStore(path) as store:
        store.save("k", 0)
    for number in range(3):

        def work(store, say, number=number):
            store.save("k", f"lost {number}")
            say(store.entry("k").version)

        tokens += leave(path, work, fork, durability="relaxed", sync_interval=3600)
        last = [(file, *batches(path, file)) for file in segments(path) if batches(path, file)][-1]
        with last[0].open("r+b") as opened:
            opened.seek(last[-1].offset)
            opened.write(bytes(last[-1].end - last[-1].offset))
        reboot()
        with LMDBStore(path) as store:
            assert store.load("k") == 0
    assert len(set(tokens)) == 3
    with LMDBStore(path) as store:
        store.save("k", "new")
        assert not any(store.save("k", "blind", if_version=token) for token in tokens)
        assert store.verify(deep=True).problems == ()


def missing_index(path):
    shutil.rmtree(path / "index")


def missing_data(path):
    (path / "index" / "data.mdb").unlink()


def truncated_index(path):
    data = path / "index" / "data.mdb"
    data.write_bytes(data.read_bytes()[:5000])


def garbage_index(path):
    data = path / "index" / "data.mdb"
    data.write_bytes(os.urandom(len(data.read_bytes())))


def empty_index(path):
    (path / "index" / "data.mdb").write_bytes(b"")


def missing_trust(path):
    (path / "INDEX").unlink()


def another_index(path):
    other = path.with_name("other")
    with LMDBStore(other) as store:
        store.save("foreign", 1)
    shutil.copy(other / "index" / "data.mdb", path / "index" / "data.mdb")


def leftover_build(path):
    shutil.copytree(path / "index", path / "index.new")
    (path / "INDEX").unlink()


HARM = [
    missing_index,
    missing_data,
    truncated_index,
    empty_index,
    garbage_index,
    missing_trust,
    another_index,
    leftover_build,
]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("rebooted", [False, True])
def test_a_harmed_index_is_built_anew(path, fork, reboot, harm, rebooted):
    # Garbage within one boot, in the very file that INDEX names, is beyond what an opener can see;
    # after a clean close its size is known too, and its end is compared with the log's.
    if harm is garbage_index or rebooted:
        leave(path, five_commits, fork)
        reboot()
    else:
        with LMDBStore(path) as store:
            five_commits(store, len)
    harm(path)
    for _ in range(2):
        with LMDBStore(path) as store:
            assert dict(store.items()) == FIVE
            assert not store.exists("gone")
            assert store.verify(deep=True).problems == ()


def test_a_copied_directory_is_a_store_of_its_own(path, fork):
    leave(path, five_commits, fork)
    copy = path.with_name("copy")
    shutil.copytree(path, copy)
    with LMDBStore(path) as original, LMDBStore(copy) as copied:
        original.save("only original", 1)
        copied.save("only copy", 1)
        assert dict(original.items()) == FIVE | {"only original": 1}
        assert dict(copied.items()) == FIVE | {"only copy": 1}
        # Both issued the same seq, and neither takes the other's version for its own.
        theirs, ours = original.entry("only original").version, copied.entry("only copy").version
        assert theirs.partition("@")[0] == ours.partition("@")[0]
        assert not copied.save("only copy", 2, if_version=theirs)
    for place, own in ((path, "only original"), (copy, "only copy")):
        with LMDBStore(place) as store:
            assert dict(store.items()) == FIVE | {own: 1}
            assert store.verify(deep=True).problems == ()


def epoch(store):
    """What tells one building of the index from another."""
    with store._engine.index.reading() as txn:
        return get_meta(txn).epoch


def test_each_byte_of_the_trust_file(path):
    with LMDBStore(path) as store:
        five_commits(store, len)
    good, epochs = (path / "INDEX").read_bytes(), set()
    for offset in range(len(good)):
        bad = bytearray((path / "INDEX").read_bytes())
        assert len(bad) == len(good)
        bad[offset] ^= 1 << offset % 8
        (path / "INDEX").write_bytes(bad)
        with LMDBStore(path) as store:
            epochs.add(epoch(store))
            assert dict(store.items()) == FIVE
    assert len(epochs) == len(good)  # each of them was distrusted
    with LMDBStore(path) as store:
        assert store.verify(deep=True).problems == ()


def test_deleted_and_expired_keys_stay_away(path):
    now = [1000.0]

    def clock():
        return now[0]

    with LMDBStore(path, clock=clock, **SMALL, **RAW) as store:
        store.save("deleted", "old")
        store.save("expired", "old")
        store.save("replaced", "old")
        store.save("noise", NOISE)
        store.save("noise", NOISE)
        store.save("noise", NOISE)  # their old versions now lie in a sealed segment
        store.delete("deleted")
        store.save("expired", "new", ttl=10)
        store.save("replaced", "new")
        store.save("reborn", 1)
        store.delete("reborn")
        store.save("reborn", 2)
    for _ in range(2):
        untrust(path)
        now[0] += 100
        with LMDBStore(path, clock=clock) as store:
            assert dict(store.items()) == {"replaced": "new", "reborn": 2, "noise": NOISE}
            assert store.load("expired") is None
            assert store.verify(deep=True).problems == ()


# -- torn tail or damage ------------------------------------------------------------------------


def unclean(path, fork, count=3, **options):
    """A store that a process left with ``count`` commits in its log, none of them vouched for."""

    def work(store, say):
        for number in range(count):
            store.save(f"k{number}", f"value {number}")

    leave(path, work, fork, durability="relaxed", sync_interval=3600, **options)


def test_a_last_batch_that_was_cut_anywhere_is_cut_in_silence(path, tmp_path, fork):
    unclean(path, fork)
    (file,) = segments(path)
    last = batches(path, file)[-1]
    good = file.read_bytes()
    untrust(path)
    for kept in range(last.end - last.offset):
        tail = (b"", bytes(200), os.urandom(200))[kept % 3]
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        (copy / "log" / file.name).write_bytes(good[: last.offset + kept] + tail)
        with LMDBStore(copy) as store:
            assert dict(store.items()) == {"k0": "value 0", "k1": "value 1"}, (kept, tail)
            assert store.verify(deep=True).problems == ()
        shutil.rmtree(copy)


def test_garbage_behind_the_last_batch_is_cut_in_silence(path, fork, reboot):
    unclean(path, fork)
    (file,) = segments(path)
    end = batches(path, file)[-1].end
    stale = file.read_bytes()[batches(path, file)[0].offset : end]
    for garbage in (os.urandom(500), stale, b"BVK1" * 50):
        with file.open("r+b") as opened:
            opened.seek(end)
            opened.write(garbage)
        reboot()
        untrust(path)
        with LMDBStore(path) as store:
            assert dict(store.items()) == {f"k{n}": f"value {n}" for n in range(3)}
            assert store.verify(deep=True).problems == ()


def refused(path, **where):
    """Opening raises CorruptionError and leaves every file as it was."""
    before = frozen(path)
    for _ in range(2):
        with pytest.raises(CorruptionError) as raised:
            LMDBStore(path)
        for name, value in where.items():
            assert getattr(raised.value, name) == value
        if where.get("segment"):
            assert f"segment {where['segment']}, offset" in str(raised.value)
        assert frozen(path) == before


def test_damage_before_the_mark_of_a_clean_close(path):
    with LMDBStore(path) as store:
        for number in range(4):
            store.save(f"k{number}", number)
    (file,) = segments(path)
    for batch in batches(path, file):
        flip(file, batch.offset + BATCH_BYTES + 5)
        untrust(path)
        refused(path, segment=1, offset=batch.offset)
        flip(file, batch.offset + BATCH_BYTES + 5)
    with LMDBStore(path) as store:
        assert store.count() == 4


def test_a_log_cut_before_the_mark_of_a_clean_close(path):
    """The mark in the file is gone with the tail; the one in INDEX is not."""
    with LMDBStore(path) as store:
        for number in range(4):
            store.save(f"k{number}", number)
    (file,) = segments(path)
    last = batches(path, file)[-1]
    os.truncate(file, last.offset)
    shutil.rmtree(path / "index")
    refused(path, segment=1, offset=last.offset)


def test_damage_in_a_segment_that_has_a_successor(path, fork):
    def work(store, say):
        for number in range(8):
            store.save(f"k{number}", [number, NOISE])

    leave(path, work, fork, **SMALL, **RAW)
    assert len(segments(path)) > 2
    untrust(path)
    for file in segments(path)[:-1]:
        number = int(file.stem)
        for batch in batches(path, file):
            flip(file, batch.offset + BATCH_BYTES + 100)
            refused(path, segment=number, offset=batch.offset)
            flip(file, batch.offset + BATCH_BYTES + 100)
        flip(file, 30)  # its header
        refused(path, segment=number)
        flip(file, 30)
    with LMDBStore(path) as store:
        assert store.count() == 8


def test_damage_before_a_later_flushed_batch(path, fork):
    def work(store, say):
        for number in range(4):
            store.save(f"k{number}", number)

    leave(path, work, fork)  # full: each batch says that all before it were flushed
    untrust(path)
    (file,) = segments(path)
    *vouched, last = batches(path, file)
    for batch in vouched:
        flip(file, batch.offset + 20)
        refused(path, segment=1, offset=batch.offset)
        flip(file, batch.offset + 20)
    flip(file, last.offset + 20)
    with LMDBStore(path) as store:  # nothing vouches for the last one
        assert dict(store.items()) == {"k0": 0, "k1": 1, "k2": 2}


def test_relaxed_batches_vouch_for_nothing(path, fork):
    unclean(path, fork, 4)
    untrust(path)
    (file,) = segments(path)
    flip(file, batches(path, file)[1].offset + 20)
    with LMDBStore(path) as store:  # unflushed writes reach the disk in any order
        assert dict(store.items()) == {"k0": "value 0"}
        assert store.verify(deep=True).problems == ()


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_missing_segment(path, which):
    with LMDBStore(path, **SMALL, **RAW) as store:
        for number in range(8):
            store.save(f"k{number}", [number, NOISE])
    missing = segments(path)[which]
    missing.rename(missing.with_suffix(".away"))
    untrust(path) if which != -1 else shutil.rmtree(path / "index")
    refused(path)
    missing.with_suffix(".away").rename(missing)
    with LMDBStore(path) as store:
        assert store.count() == 8


def test_a_flipped_byte_under_a_trusted_index(path):
    with LMDBStore(path, **SMALL, **RAW) as store:
        for number in range(8):
            store.save(f"k{number}", [number, NOISE])
        store.save_many({"one": "x" * 100, "two": "y" * 100})
    file = segments(path)[0]
    hit = batches(path, file)[0]
    flip(file, hit.offset + BATCH_BYTES + 1000)
    with LMDBStore(path) as store:
        for _ in range(2):
            with pytest.raises(CorruptionError) as raised:
                store.load("k0")
            assert raised.value.segment == 1
            assert raised.value.offset == hit.offset + BATCH_BYTES
        assert [store.load(f"k{number}")[0] for number in range(1, 8)] == list(range(1, 8))
        assert store.load_many(["one", "two"]) == {"one": "x" * 100, "two": "y" * 100}
        with pytest.raises(CorruptionError), store.snapshot() as view:
            view.load("k0")
        assert len(list(store.keys())) == 10
        (problem,) = store.verify().problems
        assert (problem.segment, problem.offset) == (1, hit.offset)
        # What is damaged can still be replaced and deleted.
        store.save("k0", "new")
        assert store.load("k0") == "new"
    with LMDBStore(path) as store:
        assert store.load("k0") == "new"


def test_a_damaged_content_hits_those_that_hold_it_alone(path):
    text = os.urandom(7000).hex()  # short enough to be kept in one piece
    with LMDBStore(path) as store:
        store.save("one", text)
        store.save("two", text)
        store.save("other", text + "!")
    (file,) = segments(path)
    flip(file, batches(path, file)[0].offset + BATCH_BYTES + 200)
    with LMDBStore(path) as store:
        for key in ("one", "two"):
            with pytest.raises(CorruptionError, match=f"'{key}'"):
                store.load(key)
        assert store.load("other") == text + "!"
        store.save("one", text)
        assert store.load("one") == text
        address = store.content.put(text)
        assert store.content.get(address) == text.encode()


def entries(path, file, kind):
    """Where the entries of one kind stand in a segment, and how long they are."""
    return [
        (batch.offset + BATCH_BYTES + offset, len(framed))
        for batch in batches(path, file)
        for offset, framed in split_entries(batch.body, batch.header.entries)
        if framed[ENTRY_KIND_AT] == kind
    ]


def readable(store, key, items):
    """Where the tens begin that can be read of a list."""
    found = []
    for start in range(0, len(items), 10):
        with contextlib.suppress(CorruptionError):
            assert store.load_range(key, start, start + 10) == items[start : start + 10]
            found.append(start)
    return found


@pytest.mark.parametrize("kind", [PACK, NODE, PUT])
@pytest.mark.parametrize("which", [0, -1])
def test_a_damaged_piece_hits_those_that_hold_it_alone(path, kind, which):
    texts = [random.Random(number).randbytes(40).hex() for number in range(400)]
    others = [random.Random(1000 + number).randbytes(40).hex() for number in range(400)]
    values = {"one": texts, "two": texts, "part": texts[:100], "other": others}
    with LMDBStore(path, content_bytes_min=64) as store:
        store.save("part", values["part"])
        store.save("one", values["one"])
        file = segments(path)[0]
        at, length = entries(path, file, kind)[which]
        store.save_many(values)
    flip(file, at + length // 2)
    hit = {
        (PACK, 0): {"one", "two", "part"},
        (PACK, -1): {"one", "two"},
        (NODE, 0): {"one", "two", "part"},
        (NODE, -1): {"one", "two"},
    }.get((kind, which), set())  # every PUT has a newer one
    with LMDBStore(path, content_bytes_min=64) as store:
        for key, value in values.items():
            if key in hit:
                with pytest.raises(CorruptionError, match=f"'{key}'") as caught:
                    store.load(key)
                assert (caught.value.segment, caught.value.offset) == (1, at)
            else:
                assert store.load(key) == value
        assert (0 in readable(store, "two", texts)) == (which == -1 or not hit)
        assert 5 < len(readable(store, "two", texts)) < 41 - bool(hit)
        assert [problem.segment for problem in store.verify().problems] == [1]
        store.save("one", texts)
        assert store.load("one") == texts
        assert store.append("one", "more") == 401
        assert store.load("one") == [*texts, "more"]
        assert len(readable(store, "two", texts)) < 41 - bool(hit)
        store.save_many({"two": texts, "part": texts[:100]})
        assert dict(store.items()) == values | {"one": [*texts, "more"]}


# -- KVSAGE, and directories that are no stores -------------------------------------------------


def test_each_byte_of_the_identity(path):
    with LMDBStore(path) as store:
        store.save("k", 1)
    good = (path / "KVSAGE").read_bytes()
    for offset in range(len(good)):
        for bit in (0, 7):
            bad = bytearray(good)
            bad[offset] ^= 1 << bit
            (path / "KVSAGE").write_bytes(bad)
            with pytest.raises((CorruptionError, FormatVersionError)):
                LMDBStore(path)
    for bad in (b"", good[:-1], good + b"x"):
        (path / "KVSAGE").write_bytes(bad)
        with pytest.raises(CorruptionError, match="KVSAGE"):
            LMDBStore(path)
    (path / "KVSAGE").write_bytes(good)
    with LMDBStore(path) as store:
        assert store.load("k") == 1


def test_a_missing_identity_never_lets_a_store_be_overwritten(path, fork):
    leave(path, five_commits, fork)
    identity = (path / "KVSAGE").read_bytes()
    (path / "KVSAGE").unlink()
    untrust(path)
    refused(path)
    with pytest.raises(KvsageError):
        LMDBStore(path, readonly=True)
    (path / "KVSAGE").write_bytes(identity)
    with LMDBStore(path) as store:
        assert dict(store.items()) == FIVE


def test_a_later_format(path):
    with LMDBStore(path) as store:
        store.save("k", 1)
    data = bytearray((path / "KVSAGE").read_bytes())
    struct.pack_into("<H", data, 8, 2)
    (path / "KVSAGE").write_bytes(data + b"more of whatever it holds")
    with pytest.raises(FormatVersionError, match="format 2"):
        LMDBStore(path)


def test_directories_that_are_no_stores(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (full, file):
        with pytest.raises(NotAStoreError, match=place.name):
            LMDBStore(place)
    assert [entry.name for entry in full.iterdir()] == ["thesis.txt"]
    for place in (tmp_path / "nothing", full):
        with pytest.raises(NotAStoreError):
            LMDBStore(place, readonly=True)
    assert not (tmp_path / "nothing").exists()


# -- locks, permissions, file systems -----------------------------------------------------------

HOLDING = """
import fcntl
file = open(os.path.join(path, "OPEN"), "rb")
fcntl.flock(file, fcntl.LOCK_EX)
say("held")
hear()
"""

USING = """
store = LMDBStore(path)
store.save("by other", 1)
say("open")
hear()
store.close()
"""


def test_while_another_process_rebuilds(path, child):
    with LMDBStore(path) as store:
        store.save("k", 1)
    holder = child(HOLDING, path)
    assert holder.line() == "held"
    with pytest.raises(StoreLockedError, match="opening or rebuilding"):
        LMDBStore(path, lock_timeout=0.1)
    holder.finish()
    with LMDBStore(path, lock_timeout=0.1) as store:
        assert store.load("k") == 1


def test_nobody_rebuilds_under_another_process(path, child):
    user = child(USING, path)
    assert user.line() == "open"
    (path / "INDEX").unlink()
    with pytest.raises(StoreLockedError, match="other processes"):
        LMDBStore(path, lock_timeout=0.1)
    user.finish()
    with LMDBStore(path) as store:
        assert store.load("by other") == 1


def test_a_killed_rebuilder_leaves_no_lock(path, child):
    with LMDBStore(path) as store:
        store.save("k", 1)
    holder = child(HOLDING, path)
    assert holder.line() == "held"
    holder.process.send_signal(signal.SIGKILL)
    holder.rest()
    with LMDBStore(path, lock_timeout=5) as store:
        assert store.load("k") == 1


def become_nobody():
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def reachable(tmp_path):
    """Let everybody pass through the directories above: only the store's own mode shall count."""
    for above in (tmp_path, *tmp_path.parents):
        if above.stat().st_uid == os.geteuid() and not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)


def forbidden(path, **options):
    become_nobody()
    with pytest.raises(StoreUnavailableError, match="denied"):
        LMDBStore(path, **options)


@pytest.mark.parametrize(
    ("mode", "readonly"), [(0o000, False), (0o500, False), (0o555, False), (0o000, True)]
)
def test_a_directory_without_permission(path, tmp_path, fork, mode, readonly):
    reachable(tmp_path)
    path.mkdir()
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    path.chmod(mode)
    assert fork(lambda _: forbidden(path, readonly=readonly)) == (0, [])
    path.chmod(0o700)


def test_a_store_of_somebody_else(path, tmp_path, fork):
    with LMDBStore(path) as store:
        store.save("k", 1)
    reachable(tmp_path)
    if os.geteuid() == 0:
        code, _ = fork(lambda _: forbidden(path))
    else:
        path.chmod(0o000)
        code, _ = fork(lambda _: forbidden(path))
        path.chmod(0o700)
    assert code == 0


def test_what_is_created_is_the_owners_alone(path):
    before = os.umask(0)
    try:
        with LMDBStore(path, **SMALL, **RAW) as store:
            for _ in range(4):
                store.save("k", NOISE)
    finally:
        os.umask(before)
    everything = [path, *path.rglob("*")]
    assert len(everything) > 8
    for entry in everything:
        mode = entry.stat().st_mode & 0o777
        assert mode == (0o700 if entry.is_dir() else 0o600), entry


def test_a_network_file_system_is_refused(path, monkeypatch, tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(f"36 35 98:0 / {tmp_path} rw,noatime shared:1 - nfs4 server:/export rw\n")
    monkeypatch.setattr(mounts, "MOUNTS", table)
    with pytest.raises(UnsupportedFilesystemError, match="nfs4"):
        LMDBStore(path)
    with LMDBStore(path, network_filesystem=True) as store:
        store.save("k", 1)
    table.write_text(f"36 35 98:0 / {tmp_path} rw,noatime shared:1 - overlay overlay rw\n")
    with LMDBStore(path) as store:
        assert store.load("k") == 1
