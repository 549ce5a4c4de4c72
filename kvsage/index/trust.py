"""The file INDEX: may the index be trusted?

An index that was in use when power failed may hold anything and must never be handed to LMDB. It is
trusted when the very file that INDEX names (device and inode: a copied directory is another) was
closed clean, or was in use under the boot that still runs.
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64_intdigest

from kvsage.errors import StoreUnavailableError

if TYPE_CHECKING:
    from kvsage.fs import Disk

MAGIC = b"kvsindex"
TRUST = Struct("<8sHBx4x16s36sQQQQIIQQ")
SIZE = TRUST.size + 8
VERSION = 3  # of INDEX and of the rows of the index
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Trust(NamedTuple):
    """What INDEX says.

    Attributes:
        clean: whether the index was closed with nobody left, and flushed.
        uuid: of the store.
        boot: id of the boot under which it was last used; empty where the system has none.
        device: of the index's file.
        inode: of the index's file.
        size: of the index's file, when clean.
        epoch: of the index.
        segment: the log's active segment, when clean.
        offset: the log's end in it, when clean.
        seq: number of the last commit, when clean.
        chain: checksum of the last batch, when clean.
    """

    clean: bool
    uuid: bytes
    boot: bytes
    device: int
    inode: int
    size: int
    epoch: int
    segment: int
    offset: int
    seq: int
    chain: int


def boot_id() -> bytes:
    """What names the running boot; empty where the system has no such name."""
    try:
        return BOOT_ID.read_bytes().strip()[:36]
    except OSError:
        return b""


def encode_trust(trust: Trust) -> bytes:
    """The bytes of INDEX."""
    body = TRUST.pack(MAGIC, VERSION, trust.clean, *trust[1:])
    return body + xxh3_64_intdigest(body).to_bytes(8, "little")


def decode_trust(data: bytes) -> Trust | None:
    """What the bytes of INDEX say; None where they do not check."""
    if len(data) != SIZE:
        return None
    body = data[:-8]
    if xxh3_64_intdigest(body).to_bytes(8, "little") != data[-8:]:
        return None
    magic, version, clean, *rest = TRUST.unpack(body)
    if magic != MAGIC or version != VERSION:
        return None
    trust = Trust(bool(clean), *rest)
    return trust._replace(boot=trust.boot.rstrip(b"\0"))


def read_trust(disk: Disk, path: Path) -> Trust | None:
    """What INDEX says; None where it is missing or does not check."""
    try:
        return decode_trust(disk.read_file(path, SIZE + 1))
    except (FileNotFoundError, StoreUnavailableError):
        return None
