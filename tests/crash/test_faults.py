"""A disk that fails at the n-th call: nothing of what failed ever appears, nothing else is lost.

Each test runs one small workload over and over; in the n-th run the n-th call of one operation
fails, until a run comes through whole. The caller gets kvsage's own error, whatever fails.
"""

import errno
import os
import random
import resource
import shutil
from itertools import count
from pathlib import Path

import pytest

from kvsage import (
    KvsageError,
    LMDBStore,
    PoisonedError,
    StoreFullError,
    StoreUnavailableError,
)
from kvsage.fs import Disk
from kvsage.fs.posix import translate

NOISE = os.urandom(30_000)
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}


class FailingDisk(Disk):
    """Fails the n-th call of one operation, once or from then on."""

    def __init__(self, name, number, code, *, half=False):
        self.left = number
        self.code = code
        self.half = half
        self.failed = 0
        self.broken = False
        setattr(self, name, self._failing(name, getattr(self, name)))

    def _failing(self, name, real):
        def call(*args, **kwargs):
            self.left -= 1
            if self.left and not self.broken:
                return real(*args, **kwargs)
            self.failed += 1
            if self.half:
                fd, parts, offset = args
                data = b"".join(parts)
                os.pwrite(fd, data[: (len(data) + 1) // 2], offset)
            raise translate(OSError(self.code, os.strerror(self.code)), name)

        return call


OPERATIONS = [
    ("write", "EIO", False),
    ("write", "ENOSPC", True),
    ("zero", "ENOSPC", False),
    ("sync_data", "EIO", False),
    ("sync", "EIO", False),
    ("truncate", "EIO", False),
    ("rename", "EIO", False),
    ("sync_directory", "EIO", False),
    ("replace", "ENOSPC", False),
]
FAILING = pytest.mark.parametrize(
    ("name", "code", "half"),
    OPERATIONS,
    ids=[f"{name}-{code}{'-half' if half else ''}" for name, code, half in OPERATIONS],
)


def steps(store):
    """The workload: one call each, with what it makes of the store's keys."""

    def transaction():
        with store.transaction() as tx:
            tx.save("one", 1)
            tx.save("two", 2)
            tx.delete("single")

    many = {f"many{n}": [n, random.Random(n).randbytes(len(NOISE))] for n in range(3)}
    items = [random.Random(n).randbytes(1500) for n in range(15)]
    text = "content " * 2000
    yield lambda: store.save("single", 1), lambda was: was | {"single": 1}
    yield (
        transaction,
        lambda was: (
            {k: v for k, v in was.items() if k != "single"}
            | {
                "one": 1,
                "two": 2,
            }
        ),
    )
    yield lambda: store.save_many(many), lambda was: was | many
    yield lambda: store.save("text", text), lambda was: was | {"text": text}
    for _ in range(2):
        yield (
            lambda: store.extend("list", items),
            lambda was: was | {"list": was.get("list", []) + items},
        )
    yield lambda: store.increment("n"), lambda was: was | {"n": was.get("n", 0) + 1}


def untrust(path):
    """Let the next opener build the index anew."""
    (path / "INDEX").unlink()
    shutil.rmtree(path / "index")


@FAILING
@pytest.mark.parametrize("durability", ["full", "relaxed"])
def test_each_call_of_a_commit(tmp_path, name, code, half, durability):
    options = {
        "durability": durability,
        "segment_bytes_max": 65536,
        "sync_interval": 3600,
        "content_bytes_min": 8192,
    }
    for number in count(1):
        path = tmp_path / str(number)
        with LMDBStore(path, **options) as store:
            store.save_many({"before": 0, "noise": NOISE})
        disk = FailingDisk(name, 0, ERRORS[code], half=half)
        store = LMDBStore(path, disk=disk, **options)
        disk.left = number
        expected = run_steps(store, disk, {"before": 0, "noise": NOISE})
        came_through = not disk.failed
        disk.left = 0
        close(store)
        for _ in range(2):
            with LMDBStore(path, **options) as again:
                assert dict(again.items()) == expected
                assert again.verify(deep=True).problems == ()
                assert again.save("usable", 1)
                assert again.delete("usable")
            untrust(path)
        if came_through:
            break
        shutil.rmtree(path)
    never_called = (name, durability) == ("sync_data", "relaxed")
    assert (number > 1) != never_called


def run_steps(store, disk, expected):
    """Run the workload; what the store must hold by what was acknowledged."""
    poisoned = False
    for work, made in steps(store):
        failed_before = disk.failed
        try:
            work()
        except PoisonedError:
            assert poisoned
        except (StoreFullError, StoreUnavailableError):
            assert disk.failed > failed_before, "it failed without a cause"
            poisoned = store._engine.poisoned
        else:
            assert not poisoned
            expected = made(expected)
        assert dict(store.items()) == expected
    return expected


def close(store):
    """A close whose flush may fail on a poisoned store; the store is closed either way."""
    try:
        store.close()
    except KvsageError:
        assert store._engine.poisoned


@FAILING
def test_each_call_of_an_opening(tmp_path, name, code, half):
    template = tmp_path / "template"
    with LMDBStore(template, segment_bytes_max=65536) as store:
        store.save_many({f"k{n}": n for n in range(10)})
        for _ in range(4):
            store.save("noise", NOISE)
    expected = {f"k{n}": n for n in range(10)} | {"noise": NOISE}
    for number in count(1):
        path = tmp_path / str(number)
        shutil.copytree(template, path)  # a copy is rebuilt when it is opened
        disk = FailingDisk(name, number, ERRORS[code], half=half)
        try:
            LMDBStore(path, disk=disk).close()
        except (StoreFullError, StoreUnavailableError):
            assert disk.failed
        with LMDBStore(path) as again:
            assert dict(again.items()) == expected
            assert again.verify(deep=True).problems == ()
        if not disk.failed:
            break
        shutil.rmtree(path)


@FAILING
def test_each_call_of_a_creation(tmp_path, name, code, half):
    for number in count(1):
        path = tmp_path / str(number)
        disk = FailingDisk(name, number, ERRORS[code], half=half)
        try:
            with LMDBStore(path, disk=disk) as store:
                store.save("k", 1)
        except (StoreFullError, StoreUnavailableError):
            assert disk.failed
        with LMDBStore(path) as again:
            assert dict(again.items()) in ({}, {"k": 1})
            again.save("k", 2)
            assert again.verify(deep=True).problems == ()
        if not disk.failed:
            break
        shutil.rmtree(path)


# -- a failed flush -----------------------------------------------------------------------------

OTHER = """
from kvsage import PoisonedError
store = LMDBStore(path)
say("ready")
while word := hear():
    try:
        store.save(word, 1)
        say("written")
    except PoisonedError:
        say("poisoned", store.load("acknowledged"))
store.close()
"""


def test_a_failed_flush_poisons_for_every_process_and_reopening_heals(path, child):
    disk = FailingDisk("sync_data", 0, errno.EIO)
    store = LMDBStore(path, disk=disk)
    store.save("acknowledged", 1)
    other = child(OTHER, path)
    assert other.line() == "ready"
    assert other.ask("from other") == "written"
    disk.broken = True
    with pytest.raises(StoreUnavailableError):
        store.save("lost", 1)
    disk.broken = False  # a later flush that succeeds proves nothing about the one that failed
    with pytest.raises(PoisonedError):
        store.save("later", 1)
    with pytest.raises(PoisonedError), store.transaction() as tx:
        tx.save("later", 1)
    assert other.ask("later") == "poisoned 1"
    assert dict(store.items()) == {"acknowledged": 1, "from other": 1}
    close(store)
    # As long as anybody has it open, nobody can heal it.
    with pytest.raises(PoisonedError, match="close it"):
        LMDBStore(path, lock_timeout=0.1)
    other.finish()
    with LMDBStore(path) as healed:
        assert dict(healed.items()) == {"acknowledged": 1, "from other": 1}
        healed.save("later", 1)
        assert healed.verify(deep=True).problems == ()
    untrust(path)
    with LMDBStore(path) as rebuilt:
        assert set(rebuilt.keys()) == {"acknowledged", "from other", "later"}


def test_unflushed_commits_are_written_anew_after_a_failed_flush(path):
    with LMDBStore(path) as store:
        store.save("flushed", 1)
    disk = FailingDisk("sync_data", 0, errno.EIO)
    store = LMDBStore(path, disk=disk, durability="relaxed", sync_interval=3600)
    expected = {"flushed": 1} | {f"k{n}": n for n in range(20)}
    for n in range(20):
        store.save(f"k{n}", n)
    disk.broken = True
    with pytest.raises(StoreUnavailableError):
        store.sync()
    with pytest.raises(PoisonedError):
        store.save("later", 1)
    assert dict(store.items()) == expected
    close(store)
    # The pages that failed to reach the disk may be gone from it whatever memory says; so what
    # stands behind the last good flush in that file must not be needed any more.
    with LMDBStore(path) as healed:
        assert dict(healed.items()) == expected
        kept, written_anew, *_ = healed.stats().segments
        assert kept.bytes < 200 < written_anew.bytes
        assert healed.verify(deep=True).problems == ()
    untrust(path)
    with LMDBStore(path) as rebuilt:
        assert dict(rebuilt.items()) == expected


def test_the_background_flush_poisons_as_well(path):
    disk = FailingDisk("sync_data", 0, errno.EIO)
    store = LMDBStore(path, disk=disk, durability="relaxed", sync_interval=0.01)
    store.save("k", 1)
    store.sync()
    disk.broken = True
    store.save("unflushed", 1)
    flusher = store._engine.flusher._thread
    flusher.join(60)
    assert not flusher.is_alive()
    with pytest.raises(PoisonedError):
        store.save("later", 1)
    disk.broken = False
    close(store)
    with LMDBStore(path) as healed:
        assert dict(healed.items()) == {"k": 1, "unflushed": 1}
        healed.save("later", 1)


def test_a_void_that_cannot_be_written_poisons(path):
    """Write and void both fail: the batch may stand in the log, and must not be built upon."""
    store = LMDBStore(path, disk=(disk := FailingDisk("write", 0, errno.EIO, half=True)))
    store.save("k", 1)
    disk.broken = True
    with pytest.raises(StoreUnavailableError):
        store.save("k", 2)
    disk.broken = False
    with pytest.raises(PoisonedError):
        store.save("k", 3)
    assert store.load("k") == 1
    close(store)
    with LMDBStore(path) as again:
        assert again.load("k") == 1
        again.save("k", 4)
        assert again.verify(deep=True).problems == ()


# -- short writes, no descriptors, no space -----------------------------------------------------


def test_short_writes_are_continued(path, monkeypatch):
    real = os.pwritev

    def short(fd, parts, offset):
        data = b"".join(parts)
        return real(fd, [data[: max(1, len(data) // 3)]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    with LMDBStore(path) as store:
        store.save_many({f"k{n}": NOISE for n in range(3)})
        store.save("k", 1)
        assert store.verify(deep=True).problems == ()
    with LMDBStore(path) as store:
        assert store.load_many(["k0", "k1", "k2", "k"]) == {
            "k0": NOISE,
            "k1": NOISE,
            "k2": NOISE,
            "k": 1,
        }


def descriptors():
    return sum(1 for _ in Path("/dev/fd").iterdir())


def test_no_descriptors_left(path, fork):
    with LMDBStore(path) as store:
        store.save("k", 1)

    def work(say):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = descriptors()
        for limit in range(3, 100):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                with LMDBStore(path) as store:
                    store.save("k", limit)
            except StoreUnavailableError:
                say(limit)
            else:
                break
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert descriptors() == before, "a failed opening left something open"

    code, refused = fork(work)
    assert code == 0
    assert 5 < len(refused) < 90
    with LMDBStore(path) as store:
        assert store.load("k") == int(refused[-1]) + 1


@pytest.mark.parametrize("durability", ["full", "relaxed"])
def test_a_file_size_limit(path, fork, durability):
    """A limit of the process: EFBIG, which is not a full disk but just as final."""
    with LMDBStore(path) as store:
        store.save("k", 1)

    def work(say):
        import signal  # noqa: PLC0415  # of the child alone

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = LMDBStore(path, durability=durability)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 30))
        kept = 0
        for number in range(100):
            try:
                store.save(f"k{number}", [number, os.urandom(len(NOISE))])
            except (StoreFullError, StoreUnavailableError):
                break
            kept += 1
        assert 5 < kept < 100
        assert store.count("k") == kept + 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        store.save("after", 1)
        say(kept)
        store.close()

    code, said = fork(work)
    assert code == 0
    with LMDBStore(path) as store:
        assert store.count("k") == int(said[0]) + 1
        assert store.load("after") == 1
        assert store.verify(deep=True).problems == ()
