"""What a directory of backups says in JSON, bytes in and bytes out. ``docs/format.md`` draws it.

Rules:

- The checksum stands first and covers the exact bytes behind it, so nothing is parsed that was not
  written so.
- No name is taken from a manifest: files are named by the numbers that it holds.
- Every number has a bound, and every field its type; anything else is damage.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from xxhash import xxh3_64_intdigest

from kvsage.errors import BackupError, CorruptionError, FormatVersionError
from kvsage.log.format import (
    HEADER,
    IDENTITY,
    LISTED_MAX,
    FileKind,
    Identity,
    decode_identity,
    encode_identity,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1
MANIFEST_BYTES_MAX = 64 << 20
POOL_BYTES_MAX = 4096  # of KVSAGE-BACKUPS
NUMBER_MAX = 10**15
CREATED_MS_MAX = 253_402_300_799_999  # the end of the year 9999
U32_MAX = (1 << 32) - 1
U64_MAX = (1 << 64) - 1
SIZE_MAX = (1 << 63) - 1
FINGERPRINT_NUMBERS = 4

NAME = re.compile(r"([0-9]{8,16})-[0-9]{8}T[0-9]{6}Z")
HEX = re.compile(r"[0-9a-f]+")
KINDS = {FileKind.SEGMENT: "seg", FileKind.COPY: "cpy"}


class TakenFile(NamedTuple):
    """A log file in a backup.

    Attributes:
        segment: its id.
        kind: segment or copy.
        nonce: of its header.
        end: where its batches end; what lies behind does not count.
        checksum: xxh3_64 of its bytes up to there.
        source: device, inode, bytes and modification time (ns) of the store's file when it was
            read; a file that still has these is not read again.
    """

    segment: int
    kind: FileKind
    nonce: int
    end: int
    checksum: int
    source: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """What it is called in the pool."""
        place = f"{self.segment:010d}-{self.nonce:016x}-{self.end:010d}"
        return f"{place}-{self.checksum:016x}.{KINDS[self.kind]}"

    @property
    def place(self) -> tuple[int, FileKind, int]:
        """Id, kind and end."""
        return self.segment, self.kind, self.end

    @property
    def bytes(self) -> int:
        """How many of its bytes a restore takes."""
        return self.end


class TakenCheckpoint(NamedTuple):
    """The checkpoint in a backup.

    Attributes:
        seq: number of the last commit that it knows.
        bytes: of the file.
        checksum: xxh3_64 of the file.
        source: as that of a log file.
    """

    seq: int
    bytes: int
    checksum: int
    source: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """What it is called in the pool."""
        return f"{self.seq:020d}-{self.checksum:016x}.checkpoint"


POOL_NAME = re.compile(
    r"[0-9]{10}-[0-9a-f]{16}-[0-9]{10}-[0-9a-f]{16}\.(seg|cpy)|[0-9]{20}-[0-9a-f]{16}\.checkpoint"
)


class Manifest(NamedTuple):
    """One backup.

    Attributes:
        number: its place among the backups of its directory; never used twice.
        created_ms: when it was begun.
        identity: the store's.
        kvsage: version of the program that made it.
        timeline: in which commits were numbered.
        seq: number of the last commit in it.
        segment: id of the segment that was active.
        chain: checksum of the last batch.
        files: the log, in the order of the ids.
        checkpoint: the store's own, of that moment or before; None where it had none.
    """

    number: int
    created_ms: int
    identity: Identity
    kvsage: str
    timeline: int
    seq: int
    segment: int
    chain: int
    files: tuple[TakenFile, ...]
    checkpoint: TakenCheckpoint | None

    @property
    def name(self) -> str:
        """Number and instant."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.created_ms // 1000))
        return f"{self.number:08d}-{stamp}"

    @property
    def pool_names(self) -> list[str]:
        """The names of all its files in the pool."""
        checkpoint = () if self.checkpoint is None else (self.checkpoint.name,)
        return [*(file.name for file in self.files), *checkpoint]

    @property
    def bytes(self) -> int:
        """How many bytes a restore takes."""
        return sum(file.end for file in self.files) + (
            self.checkpoint.bytes if self.checkpoint else 0
        )


# -- the envelope -------------------------------------------------------------------------------


def _seal(kind: str, value: Mapping[str, Any]) -> bytes:
    body = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()
    return b'{"checksum":"%016x","%s":%s}\n' % (xxh3_64_intdigest(body), kind.encode(), body)


def _unseal(kind: str, data: bytes, size_max: int) -> dict[str, Any]:
    """What a sealed value holds.

    Raises:
        ValueError: it is none.
    """
    head = rb'\{"checksum":"([0-9a-f]{16})","%s":' % kind.encode()
    match = re.match(head, data)
    if match is None or len(data) > size_max or not data.endswith(b"}\n"):
        raise ValueError("it does not begin and end as one")
    body = data[match.end() : -2]
    if xxh3_64_intdigest(body) != int(match[1], 16):
        raise ValueError("its checksum does not match")
    try:
        value = json.loads(body)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it holds no fields")  # noqa: TRY004  # damage, whatever its kind
    return value


def _whole(fields: Mapping[str, Any], name: str, most: int, least: int = 0) -> int:
    value = fields.get(name)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is no number from {least} to {most}")
    return value


