"""A disk that is really small: a tmpfs, which can be filled to the brim."""

import contextlib
import errno
import subprocess

import pytest


@contextlib.contextmanager
def small_tmpfs(directory, megabytes):
    """A file system of so many MB, mounted under ``directory``; skips where mounting is refused."""
    point = directory / "mount"
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(point)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


def fill(directory, leave=0):
    """Take all the space but so many bytes; the file to remove again."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        file.truncate(max(0, file.tell() - leave))
    return ballast
