"""Manifests: what is written is read, and anything else is refused before it is believed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from kvsage.engine.manifest import (
    MANIFEST_BYTES_MAX,
    POOL_NAME,
    Manifest,
    TakenCheckpoint,
    TakenFile,
    decode_manifest,
    decode_pool,
    encode_manifest,
    encode_pool,
)
from kvsage.errors import BackupError, FormatVersionError
from kvsage.log.format import FileKind, Identity

UUID = bytes(range(16))
SOURCE = (1, 2, 300, 1_700_000_000_000_000_000)
U64 = st.integers(0, (1 << 64) - 1)
ACTIVE = TakenFile(7, FileKind.SEGMENT, 5, 200, 6, SOURCE)
EXAMPLE = Manifest(
    3,
    1_700_000_000_123,
    Identity(1, UUID, 1_600_000_000_000),
    "0.1.0",
    11,
    12,
    7,
    13,
    (TakenFile(2, FileKind.COPY, 3, 300, 4, SOURCE), ACTIVE),
    TakenCheckpoint(10, 4096, 14, SOURCE),
)


def sealed(fields, kind="backup"):
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return b'{"checksum":"%016x","%s":%s}\n' % (xxh3_64_intdigest(body), kind.encode(), body)


def changed(**changes):
    fields = json.loads(encode_manifest(EXAMPLE))["backup"]
    fields.update(changes)
    return fields


def test_an_example_byte_for_byte():
    data = encode_manifest(EXAMPLE)
    assert data.startswith(b'{"checksum":"')
    assert data[29:].startswith(b'","backup":{"format":1,"number":3,"created_ms":1700000000123,')
    assert json.loads(data)["backup"]["files"][0] == {
        "segment": 2,
        "kind": "cpy",
        "nonce": "0000000000000003",
        "end": 300,
        "checksum": "0000000000000004",
        "source": list(SOURCE),
    }
    assert EXAMPLE.name == "00000003-20231114T221320Z"
    assert EXAMPLE.pool_names == [
        "0000000002-0000000000000003-0000000300-0000000000000004.cpy",
        "0000000007-0000000000000005-0000000200-0000000000000006.seg",
        "00000000000000000010-000000000000000e.checkpoint",
    ]
    assert EXAMPLE.bytes == 300 + 200 + 4096


@given(
    st.integers(1, 10**15),
    st.integers(0, 253_402_300_799_999),
    st.lists(st.tuples(st.integers(8, (1 << 32) - 1), U64, U64), unique_by=lambda row: row[0]),
    U64,
    st.booleans(),
)
def test_what_is_written_is_read(number, created_ms, others, seq, has_checkpoint):
    files = [TakenFile(n, FileKind.COPY, nonce, 96, sum_, SOURCE) for n, nonce, sum_ in others]
    checkpoint = TakenCheckpoint(seq, 1, seq, SOURCE) if has_checkpoint else None
    manifest = EXAMPLE._replace(
        number=number,
        created_ms=created_ms,
        seq=seq,
        files=(ACTIVE, *sorted(files)),
        checkpoint=checkpoint,
    )
    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert all(POOL_NAME.fullmatch(name) for name in manifest.pool_names)


def test_a_single_bit_is_noticed():
    data = encode_manifest(EXAMPLE)
    for place in range(len(data)):
        for bit in (0, 5):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(BackupError, match="damaged"):
                decode_manifest(bytes(damaged))


@pytest.mark.parametrize("length", [0, 1, 20, 40, -2, -1])
def test_a_cut_is_noticed(length):
    with pytest.raises(BackupError, match="damaged"):
        decode_manifest(encode_manifest(EXAMPLE)[:length])


FILE = json.loads(encode_manifest(EXAMPLE))["backup"]["files"][1]


@pytest.mark.parametrize(
    "fields",
    [
        [],
        "text",
        {},
        changed(format=0),
        changed(format="1"),
        changed(number=0),
        changed(number=True),
        changed(number=1e3),
        changed(created_ms=-1),
        changed(created_ms=10**15),
        changed(seq=1 << 64),
        changed(timeline="b"),
        changed(chain="0x0000000000000d"),
        changed(chain="00000000000000 d"),
        changed(kvsage=None),
        changed(kvsage="\x1b[31m"),
        changed(identity="00" * 48),
        changed(identity="../../etc/passwd"),
        changed(files={}),
        changed(files=[]),
        changed(files=[None]),
        changed(files=[FILE, FILE]),
        changed(segment=2),
        changed(files=[{**FILE, "segment": 0}]),
        changed(files=[{**FILE, "segment": "../../7"}]),
        changed(files=[{**FILE, "kind": "../seg"}]),
        changed(files=[{**FILE, "kind": ["seg"]}]),
        changed(files=[{**FILE, "nonce": "/000000000000000"}]),
        changed(files=[{**FILE, "end": 1 << 32}]),
        changed(files=[{**FILE, "end": 1}]),
        changed(files=[{**FILE, "source": [1, 2, 3]}]),
        changed(files=[{**FILE, "source": [1, 2, 3, None]}]),
        changed(checkpoint=[]),
        changed(checkpoint={"seq": 13, "bytes": 1, "checksum": "0" * 16, "source": [1, 2, 3, 4]}),
        changed(checkpoint={"seq": 12, "bytes": 0, "checksum": "0" * 16, "source": [1, 2, 3, 4]}),
        b"[" * 200_000 + b"]" * 200_000,
        b'{"number":' + b"9" * 10_000 + b"}",
        b'{"number":NaN}',
        b"\xff",
    ],
)
def test_fields_that_cannot_be(fields):
    with pytest.raises(BackupError, match="damaged"):
        decode_manifest(sealed(fields))


def test_what_is_too_long_is_not_parsed():
    with pytest.raises(BackupError, match="damaged"):
        decode_manifest(sealed(b'"' + b" " * MANIFEST_BYTES_MAX + b'"'))


def test_a_later_format_says_so():
    with pytest.raises(FormatVersionError, match="format 2"):
        decode_manifest(sealed(changed(format=2)))
    with pytest.raises(FormatVersionError, match="format 2"):
        decode_pool(sealed({"format": 2, "anything": 1}, "backups"))


def test_whose_backups():
    assert encode_pool(UUID).endswith(
        b'"backups":{"format":1,"store":"%s"}}\n' % UUID.hex().encode()
    )
    assert decode_pool(encode_pool(UUID)) == UUID
    for data in (b"", encode_pool(UUID)[:-1], sealed({"format": 1, "store": "00"}, "backups")):
        with pytest.raises(BackupError, match="damaged"):
            decode_pool(data)
    with pytest.raises(BackupError, match="damaged"):
        decode_pool(encode_manifest(EXAMPLE))
