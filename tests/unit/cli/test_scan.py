import json

import pytest

from kvsage import LMDBStore


@pytest.fixture
def filled(keep, store):
    with LMDBStore(store) as opened:
        opened.save_many({key: {"k": key} for key in ("b", "a/2", "a/1", "c\nd", "ü")})
    return keep


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        ([], "a/1 a/2 b c\nd ü"),
        (["a/"], "a/1 a/2"),
        (["--reverse"], "ü c\nd b a/2 a/1"),
        (["--limit", "2"], "a/1 a/2"),
        (["-n", "0"], ""),
        (["--start", "a/2", "--stop", "c"], "a/2 b"),
        (["--start", "b", "--reverse", "--limit", "1"], "ü"),
        (["none"], ""),
    ],
)
def test_selection(filled, arguments, keys):
    shown = filled("scan", *arguments)
    assert (shown.code, shown.err) == (0, "")
    assert shown.text == "".join(f"{key}\n" for key in keys.split(" ") if key)
    lines = filled("scan", "--json", *arguments).lines
    assert [json.loads(line) for line in lines] == [{"key": k} for k in keys.split(" ") if k]


def test_values(filled):
    assert filled("scan", "a/", "--values").text == 'a/1\t{"k": "a/1"}\na/2\t{"k": "a/2"}\n'
    lines = filled("scan", "c", "--values", "--json").lines
    assert [json.loads(line) for line in lines] == [{"key": "c\nd", "value": {"k": "c\nd"}}]


def test_count(filled):
    assert filled("count").out == b"5\n"
    assert filled("count", "a/").out == b"2\n"
    assert filled("count", "--json", "none").out == b'{"prefix": "none", "count": 0}\n'


def test_terminal_gets_lines_that_fit(filled, each_on_terminal):
    filled("set", "üü", json.dumps("long " * 100))
    values, one = each_on_terminal(["scan", "--values"], ["scan", "c"])
    shown = values.decode().splitlines()
    assert len(shown) == 6
    assert max(map(len, shown)) == 100
    assert shown[-1].endswith("...")
    assert "c\\nd" in shown[3]
    assert one == b"c\\nd\n"
