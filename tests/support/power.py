"""A disk whose power can be cut: what was not flushed may be kept, lost or torn.

Files and names are separate, as on a disk: a file's bytes are safe after a flush of the file, a
name after a flush of its directory. The index and the lock files are not kept at all, since a power
cut makes them worthless.
"""

import os
import random
from pathlib import Path

from kvsage.fs import Disk

SECTOR = 512
FORGOTTEN = ("index", "index.new", "LOCK", "OPEN", "WRITE", "NEXT", "COMPACT")


class PowerCut(BaseException):
    """The power went; ``PowerDisk.image`` is what is left."""


class Platter:
    """The bytes of one file: those that are safe, and what was written since."""

    def __init__(self, safe=b""):
        self.safe = safe
        self.since = []  # (offset, bytes), or (length, None) where it was cut

    def after(self, chance):
        """What a cut leaves of it."""
        data = bytearray(self.safe)
        for offset, written in self.since:
            fate = chance.choice(("kept", "kept", "lost", "lost", "torn"))
            if fate == "lost":
                continue
            if written is None:
                del data[offset:]
                continue
            for start, piece in sectors(offset, written):
                if fate == "kept" or chance.random() < 0.5:
                    data.extend(bytes(max(0, start + len(piece) - len(data))))
                    data[start : start + len(piece)] = piece
        return bytes(data)


def sectors(offset, data):
    """The pieces of a write that each reach the disk whole or not at all."""
    start = 0
    while start < len(data):
        length = SECTOR - (offset + start) % SECTOR
        yield offset + start, data[start : start + length]
        start += length


class Unhurried(Disk):
    """A disk that flushes nothing, for stores whose files nobody looks at after a cut."""

    def sync(self, fd):
        pass

    def sync_data(self, fd):
        pass

    def sync_directory(self, path):
        pass


class PowerDisk(Disk):
    """The store below ``root``, and what a power cut would leave of it.

    ``left`` operations that change something are done; in the next one the power is cut. From then
    on everything happens to the files alone, which nobody looks at any more.
    """

    def __init__(self, root: Path, chance: random.Random):
        self.left = -1
        self.image = None
        self._root, self._chance = root, chance
        self._open = {}
        # By directory: the names as they are, those that are safe, and what happened since.
        self._names = {directory: {} for directory in (root, root / "log")}
        for directory, names in self._names.items():
            for path in directory.iterdir() if directory.is_dir() else ():
                if path.is_file() and path.name not in FORGOTTEN:
                    names[path.name] = Platter(path.read_bytes())
        self._safe = {directory: dict(names) for directory, names in self._names.items()}
        self._since = {directory: [] for directory in self._names}

    # -- the cut ----------------------------------------------------------------------------

    def cut(self):
        """What would be left now: bytes by path below the root."""
        chance, image, contents = self._chance, {}, {}
        for directory, safe in self._safe.items():
            names = dict(safe)
            since = self._since[directory]
            if chance.random() < 0.5:  # a journal keeps the order of what happens to names
                since = since[: chance.randrange(len(since) + 1)]
            else:
                since = [change for change in since if chance.random() < 0.5]
            for change in since:
                for name, platter in change:
                    names.pop(name, None)
                    if platter is not None:
                        names[name] = platter
            for name, platter in sorted(names.items()):
                if platter not in contents:
                    contents[platter] = platter.after(chance)
                image[(directory / name).relative_to(self._root)] = contents[platter]
        return image

    def _step(self):
        if self.left == 0:
            self.left = -1
            self.image = self.cut()
            raise PowerCut
        self.left -= self.left > 0

    def _platter(self, path):
        return self._names.get(path.parent, {}).get(path.name)

    def _change(self, directory, *change):
        if self.image is None and directory in self._names:
            names = self._names[directory]
            for name, platter in change:
                names.pop(name, None)
                if platter is not None:
                    names[name] = platter
            self._since[directory].append(change)
            self._step()

    # -- files ------------------------------------------------------------------------------

    def open(self, path, *, write=False, create=False):
        fd = super().open(path, write=write, create=create)
        if path.parent in self._names and path.name not in FORGOTTEN:
            platter = self._platter(path)
            if platter is None:
                platter = Platter()
                try:
                    self._change(path.parent, (path.name, platter))
                except PowerCut:
                    super().close(fd)
                    raise
            self._open[fd] = platter
        return fd

    def close(self, fd):
        self._open.pop(fd, None)
        super().close(fd)

    def write(self, fd, parts, offset):
        super().write(fd, parts, offset)
        if self.image is None and fd in self._open:
            self._open[fd].since.append((offset, b"".join(parts)))
            self._step()

    def truncate(self, fd, length):
        super().truncate(fd, length)
        if self.image is None and fd in self._open:
            self._open[fd].since.append((length, None))
            self._step()

    def sync(self, fd):
        if self.image is None and fd in self._open:
            self._step()
            # Read, since the index writes its copies past this class.
            self._open[fd].safe = os.pread(fd, os.fstat(fd).st_size, 0)
            self._open[fd].since.clear()

    def sync_data(self, fd):
        self.sync(fd)

    # -- names ------------------------------------------------------------------------------

    def sync_directory(self, path):
        if self.image is None and path in self._names:
            self._step()
            self._safe[path] = dict(self._names[path])
            self._since[path].clear()

    def rename(self, source, target):
        super().rename(source, target)
        platter = self._platter(source)
        if platter is not None:
            self._change(source.parent, (source.name, None), (target.name, platter))

    def unlink(self, path):
        super().unlink(path)
        if self._platter(path) is not None:
            self._change(path.parent, (path.name, None))


def put(image, root: Path):
    """Make the directory that a cut left."""
    (root / "log").mkdir(parents=True)
    for path, data in image.items():
        (root / path).write_bytes(data)
