"""docs/format.md says what log/format.py and the index do, and its example is real."""

import re
import subprocess
import sys

import pytest

from kvsage.engine import assembling, checkpoint, consumers, engine, tree
from kvsage.index import contents, keydir, segments, trust
from kvsage.log import format as log_format
from tests.unit.docs.documents import DOCS, TOOLS, blocks

STRUCTS = {
    "IDENTITY": log_format.IDENTITY,
    "HEADER": log_format.HEADER,
    "LISTED_FILE": log_format.LISTED_FILE,
    "TIMELINE": log_format.TIMELINE,
    "BATCH": log_format.BATCH,
    "ENTRY": log_format.ENTRY,
    "END": log_format.END,
    "CONTENT_KEY": log_format.CONTENT_KEY,
    "CONTENT_HEAD": log_format.CONTENT_HEAD,
    "CONTENT_REF": log_format.CONTENT_REF,
    "PACK_HEAD": log_format.PACK_HEAD,
    "PACKED": log_format.PACKED,
    "TREE_HEAD": log_format.TREE_HEAD,
    "TREE_ITEM": log_format.TREE_ITEM,
    "RETIRE_HEAD": log_format.RETIRE_HEAD,
    "RETIRED_FILE": log_format.RETIRED_FILE,
    "ORIGIN": log_format.ORIGIN,
    "RECORD": consumers.RECORD,
    "CHECKPOINT": checkpoint.CHECKPOINT,
    "TRUST": trust.TRUST,
    "ROW": keydir.ROW,
    "CONTENT_ROW": contents.CONTENT_ROW,
    "META": segments.META,
    "SEGMENT_ROW": segments.SEGMENT_ROW,
    "RETIRED": segments.RETIRED,
}
CODES = {"Q": "u64", "I": "u32", "H": "u16", "B": "u8", "s": "bytes", "x": "zero"}
SIZES = {"Q": 8, "I": 4, "H": 2, "B": 1}
TEXT = (DOCS / "format.md").read_text(encoding="utf-8")


def drawn() -> dict[str, tuple[int, list[tuple[int, int, str]]]]:
    """By struct: its size and the rows (offset, bytes, type) of its table in the document."""
    found = {}
    table = r"`([A-Z_]+)`, (\d+) bytes[^|]*?\n\n\| offset \| bytes .*\n\|---.*\n((?:\|.*\n)+)"
    for name, size, body in re.findall(table, TEXT):
        rows = [line.split("|")[1:4] for line in body.splitlines()]
        found[name] = int(size), [(int(at), int(length), kind.strip()) for at, length, kind in rows]
    return found


def fields(layout: str) -> list[tuple[int, str]]:
    """The fields of a struct's format, neighbouring pad bytes as one."""
    assert layout[0] == "<"
    out: list[tuple[int, str]] = []
    for count, code in re.findall(r"(\d*)(\w)", layout[1:]):
        number = int(count or 1)
        one = [(number if code in "sx" else SIZES[code], CODES[code])]
        new = one if code in "sx" else one * number
        if code == "x" and out and out[-1][1] == "zero":
            new = [(out.pop()[0] + number, "zero")]
        out += new
    return out


def test_every_struct_has_its_table_and_the_other_way_round():
    assert drawn().keys() == STRUCTS.keys()


@pytest.mark.parametrize("name", STRUCTS)
def test_a_table_is_the_struct(name):
    size, rows = drawn()[name]
    layout = STRUCTS[name]
    assert size == layout.size
    offset = 0
    for (at, length, kind), (real_length, real_kind) in zip(
        rows, fields(layout.format), strict=True
    ):
        assert (at, length) == (offset, real_length)
        # A reserved field may be packed as a number that is always 0.
        assert kind in {real_kind, "zero"}
        offset += length
    assert offset == size


