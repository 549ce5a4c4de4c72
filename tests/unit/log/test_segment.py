"""Log files: their names, what inspecting them tells, and the descriptors kept open."""

import os

import pytest

from kvsage.errors import FormatVersionError
from kvsage.fs import POSIX
from kvsage.log.format import FileKind, ListedFile, SegmentHeader, Timeline, encode_header
from kvsage.log.segment import (
    SEGMENT_ID_MAX,
    LogFiles,
    inspect,
    list_files,
    read_header,
    segment_path,
)
from kvsage.log.writer import create_file

UUID = bytes(range(16))


def header(segment=1, kind=FileKind.SEGMENT, uuid=UUID, files=()):
    return SegmentHeader(kind, uuid, segment, 5, 9, 3, 0, 0, 1000, files, (Timeline(9, 0),))


def test_names(tmp_path):
    assert segment_path(tmp_path, 1) == tmp_path / "0000000001.seg"
    assert segment_path(tmp_path, SEGMENT_ID_MAX).name == "4294967295.seg"
    assert segment_path(tmp_path, 12, FileKind.COPY).name == "0000000012.cpy"


def test_files_are_listed_by_number_and_nothing_else_is(tmp_path):
    there = ["0000000010.seg", "0000000002.cpy", "0000000001.seg", "4294967295.seg"]
    strange = [
        "0000000003.seg.tmp",
        "0000000004.txt",
        "1.seg",
        "00000000005.seg",
        "4294967296.seg",
        "x0000000006.seg",
    ]
    for name in there + strange:
        (tmp_path / name).touch()
    assert list(list_files(POSIX, tmp_path).items()) == [
        (1, tmp_path / "0000000001.seg"),
        (2, tmp_path / "0000000002.cpy"),
        (10, tmp_path / "0000000010.seg"),
        (SEGMENT_ID_MAX, tmp_path / "4294967295.seg"),
    ]


def test_digits_of_other_scripts_are_no_number(tmp_path):
    (tmp_path / ("\u0660" * 9 + "\u0667.seg")).touch()  # a seven in Arabic-Indic digits
    assert list_files(POSIX, tmp_path) == {}


@pytest.mark.parametrize("kind", list(FileKind))
def test_what_is_made_is_found_again(tmp_path, kind):
    expected = header(7, kind, files=(ListedFile(3, 100), ListedFile(6, 200)))
    path, chain, end = create_file(POSIX, tmp_path, expected, b"batches")
    file = inspect(POSIX, 7, path, UUID)
    assert (file.segment, file.path, file.header) == (7, path, expected)
    assert file.chain == chain == int.from_bytes(encode_header(expected)[-8:], "little")
    assert file.start == len(encode_header(expected)) == end - len(b"batches")
    assert file.is_copy == (kind is FileKind.COPY)
    assert path.read_bytes() == encode_header(expected) + b"batches"


def test_a_header_of_another_store_number_or_kind_does_not_count(tmp_path):
    path = segment_path(tmp_path, 1)
    for wrong in (header(2), header(1, FileKind.COPY), header(uuid=bytes(16)), header(1, 9)):
        path.write_bytes(encode_header(wrong))
        file = inspect(POSIX, 1, path, UUID)
        assert (file.header, file.chain, file.start) == (None, 0, 0)
    path.write_bytes(encode_header(header()))
    assert inspect(POSIX, 1, path, UUID).header == header()


def test_a_cut_header_does_not_count(tmp_path):
    path = segment_path(tmp_path, 1)
    data = encode_header(header(files=(ListedFile(1, 2),) * 10))
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert inspect(POSIX, 1, path, UUID).header is None


def test_a_header_longer_than_one_read(tmp_path, new_file):
    files = tuple(ListedFile(segment, 1) for segment in range(1, 5000))
    fd = new_file(encode_header(header(5000, files=files)))
    found = read_header(POSIX, fd, UUID)
    assert found is not None
    assert found[0].files == files


def test_a_later_format_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("kvsage.log.format.FORMAT", 2)
    path, *_ = create_file(POSIX, tmp_path, header())
    monkeypatch.undo()
    with pytest.raises(FormatVersionError, match="format 2"):
        inspect(POSIX, 1, path, UUID)


def test_inspecting_closes_the_file(tmp_path):
    path, *_ = create_file(POSIX, tmp_path, header())
    lowest = os.dup(0)
    os.close(lowest)
    inspect(POSIX, 1, path, UUID)
    path.write_bytes(b"short")
    inspect(POSIX, 1, path, UUID)
    again = os.dup(0)
    os.close(again)
    assert again == lowest


# -- descriptors --------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    files = LogFiles(POSIX, tmp_path)
    yield files
    files.close()


def test_a_file_is_opened_once(tmp_path, files):
    create_file(POSIX, tmp_path, header(1))
    fd = files.fd(1)
    assert files.fd(1) == fd
    assert files.fds == {1: fd}
    POSIX.write(fd, [b"x"], 0)  # for writing as well
    assert os.get_inheritable(fd) is False


def test_a_copy_is_found_where_there_is_no_segment(tmp_path, files):
    path, *_ = create_file(POSIX, tmp_path, header(4, FileKind.COPY))
    assert os.fstat(files.fd(4)).st_ino == path.stat().st_ino


def test_a_missing_file_is_missing_until_it_is_there(tmp_path, files):
    with pytest.raises(FileNotFoundError):
        files.fd(1)
    assert files.fds == {}
    create_file(POSIX, tmp_path, header(1))
    assert files.fd(1) > 0


def test_closing_closes_all_and_may_be_repeated(tmp_path, files):
    for segment in (1, 2):
        create_file(POSIX, tmp_path, header(segment))
    fds = [files.fd(1), files.fd(2)]
    files.close()
    files.close()
    assert files.fds == {}
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
