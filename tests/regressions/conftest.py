"""A disk that forgets what was not flushed, and a boot that can be changed."""

import itertools
import os
from pathlib import Path

import pytest

from kvsage.fs import Disk
from kvsage.index import trust


class PowerDisk(Disk):
    """Remembers of each file what its last flush held, and of each directory its flushed names."""

    def __init__(self):
        self.held = {}
        self.listed = {}

    def sync(self, fd):
        super().sync(fd)
        self._hold(fd)

    def sync_data(self, fd):
        super().sync_data(fd)
        self._hold(fd)

    def _hold(self, fd):
        status = os.fstat(fd)
        self.held[status.st_ino] = os.pread(fd, status.st_size, 0)

    def sync_directory(self, path):
        super().sync_directory(path)
        self.listed[Path(path)] = {
            entry.name: entry.stat().st_ino for entry in path.iterdir() if entry.is_file()
        }

    def cut_power(self, store, target):
        """What is left of ``store`` after a power cut, under ``target``; its index never is."""
        for directory in (store, store / "log"):
            there = target / directory.relative_to(store)
            there.mkdir(mode=0o700)
            for name, inode in self.listed.get(directory, {}).items():
                (there / name).write_bytes(self.held.get(inode, b""))
        return target


@pytest.fixture
def power_disk():
    return PowerDisk()


@pytest.fixture
def reboot(monkeypatch, tmp_path):
    """Let the system have been started anew."""
    numbers = itertools.count()

    def boot():
        path = tmp_path / f"boot-{next(numbers)}"
        path.write_text(f"00000000-0000-0000-0000-{next(numbers):012}\n")
        monkeypatch.setattr(trust, "BOOT_ID", path)

    return boot
