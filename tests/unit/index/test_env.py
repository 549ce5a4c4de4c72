"""The LMDB environment: errors of kvsage's own, a map that grows, readers of all processes."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import lmdb
import pytest

from kvsage.errors import (
    CorruptionError,
    KvsageError,
    StoreClosedError,
    StoreFullError,
    StoreLockedError,
    StoreUnavailableError,
)
from kvsage.index import env
from kvsage.index.env import Index, translate

PATIENCE_S = 60
ROOM = SimpleNamespace(f_bavail=1 << 30, f_frsize=4096)
NO_ROOM = SimpleNamespace(f_bavail=10, f_frsize=4096)


@pytest.fixture
def new_index(tmp_path):
    """Opens indexes in directories of their own; closes them in the end."""
    opened = []

    def open_(map_bytes=1 << 20, name="small"):
        (tmp_path / name).mkdir(exist_ok=True)
        opened.append(Index(tmp_path / name, map_bytes))
        return opened[-1]

    yield open_
    for index in opened:
        index.close()


@pytest.fixture
def new_process():
    """Starts programs that talk over pipes, each line in answered by a line out."""
    processes = []

    def start(program, path):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def ask(process, line=""):
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def active(index):
    """The readers that read; LMDB keeps a slot that was used once for the next time."""
    return [(pid, transaction) for pid, transaction in index.readers() if transaction is not None]


def fill(index, megabytes, start=0):
    """Values of a megabyte each, in one transaction."""
    with index.writing() as txn:
        for number in range(start, start + megabytes):
            txn.put(b"%d" % number, bytes(1 << 20), db=index.keydir)


# -- errors -------------------------------------------------------------------------------------


def disk_error(code):
    error = lmdb.DiskError(os.strerror(code)) if hasattr(lmdb, "DiskError") else lmdb.Error()
    error.code = code
    return error


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (lmdb.MapFullError("mdb_put"), StoreFullError, "address space"),
        (lmdb.ReadersFullError("begin"), StoreLockedError, "2048"),
        (lmdb.LockError("open"), StoreUnavailableError, "PID namespaces"),
        (lmdb.Error("commit: No space left on device"), StoreFullError, "no space left"),
        (disk_error(errno.ENOSPC), StoreFullError, "no space left"),
        (disk_error(errno.EDQUOT), StoreFullError, "no space left"),
        (lmdb.Error("commit: Input/output error"), StoreUnavailableError, "Input/output"),
        (lmdb.CorruptedError("page"), CorruptionError, "while writing"),
        (lmdb.PageNotFoundError("page"), CorruptionError, "while writing"),
        (lmdb.InvalidError("open"), CorruptionError, "repair"),
        (lmdb.BadTxnError("get"), StoreUnavailableError, "while writing"),
    ],
)
def test_every_error_of_lmdb_becomes_kvsages(tmp_path, monkeypatch, error, expected, words):
    monkeypatch.setattr(os, "statvfs", lambda _: ROOM)
    translated = translate(error, tmp_path, "writing")
    assert type(translated) is expected
    assert words in str(translated)


def test_on_a_full_disk_an_io_error_means_that(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: NO_ROOM)
    full = translate(lmdb.Error("commit: Input/output error"), tmp_path, "writing")
    assert type(full) is StoreFullError
    other = translate(lmdb.InvalidError("open"), tmp_path, "opening")
    assert type(other) is CorruptionError


@pytest.mark.parametrize(
    ("code", "expected"), [(errno.ENOSPC, StoreFullError), (errno.ENOENT, StoreUnavailableError)]
)
def test_where_even_the_space_cannot_be_asked_for(tmp_path, monkeypatch, code, expected):
    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "statvfs", fail)
    assert type(translate(lmdb.Error("Input/output error"), tmp_path, "x")) is expected


def write_and_fail(txn):
    txn.put(b"k", b"v")
    raise ZeroDivisionError


def test_errors_in_blocks_are_translated_and_keep_their_cause(index):
    with pytest.raises(StoreUnavailableError, match="reading") as raised, index.reading() as txn:
        txn.put(b"k", b"v")
    assert isinstance(raised.value.__cause__, lmdb.Error)
    with pytest.raises(StoreUnavailableError, match="writing") as raised, index.writing() as txn:
        txn.put(b"k" * 600, b"v")
    assert isinstance(raised.value.__cause__, lmdb.Error)


def test_other_errors_pass_through_and_nothing_is_kept(index):
    with pytest.raises(ZeroDivisionError), index.writing() as txn:
        write_and_fail(txn)
    with index.reading() as txn:
        assert txn.get(b"k") is None
    assert active(index) == []
    with index.writing() as txn:  # the write lock was given back
        txn.put(b"k", b"v")
    with index.reading() as txn:
        assert txn.get(b"k") == b"v"


def test_an_index_that_cannot_be_opened(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"\xee" * 8192)
    for _ in range(2):
        with pytest.raises(CorruptionError, match="opening") as raised:
            Index(tmp_path, 1 << 20)
        assert isinstance(raised.value.__cause__, lmdb.Error)


def test_an_opening_that_fails_halfway_lets_go(tmp_path, monkeypatch):
    (tmp_path / "index").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(env, "NAMES", (*env.NAMES, *(f"more{number}" for number in range(20))))
        patch.setattr(env, "len", lambda _: 1, raising=False)  # fewer databases than names
        with pytest.raises(StoreUnavailableError):
            Index(tmp_path / "index", 1 << 20)
    Index(tmp_path / "index", 1 << 20).close()  # LMDB refuses a second opening in one process


# -- opening ------------------------------------------------------------------------------------


def test_files_are_their_owners_alone_and_of_lmdb_0_9(index):
    for name in ("data.mdb", "lock.mdb"):
        assert (index.path / name).stat().st_mode & 0o777 == 0o600
    assert env.LIB_VERSION == 0


def test_where_address_space_is_short_less_is_reserved(tmp_path, monkeypatch):
    asked = []
    open_ = lmdb.open

    def scarce(path, *, map_size, **options):
        asked.append(map_size)
        if map_size > 1 << 21:
            raise lmdb.MemoryError("mmap") if len(asked) % 2 else MemoryError
        return open_(path, map_size=map_size, **options)

    monkeypatch.setattr(lmdb, "open", scarce)
    index = Index(tmp_path, 1 << 24)
    assert asked == [1 << 24, 1 << 23, 1 << 22, 1 << 21]
    index.close()


def test_where_there_is_no_address_space_at_all(tmp_path, monkeypatch):
    def none(*_, **__):
        raise lmdb.MemoryError("mmap")

    monkeypatch.setattr(lmdb, "open", none)
    with pytest.raises(StoreUnavailableError):
        Index(tmp_path, 1 << 24)


def test_a_closed_index_says_so(new_index):
    index = new_index()
    index.close()
    for begin in (index.begin, index.begin_read, index.begin_write):
        with pytest.raises(StoreClosedError):
            begin()
    with pytest.raises(StoreClosedError):
        index.begin(write=True)
    for look in (index.readers, index.last_transaction):
        with pytest.raises(KvsageError, match="closed"):
            look()


def test_what_was_written_is_there_after_opening_again(new_index):
    index = new_index()
    with index.writing() as txn:
        txn.put(b"k", b"v", db=index.keydir)
        txn.put(b"k", b"other", db=index.tombstones)
    index.sync()
    index.close()
    index = new_index()
    with index.reading() as txn:
        assert txn.get(b"k", db=index.keydir) == b"v"
        assert txn.get(b"k", db=index.tombstones) == b"other"
        assert txn.get(b"k", db=index.system) is None


# -- growth -------------------------------------------------------------------------------------


def test_a_full_map_grows(new_index):
    index = new_index(1 << 20)
    with pytest.raises(StoreFullError):
        fill(index, 3)
    with index.reading() as txn:
        assert txn.get(b"0", db=index.keydir) is None
    before = index.env.info()["map_size"]
    index.grow()
    assert index.env.info()["map_size"] == 2 * before
    index.grow()
    index.grow()
    fill(index, 3)
    with index.reading() as txn:
        assert txn.get(b"2", db=index.keydir) == bytes(1 << 20)


@pytest.mark.parametrize("error", [lmdb.Error("mmap"), MemoryError(), OverflowError()])
def test_growth_that_the_system_refuses(new_index, error):
    index = new_index()

    def refuse(_):
        raise error

    index.env = SimpleNamespace(
        set_mapsize=refuse, info=index.env.info, close=index.env.close, begin=index.env.begin
    )
    with pytest.raises(StoreFullError, match="address space") as raised:
        index.grow()
    assert raised.value.__cause__ is error


GROWER = """
import sys
from pathlib import Path
from kvsage.index.env import Index

