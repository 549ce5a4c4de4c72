"""The door to the disk: whole writes, durable replacing, errors of kvsage's own."""

import errno
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsage.errors import KvsageError, StoreFullError, StoreUnavailableError
from kvsage.fs import POSIX, Disk
from kvsage.fs.posix import ZEROS


def contents(fd):
    return POSIX.read(fd, 1 << 24, 0)


# -- reading and writing ------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 4, 5, 9])
@pytest.mark.parametrize("later", [1, 3, 100])
def test_a_short_write_is_continued(new_file, monkeypatch, first, later):
    pwritev, pwrite = os.pwritev, os.pwrite

    def short_pwritev(fd, parts, offset):
        return pwritev(fd, [b"".join(parts)[:first]], offset)

    def short_pwrite(fd, data, offset):
        return pwrite(fd, data[:later], offset)

    monkeypatch.setattr(os, "pwritev", short_pwritev)
    monkeypatch.setattr(os, "pwrite", short_pwrite)
    fd = new_file(b"-" * 14)
    POSIX.write(fd, [b"head", bytearray(b"body"), memoryview(b"ta")], 2)
    assert contents(fd) == b"--headbodyta--"


def test_an_error_behind_a_short_write_is_raised(new_file, monkeypatch):
    pwritev = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: pwritev(fd, [parts[0][:2]], at))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreFullError, match="writing the log"):
        POSIX.write(new_file(), [b"data"], 0)


@pytest.mark.parametrize("most", [1, 3, 100])
def test_a_short_read_is_continued(new_file, monkeypatch, most):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, most), at))
    fd = new_file(b"0123456789")
    assert POSIX.read(fd, 5, 2) == b"23456"
    assert POSIX.read(fd, 50, 2) == b"23456789"


def test_reading_ends_where_the_file_ends(new_file):
    fd = new_file(b"0123456789")
    assert POSIX.read(fd, 4, 8) == b"89"
    assert POSIX.read(fd, 4, 10) == POSIX.read(fd, 4, 1000) == b""
    assert POSIX.read(fd, 0, 0) == b""


def test_zeros_are_written(new_file):
    fd = new_file(b"\xff" * 10)
    POSIX.zero(fd, 4, 3)
    assert contents(fd) == b"\xff" * 4 + bytes(3) + b"\xff" * 3
    POSIX.zero(fd, 10, 2 * len(ZEROS) + 5)
    assert contents(fd)[10:] == bytes(2 * len(ZEROS) + 5)
    status = os.fstat(fd)
    assert status.st_blocks * 512 >= status.st_size  # written, not a hole


def test_nothing_to_zero(new_file):
    fd = new_file(b"abc")
    POSIX.zero(fd, 1, 0)
    assert contents(fd) == b"abc"


def test_size_and_truncate(new_file):
    fd = new_file(b"0123456789")
    assert POSIX.size(fd) == 10
    POSIX.truncate(fd, 4)
    assert (POSIX.size(fd), contents(fd)) == (4, b"0123")


# -- what is made, and for whom -----------------------------------------------------------------


def test_files_and_directories_are_their_owners_alone(tmp_path):
    umask = os.umask(0)
    try:
        fd = POSIX.open(tmp_path / "file", write=True, create=True)
        POSIX.make_directory(tmp_path / "directory")
        POSIX.replace(tmp_path / "replaced", b"")
    finally:
        os.umask(umask)
    assert os.get_inheritable(fd) is False
    POSIX.close(fd)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"file": 0o600, "directory": 0o700, "replaced": 0o600}


def test_a_file_is_made_only_where_asked(tmp_path):
    with pytest.raises(FileNotFoundError):
        POSIX.open(tmp_path / "file", write=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_opened_for_reading_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"data")
    fd = POSIX.open(tmp_path / "file")
    with pytest.raises(StoreUnavailableError):
        POSIX.write(fd, [b"x"], 0)
    POSIX.close(fd)


def test_names(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / name).touch()
    assert POSIX.names(tmp_path) == ["a", "b", "c"]
    POSIX.link(tmp_path / "a", tmp_path / "d")
    assert (tmp_path / "d").stat().st_ino == (tmp_path / "a").stat().st_ino
    POSIX.rename(tmp_path / "b", tmp_path / "c")
    POSIX.unlink(tmp_path / "a")
    assert POSIX.names(tmp_path) == ["c", "d"]


def test_removing_what_is_gone_does_nothing(tmp_path):
    POSIX.unlink(tmp_path / "gone")
    POSIX.remove_directory(tmp_path / "gone")


def test_a_directory_that_holds_something_is_not_removed(tmp_path):
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "file").touch()
    with pytest.raises(StoreUnavailableError, match="removing"):
        POSIX.remove_directory(tmp_path / "directory")
    assert (tmp_path / "directory" / "file").exists()


def test_reading_a_small_file_has_a_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    assert POSIX.read_file(tmp_path / "file", 4) == b"0123"
    assert POSIX.read_file(tmp_path / "file", 11) == b"0123456789"
    with pytest.raises(FileNotFoundError):
        POSIX.read_file(tmp_path / "gone", 4)


# -- replacing ----------------------------------------------------------------------------------


def test_a_file_is_known_again_unless_it_was_written_to(new_file, tmp_path):
    fd, path = new_file(b"some bytes"), tmp_path / "file"
    before = POSIX.fingerprint(fd)
    POSIX.link(path, path.with_name("second"))
    assert POSIX.fingerprint(fd) == before
    assert before[:3] == (path.stat().st_dev, path.stat().st_ino, 10)
    os.utime(fd, ns=(0, 5))
    assert POSIX.fingerprint(fd) == (*before[:3], 5)
    POSIX.write(fd, (b"x",), 10)
    assert POSIX.fingerprint(fd)[2] == 11


