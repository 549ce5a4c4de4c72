import json
import random
from pathlib import Path

import pytest

from kvsage import LMDBStore
from kvsage.cli import ingest as ingesting
from kvsage.cli import tree as tree_of_files
from kvsage.cli.ingest import Plan, ingest
from kvsage.cli.tree import Selection, read
from kvsage.errors import UnsupportedError

MANY = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    contents = {
        "empty": b"",
        "binary": bytes(range(256)) * 100,
        "text/grün.txt": "Grüße\n".encode(),
        "text/twice": b"the same, long enough to be content " * 10,
        "twice": b"the same, long enough to be content " * 10,
        "with\nline end": b"\n",
        "-dash": b"-",
        "100%.txt": b"percent",
        "a%FF": b"looks like an escape",
        "a\udcff": b"is not UTF-8",
    }
    for name, data in contents.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return root


@pytest.fixture
def whole(tree: Path) -> Path:
    """The same tree with files so short that none of them is kept in pieces."""
    (tree / "binary").write_bytes(bytes(range(120)))
    for name in ("twice", "text/twice"):
        (tree / name).write_bytes(b"the same, long enough to be content " * 3)
    return tree


def saved(store: Path) -> dict[str, bytes]:
    with LMDBStore(store, readonly=True) as opened:
        return dict(opened.items())


def test_every_file_comes_back_byte_for_byte(run, keep, tree, store):
    done = run("ingest", "--store", store, tree)
    assert (done.code, done.err) == (0, "")
    keys = [json.loads(line)["key"] for line in keep("scan", "--json").lines]
    assert keys == [
        "-dash",
        "100%.txt",
        "a%25FF",
        "a%FF",
        "binary",
        "empty",
        "text/grün.txt",
        "text/twice",
        "twice",
        "with\nline end",
    ]
    names = {"a%25FF": "a%FF", "a%FF": "a\udcff"}
    for key in keys:
        assert keep("get", "--", key).out == (tree / names.get(key, key)).read_bytes()


def test_what_is_there_twice_is_stored_once(keep, whole):
    first = json.loads(keep("ingest", "--json", whole).text)
    assert (first["files"], first["failed"], first["skipped"]) == (10, 0, 0)
    assert first["bytes"] == sum(f.stat().st_size for f in whole.rglob("*") if f.is_file())
    assert first["new_contents"] == 2  # what is shorter than a reference stays in its record
    second = json.loads(keep("ingest", "--json", "--prefix", "again/", whole).text)
    assert (second["files"], second["new_contents"]) == (10, 0)
    assert second["stored_bytes"] < 1500
    assert keep("count").out == b"20\n"
    assert keep("count", "again/").out == b"10\n"


def test_of_a_file_that_changed_a_little_a_little_is_stored(keep, tree):
    noise = random.Random(1).randbytes(400_000)
    (tree / "large").write_bytes(noise)
    keep("ingest", tree)
    (tree / "large").write_bytes(noise[:200_000] + b"inserted" + noise[200_000:])
    again = json.loads(keep("ingest", "--json", "--prefix", "again/", tree).text)
    assert 0 < again["new_contents"] <= 3
    assert again["stored_bytes"] < 100_000
    assert keep("get", "again/large").out == (tree / "large").read_bytes()


def test_pieces_that_are_there_twice_are_stored_once(keep, tree):
    first = json.loads(keep("ingest", "--json", tree).text)
    assert first["bytes"] == sum(f.stat().st_size for f in tree.rglob("*") if f.is_file())
    assert first["new_contents"] >= 2
    second = json.loads(keep("ingest", "--json", "--prefix", "again/", tree).text)
    assert (second["files"], second["new_contents"]) == (10, 0)
    assert second["stored_bytes"] < 3000


def test_summary_is_the_result(keep, whole):
    shown = keep("ingest", whole).text
    assert shown.startswith("10 files, 385 B in ")
    assert "; 2 new contents, " in shown
    assert shown.endswith(" stored\n")


def test_files_and_directories_by_name(keep, tree, store):
    keep("ingest", tree / "text", tree / "binary", "--prefix", "p/")
    assert set(saved(store)) == {"p/grün.txt", "p/twice", "p/binary"}


def test_patterns(keep, tree, store):
    keep("ingest", tree, "--include", "*.txt", "--include", "binary", "--exclude", "100*")
    assert set(saved(store)) == {"binary", "text/grün.txt"}


def test_a_store_does_not_swallow_itself(run, tree, store):
    inside = tree / "store"
    for _ in range(2):
        assert json.loads(run("ingest", "-s", inside, "--json", tree).text)["files"] == 10
    assert len(saved(inside)) == 10


def test_links(keep, tree, store):
    (tree / "inner").symlink_to("text/grün.txt")
    (tree / "out").symlink_to("/etc/passwd")
    done = keep("ingest", tree)
    assert done.code == 0
    assert done.text.endswith("; 1 skipped\n")
    assert saved(store)["inner"] == saved(store)["text/grün.txt"]
    assert "out" not in saved(store)


