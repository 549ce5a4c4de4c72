"""The second reader of the format agrees with the first, and sees what is wrong."""

import ast
import importlib.util
import json
import struct
import sys

import pytest
from xxhash import xxh3_128_digest

from kvsage import LMDBStore
from kvsage.log import format as log_format
from tests.unit.docs.documents import ROOT, TOOLS

NOW_S = 1_767_225_600.0


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("inspect_segment", TOOLS / "inspect_segment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def store_path(tmp_path):
    path = tmp_path / "store"
    with LMDBStore(
        path, clock=lambda: NOW_S, durability="relaxed", segment_bytes_max=64 << 10
    ) as store:
        store.save("text", "x")
        store.save("number", {"n": 42, "when": None}, ttl=60)
        store.save("large", "word " * 3000)
        store.save("messages", [{"turn": turn, "text": f"{turn} " * 200} for turn in range(300)])
        store.append("messages", "one more")
        store.content.put(b"held by its address")
        store.delete("text")
        for number in range(3):
            store.save(f"random {number}", bytes(range(64, 250)) * 21)
        store.save_many({f"many {number}": str(number) * 400 for number in range(300)})
    return path


def segments(path):
    return sorted((path / "log").glob("*.seg"))


def run(tool, capsys, *arguments):
    code = tool.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


def test_it_imports_nothing_of_kvsage():
    tree = ast.parse((TOOLS / "inspect_segment.py").read_bytes())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    outside = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert outside <= {"xxhash", "msgpack", "zstandard"}


def test_a_whole_store_checks(tool, capsys, store_path):
    code, out = run(tool, capsys, store_path)
    assert code == 0
    assert len(segments(store_path)) > 1, "the store is meant to have a sealed segment"
    for path in segments(store_path):
        assert f"log/{path.name}" in out
    assert "'text', str = 'x'" in out
    assert "'number', msgpack, expires 1767225660000" in out
    assert "{'n': 42, 'when': None}" in out
    assert "15000 bytes stored zstd in" in out
    assert "PACK at" in out
    assert "NODE at" in out
    assert "'messages', msgpack = tree of" in out
    assert ", level 1" in out
    assert "literal of 3 bytes = b'\\xdc\\x01-'" in out  # the header of a list of 301
    assert "19 bytes stored raw in 19" in out
    assert "DELETE at" in out
    assert "closed clean" in out
    assert out.endswith("307 keys, 3 through content: all of it is there\n")


def test_it_reads_what_kvsage_reads(tool, store_path):
    held = tool.Held()
    assert tool.inspect_store(store_path, tool.Report(with_bytes=False), held)
    with LMDBStore(store_path, clock=lambda: NOW_S, readonly=True) as store:
        for key, value in store.items():
            _, _, flags, stored = held.keys[key.encode()]
            codec = tool.CODECS[flags & 7]
            assert tool.decoded(0, codec, held.value(flags, stored)) == value


def test_it_reads_the_golden_store(tool):
    """With a copy that compaction made, and a tree of cuts and groups that kvsage never makes."""
    golden = ROOT / "tests" / "format" / "golden" / str(log_format.FORMAT)
    known = json.loads(golden.with_suffix(".json").read_text(encoding="ascii"))["keys"]
    held = tool.Held()
    assert tool.inspect_store(golden, tool.Report(with_bytes=False), held)
    trees = {key: entry["value"] for key, entry in known.items() if key.startswith("tree/")}
    del trees["tree/noise"]  # bytes, which JSON spells otherwise
    for key, value in trees.items():
        _, _, flags, stored = held.keys[key.encode()]
        assert flags & log_format.IS_TREE
        assert tool.decoded(0, tool.CODECS[flags & 7], held.value(flags, stored)) == value


def test_it_counts_what_verify_counts(tool, capsys, store_path):
    _, out = run(tool, capsys, store_path)
    with LMDBStore(store_path, clock=lambda: NOW_S, readonly=True) as store:
        report = store.verify()
    assert report.ok
    assert out.count("\nbatch at ") == report.batches
    kinds = ("PUT", "DELETE", "CONTENT", "PACK", "NODE")
    assert sum(out.count(f"  {kind} at ") for kind in kinds) == report.entries


def test_its_bytes_are_the_files_bytes(tool, capsys, store_path):
    segment = segments(store_path)[-1]
    _, out = run(tool, capsys, "--bytes", segment)
    shown = bytearray()
    for line in out.splitlines():
        offset, _, rest = line[2:].partition("  ")
        if line.startswith("  0") and len(offset) == 6:
            assert int(offset, 16) == len(shown)
            shown += bytes.fromhex(rest[:47])
    assert bytes(shown) == segment.read_bytes()


def test_any_flipped_byte_is_damage(tool, capsys, store_path):
    segment = segments(store_path)[0]
    whole = segment.read_bytes()
    for offset in range(0, len(whole), 1009):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x40
        segment.write_bytes(damaged)
        code, out = run(tool, capsys, store_path)
        assert code == 1, f"the flip at {offset} was not seen"
        assert "DAMAGED, offset " in out


def test_a_cut_segment_that_a_later_header_lists_is_damage(tool, capsys, store_path):
    segment = segments(store_path)[0]
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-1])
    code, out = run(tool, capsys, store_path)
    assert code == 1
    assert f"a later header lists the file up to {len(whole)}" in out