def test_two_directories_exchange_their_names(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.mkdir()
        (path / f"was {path.name}").touch()
    if not POSIX.exchange(one, other):
        pytest.skip("this file system cannot")
    assert [path.name for path in one.iterdir()] == ["was other"]
    assert [path.name for path in other.iterdir()] == ["was one"]


def test_names_that_cannot_be_exchanged(tmp_path, monkeypatch):
    (tmp_path / "one").touch()
    with pytest.raises(StoreUnavailableError, match="exchanging"):
        POSIX.exchange(tmp_path / "one", tmp_path / "absent")
    monkeypatch.setattr("kvsage.fs.posix.RENAME_EXCHANGE", 1 << 20)  # a flag that nothing knows
    assert POSIX.exchange(tmp_path / "one", tmp_path / "absent") is False


def test_replacing_is_durable_before_the_name_and_the_name_too(tmp_path, recording_disk):
    (tmp_path / "file").write_bytes(b"before")
    recording_disk.replace(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"after"
    assert recording_disk.calls == [
        ("truncate", "file.tmp", 0),
        ("write", "file.tmp", 5, 0),
        ("sync", "file.tmp"),
        ("rename", "file.tmp", "file"),
        ("sync_directory", tmp_path.name),
    ]
    assert POSIX.names(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["truncate", "write", "sync", "rename"])
def test_a_replacing_that_fails_leaves_what_was_there(tmp_path, monkeypatch, step):
    (tmp_path / "file").write_bytes(b"before")
    disk = Disk()

    def fail(*_):
        raise StoreFullError("full")

    lowest = os.dup(0)
    os.close(lowest)
    monkeypatch.setattr(disk, step, fail)
    with pytest.raises(StoreFullError):
        disk.replace(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"before"
    again = os.dup(0)
    os.close(again)
    assert again == lowest  # the descriptor was given back
    monkeypatch.undo()
    disk.replace(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"after"


@given(st.binary(max_size=300))
def test_what_is_replaced_reads_back(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "replaced"
    POSIX.replace(path, data)
    assert POSIX.read_file(path, 1000) == data


# -- errors -------------------------------------------------------------------------------------

BY_DESCRIPTOR = [
    ("pread", lambda fd, _: POSIX.read(fd, 1, 0)),
    ("pwritev", lambda fd, _: POSIX.write(fd, [b"x", b"y"], 0)),
    ("pwrite", lambda fd, _: POSIX.zero(fd, 0, 1)),
    ("ftruncate", lambda fd, _: POSIX.truncate(fd, 0)),
    ("fdatasync", lambda fd, _: POSIX.sync_data(fd)),
    ("fsync", lambda fd, _: POSIX.sync(fd)),
    ("fstat", lambda fd, _: POSIX.size(fd)),
]
BY_NAME = [
    ("open", lambda _, path: POSIX.open(path)),
    ("open", lambda _, path: POSIX.sync_directory(path.parent)),
    ("fsync", lambda _, path: POSIX.sync_directory(path.parent)),
    ("mkdir", lambda _, path: POSIX.make_directory(path / "new")),
    ("replace", lambda _, path: POSIX.rename(path, path.with_name("new"))),
    ("link", lambda _, path: POSIX.link(path, path.with_name("new"))),
    ("unlink", lambda _, path: POSIX.unlink(path)),
    ("rmdir", lambda _, path: POSIX.remove_directory(path)),
    ("listdir scandir", lambda _, path: POSIX.names(path.parent)),
    ("open", lambda _, path: POSIX.read_file(path, 1)),
    ("open", lambda _, path: POSIX.replace(path, b"")),
]


@pytest.mark.parametrize(
    "translation",
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EIO, StoreUnavailableError),
        (errno.EACCES, StoreUnavailableError),
        (errno.EROFS, StoreUnavailableError),
    ],
)
@pytest.mark.parametrize("failing", BY_DESCRIPTOR + BY_NAME, ids=lambda failing: failing[0])
def test_every_error_of_the_system_leaves_as_kvsages(
    new_file, tmp_path, monkeypatch, failing, translation
):
    call, operation = failing
    code, expected = translation
    fd = new_file(b"data")

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    for name in call.split():
        monkeypatch.setattr(os, name, fail)
    with pytest.raises(KvsageError) as raised:
        operation(fd, tmp_path / "file")
    assert type(raised.value) is expected
    assert os.strerror(code) in str(raised.value)
    assert raised.value.__cause__.errno == code
    monkeypatch.undo()


@pytest.mark.parametrize(
    "operation",
    [
        POSIX.open,
        POSIX.names,
        POSIX.sync_directory,
        lambda path: POSIX.rename(path, path.with_name("new")),
        lambda path: POSIX.link(path, path.with_name("new")),
        lambda path: POSIX.make_directory(path / "new"),
    ],
)
def test_a_missing_file_is_told_apart(tmp_path, operation):
    with pytest.raises(FileNotFoundError) as raised:
        operation(tmp_path / "gone")
    assert not isinstance(raised.value, KvsageError)


def test_what_is_there_already_is_told_apart(tmp_path):
    (tmp_path / "a").touch()
    for make in (POSIX.make_directory, lambda path: POSIX.link(path, path)):
        with pytest.raises(FileExistsError):
            make(tmp_path / "a")