def test_what_cannot_be_saved_is_reported_and_the_rest_saved(keep, tree, store):
    deep = tree / ("d" * 250) / ("e" * 250)
    deep.mkdir(parents=True)
    (deep / "file").touch()
    done = keep("ingest", tree)
    assert done.code == 3
    assert done.text.endswith("; 1 failed\n")
    assert done.err.count("\n") == 1
    assert "takes 506 bytes of UTF-8; at most 480 fit: try a shorter --prefix" in done.err
    assert len(saved(store)) == 10


def test_files_over_the_limit_are_reported(run, tree, store):
    done = run("ingest", "--store", f"lmdb://{store}?value_bytes_max=20000", tree)
    assert done.code == 3
    assert done.text.startswith("9 files")
    assert done.err == f"kvsage: {tree}/binary: larger than 20,000 bytes, the most for one value\n"


def test_two_files_with_one_key_are_not_mixed_up(keep, tree, tmp_path, store):
    other = tmp_path / "other"
    (other / "text").mkdir(parents=True)
    (other / "text" / "twice").write_text("another")
    (other / "new").write_text("new")
    done = keep("ingest", tree, other)
    assert done.code == 3
    assert f"{other}/text/twice: its key 'text/twice' is that of '{tree}/text/twice'" in done.err
    assert saved(store)["new"] == b"new"
    assert saved(store)["text/twice"] == (tree / "text" / "twice").read_bytes()


def test_a_file_named_after_its_directory_has_the_same_key(keep, tree, store):
    done = keep("ingest", tree, tree / "binary")
    assert done.code == 3
    assert "its key 'binary' is that of" in done.err
    assert len(saved(store)) == 10


def test_progress_bar_on_a_terminal(on_terminal, tree):
    shown = on_terminal("ingest", tree)
    assert shown.code == 0
    assert "10 of 10 files" in shown.text
    assert "\x1b[?25h" in shown.text  # the cursor is back
    assert "10 files, 26.4 kB" in shown.lines[-1]


# -- the function --------------------------------------------------------------------------------


def plan(tree: Path, **changes: object) -> Plan:
    return Plan(sources=(str(tree),), file_bytes_max=MANY, **changes)


def test_batches_are_bounded(tree, store, monkeypatch):
    monkeypatch.setattr(ingesting, "BATCH_FILES", 3)
    monkeypatch.setattr(ingesting, "BATCH_BYTES", 500)
    with LMDBStore(store) as opened:
        report = ingest(opened, plan(tree))
        assert report.files == 10
        # -dash 100%.txt a%FF | a\xff | binary | empty text/grün text/twice | twice with\n
        assert opened.stats().commits == 5
    assert len(saved(store)) == 10


def test_text_only(tree, store):
    with LMDBStore(store) as opened:
        report = ingest(opened, plan(tree, text_only=True, selection=Selection(exclude=("t*",))))
    assert (report.files, report.skipped) == (6, 1)
    assert "binary" not in saved(store)


class Picky(LMDBStore):
    """A store that cannot hold some bytes, as others than the embedded one may be."""

    def save_many(self, mapping, *_):
        for key, value in mapping.items():
            self.save(key, value)
        return len(mapping)

    def save(self, key, value, *_):
        if key == "binary":
            raise UnsupportedError("no bytes here")
        return super().save(key, value)

    def stats(self):
        raise UnsupportedError("no figures here")


def test_one_refused_file_does_not_take_its_batch_with_it(tree, store):
    complaints = []
    with Picky(store) as opened:
        report = ingest(opened, plan(tree), complain=complaints.append)
    assert (report.files, report.failed) == (9, 1)
    assert (report.new_contents, report.stored_bytes) == (None, None)
    assert complaints == [f"{tree}/binary: no bytes here"]
    assert ingesting.summary(report).endswith("; 1 failed")


def test_files_that_cannot_be_read_are_reported(tree, store, monkeypatch):
    def refusing(file, limit):
        if file.path == "empty":
            raise FileNotFoundError(2, "No such file or directory", file.source)
        if file.path == "binary":
            raise PermissionError(13, "Permission denied", file.source)
        return read(file, limit)

    monkeypatch.setattr(ingesting, "read", refusing)
    complaints = []
    with LMDBStore(store) as opened:
        report = ingest(opened, plan(tree), complain=complaints.append)
    assert (report.files, report.failed) == (8, 2)
    assert complaints == [
        f"{tree}/binary: Permission denied",
        f"{tree}/empty: No such file or directory",
    ]


def test_a_directory_that_cannot_be_listed_is_reported(tree, store, monkeypatch):
    listed = tree_of_files._listed

    def refusing(directory):
        if directory.endswith("text"):
            raise PermissionError(13, "Permission denied", directory)
        return listed(directory)

    monkeypatch.setattr(tree_of_files, "_listed", refusing)
    complaints = []
    with LMDBStore(store) as opened:
        report = ingest(opened, plan(tree), complain=complaints.append)
    assert (report.files, report.failed) == (8, 1)
    assert complaints == [f"{tree}/text: Permission denied"]