def test_a_missing_segment_that_is_listed_is_damage(tool, capsys, store_path):
    segments(store_path)[0].unlink()
    code, out = run(tool, capsys, store_path)
    assert code == 1
    assert "file 1 counts and is missing" in out


def test_a_repaired_store_with_its_copy_checks(tool, capsys, store_path):
    segment = segments(store_path)[0]
    data = bytearray(segment.read_bytes())
    data[300:400] = bytes(100)
    segment.write_bytes(data)
    report = LMDBStore.repair(store_path, clock=lambda: NOW_S)
    assert report.problems
    code, out = run(tool, capsys, store_path)
    assert code == 0, out
    assert "header: copy" in out


def small(path):
    with LMDBStore(path, clock=lambda: NOW_S) as store:
        for number in range(3):
            store.save(f"key {number}", number)
    return segments(path)[0]


def without_end_mark(segment):
    data = segment.read_bytes()
    return data[: -log_format.END_BYTES]


def test_a_cut_last_batch_is_a_torn_tail(tool, capsys, tmp_path):
    segment = small(tmp_path / "store")
    segment.write_bytes(without_end_mark(segment)[:-1])
    code, out = run(tool, capsys, segment)
    assert code == 0
    assert "torn tail: a batch is cut by the file's end" in out


def test_a_gap_that_a_later_flush_vouches_for_is_damage(tool, capsys, tmp_path):
    segment = small(tmp_path / "store")
    data = bytearray(without_end_mark(segment))
    first = data.find(log_format.BATCH_MAGIC_BYTES)
    data[first + 30] ^= 1
    segment.write_bytes(data)
    code, out = run(tool, capsys, segment)
    assert code == 1
    assert "says that the log was on disk up to seq" in out


def test_a_gap_before_an_end_mark_is_damage(tool, capsys, tmp_path):
    segment = small(tmp_path / "store")
    data = bytearray(segment.read_bytes())
    last = data.rfind(log_format.BATCH_MAGIC_BYTES)
    data[last + 30] ^= 1
    segment.write_bytes(data)
    code, out = run(tool, capsys, segment)
    assert code == 1
    assert "an end mark stands at" in out


def made_by_hand(path, *, chain=None, seq=1, entry=None):
    """A segment of one batch that is wrong in one thing, its checksums apart."""
    uuid = bytes(range(16))
    timeline = log_format.Timeline(7, 0)
    header = log_format.encode_header(
        log_format.SegmentHeader(1, uuid, 1, 5, 7, 0, 0, 0, 0, (), (timeline,))
    )
    before = int.from_bytes(header[-8:], "little") if chain is None else chain
    whole = log_format.encode_entry(log_format.LogEntry(1, 0, log_format.PUT, 1, b"k", b"v"))
    fields = log_format.BatchHeader(0, 1, 0, seq, 0, 0, before)
    seed = log_format.place(log_format.Identity(1, uuid, 0).salt, 1, len(header))
    _, *batch = log_format.encode_batch(fields, whole if entry is None else entry(whole), seed)
    path.write_bytes(header + b"".join(batch))
    return path


def test_a_segment_made_by_hand_checks(tool, capsys, tmp_path):
    code, out = run(tool, capsys, made_by_hand(tmp_path / "0000000001.seg"))
    assert code == 0
    assert "'k', str = 'v'" in out


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"chain": 1}, "follows something else"), ({"seq": 2}, "bears seq 2 after 0")],
)
def test_a_batch_that_does_not_follow_is_a_torn_tail(tool, capsys, tmp_path, wrong, told):
    code, out = run(tool, capsys, made_by_hand(tmp_path / "0000000001.seg", **wrong))
    assert code == 0
    assert "torn tail" in out
    assert told in out


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (lambda entry: b"\0" + entry[1:], "an entry's checksum does not match"),
        (lambda entry: entry[:-1], "an entry reaches past its batch"),
        (lambda entry: entry + b"\0", "the entries do not fill their batch"),
        (lambda entry: entry[:20], "the entries do not fill their batch"),
    ],
)
def test_a_wrong_entry_in_a_batch_that_checks_is_damage(tool, capsys, tmp_path, entry, told):
    code, out = run(tool, capsys, made_by_hand(tmp_path / "0000000001.seg", entry=entry))
    assert code == 1
    assert told in out