index = Index(Path(sys.argv[1]), 1 << 20)
print("ready", flush=True)
for number, _ in enumerate(sys.stdin):
    for _ in range(3):
        index.grow()
    with index.writing() as txn:
        for part in range(4 << number):
            txn.put(b"%d-%d" % (number, part), bytes(1 << 20), db=index.keydir)
    print("grown", flush=True)
"""


@pytest.mark.parametrize("write", [False, True])
def test_a_map_that_another_process_has_grown_is_followed(new_index, new_process, write):
    index = new_index(1 << 20)
    other = new_process(GROWER, index.path)
    for number in range(2):
        assert ask(other) == "grown"
        txn = index.begin_write() if write else index.begin_read()
        assert txn.get(b"%d-3" % number, db=index.keydir) == bytes(1 << 20)
        txn.abort()
    with index.reading() as txn:
        assert txn.get(b"0-3", db=index.keydir) == bytes(1 << 20)
    assert index.env.info()["map_size"] > 1 << 20


def test_an_error_that_is_no_growth_is_not_followed(index):
    error = lmdb.BadTxnError("begin")
    with pytest.raises(StoreUnavailableError) as raised:
        index.begin_again(error)
    assert raised.value.__cause__ is error


def test_a_full_table_of_readers_is_looked_through_once_more(index):
    index.begin_again(lmdb.ReadersFullError("begin")).abort()


# -- readers ------------------------------------------------------------------------------------

READER = """
import sys
from pathlib import Path
from kvsage.index.env import Index

