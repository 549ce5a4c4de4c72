import json

import pytest

from kvsage import LMDBStore, cli
from kvsage.cli.demo_figures import Figures, Step


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "__pycache__").mkdir(parents=True)
    for number in range(30):
        (root / f"{number}.py").write_text(f"# file {number}\n" * 50)
    (root / "again.py").write_text("# file 7\n" * 50)
    (root / "binary").write_bytes(b"\xff\x00" * 100)
    (root / "__pycache__" / "x.pyc").write_text("not to be taken")
    return root


def test_demo(run, tree, tmp_path):
    shown = run("demo", "--json", tree, TMPDIR=str(tmp_path))
    assert shown.code == 0
    figures = json.loads(shown.text)
    assert (figures["ok"], figures["broken"]) == (True, [])
    steps = {step["name"]: step for step in figures["steps"]}
    assert steps["files saved as content"]["operations"] == 31
    assert steps["same under other keys"]["result"].startswith("0 new; ")
    assert steps["files loaded"]["operations"] == 31
    assert steps["sessions saved"]["operations"] == 3000
    assert steps["sessions expired"]["operations"] == 1000
    assert steps["saves rolled back"]["result"] == "500 seen, then 0"
    assert steps["conversation saved"]["operations"] == 400
    assert steps["conversation saved"]["result"].endswith(" kB of log")
    assert figures["talk_log_bytes"] * 100 < figures["talk_bytes"]
    assert steps["messages appended"]["result"].startswith("flushed; ")
    assert steps["parts of it loaded"]["result"] == "20 of 900 messages"
    assert steps["writes acknowledged"]["operations"] == figures["acknowledged"] > 0
    assert steps["log entries verified"]["result"].startswith("no problem in ")
    assert figures["dedup_ratio"] == pytest.approx(62 / 30, rel=0.01)
    assert figures["compression_ratio"] > 2
    assert figures["logical_bytes"] > figures["stored_bytes"] > 0
    assert 0 < figures["reopen_seconds"] < figures["seconds"]
    assert all(step["per_second"] for name, step in steps.items() if name != "sessions expired")
    assert "6/6" in shown.err
    assert list(tmp_path.iterdir()) == [tree]  # nothing is left


def test_demo_on_a_terminal_of_80_columns(on_terminal, tree, store):
    shown = on_terminal("demo", "--keep", store, tree, COLUMNS="80", NO_COLOR="1")
    assert shown.code == 0
    table = shown.text[shown.text.index("kvsage demo: every promise kept") :]
    for name in (
        "files saved as content",
        "conversation saved",
        "compression ratio",
        "recovery without index",
    ):
        assert name in table
    rows = table.split("The store is yours")[0].splitlines()
    assert len(rows) <= 30  # so no cell was folded
    with LMDBStore(store, readonly=True) as opened:
        assert opened.load("files/7.py") == opened.load("again/again.py")
        talk = opened.load("talk/whole")
        assert len(talk) == 900
        assert opened.load("talk/states/00400") == talk[:800]
        assert opened.verify(deep=True).ok


def test_demo_keeps_out_of_a_directory_in_use(run, tree, tmp_path):
    done = run("demo", "--keep", tree, tree)
    assert (done.code, done.out) == (2, b"")
    assert "--keep needs a fresh DIR" in done.err


def test_demo_needs_files(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert cli.main(["demo", str(tmp_path / "empty")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "there is no text file below" in shown.err


def test_a_broken_promise_is_seen(capsys):
    figures = Figures(python="3", source="s", store="t")
    figures.add("writes", 10, 2.0, "fine")
    figures.add("waits", 3, None, "fine")
    figures.promise("the sky is blue", kept=True)
    assert figures.as_json()["ok"]
    figures.promise("nothing is lost", kept=False)
    assert figures.as_json()["broken"] == ["nothing is lost"]
    assert "PROMISES BROKEN" in figures.table().title
    assert "BROKEN: nothing is lost" in capsys.readouterr().err


def test_rows():
    assert Step("a", 1000, 0.5, "r").row() == ("a", "1,000", "0.50", "2,000", "r")
    assert Step("a", 1000, None, "r").row() == ("a", "1,000", "", "", "r")