@pytest.mark.parametrize(
    ("magic", "real"),
    [
        ("`kvsage`, 0, 1", log_format.IDENTITY_MAGIC == b"kvsage\0\1"),
        ("`kvsgment`", log_format.SEGMENT_MAGIC == b"kvsgment"),
        ("`BVK1`", log_format.BATCH_MAGIC_BYTES == b"BVK1"),
        ("`END1`", log_format.END_MAGIC_BYTES == b"END1"),
        ("`kvsindex`", trust.MAGIC == b"kvsindex"),
        ("`kvscheck`", checkpoint.MAGIC == b"kvscheck"),
    ],
)
def test_a_magic_is_the_one_in_the_code(magic, real):
    assert real
    assert f"magic: {magic} |" in TEXT


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (log_format.PUT, "PUT"),
        (log_format.DELETE, "DELETE"),
        (log_format.CONTENT, "CONTENT"),
        (log_format.RETIRE, "RETIRE"),
        (log_format.ORIGINS, "ORIGINS"),
        (log_format.PACK, "PACK"),
        (log_format.NODE, "NODE"),
        (log_format.MSGPACK, "msgpack"),
        (log_format.STR, "str"),
        (log_format.BYTES, "bytes"),
        (log_format.JSON, "json"),
        (log_format.PICKLE, "pickle"),
    ],
)
def test_a_kind_or_codec_has_the_number_in_the_code(number, name):
    assert re.search(rf"^\| {number} \| {name} \|", TEXT, re.MULTILINE)


@pytest.mark.parametrize(
    "told",
    [
        f"Bit 3 (value {log_format.IS_CONTENT}): the value is a [content]",
        f"Bit 4 (value {log_format.IS_TREE}): the value is a [tree]",
        f"The numbers from {log_format.NODE_NUMBER:,} (0x8000) to {log_format.NUMBER_END - 1:,}",
        f"xxh3_128, seeded with {tree.NODE_SEED}, of the value of its NODE entry",
        f"{log_format.STORED_RAW} as they are, {log_format.STORED_ZSTD} as a zstd frame",
        f"| items of a root or a node | 1 to {log_format.TREE_ITEMS_MAX:,} |",
        f"| level of an item | {log_format.TREE_LEVELS_MAX - 1} |",
        f"| nodes within nodes | {assembling.DEPTH_MAX} |",
        f"| contents that share a hash | {log_format.NODE_NUMBER:,}, and 32,767 nodes |",
    ],
)
def test_a_number_of_a_tree_is_the_one_in_the_code(told):
    assert told in " ".join(TEXT.split())


def test_a_literal_is_all_ff():
    assert set(log_format.LITERAL) == {0xFF}
    assert "all ff for a literal" in TEXT


def test_the_example_is_what_the_engine_writes():
    run = subprocess.run(
        [sys.executable, str(TOOLS / "format_example.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    shown = [block.text for block in blocks(DOCS / "format.md") if "KVSAGE: format" in block.text]
    assert shown == [run.stdout]


def test_the_example_names_the_seed_that_the_code_uses():
    uuid = bytes.fromhex("00112233445566778899aabbccddeeff")
    salt = log_format.Identity(1, uuid, 0).salt
    assert f"`{salt:#018x} xor (1 << 32 | 120)`" in TEXT
    assert log_format.place(salt, 1, 120) == salt ^ (1 << 32 | 120)


def test_the_versions_of_what_is_derived_are_those_in_the_code():
    assert re.findall(r"version: (\d+)", TEXT) == [str(trust.VERSION)] * 2


def test_the_prefixes_of_own_keys_are_those_in_the_code():
    for prefix in (keydir.CONTENT_ROOT, consumers.CONSUMER_ROOT):
        assert f"`{prefix.hex(' ')}`" in TEXT
    assert f"a name of up to {consumers.NAME_BYTES_MAX} bytes" in TEXT


def test_every_file_of_a_store_is_named():
    rows = re.findall(r"^\| ((?:`[^`|]+` ?)+)\|", TEXT.split("## Files")[1], re.MULTILINE)
    told = set(re.findall(r"`([^`]+)`", "".join(rows)))
    names = {name for name in engine.NAMES if not name.endswith(".tmp")}
    roots = {name.partition("/")[0] for name in told}
    assert names <= roots
