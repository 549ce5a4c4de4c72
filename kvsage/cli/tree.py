"""Files of a directory tree, in order, and the keys that stand for them.

The key of a file is its path below the directory that was named. A path is bytes and a key is
text, so bytes that are not UTF-8 become ``%`` and two capital hex digits, and a ``%`` becomes
``%25`` where it could be taken for such an escape. Every path has one key, no two share one, and a
path with neither keeps its look.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ESCAPE = re.compile(rb"%(?=25|[89A-F][0-9A-F])")
ESCAPED = re.compile(rb"%(25|[89A-F][0-9A-F])")

READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

READ_BYTES_LEAST = 64 * 1024  # for what grew, or says 0 and holds more


# -- names --------------------------------------------------------------------------------------


def key_of(path: str) -> str:
    """The key that stands for a path as the system gives it (surrogates for foreign bytes)."""
    guarded = ESCAPE.sub(b"%25", os.fsencode(path))
    return "".join(
        f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char
        for char in guarded.decode("utf-8", "surrogateescape")
    )


def path_of(key: str) -> str:
    """The path that a key stands for: the way back from ``key_of``."""
    data = ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), key.encode())
    return os.fsdecode(data)


# -- which files --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which files of a tree are meant.

    A pattern is compared with the name of a file and with its whole path below the directory that
    was named; ``*`` matches ``/`` too.

    Attributes:
        include: only files that match one of these; all where there is none.
        exclude: no files and no directories that match one of these.
        avoid: device and inode of a directory not to enter, as the store's own.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    avoid: tuple[int, int] | None = None

    def takes(self, name: str, path: str) -> bool:
        """Whether a file is meant."""
        wanted = not self.include or _matches(self.include, name, path)
        return wanted and self.enters(name, path)

    def enters(self, name: str, path: str) -> bool:
        """Whether a directory is looked into."""
        return not _matches(self.exclude, name, path)


def _matches(patterns: tuple[str, ...], name: str, path: str) -> bool:
    return any(fnmatchcase(name, each) or fnmatchcase(path, each) for each in patterns)


@dataclass(frozen=True, slots=True)
class File:
    """A file to take: where to read it, its path below the root, and its size in bytes."""

    source: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is not taken: where it is, why, and whether that is a failure or a rule."""

    source: str
    why: str
    failed: bool


def walk(root: str, selection: Selection) -> Iterator[File | LeftOut]:
    """Go through a file or a directory tree in the order of names.

    Symbolic links: ``root`` may be one; below it, a link to a file of the same tree is taken as
    that file, and no other is followed, so nothing outside comes in and nothing is walked twice.
    """
    try:
        found = Path(root).stat()
    except OSError as error:
        yield _failed(root, error)
        return
    if stat.S_ISDIR(found.st_mode):
        yield from _Walk(root, selection).below(found)
    elif stat.S_ISREG(found.st_mode):
        source = Path(root)
        yield File(os.path.realpath(root), source.name, found.st_size)
    else:
        yield LeftOut(root, "neither a file nor a directory", failed=True)


class _Walk:
    """One directory tree on its way through ``walk``."""

    def __init__(self, root: str, selection: Selection) -> None:
        self.root = root
        self.real = Path(os.path.realpath(root))  # resolve() raises on a loop of links
        self.below_root = len(root) + (not root.endswith("/"))
        self.selection = selection

    def below(self, root: os.stat_result) -> Iterator[File | LeftOut]:
        if self._avoided(root):
            yield LeftOut(self.root, "the store itself", failed=False)
            return
        levels: list[Iterator[os.DirEntry[str]]] = [iter(())]
        try:
            levels.append(_listed(self.root))
        except OSError as error:
            yield _failed(self.root, error)
        # A stack and no recursion: a tree may be deeper than Python's own stack.
        while levels:
            entry = next(levels[-1], None)
            if entry is None:
                levels.pop()
                continue
            try:
                found = self._judge(entry, levels)
            except OSError as error:
                found = _failed(entry.path, error)
            if found is not None:
                yield found

    def _judge(
        self, entry: os.DirEntry[str], levels: list[Iterator[os.DirEntry[str]]]
    ) -> File | LeftOut | None:
        path = entry.path[self.below_root :]
        if entry.is_dir(follow_symlinks=False):
            if not self.selection.enters(entry.name, path):
                return None
            if self._avoided(entry.stat(follow_symlinks=False)):
                return LeftOut(entry.path, "the store itself", failed=False)
            levels.append(_listed(entry.path))
            return None
        return self._file(entry, path) if self.selection.takes(entry.name, path) else None

    def _file(self, entry: os.DirEntry[str], path: str) -> File | LeftOut:
        if entry.is_symlink():
            return self._linked(entry.path, path)
        if not entry.is_file(follow_symlinks=False):
            return LeftOut(entry.path, "not a regular file", failed=False)
        return File(entry.path, path, entry.stat(follow_symlinks=False).st_size)

    def _linked(self, source: str, path: str) -> File | LeftOut:
        target = Path(os.path.realpath(source))
        if target.is_relative_to(self.real) and target.is_file():
            return File(str(target), path, target.stat().st_size)
        return LeftOut(
            source, "a link to a directory, out of the tree, or to nothing", failed=False
        )

    def _avoided(self, found: os.stat_result) -> bool:
        return (found.st_dev, found.st_ino) == self.selection.avoid


def _listed(directory: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return iter(sorted(entries, key=lambda entry: os.fsencode(entry.name)))


def _failed(source: str, error: OSError) -> LeftOut:
    return LeftOut(source, error.strerror or str(error), failed=True)


# -- reading ------------------------------------------------------------------------------------


def read(file: File, limit: int) -> bytes | None:
    """The bytes of a file, or None when there are more than ``limit``.

    Raises:
        OSError: it cannot be read, or has been replaced by something else since it was found.
    """
    # Not blocking: what was a file a moment ago may be a pipe without a writer now.
    handle = os.open(file.source, READ_FLAGS)
    with os.fdopen(handle, "rb", buffering=0) as opened:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(None, "no longer a regular file")
        # Read to the end and not to the size: it may grow, and some files say 0 and hold more.
        parts: list[bytes] = []
        total = 0
        while part := opened.read(max(file.size - total + 1, READ_BYTES_LEAST)):
            total += len(part)
            if total > limit:
                return None
            parts.append(part)
    return b"".join(parts)
