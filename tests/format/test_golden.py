"""Old bytes are read forever: a golden store of each format, and what is in it.

``tools/make_golden.py`` made them, each when its format was new.
"""

import json
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from kvsage import LMDBStore, Serializer
from kvsage.engine import rebuild
from kvsage.engine.checkpoint import unpack_checkpoint
from kvsage.engine.content import inflate_tree
from kvsage.errors import KeyNotFoundError, SerializationError
from kvsage.fs import POSIX
from kvsage.log import format as fmt
from kvsage.log.reader import SegmentReader
from kvsage.log.segment import inspect, list_files

GOLDEN = Path(__file__).parent / "golden"
SCRIPT = Path(__file__).parents[2] / "tools" / "make_golden.py"
FORMATS = sorted(path.stem for path in GOLDEN.glob("*.json"))


@pytest.fixture(params=FORMATS)
def golden(request):
    return GOLDEN / request.param


@pytest.fixture
def expected(golden):
    return json.loads(golden.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture(params=["from the checkpoint", "from the log"])
def open_copy(golden, expected, tmp_path, request):
    """Opens the same copy each time, at the time of the store or later."""
    shutil.copytree(golden, tmp_path / "store")
    if request.param == "from the log":
        (tmp_path / "store" / "index.checkpoint").unlink()

    def open_(*, later_s=0, **options):
        return LMDBStore(tmp_path / "store", clock=lambda: expected["now"] + later_s, **options)

    return open_


def described(entry):
    return {
        "value": json.loads(Serializer.serialize(entry.value)),
        "version": entry.version,
        "expires_at": entry.expires_at and entry.expires_at.isoformat(),
        "size": entry.size,
        "stored_size": entry.stored_size,
    }


def test_there_is_a_golden_store_of_the_present_format():
    assert str(fmt.FORMAT) in FORMATS


def test_everything_in_it_is_read(open_copy, expected):
    with open_copy(format="pickle") as store:
        entries = {key: described(store.entry(key)) for key in list(store.keys())}
        assert entries == expected["keys"]
        for address, text in expected["contents"].items():
            assert store.content.get(address) == text.encode()
        assert store.stats().commits == expected["commits"]
        report = store.verify(deep=True)
        assert report.problems == ()
        assert report.batches == expected["batches"]


def test_what_was_deleted_expired_or_evicted_stays_away(open_copy):
    with open_copy() as store:
        gone = ["deleted", "expired", "evicted", "list", "content/noise", "tree/gone"]
        assert [key for key in gone if store.exists(key)] == []
        assert store.load("comes back") == "newest"
        assert store.load("replaced") == "newer"


def test_what_expires_is_gone_later(open_copy, expected):
    with open_copy(later_s=3599) as store:
        assert store.ttl("tree/expiring") == 1
    with open_copy(later_s=7199) as store:
        assert store.ttl("expiring") == 1
        assert store.load("tree/expiring") is None
    with open_copy(later_s=7200) as store:
        assert store.load("expiring") is None
        with pytest.raises(KeyNotFoundError):
            store.ttl("expiring")
        assert store.count() == len(expected["keys"]) - 2


def test_its_pickle_is_refused_and_nothing_else(open_copy, expected):
    with open_copy() as store:
        with pytest.raises(SerializationError, match="'pickle' is a pickle"):
            store.load("pickle")
        for key, known in expected["keys"].items():
            if key != "pickle":
                assert json.loads(Serializer.serialize(store.load(key))) == known["value"]


def test_it_goes_on_from_there(open_copy, expected):
    with open_copy() as store:
        assert store.save("text", "newer", if_version=expected["keys"]["text"]["version"])
        assert not store.save("text", "newest", if_version=expected["keys"]["text"]["version"])
        store.save("content", expected["keys"]["content"]["value"])
        store.delete("second segment")
    with open_copy() as store:
        assert store.load("text") == "newer"
        assert store.load("content/again") == expected["keys"]["content"]["value"]
        assert store.count() == len(expected["keys"]) - 1
        assert store.stats().commits == expected["commits"] + 3
        assert store.verify(deep=True).ok


def test_its_trees_are_read_in_parts_and_grow(open_copy, expected):
    """Also the one whose cuts and groups are not those of any kvsage."""
    trees = ["tree/chat", "tree/grown", "tree/lists", "tree/by hand"]
    with open_copy(content_bytes_min=256) as store:
        for key in trees:
            whole = expected["keys"][key]["value"]
            middle = len(whole) // 2
            assert store.load_range(key, middle, middle + 3) == whole[middle : middle + 3]
            assert store.load_range(key, -1) == whole[-1:]
            assert store.extend(key, ["more", "and more"]) == len(whole) + 2
    with open_copy() as store:
        for key in trees:
            assert store.load(key) == [*expected["keys"][key]["value"], "more", "and more"]
        assert store.compact().files_compacted
        assert store.verify(deep=True).problems == ()


def test_another_save_of_a_tree_brings_nothing_but_its_root(open_copy, expected):
    """Cuts are no part of the format. Yet where they change, every large value is stored anew."""
    with open_copy(content_bytes_min=256) as store:
        before = store.stats()
        for key in ("tree/chat", "tree/text", "tree/nested", "tree/lists"):
            store.save(key, expected["keys"][key]["value"])
        after = store.stats()
        assert (before.contents, before.content_nodes) == (after.contents, after.content_nodes)


def test_it_holds_the_log_and_a_checkpoint_and_nothing_else(golden):
    assert sorted(path.name for path in golden.iterdir()) == ["KVSAGE", "index.checkpoint", "log"]
    assert sum(path.stat().st_size for path in golden.rglob("*")) < 120_000


def test_its_checkpoint_is_used(open_copy, monkeypatch):
    """A damaged one would be passed over in silence."""
    used = []

    def unpack(engine, directory):
        used.append(unpack_checkpoint(engine, directory))
        return used[-1]

    monkeypatch.setattr(rebuild, "unpack_checkpoint", unpack)
    with open_copy() as store:
        there = store._engine.checkpoint_path.exists()
        assert used == [there]


def entries_of(log):
    """Header of each file, and its entries."""
    identity = fmt.decode_identity((GOLDEN / "1" / "KVSAGE").read_bytes())
    for segment, path in list_files(POSIX, log).items():
        file = inspect(POSIX, segment, path, identity.uuid)
        fd = POSIX.open(path)
        reader = SegmentReader(POSIX, fd, segment, identity.salt)
        found = [
            fmt.decode_entry(framed)
            for batch in reader.batches(file.start, file.chain, file.header.after_seq)
            for _, framed in fmt.split_entries(batch.body, batch.header.entries)
        ]
        POSIX.close(fd)
        yield file.header, found


def test_it_holds_one_of_everything():
    headers, entries = zip(*entries_of(GOLDEN / "1" / "log"), strict=True)
    seen = set()
    for entry in chain.from_iterable(entries):
        seen.add((entry.kind, entry.flags))
        seen.add(("expires", entry.expires_ms > 0))
        if entry.kind == fmt.NODE or (entry.kind == fmt.PUT and entry.flags & fmt.IS_TREE):
            seen.add(("literals", fmt.split_tree(entry.value)[0]))
            for item in fmt.decode_tree(inflate_tree(entry.value)):
                what = "literal" if item.literal else "node" if fmt.is_node(item.key) else "leaf"
                seen.add((what, item.level))
    assert [header.kind for header in headers] == [1, 1, 2]
    assert [len(header.timelines) for header in headers] == [1, 2, 0]
    assert [file.segment for file in headers[2].files] == [1]
    codecs = (fmt.MSGPACK, fmt.STR, fmt.BYTES, fmt.JSON, fmt.PICKLE)
    contents = (fmt.MSGPACK, fmt.STR, fmt.BYTES)
    stored = (fmt.STORED_RAW, fmt.STORED_ZSTD)
    assert seen == {
        *((fmt.PUT, codec) for codec in codecs),
        *((fmt.PUT, codec | fmt.IS_CONTENT) for codec in contents),
        *((fmt.PUT, codec | fmt.IS_TREE) for codec in contents),
        *((fmt.DELETE, why) for why in (fmt.BY_USER, fmt.EXPIRED, fmt.EVICTED)),
        *((kind, how) for kind in (fmt.CONTENT, fmt.PACK) for how in stored),
        (fmt.NODE, 0),
        (fmt.RETIRE, 0),
        (fmt.ORIGINS, 0),
        ("expires", True),
        ("expires", False),
        *(("literals", how) for how in stored),
        ("literal", 0),
        ("leaf", 0),
        *(("node", level) for level in range(4)),  # level 0 is an element that is a tree itself
    }


def test_its_copy_holds_packs_that_lost_contents():
    (_, before), _, (_, copied) = entries_of(GOLDEN / "1" / "log")
    packed = [
        [
            {one.key for one in fmt.decode_pack(entry.value).contents}
            for entry in entries
            if entry.kind == fmt.PACK
        ]
        for entries in (before, copied)
    ]
    assert any(kept < whole for kept in packed[1] for whole in packed[0])


def test_the_script_makes_such_a_store(tmp_path):
    """Byte for byte only with the same zstd, so what is compared is what can be read."""
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True, timeout=60)
    name = f"{fmt.FORMAT}.json"
    made, known = (json.loads(Path(at, name).read_text("utf-8")) for at in (tmp_path, GOLDEN))
    for description in (made, known):
        for entry in description["keys"].values():
            del entry["stored_size"]
    assert made == known
    assert {path.name for path in (tmp_path / str(fmt.FORMAT)).iterdir()} == {
        "KVSAGE",
        "index.checkpoint",
        "log",
    }