index = Index(Path(sys.argv[1]), 1 << 30)
txn = index.begin_read()
print("ready", flush=True)
sys.stdin.readline()
"""


def test_readers_of_this_process(index):
    assert active(index) == []
    with index.writing() as txn:
        txn.put(b"k", b"v")
    with index.reading():
        (reader,) = active(index)
        assert reader[0] == os.getpid()
        with index.writing() as txn:
            txn.put(b"k", b"w")
        assert active(index) == [reader]  # it still reads what was
    assert active(index) == []


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("(no active readers)\n", []),
        ("    pid     thread     txnid\n", []),
        (
            "    pid     thread     txnid\n      7 7f00aa 42\n    810 7f00ab -\n",
            [(7, 42), (810, None)],
        ),
    ],
)
def test_the_table_of_readers(index, monkeypatch, table, expected):
    with monkeypatch.context() as patch:
        patch.setattr(index, "env", SimpleNamespace(readers=lambda: table))
        assert index.readers() == expected


def test_readers_that_died_are_cleared_away(index, new_process):
    reader = new_process(READER, index.path)
    assert [pid for pid, _ in active(index)] == [reader.pid]
    assert index.reader_check() == 0
    reader.kill()
    reader.wait(PATIENCE_S)
    assert [pid for pid, _ in active(index)] == [reader.pid]
    assert index.reader_check() == 1
    assert active(index) == []


def test_opening_clears_them_away_too(new_index, new_process):
    index = new_index(1 << 30)
    keeper = new_process(READER, index.path)  # keeps the lock file from being made anew
    reader = new_process(READER, index.path)
    index.close()
    reader.kill()
    reader.wait(PATIENCE_S)
    index = new_index(1 << 30)
    assert [pid for pid, _ in active(index)] == [keeper.pid]


# -- forks --------------------------------------------------------------------------------------

FORKS = """
import os, sys
from pathlib import Path
from kvsage.errors import StoreClosedError
from kvsage.index.env import Index

index = Index(Path(sys.argv[1]), 1 << 30)
with index.writing() as txn:
    txn.put(b"k", b"parent")
reading = index.begin_read()
before = index.readers()
pid = os.fork()
if not pid:
    index.abandon()
    try:
        index.begin_read()
    except StoreClosedError:
        pass
    else:
        os._exit(1)
    again = Index(Path(sys.argv[1]), 1 << 30)
    with again.writing() as txn:
        assert txn.get(b"k") == b"parent"
        txn.put(b"k", b"child")
    again.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert index.readers() == before, "the child has wiped the parent's reader"
assert reading.get(b"k") == b"parent"
reading.abort()
with index.reading() as txn:
    print(txn.get(b"k").decode())
"""


def test_a_forked_child_lets_go_and_opens_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "child\n", "")
