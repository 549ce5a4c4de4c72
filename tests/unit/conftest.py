"""Doubles of the disk for unit tests."""

import os

import pytest

from kvsage import serialization
from kvsage.errors import StoreFullError
from kvsage.fs import Disk


class RecordingDisk(Disk):
    """A disk that works, and remembers what was asked of it, by the names of the files."""

    def __init__(self):
        self.calls = []
        self._names = {}

    def _say(self, verb, *details):
        self.calls.append((verb, *details))

    def verbs(self):
        return [call[0] for call in self.calls]

    def open(self, path, *, write=False, create=False):
        fd = super().open(path, write=write, create=create)
        self._names[fd] = path.name
        return fd

    def write(self, fd, parts, offset):
        self._say("write", self._names.get(fd), sum(map(len, parts)), offset)
        super().write(fd, parts, offset)

    def truncate(self, fd, length):
        self._say("truncate", self._names.get(fd), length)
        super().truncate(fd, length)

    def sync(self, fd):
        self._say("sync", self._names.get(fd))
        super().sync(fd)

    def sync_data(self, fd):
        self._say("sync_data", self._names.get(fd))
        super().sync_data(fd)

    def rename(self, source, target):
        self._say("rename", source.name, target.name)
        super().rename(source, target)

    def sync_directory(self, path):
        self._say("sync_directory", path.name)
        super().sync_directory(path)


class FullDisk(RecordingDisk):
    """A disk on which files cannot grow past ``capacity`` bytes; what fits is written."""

    def __init__(self, capacity):
        super().__init__()
        self.capacity = capacity

    def write(self, fd, parts, offset):
        data = b"".join(parts)
        fits = max(0, self.capacity - offset)
        if fits:
            super().write(fd, [data[:fits]], offset)
        if len(data) > fits:
            self._say("full", self._names.get(fd))
            raise StoreFullError("no space left while writing the log: the double is full")


@pytest.fixture
def registry():
    """Forget what the test registers: the names of classes are the whole process's."""
    tables = (serialization._TYPE_OF_NAME, serialization._TYPE_OF_CLASS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture
def recording_disk():
    return RecordingDisk()


@pytest.fixture
def full_disk():
    """Makes a disk of so many bytes for each file."""
    return FullDisk


@pytest.fixture
def new_file(tmp_path):
    """Makes files with given bytes and opens them for writing; closes them in the end."""
    fds = []

    def make(data=b"", name="file", disk=None):
        path = tmp_path / name
        path.write_bytes(data)
        disk = disk or Disk()
        fd = disk.open(path, write=True)
        fds.append(fd)
        return fd

    yield make
    for fd in fds:
        os.close(fd)