RAW = b"a leaf of a tree, and of a pack"
LEAF = xxh3_128_digest(RAW) + bytes(2)
ITEM = log_format.TreeItem(LEAF, len(RAW), 1, 0, b"")
LITERAL = log_format.TreeItem(b"", 2, 0, 0, b"ab")
TREE = log_format.encode_tree([LITERAL, ITEM])
NODE = xxh3_128_digest(TREE, 1) + b"\0\x80"
PACKED = log_format.encode_pack([(LEAF, len(RAW))], RAW)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ((log_format.CONTENT, NODE, bytes(8)), "a content of another shape"),
        ((log_format.PACK, b"k", PACKED), "a pack with a key"),
        ((log_format.PACK, b"", PACKED[:11]), "a pack is too short"),
        ((log_format.PACK, b"", bytes(12)), "a pack of 0 contents"),
        ((log_format.PACK, b"", PACKED[:-1]), "another length than is said"),
        ((log_format.PACK, b"", PACKED[:-1] + b"x"), "not what its key says"),
        ((log_format.PACK, b"", log_format.encode_pack([(NODE, 1)], b"x")), "that cannot be"),
        ((log_format.NODE, LEAF, TREE), "a node of another shape"),
        ((log_format.NODE, b"\xff" * 18, TREE), "a node of another shape"),
        ((log_format.NODE, NODE, TREE[:9]), "a tree is too short"),
        ((log_format.NODE, NODE, bytes(11)), "a tree of 0 items"),
        ((log_format.NODE, NODE, TREE + b"x"), "another length than is said"),
        ((log_format.NODE, NODE, b"\1" + TREE[1:]), "do not add up to it"),
        ((log_format.NODE, NODE, TREE[:37] + b"\1" + TREE[38:]), "that cannot be"),
        ((log_format.NODE, NODE, TREE[:10] + b"\2" + TREE[11:]), "stored in another way"),
        ((log_format.NODE, NODE, TREE[:10] + b"\1" + TREE[11:]), "a frame"),
        ((log_format.NODE, NODE, TREE[:-1] + b"x"), "a node is not what its key says"),
    ],
)
def test_a_pack_or_node_that_cannot_be_is_damage(tool, capsys, tmp_path, wrong, told):
    kind, key, value = wrong
    entry = log_format.encode_entry(log_format.LogEntry(1, 0, kind, 0, key, value))
    path = made_by_hand(tmp_path / "0000000001.seg", entry=lambda _: entry)
    code, out = run(tool, capsys, path)
    assert code == 1
    assert told in out


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        ([], f"content {LEAF[:16].hex()}-0 is missing"),
        ([(log_format.CONTENT, LEAF, bytes(8))], f"content {LEAF[:16].hex()}-0 has another length"),
        ([(log_format.NODE, NODE, TREE), (log_format.PACK, b"", PACKED)], "all of it is there"),
    ],
)
def test_what_a_key_holds_is_put_together(tool, contents, told):
    held, report = tool.Held(), tool.Report(with_bytes=False)
    node = log_format.TreeItem(NODE, 2 + len(RAW), 1, 1, b"")
    root = log_format.encode_tree([node if contents[1:] else ITEM])
    for kind, key, value in [*contents, (log_format.PUT, b"k", root)]:
        flags = log_format.BYTES | log_format.IS_TREE if kind == log_format.PUT else 0
        held.take(kind, 1, flags, key, value)
    assert held.check(report) == (told == "all of it is there")
    assert told in "\n".join(report.lines)


def test_a_node_that_holds_itself_is_damage(tool):
    held, report = tool.Held(), tool.Report(with_bytes=False)
    root = log_format.encode_tree([log_format.TreeItem(NODE, 9, 1, 1, b"")])
    held.take(log_format.NODE, 1, 0, NODE, root)
    held.take(log_format.PUT, 1, log_format.IS_TREE, b"k", root)
    assert not held.check(report)
    assert "a tree without end" in report.lines[0]


def test_zeros_behind_the_last_batch_are_room(tool, capsys, tmp_path):
    segment = small(tmp_path / "store")
    segment.write_bytes(without_end_mark(segment) + bytes(1000))
    code, out = run(tool, capsys, segment)
    assert code == 0
    assert "1000 zeros ahead" in out


def test_a_later_format_is_not_read(tool, capsys, tmp_path):
    segment = small(tmp_path / "store")
    identity = segment.parent.parent / "KVSAGE"
    data = bytearray(identity.read_bytes())
    struct.pack_into("<H", data, 8, 2)
    identity.write_bytes(data)
    code, out = run(tool, capsys, tmp_path / "store")
    assert code == 1
    assert "format 2, and this reads format 1" in out


def test_it_asks_for_a_path(tool, capsys, tmp_path):
    assert run(tool, capsys) == (2, "")
    assert run(tool, capsys, tmp_path / "absent") == (2, "")
