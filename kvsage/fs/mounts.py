"""On what kind of file system does a path lie?"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from kvsage.errors import UnsupportedFilesystemError

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.ceph", "fuse.glusterfs", "fuse.rclone"),
    *("fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
    *("ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs"),
}
MOUNT_POINT = 4  # the field of a line that holds it
ESCAPE = re.compile(r"\\([0-7]{3})")


def filesystem_of(path: Path, mounts: str) -> str:
    """The type of the file system that ``path`` lies on, by a table in mountinfo's format."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) <= MOUNT_POINT or not after:
            continue
        point = ESCAPE.sub(lambda code: chr(int(code[1], 8)), fields[MOUNT_POINT])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two at one point the later one is on top
            best, kind = point, after.split(" ", 1)[0]
    return kind


def refuse_network_filesystem(path: Path, mounts: str | None = None) -> None:
    """Refuse where locks or memory maps do not hold between machines.

    Raises:
        UnsupportedFilesystemError: a network file system, or a platform without ``flock``.
    """
    if sys.platform == "win32":
        raise UnsupportedFilesystemError("kvsage's embedded store needs Linux (or macOS)")
    if mounts is None:
        try:
            mounts = MOUNTS.read_text(errors="surrogateescape")
        except OSError:
            return  # no such table on this platform
    kind = filesystem_of(path, mounts)
    if kind in NETWORK:
        raise UnsupportedFilesystemError(
            f"{path} lies on a network file system ({kind}), where locks and memory maps do not "
            "hold. Use a local disk; network_filesystem=True opens it at your own risk"
        )