def _hex(fields: Mapping[str, Any], name: str, size: int = 8) -> int:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) != 2 * size or not HEX.fullmatch(value):
        raise ValueError(f"{name} is not {2 * size} hex digits")
    return int(value, 16)


def _rows(fields: Mapping[str, Any], name: str, most: int) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{name} is no list of at most {most}")
    return value


def _nested(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a field holds no fields")  # noqa: TRY004  # as above
    return value


def _refuse_later(fields: Mapping[str, Any]) -> None:
    version = _whole(fields, "format", U32_MAX, 1)
    if version > FORMAT:
        raise FormatVersionError(
            f"the backups have format {version}; this kvsage knows formats up to {FORMAT}"
        )


# -- KVSAGE-BACKUPS -----------------------------------------------------------------------------


def encode_pool(uuid: bytes) -> bytes:
    """The bytes of ``KVSAGE-BACKUPS``: the store that the directory is for."""
    return _seal("backups", {"format": FORMAT, "store": uuid.hex()})


def decode_pool(data: bytes) -> bytes:
    """The uuid of the store that a directory of backups is for.

    Raises:
        BackupError: damaged.
        FormatVersionError: a later format.
    """
    try:
        fields = _unseal("backups", data, POOL_BYTES_MAX)
        _refuse_later(fields)
        return _hex(fields, "store", 16).to_bytes(16, "big")
    except ValueError as error:
        raise BackupError(f"the file KVSAGE-BACKUPS is damaged: {error}") from error


# -- manifests ----------------------------------------------------------------------------------


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest."""
    checkpoint = manifest.checkpoint
    return _seal(
        "backup",
        {
            "format": FORMAT,
            "number": manifest.number,
            "created_ms": manifest.created_ms,
            "kvsage": manifest.kvsage,
            "identity": encode_identity(manifest.identity).hex(),
            "timeline": f"{manifest.timeline:016x}",
            "seq": manifest.seq,
            "segment": manifest.segment,
            "chain": f"{manifest.chain:016x}",
            "files": [
                {
                    "segment": file.segment,
                    "kind": KINDS[file.kind],
                    "nonce": f"{file.nonce:016x}",
                    "end": file.end,
                    "checksum": f"{file.checksum:016x}",
                    "source": list(file.source),
                }
                for file in manifest.files
            ],
            "checkpoint": None
            if checkpoint is None
            else {
                "seq": checkpoint.seq,
                "bytes": checkpoint.bytes,
                "checksum": f"{checkpoint.checksum:016x}",
                "source": list(checkpoint.source),
            },
        },
    )


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in ``data``.

    Raises:
        BackupError: damaged.
        FormatVersionError: a later format.
    """
    try:
        fields = _unseal("backup", data, MANIFEST_BYTES_MAX)
        _refuse_later(fields)
        return _manifest(fields)
    except (ValueError, CorruptionError) as error:
        raise BackupError(f"the manifest is damaged: {error}") from error


def _manifest(fields: Mapping[str, Any]) -> Manifest:
    identity = _hex(fields, "identity", IDENTITY.size).to_bytes(IDENTITY.size, "big")
    version = fields.get("kvsage")
    if not isinstance(version, str) or not version.isprintable():
        raise ValueError("kvsage is no version")
    checkpoint = fields.get("checkpoint")
    manifest = Manifest(
        _whole(fields, "number", NUMBER_MAX, 1),
        _whole(fields, "created_ms", CREATED_MS_MAX),
        decode_identity(identity),
        version,
        _hex(fields, "timeline"),
        _whole(fields, "seq", U64_MAX),
        _whole(fields, "segment", U32_MAX, 1),
        _hex(fields, "chain"),
        tuple(map(_file, _rows(fields, "files", LISTED_MAX))),
        None if checkpoint is None else _checkpoint(_nested(checkpoint)),
    )
    _refuse_impossible(manifest)
    return manifest


def _file(value: object) -> TakenFile:
    fields = _nested(value)
    kinds = {name: kind for kind, name in KINDS.items()}
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError("a file is of no known kind")
    return TakenFile(
        _whole(fields, "segment", U32_MAX, 1),
        kinds[kind],
        _hex(fields, "nonce"),
        _whole(fields, "end", U32_MAX, HEADER.size),
        _hex(fields, "checksum"),
        _source(fields),
    )


def _checkpoint(fields: Mapping[str, Any]) -> TakenCheckpoint:
    return TakenCheckpoint(
        _whole(fields, "seq", U64_MAX),
        _whole(fields, "bytes", SIZE_MAX, 1),
        _hex(fields, "checksum"),
        _source(fields),
    )


def _source(fields: Mapping[str, Any]) -> tuple[int, int, int, int]:
    source = _rows(fields, "source", FINGERPRINT_NUMBERS)
    if len(source) != FINGERPRINT_NUMBERS or any(type(number) is not int for number in source):
        raise ValueError("a file has no source")
    device, inode, size, modified_ns = source
    return device, inode, size, modified_ns


def _refuse_impossible(manifest: Manifest) -> None:
    ids = [file.segment for file in manifest.files]
    if ids != sorted(set(ids)):
        raise ValueError("its files are not in order")
    kinds = {file.segment: file.kind for file in manifest.files}
    if kinds.get(manifest.segment) != FileKind.SEGMENT:
        raise ValueError("its last segment is missing")
    if manifest.checkpoint is not None and manifest.checkpoint.seq > manifest.seq:
        raise ValueError("its checkpoint is of a later moment")
